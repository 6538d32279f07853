"""Metrics of streams by minute: counts, forecasts and alerts, compared with plain Python; and from a real broker to a webhook."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa
import pytest
from confluent_kafka import Producer
from servers import Kafka
from services import bootstrap, new_topic
from streams import Streamed
from test_alerts import Sink, sink

from orchestration.config import project
from orchestration.config.settings import Settings
from orchestration.dagster.watch import watch_sensor
from orchestration.errors import FinegrainError
from orchestration.ingest.stream import loader
from orchestration.ingest.stream.loader import Limits
from orchestration.ingest.stream.replay import replay
from orchestration.lake import lake
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.quality import streams as quality
from orchestration.quality.alerts import anomalous, read_rules
from orchestration.quality.streams import streams

START = datetime(2025, 3, 3, 12, 0)
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
KEY = ("shop", "events", "kafka:shop.events")


def closed(minute: int) -> datetime:
    """The time at which a minute after START is closed."""
    return START + minute * MINUTE + MINUTE + SECOND


# --- counts ---------------------------------------------------------------------------------------------------------


def insert(where: Settings, table: str, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    con = lake.connect(where)
    con.register("given", pa.table({name: [row.get(name) for row in rows] for name in columns}))
    con.execute(f"insert into lake.raw.{table} by name from given")
    con.close()


def event(rng: random.Random, number: int, at: datetime) -> dict[str, Any]:
    return {
        "_source": "shop",
        "_position": f"shop.events/{number % 3}@abc/{number}",
        "_ingested_at": at,
        "event_type": rng.choice(["view_item", " View_Item", "purchase"]),
        "price": rng.choice(["1", "", None]),
        "user_id": rng.choice(["ann", None]),
        "currency": "EUR",
    }


@pytest.fixture
def counted(home: Settings) -> list[tuple[Any, ...]]:
    """Ten minutes of a stream, with rows of files, of another source, and replayed ones between them; and their counts in plain Python."""
    rng = random.Random(5)
    rows = [event(rng, number, START + rng.random() * 10 * MINUTE) for number in range(500)]
    letters = [
        {
            "_source": "shop",
            "_position": f"shop.events/0@abc/{1000 + number}",
            "raw_table": "events",
            "place": "kafka:shop.events",
            "rule_id": rng.choice(["not_json", "unknown_event"]),
            "_ingested_at": START + rng.random() * 10 * MINUTE,
        }
        for number in range(50)
    ]
    others = [
        event(rng, 1, START) | {"_position": "shop.csv#1"},
        event(rng, 2, START) | {"_source": "app"},
        event(rng, 1000, START) | {"_position": letters[0]["_position"] + "[2]"},
    ]
    insert(home, "events", rows + others)
    insert(home, "dead_letters", letters)
    insert(
        home,
        "positions",
        [
            {"source": "shop", "raw_table": "events", "place": place, "part": "0"}
            for place in ("kafka:shop.events", "postgresql:orders")
        ],
    )
    again = {
        "_source": "shop",
        "_position": letters[0]["_position"],
        "raw_table": "events",
        "letter_at": letters[0]["_ingested_at"],
    }
    insert(home, "replayed", [again | {"replayed_at": START}])

    found: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        key = (row["_ingested_at"].replace(second=0, microsecond=0), *KEY)
        found[*key, "row", "rows", "all"] += 1
        found[*key, "event_type", "labels", row["event_type"].strip().lower()] += 1
        for name in set(RAW_TABLES["events"]) - {"client_class", "properties"}:
            found[*key, name, "nulls", "all"] += not row.get(name)
    for letter in letters:
        key = (letter["_ingested_at"].replace(second=0, microsecond=0), *KEY)
        found[*key, "row", "dead_letters", letter["rule_id"]] += 1
    return sorted((*key, count) for key, count in found.items())


def states(con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    return sorted(
        con.execute("select minute, source, raw_table, place, column_name, state, bucket, n from states").fetchall()
    )


def test_counts_equal_those_of_plain_python(home: Settings, counted: list[tuple[Any, ...]]) -> None:
    for minutes in (4, 6, 6, 10):  # bit by bit, as once a minute
        with lake.connect(home, read_only=True) as con:
            quality._count(con, START + minutes * MINUTE, home)
            assert states(con) == [row for row in counted if row[0] < START + minutes * MINUTE]


def test_rows_that_are_committed_late_are_counted(home: Settings, counted: list[tuple[Any, ...]]) -> None:
    def rows() -> int:
        return sum(minute.rows for minute in streams(1, closed(9), home).minutes)

    before = rows()
    insert(
        home,
        "events",
        [event(random.Random(1), 7000, START + 9.5 * MINUTE), event(random.Random(1), 7001, START + 5 * MINUTE)],
    )
    with lake.connect(home, read_only=True) as con:
        quality._count(con, START + 12 * MINUTE, home)
        [(newest, old)] = con.execute(
            f"select sum(n) filter (minute = timestamp '{START + 9 * MINUTE}'), sum(n) filter (minute = timestamp '{START + 5 * MINUTE}') from states where state = 'rows'"
        ).fetchall()
    assert newest == before + 1
    assert old == sum(
        row[-1] for row in counted if row[0] == START + 5 * MINUTE and row[5] == "rows"
    )  # counted for three minutes only


def test_the_file_of_counts_may_be_deleted_or_damaged(home: Settings, counted: list[tuple[Any, ...]]) -> None:
    first = streams(3, closed(9), home)
    [file] = (home.home / "streams").iterdir()
    file.unlink()
    assert streams(3, closed(9), home) == first
    file.write_bytes(b"PAR1")
    assert streams(3, closed(9), home) == first
    assert [each.name for each in (home.home / "streams").iterdir()] == [file.name]


def test_types_are_bounded(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "TYPES", 3)
    rng = random.Random(3)
    kinds = [f"type{number}" for number in range(9) for _ in range(20 - number)]
    insert(home, "events", [event(rng, number, START) | {"event_type": kind} for number, kind in enumerate(kinds)])
    insert(home, "positions", [{"source": "shop", "raw_table": "events", "place": "kafka:shop.events", "part": "0"}])
    with lake.connect(home, read_only=True) as con:
        quality._count(con, START + MINUTE, home)
        found = con.execute("select bucket, n from states where state = 'labels' order by n").fetchall()
    assert found == [("type2", 18), ("type1", 19), ("type0", 20), ("(other)", len(kinds) - 57)]


def test_without_a_lake_or_a_stream_there_is_nothing(home: Settings) -> None:
    assert streams(3, START, home).minutes == []
    assert not home.lake_catalog.exists() if isinstance(home.lake_catalog, Path) else True
    insert(home, "events", [event(random.Random(1), 1, START)])
    assert streams(3, closed(0), home).minutes == []


# --- what is anomalous ------------------------------------------------------------------------------------------------


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        con.execute(f"create temporary table states ({quality._SHAPE})")
        yield con


def add(
    con: duckdb.DuckDBPyConnection,
    minute: datetime,
    rows: int,
    *,
    nulls: int = 0,
    views: int | None = None,
    dead: int = 0,
) -> None:
    """A minute of a stream: prices are missing in `nulls` rows; `views` rows are views, the others purchases."""
    views = rows if views is None else views
    counts = [
        ("row", "rows", "all", rows),
        ("price", "nulls", "all", nulls),
        ("event_type", "labels", "view_item", views),
        ("event_type", "labels", "purchase", rows - views),
        ("row", "dead_letters", "not_json", dead),
    ]
    con.executemany(
        "insert into states values (?, 'events', 'shop', 'kafka:shop.events', ?, ?, ?, ?)",
        [(minute, *count) for count in counts if count[-1] or count[1] == "nulls"],
    )


def spread(share: float, n: int, errors: list[float]) -> float:
    """The larger one of the usual error and of chance, in plain Python."""
    share = (share * n + 1) / (n + 2)
    return max(1.4826 * statistics.median(errors), (3 * share * (1 - share) / n) ** 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_forecasts_equal_those_of_plain_python(con: duckdb.DuckDBPyConnection, seed: int) -> None:
    rng = random.Random(seed)
    minutes = []
    for number in range(90):
        rows = rng.randrange(60, 200)
        is_bad = number >= 40 and rng.random() < 0.3
        minutes.append((rows, rng.randrange(rows // 10) + (rows // 2 if is_bad else 0)))
        add(con, START + number * MINUTE, rows, nulls=minutes[-1][1])
    expected = []
    values = [1 - nulls / rows for rows, nulls in minutes]
    for number in range(30, 90):
        center = statistics.median(values[:number])
        overall = 1 - sum(nulls for _, nulls in minutes[:number]) / sum(rows for rows, _ in minutes[:number])
        low = center - max(
            5 * spread(overall, minutes[number][0], [abs(value - center) for value in values[:number]]), 0.1
        )
        if values[number] < low:
            expected.append(
                (START + number * MINUTE, pytest.approx(values[number]), pytest.approx(center), pytest.approx(low))
            )
    found = con.execute(
        f"select minute, value, expected, low from ({quality.anomalous(con, 'true')}) where column_name = 'price' order by minute"
    ).fetchall()
    assert found == expected
    assert expected


def names(con: duckdb.DuckDBPyConnection, until: datetime, minutes: int = 1) -> list[str]:
    return [f"{each['severity']}: {', '.join(each['rules'])}" for each in quality.anomalies(con, until, minutes)]


INCIDENTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "a field is null": ({"nulls": 200}, ["error: stream_completeness"]),
    "a type vanishes": ({"views": 200}, ["warn: stream_event_types"]),
    "messages are broken": ({"dead": 20}, ["error: stream_dead_letters"]),
    "most messages are broken": ({"rows": 20, "views": 10, "nulls": 6, "dead": 180}, ["error: stream_dead_letters, stream_dead_letters_limit"]),
}  # fmt: skip


@pytest.mark.parametrize("incident", INCIDENTS)
def test_an_incident_is_found_in_its_minute(con: duckdb.DuckDBPyConnection, incident: str) -> None:
    quiet: dict[str, Any] = {"rows": 200, "nulls": 60, "views": 100, "dead": 0}
    for number in range(40):
        add(con, START + number * MINUTE, **quiet)
    changed, said = INCIDENTS[incident]
    add(con, START + 40 * MINUTE, **(quiet | changed))
    assert names(con, START + 40 * MINUTE) == []
    assert names(con, START + 41 * MINUTE) == said


def test_nothing_is_reported_in_the_warm_up_or_of_few_rows(con: duckdb.DuckDBPyConnection) -> None:
    for number in range(29):
        add(con, START + number * MINUTE, 200)
    add(con, START + 29 * MINUTE, 200, nulls=200)
    assert names(con, START + 30 * MINUTE) == []
    con.execute("delete from states")
    for number in range(40):
        add(con, START + number * MINUTE, 20)
    add(con, START + 40 * MINUTE, 20, nulls=20)
    assert names(con, START + 41 * MINUTE) == []


def test_what_is_usual_at_this_time_of_the_day_is_not_anomalous(con: duckdb.DuckDBPyConnection) -> None:
    """A nightly job sends events without a price for 20 minutes."""
    for day in range(4):
        for number in range(100):
            is_job = number >= 80
            add(con, START + timedelta(days=day) + number * MINUTE, 200, nulls=190 if is_job else 10)
    first = START + 82 * MINUTE
    assert names(con, first) == ["error: stream_completeness"]
    assert names(con, first + timedelta(days=1)) == ["error: stream_completeness"]  # one day is not usual yet
    assert names(con, first + timedelta(days=3)) == []


def test_what_a_rule_suppresses_is_not_reported(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(41):
        add(con, START + number * MINUTE, 200, nulls=200 if number == 40 else 0)
    rules = project.seed("metric_rules")
    for rule in rules:
        if rule["rule_id"] == "stream_completeness":
            rule |= {"suppressed_from": "2025-03-03", "suppressed_until": "2025-03-03", "suppression_reason": "moving"}
    monkeypatch.setattr(quality, "seed", lambda name: rules)
    assert names(con, START + 41 * MINUTE) == []
    rules[0] |= {"grain": "minute", "min_n": "many"}
    with pytest.raises(FinegrainError, match=r"^seeds/metric_rules\.csv: a rule of minutes cannot be read: .*many"):
        quality.anomalies(con, START + 41 * MINUTE, 1)


def test_a_stream_is_one_problem_for_each_owner(con: duckdb.DuckDBPyConnection) -> None:
    for number in range(42):
        add(con, START + number * MINUTE, 200, nulls=200 if number >= 40 else 0, dead=30 if number == 41 else 0)
    found = quality.anomalies(con, START + 42 * MINUTE, 3)
    [problem] = anomalous(found, "http://x", "stream")
    assert (problem.kind, problem.subject, problem.owner) == (
        "stream",
        "shop from kafka:shop.events (data-engineering)",
        "data-engineering",
    )
    assert problem.text.startswith(
        "error: in the minute of 2025-03-03 12:41 UTC shop from kafka:shop.events is anomalous by stream_completeness, stream_dead_letters: completeness of price is 0, expected 1"
    )
    assert problem.state == "error: stream_completeness, stream_dead_letters"


# --- from a broker to a webhook -----------------------------------------------------------------------------------------


class Shop(Streamed):
    """A topic of one partition, a mapping that streams it, and a home."""

    def __init__(self, kafka: Kafka, where: Settings, folder: Path) -> None:
        self.where, self.topic = where, new_topic(kafka, 1)
        self.producer = Producer({"bootstrap.servers": bootstrap(kafka), "log_level": 0})
        self.mapping, self.sent = folder / "shop.yml", 0
        stream = {"kafka": self.topic, "settings": {"bootstrap.servers": bootstrap(kafka)}}
        self.mapping.write_text(
            json.dumps({"source": "shop", "tables": {"events": {"stream": stream, "available_at": "now"}}})
        )

    def send(self, count: int, *, is_broken: bool = False, **more: Any) -> None:
        for number in range(self.sent, self.sent + count):
            kind = "purchase" if number % 5 == 0 else "view_item"
            given = {
                "event_id": str(number),
                "event_type": kind,
                "event_at": "2025-03-02T10:15:30Z",
                "user_id": f"u{number % 9}",
                "price": 5,
                **more,
            }
            text = json.dumps(given)
            self.producer.produce(self.topic, (text[:-1] if is_broken and number % 3 == 0 else text).encode())
        self.sent += count
        assert self.producer.flush(60) == 0


@pytest.fixture
def shop(kafka: Kafka, home: Settings, tmp_path: Path) -> Shop:
    return Shop(kafka, home, tmp_path)


def look() -> None:
    """One evaluation of the sensor that sends alerts."""
    sensor = watch_sensor(read_rules(), [], dg.DefaultSensorStatus.STOPPED)
    repository = dg.Definitions(sensors=[sensor]).get_repository_def()
    with dg.DagsterInstance.ephemeral() as instance:
        repository.get_sensor_def("watch").evaluate_tick(dg.build_sensor_context(instance, repository_def=repository))


class Clock:
    """Batches arrive a minute after each other, from START."""

    def __init__(self) -> None:
        self.minute = -1

    def __call__(self) -> datetime:
        self.minute += 1
        return START + self.minute * MINUTE + 30 * SECOND


def test_a_sender_that_goes_wrong_is_reported_within_a_minute(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with sink() as web:
        monkeypatch.setenv("FINEGRAIN_ALERT_WEBHOOK", web.url)
        report(shop, web, monkeypatch)


def report(shop: Shop, web: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(loader, "_now", clock)

    def after_the_minute() -> list[str]:
        """What is sent when the newest minute is closed, and when it is not closed yet."""
        sent = len(web.got)
        for now in (START + (clock.minute + 1) * MINUTE, closed(clock.minute)):
            monkeypatch.setattr(
                "orchestration.dagster.watch.datetime",
                type("At", (datetime,), {"now": classmethod(lambda _, __, now=now: now.replace(tzinfo=UTC))}),
            )
            look()
        return [line for got in web.got[sent:] for line in json.dumps(got).split("\\n") if "stream" in line]

    def drain() -> None:
        shop.drain(limits=Limits(rows=100))

    shop.send(4_000)
    drain()
    assert clock.minute >= 40
    assert after_the_minute() == []
    shop.send(100, price=None)
    drain()
    said = " ".join(after_the_minute())
    assert (
        "completeness of price is 0, expected 1" in said
        and f"shop from kafka:{shop.topic}" in said
        and "stream_completeness" in said
    )
    shop.send(100, is_broken=True)
    drain()
    assert "dead_letter_share (rule not_json) is 0.33" in " ".join(after_the_minute())
    shop.send(100, event_type="login")
    drain()
    assert "stream_event_types" in " ".join(after_the_minute())
    shop.send(400)
    drain()
    assert "recovered" in " ".join(after_the_minute())


def test_what_was_replayed_is_not_what_the_sender_sends_now(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(loader, "_now", clock)
    shop.send(100, event_type="of another shop")
    shop.send(100)
    shop.drain(limits=Limits(rows=100))
    mapping = json.loads(shop.mapping.read_text())
    mapping["tables"]["events"]["fields"] = {
        "event_id": "event_id",
        "event_at": "event_at",
        "user_id": "user_id",
        "event_type": {"column": "event_type", "map": {"of another shop": "login"}},
    }
    shop.mapping.write_text(json.dumps(mapping))
    assert replay(shop.mapping, where=shop.where).rows == 100
    now = datetime.now(UTC).replace(tzinfo=None)
    con = lake.connect(shop.where, read_only=True)
    con.execute(f"create temp table states as {quality.states(con, START, now + MINUTE)}")
    assert dict(
        con.execute(
            "select state, sum(n)::int from states where state in ('rows', 'dead_letters') group by 1"
        ).fetchall()
    ) == {"rows": 100, "dead_letters": 100}
    con.close()


@pytest.mark.soak
def test_a_sender_that_goes_wrong_is_reported_within_a_minute_of_the_clock(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten minutes: five of warm-up, then an incident in the middle of a minute."""
    monkeypatch.setattr(
        quality, "variable", lambda name: 5 if name == "stream_warm_up_minutes" else project.variable(name)
    )
    running = shop.run("--age", "0.5")
    try:
        began: float | None = None
        first = time.time()
        while True:
            now = time.time()
            if began is None and now - first > 6.5 * 60 and 20 < now % 60 < 30:
                began = now
            shop.send(50, **({"price": None} if began else {}))
            found = streams(3, datetime.now(UTC).replace(tzinfo=None), shop.where).anomalies
            if found:
                break
            assert began is None or now - began < 100
            time.sleep(1)
        assert began is not None
        assert found[0]["rules"] == ["stream_completeness"]
        # The minute in which it began, or the next one if too little of the first was affected; and a second until it is closed.
        assert time.time() - began < 100
        print(f"found {time.time() - began:.1f} s after it began, {time.time() % 60:.1f} s after the end of its minute")
    finally:
        running.terminate()
        running.wait(60)


def test_the_command_says_what_came(home: Settings) -> None:
    def ask(*arguments: str) -> str:
        command = [sys.executable, "-m", "orchestration.cli", "streams", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "no message came by a stream" in ask()
    now = datetime.now(UTC).replace(tzinfo=None)
    insert(home, "events", [event(random.Random(1), number, now - 2 * MINUTE) for number in range(1_200)])
    insert(home, "positions", [{"source": "shop", "raw_table": "events", "place": "kafka:shop.events", "part": "0"}])
    said = ask()
    assert "shop from kafka:shop.events" in said and "1,200" in said and "nothing is out of the ordinary" in said
    [found] = json.loads(ask("--json"))["minutes"]
    assert (found["rows"], found["dead_letters"], found["raw_table"]) == (1200, {}, "events")
