"""Streams into the lake, by the embedded source: a folder of JSON lines that grows."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from servers import free_ports
from streams import StreamedFolder, wait
from test_any_name import OURS

from orchestration.errors import FinegrainError
from orchestration.ingest.stream.loader import Limits
from orchestration.ingest.stream.messages import NAMED, BatchResult, Messages
from orchestration.ingest.stream.replay import replay
from orchestration.ingest.stream.run import PreviewOwner
from orchestration.ingest.stream.watch import Watch
from orchestration.ingest.unload import unload
from orchestration.lake import lake
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.mapping.mapping import Table
from orchestration.sources.bounds import Bounds
from orchestration.sources.folder import Folder
from orchestration.sql.text import identifier

GOOD = {
    "event_type": "view_item",
    "event_at": "2025-03-02T10:15:30Z",
    "user_id": "ann",
    "product_id": "A1",
    "price": 1.5,
}


class Shop(StreamedFolder):
    """A mapping of events, the folder that it streams and a home."""

    def map(self, **entry: Any) -> None:
        """Write the mapping; its only entry is changed so."""
        keys = {"stream": {"folder": str(self.folder)}, "available_at": "now", **entry}
        self.mapping.write_text(json.dumps({"source": "shop", "tables": {"events": keys}}, ensure_ascii=False))

    def add(self, *lines: bytes | dict[str, Any], file: str = "a.jsonl", end: bytes = b"\n") -> None:
        """Append lines to a file of the stream."""
        with (self.folder / file).open("ab") as out:
            for line in lines:
                out.write((json.dumps(line).encode() if isinstance(line, dict) else line) + end)


@pytest.fixture
def shop(tmp_path: Path, extensions: Path) -> Shop:
    return Shop(tmp_path, extensions)


def test_rows_land_once_in_the_contracts_shape(shop: Shop) -> None:
    shop.map(personal={"user_agent": "keep"})
    given = (
        {name: f"{name} of it" for name in RAW_TABLES["events"]} | GOOD | {"properties": {"a": [1]}, "quantity": "2"}
    )
    shop.add(given, GOOD)
    assert shop.drain()["rows"] == 2
    shop.add(GOOD, file="b.jsonl")
    shop.add(GOOD | {"user_id": "bob"})
    assert shop.drain()["rows"] == 2
    assert shop.drain()["rows"] == 0
    names = ", ".join(RAW_TABLES["events"])
    [landed] = shop.ask(f"select {names} from lake.raw.events where event_id is not null")
    expected = {**{name: str(given[name]) for name in RAW_TABLES["events"]}, "properties": '{"a":[1]}'}
    assert dict(zip(RAW_TABLES["events"], landed, strict=True)) == expected
    assert shop.ask("select count(*), count(distinct _position), bool_and(payload like '{%') from lake.raw.events") == [
        (4, 4, True)
    ]
    size = len(json.dumps(given)) + 1
    # A file's name is followed by a suffix that distinguishes it from others of that name.
    landed_at = [
        re.sub("@[0-9a-f]{8}/", "/", position) for (position,) in shop.ask("select _position from lake.raw.events")
    ]
    assert sorted(landed_at) == [
        f"{shop.folder}/a.jsonl/0",
        f"{shop.folder}/a.jsonl/{size}",
        f"{shop.folder}/a.jsonl/{size + len(json.dumps(GOOD)) + 1}",
        f"{shop.folder}/b.jsonl/0",
    ]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b"no JSON", "not_json"),
        (b"[1]", "not_json"),
        (b'"text"', "not_json"),
        (b'{"event_type": "view_item"', "not_json"),
        (b"\xff\xfe", "not_utf8"),
        (json.dumps(GOOD | {"page": "x" * Bounds.size}).encode(), "over_size"),
        (json.dumps(GOOD | {"event_type": None}).encode(), "missing_field"),
        (json.dumps(GOOD | {"event_at": " "}).encode(), "missing_field"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "user_id"}).encode(), "missing_field"),
        (json.dumps(GOOD | {"event_type": "vew_item"}).encode(), "unknown_event"),
        (json.dumps(GOOD | {"event_at": "soon"}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"event_at": "infinity"}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"event_at": "12/1/10 8:26"}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"event_at": "2025-03-02T10:15:30+25:00"}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"event_at": "0025-03-02T10:15:30Z"}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"price": "a lot"}).encode(), "wrong_type"),
        (json.dumps(GOOD | {"quantity": {"n": 1}}).encode(), "wrong_type"),
    ],
)
def test_what_breaks_a_rule_is_a_dead_letter_with_the_same_bytes(shop: Shop, line: bytes, rule: str) -> None:
    shop.add(GOOD, line, GOOD)
    done = shop.drain()
    assert (done["rows"], done["dead_letters"]) == (2, {rule: 1})
    [(payload, said, error, table, position, part)] = shop.ask(
        "select payload, rule_id, error, raw_table, position, part from lake.raw.dead_letters"
    )
    assert (payload, said, table, position) == (line, rule, "events", str(len(json.dumps(GOOD)) + 1))
    assert re.fullmatch("a.jsonl@[0-9a-f]{8}", part)
    assert error


def test_unknown_fields_are_kept_in_properties_and_counted(shop: Shop) -> None:
    odd = 'a "quoted" $.key'
    shop.add(GOOD | {"coupon": "X", odd: {"deep": 1}}, GOOD | {"coupon": "Y", "properties": {"own": True}}, GOOD)
    assert shop.drain()["unknown_fields"] == {"coupon": 2, odd: 1}
    found = [
        json.loads(text) for (text,) in shop.ask("select properties from lake.raw.events where properties is not null")
    ]
    assert sorted(found, key=len) == sorted([{"coupon": "X", odd: {"deep": 1}}, {"coupon": "Y", "own": True}], key=len)
    assert {"coupon": "X", odd: {"deep": 1}} in found


ODD: dict[str, Any] = {
    "a/b": [1, None],
    "c~1d": None,
    "é\n'": {"x": None},
    "\x00": "y",
    "#": 1.5,
    "$paths": "z",
    "'": '"}',
}


@pytest.mark.parametrize(
    "extra",
    [
        {"coupon": 1},
        ODD,
        ODD | {f"key {n}": n for n in range(NAMED // 2)},
        ODD | {"": 0},
        ODD | {"Price": 2, "é": 1, "É": 2},
        ODD | {f"key {n}": n for n in range(NAMED)},
    ],
    ids=["one", "few", "some", "no name", "case", "many"],
)
def test_any_unknown_key_keeps_its_value(shop: Shop, extra: dict[str, Any]) -> None:
    """A few unknown keys are read with the known ones, many are read one by one: they land the same."""
    own: list[Any] = [
        {"#": "own"},
        {"coupon": "own", "of": {"coupon": 1}},
        {"o\\": "\\"},
        {},
        None,
        "no object",
        "{no: object}",
        '{"no": "object"',
        '["a"]',
    ]
    shop.add(*(GOOD | extra | {"properties": each} for each in own), GOOD)
    unknown = shop.drain()["unknown_fields"]
    assert len(unknown) == min(len(extra), NAMED) and set(unknown.values()) == {len(own)}
    found = shop.ask("select properties from lake.raw.events order by regexp_extract(_position, '[0-9]+$')::bigint")
    expected = [
        extra | (each if isinstance(each, dict) else {} if each is None else {"properties": each}) for each in own
    ]
    assert [json.loads(text or "null") for (text,) in found] == [*expected, None]


TEXTS = st.one_of(
    st.none(),
    st.sampled_from(
        [
            "",
            " ",
            "\u3000",
            "~",
            "!",
            " ann",
            "1",
            "1e400",
            "nan",
            "1,5",
            "view_item",
            " View_Item",
            "vew",
            "2025-03-02",
            "[1]",
            "{",
        ]
    ),
    st.sampled_from(
        [
            "2025-03-02T10:15:30Z",
            "1740910530",
            "yesterday",
            "infinity",
            "2025-13-01",
            "02/03/2025 10:15",
            "2025-02-29T00:00:00Z",
            "2025-03-02 24:00:00",
        ]
    ),
    st.text(max_size=3),
)


@given(
    st.lists(
        st.tuples(st.none() | st.just("broken"), st.just('{"quantity": [1]}'), *[TEXTS] * 6), min_size=1, max_size=50
    )
)
def test_messages_that_are_accepted_early_break_no_rule(rows: list[tuple[str | None, ...]]) -> None:
    with duckdb.connect() as con:
        entry = Table.model_validate({"stream": {"folder": "in"}, "available_at": "now"})
        messages = Messages(con, "shop", "events", entry, "UTC", "shop.yml")
        names = ["__bad", "__payload", "event_type", "event_at", "user_id", "anonymous_id", "quantity", "price"]
        texts = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        fields = pa.table(texts, names)
        for name in RAW_TABLES["events"].keys() - set(names):
            fields = fields.append_column(name, pa.nulls(len(rows), pa.string()))
        con.register("fields", fields)
        found = con.execute(f"select {messages.clear}, case {messages.rules} end from fields").fetchall()
    assert [why for clear, why in found if clear] == [None for clear, _ in found if clear]


def test_an_object_or_a_list_is_not_a_value(shop: Shop) -> None:
    """Except in properties; a string may begin like one."""
    nested = [
        {"user_id": {"$oid": "5f"}},
        {"product_id": ["A1"]},
        {"price": {"EUR": 1}},
        {"event_at": {"$date": "2025-03-02"}},
        {"event_type": []},
    ]
    texts = [
        {"user_id": "{5f}"},
        {"product_id": "[A1]"},
        {"user_id": '{"$oid": "5f"}'},
        {"properties": {"user_id": {"a": [1]}}},
    ]
    shop.add(*(GOOD | each for each in [*nested, *texts]))
    done = shop.drain()
    assert (done["rows"], done["dead_letters"]) == (len(texts), {"wrong_type": len(nested)})
    said = shop.ask("select error from lake.raw.dead_letters order by position::bigint limit 1")
    assert said == [
        (
            'user_id is an object or a list: {"$oid":"5f"}; extract a value from it, as in user_id: {sql: "user_id->>\'$.id\'"}',
        )
    ]
    rows = shop.ask(
        "select user_id, product_id from lake.raw.events order by regexp_extract(_position, '[0-9]+$')::bigint"
    )
    assert rows == [("{5f}", "A1"), ("ann", "[A1]"), ('{"$oid": "5f"}', "A1"), ("ann", "A1")]
    # As the hint suggests.
    fields = {name: name for name in GOOD} | {"user_id": {"sql": "user_id->>'$.\"$oid\"'"}}
    shop.map(fields=fields)
    assert replay(shop.mapping, where=shop.where).rows == 1
    assert shop.ask("select user_id from lake.raw.events where user_id = '5f'") == [("5f",)]


def test_numbers_keep_their_digits(shop: Shop) -> None:
    """As ids, as money and in properties; also next to strings that look like numbers; text that is not a number does
    not become one."""
    lines = [
        b'{"user_id": 12345678901234567890, "price": 1234567890123456.10, "properties": {"a": [0.12345678901234567, 12.5]}, "b": 123456789.12345678}',
        b'{"user_id": 12345678901234567891, "price": 12.50, "product_id": "x\\": 1234567890123456.10"}',
        b'{"user_id": "a", "price": 1e3}',
        b'{"user_id": "a", "price": NaN}',
        b'{"user_id": "a", "price": "Infinity"}',
    ]
    start = b'{"event_type": "view_item", "event_at": "2025-03-02T10:15:30Z", '
    shop.add(*(start + line[1:] for line in lines))
    done = shop.drain()
    assert (done["rows"], done["dead_letters"]) == (3, {"wrong_type": 2})
    rows = shop.ask(
        "select user_id, price, product_id, properties, payload from lake.raw.events order by regexp_extract(_position, '[0-9]+$')::bigint"
    )
    assert rows[0][:2] == ("12345678901234567890", "1234567890123456.10")
    assert json.loads(rows[0][3]) == {"a": ["0.12345678901234567", 12.5], "b": "123456789.12345678"}
    assert rows[0][4].encode() == start + lines[0][1:]
    assert rows[1][:3] == ("12345678901234567891", "12.5", 'x": 1234567890123456.10')
    assert float(rows[2][1]) == 1000


def test_a_mapping_names_translates_and_leaves_out(shop: Shop) -> None:
    fields = {
        "event_type": {"column": "what", "map": {"look": "view_item"}},
        "event_at": "ts",
        "user_id": {"sql": "nullif(login, 'guest')"},
        "anonymous_id": "cookie",
        "price": {"sql": "cast(cents as int) / 100.0"},
    }
    shop.map(fields=fields, where="what <> 'ping'", time_zone="Europe/Berlin")
    row = {"what": "look", "ts": "2025-03-02 10:00:00", "login": "guest", "cookie": "c1", "cents": "150"}
    shop.add(row, row | {"what": "ping"}, row | {"cents": "many"})
    done = shop.drain()
    assert (done["rows"], done["dead_letters"], done["messages"]) == (1, {"mapping": 1}, 3)
    assert shop.ask("select event_type, user_id, anonymous_id, price, _time_zone from lake.raw.events") == [
        ("view_item", None, "c1", "1.5", "Europe/Berlin")
    ]
    assert shop.ask("select error from lake.raw.dead_letters") == [("the sql of price fails on this row",)]


def test_a_key_of_any_name_is_a_column(shop: Shop) -> None:
    """Whether the mapping reads it or not, also if it has the name of a column of ours."""
    odd = {name: f"{name}=1" for name in OURS}
    shop.add({**GOOD, **odd})
    assert shop.drain()["rows"] == 1
    read = [name for name in OURS if name]
    sql = f"to_json([{', '.join(identifier(name) for name in read)}])"
    fields = {name: name for name in ("event_type", "event_at", "user_id")}
    texts = {"query": "__n", "device": "__bad", "page": "__payload", "referrer": "__kept", "country": "line"}
    shop.map(fields={**fields, **texts, "properties": {"sql": sql}}, where="\"__row\" = '__row=1'")
    shop.add({**GOOD, **odd}, file="b.jsonl")
    assert shop.drain()["rows"] == 1
    [first, second] = shop.ask(
        f"select _position, _error, payload, properties, {', '.join(texts)} from lake.raw.events order by _ingested_at"
    )
    known = {*RAW_TABLES["events"]}
    assert (
        first[0].startswith(f"{shop.folder}/a.jsonl@")
        and first[0].endswith("/0")
        and first[1] is None
        and json.loads(first[2]) == {**GOOD, **odd}
    )
    assert json.loads(first[3]) == {name: value for name, value in odd.items() if name not in known}
    assert (
        second[0].startswith(f"{shop.folder}/b.jsonl@")
        and second[0].endswith("/0")
        and second[1] is None
        and json.loads(second[2]) == {**GOOD, **odd}
    )
    assert list(second[4:]) == [odd[name] for name in texts.values()]
    # Columns that no field of the mapping reads are kept, next to the result of its SQL.
    assert json.loads(json.loads(second[3])["properties"]) == [odd[name] for name in read]


def test_a_file_of_any_name_is_streamed(shop: Shop) -> None:
    names = (b"caf\xe9.jsonl", b"a\nb.jsonl", b"[x]\x1b[31m.jsonl", b"-%s'\\*.jsonl")
    for name in names:
        shop.add(GOOD, file=os.fsdecode(name))
    assert shop.drain()["rows"] == len(names)
    shop.add(GOOD, file=os.fsdecode(names[0]))
    done = shop.drain()
    assert done["rows"] == 1 and json.loads(json.dumps(done["lag"], ensure_ascii=False).encode()) == done["lag"]
    found = [str(row[0]).removeprefix(f"{shop.folder}/") for row in shop.ask("select _position from lake.raw.events")]
    assert sorted({name.partition("@")[0] for name in found}) == sorted(
        name.decode("utf-8", "backslashreplace") for name in names
    )


def test_times_of_a_stream_have_a_format(shop: Shop) -> None:
    at = {"column": "event_at", "format": "%d/%m/%Y %H:%M"}
    fields = {"event_type": "event_type", "event_at": at, "user_id": "user_id"}
    shop.map(fields=fields, available_at={"column": "sent", "format": "%Y%m%d"})
    shop.add(
        *(GOOD | {"event_at": text, "sent": "20250303"} for text in ("02/03/2025 10:15", "03/02/25", GOOD["event_at"]))
    )
    assert shop.drain()["dead_letters"] == {"wrong_type": 1}
    assert shop.ask("select event_at, available_at from lake.raw.events order by 1") == [
        ("2025-03-02T10:15:00.000000", datetime(2025, 3, 3)),
        (GOOD["event_at"], datetime(2025, 3, 3)),
    ]


def test_dead_letters_run_again_land_once(shop: Shop) -> None:
    shop.map(fields={"event_type": "event_type", "event_at": "event_at", "user_id": "user_id"})
    late = GOOD | {"event_type": "peek"}
    shop.add(late, GOOD, b"broken", late)
    assert shop.drain()["dead_letters"] == {"not_json": 1, "unknown_event": 2}
    assert replay(shop.mapping, where=shop.where).as_dict() == {
        "asked": 3,
        "rows": 0,
        "unchanged": 0,
        "still_dead": {"not_json": 1, "unknown_event": 2},
    }
    shop.map(
        fields={
            "event_type": {"column": "event_type", "map": {"peek": "view_item"}},
            "event_at": "event_at",
            "user_id": "user_id",
        }
    )
    [(first,)] = shop.ask("select min(_position) from lake.raw.dead_letters where rule_id = 'unknown_event'")
    assert replay(shop.mapping, where=shop.where, position=first).rows == 1
    assert replay(shop.mapping, where=shop.where, until=datetime(2020, 1, 1)).asked == 0
    assert replay(shop.mapping, where=shop.where, rule="unknown_event").rows == 1
    again = replay(shop.mapping, where=shop.where, since=datetime(2020, 1, 1))
    assert (again.asked, again.rows) == (1, 0)
    assert shop.ask("select count(*), count(distinct _position) from lake.raw.events") == [(3, 3)]
    assert shop.ask("select count(*) from lake.raw.dead_letters") == [(3,)]
    with pytest.raises(FinegrainError, match=r"--rule no_json: no dead letter .* not_json"):
        replay(shop.mapping, where=shop.where, rule="no_json")


def test_a_batch_is_closed_by_rows_by_bytes_and_by_age(shop: Shop) -> None:
    shop.add(*[GOOD] * 100)
    assert shop.drain(limits=Limits(rows=30, age=60))["batches"] == 4
    shop.add(*[GOOD] * 100, file="b.jsonl")
    assert shop.drain(limits=Limits(rows=30, bytes=1, age=60))["batches"] >= 4
    assert shop.ask("select count(*), count(distinct _position) from lake.raw.events") == [(200, 200)]


def test_the_rest_of_a_line_waits_for_its_end(shop: Shop) -> None:
    shop.add(GOOD)
    shop.add(json.dumps(GOOD).encode()[:20], end=b"")
    assert shop.drain()["rows"] == 1
    shop.add(json.dumps(GOOD).encode()[20:])
    assert shop.drain()["rows"] == 1
    assert shop.ask("select count(*) from lake.raw.dead_letters") == [(0,)]


def events(first: int, count: int) -> list[dict[str, Any]]:
    """Numbered events."""
    return [GOOD | {"event_id": str(number)} for number in range(first, first + count)]


def landed(shop: Shop) -> list[int]:
    """The numbers of the events in the lake."""
    return sorted(int(number) for (number,) in shop.ask("select event_id from lake.raw.events"))


def rotate(old: Path, how: str) -> None:
    """What a log rotation does with a file; afterwards its name is free, or the file is empty."""
    new = old.with_name(f"{old.name}.1")
    match how:
        case "rename":
            old.rename(new)
        case "rename and recreate":
            old.rename(new)
            old.touch()
        case "copy and truncate":
            shutil.copyfile(old, new)
            old.write_bytes(b"")
        case "move to another disk and back":
            shutil.copyfile(old, new)
            old.unlink()


@pytest.mark.parametrize("how", ["rename", "rename and recreate", "copy and truncate", "move to another disk and back"])
def test_a_file_is_rotated_and_each_line_lands_once(shop: Shop, how: str) -> None:
    shop.add(*events(0, 20))
    assert shop.drain()["rows"] == 20
    shop.add(*events(20, 10))  # not read yet when it is rotated
    rotate(shop.folder / "a.jsonl", how)
    shop.add(*events(30, 50))  # longer than the part of the first that was read
    assert shop.drain()["rows"] == 60
    shop.add(*events(80, 5), file="a.jsonl.1")  # a writer that still has it open
    assert shop.drain()["rows"] == 5
    assert landed(shop) == list(range(85))
    assert shop.ask("select count(distinct _position) from lake.raw.events") == [(85,)]


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_that_is_replaced_by_a_longer_one_is_read_from_its_beginning(shop: Shop, in_place: bool) -> None:
    shop.add(*events(0, 20))
    shop.drain()
    lines = "".join(json.dumps(event) + "\n" for event in events(20, 40))
    if in_place:
        (shop.folder / "a.jsonl").write_text(lines)
    else:
        (shop.folder / "new").write_text(lines)
        (shop.folder / "new").replace(shop.folder / "a.jsonl")
    assert shop.drain()["rows"] == 40
    assert landed(shop) == list(range(60))
    assert shop.ask("select count(distinct _position) from lake.raw.events") == [(60,)]


def test_a_file_that_was_written_whole_again_with_more_goes_on(shop: Shop) -> None:
    shop.add(*events(0, 20))
    shop.drain()
    (shop.folder / "new").write_text("".join(json.dumps(event) + "\n" for event in events(0, 30)))
    (shop.folder / "new").replace(shop.folder / "a.jsonl")
    assert shop.drain()["rows"] == 10
    assert landed(shop) == list(range(30))


def test_rotation_beside_a_running_loader(shop: Shop) -> None:
    """A writer adds lines and rotates by renaming, as fast as it can; every line lands once."""
    lake.connect(shop.where).close()
    loader = shop.run("--age", "0.05")
    try:
        for turn in range(30):
            for number in range(10):
                shop.add(*events(turn * 100 + number * 10, 10))
                time.sleep(0.003)
            (shop.folder / "a.jsonl").rename(shop.folder / f"a.jsonl.{turn}")
        wait(lambda: shop.ask("select count(*) from lake.raw.events") >= [(3_000,)])
    finally:
        loader.send_signal(signal.SIGTERM)
        _, err = loader.communicate(timeout=60)
    assert loader.returncode == 0 and "was deleted" not in err
    assert shop.drain()["rows"] == 0
    assert landed(shop) == list(range(3_000))


def test_data_deleted_before_it_was_read_is_reported(shop: Shop) -> None:
    source = Folder(shop.folder, f"folder:{shop.folder}", "shop.yml")
    shop.add(*events(0, 30))
    source.open(PreviewOwner())
    [file] = shop.folder.iterdir()
    assert len(source.poll(10, 0)) == 10
    rest = file.stat().st_size - sum(len(json.dumps(event)) + 1 for event in events(0, 10))
    file.unlink()
    assert source.poll(10, 0).notes == [f"{file}: it was deleted or replaced before its last {rest:,} bytes were read"]
    assert source.poll(10, 0).notes == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lands_the_open_batch(shop: Shop, number: signal.Signals) -> None:
    shop.add(*[GOOD] * 50)
    lake.connect(shop.where).close()
    [port] = free_ports(1)
    loader = shop.run("--json", "--age", "600", "--metrics-port", str(port))
    metrics = f"http://127.0.0.1:{port}/metrics"

    def is_up() -> bool:
        try:
            return "finegrain_stream_up 1.0" in urllib.request.urlopen(metrics).read().decode()
        except OSError:
            return False

    wait(is_up)
    time.sleep(0.3)
    assert shop.ask("select count(*) from lake.raw.events") == [(0,)]
    loader.send_signal(number)
    out, err = loader.communicate(timeout=60)
    assert (loader.returncode, err) == (0, "")
    assert shop.ask("select count(*) from lake.raw.events") == [(50,)]
    last = json.loads(out.splitlines()[-1])
    assert (last["rows"], last["messages"], last["dead_letters"]) == (50, 50, {})


def test_prometheus_gets_the_numbers(shop: Shop) -> None:
    shop.add(*[GOOD] * 5, b"broken", GOOD | {"coupon": 1})
    [port] = free_ports(1)
    loader = shop.run("--json", "--age", "0.05", "--metrics-port", str(port))

    def metrics() -> str:
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        except OSError:
            return ""
        return str(text) if "finegrain_stream_rows_total 6.0" in text else ""

    text = wait(metrics)
    loader.terminate()
    loader.communicate(timeout=60)
    assert 'finegrain_stream_dead_letters_total{rule="not_json"} 1.0' in text
    assert "finegrain_stream_unknown_fields_total 1.0" in text
    assert 'finegrain_stream_rows_by_type_total{event_type="view_item"} 6.0' in text
    assert (
        'finegrain_stream_nulls_total{field="user_id"} 0.0' in text
        and 'finegrain_stream_nulls_total{field="country"} 6.0' in text
    )
    assert "finegrain_stream_commit_seconds_count" in text
    assert "finegrain_stream_event_delay_seconds" in text


def test_event_types_have_a_bounded_number_of_counters() -> None:
    registry = CollectorRegistry()
    watch = Watch("kafka:shop.events", registry=registry)
    for number in range(60):
        watch.landed(
            2, 100, BatchResult(rows=2, types={"page_view": 1, f"type{number}": 1}, nulls={"price": 1}), 0.1, 0.1
        )

    def count(kind: str) -> float | None:
        return registry.get_sample_value("finegrain_stream_rows_by_type_total", {"event_type": kind})

    assert (count("page_view"), count("type48"), count("type49"), count("(other)")) == (60, 1, None, 11)
    assert registry.get_sample_value("finegrain_stream_nulls_total", {"field": "price"}) == 60


def test_errors_that_a_user_can_fix_are_one_sentence(shop: Shop, tmp_path: Path) -> None:
    shop.map(stream={"folder": str(tmp_path / "nowhere")})
    with pytest.raises(FinegrainError, match=r"nowhere is not a folder"):
        shop.drain()
    shop.map(stream={})
    with pytest.raises(FinegrainError, match=r"shop.yml: tables.events.stream: name one of"):
        shop.drain()
    shop.map(stream=None, files="x.csv", fields={"event_type": "a", "event_at": "b", "user_id": "c"})
    with pytest.raises(FinegrainError, match=r"shop.yml: no entry has a stream"):
        shop.drain()
    shop.map(stream={"kafka": "t", "settings": {"sasl.password": "${NO_SUCH_VARIABLE}"}})
    with pytest.raises(FinegrainError, match=r"stream.settings.sasl.password: the environment has no NO_SUCH_VARIABLE"):
        shop.drain()
    shop.map(stream={"kafka": "t", "settings": {"enable.auto.commit": True}})
    with pytest.raises(FinegrainError, match=r"enable.auto.commit: finegrain sets this itself"):
        shop.drain()
    shop.map(stream={"kafka": "t", "settings": {"no.such.setting": True}})
    with pytest.raises(FinegrainError, match=r"stream.settings: .*no.such.setting"):
        shop.drain()
    shop.map(fields={"event_type": "a", "event_at": "b"})
    with pytest.raises(FinegrainError, match=r"user_id or anonymous_id is missing"):
        shop.drain()


def mutated(chance: random.Random, line: bytes) -> bytes:
    """A line with some of its bytes changed, moved, doubled or removed; never a line end, which would make two
    lines."""
    text = bytearray(line)
    for _ in range(chance.randint(0, 4)):
        at = chance.randrange(len(text) + 1)
        match chance.randrange(6):
            case 0:
                text[at:at] = bytes([chance.randrange(256)])
            case 1:
                del text[at : at + chance.randint(1, 8)]
            case 2:
                text[at : at + 1] = bytes([chance.randrange(256)])
            case 3:
                text[at:at] = text[at : at + chance.randint(1, 20)]
            case 4:
                text[at:at] = chance.choice(
                    [b'"', b"{", b"}", b"\\", b"\\u0000", b"\\ud800", b"null", b"1e999", b"\x00", b"[" * 200]
                )
            case 5:
                text[at:at] = chance.choice([b',"x":{"y":[]}', b',"":1', b',"event_at":7', b',"price":"NaN"'])
    return bytes(text).replace(b"\n", b" ")


def test_any_message_lands_or_is_a_dead_letter_with_the_same_bytes(shop: Shop) -> None:
    shop.map(personal={"ip": "keep"})  # a mutation of event_id
    chance = random.Random(11)
    seed = [
        json.dumps(GOOD | {"event_id": str(n), "properties": {"n": n}, "page": "/é?q='\"\\"}).encode() for n in range(7)
    ]
    lines = [mutated(chance, chance.choice(seed)) for _ in range(100_000)]
    lines = [line for line in lines if line.strip()]
    shop.add(*lines)
    done = shop.drain(limits=Limits(rows=20_000))
    assert done["rows"] > 10_000 and sum(done["dead_letters"].values()) > 10_000
    assert done["rows"] + sum(done["dead_letters"].values()) == len(lines)
    starts = {}
    at = 0
    for line in lines:
        starts[at] = line
        at += len(line) + 1
    kept = shop.ask(
        "select split_part(_position, '/', -1)::bigint, encode(payload) from lake.raw.events union all "
        "select position::bigint, payload from lake.raw.dead_letters"
    )
    assert len(kept) == len(lines)
    assert dict(kept) == starts


def test_a_moment_without_an_offset_is_utc() -> None:
    from orchestration.cli.commands import _moment

    assert _moment("--since", "2025-03-02T10:00:00+02:00") == datetime(2025, 3, 2, 8)
    assert _moment("--since", "2025-03-02T10:00:00") == datetime(2025, 3, 2, 10)
    with pytest.raises(FinegrainError, match=r"--since is 'noon'"):
        _moment("--since", "noon")


def test_unloaded_rows_come_again_when_the_stream_is_read_from_its_beginning(shop: Shop) -> None:
    alive = (
        "select user_id from lake.raw.events as t where not exists (select 1 from lake.raw.deletions as d "
        "where d._position = t._position and t._ingested_at < d._ingested_at) order by 1"
    )
    shop.add(GOOD, GOOD | {"user_id": "bob"})
    shop.drain()
    report = unload("shop.events", where=shop.where)
    assert [(part.came_by, part.rows) for part in report.parts] == [
        ("stream", 2)
    ] and "--from-beginning" in report.notes[0]
    shop.add(GOOD | {"user_id": "cat"})
    assert shop.drain()["rows"] == 1 and shop.ask(alive) == [("cat",)]
    unload("shop", where=shop.where)
    assert shop.drain(from_beginning=True)["rows"] == 3
    assert shop.ask(alive) == [("ann",), ("bob",), ("cat",)]
    # Before the clock was put back.
    unload("shop", where=shop.where, now=datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1))
    assert shop.drain(from_beginning=True)["rows"] == 3
    assert shop.ask(alive) == [("ann",), ("bob",), ("cat",)]
