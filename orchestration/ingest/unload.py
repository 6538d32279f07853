"""`finegrain unload`: remove the rows of a source, of one of its tables, or of some of its files.

In one transaction, every live row is recorded as deleted by its position, and the load records of its files are removed. So the files can be
loaded again, and the ledger still accounts for every row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import duckdb

from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError
from orchestration.ingest import deliveries
from orchestration.lake import lake, shop
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.mapping.mapping import nearest
from orchestration.sql.text import quote, timestamp_literal


@dataclass
class Unloaded:
    """Removed rows of one raw table. `came_by` is the command that loaded them; `file` is null for `ingest` and `stream`."""

    table: str
    file: str | None
    came_by: str
    rows: int


@dataclass
class UnloadReport:
    """The result of an unload. `snapshot` is the lake's newest after it; `seconds` is wall time."""

    source: str
    parts: list[Unloaded]
    snapshot: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows removed."""
        return sum(part.rows for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "rows": self.rows}


def unload(
    what: str, files: Sequence[str] = (), *, where: Settings | None = None, now: datetime | None = None
) -> UnloadReport:
    """Remove the rows of `what`, a source or `source.table`, or only of these `files`, named as the load reported them. `now` (naive UTC)
    replaces the clock. Raises FinegrainError, also for unknown names; nothing is changed then."""
    where = where or settings()
    started = time.monotonic()
    source, _, table = what.partition(".")
    if not lake.exists(where):
        raise FinegrainError(f"{where.lake_catalog}: there is no lake here, so there is nothing to unload")
    # No load or ingest may land rows between the query and the deletions.
    with lake.exclusive(where, "load"), lake.exclusive(where, f"ingest {source}"):
        con = lake.connect(where)
        try:
            with lake.reading(where):
                loads = deliveries.Loads(con, source)
                tables = _tables(con, source, table, loads)
                _check_files(what, tables, files, loads)
                report = UnloadReport(
                    source, [part for each in tables for part in _find(con, source, each, files, loads)]
                )
            moment = now or datetime.now(UTC).replace(tzinfo=None)
            is_whole = not table and not files
            lake.retry(lambda: _take_back(con, where, source, tables, files, moment, is_whole=is_whole))
            [(report.snapshot,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
        finally:
            con.close()
    kinds = {part.came_by for part in report.parts}
    if "ingest" in kinds:
        report.notes.append("to load rows of databases and APIs again, run `finegrain ingest MAPPING --from-beginning`")
    if "stream" in kinds:
        report.notes.append(
            "positions of streams are unchanged; to load their rows again, run `finegrain stream MAPPING --from-beginning`"
        )
    report.seconds = time.monotonic() - started
    return report


def _tables(con: duckdb.DuckDBPyConnection, source: str, table: str, loads: deliveries.Loads) -> list[str]:
    """The raw tables to unload."""
    found = con.execute(
        " union ".join(f"select distinct _source, {quote(name)} from lake.raw.{name}" for name in RAW_TABLES)
    ).fetchall()
    there = {(str(of), str(name)) for of, name in found} | {(source, each.table) for each in loads.all}
    # A source without rows may still have shop settings.
    said = con.execute("select distinct source from lake.raw.shop").fetchall()
    sources = sorted({of for of, _ in there} | {str(of) for (of,) in said})
    if source not in sources:
        raise FinegrainError(f"{source}: the lake has no such source" + nearest(source, sources))
    tables = [name for name in RAW_TABLES if (source, name) in there]
    if table and table not in tables:
        raise FinegrainError(f"{source}.{table}: the lake has no such table of {source}" + nearest(table, tables))
    return [table] if table else tables


def _check_files(what: str, tables: Sequence[str], files: Sequence[str], loads: deliveries.Loads) -> None:
    known = sorted({each.file for each in loads.all if each.table in tables})
    for file in files:
        if file not in known:
            hint = nearest(file, known) if known else "; none of its rows came from files"
            raise FinegrainError(f"--file {file}: no such file of {what} is loaded{hint}")


def _find(
    con: duckdb.DuckDBPyConnection, source: str, table: str, files: Sequence[str], loads: deliveries.Loads
) -> list[Unloaded]:
    """Fill `__unloaded_<table>` with the live rows: _position, and __last, when they landed."""
    names = {each.name: each.file for each in loads.all if each.table == table and (not files or each.file in files)}
    only = f"where __name in ({', '.join(map(quote, names)) or 'null'})" if files else ""
    con.execute(
        f"create or replace temp table __unloaded_{table} as select * from (select _position, max(_ingested_at) as __last, "
        f"regexp_replace(_position, '{deliveries.IN_FILE}', '') as __name, "
        "case when regexp_matches(_position, '@[0-9]{9}[.][0-9a-f]{16}$') then 'ingest' else 'stream' end as __kind "
        f"from lake.raw.{table} as t where _source = {quote(source)} and not {deliveries.is_deleted(table, 't')} "
        f"group by _position) {only}"
    )
    listed = ", ".join(f"({quote(name)}, {quote(file)})" for name, file in names.items()) or "(null, null)"
    found = con.execute(
        f"select file, case when file is null then __kind else 'load' end as came_by, count(*) from __unloaded_{table} "
        f"left join (values {listed}) as f(name, file) on __name = name group by all order by all"
    ).fetchall()
    return [Unloaded(table, None if file is None else str(file), str(kind), int(rows)) for file, kind, rows in found]


def _take_back(
    con: duckdb.DuckDBPyConnection,
    where: Settings,
    source: str,
    tables: Sequence[str],
    files: Sequence[str],
    now: datetime,
    *,
    is_whole: bool,
) -> None:
    """The transaction."""
    after = f"greatest({timestamp_literal(now)}, __last + interval 1 microsecond)"
    some = f" and file in ({', '.join(map(quote, files))})" if files else ""
    with lake.writing(con, where):
        if is_whole:
            shop.forget(con, source)
        for table in tables:
            deliveries.mark_deleted(con, source, table, f"__unloaded_{table}", now, after)
            con.execute(
                f"delete from lake.raw.loads where source = {quote(source)} and raw_table = {quote(table)}{some}"
            )
