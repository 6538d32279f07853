"""The features as of the end of past days. What a feature sees had arrived by its moment, so a day that is made again, from the lake as it
is by then, comes out as it was.

    published/history/day=2025-03-31/user_features.parquet …
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import duckdb

from orchestration import warehouse
from orchestration.build import arguments, run_dbt
from orchestration.errors import FinegrainError
from orchestration.lake import quote
from orchestration.landing import identifier
from orchestration.lineage import FEATURES
from orchestration.settings import Settings, settings

#: What dbt builds and tests of each day: the feature marts, and what they are made of.
SELECTED: Final = f"+path:models/{FEATURES}"


def features_of(days: Sequence[date], where: Settings | None = None) -> dict[str, dict[str, int]]:
    """Make the feature marts as of the end of each of these UTC days; rows by day and mart. They are built in a copy of the warehouse, so
    what it holds and what is published stay as they are. Raises FinegrainError, and leaves a day as it was that did not pass its tests."""
    where = where or settings()
    scratch = where.published / "history" / f".draft-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        copy = replace(where, warehouse=scratch / "warehouse.duckdb")
        if where.warehouse.exists():
            with duckdb.connect() as con:
                warehouse.attach(con, where.warehouse)  # as long as it is attached, nobody writes to it
                shutil.copyfile(where.warehouse, copy.warehouse)
        return {day.isoformat(): _features(day, copy, scratch) for day in sorted(days)}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _features(day: date, where: Settings, scratch: Path) -> dict[str, int]:
    # Tests that compare with marts that are of another moment have no place here.
    asked = [*arguments(where), "--select", SELECTED, "--indirect-selection", "buildable"]
    done = run_dbt(asked, where=where, moment=(day + timedelta(days=1)).isoformat())
    if not done.passed:
        named = ", ".join(node.name for node in done.failed)
        raise FinegrainError(f"the features of {day} did not pass their tests, and stay as they were: {named}")
    draft = scratch / "day"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    rows = {}
    with duckdb.connect(config=warehouse.limits(scratch / "spill")) as con:
        warehouse.attach(con, where.warehouse)
        marts = [
            node.name
            for node in done.nodes
            if node.kind == "model" and node.name.endswith("_features") and not node.name.startswith("int_")
        ]
        for mart in marts:
            # From which snapshot a day was made says nothing of it, and would be another the next time.
            [(rows[mart],)] = con.execute(
                f"copy (select * exclude (built_from) from warehouse.marts.{identifier(mart)}) to {quote(str(draft / f'{mart}.parquet'))} "
                "(format parquet, compression zstd)"
            ).fetchall()
    _swap(draft, where.published / "history" / f"day={day.isoformat()}")
    return rows


def _swap(draft: Path, place: Path) -> None:
    old = draft.with_name("old")
    if place.exists():
        place.rename(old)
    draft.rename(place)
    shutil.rmtree(old, ignore_errors=True)
