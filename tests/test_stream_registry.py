"""Messages with a schema registry: from a real broker, serialised by Confluent's own serialisers. The registry is a
small server of the REST calls that its client makes, because no real one can be installed here."""

from __future__ import annotations

import base64
import json
import re
import struct
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import streams
from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from servers import HOST, Kafka
from services import bootstrap, new_topic

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.stream.replay import replay
from orchestration.mapping.mapping import read_mapping
from orchestration.quality.doctor import examine


class Registry:
    """The REST calls of a registry that its client makes. `asked` are the requested paths, `fails` is a status to
    answer instead."""

    def __init__(self) -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.subjects: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.credentials: str | None = None
        self.fails: int | None = None
        self.server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer = registry.answer(self.command, self.path, body, self.headers.get("Authorization"))
                said = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_POST = _answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((HOST, self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def answer(self, method: str, path: str, body: bytes, authorization: str | None) -> tuple[int, dict[str, Any]]:
        self.asked.append(path)
        if self.fails is not None:
            return self.fails, {"error_code": self.fails * 100 + 1, "message": "no"}
        if self.credentials and authorization != "Basic " + base64.b64encode(self.credentials.encode()).decode():
            return 401, {"error_code": 401, "message": "Unauthorized"}
        path = path.partition("?")[0]
        if method == "POST" and (found := re.fullmatch(r"/subjects/([^/]+)/versions", path)):
            given = json.loads(body)
            number = next((n for n, schema in self.schemas.items() if schema == given), 40 + len(self.schemas))
            self.schemas[number] = given
            versions = self.subjects.setdefault(found[1], [])
            if number not in versions:
                versions.append(number)
            return 200, {"id": number}
        if method == "POST" and (found := re.fullmatch(r"/subjects/([^/]+)", path)):
            number = next(n for n, schema in self.schemas.items() if schema == json.loads(body))
            return 200, self.schemas[number] | {"id": number, "subject": found[1], "version": 1}
        if found := re.fullmatch(r"/schemas/ids/(\d+)", path):
            schema = self.schemas.get(int(found[1]))
            return (200, schema) if schema else (404, {"error_code": 40403, "message": "Schema not found"})
        if found := re.fullmatch(r"/subjects/([^/]+)/versions/(\d+)", path):
            number = self.subjects[found[1]][int(found[2]) - 1]
            return 200, self.schemas[number] | {"id": number, "subject": found[1], "version": int(found[2])}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}


class Shop(streams.Streamed):
    """A topic, its registry, a mapping that streams it and a home."""

    def __init__(self, kafka: Kafka, registry: Registry, folder: Path, extensions: Path) -> None:
        self.kafka, self.registry, self.where = kafka, registry, Settings.below(folder / "home", extensions)
        self.mapping, self.topic = folder / "shop.yml", new_topic(kafka, 1)
        self.client = SchemaRegistryClient({"url": f"http://{HOST}:{registry.port}"})
        self.map()

    def map(self, registry: str | None = "", fields: dict[str, Any] | None = None, **settings: str) -> None:
        stream: dict[str, Any] = {
            "kafka": self.topic,
            "settings": {"bootstrap.servers": bootstrap(self.kafka), **settings},
        }
        if registry is not None:
            stream["registry"] = registry or f"http://{HOST}:{self.registry.port}"
        entry: dict[str, Any] = {"stream": stream, "available_at": "now"}
        if fields is not None:
            entry["fields"] = fields
        self.mapping.write_text(json.dumps({"source": "shop", "tables": {"events": entry}}))

    def serialised(self, serializer: Callable[..., Any], value: Any) -> bytes:
        return bytes(serializer(value, SerializationContext(self.topic, MessageField.VALUE)))

    def send(self, *payloads: bytes) -> None:
        producer = Producer({"bootstrap.servers": bootstrap(self.kafka), "log_level": 0})
        for payload in payloads:
            producer.produce(self.topic, payload)
        assert producer.flush(60) == 0


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.stop()


@pytest.fixture
def shop(kafka: Kafka, registry: Registry, tmp_path: Path, extensions: Path) -> Shop:
    return Shop(kafka, registry, tmp_path, extensions)


def logical(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "logicalType": name, **more}


PRICE = {
    "type": "record", "name": "Money", "namespace": "shop",
    "fields": [{"name": "amount", "type": logical("bytes", "decimal", precision=30, scale=4)}, {"name": "currency", "type": "string"}],
}  # fmt: skip
ORDER = {
    "type": "record", "name": "Order", "namespace": "shop",
    "fields": [
        {"name": "event_type", "type": {"type": "enum", "name": "Kind", "symbols": ["view_item", "purchase"]}},
        {"name": "event_at", "type": logical("long", "timestamp-micros")},
        {"name": "user_id", "type": ["null", "string"], "default": None},
        {"name": "product_id", "type": ["null", "long", "string"]},
        {"name": "quantity", "type": "int"},
        {"name": "paid", "type": PRICE},
        {"name": "sent", "type": logical("long", "timestamp-millis")},
        {"name": "day", "type": logical("int", "date")},
        {"name": "id", "type": logical("string", "uuid")},
        {"name": "raw", "type": "bytes"},
        {"name": "weight", "type": "float", "default": 0.0},
        {"name": "ratio", "type": "double"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "more", "type": {"type": "map", "values": "float"}},
    ],
}  # fmt: skip
BOUGHT = {
    "event_type": "purchase",
    "event_at": datetime(2025, 3, 2, 10, 15, 30, 123456, tzinfo=UTC),
    "user_id": "ann",
    "product_id": 9007199254740993,
    "quantity": 2,
    "paid": {"amount": Decimal("12345678901234567890.1200"), "currency": "EUR"},
    "sent": datetime(2025, 3, 2, 10, 15, 31, 5000, tzinfo=UTC),
    "day": date(2025, 3, 2),
    "id": UUID("12345678-1234-5678-1234-567812345678"),
    "raw": b"\x00\xff",
    "weight": 12.1,
    "ratio": float("nan"),
    "tags": ["a", 'é"'],
    "more": {"x": 0.5},
}
SHOWN = {
    "event_type": "purchase",
    "event_at": "2025-03-02T10:15:30.123456+00:00",
    "user_id": "ann",
    "product_id": 9007199254740993,
    "quantity": 2,
    "paid": {"amount": "12345678901234567890.1200", "currency": "EUR"},
    "sent": "2025-03-02T10:15:31.005000+00:00",
    "day": "2025-03-02",
    "id": "12345678-1234-5678-1234-567812345678",
    "raw": "AP8=",
    "weight": 12.1,
    "ratio": None,
    "tags": ["a", 'é"'],
    "more": {"x": 0.5},
}
FIELDS = {
    "event_type": "event_type", "event_at": "event_at", "user_id": "user_id", "product_id": "product_id", "quantity": "quantity",
    "price": {"sql": "paid->>'$.amount'"}, "currency": {"sql": "paid->>'$.currency'"}, "event_id": "id",
}  # fmt: skip
CHECKED = {
    "type": "object",
    "title": "Event",
    "properties": {"event_type": {"type": "string"}},
    "required": ["event_type"],
}
VIEWED = {"event_type": "view_item", "event_at": "2025-03-02T10:15:30Z", "user_id": "bob", "price": 12.5}


def test_avro_and_json_schema_land_beside_plain_json(shop: Shop) -> None:
    shop.map(fields=FIELDS)
    order = AvroSerializer(shop.client, json.dumps(ORDER))
    event = JSONSerializer(json.dumps(CHECKED), shop.client)
    nobody = {**BOUGHT, "user_id": None, "product_id": "A1"}
    shop.send(
        *[shop.serialised(order, BOUGHT)] * 3,
        shop.serialised(order, nobody),
        shop.serialised(event, VIEWED),
        json.dumps(VIEWED).encode(),
    )
    shop.registry.asked.clear()
    done = shop.drain()
    assert (done["rows"], done["dead_letters"]) == (5, {"missing_field": 1})
    assert len(shop.registry.asked) <= 4  # two schemas, by two threads at most
    names = "event_type, event_at, user_id, product_id, quantity, price, currency, event_id"
    rows = shop.ask(f"select {names}, payload from lake.raw.events order by _position")
    assert rows[0][:-1] == (
        "purchase", "2025-03-02T10:15:30.123456+00:00", "ann", "9007199254740993", "2", "12345678901234567890.1200", "EUR",
        "12345678-1234-5678-1234-567812345678",
    )  # fmt: skip
    assert json.loads(rows[0][-1]) == SHOWN
    assert [row[2] for row in rows] == ["ann", "ann", "ann", "bob", "bob"]
    assert [json.loads(row[-1]) for row in rows[3:]] == [VIEWED, VIEWED]
    # A message that breaks a rule is kept with its original bytes.
    assert shop.ask("select payload from lake.raw.dead_letters") == [(shop.serialised(order, nobody),)]


def test_types_of_other_schemas(shop: Shop) -> None:
    shop.client.register_schema("money", Schema(json.dumps(PRICE), "AVRO"))
    fields = [{**each, "type": "shop.Money"} if each["name"] == "paid" else each for each in ORDER["fields"]]  # type: ignore[index,attr-defined]
    whole = Schema(json.dumps({**ORDER, "fields": fields}), "AVRO", [SchemaReference("shop.Money", "money", 1)])
    shop.send(shop.serialised(AvroSerializer(shop.client, whole), BOUGHT))
    shop.map(fields=FIELDS)
    assert shop.drain()["rows"] == 1
    assert json.loads(shop.ask("select payload from lake.raw.events")[0][0]) == SHOWN


def test_without_a_registry_a_message_says_what_it_is(shop: Shop) -> None:
    order = AvroSerializer(shop.client, json.dumps(ORDER))
    shop.map(registry=None, fields=FIELDS)
    sent = shop.serialised(order, BOUGHT)
    shop.send(sent, b"\0\0\0\0\x2a" + json.dumps(VIEWED).encode(), b"\0\0")
    warned = [finding.message for finding in examine(shop.mapping, where=shop.where).entries[0].findings]
    assert any("schema 42" in message and "set registry:" in message for message in warned)
    done = shop.drain()
    assert done["dead_letters"] == {"schema_registry": 2, "not_json": 1}
    assert shop.ask("select error from lake.raw.dead_letters where rule_id = 'schema_registry' order by _position")[
        1
    ] == ("it begins with the prefix of a schema registry (schema 42); set registry: in the mapping",)
    # After the mapping was corrected they land, from the original bytes; schema 42 is not in the registry.
    shop.map(fields=FIELDS)
    assert replay(shop.mapping, where=shop.where).rows == 1
    assert shop.ask("select user_id from lake.raw.events") == [("ann",)]
    assert [
        each.name for each in examine(shop.mapping, where=shop.where).entries[0].fields if each.read < each.filled
    ] == []


def test_what_cannot_be_decoded_is_a_dead_letter(shop: Shop) -> None:
    shop.map(fields=FIELDS)
    order = AvroSerializer(shop.client, json.dumps(ORDER))
    good = shop.serialised(order, BOUGHT)
    proto = shop.client.register_schema("proto", Schema('syntax = "proto3"; message A {}', "PROTOBUF"))
    broken = shop.client.register_schema("broken", Schema('{"type": "nothing"}', "AVRO"))
    texts = shop.client.register_schema("json", Schema("{}", "JSON"))
    far = shop.serialised(
        AvroSerializer(
            shop.client, json.dumps({"type": "record", "name": "T", "fields": [{"name": "event_at", "type": "long"}]})
        ),
        {"event_at": 2**60},
    )
    timed = shop.client.register_schema(
        "timed", Schema(json.dumps({"type": "record", "name": "T", "fields": [{"name": "event_at", "type": logical("long", "timestamp-millis")}]}), "AVRO")
    )  # fmt: skip
    prefix = lambda number: struct.pack(">bI", 0, number)  # noqa: E731
    shop.send(
        good[:-1], good + b"x", prefix(9999) + b"x", prefix(proto) + b"x", prefix(broken) + b"x", prefix(texts) + b"\xff", prefix(timed) + far[5:], good
    )  # fmt: skip
    done = shop.drain()
    assert (done["rows"], done["dead_letters"]) == (1, {"schema_registry": 7})
    said = [str(row[0]) for row in shop.ask("select error from lake.raw.dead_letters order by position::int")]
    for part, error in zip(
        ["not Avro of schema", "left over", "has no schema 9999", "Protobuf, which is not supported", "not an Avro schema", "not UTF-8", "not Avro of schema"],
        said,
        strict=True,
    ):  # fmt: skip
        assert part in error
    assert shop.ask("select payload from lake.raw.dead_letters order by position::int limit 1") == [(good[:-1],)]


def test_a_registry_that_does_not_answer_holds_the_stream(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.map(fields=FIELDS)
    shop.send(*[shop.serialised(AvroSerializer(shop.client, json.dumps(ORDER)), BOUGHT)] * 5)
    shop.registry.stop()
    with pytest.raises(FinegrainError, match="does not answer"):
        examine(shop.mapping, where=shop.where)
    process = shop.run("--json")
    lines_read: list[str] = []
    assert process.stdout is not None

    def trouble() -> str | None:
        lines_read.append(process.stdout.readline())  # type: ignore[union-attr]
        return str(json.loads(lines_read[-1])["trouble"] or "") or None

    try:
        assert "does not answer" in streams.wait(trouble)
        assert shop.ask("select count(*) from lake.raw.events") == [(0,)]
        shop.registry.fails = 503
        shop.registry.start()
        streams.wait(lambda: "answers 503" in (trouble() or ""))
        shop.registry.fails = None
        streams.wait(lambda: shop.ask("select count(*) from lake.raw.events") == [(5,)])
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert shop.drain()["rows"] == 0
    assert shop.ask("select count(*) from lake.raw.dead_letters") == [(0,)]


def test_credentials_are_sent_and_never_printed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.send(shop.serialised(AvroSerializer(shop.client, json.dumps(ORDER)), BOUGHT))
    shop.registry.credentials = "key:se/cret"
    address = f"{HOST}:{shop.registry.port}"
    for url, more in (
        ("http://key:wr%2Fong@" + address, {}),
        ("http://" + address, {"schema.registry.basic.auth.user.info": "key:wr/ong"}),
    ):
        monkeypatch.setenv("REGISTRY", url)
        shop.map("${REGISTRY}", FIELDS, **more)
        with pytest.raises(FinegrainError, match="answers 401") as caught:
            shop.drain()
        assert "wr" not in str(caught.value).replace("write", "") and address in str(caught.value)
    monkeypatch.setenv("SECRET", "se/cret")
    shop.map("http://" + address, FIELDS, **{"schema.registry.basic.auth.user.info": "key:${SECRET}"})
    assert shop.drain()["rows"] == 1
    shop.registry.credentials = None


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ({"folder": "in", "registry": "http://localhost"}, "registry goes with kafka"),
        ({"kafka": "t", "registry": "localhost:8081"}, "an address begins with https:// or http://"),
    ],
)
def test_an_invalid_registry_is_refused(tmp_path: Path, stream: dict[str, Any], said: str) -> None:
    (tmp_path / "shop.yml").write_text(
        json.dumps({"source": "s", "tables": {"events": {"stream": stream, "available_at": "now"}}})
    )
    with pytest.raises(FinegrainError, match=said):
        read_mapping(tmp_path / "shop.yml")
