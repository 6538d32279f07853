"""Time and memory of the whole pipeline, by stage and by model.

    python benchmarks/pipeline.py --events 1000000

Each stage is the command that a user types, in a separate process, so that its peak memory can be measured. Everything is in a
temporary folder, which is removed unless --keep names one.
"""

from __future__ import annotations

import argparse
import bisect
import json
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
#: The number of models to list; the others are summed.
SLOWEST = 25
MODELS = ("model", "seed", "snapshot")
#: Data frame engines; the second one is slow and needs much memory.
ENGINES = ("polars", "pandas")
PANDAS_UP_TO = 1_000_000
#: Files that arrive once a day, and the column with the arrival of their rows.
DAILY = {
    "store/visits.csv": "local_time",
    "database/customers.csv": "changed",
    "database/products.csv": "changed",
    "database/orders.parquet": "updated_at",
    "database/order_items.parquet": "updated_at",
    "database/refunds.parquet": "updated_at",
}
#: The time when a line of the stream was received.
RECEIVED = re.compile(rb'"received_at": ?"([0-9-]+T[^"]+)"')
FEATURES = {
    path.stem for room in ("intermediate", "marts") for path in (ROOT / "models" / room / "features").glob("*.sql")
}


class Ran(NamedTuple):
    """What a command took: seconds, peak memory in MiB, seconds of CPU of all cores together; and what it printed. `finished`: it did not fail."""

    seconds: float
    peak: float
    cpu: float
    out: str
    finished: bool


def run(home: Path, *command: str, at_most: float | None = None) -> Ran:
    """Run one Python command. A failure ends the benchmark, except with `at_most`: then the command is ended after so many seconds, and may fail."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "FINEGRAIN_HOME": str(home)},
            stdout=out,
        )
        ending = threading.Timer(threading.TIMEOUT_MAX if at_most is None else at_most, process.kill)
        ending.daemon = True
        ending.start()
        _, status, usage = os.wait4(process.pid, 0)
        ending.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode and at_most is None:
            sys.exit(f"{' '.join(command)} failed")
        out.seek(0)
        return Ran(
            time.monotonic() - started,
            usage.ru_maxrss / 1024,
            usage.ru_utime + usage.ru_stime,
            out.read(),
            not process.returncode,
        )


def main() -> None:
    """Run the stages and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="folder to work in, kept afterwards")
    given = parser.parse_args()
    home = given.keep or Path(tempfile.mkdtemp(prefix="finegrain-bench-"))
    try:
        measure(home, given.events)
    finally:
        if given.keep is None:
            shutil.rmtree(home, ignore_errors=True)


def measure(home: Path, events: int) -> None:
    """Simulate, load, build; build with nothing new; publish; the same after 0.1 % more events, and after the first hour of the next
    day; then, for comparison, the floor and the features in data frames, from the same lake."""
    shop = str(home / "shop")
    load = ["load", "examples/simulated_shop", "--data", shop, "--json"]
    stages: list[tuple[str, float, float]] = []
    answers: dict[str, Any] = {}

    def stage(name: str, *arguments: str) -> None:
        ran = run(home, "-m", "orchestration.cli", *arguments)
        stages.append((name, ran.seconds, ran.peak))
        if "--json" in arguments:
            answers[name] = json.loads(ran.out)

    stage("simulate", "simulate", "--events", str(events), "--out", shop)
    more, next_day = hold_back(home / "shop", max(events // 1000, 1))
    stage("load", *load)
    stage("build", "build", "--json")
    stage("build again, nothing new", "build", "--json")
    stage("publish", "publish", "--json")
    (home / "shop" / "stream" / "more.jsonl").write_bytes(more)
    stage("load 0.1 % more", *load)
    stage("build 0.1 % more", "build", "--json")
    stage("publish 0.1 % more", "publish", "--json")
    (home / "shop" / "stream" / "next_day.jsonl").write_bytes(next_day)
    stage("load up to the next day", *load)
    stage("build the next day", "build", "--json")

    floor, frames = home / "floor.duckdb", home / "frames"
    ran = run(home, "benchmarks/floor.py", "--keep", str(floor))
    stages.append(("the floor: benchmarks/floor.sql", ran.seconds, ran.peak))
    run(home, "benchmarks/dataframes.py", str(frames), "--export-from", str(home / "warehouse.duckdb"))
    for engine in ENGINES if events <= PANDAS_UP_TO else ENGINES[:1]:
        ran = run(home, "benchmarks/dataframes.py", str(frames), "--engine", engine)
        stages.append((f"features alone, in {engine}", ran.seconds, ran.peak))

    console = Console(width=110)
    memory = psutil.virtual_memory().total / 2**30
    console.print(
        f"{events:,} events; {os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, Python {platform.python_version()}"
    )
    names = ("build", "build again, nothing new", "build 0.1 % more", "build the next day")
    full, again, a_little, a_day = (answers[name] for name in names)
    table = Table("stage", "seconds", "peak MiB", "of which start-up", "models", "tests", box=None)
    for name, seconds, peak in stages:
        build = answers.get(name, {}) if name.startswith("build") else {}
        parts = (
            [f"{build['startup_seconds']:.1f}", f"{of(build, *MODELS):.1f}", f"{of(build, 'test'):.1f}"]
            if build
            else []
        )
        table.add_row(name, f"{seconds:.1f}", f"{peak:,.0f}", *parts)
    console.print(table)
    features = sum(node["seconds"] for node in full["nodes"] if node["name"] in FEATURES)
    work = of(full, *MODELS)
    [bare] = [seconds for name, seconds, _ in stages if name.startswith("the floor")]
    console.print(
        f"build / floor {full['seconds'] / bare:.2f} ({work:.0f} s of models, of which {features:.0f} s of features); "
        f"build again / build {again['seconds'] / full['seconds']:.3f}, "
        f"build 0.1 % more / build {a_little['seconds'] / full['seconds']:.3f}, "
        f"build the next day / build {a_day['seconds'] / full['seconds']:.3f}"
    )
    seconds_of = [{node["name"]: node["seconds"] for node in build["nodes"]} for build in (again, a_little, a_day)]
    models = sorted((node for node in full["nodes"] if node["kind"] in MODELS), key=lambda node: -node["seconds"])
    table = Table("model", "full", "nothing new", "0.1 % more", "the next day", box=None)
    for node in models[:SLOWEST]:
        table.add_row(
            node["name"],
            *(f"{each.get(node['name'], 0):.2f}" for each in ({node["name"]: node["seconds"]}, *seconds_of)),
        )
    rest = [node["name"] for node in models[SLOWEST:]]
    first = {node["name"]: node["seconds"] for node in models}
    table.add_row(
        f"{len(rest)} others", *(f"{sum(each.get(name, 0) for name in rest):.2f}" for each in (first, *seconds_of))
    )
    console.print(table)


def of(build: dict[str, Any], *kinds: str) -> float:
    """Seconds of all nodes of these kinds."""
    return float(sum(node["seconds"] for node in build["nodes"] if node["kind"] in kinds))


def hold_back(shop: Path, lines: int) -> tuple[bytes, bytes]:
    """Cut a simulated shop to what had arrived by noon of its second to last day; for daily exports, to the days before. Returns the next
    `lines` lines of the stream, and the rest up to one o'clock of the next day."""
    about = json.loads((shop / "simulation.json").read_text())
    day = date.fromisoformat(about["start"]) + timedelta(days=about["days"] - 2)
    for path in (shop / "ga4").glob("events_*.parquet"):
        if path.stem.removeprefix("events_") >= f"{day:%Y%m%d}":
            path.unlink()
    for name, moment in DAILY.items():
        path, draft = shop / name, shop / f"{name}.draft"
        kind = "header, delimiter ','" if path.suffix == ".csv" else "format parquet"
        read = f"read_csv('{path}', all_varchar = true)" if path.suffix == ".csv" else f"'{path}'"
        duckdb.execute(f"copy (from {read} where cast({moment} as varchar) < '{day}') to '{draft}' ({kind})")
        draft.replace(path)
    with (shop / "stream" / "events.jsonl").open("r+b") as file:
        with mmap.mmap(file.fileno(), 0) as text:
            noon = first_line(text, f"{day}T12:00")
            after = noon
            for _ in range(lines):
                after = text.find(b"\n", after) + 1
            more, next_day = text[noon:after], text[after : first_line(text, f"{day + timedelta(days=1)}T01:00")]
        file.truncate(noon)
    return more, next_day


def first_line(text: mmap.mmap, moment: str) -> int:
    """The offset of the first line that was received at `moment` or later, by bisection: lines are in the order of arrival."""

    def received_after(place: int) -> bytes:
        found = RECEIVED.search(text, place)
        return found[1] if found else b"never"

    place = bisect.bisect_left(range(len(text)), moment.encode(), key=received_after)
    return text.find(b"\n", place) + 1 if place else 0


if __name__ == "__main__":
    main()
