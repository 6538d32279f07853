"""The lake: raw, immutable, append-only tables in DuckLake. One place opens it, for the loader and for dbt alike."""

from __future__ import annotations

import hashlib
import os
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
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast
from urllib.parse import urlsplit

import duckdb
from duckdb_extensions import import_extension

from orchestration.config.settings import Settings, s3_endpoint, settings
from orchestration.errors import FinegrainError, Unavailable, console, stopping
from orchestration.lake.locks import one_at_a_time, scratch, soon
from orchestration.mapping.contracts import RAW_TABLES, columns
from orchestration.sql.text import identifier, quote

T = TypeVar("T")

#: The lake's own tables beside the raw ones: what has been loaded, so that a file is not loaded twice by accident; how far each
#: source has been read (orchestration/lake/positions.py); what could not be landed, whole (orchestration/ingest/stream/); of databases and
#: APIs, which rows are gone and how their tables looked (orchestration/ingest/ingest.py); what mappings say of the whole shop
#: (orchestration/lake/shop.py); and exchange rates (orchestration/ingest/rates.py).
BOOKS: Final[dict[str, str]] = {
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
    # No space in the type: table_columns splits at them.
    "exchange_rates": "rate_date date, currency varchar, per_euro decimal(18,8), origin varchar, _ingested_at timestamp",
}

#: SQL: whether the dead letter `d` has not been replayed. A message that is read again (--afresh) is another letter.
IS_WAITING: Final = (
    "not exists (select 1 from lake.raw.replayed as r where r._source = d._source and r._position = d._position "
    "and r.raw_table = d.raw_table and r.letter_at = d._ingested_at)"
)


def table_columns(table: str) -> dict[str, str]:
    """Every column of one of the lake's tables, raw or one of its books, in order: name to DuckDB type."""
    if table in RAW_TABLES:
        return columns(table)
    return {name: kind.upper() for name, kind in (column.split() for column in BOOKS[table].split(", "))}


def extensions(where: Settings) -> list[str]:
    """The DuckDB extensions that this lake needs."""
    catalog = "sqlite_scanner" if isinstance(where.lake_catalog, Path) else "postgres_scanner"
    return [catalog, *([] if isinstance(where.lake_data, Path) else ["httpfs"]), "ducklake"]


def extension_options(where: Settings) -> dict[str, str | bool | int | float | list[str]]:
    """DuckDB's options of extensions: only ones that DuckDB's makers signed load, and none is downloaded. A folder that the user can write
    would else hold code that nobody has checked."""
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


#: Files of extensions whose signature DuckDB has checked in this process, by folder and extension: the file, and what tells that it is the
#: same still.
_CHECKED: Final[dict[tuple[Path, str], tuple[Path, tuple[int, ...]]]] = {}


def _state(file: Path) -> tuple[int, ...]:
    about = file.stat()
    return (about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def _check_extensions(where: Settings) -> None:
    """Have DuckDB check the signatures of the extensions that this lake needs, once in a process and again when a file has changed: it
    reads whole files, a quarter of a second of each connection."""
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
    """What of the lake lies in folders of this machine, and must be writable for a load."""
    catalog = [where.lake_catalog.parent, where.lake_catalog] if isinstance(where.lake_catalog, Path) else []
    return catalog + ([where.lake_data] if isinstance(where.lake_data, Path) else [])


def attach(con: duckdb.DuckDBPyConnection, where: Settings | None = None, *, read_only: bool = False) -> None:
    """Attach the lake as `lake` and, unless read-only, make sure that all raw tables exist. Raises FinegrainError
    where it cannot be opened or written; a catalogue that others keep busy is a duckdb.Error still."""
    where = where or settings()
    with _told(where):
        load_extensions(con, where)
        if isinstance(where.lake_data, str):
            _open_store(con, where.lake_data)
        read_only = read_only and _exists(con, where)
        # Two that make a lake at the same time meet, and the later one finds it made.
        retry(lambda: _attach(con, where, read_only))
    if isinstance(where.lake_data, Path):
        _follow(con, where, where.lake_data)
    con.execute("set timezone = 'UTC'")
    present = _columns(con)
    for table, names in present.items():
        if missing := [name for name in table_columns(table) if name not in names]:
            con.execute("detach lake")
            raise FinegrainError(
                f"{where.lake_catalog}: this lake was made by an earlier version of finegrain, whose table {table} has no "
                f"{', '.join(missing)}; make a new lake (FINEGRAIN_HOME) and load into it"
            )
    if not read_only and len(present) < len(RAW_TABLES) + len(BOOKS):
        retry(lambda: _create_tables(con, where))


#: Copies a SQLite file as of one moment. In a process of its own, since two SQLites in one undo each other's locks.
_COPIER: Final = """
import sqlite3, sys
lake, copy = (sqlite3.connect(name, timeout=60) for name in sys.argv[1:])
lake.backup(copy)
copy.close()
"""


def attach_copy(con: duckdb.DuckDBPyConnection, where: Settings, folder: Path) -> None:
    """Attach the lake as it is now, for who reads for minutes what others go on to write and move. Of a SQLite catalogue that is a copy
    in `folder`, since there not even a transaction sees one moment only (see `unmoved`). The lake is made where there is none.
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
        said = (done.stderr.strip().splitlines() or ["it was stopped"])[-1]
        raise FinegrainError(f"{where.lake_catalog}: it cannot be copied to {copy}, from which a build reads: {said}")
    attach(con, replace(where, lake_catalog=copy), read_only=True)


@contextmanager
def _told(where: Settings) -> Iterator[None]:
    """What goes wrong while the lake is opened, in a sentence."""
    try:
        yield
    except OSError as error:
        raise FinegrainError(
            f"{error.filename or where.lake_catalog}: the lake cannot be kept here: {error.strerror}"
        ) from None
    except (duckdb.Error, sqlite3.Error) as error:
        if busy(error):
            raise
        if isinstance(where.lake_catalog, Path):
            raise FinegrainError(
                f"{where.lake_catalog}: the lake does not open: {str(error).splitlines()[0]}"
            ) from None
        said = str(error).strip().splitlines()[0].rpartition("Unable to connect to Postgres at ")[2]
        hint = "; the password is read from PGPASSWORD" if "password" in said else ""
        raise (Unavailable if is_outage(error) else FinegrainError)(
            f"FINEGRAIN_LAKE_CATALOG is {where.lake_catalog}: the lake does not open: "
            f"{said.removeprefix(_quoted(where.lake_catalog))}{hint}"
        ) from None


def _quoted(catalog: str) -> str:
    """A PostgreSQL catalogue as DuckDB's errors begin with it, which are long enough without."""
    return f'"{catalog.removeprefix("postgres:")}": '


def exists(where: Settings) -> bool:
    """Whether there is a lake already. Makes nothing. Raises FinegrainError where its catalogue does not answer."""
    if isinstance(where.lake_catalog, Path):
        return where.lake_catalog.exists()
    con = _engine(where)
    try:
        with _told(where):
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
    """The PostgreSQL database of a catalogue, attached as `catalogue`."""
    con.execute(f"attach {quote(catalog.removeprefix('postgres:'))} as catalogue (type postgres)")
    try:
        yield
    finally:
        con.execute("detach catalogue")


#: The locks in a PostgreSQL catalogue that work of a home holds in this process: the connections whose transactions hold them.
_HELD: Final[dict[Settings, list[duckdb.DuckDBPyConnection]]] = {}


@contextmanager
def alone(where: Settings, work: str) -> Iterator[None]:
    """Hold the right to some work on the lake; whoever comes second waits, in another home or on another machine, too, since the lock lies
    with the catalogue: a file beside SQLite's, an advisory lock in PostgreSQL. A process that loses it (its connection broke) can
    commit nothing before it has let go (`writing`). Raises FinegrainError as `attach` does."""
    # Work names what it works on, in words of a mapping, which no file need be called.
    name = f"{work.partition(' ')[0]}-{hashlib.md5(work.encode()).hexdigest()[:12]}"

    def on_wait() -> None:
        console.say(f"waiting for another finegrain that does the same on this lake: {work}")

    if isinstance(where.lake_catalog, Path):
        with one_at_a_time(where.lake_catalog.with_name(f"{name}.lock"), on_wait=on_wait):
            yield
        return
    con = _engine(where)
    held = _HELD.setdefault(where, [])
    try:
        with _told(where):
            con.execute(f"attach {quote(where.lake_catalog.removeprefix('postgres:'))} as catalogue (type postgres)")
            # The lock lives as long as the transaction, and that no longer than this process. A server may end transactions that are idle,
            # and does not by itself notice that a machine was switched off.
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
        # DuckDB ends the process if a transaction whose server has gone away is still open when it is closed.
        with suppress(duckdb.Error):
            con.execute("rollback")
        con.close()


def _still_alone(where: Settings) -> None:
    """Raises FinegrainError if a lock that work of this home holds has been lost."""
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
                "the connection to the lake's catalogue was lost, and with it the lock that keeps others from the same work; "
                "what was not committed has not landed. Run this again"
            )


def _open_store(con: duckdb.DuckDBPyConnection, data: str) -> None:
    """Let DuckDB into the object store where the lake's files are, and see that the bucket is there."""
    options = {
        "key_id": os.environ.get("AWS_ACCESS_KEY_ID"),
        "secret": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": os.environ.get("AWS_SESSION_TOKEN"),
        "region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    endpoint = s3_endpoint()
    if endpoint:
        address = urlsplit(endpoint)
        options |= {"endpoint": address.netloc, "url_style": "path", "use_ssl": str(address.scheme == "https").lower()}
    given = ", ".join(f"{name} {quote(value)}" for name, value in options.items() if value)
    scope = quote("s3://" + urlsplit(data).netloc)
    con.execute(f"create or replace secret lake_files (type s3, scope {scope}{', ' if given else ''}{given})")
    try:
        # A name that nothing has: one short answer, however much is there.
        con.execute(f"select count(*) from glob({quote(data + '/.none*')})").fetchall()
    except duckdb.Error as error:
        said = " ".join(str(error).partition("\n\nLINE ")[0].split())
        raise (Unavailable if is_outage(error) else FinegrainError)(
            f"FINEGRAIN_LAKE_DATA is {data}, which cannot be read: {said}; FINEGRAIN_S3_ENDPOINT says where it is, "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION say who reads it"
        ) from None


def _attach(con: duckdb.DuckDBPyConnection, where: Settings, read_only: bool) -> None:
    options = [f"data_path {quote(f'{where.lake_data}/')}", *(["read_only"] if read_only else [])]
    if isinstance(where.lake_data, Path):
        where.lake_data.mkdir(parents=True, exist_ok=True)
        options.append("override_data_path true")  # see _follow
    if isinstance(where.lake_catalog, str):
        address = where.lake_catalog
    else:
        address = f"sqlite:{where.lake_catalog}"
        options += ["meta_journal_mode 'WAL'", "meta_busy_timeout 10000"]
        if not where.lake_catalog.exists():
            where.lake_catalog.parent.mkdir(parents=True, exist_ok=True)
            # SQLite's default journal lets readers and writers stall each other by whole seconds.
            with closing(sqlite3.connect(where.lake_catalog)) as catalog:
                catalog.execute("pragma journal_mode=wal")
    con.execute(f"attach {quote('ducklake:' + address)} as lake ({', '.join(options)})")


def _follow(con: duckdb.DuckDBPyConnection, where: Settings, data: Path) -> None:
    """The catalogue knows its files by a folder and by names in it. A home that was moved or copied has the same names
    in another folder, and is the same lake; a folder without them is a mistake, and must not be written."""
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
            f"{data}: the files of the lake in {where.lake_catalog} are not here, but were in {known[0][0]} when it was "
            "made; FINEGRAIN_LAKE_DATA says where they are"
        )


def _columns(con: duckdb.DuckDBPyConnection) -> dict[str, set[str]]:
    """The columns of each of the lake's tables that is there."""
    found = con.execute(
        # Of the catalogue itself, since DuckDB would load all there is to know of each table.
        "select t.table_name, list(c.column_name) from __ducklake_metadata_lake.ducklake_table as t "
        "inner join __ducklake_metadata_lake.ducklake_column as c on t.table_id = c.table_id and c.end_snapshot is null "
        "where t.end_snapshot is null group by 1"
    ).fetchall()
    return {str(table): set(names) for table, names in found if table in RAW_TABLES or table in BOOKS}


def _create_tables(con: duckdb.DuckDBPyConnection, where: Settings) -> None:
    shapes = {
        table: ", ".join(f"{identifier(name)} {kind}" for name, kind in columns(table).items()) for table in RAW_TABLES
    } | BOOKS
    with writing(con, where):
        con.execute("create schema if not exists lake.raw")
        for table, fields in shapes.items():
            con.execute(f"create table if not exists lake.raw.{table} ({fields})")


@contextmanager
def writing(con: duckdb.DuckDBPyConnection, where: Settings) -> Iterator[None]:
    """A transaction that writes: all inside lands together or not at all. A SQLite catalogue refuses whoever began before
    another's commit, so there writers queue at a lock file, which also ends with its process."""
    if isinstance(where.lake_catalog, str):
        with transaction(con):
            yield
            _still_alone(where)
        return
    with one_at_a_time(where.lake_catalog.with_name("write.lock")), transaction(con):
        yield


#: The catalogues that this thread is `unmoved` of.
_held = threading.local()


@contextmanager
def unmoved(where: Settings, *, moving: bool = False) -> Iterator[None]:
    """While inside, upkeep moves no rows to other files (`moving`: nobody reads, so that it may). From a SQLite catalogue DuckDB reads its
    list of files in two looks, which range of the list there is and what stands in it, and files that came for others in between stand
    beyond: all their rows would be missed. Within `writing` nothing moves anyway; who is inside must not begin that, for which upkeep
    may wait."""
    held_here = _held.__dict__.setdefault("locks", set())
    if isinstance(where.lake_catalog, str) or where.lake_catalog in held_here:
        yield
        return
    lock = where.lake_catalog.with_name("move.lock")
    # Readers share the lock, and pass one by one through a door that is shut while upkeep waits: else it might wait for ever.
    door = one_at_a_time(where.lake_catalog.with_name("move.door"))
    with ExitStack() as held:
        with door:
            held.enter_context(one_at_a_time(lock, shared=not moving))
        held_here.add(where.lake_catalog)
        held.callback(held_here.remove, where.lake_catalog)
        yield


class _Reader:
    """A connection that only reads a lake with a SQLite catalogue: no statement of it runs while upkeep moves rows (see `unmoved`). A
    transaction of several statements would need one moment for all of them: `attach_copy`."""

    def __init__(self, con: duckdb.DuckDBPyConnection, where: Settings) -> None:
        self._con, self._where = con, where

    def execute(self, *query: Any, **named: Any) -> duckdb.DuckDBPyConnection:
        with unmoved(self._where):
            return self._con.execute(*query, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._con.close()


#: Opens a catalogue, says so, and keeps it open until its standard input ends.
_HOLDER: Final = """
import sqlite3, sys
catalog = sqlite3.connect(sys.argv[1], timeout=60)
catalog.execute("select count(*) from sqlite_master").fetchall()
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def held_open(where: Settings) -> Iterator[None]:
    """While inside, a SQLite catalogue stays open. DuckDB opens it anew for every transaction, and who closes it last takes its log
    away, which whoever comes meanwhile meets as a lock, and sleeps for a whole second, since DuckDB's SQLite knows no shorter
    time. It is a process of its own that holds it: two SQLites in one undo each other's locks."""
    if isinstance(where.lake_catalog, str):
        yield
        return
    holder = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _HOLDER, str(where.lake_catalog)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for its parent
    )
    with holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()  # nothing, where it could not: then all is slower, and as right
        try:
            yield
        finally:
            holder.stdin.close()


@contextmanager
def transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Everything inside lands together or not at all."""
    con.execute("begin")
    try:
        yield
    except BaseException:
        with suppress(duckdb.Error):  # the connection may be lost, and the transaction with it
            con.execute("rollback")
        raise
    con.execute("commit")


#: What DuckLake, SQLite and PostgreSQL say when another writer was there first; "aborted" is all that DuckLake says of a statement
#: that PostgreSQL refused so within a larger one, and the last is said by who makes the lake second.
_BUSY = re.compile(
    "locked|conflict|duplicate key value|could not serialize|deadlock detected|transaction is aborted|Failed to initialize DuckLake.*already exists",
    re.IGNORECASE | re.DOTALL,
)


def busy(error: Exception) -> bool:
    """Whether an error says only that another writer was there first."""
    return _BUSY.search(str(error)) is not None


#: What DuckDB, libpq, PostgreSQL and object stores say of a server that is not there, is starting or ending, is overloaded, or was lost
#: in the middle. After a commit that ended so, only the lake can say whether it took place.
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
    """Whether a text that DuckDB gave as an error is of an outage; for where the error itself has not come through."""
    return _OUTAGE.search(text) is not None


def is_outage(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says only that the catalogue's server or the object store does not answer now."""
    while error is not None:
        kinds = (duckdb.IOException, duckdb.HTTPException, duckdb.TransactionException, duckdb.ConnectionException)
        if isinstance(error, Unavailable) or (isinstance(error, kinds) and says_outage(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


def failure(error: Exception, left: str) -> FinegrainError:
    """What went wrong in the lake, as a sentence; `left` says what is true now."""
    said = " ".join(str(error).partition("\n\nLINE ")[0].split())
    if is_outage(error) or busy(error):
        return Unavailable(f"the lake does not answer now: {said}; {left}")
    return FinegrainError(f"the lake cannot be written: {said}; {left}")


def retry(work: Callable[[], T], seconds: float = 120) -> T:
    """Run `work()` again, after growing pauses with jitter, while other writers come first; for so many seconds. One of those who meet
    always gets through, so however many they are, nobody waits for ever."""
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
    """An in-memory DuckDB with the lake attached as `lake`. What `read_only` connections `execute` sees all that was committed, also beside
    upkeep; who reads by another one does so within `unmoved` or `writing`."""
    where = where or settings()
    con = _engine(where)
    attach(con, where, read_only=read_only)
    if read_only and isinstance(where.lake_catalog, Path):
        # Arrow tables and the like are found by their names in the frame of the caller, which is one further.
        con.execute("set python_scan_all_frames = true")
        return cast(duckdb.DuckDBPyConnection, _Reader(con, where))
    return con


def _engine(where: Settings) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that finds its extensions, and spills into its home, not into whatever folder it is run in."""
    try:
        where.extensions.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinegrainError(f"{error.filename}: DuckDB's extensions cannot be kept here: {error.strerror}") from None
    spill = ExitStack()
    try:
        # Two that spill into one folder overwrite each other's files, and crash.
        folder = spill.enter_context(scratch(where.home / "spill"))
    except OSError as error:
        raise FinegrainError(f"{error.filename}: DuckDB cannot spill to disk here: {error.strerror}") from None
    options = {**extension_options(where), "temp_directory": str(folder)}
    with _told(where):
        _check_extensions(where)
        con = duckdb.connect(config={**options, "allow_unsigned_extensions": True})
        for name in extensions(where):
            con.execute(f"load {name}")
        con.execute("set allow_unsigned_extensions = false")  # and nobody can set it again
    stopping.interruptible(con)
    weakref.finalize(con, spill.close)
    return con


def arrivals(con: duckdb.DuckDBPyConnection, pinned: int) -> dict[str, int]:
    """The last snapshot, up to `pinned`, in which rows came into each raw table. A snapshot that only tidies up is none."""
    found = con.execute(
        "select t.table_name, max(s.snapshot_id) from ("
        "  select snapshot_id, unnest("
        "    coalesce(changes['tables_inserted_into'], []) || coalesce(changes['inlined_insert'], [])) as table_id"
        "  from lake.snapshots() where snapshot_id <= ?"
        ") as s inner join ducklake_table_info('lake') as t on cast(s.table_id as bigint) = t.table_id group by 1 order by 1",
        [pinned],
    ).fetchall()
    return {str(table): int(newest) for table, newest in found}


@dataclass(frozen=True)
class Arrived:
    """What came into a raw table: the last snapshot in which rows did, when that was (UTC), and how many rows ever came."""

    snapshot: int
    at: datetime
    rows: int


def arrived(con: duckdb.DuckDBPyConnection) -> dict[str, Arrived]:
    """By raw table; those into which nothing has come are left out. Reads the catalogue alone."""
    [(newest,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
    last = arrivals(con, newest)
    times = dict(
        con.execute(
            "select snapshot_id, snapshot_time at time zone 'UTC' from lake.snapshots() where list_contains(?, snapshot_id)",
            [list(last.values())],
        ).fetchall()
    )
    # A table's rows are numbered from 0 on as they come, and merging or taking back changes no number.
    rows = dict(
        con.execute(
            "select t.table_name, s.next_row_id from __ducklake_metadata_lake.ducklake_table_stats as s "
            "inner join ducklake_table_info('lake') as t on s.table_id = t.table_id"
        ).fetchall()
    )
    return {table: Arrived(number, times[number], int(rows.get(table, 0))) for table, number in last.items()}
