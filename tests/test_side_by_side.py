"""Everything at once, as real processes: two loaders of one group, a connector, builds, upkeep and a reader. No process
fails because of a lock, and no commit is lost.

SECONDS_SIDE_BY_SIDE is the duration; `make soak` runs for five minutes, with either catalogue."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import duckdb
import psycopg
import pytest
from servers import HOST, Kafka, Postgres
from services import new_database, new_topic
from test_maintain import UPKEEP
from test_stream_kills import PARTITIONS, Events, mapping

from orchestration.config.settings import Settings
from orchestration.lake import lake

#: What no output may say beside its JSON, where the words are also those of dbt's tests.
TROUBLE = re.compile(r"\block(ed|s)?\b|conflict|could not serialize|deadlock|Traceback|failed", re.IGNORECASE)
DOCUMENT = re.compile(r"^\{$.*^\}$", re.MULTILINE | re.DOTALL)
USERS = 97

#: Every row of a topic was landed with its position, or neither was; rows do not go and do not come twice. Who would have it so of a SQLite
#: catalogue keeps upkeep from moving rows meanwhile (docs/decisions/0009).
READER = """
import signal
from orchestration.lake import lake
from orchestration.config.settings import settings

stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
con = lake.connect(read_only=True)
before = looks = 0
while not stopping or not looks:
    with lake.reading(settings()):
        rows, different, dead, read = con.execute(
            "select (select count(distinct _position) from lake.raw.events), (select count(distinct event_id) from lake.raw.events), "
            "(select count(distinct _position) from lake.raw.dead_letters), "
            "(select coalesce(sum(position::bigint), 0) from lake.raw.positions where place like 'kafka:%')"
        ).fetchone()
    assert rows == different and rows + dead == read and rows >= before, (rows, different, dead, read, before)
    before, looks = rows, looks + 1
print(looks)
"""


class Company:
    """Processes that run side by side; the output of each is checked when it has ended."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.threads: list[threading.Thread] = []
        self.ended: Counter[str] = Counter()
        self.complaints: list[str] = []

    def begin(self, name: str, *command: str) -> subprocess.Popen[str]:
        process = self.running[name] = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return process

    def finish(self, name: str) -> str:
        """The output of a process up to its end."""
        process = self.running[name]
        said, _ = process.communicate(timeout=1_200)
        self.ended[name] += 1
        # Upkeep has no signal handler of its own and loses nothing when it is stopped.
        beside_json = DOCUMENT.sub("", said)
        if process.returncode not in (0, -signal.SIGTERM if name == "maintain" else 0) or TROUBLE.search(beside_json):
            self.complaints.append(f"{name} ended with {process.returncode}: {_worst(said)}")
        return said

    def again_and_again(self, name: str, *command: str) -> None:
        """One after the other, until stopped; the last one ends by itself."""

        def work() -> None:
            while not self.stopping.is_set() and not self.complaints:
                self.begin(name, *command)
                self.finish(name)

        thread = threading.Thread(target=work, daemon=True)
        self.threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Start no new ones, and let those that are running end normally."""
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def kill(self) -> None:
        self.stopping.set()
        for process in self.running.values():
            process.kill()


def _worst(said: str) -> str:
    """The failures in a build's JSON; for any other output, its end."""
    document = DOCUMENT.search(said)
    if document is None or '"nodes"' not in document[0]:
        return said[-2000:]
    failed = [node for node in json.loads(document[0])["nodes"] if node["status"] not in ("pass", "success")]
    return json.dumps(failed, indent=1)


class Database(threading.Thread):
    """A shop's customers, who are added and changed in PostgreSQL until `stop`."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address, self.stopping = address, threading.Event()
        with psycopg.connect(address) as con:
            con.execute("create table customers (id text primary key, country text, updated_at timestamp not null)")
            con.execute(
                "insert into customers select 'u' || n, 'SE', now() at time zone 'utc' from generate_series(0, %s) as n",
                [USERS - 1],
            )

    def run(self) -> None:
        chance, extra = random.Random(1), 0
        with psycopg.connect(self.address, autocommit=True) as con:
            while not self.stopping.wait(0.05):
                con.execute(
                    "update customers set country = %s, updated_at = now() at time zone 'utc' where id = %s",
                    [chance.choice(("SE", "DE", "FR")), f"u{chance.randrange(USERS)}"],
                )
                con.execute("insert into customers values (%s, 'FI', now() at time zone 'utc')", [f"new{extra}"])
                extra += 1

    def rows(self) -> list[tuple[str, str]]:
        with psycopg.connect(self.address) as con:
            found = con.execute("select id, country from customers").fetchall()
        return sorted((str(one), str(other)) for one, other in found)


def wait_for(what: str, sql: str, where: Settings, expected: int, company: Company, seconds: float = 300) -> None:
    """Until the lake gives this answer, or a process has ended that should not have."""
    deadline = time.monotonic() + seconds
    con = lake.connect(where, read_only=True)
    try:
        while con.execute(sql).fetchall() != [(expected,)]:
            for name in ("loader 1", "loader 2"):
                assert company.running[name].poll() is None, company.finish(name)
            assert time.monotonic() < deadline, f"{what}: {con.execute(sql).fetchall()}, not {expected}"
            time.sleep(0.2)
    finally:
        con.close()


def side_by_side(
    kafka: Kafka, postgres: Postgres, folder: Path, where: Settings, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = new_topic(kafka, PARTITIONS)
    access = postgres.environment()
    user = f"{access['PGUSER']}:{access['PGPASSWORD']}"
    monkeypatch.setenv("SHOP_URL", f"postgresql://{user}@{HOST}:{postgres.port}/{new_database(postgres)}")
    shop = Database(os.environ["SHOP_URL"])
    stream = mapping(folder / "stream.yml", kafka, topic)
    customers = folder / "customers.yml"
    entry = {
        "table": "customers",
        "incremental": {"column": "updated_at", "overlap": "10 minutes"},
        "key": ["id"],
        "origin": "database",
        "available_at": "now",
        "fields": {"customer_id": "id", "country": "country", "updated_at": "updated_at"},
    }
    customers.write_text(json.dumps({"source": "shop", "database": "${SHOP_URL}", "tables": {"customers": entry}}))
    lake.connect(where).close()

    events = Events(kafka, topic, a_second=200)
    company, cli = Company(), ("-m", "orchestration.cli")
    try:
        began = time.monotonic()
        events.start()
        shop.start()
        for name in ("loader 1", "loader 2"):
            company.begin(name, *cli, "stream", str(stream), "--age", "0.5", "--json")
        company.begin("maintain", "-c", UPKEEP.format(seconds=60))
        company.begin("reader", "-c", READER)
        company.again_and_again("ingest", *cli, "ingest", str(customers), "--json")
        with lake.connect(where, read_only=True) as con:
            while not con.execute("from lake.raw.events limit 1").fetchall():  # without rows there is nothing to build
                time.sleep(0.2)
        company.again_and_again("build", *cli, "build", "--json")
        while time.monotonic() - began < seconds and not company.complaints:
            time.sleep(0.2)
        events.stopping.set()
        events.join()
        shop.stopping.set()
        shop.join()
        broken = len(range(0, events.sent, 50))
        good = events.sent - broken
        wait_for("events", "select count(*) from lake.raw.events", where, good, company)
        wait_for("dead letters", "select count(*) from lake.raw.dead_letters", where, broken, company)
        company.stop()
        looks = 0
        for name in ("loader 1", "loader 2", "maintain", "reader"):
            company.running[name].send_signal(signal.SIGTERM)
            said = company.finish(name)
            looks = int(said) if name == "reader" and said.strip().isdecimal() else looks
        for name, command in (("ingest", ["ingest", str(customers)]), ("build", ["build"])):
            company.begin(name, *cli, *command, "--json")
            company.finish(name)
    finally:
        events.stopping.set()
        shop.stopping.set()
        company.kill()
    assert not company.complaints, "\n\n".join(company.complaints)
    assert looks > 1 and company.ended["ingest"] > 1 and company.ended["build"] > 1
    print(f"{events.sent} events, {dict(company.ended)}, {looks} looks")

    con = lake.connect(where, read_only=True)
    assert con.execute("select count(*), count(distinct event_id) from lake.raw.events").fetchall() == [(good, good)]
    assert con.execute("select count(distinct _position) from lake.raw.dead_letters").fetchall() == [(broken,)]
    landed = con.execute(
        "select customer_id, arg_max(country, updated_at::timestamp) from lake.raw.customers group by 1"
    ).fetchall()
    con.close()
    assert sorted(landed) == shop.rows()
    # The last build's result for each user, computed from the messages sent.
    sent = Counter(f"u{number % USERS}" for number in range(events.sent) if number % 50)
    with duckdb.connect(str(where.warehouse), read_only=True) as built:
        views = built.execute("select user_id, count(*) from marts.fct_events group by 1").fetchall()
        people = built.execute("select user_id, country from marts.dim_customers where has_profile").fetchall()
    assert dict(views) == dict(sent)
    assert sorted(people) == shop.rows()


@pytest.mark.soak
def test_all_at_once(
    kafka: Kafka, postgres: Postgres, tmp_path: Path, catalogue: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = float(os.environ.get("SECONDS_SIDE_BY_SIDE", "300"))
    side_by_side(kafka, postgres, tmp_path, catalogue, seconds, monkeypatch)
