"""Loaders that are killed at any time, and a broker that is killed, too: every event is once in the lake.

The loaders are real processes of one consumer group on a real broker; they are forked from a process that has imported
everything, so that they start quickly and a kill is likely to hit a batch. With each kind of catalogue loaders are
killed 50 times on CI, 40 times elsewhere (`make test-long`), and 1,000 times by `make soak`."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from servers import Kafka
from services import bootstrap, new_topic

from orchestration.config.settings import Settings
from orchestration.lake import lake
from orchestration.lake.positions import Stream, positions
from orchestration.quality.streams import streams

PARTITIONS = 6
START, MINUTE = datetime(2025, 3, 1, tzinfo=UTC), timedelta(minutes=1)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([f"orchestration.ingest.stream.{name}" for name in ("run", "kafka", "kinesis")])


def mapping(path: Path, kafka: Kafka, topic: str, **more: object) -> Path:
    """A mapping of one topic whose messages have the contract's field names."""
    settings = {
        "bootstrap.servers": bootstrap(kafka),
        "session.timeout.ms": 1000,
        "heartbeat.interval.ms": 200,
        "reconnect.backoff.max.ms": 500,
        "topic.metadata.refresh.interval.ms": 1000,
        **more,
    }
    path.write_text(
        json.dumps(
            {
                "source": "killed_shop",
                "tables": {"events": {"stream": {"kafka": topic, "settings": settings}, "available_at": "now"}},
            }
        )
    )
    return path


class Life:
    """One run of a loader in a process of its own. It only ends by itself if it drains; `batches` (begun) and `ended`
    can be read while it runs and after it was killed."""

    def __init__(self, path: Path, where: Settings, *, drain: bool = False) -> None:
        self.batches, self.ended = FORKS.RawValue("i", 0), FORKS.RawValue("i", 0)
        # The process that it is forked from may have been started by another test, with a different environment.
        arguments = (path, where, drain, self.batches, self.ended, dict(os.environ))
        self.process = FORKS.Process(target=load, args=arguments)
        self.process.start()

    @property
    def is_landing(self) -> bool:
        """Whether a batch has begun and has not ended: it is validated, waits for the lock or is being committed."""
        return bool(self.batches.value > self.ended.value)

    def kill(self) -> None:
        assert self.process.exitcode is None, f"a loader ended by itself, with {self.process.exitcode}"
        self.process.kill()
        self.process.join()


def load(path: Path, where: Settings, drain: bool, batches: Any, ended: Any, environment: dict[str, str]) -> None:
    """The work of a `Life`."""
    from orchestration.ingest.stream.loader import Limits, Loader
    from orchestration.ingest.stream.run import stream

    os.environ.update(environment)
    land, lock = Loader._land, threading.Lock()

    def counted(*given: Any) -> None:
        with lock:
            batches.value += 1
        land(*given)
        with lock:
            ended.value += 1

    Loader._land = counted  # type: ignore[method-assign]
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    stream(path, where=where, limits=Limits(rows=2_000, age=0.1), drain=drain)


class Events(threading.Thread):
    """Numbered events into a topic, until `stop`. `sent` of them are acknowledged when it has ended."""

    def __init__(self, kafka: Kafka, topic: str, a_second: int) -> None:
        super().__init__(daemon=True)
        self.kafka, self.topic, self.a_second = kafka, topic, a_second
        self.sent, self.stopping = 0, threading.Event()

    def run(self) -> None:
        producer = Producer(
            {
                "bootstrap.servers": bootstrap(self.kafka),
                "enable.idempotence": True,
                "message.timeout.ms": 120_000,
                "reconnect.backoff.max.ms": 500,
                "linger.ms": 5,
                "log_level": 0,
            }
        )
        began = time.monotonic()
        while not self.stopping.is_set():
            while self.sent < (time.monotonic() - began) * self.a_second:
                event = {
                    "event_id": str(self.sent),
                    "event_type": "view_item",
                    "event_at": (START + self.sent * MINUTE).isoformat(),
                    "user_id": f"u{self.sent % 97}",
                    "product_id": f"p{self.sent % 31}",
                }
                # Some cannot land, and become dead letters, also once each.
                text = json.dumps(event) if self.sent % 50 else json.dumps(event)[:-1]
                producer.produce(self.topic, text.encode(), partition=self.sent % PARTITIONS)
                self.sent += 1
            producer.poll(0.01)
        assert producer.flush(120) == 0


def kill_loaders(kafka: Kafka, folder: Path, where: Settings, kills: int, seed: int) -> None:
    """Kill loaders this many times, the broker every fortieth time; then count."""
    chance = random.Random(seed)
    topic = new_topic(kafka, PARTITIONS)
    lake.connect(where).close()
    # Three come back under their previous names, so their partitions wait for them, and while one starts the others have work; the
    # last has a new name, so the partitions are assigned again when it joins and when it times out.
    named = [mapping(folder / f"{name}.yml", kafka, topic, **{"group.instance.id": name}) for name in ("a", "b", "c")]
    stranger = mapping(folder / "stranger.yml", kafka, topic)

    events = Events(kafka, topic, a_second=1_000)
    events.start()
    lives = {path: Life(path, where) for path in named}
    within = 0
    try:
        for kill in range(1, kills + 1):
            if kill % 20 == 10:
                lives[stranger] = Life(stranger, where)
            # A third is killed in any state, perhaps joining or idle; the others once they have begun a batch.
            path, life = chance.choice(list(lives.items()))
            if chance.random() < 1 / 3:
                time.sleep(chance.uniform(0, 0.3))
            else:
                path, life = at_work(lives, chance)
                time.sleep(chance.uniform(0, 0.05))
            life.kill()
            within += life.is_landing
            del lives[path]
            if path is not stranger:
                lives[path] = Life(path, where)
            if kill % 10 == 0:
                streams(3, _now(), where)  # as Dagster's sensor does: the newest minutes are counted while loaders die
            if kill % 40 == 0:
                kafka.kill()
                time.sleep(chance.uniform(0, 1))
                kafka.start()
    finally:
        for life in lives.values():
            life.process.kill()
            life.process.join()
        events.stopping.set()
        events.join()

    last = Life(stranger, where, drain=True)
    last.process.join(120 + kills)  # what came meanwhile, a thousand a second, is left to the last one
    assert last.process.exitcode == 0
    con = lake.connect(where, read_only=True)
    rows = con.execute("select count(*), count(distinct event_id) from lake.raw.events").fetchone()
    dead = con.execute("select count(*), count(distinct _position) from lake.raw.dead_letters").fetchone()
    broken = len(range(0, events.sent, 50))
    assert rows == (events.sent - broken, events.sent - broken)
    assert dead == (broken, broken)
    ends = Consumer({"bootstrap.servers": bootstrap(kafka), "group.id": "ends"})
    assert {
        part: int(at.position) for part, at in positions(con, Stream("killed_shop", "events", f"kafka:{topic}")).items()
    } == {str(part): ends.get_watermark_offsets(TopicPartition(topic, part), 10)[1] for part in range(PARTITIONS)}
    ends.close()
    # Minutes that were counted bit by bit equal a count of the whole lake, and nothing is counted twice.
    for _ in range(2):
        streams(3, _now() + 2 * MINUTE, where)
    [kept] = (where.home / "streams").glob("*.parquet")
    counted = {
        state: dict(
            con.execute(f"select minute, sum(n)::bigint from '{kept}' where state = '{state}' group by 1").fetchall()
        )
        for state in ("rows", "dead_letters")
    }
    by_minute = "select date_trunc('minute', _ingested_at), count(*) from lake.raw."
    assert counted == {
        "rows": dict(con.execute(by_minute + "events group by 1").fetchall()),
        "dead_letters": dict(con.execute(by_minute + "dead_letters group by 1").fetchall()),
    }
    [(landed,)] = con.execute("select count(distinct _ingested_at) from lake.raw.events").fetchall()
    con.close()
    print(f"{kills} kills, {within} of them within a batch, {events.sent} events, {landed} batches landed")
    # If loaders were rarely killed in a batch, or rarely landed anything, the test would prove little.
    assert within > kills / 3
    assert landed > kills / 4


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def at_work(lives: dict[Path, Life], chance: random.Random) -> tuple[Path, Life]:
    """One of the loaders that are in a batch, as soon as there is one."""
    deadline = time.monotonic() + 60
    while not (found := [item for item in lives.items() if item[1].is_landing]):
        assert time.monotonic() < deadline, "no loader has anything to do"
        time.sleep(0.001)
    return chance.choice(found)


@pytest.mark.long
def test_every_event_is_once_in_the_lake(kafka: Kafka, catalogue: Settings, tmp_path: Path) -> None:
    kill_loaders(kafka, tmp_path, catalogue, kills=50 if "CI" in os.environ else 40, seed=1)


@pytest.mark.soak
def test_every_event_is_once_in_the_lake_after_a_thousand_kills(
    kafka: Kafka, catalogue: Settings, tmp_path: Path
) -> None:
    kill_loaders(kafka, tmp_path, catalogue, kills=1_000, seed=2)
