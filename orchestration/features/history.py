"""The history of features: feature marts as of the end of past days. A feature only sees what had arrived by its as-of time, so rebuilding a day
later gives the same result.

    published/history/day=2025-03-31/user_features.parquet …

`history` is a link to a folder in `.history` with all days. A new day is written to a new folder, with the other days as hard links; then the link
is switched. So a reader always finds every day, in its previous or its new version.
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

from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError
from orchestration.features.catalog import declared
from orchestration.lake.locks import one_at_a_time, scratch
from orchestration.sql.text import identifier, quote
from orchestration.warehouse import warehouse
from orchestration.warehouse.build import arguments, run_dbt
from orchestration.warehouse.lineage import select_marts
from orchestration.warehouse.publish import DRAFT, categorical_columns, kinds_for_arrow, point

#: The lock for changing the history.
LOCK: Final = ".history.lock"


def features_of(days: Sequence[date], where: Settings | None = None) -> dict[str, dict[str, int]]:
    """Build the feature marts as of the end of each of these UTC days; returns rows by day and mart. They are built in a copy of the warehouse, so
    the warehouse and the published marts are unchanged. Raises FinegrainError if a day does not pass its tests; that day then stays as it was."""
    where = where or settings()
    with one_at_a_time(where.published / LOCK):
        _tidy(where.published)
    with scratch(where.published, DRAFT) as folder:
        copy = replace(where, warehouse=folder / "warehouse.duckdb")
        if where.warehouse.exists():
            with duckdb.connect() as con:
                warehouse.attach(con, where.warehouse)  # it cannot be written while it is attached
                shutil.copyfile(where.warehouse, copy.warehouse)
        return {day.isoformat(): _features(day, copy, folder) for day in sorted(days)}


def _features(day: date, where: Settings, folder: Path) -> dict[str, int]:
    # Leave out tests that also read marts outside the selection, which have another as_of.
    selected = [f"+{each}" for each in select_marts()]
    asked = [*arguments(where), "--select", *selected, "--indirect-selection", "buildable"]
    done = run_dbt(asked, where=where, moment=(day + timedelta(days=1)).isoformat())
    if not done.passed:
        named = ", ".join(node.name for node in done.failed)
        raise FinegrainError(f"the features of {day} did not pass their tests, so that day was not replaced: {named}")
    draft = folder / "day"
    draft.mkdir()
    rows = {}
    with duckdb.connect(config=warehouse.limits(folder / "spill")) as con:
        warehouse.attach(con, where.warehouse)
        declared_names = {each.name for each in declared()}
        marts = [node.name for node in done.nodes if node.kind == "model" and node.name in declared_names]
        categorical = categorical_columns()
        for mart in marts:
            # Without the snapshot: rebuilding a day must give the same file.
            query = f"select * exclude (built_from) from warehouse.marts.{identifier(mart)}"
            kinds = kinds_for_arrow(con, query, sorted(categorical.get(mart, ())), draft)
            [(rows[mart],)] = con.execute(
                f"copy ({query}) to {quote(str(draft / f'{mart}.parquet'))} (format parquet, compression zstd, {kinds})"
            ).fetchall()
    with one_at_a_time(where.published / LOCK):
        _put(draft, where.published, f"day={day.isoformat()}")
    return rows


def _put(draft: Path, published: Path, day: str) -> None:
    """Move a finished day into the history. One process at a time."""
    newest = _tidy(published)
    link, tree = published / "history", published / ".history" / str(newest + 1)
    if link.exists():
        shutil.copytree(link, tree, copy_function=os.link, ignore=shutil.ignore_patterns(day, ".*"))
    tree.mkdir(parents=True, exist_ok=True)
    draft.rename(tree / day)
    point(link, tree.relative_to(published))


def remove_rows(ids: Sequence[str], where: Settings) -> int:
    """Write the history again without the rows of these customers and sessions, and remove its former versions. Returns the number of rows
    removed."""
    link = where.published / "history"
    with one_at_a_time(where.published / LOCK), scratch(where.published, DRAFT) as folder:
        newest = _tidy(where.published)
        if not link.exists():
            return 0
        tree, removed = folder / "history", 0
        categorical = categorical_columns()
        with duckdb.connect(config=warehouse.limits(folder / "spill")) as con:
            for file in sorted(link.glob("*/*.parquet")):
                copy = tree / file.parent.name / file.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                removed += _without(con, file, copy, ids, categorical.get(file.stem, set()))
        if removed:
            trees = where.published / ".history"
            tree.rename(trees / str(newest + 1))
            point(link, (trees / str(newest + 1)).relative_to(where.published))
        for former in (where.published / ".history").iterdir():
            if former.resolve() != link.resolve():
                shutil.rmtree(former)
        return removed


def _without(con: duckdb.DuckDBPyConnection, file: Path, copy: Path, ids: Sequence[str], categorical: set[str]) -> int:
    """Copy a mart without the rows that have one of these ids in a column of ids; how many these were."""
    source = f"read_parquet({quote(str(file))}, hive_partitioning = false)"
    names = [str(name) for name, *_ in con.execute(f"describe from {source}").fetchall()]
    keys = [identifier(name) for name in names if name in ("customer_id", "session_id")]
    theirs = " or ".join(f"coalesce({key} in (select unnest($ids::varchar[])), false)" for key in keys) or "false"
    [(rows,)] = con.execute(
        f"select count(*) from {source} where {theirs}", {"ids": list(ids)} if keys else {}
    ).fetchall()
    if not rows:
        os.link(file, copy)
        return 0
    kinds = kinds_for_arrow(con, f"from {source}", sorted(categorical), copy.parent)
    con.execute(
        f"copy (from {source} where not ({theirs})) to {quote(str(copy))} (format parquet, compression zstd, {kinds})",
        {"ids": list(ids)},
    )
    return int(rows)


def _tidy(published: Path) -> int:
    """Remove leftovers of killed processes, and all previous versions but the last, which readers may still use. Returns the number of the
    current version. A history from before there was a link becomes version 0."""
    link, trees = published / "history", published / ".history"
    first = trees / "0"
    if link.is_dir() and not link.is_symlink():
        trees.mkdir(exist_ok=True)
        link.rename(first)
    if first.exists() and not link.exists():  # a process was killed between these steps
        point(link, first.relative_to(published))
    newest = int(link.readlink().name) if link.is_symlink() else -1
    numbers = {int(tree.name) for tree in trees.glob("*")}
    for number in numbers - {newest, max((each for each in numbers if each < newest), default=newest)}:
        shutil.rmtree(trees / str(number), ignore_errors=True)
    return newest
