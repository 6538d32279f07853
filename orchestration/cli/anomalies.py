"""`finegrain bench anomalies`: simulates a shop with incidents and a quiet one, builds them, and scores what is found."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from typing import Final

from orchestration.config.project import variable
from orchestration.config.settings import PACKAGE, Settings, settings
from orchestration.errors import FinegrainError, console
from orchestration.ingest.load import load
from orchestration.quality.anomaly_score import BUILDS, Score, alarms, incidents
from orchestration.simulation.incidents import NEEDED_DAYS
from orchestration.simulation.simulate import simulate
from orchestration.warehouse.build import run_dbt

#: All that anomalies are made of; and what a build as of another day makes again, since the events are the same.
_ALL: Final = ("+metric_anomalies",)
_OF_THE_DAY: Final = ("int_identity__build", "metric_history", "metric_anomalies")


def bench(*, events: int, days: int, seed: int, quiet: bool) -> Score:
    """Score a shop with incidents and one of `days` days without, both with about `events` events in `days` days."""
    if days < NEEDED_DAYS:
        raise FinegrainError(f"days is {days}; give --days {NEEDED_DAYS} or more")
    where = _home("incidents")
    # Three days more than incidents need, so that all of them have as many builds.
    shop = _loaded(where, max(events * (NEEDED_DAYS + BUILDS) // days, 1000), NEEDED_DAYS + BUILDS, seed, True, quiet)
    _build(where, *_ALL)
    found = incidents(where.warehouse, shop, lambda day: _build(where, *_OF_THE_DAY, moment=day))
    where = _home("quiet")
    shop = _loaded(where, events, days, seed, False, quiet)
    _build(where, *_ALL)
    raised, tested = alarms(where.warehouse, shop, variable("metric_warm_up_days"))
    return Score(found, raised, tested)


def _home(name: str) -> Settings:
    """An empty home of its own below FINEGRAIN_HOME."""
    base = settings()
    home = base.home / "bench" / "anomalies" / name
    shutil.rmtree(home, ignore_errors=True)
    return Settings.below(home, base.extensions)


def _loaded(where: Settings, events: int, days: int, seed: int, with_incidents: bool, quiet: bool) -> Path:
    """Simulate and load a shop."""
    shop = where.home / "shop"
    simulate(shop, events=events, days=days, seed=seed, incidents=with_incidents)
    if not quiet:
        console.err().print(f"{where.home.name}: {events:,} events of {days} days")
    load(PACKAGE / "examples" / "simulated_shop", data=shop, where=where, quiet=True)
    return shop


def _build(where: Settings, *models: str, moment: date | None = None) -> None:
    """Build models without their tests. Raises FinegrainError if one fails."""
    done = run_dbt(
        ["build", "--exclude-resource-type", "test", "unit_test", "--select", *models],
        where=where,
        moment=None if moment is None else f"{moment.isoformat()}T00:00:00",
    )
    if done.failed:
        raise FinegrainError(f"{done.failed[0].name} failed: {done.failed[0].message}")
