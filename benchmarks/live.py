"""From an event's production to a vector of its customer that knows of it, at constant rates, through Kafka, `finegrain live` and the online store.

    python benchmarks/live.py --events 10000000 --keep FOLDER           # makes the shop in FOLDER, which takes a while, and measures
    python benchmarks/live.py --keep FOLDER --per-second 100 1000 5000  # measures with the shop that is there

Events are page views, views, carts and purchases of the shop's own customers and visitors, who come for some ten events, twenty seconds apart. Probes, some ten a
second, are asked for in the store every few milliseconds until their vector is newer than they are. FINEGRAIN_ONLINE_STORE says which store.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import psutil
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table
from stream import broker, make_topic

PROJECT = Path(__file__).resolve().parent.parent
DAYS = 90
#: Seconds between two events of a visit, and the events of a visit.
GAP, LENGTH = 20, 10
PROBES = 10
MAPPING = {
    "source": "shop_web",
    "tables": {"events": {"stream": {"kafka": "TOPIC"}, "expects": ["customers", "products"], "available_at": "now"}},
}


def make(home: Path, events: int) -> None:
    """A built shop whose history ends yesterday."""
    start = datetime.now(UTC).date() - timedelta(days=DAYS)
    for arguments in (
        ["simulate", "--events", str(events), "--days", str(DAYS), "--start", str(start), "--out", str(home / "shop")],
        ["load", "examples/simulated_shop", "--data", str(home / "shop")],
        ["build"],
    ):
        run(home, *arguments)


def run(home: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *arguments],
        cwd=PROJECT,
        env={**os.environ, "FINEGRAIN_HOME": str(home)},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def people(home: Path) -> list[tuple[str, str | None, str]]:
    """(customer, user id, visitor) of the shop."""
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as con:
        found = con.execute(
            "select distinct customer_id, user_id, anonymous_id from (select l.customer_id, e.user_id, e.anonymous_id, "
            "row_number() over (partition by e.anonymous_id order by e.event_at desc) as place from main.int_cleaning__events as e "
            "inner join main.int_identity__links as l on l.identity = 'a:' || e.anonymous_id and l.known_to is null) where place = 1 order by all"
        ).fetchall()
        products = con.execute(
            "select distinct product_id from main.int_reference__product_versions order by 1"
        ).fetchall()
    global PRODUCTS
    PRODUCTS = [row[0] for row in products]
    return found


PRODUCTS: list[str] = []


def events(who: list[tuple[str, str | None, str]], per_second: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(customer, event), without its times."""
    pick = random.Random(per_second)
    active = [pick.choice(who) for _ in range(GAP * per_second)]
    while True:
        place = pick.randrange(len(active))
        customer, user, visitor = active[place]
        if pick.random() < 1 / LENGTH:
            active[place] = pick.choice(who)
        kind = pick.choices(["page_view", "view_item", "add_to_cart", "purchase"], [30, 55, 12, 3])[0]
        event = {
            "event_id": str(uuid.uuid4()),  # not those of an earlier run on the same shop, of which it would be a copy
            "event_type": kind,
            "anonymous_id": visitor,
            "device": "mobile",
        }
        if user and pick.random() < 0.5:
            event["user_id"] = user
        if kind != "page_view":
            event |= {
                "product_id": pick.choice(PRODUCTS),
                "price": round(pick.random() * 100, 2),
                "quantity": 1,
                "currency": "EUR",
            }
        if kind == "purchase":
            event["order_id"] = f"o{uuid.uuid4().hex}"
        yield customer, event


def measure(
    home: Path,
    servers: str,
    per_second: int,
    seconds: float,
    who: list[tuple[str, str | None, str]],
    options: list[str],
) -> dict[str, Any]:
    """Start the process, produce, and watch the store."""
    os.environ["FINEGRAIN_HOME"] = str(home)
    from orchestration.store.online import OnlineStore

    topic = f"live.{per_second}.{uuid.uuid4().hex[:6]}"
    make_topic(servers, topic)
    mapping = home / "bench.json"
    entry = json.loads(json.dumps(MAPPING).replace("TOPIC", topic))
    entry["tables"]["events"]["stream"]["settings"] = {"bootstrap.servers": servers}
    mapping = home / "bench.yml"
    mapping.write_text(json.dumps(entry))
    errors = (home / "bench.err").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestration.cli", "live", str(mapping), *options, "--json"],
        cwd=PROJECT,
        env={**os.environ, "FINEGRAIN_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    watched = psutil.Process(process.pid)
    reports: list[dict[str, Any]] = []
    reading = threading.Thread(
        target=lambda: reports.extend(json.loads(line) for line in process.stdout or ()), daemon=True
    )
    reading.start()
    # All that came since the build has to be answered first.
    while not any(report["snapshot"] and not report["waiting"] for report in reports):
        assert process.poll() is None, (home / "bench.err").read_text()
        time.sleep(0.2)
    probes: dict[str, list[float]] = {}
    waits: list[float] = []
    done = threading.Event()
    looks = 0

    def watch() -> None:
        nonlocal looks
        with OnlineStore() as store:
            while not done.is_set() or (probes and time.monotonic() < deadline):
                keys = list(probes)
                for key, vector in zip(keys, store.read("user_features", keys) if keys else [], strict=True):
                    now = time.time()
                    newest = vector.as_of.replace(tzinfo=UTC).timestamp() if vector else 0.0
                    left = [at for at in probes[key] if at >= newest]
                    waits.extend(now - at for at in probes[key] if at < newest)
                    if left:
                        probes[key] = left
                    else:
                        probes.pop(key, None)
                looks += 1
                time.sleep(0.005)

    producer = Producer({"bootstrap.servers": servers, "linger.ms": 2})
    source = events(who, per_second)
    for _ in range(20):  # the first batches
        _, event = next(source)
        send(producer, topic, event, time.time())
    producer.flush()
    time.sleep(5)
    deadline = float("inf")
    looking = threading.Thread(target=watch)
    looking.start()
    begin, sent = time.time(), 0
    cpu = sum(watched.cpu_times()[:2])
    while (elapsed := time.time() - begin) < seconds:
        due = int(elapsed * per_second) - sent
        for _ in range(due):
            customer, event = next(source)
            at = time.time()
            send(producer, topic, event, at)
            sent += 1
            if sent % max(per_second // PROBES, 1) == 0:
                probes.setdefault(customer, []).append(at)
        producer.poll(0)
        time.sleep(0.002)
    producer.flush()
    used = (sum(watched.cpu_times()[:2]) - cpu) / seconds
    deadline = time.monotonic() + 60
    done.set()
    looking.join()
    memory = watched.memory_info().rss / 2**20
    process.terminate()
    process.wait()
    reading.join()
    cuts = statistics.quantiles(waits, n=100)
    last = reports[-1]
    return {
        "events/s": per_second,
        "events": sent,
        "probes": len(waits),
        "not seen": sum(map(len, probes.values())),
        "p50 s": round(cuts[49], 3),
        "p95 s": round(cuts[94], 3),
        "p99 s": round(cuts[98], 3),
        "slowest s": round(max(waits), 3),
        "identities a batch": round(last["identities"] / max(last["batches"], 1)),
        "compute s": last["compute_seconds"],
        "write s": last["write_seconds"],
        "CPUs": round(used, 2),
        "MiB": round(memory),
    }


def send(producer: Producer, topic: str, event: dict[str, Any], at: float) -> None:
    moment = datetime.fromtimestamp(at, UTC).isoformat()
    producer.produce(topic, json.dumps({**event, "event_at": moment}).encode(), key=event["anonymous_id"].encode())


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, help="make a shop of so many events first")
    parser.add_argument("--keep", type=Path, help="the shop's home, kept afterwards")
    parser.add_argument("--per-second", type=int, nargs="+", default=[100, 1_000, 5_000])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", action="store_true")
    given, options = parser.parse_known_args()  # all else is for `finegrain live`
    with tempfile.TemporaryDirectory(prefix="finegrain-bench-") as folder:
        home = (given.keep or Path(folder)).resolve()
        if given.events or given.keep is None:
            make(home, given.events or 1_000_000)
        who = people(home)
        found = []
        with broker() as servers:
            for per_second in given.per_second:
                found.append(measure(home, servers, per_second, given.seconds, who, options))
                if given.json:
                    print(json.dumps(found[-1]))
    if not given.json:
        table = Table(*found[0], box=None)
        for each in found:
            table.add_row(*map(str, each.values()))
        console = Console(width=150)
        console.print(
            f"{date.today()}, {os.cpu_count()} cores, {os.environ.get('FINEGRAIN_ONLINE_STORE', 'sqlite').split(':')[0]}"
        )
        console.print(table)


if __name__ == "__main__":
    main()
