"""Loaders that are killed at any moment, a broker that is, too: every event is once in the lake.

The loaders are real processes of one consumer group on a real broker; they are forked from a process that has imported everything,
so that a life is short and a kill is likely to meet a batch. `make soak` kills five times as often.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from servers import Kafka
from services import bootstrap, new_topic

from orchestration import lake
from orchestration.positions import positions
from orchestration.settings import Settings

PARTITIONS = 6
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([f"orchestration.stream.{name}" for name in ("run", "kafka", "kinesis")])


def mapping(path: Path, kafka: Kafka, topic: str, **more: object) -> Path:
    """A mapping of one topic whose messages are named as the contract's fields are."""
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


def load(path: Path, where: Settings, landings: Any = None) -> None:
    """One loader's life; it ends by itself only where nobody counts its `landings` as they begin."""
    from orchestration.stream.loader import Limits
    from orchestration.stream.messages import Messages
    from orchestration.stream.run import stream

    if landings is not None:
        land = Messages.land

        def counted(*given: Any) -> Any:
            landings.value += 1
            return land(*given)

        Messages.land = counted  # type: ignore[method-assign]

    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    stream(path, where=where, limits=Limits(rows=2_000, age=0.1), drain=landings is None)


class Events(threading.Thread):
    """Numbered events into a topic, until told to stop. `sent` of them are acknowledged when it has ended."""

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
                    "event_at": "2025-03-02T10:15:30Z",
                    "user_id": f"u{self.sent % 97}",
                    "product_id": f"p{self.sent % 31}",
                }
                # Some cannot land, and are dead letters, once each, too.
                text = json.dumps(event) if self.sent % 50 else json.dumps(event)[:-1]
                producer.produce(self.topic, text.encode(), partition=self.sent % PARTITIONS)
                self.sent += 1
            producer.poll(0.01)
        assert producer.flush(120) == 0


def kill_loaders(kafka: Kafka, tmp_path: Path, extensions: Path, kills: int, seed: int) -> None:
    """Kill loaders so many times, the broker every fortieth time; then count."""
    chance = random.Random(seed)
    topic = new_topic(kafka, PARTITIONS)
    where = Settings.below(tmp_path / "home", extensions)
    lake.connect(where).close()
    # The first two come back under the name they had, so their partitions wait for them; a third comes as a stranger.
    mappings = [
        mapping(tmp_path / "first.yml", kafka, topic, **{"group.instance.id": "first"}),
        mapping(tmp_path / "second.yml", kafka, topic, **{"group.instance.id": "second"}),
        mapping(tmp_path / "third.yml", kafka, topic),
    ]
    loaders: list[BaseProcess | None] = [None, None, None]

    counts = [FORKS.RawValue("i", 0) for _ in loaders]

    def start(number: int) -> None:
        counts[number].value = 0
        loader = loaders[number] = FORKS.Process(target=load, args=(mappings[number], where, counts[number]))
        loader.start()

    events = Events(kafka, topic, a_second=1_000)
    events.start()
    start(0)
    start(1)
    try:
        for kill in range(1, kills + 1):
            number = chance.choices((0, 1, 2), (5, 5, 1))[0]
            victim = loaders[number]
            if victim is not None:
                # One time in three wherever it is, else within a landing or just after it.
                if chance.random() < 1 / 3:
                    time.sleep(chance.uniform(0, 0.6))
                else:
                    deadline = time.monotonic() + 5
                    while not counts[number].value and time.monotonic() < deadline:
                        time.sleep(0.001)
                    time.sleep(chance.uniform(0, 0.15))
                assert victim.exitcode is None, f"a loader ended by itself, with {victim.exitcode}"
                victim.kill()
                victim.join()
            start(number)
            if kill % 40 == 0:
                kafka.kill()
                time.sleep(chance.uniform(0, 1))
                kafka.start()
    finally:
        for loader in filter(None, loaders):
            loader.kill()
            loader.join()
        events.stopping.set()
        events.join()

    last = FORKS.Process(target=load, args=(mappings[2], where))
    last.start()
    last.join(120)
    assert last.exitcode == 0
    con = lake.connect(where, read_only=True)
    rows = con.execute("select count(*), count(distinct event_id) from lake.raw.events").fetchone()
    dead = con.execute("select count(*), count(distinct _position) from lake.raw.dead_letters").fetchone()
    broken = len(range(0, events.sent, 50))
    assert rows == (events.sent - broken, events.sent - broken)
    assert dead == (broken, broken)
    ends = Consumer({"bootstrap.servers": bootstrap(kafka), "group.id": "ends"})
    assert {part: int(at.position) for part, at in positions(con, "killed_shop", f"kafka:{topic}").items()} == {
        str(part): ends.get_watermark_offsets(TopicPartition(topic, part), 10)[1] for part in range(PARTITIONS)
    }
    ends.close()
    # A test in which loaders seldom lived long enough to land anything would prove little.
    [(landings,)] = con.execute("select count(distinct _ingested_at) from lake.raw.events").fetchall()
    con.close()
    assert landings > kills / 4
    print(f"{kills} kills, {events.sent} events, {landings} batches")


def test_every_event_is_once_in_the_lake(kafka: Kafka, tmp_path: Path, extensions: Path) -> None:
    kill_loaders(kafka, tmp_path, extensions, kills=int(os.environ.get("KILLS", "200")), seed=1)


@pytest.mark.soak
def test_every_event_is_once_in_the_lake_after_a_thousand_kills(kafka: Kafka, tmp_path: Path, extensions: Path) -> None:
    kill_loaders(kafka, tmp_path, extensions, kills=1_000, seed=2)
