"""`finegrain demo`: load raw files, build, audit, publish and report, with the time of each step."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestration.config.published import REPORT
from orchestration.config.settings import PACKAGE, SIMULATION, Settings, settings
from orchestration.errors import console
from orchestration.ingest.load import LoadReport, load
from orchestration.quality.account import account
from orchestration.quality.alerts import read_rules
from orchestration.report.page import publish_page
from orchestration.simulation.simulate import simulate
from orchestration.warehouse.build import Node, build
from orchestration.warehouse.publish import publish


def demo(data: str, *, events: int) -> bool:
    """Run the demo on `simulated` (about `events` events) or `completejourney` data, in its own home below FINEGRAIN_HOME, so that it never mixes
    with real data. Returns False if the audit failed."""
    where = simulated_home() if data == "simulated" else _home(data)
    out = console.out()
    seconds: dict[str, float] = {}
    if data == "simulated":
        shop = where.home / "shop"
        with _stage("simulate", seconds) as say:
            say(_simulate(where.home, shop, events))
        with _stage("load", seconds) as say:
            say(_landed(load(PACKAGE / "examples" / "simulated_shop", data=shop, where=where, quiet=False)))
    else:
        with _stage("load", seconds) as say:
            say(_landed(load(PACKAGE / "examples" / data, where=where, quiet=False)))
    with _stage("build", seconds) as say:
        done = build(where=where, quiet=False)
        models, tests = done.count("model", "seed", "snapshot"), done.count("test", "unit_test")
        say(f"{models} models, seeds and snapshots; {tests} tests, {len(done.failed) or 'none'} failed")
    if not done.passed:
        _show_failures(done.failed)
        return False
    with _stage("publish", seconds) as say:
        published = publish(where, renewed_within=read_rules().freshness.published)
        say(f"{len(published.marts)} marts" + ("" if published.is_new else ", published already"))
    with _stage("report", seconds) as say:
        say(publish_page(where) or _shown(where.published / REPORT))
    out.print()
    account(where).show(out)
    out.print(" · ".join(f"{name} {taken:.1f} s" for name, taken in seconds.items()), style="dim")
    home = _shown(where.home)
    out.print(f"\nPublished: {_shown(where.published / 'finegrain.duckdb')} and {_shown(where.published / 'parquet')}/")
    out.print("\nTry next:")
    out.print("  . .venv/bin/activate")
    out.print(
        f"  python -c \"import duckdb; print(duckdb.connect('{_shown(where.published)}/finegrain.duckdb').sql('from item_features'))\""
    )
    out.print(f"  FINEGRAIN_HOME={home} dbt docs generate && FINEGRAIN_HOME={home} dbt docs serve")
    if data == "simulated":
        out.print(f"  FINEGRAIN_HOME={home} finegrain bench cleaning --shop {home}/shop")
        out.print("  make demo DATA=completejourney")
    out.print("  finegrain doctor examples/…   (your own shop: docs/how-to/connect-files.md)")
    return True


def simulated_home() -> Settings:
    """The home of the demo's simulated shop."""
    return _home("simulated")


def simulated_shop(where: Settings, events: int = 50_000) -> Path:
    """The folder with the simulated shop's files, created if needed."""
    shop = where.home / "shop"
    if not (shop / SIMULATION).exists():
        console.err().print(f"making the files of a simulated shop in {_shown(shop)}")
        _simulate(where.home, shop, events)
    return shop


def _home(name: str) -> Settings:
    base = settings()
    return Settings.below(base.home / "demo" / name, base.extensions)


def _shown(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


@contextlib.contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[Callable[[str], None]]:
    """Time a stage, and print its messages when it ends."""
    messages: list[str] = []
    started = time.monotonic()
    yield messages.append
    seconds[name] = time.monotonic() - started
    console.out().print(f"{name:<9} {seconds[name]:5.1f} s  {' '.join(messages)}", markup=False)


def _simulate(home: Path, shop: Path, events: int) -> str:
    """Create the shop's files, unless they exist. A different shop needs a new lake, so the home is deleted first."""
    wanted: dict[str, Any] = {"events": events, "days": 90}
    with contextlib.suppress(OSError, ValueError):
        about = json.loads((shop / SIMULATION).read_text("utf-8"))
        if {name: about.get(name) for name in wanted} == wanted:
            return f"the files of {events:,} events are there already"
    shutil.rmtree(home, ignore_errors=True)
    summary = simulate(shop, **wanted)
    return f"{summary.events:,} events of four systems, {sum(summary.truth.values()):,} rows of known dirt among them"


def _landed(report: LoadReport) -> str:
    known = sum(file.skipped is not None for file in report.files)
    files = len(report.files)
    if known == files:
        return f"all {files} files are in the lake already"
    return f"{report.rows:,} rows of {files - known} files" + (f"; {known} were there already" if known else "")


def _show_failures(failed: list[Node]) -> None:
    err = console.err()
    err.print("The audit failed; nothing was published.", style="red")
    for node in failed:
        err.print(f"  {node.name}: {node.message}", markup=False)
