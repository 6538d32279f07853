"""The warehouse, `warehouse.duckdb`: written by builds, and readable by others only while no build runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import duckdb

from orchestration.config.settings import Environment, variable
from orchestration.errors import FinegrainError
from orchestration.sql.text import identifier, quote


def limits(spill: Path) -> dict[str, Any]:
    """DuckDB settings for work on whole tables: the memory limit `FINEGRAIN_MEMORY`, and the folder for spilling."""
    return {
        "memory_limit": Environment.read().memory,
        "temp_directory": str(spill),
        "preserve_insertion_order": False,
    }


def must_exist(warehouse: Path) -> None:
    """Raises FinegrainError when there is no warehouse."""
    if not warehouse.exists():
        raise FinegrainError(f"{warehouse} does not exist; run `finegrain build` first")


def attach(con: duckdb.DuckDBPyConnection, warehouse: Path) -> None:
    """Attach the warehouse read-only as `warehouse`; nobody can write to it while it is attached.

    Raises FinegrainError if it does not exist, or is being written.
    """
    must_exist(warehouse)
    try:
        con.execute(f"attach {quote(str(warehouse))} as warehouse (read_only)")
    except duckdb.IOException as error:
        if "lock" in str(error).lower():
            raise FinegrainError(f"{warehouse} is being written by another process; wait until it has ended") from None
        raise FinegrainError(f"{warehouse} cannot be opened: {str(error).splitlines()[0]}") from None


def places(con: duckdb.DuckDBPyConnection, database: str, names: Iterable[str]) -> dict[str, str]:
    """Quoted schema and name, by name, of tables of a warehouse that is attached as `database`. Raises FinegrainError if one is missing."""
    asked = sorted(names)
    found = dict(
        con.execute(
            "select table_name, table_schema from information_schema.tables where table_catalog = $database and list_contains($names, table_name)",
            {"database": database, "names": asked},
        ).fetchall()
    )
    if missing := next((name for name in asked if name not in found), None):
        raise FinegrainError(f"the warehouse has no {missing}; run `finegrain build` first")
    return {name: f"{identifier(schema)}.{identifier(name)}" for name, schema in found.items()}


def last_build(con: duckdb.DuckDBPyConnection, warehouse: Path) -> int:
    """The lake snapshot of the last build of an attached warehouse. Raises FinegrainError if it did not pass."""
    rows: list[Any] = []
    with contextlib.suppress(duckdb.Error):
        rows = con.execute(
            "select status, built_from from warehouse.main.builds order by number desc nulls last limit 1"
        ).fetchall()
    if not rows or rows[0][0] != "passed":
        raise FinegrainError(f"the last build of {warehouse} did not pass; run `finegrain build` first")
    return int(rows[0][1])


def last_arrival(con: duckdb.DuckDBPyConnection, database: str = "warehouse") -> datetime | None:
    """The last moment that the built events know of, in UTC; None if there are none. `database`: the name by which the warehouse is attached."""
    [(moment,)] = con.execute(
        f"select max(greatest(raw_available_at, event_at)) from {database}.main.int_events__validated where verdict = 'kept'"
    ).fetchall()
    return cast(datetime | None, moment)


def last_change(con: duckdb.DuckDBPyConnection, database: str = "warehouse") -> datetime | None:
    """The last moment at which the built events changed, in UTC: when one arrived, or was replaced by another or by a later state of its order; None if there
    are none. What replaces them may be dated in the future, and does not count then."""
    [(moment,)] = con.execute(
        "select max(case when verdict = 'kept' then greatest(raw_available_at, event_at) when kept_until <= $now then kept_until end) "
        f"from {database}.main.int_events__validated",
        {"now": datetime.now(UTC).replace(tzinfo=None)},
    ).fetchall()
    return cast(datetime | None, moment)


def stale_rates(con: duckdb.DuckDBPyConnection, events: str) -> str | None:
    """A sentence about rows that were converted by an old exchange rate, and the fix; None if there are none."""
    [(rows, since)] = con.execute(
        f"select count(*), min(event_day) from {events} where list_contains(warnings, 'stale_exchange_rate')"
    ).fetchall()
    if not rows:
        return None
    days = variable("fx_stale_days", 7)
    return (
        f"{rows:,} rows since {since} were converted by an exchange rate that was more than {days} days old: run finegrain rates update, "
        "then finegrain build"
    )
