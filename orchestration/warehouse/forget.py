"""Forgetting people in the warehouse: a new file, in which the next build starts from scratch.

Everything in the warehouse follows from the lake, except the history that snapshots keep. It is copied without the people. A new file also has no
free blocks with former rows, which DuckDB does not overwrite.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import duckdb

from orchestration.config.settings import Settings
from orchestration.sql.text import identifier, quote
from orchestration.warehouse import warehouse

#: The schema of the snapshots.
SNAPSHOTS: Final = "snapshots"


def renew(where: Settings, ids: Sequence[str]) -> int:
    """Put a new warehouse in the place of the old one, with the snapshots' rows of all but these customers and login ids, and the record of builds.
    Returns how many rows of snapshots were left out. Raises FinegrainError if there is no warehouse, or a build is writing it."""
    draft = where.warehouse.with_name(f".forget-{where.warehouse.name}")
    removed = 0
    with duckdb.connect(config=warehouse.limits(where.home / "spill")) as con:
        warehouse.attach(con, where.warehouse)  # nobody can write to it until it is replaced
        for left in (draft, _log(draft)):
            left.unlink(missing_ok=True)
        con.execute(f"attach {quote(str(draft))} as draft")
        for schema, table in con.execute(
            "select schema_name, table_name from duckdb_tables() where database_name = 'warehouse' "
            f"and (schema_name = {quote(SNAPSHOTS)} or (schema_name = 'main' and table_name = 'builds'))"
        ).fetchall():
            con.execute(f"create schema if not exists draft.{identifier(schema)}")
            removed += _copy(con, f"{identifier(schema)}.{identifier(table)}", ids)
        con.execute("detach draft")
        draft.replace(where.warehouse)
        _log(where.warehouse).unlink(missing_ok=True)
    return removed


def _log(file: Path) -> Path:
    return file.with_name(f"{file.name}.wal")


def _copy(con: duckdb.DuckDBPyConnection, table: str, ids: Sequence[str]) -> int:
    if table.endswith('"builds"'):
        # Nothing may be published, and no build may be skipped, until a build has filled it again.
        con.execute(
            f"create table draft.{table} as select * replace (null::varchar as inputs, "
            f"case when number = max(number) over () then 'open' else status end as status) from warehouse.{table}"
        )
        return 0
    con.execute(f"create table draft.{table} as from warehouse.{table} limit 0")
    keys = [
        identifier(name)
        for (name,) in con.execute(f"select column_name from (describe draft.{table})").fetchall()
        if name in ("customer_id", "user_id")
    ]
    theirs = " or ".join(f"coalesce({key} in (select unnest($ids::varchar[])), false)" for key in keys)
    [(before,)] = con.execute(f"select count(*) from warehouse.{table}").fetchall()
    kept, given = (f"where not ({theirs})", {"ids": list(ids)}) if keys else ("", {})
    [(after,)] = con.execute(f"insert into draft.{table} from warehouse.{table} {kept}", given).fetchall()
    return int(before) - int(after)
