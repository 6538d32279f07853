"""Where vectors are kept: SQLite or Redis. A record is (key, as_of in microseconds since 1970, layout, vector); an older one never replaces a newer one.

Neither store compares and writes in two steps: SQLite does both in one upsert, Redis in one script, so writers cannot pass each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from orchestration.config.settings import Environment, Settings
from orchestration.errors import FinegrainError, Unavailable
from orchestration.sql.text import identifier

if TYPE_CHECKING:
    from redis import Redis

#: Key, as_of, layout, vector.
Record = tuple[str, int, str, str]
#: The folder in the home for SQLite's file and Feast's registry.
FOLDER: Final = "store"
#: What begins the names of all keys in Redis.
PREFIX: Final = "finegrain"
#: Records that are compared and written in one step, for which other writers wait.
STEP: Final = 1_000
#: Seconds that a writer waits for another one of SQLite, and that Redis has to answer.
PATIENCE: Final = 10.0


class Backend(Protocol):
    """A store of records, by mart. All methods may be called by several threads and processes at once. Raises Unavailable if its server is away."""

    @property
    def name(self) -> str:
        """Where it is, for messages."""

    def write(self, mart: str, records: Iterable[Record]) -> int:
        """Write the records whose as_of is not before the stored one's; how many these were."""

    def read(self, mart: str, keys: Sequence[str]) -> list[tuple[int, str, str] | None]:
        """(as_of, layout, vector) by key, in the order of the keys."""

    def remove_before(self, mart: str, as_of: int) -> int:
        """Remove the records of before a moment; how many there were."""

    def remove(self, mart: str, parts: Sequence[str]) -> int:
        """Remove the records whose key contains one of these texts, also from the file; how many there were."""

    def search(self, mart: str, pattern: re.Pattern[str]) -> int:
        """How many records of a mart have this in their key or vector."""

    def drop(self, mart: str) -> None:
        """Remove all records of a mart, and its mark."""

    def keep_layout(self, layout: str, text: str) -> None:
        """Keep what a layout's name stands for."""

    def layout(self, layout: str) -> str | None:
        """What a layout's name stands for."""

    def marks(self) -> dict[str, str]:
        """By mart, what was last materialized of it."""

    def mark(self, mart: str, text: str) -> None:
        """Set a mart's mark."""

    def close(self) -> None:
        """Close connections of this thread."""


def location(where: Settings) -> str:
    """Where the store is that the environment says: the address of Redis, or SQLite's file below the home. Raises FinegrainError."""
    return Environment.read().online_store or str(where.home / FOLDER / "online.sqlite")


def backend(location: str) -> Backend:
    """The store at a location. Raises FinegrainError."""
    return InRedis(location) if location.startswith(("redis://", "rediss://")) else InSqlite(Path(location))


class InSqlite:
    """One table a mart, one row a key. A connection a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._threads = threading.local()

    @property
    def name(self) -> str:
        return str(self.path)

    def write(self, mart: str, records: Iterable[Record]) -> int:
        table, written, rows = identifier(mart), 0, iter(records)
        while some := list(itertools.islice(rows, STEP)):
            with self._transaction() as con:
                con.execute(
                    f"create table if not exists {table} "
                    "(key text primary key, as_of integer not null, layout text not null, vector text not null)"
                )
                before = con.total_changes
                con.executemany(
                    f"insert into {table} values (?, ?, ?, ?) on conflict (key) do update set as_of = excluded.as_of, "
                    "layout = excluded.layout, vector = excluded.vector where excluded.as_of >= as_of",
                    some,
                )
                written += con.total_changes - before
        return written

    def read(self, mart: str, keys: Sequence[str]) -> list[tuple[int, str, str] | None]:
        found: dict[str, tuple[int, str, str]] = {}
        for some in _batched(keys):
            with contextlib.suppress(_NoTable), self._translated():
                rows = self._connection().execute(
                    f"select key, as_of, layout, vector from {identifier(mart)} where key in ({', '.join('?' * len(some))})",
                    some,
                )
                found |= {key: (as_of, layout, vector) for key, as_of, layout, vector in rows}
        return [found.get(key) for key in keys]

    def remove_before(self, mart: str, as_of: int) -> int:
        table, removed = identifier(mart), 0
        with contextlib.suppress(_NoTable), self._translated():
            # Read without a lock, and removed some at a time, so that writers need not wait for all.
            old = self._connection().execute(f"select key from {table} where as_of < ?", [as_of]).fetchall()
            for first in range(0, len(old), STEP):
                with self._transaction() as con:
                    removed += con.executemany(
                        f"delete from {table} where key = ? and as_of < {int(as_of)}", old[first : first + STEP]
                    ).rowcount
        return removed

    def remove(self, mart: str, parts: Sequence[str]) -> int:
        removed = 0
        with contextlib.suppress(_NoTable), self._translated(), self._transaction() as con:
            con.execute("create temp table if not exists parts (part text)")
            con.execute("delete from parts")
            con.executemany("insert into parts values (?)", [(part,) for part in parts])
            removed = con.execute(
                f"delete from {identifier(mart)} where exists (select 1 from parts where instr(key, part))"
            ).rowcount
        with contextlib.suppress(_NoTable), self._translated():
            # What was deleted stays in free pages and in the log.
            con = self._connection()
            con.execute("drop table if exists parts")
            con.execute("vacuum")
            con.execute("pragma wal_checkpoint(truncate)").fetchall()
        return removed

    def search(self, mart: str, pattern: re.Pattern[str]) -> int:
        with contextlib.suppress(_NoTable), self._translated():
            con = self._connection()
            con.create_function("is_found", 1, lambda text: pattern.search(text) is not None, deterministic=True)
            [found] = con.execute(
                f"select count(*) from {identifier(mart)} where is_found(key) or is_found(vector)"
            ).fetchone()
            return int(found)
        return 0

    def drop(self, mart: str) -> None:
        with self._transaction() as con:
            con.execute(f"drop table if exists {identifier(mart)}")
            con.execute('delete from "_marks" where mart = ?', [mart])

    def keep_layout(self, layout: str, text: str) -> None:
        with self._transaction() as con:
            con.execute('insert into "_layouts" values (?, ?) on conflict do nothing', [layout, text])

    def layout(self, layout: str) -> str | None:
        with contextlib.suppress(_NoTable), self._translated():
            found = self._connection().execute('select text from "_layouts" where layout = ?', [layout]).fetchone()
            return found and str(found[0])
        return None

    def marks(self) -> dict[str, str]:
        with contextlib.suppress(_NoTable), self._translated():
            return dict(self._connection().execute('select mart, text from "_marks"').fetchall())
        return {}

    def mark(self, mart: str, text: str) -> None:
        with self._transaction() as con:
            con.execute('insert or replace into "_marks" values (?, ?)', [mart, text])

    def close(self) -> None:
        con = self._threads.__dict__.pop("con", None)
        if con is not None:
            con.close()

    def _connection(self, *, to_write: bool = False) -> sqlite3.Connection:
        """Raises _NoTable if there is no file; only what writes makes one."""
        con: sqlite3.Connection | None = getattr(self._threads, "con", None)
        if con is None:
            if not to_write and not self.path.exists():
                raise _NoTable
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._translated():
                con = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
                # Readers do not wait for the writer, nor it for them.
                con.execute("pragma journal_mode = wal")
                con.execute("pragma synchronous = normal")
                con.execute('create table if not exists "_layouts" (layout text primary key, text text not null)')
                con.execute('create table if not exists "_marks" (mart text primary key, text text not null)')
            self._threads.con = con
        return con

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        con = self._connection(to_write=True)
        with self._translated():
            con.execute("begin immediate")
            try:
                yield con
            except BaseException:
                con.rollback()
                raise
            con.commit()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            said = str(error)
            if said.startswith("no such table"):
                raise _NoTable from None
            if "locked" in said or "busy" in said:
                raise Unavailable(f"{self.path} is being written by another process for too long; try again") from None
            raise FinegrainError(f"{self.path}: {said}") from None
        except sqlite3.DatabaseError as error:
            raise FinegrainError(f"{self.path}: {error}; remove it, and run `finegrain store materialize`") from None


class _NoTable(FinegrainError):
    """Nothing was written of this mart yet."""


def _batched(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """`itertools.batched`, which Python 3.11 lacks."""
    return (keys[first : first + STEP] for first in range(0, len(keys), STEP))


#: KEYS: records; ARGV: their new texts. A text begins with as_of in 16 digits.
_WRITE: Final = """
local written = 0
for i, key in ipairs(KEYS) do
    local old = redis.call('GETRANGE', key, 0, 15)
    if old == '' or old <= string.sub(ARGV[i], 1, 16) then
        redis.call('SET', key, ARGV[i])
        written = written + 1
    end
end
return written
"""
#: KEYS: records; ARGV[1]: as_of in 16 digits.
_REMOVE: Final = """
local removed = 0
for _, key in ipairs(KEYS) do
    local old = redis.call('GETRANGE', key, 0, 15)
    if old ~= '' and old < ARGV[1] then
        removed = removed + redis.call('DEL', key)
    end
end
return removed
"""


class InRedis:
    """A string a record: as_of in 16 digits, the layout in 16, the vector. Keys are `finegrain:<mart>:<key>`."""

    def __init__(self, address: str) -> None:
        try:
            import redis
        except ImportError:
            raise FinegrainError(
                "FINEGRAIN_ONLINE_STORE names Redis, whose client comes with the extra 'store' and is not installed here; "
                "run: scripts/setup store, or: pip install --no-deps --require-hashes -r requirements-store.lock"
            ) from None
        password = Environment.read().online_store_password
        self._redis = redis
        self.name = address
        self._client: Redis = redis.Redis.from_url(
            address,
            **({"password": password.get_secret_value()} if password else {}),
            socket_timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
            decode_responses=True,
            client_name=PREFIX,
        )
        self._write = self._client.register_script(_WRITE)
        self._remove = self._client.register_script(_REMOVE)

    def write(self, mart: str, records: Iterable[Record]) -> int:
        written = 0
        rows = iter(records)
        with self._translated():
            while some := list(itertools.islice(rows, STEP)):
                names = [_name(mart, key) for key, *_ in some]
                written += self._write(names, [f"{as_of:016d}{layout}{vector}" for _, as_of, layout, vector in some])
        return written

    def read(self, mart: str, keys: Sequence[str]) -> list[tuple[int, str, str] | None]:
        found: list[str | None] = []
        with self._translated():
            for some in _batched(keys):
                texts: Any = self._client.mget([_name(mart, key) for key in some])
                found += texts
        return [(int(text[:16]), text[16:32], text[32:]) if text else None for text in found]

    def remove_before(self, mart: str, as_of: int) -> int:
        with self._translated():
            return sum(self._remove(names, [f"{as_of:016d}"]) for names in self._names(mart))

    def remove(self, mart: str, parts: Sequence[str]) -> int:
        removed = 0
        with self._translated():
            for names in self._names(mart):
                theirs = [name for name in names if any(part in name for part in parts)]
                removed += int(cast(int, self._client.delete(*theirs))) if theirs else 0
        return removed

    def search(self, mart: str, pattern: re.Pattern[str]) -> int:
        found = 0
        with self._translated():
            for names in self._names(mart):
                vectors: Any = self._client.mget(names)
                found += sum(
                    pattern.search(f"{name}\n{vector or ''}") is not None
                    for name, vector in zip(names, vectors, strict=True)
                )
        return found

    def drop(self, mart: str) -> None:
        with self._translated():
            for names in self._names(mart):
                self._client.unlink(*names)
            self._client.hdel(f"{PREFIX}/marks", mart)

    def keep_layout(self, layout: str, text: str) -> None:
        with self._translated():
            self._client.hset(f"{PREFIX}/layouts", layout, text)

    def layout(self, layout: str) -> str | None:
        with self._translated():
            found: Any = self._client.hget(f"{PREFIX}/layouts", layout)
        return found and str(found)

    def marks(self) -> dict[str, str]:
        with self._translated():
            found: Any = self._client.hgetall(f"{PREFIX}/marks")
        return dict(found)

    def mark(self, mart: str, text: str) -> None:
        with self._translated():
            self._client.hset(f"{PREFIX}/marks", mart, text)

    def close(self) -> None:
        self._client.close()

    def _names(self, mart: str) -> Iterator[list[str]]:
        """The names of a mart's records, some at a time. Others may come and go meanwhile."""
        names = self._client.scan_iter(match=f"{PREFIX}:{mart}:*", count=STEP)
        while some := list(itertools.islice(names, STEP)):
            yield some

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        errors = self._redis.exceptions
        try:
            yield
        except errors.AuthenticationError:
            raise FinegrainError(
                f"{self.name} refuses the password; set FINEGRAIN_ONLINE_STORE_PASSWORD, and the user in FINEGRAIN_ONLINE_STORE: redis://user@host:port/0"
            ) from None
        except (errors.ConnectionError, errors.TimeoutError) as error:
            raise Unavailable(
                f"the online store {self.name} does not answer: {error}; nothing older replaces what is newer there, so run it again"
            ) from None
        except errors.RedisError as error:
            raise FinegrainError(f"the online store {self.name}: {error}") from None


def _name(mart: str, key: str) -> str:
    return f"{PREFIX}:{mart}:{key}"


def layout_name(text: str) -> str:
    """The name of a layout, of 16 characters."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
