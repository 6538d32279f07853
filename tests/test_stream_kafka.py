"""Streams from a real broker: what goes wrong, and that nothing is lost or doubled by it (tests/test_stream_kills.py
kills loaders)."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
import streams
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from servers import HOST, Kafka
from services import bootstrap, new_topic

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.stream.loader import Limits, Loader
from orchestration.ingest.stream.messages import Messages
from orchestration.ingest.stream.replay import replay
from orchestration.ingest.stream.run import PreviewOwner, source_of
from orchestration.ingest.stream.watch import Form, Watch
from orchestration.lake import lake
from orchestration.lake.positions import Position, Stream, move, positions
from orchestration.mapping.mapping import Table
from orchestration.quality.doctor import examine
from orchestration.sources.streams import Chunk, Unreachable

PARTITIONS = 3
wait = partial(streams.wait, seconds=90)


class Shop(streams.Streamed):
    """A topic, a mapping that streams it and a home."""

    def __init__(self, kafka: Kafka, folder: Path, extensions: Path) -> None:
        self.kafka, self.where = kafka, Settings.below(folder / "home", extensions)
        self.mapping, self.topic = folder / "shop.yml", new_topic(kafka, PARTITIONS)
        self.sent = 0
        self.map()

    def map(self, topic: str | None = None, **more: Any) -> None:
        """Write the mapping, with more settings of the client."""
        settings = {
            "bootstrap.servers": bootstrap(self.kafka),
            "session.timeout.ms": 1500,
            "heartbeat.interval.ms": 300,
            "topic.metadata.refresh.interval.ms": 1000,
            "reconnect.backoff.max.ms": 500,
            **more,
        }
        entry = {"stream": {"kafka": topic or self.topic, "settings": settings}, "available_at": "now"}
        self.mapping.write_text(json.dumps({"source": "shop", "tables": {"events": entry}}))

    def send(self, count: int, producer: Producer | None = None, **more: Any) -> None:
        """Numbered events, over all partitions."""
        used = producer or Producer({"bootstrap.servers": bootstrap(self.kafka), "log_level": 0})
        for number in range(self.sent, self.sent + count):
            event = {
                "event_id": str(number),
                "event_type": "view_item",
                "event_at": "2025-03-02T10:15:30Z",
                "user_id": "ann",
                **more,
            }
            used.produce(
                self.topic, json.dumps(event).encode(), partition=number % PARTITIONS, key=b"k", headers={"h": b"\xff"}
            )
        self.sent += count
        assert used.flush(60) == 0

    def is_whole(self) -> bool:
        """Whether every event that was sent is once in the lake, and the positions are the ends of the topic."""
        con = lake.connect(self.where, read_only=True)
        at = {
            part: int(each.position)
            for part, each in positions(con, Stream("shop", "events", f"kafka:{self.topic}")).items()
        }
        con.close()
        ends = Consumer({"bootstrap.servers": bootstrap(self.kafka), "group.id": "ends"})
        try:
            high = {
                str(part): ends.get_watermark_offsets(TopicPartition(self.topic, part), 10)[1]
                for part in range(PARTITIONS)
            }
        except KafkaException as error:  # a broker that has just come back elects its leaders
            assert error.args[0].code() == KafkaError.NOT_LEADER_FOR_PARTITION, error
            return False
        finally:
            ends.close()
        counted = self.ask("select count(*), count(distinct event_id) from lake.raw.events")
        return at == high and counted == [(self.sent, self.sent)]


@pytest.fixture
def shop(kafka: Kafka, tmp_path: Path, extensions: Path) -> Shop:
    return Shop(kafka, tmp_path, extensions)


def test_a_topic_lands_once_with_its_positions(shop: Shop) -> None:
    shop.send(1_000)
    shop.send(10, quantity="none")
    done = shop.drain()
    assert (done["rows"], done["dead_letters"]) == (1_000, {"wrong_type": 10})
    assert shop.drain()["rows"] == 0
    [(first,)] = shop.ask("select min(_position) from lake.raw.events")
    assert re.fullmatch(f"{shop.topic}/0@[0-9a-f]{{8}}/0", first)
    # A letter keeps the key and the headers of the message.
    assert shop.ask(
        "select distinct key, headers, place, sent_at > timestamp '2025-01-01' from lake.raw.dead_letters"
    ) == [(b"k", '[["h", "\\\\xff"]]', f"kafka:{shop.topic}", True)]


def test_large_messages_do_not_run_out_of_memory(shop: Shop) -> None:
    """A batch is closed by its bytes, and no more messages are fetched for it, though a poll could return ten
    thousand."""
    shop.send(2_000, properties={"text": "x" * 50_000})
    done = shop.drain()
    assert (done["rows"], done["dead_letters"]) == (2_000, {})
    assert done["batches"] >= 2_000 * 50_000 / Limits.bytes / 2
    assert shop.is_whole()


def test_the_doctor_reads_without_leaving_a_trace(shop: Shop) -> None:
    shop.send(100)
    loader = shop.run("--age", "0.1")
    try:
        wait(shop.is_whole)
        [seen] = examine(shop.mapping, where=shop.where).entries
        assert (seen.rows, seen.files) == (100, [f"kafka:{shop.topic}"])
        assert {each.name for each in seen.fields} == {"event_id", "event_type", "event_at", "user_id"}
        shop.send(100)
        wait(shop.is_whole)
    finally:
        loader.terminate()
        _, err = loader.communicate()
    assert "another loader" not in err
    shop.mapping.write_text(shop.mapping.read_text().replace(shop.topic, "no-such-topic"))
    with pytest.raises(FinegrainError, match=r"has no topic 'no-such-topic'"):
        examine(shop.mapping, where=shop.where)


def test_messages_of_an_aborted_transaction_do_not_land(shop: Shop) -> None:
    producer = Producer({"bootstrap.servers": bootstrap(shop.kafka), "transactional.id": shop.topic, "log_level": 0})
    producer.init_transactions()
    for keep in (True, False, True, False):
        producer.begin_transaction()
        shop.send(30, producer)
        if keep:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
            shop.sent -= 30
    shop.drain()
    assert shop.is_whole()


def test_a_paused_loader_whose_partitions_were_reassigned_lands_nothing(shop: Shop) -> None:
    lake.connect(shop.where).close()
    sleeper = shop.run("--age", "600", "--json")
    shop.send(300)
    wait(lambda: shop.ask("select count(*) from lake.raw.positions where owner is not null") == [(PARTITIONS,)])
    time.sleep(2)  # it has read them, and keeps its batch open
    assert shop.ask("select count(*) from lake.raw.events") == [(0,)]
    sleeper.send_signal(signal.SIGSTOP)
    other = shop.run("--age", "0.1", "--json")
    wait(shop.is_whole)
    sleeper.send_signal(signal.SIGCONT)
    time.sleep(2)
    shop.send(300)
    sleeper.send_signal(signal.SIGTERM)
    said = sleeper.communicate(timeout=60)[1]
    assert sleeper.returncode == 0
    wait(shop.is_whole)
    other.send_signal(signal.SIGTERM)
    said += other.communicate(timeout=60)[1]
    # Both may claim at once what is assigned again; one then waits for the other.
    wait_for_claim = "waiting for another finegrain process that holds the lock on this lake: claim shop events kafka:"
    assert all(line.startswith(wait_for_claim) for line in said.splitlines())
    assert shop.is_whole()


def test_a_broker_that_is_not_there_is_waited_for(shop: Shop) -> None:
    shop.send(100)
    shop.kafka.kill()
    try:
        loader = shop.run("--age", "0.1")
        assert loader.stderr is not None
        said = loader.stderr.readline()
        assert f"kafka at {bootstrap(shop.kafka)} does not answer" in said and "trying again in" in said
    finally:
        shop.kafka.start()
    wait(shop.is_whole)
    shop.kafka.kill()
    time.sleep(2)
    shop.kafka.start()
    shop.send(100)
    wait(shop.is_whole)
    loader.send_signal(signal.SIGTERM)
    assert loader.wait(60) == 0
    loader.stderr.close()


def test_wrong_credentials_and_names_are_one_sentence(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.map(topic="no-such-topic")
    with pytest.raises(
        FinegrainError, match=r"stream.kafka: .* has no topic 'no-such-topic'; create it, or correct the name"
    ):
        shop.drain()
    secured = {
        "bootstrap.servers": f"{HOST}:{shop.kafka.ports[1]}",
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": "${SHOP_CERTIFICATE}",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "${SHOP_USER}",
        "sasl.password": "${SHOP_PASSWORD}",
    }
    monkeypatch.setenv("SHOP_USER", shop.kafka.environment()["KAFKA_SASL_USERNAME"])
    monkeypatch.setenv("SHOP_CERTIFICATE", shop.kafka.environment()["KAFKA_CERTIFICATE"])
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2")
    shop.map(**secured)
    with pytest.raises(FinegrainError, match=r"does not accept these credentials") as raised:
        shop.drain()
    assert "hunter2" not in str(raised.value)
    monkeypatch.setenv("SHOP_PASSWORD", shop.kafka.environment()["KAFKA_SASL_PASSWORD"])
    shop.send(9)
    assert shop.drain()["rows"] == 9
    shop.map(**{name: value for name, value in secured.items() if name != "ssl.ca.location"})
    with pytest.raises(FinegrainError, match=r"the TLS certificate of .* is not trusted .*ssl.ca.location"):
        shop.drain()


def test_a_recreated_topic_is_refused_until_confirmed(shop: Shop) -> None:
    shop.send(30)
    shop.drain()
    admin = AdminClient({"bootstrap.servers": bootstrap(shop.kafka)})
    admin.delete_topics([shop.topic])[shop.topic].result()
    time.sleep(1)
    new_topic(shop.kafka, PARTITIONS, shop.topic)
    shop.send(30)
    with pytest.raises(FinegrainError, match=r"was deleted and recreated .* run this once with --from-beginning"):
        shop.drain()
    assert shop.ask("select count(*) from lake.raw.events") == [(30,)]
    assert shop.drain(from_beginning=True)["rows"] == 30
    assert shop.is_whole()


def recreate(shop: Shop) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap(shop.kafka)})
    admin.delete_topics([shop.topic])[shop.topic].result()
    time.sleep(1)
    new_topic(shop.kafka, PARTITIONS, shop.topic)


def test_letters_and_rows_of_a_recreated_topic_are_new_ones(shop: Shop) -> None:
    """At the positions of replayed letters there are new letters, and at those of quarantined rows good events."""
    shop.send(10, event_type="peek")
    assert shop.drain()["dead_letters"] == {"unknown_event": 10}
    fields = dict.fromkeys(("event_id", "event_type", "event_at", "user_id"))
    entry = json.loads(shop.mapping.read_text())
    events = entry["tables"]["events"]
    events["fields"] = {name: name for name in fields} | {
        "event_type": {"column": "event_type", "map": {"peek": "view_item"}}
    }
    plain = shop.mapping.read_text()
    shop.mapping.write_text(json.dumps(entry))
    assert replay(shop.mapping, where=shop.where).rows == 10
    recreate(shop)
    shop.mapping.write_text(plain)
    shop.send(10, event_type="peek")
    shop.send(10)
    assert shop.drain(from_beginning=True)["dead_letters"] == {"unknown_event": 10}
    assert shop.ask(f"select count(*) from lake.raw.dead_letters as d where {lake.IS_WAITING}") == [(10,)]
    shop.mapping.write_text(json.dumps(entry))
    assert replay(shop.mapping, where=shop.where).rows == 10
    assert shop.ask("select count(*), count(distinct event_id), count(distinct _position) from lake.raw.events") == [
        (30, 30, 30)
    ]


def test_letters_that_are_read_again_wait_again(shop: Shop) -> None:
    """After --from-beginning, each message lands once, and a dead letter that was replayed before is a new one."""
    shop.send(6, event_type="peek")
    shop.drain()
    entry = json.loads(shop.mapping.read_text())
    kind = {"column": "event_type", "map": {"peek": "view_item"}}
    entry["tables"]["events"]["fields"] = {name: name for name in ("event_id", "event_at", "user_id")} | {
        "event_type": kind
    }
    plain = shop.mapping.read_text()
    shop.mapping.write_text(json.dumps(entry))
    assert replay(shop.mapping, where=shop.where).rows == 6
    shop.mapping.write_text(plain)
    for _ in range(2):
        assert shop.drain(from_beginning=True)["dead_letters"] == {"unknown_event": 6}
    shop.mapping.write_text(json.dumps(entry))
    assert replay(shop.mapping, where=shop.where).rows == 6
    assert replay(shop.mapping, where=shop.where).asked == 0


def test_one_topic_feeds_two_tables(shop: Shop) -> None:
    """Each is read whole, one after the other and side by side."""
    shop.where.home.mkdir(parents=True)
    entry = json.loads(shop.mapping.read_text())["tables"]["events"]
    customers = {"fields": {"customer_id": "user_id", "updated_at": "event_at"}, "where": "kind = 'c'"}
    events = {
        "fields": {name: name for name in ("event_id", "event_type", "event_at", "user_id")},
        "where": "kind = 'e'",
    }
    tables = {"events": {**entry, **events}, "customers": {**entry, **customers}}
    shop.mapping.write_text(json.dumps({"source": "shop", "tables": tables}))

    def counted() -> list[tuple[int, int]]:
        return shop.ask("select (select count(*) from lake.raw.events), (select count(*) from lake.raw.customers)")

    shop.send(500, kind="e")
    shop.send(500, kind="c")
    assert shop.drain(table="events")["rows"] == 500
    assert shop.drain(table="customers")["rows"] == 500
    shop.send(300, kind="c")
    shop.send(300, kind="e")
    loaders = [shop.run(table, "--age", "0.1") for table in tables]
    try:
        wait(lambda: counted() == [(800, 800)])
    finally:
        for loader in loaders:
            loader.send_signal(signal.SIGTERM)
        for loader in loaders:
            _, err = loader.communicate(timeout=60)
            assert loader.returncode == 0 and "another loader" not in err
    assert shop.ask("select count(distinct event_id) from lake.raw.events") == [(800,)]
    # Bytes that neither can read are a letter of each.
    producer = Producer({"bootstrap.servers": bootstrap(shop.kafka), "log_level": 0})
    producer.produce(shop.topic, b"broken", partition=0)
    assert producer.flush(60) == 0
    for table in tables:
        assert shop.drain(table=table)["dead_letters"] == {"not_json": 1}
    for table in tables:
        assert replay(shop.mapping, table, where=shop.where).asked == 1
    for each in tables.values():
        each["stream"]["settings"]["group.id"] = "shop"
    shop.mapping.write_text(json.dumps({"source": "shop", "tables": tables}))
    with pytest.raises(
        FinegrainError, match=r"customers.stream.settings.group.id: .*events.* in the same group 'shop'"
    ):
        shop.drain(table="customers")


def test_one_more_loader_than_partitions_drains_too(shop: Shop) -> None:
    """The additional one does not wait for anything."""
    shop.send(300)
    company = [shop.run("--age", "0.1") for _ in range(PARTITIONS)]
    try:
        wait(shop.is_whole)
        spare = shop.run("--drain", "--json")
        _, err = spare.communicate(timeout=60)
        assert (spare.returncode, err) == (0, "")
    finally:
        for loader in company:
            loader.send_signal(signal.SIGTERM)
        for loader in company:
            loader.communicate(timeout=60)
    assert shop.is_whole()


class Given:
    """A source that gets partitions from the test, as a broker would assign them."""

    stream_id = "kafka:shop"

    def __init__(self) -> None:
        self.owner: Any = None

    def open(self, owner: Any) -> None:
        self.owner = owner


@pytest.fixture
def loader(shop: Shop) -> Iterator[Loader]:
    """A loader that starts from the beginning of a topic whose first two partitions were read up to 7 before it was recreated."""
    entry = json.loads(shop.mapping.read_text())["tables"]["events"]
    con = lake.connect(shop.where)
    with lake.writing(con, shop.where):
        old = {part: (None, Position(part, "7", "old")) for part in "01"}
        move(con, Stream("shop", "events", f"kafka:{shop.topic}"), old, datetime(2025, 3, 2))
    messages = Messages(con, "shop", "events", Table.model_validate(entry), "UTC", "shop.yml")
    connect, watch = partial(lake.connect, shop.where), Watch("kafka:shop", Form.none, None)
    made = Loader(Given(), [messages], connect, shop.where, watch, from_beginning=True)  # type: ignore[arg-type]
    yield made
    watch.close()
    made.con.close()
    con.close()


def test_from_beginning_restarts_each_partition_once(loader: Loader) -> None:
    """The first assignment may be empty, partitions come and go, and one that was restarted resumes when it is assigned again."""
    start = {part: partial(str, 0) for part in "01"}
    assert loader.claim({}, "new") == {}
    assert loader.claim({"0": start["0"]}, "new")["0"].position == "0"
    loader.settle()
    at = loader.known()["0"]
    with lake.writing(loader.con, loader.where):
        move(loader.con, loader.stream, {"0": (at, replace(at, position="3"))}, datetime(2025, 3, 2))
    assert {part: at.position for part, at in loader.claim(start, "new").items()} == {"0": "3", "1": "0"}


def test_nothing_is_asked_of_the_broker_while_the_lake_is_locked(loader: Loader) -> None:
    """Its answer may take seconds, in which no other process could write."""
    asked = []

    def beginning() -> str:
        with (loader.where.lake_data.parent / "write.lock").open("w") as lock:  # type: ignore[union-attr]
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        asked.append(True)
        return "5"

    assert loader.claim({"0": beginning}, "new")["0"].position == "5"
    assert asked == [True]


@pytest.mark.parametrize("start", ["2", "4"])
def test_a_chunk_begins_where_the_last_one_ended(loader: Loader, start: str) -> None:
    """An earlier begin would land rows twice, a later one would skip some."""
    loader.claim({"0": partial(str, 0)}, "new")
    loader._take(Chunk(starts={"0": "0"}, ends={"0": "3"}))
    with pytest.raises(
        Unreachable, match=f"partition 0 was read from {start}, and not from 3, where the last read ended"
    ):
        loader._take(Chunk(starts={"0": start}, ends={"0": "9"}))
    loader._take(Chunk(starts={"0": "3"}, ends={"0": "9"}))


def test_messages_that_come_again_are_refused(shop: Shop) -> None:
    """If a consumer is set back behind its position, a chunk of its messages starts there."""
    shop.send(PARTITIONS * 10)
    entry = Table.model_validate(json.loads(shop.mapping.read_text())["tables"]["events"])
    source = source_of(entry, "shop.yml", group="again")
    source.open(PreviewOwner())
    try:
        taken = wait(lambda: source.poll(1_000, 0.1).ends)
        while not source.is_drained():
            taken |= source.poll(1_000, 0.1).ends
        assert set(taken.values()) == {"10"}
        source.consumer.seek(TopicPartition(shop.topic, 0, 4))  # type: ignore[attr-defined]
        chunk = wait(lambda: (found := source.poll(1_000, 0.1)).rows and found)
        assert chunk.starts["0"] == "4"
    finally:
        source.close()


def test_messages_removed_before_they_were_read_are_reported(shop: Shop) -> None:
    shop.send(30)
    shop.drain()
    shop.send(60)
    admin = AdminClient({"bootstrap.servers": bootstrap(shop.kafka)})
    for removed in admin.delete_records([TopicPartition(shop.topic, 1, 20)]).values():
        removed.result()
    with pytest.raises(FinegrainError, match=r"the position in the lake is no longer in the topic .* --from-beginning"):
        shop.drain()
    assert shop.drain(from_beginning=True)["rows"] > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_and_one_that_cannot_be_written_lose_nothing(
    kafka: Kafka, tmp_path: Path, small_disk: Path, extensions: Path
) -> None:
    shop = Shop(kafka, tmp_path, extensions)
    shop.where = Settings.below(small_disk / "home", extensions)
    shop.send(1_500, page="".join(f"{n:x}" for n in range(2_000)), query=os.urandom(3_000).hex())
    blob = small_disk / "blob"
    lake.connect(shop.where).close()
    blob.write_bytes(b"x" * 7_000_000)
    assert re.search(
        r"the lake cannot be written: .*; messages that have not landed are still in the stream",
        refused(shop),
        re.DOTALL,
    )
    blob.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert re.search(
        r"cannot be written|cannot write|cannot open the lake|cannot be stored|cannot spill to disk here", refused(shop)
    )
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    shop.drain()
    assert shop.is_whole()


def refused(shop: Shop) -> str:
    """The one sentence of a loader that cannot go on."""
    loader = shop.run("--drain")
    _, said = loader.communicate(timeout=300)
    assert loader.returncode == 2
    assert "Traceback" not in said
    return said


def test_a_loader_that_fails_leaves_nothing_running(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **more: object) -> None:
        raise duckdb.IOException("no room")

    shop.send(30)
    with monkeypatch.context() as broken:
        broken.setattr(Messages, "land", fail)
        with pytest.raises(
            FinegrainError, match="the lake cannot be written: no room; messages that have not landed are still in"
        ):
            shop.drain()
    # Threads that land batches; a group that a loader left rebalances first, which must not cause errors.
    assert [each for each in threading.enumerate() if "_write" in each.name] == []
    shop.drain()
    assert shop.is_whole()
