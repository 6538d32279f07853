"""Publish what the audit has passed: the marts, as one DuckDB file and as Parquet, put in place by one rename.

    published/
      finegrain.duckdb -> current/finegrain.duckdb      what BI tools open
      parquet          -> current/parquet               one file a mart
      current          -> versions/<snapshot>-<build>   the link that a publish swaps
      versions/                                         the newest ones; an open reader keeps the file it opened

A version is written whole beside the others before the link moves, so a reader sees the old marts or the new ones.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import duckdb

from orchestration import __version__, warehouse
from orchestration.errors import FinegrainError
from orchestration.lake import quote
from orchestration.landing import identifier
from orchestration.locks import one_at_a_time
from orchestration.settings import Settings, settings

DATABASE: Final = "finegrain.duckdb"
#: The schema of the warehouse whose every table and view is published.
SCHEMA: Final = "marts"
#: Versions that stay on disk: the current one, and the one before for readers that open Parquet files by name.
KEPT: Final = 2


@dataclass(frozen=True)
class Publication:
    """One version: the marts (name to rows and columns), the lake snapshot and moment they are of, and where they are.
    `is_new` is False when this very build was published before."""

    folder: Path
    marts: dict[str, tuple[int, int]]
    built_from: int
    as_of: datetime | None
    seconds: float
    is_new: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def current(where: Settings | None = None) -> Path | None:
    """The folder of the published version; None when nothing is published."""
    link = (where or settings()).published / "current"
    return link.resolve() if link.exists() else None


def marts_of(version: Path) -> dict[str, tuple[int, int]]:
    """Rows and columns of each mart of a published version, by name."""
    about = json.loads((version / "about.json").read_text("utf-8"))
    return {mart: (size["rows"], size["columns"]) for mart, size in about["marts"].items()}


def publish(where: Settings | None = None) -> Publication:
    """Publish the warehouse's marts. Raises FinegrainError, and leaves what is published as it is, unless the last thing
    that wrote to the warehouse was a whole `dbt build` whose every test passed."""
    where = where or settings()
    started = time.monotonic()
    with duckdb.connect() as con, one_at_a_time(where.published / ".lock"):
        # Attached, the warehouse cannot be written by anybody: what was audited is what is copied.
        warehouse.attach(con, where.warehouse)
        invocation, built_from, as_of = _audited(con, where.warehouse)
        name = f"{built_from}-{invocation[:8]}"
        folder = where.published / "versions" / name
        is_new = current(where) != folder.resolve() or not folder.exists()
        if is_new:
            draft = where.published / f".draft-{os.getpid()}"
            shutil.rmtree(draft, ignore_errors=True)
            try:
                _write(con, draft, invocation, built_from, as_of)
                shutil.rmtree(folder, ignore_errors=True)
                folder.parent.mkdir(exist_ok=True)
                draft.rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            _point(where.published / "current", Path("versions") / name)
            _point(where.published / DATABASE, Path("current") / DATABASE)
            _point(where.published / "parquet", Path("current") / "parquet")
            _forget(folder)
    return Publication(folder, marts_of(folder), built_from, as_of, time.monotonic() - started, is_new)


def _audited(con: duckdb.DuckDBPyConnection, path: Path) -> tuple[str, int, datetime | None]:
    """(invocation, snapshot, as_of) of the last build, if it was whole and passed (macros/builds.sql keeps the record)."""
    try:
        found = con.execute(
            "select invocation_id, command, status, is_whole, built_from, as_of from warehouse.main.builds "
            "order by opened_at desc limit 1"
        ).fetchall()
    except duckdb.CatalogException:
        found = []
    if not found:
        raise FinegrainError(f"{path} holds no build; run `finegrain build` first")
    invocation, command, status, is_whole, built_from, as_of = found[0]
    kept = "what is published stays as it is"
    if status == "open":
        raise FinegrainError(f"the last `dbt {command}` did not end; {kept}. Run `finegrain build` again")
    if status != "passed":
        failures = con.execute(
            "select node, failures, kept_in from warehouse.main.build_failures where invocation_id = ? order by node",
            [invocation],
        ).fetchall()
        named = "".join(
            f"\n  {node}" + (f": {count} rows, kept in {table}" if table else "") for node, count, table in failures
        )
        raise FinegrainError(f"the last build did not pass its audit; {kept}. What failed:{named}")
    if not is_whole:
        raise FinegrainError(
            f"the last `dbt {command}` changed the warehouse without a whole audit; {kept}. Run `finegrain build`"
        )
    return str(invocation), int(built_from), as_of


def _write(
    con: duckdb.DuckDBPyConnection, draft: Path, invocation: str, built_from: int, as_of: datetime | None
) -> None:
    """Write one version into `draft`: the marts with their descriptions, twice, and a note about them."""
    (draft / "parquet").mkdir(parents=True)
    found = con.execute(
        "select table_name, comment from duckdb_tables() where database_name = 'warehouse' and schema_name = $schema "
        "union all select view_name, comment from duckdb_views() where database_name = 'warehouse' "
        "and schema_name = $schema order by 1",
        {"schema": SCHEMA},
    ).fetchall()
    con.execute(f"attach {quote(str(draft / DATABASE))} as published")
    marts: dict[str, dict[str, int]] = {}
    for mart, comment in found:
        table = f"published.main.{identifier(mart)}"
        con.execute(f"create table {table} as from warehouse.{identifier(SCHEMA)}.{identifier(mart)}")
        _describe(con, str(mart), table, comment)
        parquet = quote(str(draft / "parquet" / f"{mart}.parquet"))
        con.execute(f"copy {table} to {parquet} (format parquet, compression zstd)")
        [(rows,)] = con.execute(f"select count(*) from {table}").fetchall()
        marts[str(mart)] = {"rows": int(rows), "columns": len(con.execute(f"from {table} limit 0").description or [])}
    con.execute("detach published")
    about = {
        "built_from": built_from,
        "as_of": as_of,
        "invocation_id": invocation,
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "finegrain": __version__,
        "marts": marts,
    }
    (draft / "about.json").write_text(json.dumps(about, indent=2, default=str) + "\n", "utf-8")
    for path in (draft, draft / DATABASE):
        _sync(path)


def _describe(con: duckdb.DuckDBPyConnection, mart: str, table: str, comment: str | None) -> None:
    """Carry the descriptions over, so that a BI tool shows them."""
    if comment:
        con.execute(f"comment on table {table} is {quote(comment)}")
    columns = con.execute(
        "select column_name, comment from duckdb_columns() where database_name = 'warehouse' and schema_name = ? "
        "and table_name = ? and comment is not null",
        [SCHEMA, mart],
    ).fetchall()
    for column, text in columns:
        con.execute(f"comment on column {table}.{identifier(column)} is {quote(text)}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, in one step."""
    draft = link.with_name(f".{link.name}-{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)


def _forget(newest: Path) -> None:
    """Remove old versions. A reader that has one open keeps it: the file lives as long as somebody holds it."""
    versions = sorted(newest.parent.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    others = [folder for folder in versions if folder != newest]
    for folder in others[KEPT - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
