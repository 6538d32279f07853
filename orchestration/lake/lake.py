"""The lake: raw, append-only tables in DuckLake. The loaders and dbt both open it through this module."""

from __future__ import annotations

import hashlib
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast
from urllib.parse import urlsplit

import duckdb
from duckdb_extensions import import_extension

from orchestration.config.settings import Environment, Settings, settings
from orchestration.errors import FinegrainError, Unavailable, console, stopping
from orchestration.lake import forgotten
from orchestration.lake.locks import one_at_a_time, scratch, soon
from orchestration.mapping.contracts import RAW_TABLES, columns
from orchestration.sql.text import identifier, quote

T = TypeVar("T")

#: Bookkeeping tables beside the raw tables: loaded files, so that none is loaded twice; positions of each source
#: (orchestration/lake/positions.py); dead letters (orchestration/ingest/stream/); deleted rows and last seen columns of databases and APIs
#: (orchestration/ingest/ingest.py); shop-wide settings of mappings (orchestration/lake/shop.py); exchange rates
#: (orchestration/ingest/rates.py); and keyed hashes of the ids of forgotten people (orchestration/lake/forgotten.py).
BOOKKEEPING: Final[dict[str, str]] = {
    "loads": (
        "source varchar, raw_table varchar, file varchar, fingerprint varchar, row_count bigint, loaded_at timestamp, "
        "position varchar, mapping varchar"
    ),
    "positions": (
        "source varchar, raw_table varchar, place varchar, part varchar, position varchar, incarnation varchar, owner varchar, "
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
    "schemas": "source varchar, place varchar, part varchar, columns varchar, seen_at timestamp, mapping varchar",
    "replayed": "_source varchar, _position varchar, raw_table varchar, letter_at timestamp, replayed_at timestamp",
    "shop": "source varchar, setting varchar, value varchar, mapping varchar, said_at timestamp",
    # No space in the type: table_columns splits at spaces.
    "exchange_rates": "rate_date date, currency varchar, per_euro decimal(18,8), origin varchar, _ingested_at timestamp",
    "forgotten": "kind varchar, hash varchar, forgotten_at timestamp",
}

#: SQL: whether the dead letter `d` has not been replayed. A message that is read again (--from-beginning) is a new dead letter.
IS_WAITING: Final = (
    "not exists (select 1 from lake.raw.replayed as r where r._source = d._source and r._position = d._position "
    "and r.raw_table = d.raw_table and r.letter_at = d._ingested_at)"
)


def table_columns(table: str) -> dict[str, str]:
    """The columns of a raw or bookkeeping table, in order: name to DuckDB type."""
    if table in RAW_TABLES:
        return columns(table)
    return {name: kind.upper() for name, kind in (column.split() for column in BOOKKEEPING[table].split(", "))}


def extensions(where: Settings) -> list[str]:
    """The DuckDB extensions this lake needs."""
    catalog = "sqlite_scanner" if isinstance(where.lake_catalog, Path) else "postgres_scanner"
    return [catalog, *([] if isinstance(where.lake_data, Path) else ["httpfs"]), "ducklake"]


def extension_options(where: Settings) -> dict[str, str | bool | int | float | list[str]]:
    """DuckDB options for extensions: only signed ones load, and none is downloaded. Otherwise unchecked code could run from a folder that the
    user can write to."""
    return {
        "extension_directory": str(where.extensions),
        "allow_unsigned_extensions": False,
        "autoinstall_known_extensions": False,
    }


def load_extensions(con: duckdb.DuckDBPyConnection, where: Settings) -> None:
    """Install (from wheels, offline) and load the DuckDB extensions the lake needs."""
    for name in extensions(where):
        import_extension(name, con=con)
        con.execute(f"load {name}")


#: Extension files whose signature DuckDB has checked in this process, by folder and extension: the file, and its state for noticing changes.
_CHECKED: Final[dict[tuple[Path, str], tuple[Path, tuple[int, ...]]]] = {}


def _state(file: Path) -> tuple[int, ...]:
    about = file.stat()
    return (about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def _check_extensions(where: Settings) -> None:
    """Have DuckDB check the signatures of this lake's extensions, once per process and again when a file has changed. The check reads whole
    files and would cost each connection a quarter of a second."""
    for name in extensions(where):
        file, state = _CHECKED.get((where.extensions, name), (None, None))
        if file is None or not file.exists() or _state(file) != state:
            break
    else:
        return
    with duckdb.connect(config=extension_options(where)) as con:
        load_extensions(con, where)
        for name, path in con.execute(
            "select extension_name, install_path from duckdb_extensions() where list_contains(?, extension_name)",
            [extensions(where)],
        ).fetchall():
            _CHECKED[where.extensions, name] = (Path(path), _state(Path(path)))


def places(where: Settings) -> list[Path]:
    """The lake's local paths, which must be writable for a load."""
    catalog = [where.lake_catalog.parent, where.lake_catalog] if isinstance(where.lake_catalog, Path) else []
    return catalog + ([where.lake_data] if isinstance(where.lake_data, Path) else [])


def attach(con: duckdb.DuckDBPyConnection, where: Settings | None = None, *, read_only: bool = False) -> None:
    """Attach the lake as `lake` and, unless read-only, create missing tables. Raises FinegrainError if it cannot be opened or written, and
    duckdb.Error if other writers keep the catalogue locked."""
    where = where or settings()
    with _readable_errors(where):
        load_extensions(con, where)
        if isinstance(where.lake_data, str):
            _open_store(con, where.lake_data)
        read_only = read_only and _exists(con, where)
        # If two processes create a lake at the same time, the second one retries and finds it.
        retry(lambda: _attach(con, where, read_only))
    if isinstance(where.lake_data, Path):
        _check_data_folder(con, where, where.lake_data)
    con.execute("set timezone = 'UTC'")
    present = _columns(con)
    for table, names in present.items():
        if missing := [name for name in table_columns(table) if name not in names]:
            con.execute("detach lake")
            raise FinegrainError(
                f"{where.lake_catalog}: this lake was created by an earlier version of finegrain: its table {table} has no "
                f"{', '.join(missing)}; set FINEGRAIN_HOME to a new folder and load the data again"
            )
    if not read_only and len(present) < len(RAW_TABLES) + len(BOOKKEEPING):
        retry(lambda: _create_tables(con, where))


#: Copies a SQLite file consistently. It runs in a process of its own, because two SQLite libraries in one process break each other's locks.
_COPIER: Final = """
import sqlite3, sys
lake, copy = (sqlite3.connect(name, timeout=60) for name in sys.argv[1:])
lake.backup(copy)
copy.close()
"""


def attach_copy(con: duckdb.DuckDBPyConnection, where: Settings, folder: Path) -> None:
    """Attach a consistent view of the lake for long reads, while others write and compact. With a SQLite catalogue this is a copy of the
    catalogue in `folder`, because there even a transaction does not see a single snapshot (see `reading`). Creates the lake if there is none.
    Raises FinegrainError."""
    if isinstance(where.lake_catalog, str):
        attach(con, where)
        return
    connect(where).close()
    copy = folder / "catalog.sqlite"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _COPIER, str(where.lake_catalog), str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["the copy was stopped"])[-1]
        raise FinegrainError(f"{where.lake_catalog}: cannot copy the catalogue to {copy} for the build: {reason}")
    attach(con, replace(where, lake_catalog=copy), read_only=True)


@contextmanager
def _readable_errors(where: Settings) -> Iterator[None]:
    """Turn errors of opening the lake into FinegrainError."""
    try:
        yield
    except OSError as error:
        raise FinegrainError(
            f"{error.filename or where.lake_catalog}: the lake cannot be stored here: {error.strerror}"
        ) from None
    except (duckdb.Error, sqlite3.Error) as error:
        if busy(error):
            raise
        if isinstance(where.lake_catalog, Path):
            raise FinegrainError(f"{where.lake_catalog}: cannot open the lake: {str(error).splitlines()[0]}") from None
        reason = str(error).strip().splitlines()[0].rpartition("Unable to connect to Postgres at ")[2]
        hint = "; set the password in PGPASSWORD" if "password" in reason else ""
        raise (Unavailable if is_outage(error) else FinegrainError)(
            f"FINEGRAIN_LAKE_CATALOG is {where.lake_catalog}: cannot open the lake: "
            f"{reason.removeprefix(_quoted(where.lake_catalog))}{hint}"
        ) from None


def _quoted(catalog: str) -> str:
    """The prefix with which DuckDB's errors repeat a PostgreSQL catalogue."""
    return f'"{catalog.removeprefix("postgres:")}": '


def exists(where: Settings) -> bool:
    """Whether the lake exists. Creates nothing. Raises FinegrainError if its catalogue does not respond."""
    if isinstance(where.lake_catalog, Path):
        return where.lake_catalog.exists()
    con = _engine(where)
    try:
        with _readable_errors(where):
            return _exists(con, where)
    finally:
        con.close()


def _exists(con: duckdb.DuckDBPyConnection, where: Settings) -> bool:
    if isinstance(where.lake_catalog, Path):
        return where.lake_catalog.exists()
    with _database(con, where.lake_catalog):
        return bool(
            con.execute(
                "select 1 from duckdb_tables() where database_name = 'catalogue' and table_name = 'ducklake_metadata'"
            ).fetchall()
        )


@contextmanager
def _database(con: duckdb.DuckDBPyConnection, catalog: str) -> Iterator[None]:
    """Attach the PostgreSQL database of a catalogue as `catalogue`."""
    con.execute(f"attach {quote(catalog.removeprefix('postgres:'))} as catalogue (type postgres)")
    try:
        yield
    finally:
        con.execute("detach catalogue")


@contextmanager
def catalogue(where: Settings) -> Iterator[tuple[duckdb.DuckDBPyConnection, list[str]]]:
    """A connection with the catalogue's database attached, and the names of DuckLake's tables in it, quoted. Raises FinegrainError."""
    con = _engine(where)
    try:
        with ExitStack() as held:
            held.enter_context(_readable_errors(where))
            if isinstance(where.lake_catalog, str):
                held.enter_context(_database(con, where.lake_catalog))
            else:
                con.execute("set sqlite_all_varchar = true")
                con.execute(f"attach {quote(str(where.lake_catalog))} as catalogue (type sqlite, read_only)")
            found = con.execute(
                "select schema_name, table_name from duckdb_tables() where database_name = 'catalogue' "
                "and starts_with(table_name, 'ducklake_') order by all"
            ).fetchall()
            yield con, [f"{identifier(schema)}.{identifier(table)}" for schema, table in found]
    finally:
        con.close()


def vacuum(where: Settings) -> None:
    """Have PostgreSQL write the tables of the catalogue again, without what was deleted. Raises FinegrainError if it does not respond, or refuses."""
    with catalogue(where) as (con, tables):
        for table in tables:
            # It cannot run in a transaction.
            con.execute(
                f"call postgres_execute('catalogue', {quote(f'vacuum full {table}')}, use_transaction => false)"
            )


#: Open transactions on a PostgreSQL catalogue, without those that only hold a lock (`exclusive`).
_OPEN: Final = (
    "select pid, xact_start::text from pg_stat_activity where datname = current_database() and xact_start is not null and pid <> pg_backend_pid() "
    "and pid not in (select l.pid from pg_locks as l where l.locktype = 'advisory' and l.granted)"
)


def settle(where: Settings, seconds: float = 600) -> None:
    """Wait until all transactions that are open now on a PostgreSQL catalogue have ended: those that begin later know what was committed before. With
    SQLite, writers queue, so there are none. Raises FinegrainError if they take longer."""
    if isinstance(where.lake_catalog, Path):
        return
    until = time.monotonic() + seconds
    with catalogue(where) as (con, _):

        def open_now() -> set[tuple[Any, ...]]:
            return set(con.execute(f"select * from postgres_query('catalogue', {quote(_OPEN)})").fetchall())

        before = open_now()
        while before & open_now():
            if time.monotonic() > until:
                raise FinegrainError(
                    f"transactions on the lake's catalogue are open for {seconds / 60:.0f} minutes and may still write rows; end them "
                    "(pg_stat_activity), and run this again"
                )
            time.sleep(0.2)


#: The advisory locks this process holds in PostgreSQL catalogues, by home: the connections whose transactions hold them.
_HELD: Final[dict[Settings, list[duckdb.DuckDBPyConnection]]] = {}


@contextmanager
def exclusive(where: Settings, work: str) -> Iterator[None]:
    """Hold an exclusive lock on some work on the lake; others wait. The lock is kept with the catalogue (a file beside SQLite, an advisory lock
    in PostgreSQL), so it also works across homes and machines. A process that loses it, because its connection broke, cannot commit
    (`writing`). Raises FinegrainError as `attach` does."""
    # `work` contains names from a mapping, which may not be valid in a file name.
    name = f"{work.partition(' ')[0]}-{hashlib.md5(work.encode()).hexdigest()[:12]}"

    def on_wait() -> None:
        console.say(f"waiting for another finegrain process that holds the lock on this lake: {work}")

    if isinstance(where.lake_catalog, Path):
        with one_at_a_time(where.lake_catalog.with_name(f"{name}.lock"), on_wait=on_wait):
            yield
        return
    con = _engine(where)
    held = _HELD.setdefault(where, [])
    try:
        with _readable_errors(where):
            con.execute(f"attach {quote(where.lake_catalog.removeprefix('postgres:'))} as catalogue (type postgres)")
            # The lock lives as long as the transaction, which ends with this process. Without these settings the server may end an idle
            # transaction, and would not notice that a client machine was switched off.
            con.execute("begin")
            for statement in (
                "set local idle_in_transaction_session_timeout = 0",
                "set local tcp_keepalives_idle = 30",
            ):
                con.execute(f"call postgres_execute('catalogue', '{statement}')")
            key = f"hashtext(''finegrain {name}'')"

            def is_free() -> bool:
                query = f"select * from postgres_query('catalogue', 'select pg_try_advisory_xact_lock({key})')"
                return bool(con.execute(query).fetchall()[0][0])

            if not soon(is_free):
                on_wait()
                con.execute(f"call postgres_execute('catalogue', 'select pg_advisory_xact_lock({key})')")
        held.append(con)
        yield
    finally:
        if con in held:
            held.remove(con)
        # DuckDB aborts the process if a connection is closed with an open transaction after its server was lost.
        with suppress(duckdb.Error):
            con.execute("rollback")
        con.close()


def _check_locks(where: Settings) -> None:
    """Raises Unavailable if a lock of this home has been lost."""
    for con in _HELD.get(where, []):
        try:
            [(holds,)] = con.execute(
                "select * from postgres_query('catalogue', 'select count(*) from pg_locks "
                "where pid = pg_backend_pid() and locktype = ''advisory'' and granted')"
            ).fetchall()
        except duckdb.Error:
            holds = 0
        if not holds:
            raise Unavailable(
                "the connection to the lake's catalogue was lost, and with it the lock on this work; "
                "nothing after the last commit has landed. Run this again"
            )


def _open_store(con: duckdb.DuckDBPyConnection, data: str) -> None:
    """Give DuckDB access to the object store with the lake's files, and check that the bucket can be read."""
    given = Environment.read()
    secrets = {
        "key_id": given.aws_access_key_id,
        "secret": given.aws_secret_access_key,
        "session_token": given.aws_session_token,
    }
    options = {name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None}
    if given.aws_region:
        options["region"] = given.aws_region
    if given.s3_endpoint:
        address = urlsplit(given.s3_endpoint)
        options |= {"endpoint": address.netloc, "url_style": "path", "use_ssl": str(address.scheme == "https").lower()}
    written = "".join(f", {name} {quote(value)}" for name, value in options.items())
    scope = quote("s3://" + urlsplit(data).netloc)
    con.execute(f"create or replace secret lake_files (type s3, scope {scope}{written})")
    try:
        # A pattern that matches nothing: a cheap request, whatever the size of the bucket.
        con.execute(f"select count(*) from glob({quote(data + '/.none*')})").fetchall()
    except duckdb.Error as error:
        reason = " ".join(str(error).partition("\n\nLINE ")[0].split())
        raise (Unavailable if is_outage(error) else FinegrainError)(
            f"FINEGRAIN_LAKE_DATA is {data}, which cannot be read: {reason}; check the address in FINEGRAIN_S3_ENDPOINT and the credentials "
            "in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
        ) from None


def _attach(con: duckdb.DuckDBPyConnection, where: Settings, read_only: bool) -> None:
    options = [f"data_path {quote(f'{where.lake_data}/')}", *(["read_only"] if read_only else [])]
    if isinstance(where.lake_data, Path):
        where.lake_data.mkdir(parents=True, exist_ok=True)
        options.append("override_data_path true")  # see _check_data_folder
    if isinstance(where.lake_catalog, str):
        address = where.lake_catalog
    else:
        address = f"sqlite:{where.lake_catalog}"
        options += ["meta_journal_mode 'WAL'", "meta_busy_timeout 10000"]
        if not where.lake_catalog.exists():
            where.lake_catalog.parent.mkdir(parents=True, exist_ok=True)
            # With SQLite's default journal, readers and writers block each other for whole seconds.
            with closing(sqlite3.connect(where.lake_catalog)) as catalog:
                catalog.execute("pragma journal_mode=wal")
    con.execute(f"attach {quote('ducklake:' + address)} as lake ({', '.join(options)})")


def _check_data_folder(con: duckdb.DuckDBPyConnection, where: Settings, data: Path) -> None:
    """Check that the data folder belongs to this catalogue, which stores a folder and file names relative to it. A home that was moved or
    copied is the same lake in another folder. A folder without the files is a mistake and must not be written to."""
    known = con.execute(
        "select value from __ducklake_metadata_lake.ducklake_metadata where key = 'data_path'"
    ).fetchall()
    if known == [(f"{data}/",)]:
        return
    newest = con.execute(
        "select s.path || t.path || f.path from __ducklake_metadata_lake.ducklake_data_file as f "
        "inner join __ducklake_metadata_lake.ducklake_table as t on f.table_id = t.table_id and t.end_snapshot is null "
        "inner join __ducklake_metadata_lake.ducklake_schema as s on t.schema_id = s.schema_id and s.end_snapshot is null "
        "where f.end_snapshot is null order by f.data_file_id desc limit 1"
    ).fetchall()
    if newest and not (data / str(newest[0][0])).exists():
        con.execute("detach lake")
        raise FinegrainError(
            f"{data}: the files of the lake in {where.lake_catalog} are not here; they were in {known[0][0]} when it was "
            "created. Set FINEGRAIN_LAKE_DATA to their folder"
        )


def _columns(con: duckdb.DuckDBPyConnection) -> dict[str, set[str]]:
    """The columns of each existing table of the lake."""
    found = con.execute(
        # Read from the catalogue's own tables: through DuckDB, all metadata of every table would be loaded.
        "select t.table_name, list(c.column_name) from __ducklake_metadata_lake.ducklake_table as t "
        "inner join __ducklake_metadata_lake.ducklake_column as c on t.table_id = c.table_id and c.end_snapshot is null "
        "where t.end_snapshot is null group by 1"
    ).fetchall()
    return {str(table): set(names) for table, names in found if table in RAW_TABLES or table in BOOKKEEPING}


def _create_tables(con: duckdb.DuckDBPyConnection, where: Settings) -> None:
    shapes = {
        table: ", ".join(f"{identifier(name)} {kind}" for name, kind in columns(table).items()) for table in RAW_TABLES
    } | BOOKKEEPING
    with writing(con, where):
        con.execute("create schema if not exists lake.raw")
        for table, fields in shapes.items():
            con.execute(f"create table if not exists lake.raw.{table} ({fields})")
        # From now on, nobody can write with another key: the same address would become another id.
        forgotten.remember(con, where, (), datetime.now(UTC).replace(tzinfo=None))


@contextmanager
def writing(con: duckdb.DuckDBPyConnection, where: Settings) -> Iterator[None]:
    """A write transaction, which knows who is forgotten. SQLite rejects a transaction that began before another one committed, so writers of a SQLite catalogue queue at a
    lock file, which is released when its process ends."""
    if isinstance(where.lake_catalog, str):
        with transaction(con):
            forgotten.refresh(con, where)
            yield
            _check_locks(where)
        return
    with one_at_a_time(where.lake_catalog.with_name("write.lock")), transaction(con):
        forgotten.refresh(con, where)
        yield


#: The catalogues for which this thread is inside `reading`.
_held = threading.local()


@contextmanager
def reading(where: Settings, *, compacting: bool = False) -> Iterator[None]:
    """Block compaction while inside, so that no rows move to other files (with `compacting`: block readers, so that compaction may run). DuckDB
    reads the file list of a SQLite catalogue in two steps, first its range and then its entries. Files that replace others in between are
    outside that range, and all their rows would be missed. Inside `writing` no rows move anyway. Do not start `writing` inside this block:
    compaction may be waiting while it holds that lock."""
    held_here = _held.__dict__.setdefault("locks", set())
    if isinstance(where.lake_catalog, str) or where.lake_catalog in held_here:
        yield
        return
    lock = where.lake_catalog.with_name("move.lock")
    # Readers share the lock. They first pass a second lock, which compaction holds while it waits; otherwise it could starve.
    door = one_at_a_time(where.lake_catalog.with_name("move.door"))
    with ExitStack() as held:
        with door:
            held.enter_context(one_at_a_time(lock, shared=not compacting))
        held_here.add(where.lake_catalog)
        held.callback(held_here.remove, where.lake_catalog)
        yield


class _Reader:
    """A read-only connection to a lake with a SQLite catalogue. None of its statements runs during compaction (see `reading`). Several
    statements that must see one snapshot need `attach_copy`."""

    def __init__(self, con: duckdb.DuckDBPyConnection, where: Settings) -> None:
        self._con, self._where = con, where

    def execute(self, *query: Any, **named: Any) -> duckdb.DuckDBPyConnection:
        with reading(self._where):
            return self._con.execute(*query, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._con.close()


#: Opens a catalogue, prints a line, and keeps it open until its standard input is closed.
_HOLDER: Final = """
import sqlite3, sys
catalog = sqlite3.connect(sys.argv[1], timeout=60)
catalog.execute("select count(*) from sqlite_master").fetchall()
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def held_open(where: Settings) -> Iterator[None]:
    """Keep a SQLite catalogue open. DuckDB opens it for every transaction, and the last one to close it removes its write-ahead log. Anyone
    who opens it meanwhile finds it locked and sleeps for a whole second, the shortest wait DuckDB's SQLite has. A separate process holds it
    open, because two SQLite libraries in one process break each other's locks."""
    if isinstance(where.lake_catalog, str):
        yield
        return
    holder = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _HOLDER, str(where.lake_catalog)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is handled by the parent
    )
    with holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()  # empty if it failed; then everything is slower, but still correct
        try:
            yield
        finally:
            holder.stdin.close()


@contextmanager
def transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """A transaction: commit at the end, roll back on any error."""
    con.execute("begin")
    try:
        yield
    except BaseException:
        with suppress(duckdb.Error):  # the connection may be lost, and with it the transaction
            con.execute("rollback")
        raise
    con.execute("commit")


#: Errors of DuckLake, SQLite and PostgreSQL that mean another writer committed first. DuckLake reports a conflict inside a larger statement
#: in PostgreSQL only as "aborted". The last one occurs when two processes create the lake at once.
_BUSY = re.compile(
    "locked|conflict|duplicate key value|could not serialize|deadlock detected|transaction is aborted|Failed to initialize DuckLake.*already exists",
    re.IGNORECASE | re.DOTALL,
)


def busy(error: Exception) -> bool:
    """Whether an error only means that another writer committed first."""
    return _BUSY.search(str(error)) is not None


#: Errors of DuckDB, libpq, PostgreSQL and object stores that mean a server is down, starting, stopping or overloaded, or that the connection
#: was lost. After such an error in a commit, only the lake shows whether the commit succeeded.
_OUTAGE = re.compile(
    "connection refused|connection reset|connection timed out|timeout expired|timeout was reached|broken pipe|no route to host"
    "|network is unreachable|host is unreachable|server closed the connection|terminating connection|the database system is "
    "|no connection to the server|connection not open|could not receive data|could not send data|ssl syscall|ssl connection has been closed"
    "|temporary failure in name resolution|too many clients|remaining connection slots|could not connect to server"
    "|could not establish connection|could not resolve host|connection error for http|read error for http|write error for http"
    r"|\bhttp (?:code |error )?(?:408|429|5[0-9][0-9])\b|slowdown|serviceunavailable"
    r'|failed to execute query "(?:rollback|commit)[^"]*": *$',
    re.IGNORECASE,
)


def says_outage(text: str) -> bool:
    """Whether the text of a DuckDB error means an outage; for callers that have only the text."""
    return _OUTAGE.search(text) is not None


def is_outage(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that the catalogue's server or the object store is temporarily unavailable."""
    while error is not None:
        kinds = (duckdb.IOException, duckdb.HTTPException, duckdb.TransactionException, duckdb.ConnectionException)
        if isinstance(error, Unavailable) or (isinstance(error, kinds) and says_outage(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


def failure(error: Exception, left: str) -> FinegrainError:
    """A readable error for a failure in the lake; `left` describes the resulting state."""
    reason = " ".join(str(error).partition("\n\nLINE ")[0].split())
    if is_outage(error) or busy(error):
        return Unavailable(f"the lake is temporarily unavailable: {reason}; {left}")
    return FinegrainError(f"the lake cannot be written: {reason}; {left}")


def retry(work: Callable[[], T], seconds: float = 120) -> T:
    """Run `work()`, and retry with exponential backoff and jitter while other writers commit first, for at most `seconds`. One of several
    conflicting writers always succeeds, so there is always progress."""
    until, pause = time.monotonic() + seconds, 0.05
    while True:
        try:
            return work()
        except duckdb.Error as error:
            if not busy(error) or time.monotonic() > until:
                raise
        time.sleep(random.uniform(pause / 4, pause))
        pause = min(2 * pause, 1.0)


def connect(where: Settings | None = None, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the lake attached as `lake`. Queries run with `execute` of a `read_only` connection are safe during compaction;
    with other connections, read inside `reading` or `writing`."""
    where = where or settings()
    con = _engine(where)
    attach(con, where, read_only=read_only)
    if not read_only:
        with suppress(FinegrainError):  # without the key, only `writing` fails
            retry(lambda: forgotten.refresh(con, where))
    if read_only and isinstance(where.lake_catalog, Path):
        # DuckDB looks up Arrow tables by name in the caller's frame, which is one frame further out here.
        con.execute("set python_scan_all_frames = true")
        return cast(duckdb.DuckDBPyConnection, _Reader(con, where))
    return con


def _engine(where: Settings) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with its extensions loaded, which spills to disk below the home, not in the working directory."""
    try:
        where.extensions.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinegrainError(f"{error.filename}: DuckDB's extensions cannot be stored here: {error.strerror}") from None
    spill = ExitStack()
    try:
        # Two processes that spill into one folder overwrite each other's files and crash.
        folder = spill.enter_context(scratch(where.home / "spill"))
    except OSError as error:
        raise FinegrainError(f"{error.filename}: DuckDB cannot spill to disk here: {error.strerror}") from None
    options = {**extension_options(where), "temp_directory": str(folder)}
    with _readable_errors(where):
        _check_extensions(where)
        con = duckdb.connect(config={**options, "allow_unsigned_extensions": True})
        for name in extensions(where):
            con.execute(f"load {name}")
        con.execute("set allow_unsigned_extensions = false")  # this cannot be reverted
    stopping.interruptible(con)
    weakref.finalize(con, spill.close)
    return con


def prune(con: duckdb.DuckDBPyConnection, where: Settings) -> None:
    """Remove rows from the catalogue (mostly positions) that no snapshot uses any more, which DuckLake does only when it flushes."""
    catalogue = "__ducklake_metadata_lake"
    tables = con.execute(f"select table_name from {catalogue}.ducklake_inlined_data_tables").fetchall()
    with writing(con, where):
        for (table,) in tables:
            con.execute(
                f"delete from {catalogue}.{table} as r where r.end_snapshot is not null and not exists ("
                f"select 1 from {catalogue}.ducklake_snapshot as s "
                "where s.snapshot_id >= r.begin_snapshot and s.snapshot_id < r.end_snapshot)"
            )


def arrivals(con: duckdb.DuckDBPyConnection, pinned: int) -> dict[str, int]:
    """The last snapshot, up to `pinned`, that inserted rows into each raw table. Compaction snapshots do not count."""
    found = con.execute(
        "select t.table_name, max(s.snapshot_id) from ("
        "  select snapshot_id, unnest("
        "    coalesce(changes['tables_inserted_into'], []) || coalesce(changes['inlined_insert'], [])) as table_id"
        "  from lake.snapshots() where snapshot_id <= ?"
        ") as s inner join ducklake_table_info('lake') as t on cast(s.table_id as bigint) = t.table_id group by 1 order by 1",
        [pinned],
    ).fetchall()
    # Where the snapshot in which rows arrived has expired, they are as old as the oldest one.
    rest = con.execute(
        "select t.table_name, (select min(snapshot_id) from lake.snapshots()) from ducklake_table_info('lake') as t "
        "inner join __ducklake_metadata_lake.ducklake_table_stats as s using (table_id) where s.record_count > 0"
    ).fetchall()
    return {str(table): int(newest) for table, newest in sorted({**dict(rest), **dict(found)}.items())}


@dataclass(frozen=True)
class Arrived:
    """Arrivals in a raw table: the last snapshot that inserted rows, its time (UTC), and the number of rows ever inserted."""

    snapshot: int
    at: datetime
    rows: int


def arrived(con: duckdb.DuckDBPyConnection) -> dict[str, Arrived]:
    """Arrivals by raw table; tables without rows are left out. Reads only the catalogue."""
    [(newest,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
    last = arrivals(con, newest)
    times = dict(
        con.execute(
            "select snapshot_id, snapshot_time at time zone 'UTC' from lake.snapshots() where list_contains(?, snapshot_id)",
            [list(last.values())],
        ).fetchall()
    )
    # Rows are numbered from 0 as they arrive, and neither compaction nor deletion changes a number.
    rows = dict(
        con.execute(
            "select t.table_name, s.next_row_id from __ducklake_metadata_lake.ducklake_table_stats as s "
            "inner join ducklake_table_info('lake') as t on s.table_id = t.table_id"
        ).fetchall()
    )
    return {table: Arrived(number, times[number], int(rows.get(table, 0))) for table, number in last.items()}
