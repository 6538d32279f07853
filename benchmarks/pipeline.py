"""Time and memory of the whole way, by stage and by model.

    python benchmarks/pipeline.py --events 1000000

Each stage is the command that a user types, in a process of its own, so that its peak memory can be told. Everything is
made in a temporary folder, which is removed unless --keep names one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
#: Models that are listed; the rest is added up.
SLOWEST = 15


def run(home: Path, *arguments: str) -> tuple[float, float, str]:
    """(seconds, peak memory in MiB, standard output) of one finegrain command."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestration.cli", *arguments],
            cwd=ROOT,
            env={**os.environ, "FINEGRAIN_HOME": str(home)},
            stdout=out,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"finegrain {arguments[0]} failed")
        out.seek(0)
        return time.monotonic() - started, usage.ru_maxrss / 1024, out.read()


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
    """Simulate, load, build, build again with nothing new, publish."""
    shop = str(home / "shop")
    stages: list[tuple[str, float, float]] = []
    builds: list[Any] = []
    for name, arguments in [
        ("simulate", ["simulate", "--events", str(events), "--out", shop]),
        ("load", ["load", "examples/simulated_shop", "--data", shop, "--json"]),
        ("build", ["build", "--json"]),
        ("build again, nothing new", ["build", "--json"]),
        ("publish", ["publish", "--json"]),
    ]:
        seconds, peak, out = run(home, *arguments)
        stages.append((name, seconds, peak))
        if arguments[0] == "build":
            builds.append(json.loads(out))
    console = Console(width=100)
    memory = psutil.virtual_memory().total / 2**30
    console.print(
        f"{events:,} events; {os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, Python {platform.python_version()}"
    )
    table = Table("stage", "seconds", "peak MiB", box=None)
    for name, seconds, peak in stages:
        table.add_row(name, f"{seconds:.1f}", f"{peak:,.0f}")
    console.print(table)
    again = {node["name"]: node["seconds"] for node in builds[1]["nodes"]}
    nodes = sorted(builds[0]["nodes"], key=lambda node: -node["seconds"])
    models = [node for node in nodes if node["kind"] in ("model", "seed", "snapshot")]
    tests = [node for node in nodes if node["kind"] not in ("model", "seed", "snapshot")]
    table = Table("node", "seconds", "again", box=None)
    for node in models[:SLOWEST]:
        table.add_row(node["name"], f"{node['seconds']:.2f}", f"{again.get(node['name'], 0):.2f}")
    for name, rest in ((f"{len(models) - SLOWEST} other models", models[SLOWEST:]), (f"{len(tests)} tests", tests)):
        first = sum(node["seconds"] for node in rest)
        then = sum(again.get(node["name"], 0) for node in rest)
        table.add_row(name, f"{first:.2f}", f"{then:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
