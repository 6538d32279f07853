"""The lake: raw, immutable, append-only tables in DuckLake. One place opens it, for the loader and for dbt alike."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import duckdb
from duckdb_extensions import import_extension

from orchestration.contracts import RAW_TABLES, columns
from orchestration.errors import FinegrainError
from orchestration.locks import one_at_a_time
from orchestration.settings import Settings, settings

EXTENSIONS = ("sqlite_scanner", "ducklake")

#: The lake's own tables beside the raw ones: what has been loaded, so that a file is not loaded twice by accident; how far each
#: source has been read (orchestration/positions.py); what could not be landed, whole (orchestration/stream/); and of databases and
#: APIs, which rows are gone and how their tables looked (orchestration/ingest.py).
BOOKS: Final[dict[str, str]] = {
    "loads": (
        "source varchar, raw_table varchar, file varchar, fingerprint varchar, row_count bigint, loaded_at timestamp"
    ),
    "positions": (
        "source varchar, place varchar, part varchar, position varchar, incarnation varchar, owner varchar, "
        "moved_at timestamp"
    ),
    "dead_letters": (
        "_source varchar, _position varchar, raw_table varchar, place varchar, part varchar, position varchar, "
        "payload blob, key blob, headers varchar, rule_id varchar, error varchar, sent_at timestamp, "
        "_ingested_at timestamp"
    ),
    "deletions": (
        "_source varchar, _position varchar, raw_table varchar, row_key varchar, contract_key varchar, "
        "deleted_at timestamp, _ingested_at timestamp, available_at timestamp"
    ),
    "schemas": "source varchar, place varchar, part varchar, columns varchar, seen_at timestamp",
    "replayed": "_source varchar, _position varchar, replayed_at timestamp",
}


def load_extensions(con: duckdb.DuckDBPyConnection) -> None:
    """Install (from wheels, offline) and load the DuckDB extensions the lake needs."""
    for name in EXTENSIONS:
        import_extension(name, con=con)
        con.execute(f"load {name}")


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def attach(con: duckdb.DuckDBPyConnection, where: Settings | None = None, *, read_only: bool = False) -> None:
    """Attach the lake as `lake` and, unless read-only, make sure that all raw tables exist. Raises FinegrainError
    where it cannot be opened or written; a catalogue that others keep busy is a duckdb.Error still."""
    where = where or settings()
    read_only = read_only and where.lake_catalog.exists()
    try:
        _attach(con, where, read_only)
    except OSError as error:
        raise FinegrainError(
            f"{error.filename or where.lake_catalog}: the lake cannot be kept here: {error.strerror}"
        ) from None
    except (duckdb.Error, sqlite3.Error) as error:
        if busy(error):
            raise
        said = str(error).splitlines()[0]
        raise FinegrainError(f"{where.lake_catalog}: the lake does not open: {said}") from None
    con.execute("set timezone = 'UTC'")
    if not read_only:
        _create_tables(con, where)


def _attach(con: duckdb.DuckDBPyConnection, where: Settings, read_only: bool) -> None:
    load_extensions(con)
    new = not where.lake_catalog.exists()
    where.lake_catalog.parent.mkdir(parents=True, exist_ok=True)
    where.lake_data.mkdir(parents=True, exist_ok=True)
    if new:
        # SQLite's default journal lets readers and writers stall each other by whole seconds.
        with sqlite3.connect(where.lake_catalog) as catalog:
            catalog.execute("pragma journal_mode=wal")
    options = f"data_path {quote(str(where.lake_data) + '/')}, meta_journal_mode 'WAL', meta_busy_timeout 10000"
    if read_only:
        options += ", read_only"
    con.execute(f"attach {quote('ducklake:sqlite:' + str(where.lake_catalog))} as lake ({options})")


def _create_tables(con: duckdb.DuckDBPyConnection, where: Settings) -> None:
    present = {
        row[0]
        for row in con.execute(
            "select table_name from duckdb_tables() where database_name = 'lake' and schema_name = 'raw'"
        ).fetchall()
    }
    shapes = {
        table: ", ".join(f'"{name}" {kind}' for name, kind in columns(table).items()) for table in RAW_TABLES
    } | BOOKS
    if not shapes.keys() - present:
        return
    with writing(con, where):
        con.execute("create schema if not exists lake.raw")
        for table, fields in shapes.items():
            con.execute(f"create table if not exists lake.raw.{table} ({fields})")


@contextmanager
def writing(con: duckdb.DuckDBPyConnection, where: Settings) -> Iterator[None]:
    """A transaction that writes: all inside lands together or not at all. A SQLite catalogue refuses whoever began before
    another's commit, so there writers queue at a lock file, which also ends with its process."""
    with one_at_a_time(where.lake_catalog.with_name("write.lock")), transaction(con):
        yield


@contextmanager
def transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Everything inside lands together or not at all."""
    con.execute("begin")
    try:
        yield
    except BaseException:
        con.execute("rollback")
        raise
    con.execute("commit")


def busy(error: Exception) -> bool:
    """Whether an error says only that another writer was there first."""
    return "locked" in str(error) or "conflict" in str(error).lower()


def retry(work, attempts: int = 8):  # type: ignore[no-untyped-def]
    """Run `work()` again, with jitter, when two writers met in the catalogue."""
    for attempt in range(attempts):
        try:
            return work()
        except (duckdb.TransactionException, duckdb.IOException) as error:
            if not busy(error) or attempt == attempts - 1:
                raise
            time.sleep(random.uniform(0.05, 0.2) * 2**attempt)


def connect(where: Settings | None = None, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the lake attached as `lake`."""
    where = where or settings()
    try:
        where.extensions.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinegrainError(f"{error.filename}: DuckDB's extensions cannot be kept here: {error.strerror}") from None
    con = duckdb.connect(config={"extension_directory": str(where.extensions)})
    attach(con, where, read_only=read_only)
    return con
