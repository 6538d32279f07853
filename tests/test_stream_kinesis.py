"""Streams from Kinesis, on moto as its replacement: every record of every shard once, whatever happens to shards and
loaders.

moto never throttles and its iterators never expire, so these cases are not tested here."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from servers import HOST, Moto, free_ports
from streams import Streamed, wait
from test_stream_kills import Life

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.stream.loader import Limits
from orchestration.ingest.stream.run import PreviewOwner, entry_of
from orchestration.lake import lake
from orchestration.lake.positions import Stream, positions
from orchestration.sources.kinesis import BEGINNING, END, MOST, Kinesis

REGION = "eu-north-1"
#: The maximum of Kinesis for one call.
AT_ONCE = 500

#: SQL: a position without the tag of the stream's topic_id.
POSITION = "regexp_replace(_position, '@[0-9a-f]{8}/', '/')"


class Shop(Streamed):
    """A stream, a mapping that streams it and a home. `put` are the sent records: (shard, sequence number) and id."""

    def __init__(self, server: Moto, folder: Path, extensions: Path, shards: int = 3) -> None:
        self.where = Settings.below(folder / "home", extensions)
        self.mapping, self.stream = folder / "shop.yml", f"test-{uuid.uuid4().hex}"
        self.address = f"http://{HOST}:{server.port}"
        self.put: dict[tuple[str, str], str] = {}
        self.client = boto3.client(
            "kinesis",
            endpoint_url=self.address,
            region_name=REGION,
            aws_access_key_id="any",
            aws_secret_access_key="any",
            config=Config(max_pool_connections=20),
        )
        self.client.create_stream(StreamName=self.stream, ShardCount=shards)
        lake.connect(self.where).close()
        self.map()

    def map(self, stream: str | None = None, **more: Any) -> None:
        """Write the mapping, with more settings of the client; those that are None are left out."""
        settings = {
            "endpoint_url": "${KINESIS_URL}",
            "region_name": REGION,
            "aws_access_key_id": "${KINESIS_KEY}",
            "aws_secret_access_key": "${KINESIS_SECRET}",
            **more,
        }
        entry = {
            "stream": {
                "kinesis": stream or self.stream,
                "settings": {name: value for name, value in settings.items() if value is not None},
            },
            "available_at": "now",
        }
        self.mapping.write_text(json.dumps({"source": "shop", "tables": {"events": entry}}))

    def send(self, count: int, hash_key: int | None = None, **more: Any) -> None:
        """Numbered events, over all shards or to the one of a hash key."""
        self.send_bytes(
            [
                json.dumps(
                    {"event_id": str(number), "event_type": "view_item", "event_at": "2025-03-02T10:15:30Z"}
                    | {"user_id": "ann", **more}
                ).encode()
                for number in range(len(self.put), len(self.put) + count)
            ],
            hash_key,
        )

    def send_bytes(self, payloads: list[bytes], hash_key: int | None = None) -> None:
        where = {} if hash_key is None else {"ExplicitHashKey": str(hash_key)}
        for start in range(0, len(payloads), AT_ONCE):
            records = [
                {"Data": payload, "PartitionKey": str(number), **where}
                for number, payload in enumerate(payloads[start : start + AT_ONCE], start)
            ]
            answer = self.client.put_records(StreamName=self.stream, Records=records)
            assert answer["FailedRecordCount"] == 0
            for put in answer["Records"]:
                self.put[put["ShardId"], put["SequenceNumber"]] = str(len(self.put))

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        return super().run("--age", "0.1", *arguments)

    def positions(self) -> dict[str, str]:
        """The position of each shard, according to the lake."""
        con = lake.connect(self.where, read_only=True)
        try:
            return {
                part: at.position
                for part, at in positions(con, Stream("shop", "events", f"kinesis:{self.stream}")).items()
            }
        finally:
            con.close()

    def owners(self) -> set[str]:
        """The loaders that may land records of the stream."""
        return {owner for (owner,) in self.ask("select owner from lake.raw.positions")}

    def shards(self) -> dict[str, dict[str, Any]]:
        return {each["ShardId"]: each for each in self.client.list_shards(StreamName=self.stream)["Shards"]}

    def ends(self) -> dict[str, str]:
        """The position of each shard once everything is read, computed from the sent records and the closed shards."""
        last: dict[str, str] = dict.fromkeys(self.shards(), BEGINNING)
        for shard, number in self.put:
            last[shard] = str(max(int(number), 0 if last[shard] == BEGINNING else int(last[shard])))
        closed = {
            name for name, shard in self.shards().items() if "EndingSequenceNumber" in shard["SequenceNumberRange"]
        }
        return last | dict.fromkeys(closed, END)

    def is_whole(self) -> bool:
        """Whether every sent record is once in the lake, by its position, and every shard is read to its end."""
        sent = sorted((f"{self.stream}/{shard}/{number}", event) for (shard, number), event in self.put.items())
        landed = self.ask(f"select {POSITION}, event_id from lake.raw.events order by all")
        return landed == sent and self.positions() == self.ends()


@pytest.fixture
def access(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The credentials that a mapping names, and none of AWS's own variables."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("KINESIS_KEY", "any")
    monkeypatch.setenv("KINESIS_SECRET", "any")
    return monkeypatch


@pytest.fixture
def shop(kinesis: Moto, tmp_path: Path, extensions: Path, access: pytest.MonkeyPatch) -> Shop:
    access.setenv("KINESIS_URL", f"http://{HOST}:{kinesis.port}")
    return Shop(kinesis, tmp_path, extensions)


@pytest.fixture
def elastic(resharding: Moto, tmp_path: Path, extensions: Path, access: pytest.MonkeyPatch) -> Shop:
    """A shop whose shards may be split and merged."""
    access.setenv("KINESIS_URL", f"http://{HOST}:{resharding.port}")
    return Shop(resharding, tmp_path, extensions, shards=2)


def end(loader: subprocess.Popen[str]) -> tuple[str, str]:
    """Stop a loader normally; returns its output."""
    loader.send_signal(signal.SIGTERM)
    out, err = loader.communicate(timeout=60)
    assert loader.returncode == 0, err
    return out, err


def hear(loader: subprocess.Popen[str], text: str) -> str:
    """The next line with this text in a loader's output."""
    assert loader.stderr is not None
    return next(line for line in loader.stderr if text in line)


def test_a_stream_lands_once_with_its_positions(shop: Shop) -> None:
    shop.send(1_000)
    shop.send(MOST + 500, hash_key=0)  # more than one answer holds
    assert {shard for shard, _ in shop.put} == set(shop.shards())
    assert shop.drain()["rows"] == len(shop.put)
    assert shop.is_whole()
    assert shop.drain()["rows"] == 0
    shop.send(100)
    assert shop.drain()["rows"] == 100
    assert shop.is_whole()


def test_a_full_answer_does_not_count_as_the_end(shop: Shop) -> None:
    shop.send(60)
    assert shop.drain(limits=Limits(rows=7))["rows"] == 60
    assert shop.is_whole()


def test_a_dead_letter_keeps_the_bytes_and_the_key(shop: Shop) -> None:
    broken = [b"no JSON", b"\xff\xfe\x00", b'{"event_type": "view_item"', b'{"event_type":"view_item"}']
    shop.send_bytes(broken)
    places = dict(zip(shop.put, broken, strict=True))
    shop.send(7)
    done = shop.drain()
    assert (done["rows"], done["dead_letters"]) == (7, {"missing_field": 1, "not_json": 2, "not_utf8": 1})
    letters = shop.ask(f"select part, position, payload, key, place, {POSITION} from lake.raw.dead_letters")
    assert {(part, number): payload for part, number, payload, *_ in letters} == places
    assert {(int(key), payload) for _, _, payload, key, *_ in letters} == set(enumerate(broken))
    assert all(place == f"kinesis:{shop.stream}" for *_, place, _ in letters)
    assert all(position == f"{shop.stream}/{part}/{number}" for part, number, *_, position in letters)
    assert shop.ask("select count(*) from lake.raw.dead_letters where abs(epoch(sent_at - _ingested_at)) < 60") == [
        (4,)
    ]
    assert shop.positions() == shop.ends()


class Sender(threading.Thread):
    """Sends until `stop`."""

    def __init__(self, shop: Shop) -> None:
        super().__init__(daemon=True)
        self.shop, self.stopping = shop, threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(0.02):
            self.shop.send(20)

    def __enter__(self) -> Sender:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.join()


def reshard(shop: Shop) -> None:
    """Split the first open shard in the middle, then merge its second half with the shard beside it."""
    ranges = {
        name: (int(shard["HashKeyRange"]["StartingHashKey"]), int(shard["HashKeyRange"]["EndingHashKey"]))
        for name, shard in shop.shards().items()
        if "EndingSequenceNumber" not in shard["SequenceNumberRange"]
    }
    (first, (low, high)), (beside, _) = sorted(ranges.items(), key=lambda item: item[1])[:2]
    shop.client.split_shard(StreamName=shop.stream, ShardToSplit=first, NewStartingHashKey=str((low + high) // 2))
    *_, half = sorted(name for name, shard in shop.shards().items() if shard.get("ParentShardId") == first)
    shop.client.merge_shards(StreamName=shop.stream, ShardToMerge=half, AdjacentShardToMerge=beside)


def test_shards_split_and_merge_while_a_loader_runs(elastic: Shop) -> None:
    shop = elastic
    shop.send(100)
    loader = shop.run("--json")
    with Sender(shop):
        wait(shop.positions)
        for _ in range(2):
            reshard(shop)
            wait(lambda: shop.positions().keys() == shop.shards().keys())
    wait(shop.is_whole)
    out, err = end(loader)
    assert err == ""
    totals = json.loads(out.splitlines()[-1])
    assert (totals["rows"], totals["trouble"]) == (len(shop.put), None)
    assert sorted(shop.ends().values()).count(END) == 6
    assert len({shard for shard, _ in shop.put}) > 4  # children got records, too
    assert shop.drain()["rows"] == 0
    assert shop.is_whole()


def test_a_stream_that_was_resharded_is_drained(elastic: Shop) -> None:
    elastic.send(1_000)
    reshard(elastic)
    elastic.send(1_000)
    reshard(elastic)
    assert elastic.drain()["rows"] == 2_000
    assert elastic.is_whole()


def test_records_that_are_read_again_are_not_skipped(elastic: Shop, access: pytest.MonkeyPatch) -> None:
    """New shards are claimed together with the others, which then go on from what has landed."""
    elastic.send(100)
    _, _, entry, _, where = entry_of(elastic.mapping, None)
    assert entry.stream is not None
    source = Kinesis(entry.stream, where)
    source.open(PreviewOwner())

    def read() -> int:
        count = 0
        while not source.is_drained():
            count += len(source.poll(1_000, 0.1))
        return count

    assert read() == 100
    reshard(elastic)
    with access.context() as slow:  # what was asked for already is not asked for again, and new shards are
        slow.setattr("orchestration.sources.kinesis.LOOK", 0)
        slow.setattr("orchestration.sources.kinesis.PAUSE", 60)
        for _ in range(5):
            assert len(source.poll(1_000, 0)) == 0
        assert not source.is_drained()
    assert read() == 100
    source.close()


def test_a_second_loader_takes_the_stream_over(shop: Shop) -> None:
    with Sender(shop):
        first = shop.run()
        wait(lambda: shop.ask("select count(*) > 100 from lake.raw.events") == [(True,)])
        owners = shop.owners()
        second = shop.run("--json")
        wait(lambda: shop.owners().isdisjoint(owners))
        # The first takes it back, and so on, less and less often.
        said = [hear(first, "another loader has taken over") for _ in range(3)]
        assert [re.findall(r"trying again in (.+) s", each) for each in said] == [["0.5"], ["1.0"], ["2.0"]]
    wait(shop.is_whole)
    end(first), end(second)
    assert shop.is_whole()


def read_to_the_end(port: int) -> set[str]:
    """Shards whose reader has reached the end, according to the loader's metrics for Prometheus."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics") as answer:
        return set(re.findall(r'^finegrain_stream_lag\{part="(.+)"\} 0.0$', answer.read().decode(), re.MULTILINE))


def test_a_paused_loader_that_was_replaced_lands_nothing(shop: Shop) -> None:
    shop.send(300)
    [port] = free_ports(1)
    sleeper = shop.run("--json", "--age", "600", "--metrics-port", str(port))
    wait(lambda: shop.positions() == dict.fromkeys(shop.shards(), BEGINNING))
    # It has read them, and keeps its batch open.
    wait(lambda: read_to_the_end(port) == shop.shards().keys())
    assert shop.ask("select count(*) from lake.raw.events") == [(0,)]
    sleeper.send_signal(signal.SIGSTOP)
    assert shop.drain()["rows"] == 300
    sleeper.send_signal(signal.SIGCONT)
    end(sleeper)
    assert shop.is_whole()


def test_a_loader_that_is_killed_and_started_again_loses_nothing(shop: Shop) -> None:
    chance = random.Random(3)
    with Sender(shop):
        for _ in range(10):
            life = Life(shop.mapping, shop.where)
            wait(lambda begun=life.batches: begun.value)  # so each is killed within a batch, or after it has landed one
            time.sleep(chance.uniform(0, 0.15))
            life.kill()
    shop.drain()
    assert shop.is_whole()


def test_errors_that_a_user_can_fix_are_one_sentence(shop: Shop, access: pytest.MonkeyPatch) -> None:
    shop.map(stream="no-such-stream")
    with pytest.raises(
        FinegrainError,
        match=r"stream.kinesis: there is no stream 'no-such-stream' \(http.*\); create it, or correct the name",
    ):
        shop.drain()
    shop.map(endpoint="http://nowhere")
    with pytest.raises(FinegrainError, match=r"shop.yml: tables.events.stream.settings: .*endpoint"):
        shop.drain()
    shop.map(endpoint_url="nowhere")
    with pytest.raises(
        FinegrainError, match=r"shop.yml: tables.events.stream.settings.endpoint_url: this is not a server address"
    ):
        shop.drain()
    shop.map(region_name=None)
    with pytest.raises(FinegrainError, match=r"stream.settings: no region; set region_name, or AWS_REGION"):
        shop.drain()
    access.setenv("AWS_DEFAULT_REGION", REGION)
    shop.drain()
    access.delenv("AWS_DEFAULT_REGION")
    # As the sentence says; boto3 itself only reads the other name.
    access.setenv("AWS_REGION", REGION)
    shop.drain()
    shop.map(aws_access_key_id=None, aws_secret_access_key=None)
    with pytest.raises(FinegrainError, match=r"no credentials for Kinesis; set AWS_ACCESS_KEY_ID"):
        shop.drain()
    shop.map()
    access.delenv("KINESIS_SECRET")
    with pytest.raises(
        FinegrainError, match=r"stream.settings.aws_secret_access_key: the environment has no KINESIS_SECRET"
    ):
        shop.drain()


class Gate:
    """A connection to a server that can be closed, like a network that fails."""

    def __init__(self, to: int) -> None:
        self.to = to
        [self.port] = free_ports(1)
        self.sockets: list[socket.socket] = []

    def open(self) -> None:
        listener = socket.create_server((HOST, self.port))
        self.sockets = [listener]
        threading.Thread(target=self._let_in, args=(listener,), daemon=True).start()

    def shut(self) -> None:
        for each in self.sockets:
            with contextlib.suppress(OSError):  # it has ended by itself
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _let_in(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, _ = listener.accept()
                host = socket.create_connection((HOST, self.to))
                self.sockets += [guest, host]
                for pair in ((guest, host), (host, guest)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while said := one.recv(65536):
                other.sendall(said)
            other.shutdown(socket.SHUT_WR)


def test_a_server_that_does_not_answer_is_waited_for(shop: Shop, access: pytest.MonkeyPatch, kinesis: Moto) -> None:
    gate = Gate(kinesis.port)
    address = f"http://{HOST}:{gate.port}"
    access.setenv("KINESIS_URL", address)
    shop.send(100)
    loader = shop.run()
    said = [hear(loader, f"kinesis at {address} does not answer") for _ in range(2)]
    assert "trying again in 0.5 s" in said[0] and "trying again in 1.0 s" in said[1]
    gate.open()
    try:
        wait(shop.is_whole)
        with Sender(shop):
            for _ in range(2):
                gate.shut()
                hear(loader, "does not answer")
                landed = len(shop.put)
                gate.open()
                wait(lambda so_far=landed: shop.ask(f"select count(*) > {so_far} from lake.raw.events") == [(True,)])
        wait(shop.is_whole)
        end(loader)
    finally:
        gate.shut()


def test_a_recreated_stream_is_refused_until_confirmed(shop: Shop) -> None:
    shop.send(30)
    shop.drain()
    shop.client.delete_stream(StreamName=shop.stream)
    time.sleep(1)  # a stream is identified by the second in which it was created
    shop.client.create_stream(StreamName=shop.stream, ShardCount=3)
    shop.put.clear()
    shop.send(60)
    with pytest.raises(FinegrainError, match=r"was deleted and recreated .* run this once with --from-beginning"):
        shop.drain()
    assert shop.ask("select count(*) from lake.raw.events") == [(30,)]
    assert shop.drain(from_beginning=True)["rows"] == 60
    assert shop.positions() == shop.ends()
