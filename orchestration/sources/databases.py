"""Reads PostgreSQL and MySQL through DuckDB: attached read-only, in bulk, with filters run on the server.

Queries are sent in the server's own SQL, because some values can only be read correctly there: numbers without a precision, timestamps that
DuckDB cannot represent, and invalid dates. Such SQL contains names and, as values, only timestamps and integers formatted by DuckDB.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import duckdb
from duckdb_extensions import import_extension

from orchestration.errors import FinegrainError, keep_secrets_of
from orchestration.mapping.mapping import from_environment, nearest
from orchestration.sources.columns import check_case
from orchestration.sql.text import free_prefix, identifier, quote

Kind = Literal["postgres", "mysql"]

_KINDS: Final[dict[str, Kind]] = {
    "postgresql": "postgres",
    "postgres": "postgres",
    "mysql": "mysql",
    "mariadb": "mysql",
}
_PORTS: Final[dict[Kind, int]] = {"postgres": 5432, "mysql": 3306}
_EXAMPLE: Final = "write it like postgresql://user:password@host:5432/shop or mysql://user:password@host:3306/shop"


@dataclass(frozen=True)
class Database:
    """A database that is attached as `alias`. `place` is its address without credentials; `where` names the mapping in errors."""

    kind: Kind
    alias: str
    place: str
    name: str
    user: str
    where: str
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Read:
    """How a column is read, in the server's SQL: `value`, which is null where the condition `unreadable` holds; `why` describes such values."""

    value: str
    unreadable: str | None = None
    why: str = ""


@dataclass(frozen=True)
class DatabaseTable:
    """A table: `reads` says how each column is read, `raw` is the resulting DuckDB type, and `columns` the intended type (MySQL's UTC timestamps
    arrive without a time zone). `name` includes the schema."""

    database: Database
    name: str
    reads: dict[str, Read]
    raw: dict[str, str]
    columns: dict[str, str]

    @property
    def origin(self) -> str:
        """Its name in errors."""
        return f"{self.database.place}/{self.name}"

    @property
    def unread(self) -> str:
        """The column of `rows` that lists unreadable columns by number, from 0, separated by spaces."""
        return free_prefix(self.columns) + "unreadable"

    def rows(self, condition: str = "", only: Iterable[str] | None = None, limit: int | None = None) -> str:
        """A SELECT of all columns (or `only` some) in their intended types, and of `unread`, for rows that match a condition in the
        server's SQL."""
        names = list(self.columns if only is None else only)
        numbers = {name: number for number, name in enumerate(self.columns)}
        there = [(name, self.reads[name].unreadable) for name in names]
        found = "".join(f", case when {bad} then '{numbers[name]}' end" for name, bad in there if bad is not None)
        texts = "concat_ws(' '" + (found or ", null") + f") as {self.unread}"
        asked = [f"{self.reads[name].value} as {self.own(name)}" for name in names]
        sql = self.ask(", ".join([*asked, texts]), condition, limit)
        meant = [
            f"{identifier(name)}{'' if self.columns[name] == self.raw[name] else '::' + self.columns[name]} as {identifier(name)}"
            for name in names
        ]
        return f"select {', '.join(meant)}, {self.unread} from {sql}"

    def ask(self, select: str, condition: str = "", limit: int | None = None) -> str:
        """A query in the server's SQL, as a relation."""
        sql = f"select {select} from {'.'.join(map(self.own, self.name.split('.', 1)))}"
        sql += (f" where {condition}" if condition else "") + (f" limit {limit}" if limit is not None else "")
        return f"(from {self.database.kind}_query({quote(self.database.alias)}, {quote(sql)}))"

    def own(self, column: str) -> str:
        """A name quoted for the server."""
        return _own(self.database.kind, column)

    def literal(self, column: str, value: str) -> str:
        """A time or integer, formatted by DuckDB, as a literal of the column's type in the server's SQL."""
        return quote(value) if self.raw[column].startswith(("TIMESTAMP", "DATE")) else str(int(value))

    def unreadable(self, counted: Iterable[tuple[str, int]]) -> list[str]:
        """Sentences about unreadable values; `counted` has values of `unread` with their row counts."""
        names = list(self.columns)
        found: dict[str, int] = {}
        for numbers, count in counted:
            for number in numbers.split():
                found[names[int(number)]] = found.get(names[int(number)], 0) + count
        return [
            f"column '{name}' of {self.name}: {count:,} {'value is' if count == 1 else 'values are'} {self.reads[name].why}, "
            "and so null"
            for name, count in found.items()
        ]


def _own(kind: Kind, name: str) -> str:
    return identifier(name, '"' if kind == "postgres" else "`")


def attach(con: duckdb.DuckDBPyConnection, url: str, where: str) -> Database:
    """Attach the database at `url` (${NAME} in it is read from the environment) for reading. If it cannot be reached, raises
    FinegrainError with one sentence, without the password."""
    place = f"{where}: database"
    address = from_environment(url, place)
    keep_secrets_of(address)
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise FinegrainError(
            f"{place}: this is not a database address (is the port a number, is @ or / in the password written as %40 or %2F?); "
            f"{_EXAMPLE}"
        ) from None
    kind = _KINDS.get(parts.scheme)
    name = unquote(parts.path.removeprefix("/"))
    if kind is None or not parts.hostname or not name or "/" in name:
        wrong = "the host or the database's name is missing"
        if kind is None:  # any text may precede a colon
            wrong = (
                f"'{parts.scheme}' is not a supported database"
                if "://" in address
                else "this is not a database address"
            )
        raise FinegrainError(f"{place}: {wrong}; {_EXAMPLE}")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    port = port or _PORTS[kind]
    alias = f"source_{kind}"
    database = Database(
        kind, alias, f"{kind}://{parts.hostname}:{port}/{name}", name, user, place, (password, parts.password or "")
    )
    given = {"host": parts.hostname, "port": str(port), "database": name, "user": user, "password": password}
    options = []
    for option, value in parse_qsl(parts.query):
        if not re.fullmatch("[a-z_]+", option) or not re.fullmatch(r"[A-Za-z0-9_./:-]+", value):
            shown = f"the option '{option}'" if re.fullmatch("[a-z_]+", option) else "an option"
            raise FinegrainError(f"{place}: {shown} after the ? is not supported; remove it")
        options.append(f"{option}={value}")
    try:
        import_extension(f"{kind}_scanner", con=con)
        con.execute(f"load {kind}_scanner")
        if kind == "mysql":
            # Times in UTC; no timeout, because large tables take long.
            con.execute("set mysql_session_time_zone = '+00:00'")
            con.execute("set mysql_query_timeout_enabled = false")
            # A tinyint(1) may be any small number, and 5 is not true.
            con.execute("set mysql_tinyint1_as_boolean = false")
        secret = ", ".join(f"{key} {quote(value)}" for key, value in given.items() if value)
        con.execute(f"detach database if exists {alias}")
        con.execute(f"create or replace temporary secret {alias} (type {kind}, {secret})")
        con.execute(f"attach {quote(' '.join(options))} as {alias} (type {kind}, secret {alias}, read_only)")
    except duckdb.Error as error:
        raise unreachable(database, error) from None
    return database


def unreachable(database: Database, error: duckdb.Error, table: str = "") -> FinegrainError:
    """A readable error for an error of the server or the connection, without the password."""
    said = " ".join(str(error).split())
    for secret in sorted(filter(None, database.secrets), key=len, reverse=True):
        said = said.replace(secret, "…")
    where, place = database.where, database.place
    lowered = said.lower()
    if "permission denied" in lowered or "command denied" in lowered or "to database" in lowered:
        problem = f"the user '{database.user}' may not read {table or 'it'}; grant select on it"
    elif "password authentication failed" in lowered or "access denied for user" in lowered or "no password" in lowered:
        problem = f"the server rejects the user '{database.user}' or the password"
    elif ("does not exist" in lowered and "database" in lowered) or "unknown database" in lowered:
        problem = f"there is no database '{database.name}' on this server"
    elif "translate host name" in lowered or "unknown server host" in lowered or "unknown mysql server host" in lowered:
        problem = "this host is not known"
    elif "refused" in lowered or "can't connect" in lowered or "timed out" in lowered or "timeout" in lowered:
        problem = "no server answers there; is it running, and are host and port right?"
    elif "closed the connection" in lowered or "gone away" in lowered or "lost connection" in lowered:
        problem = "the connection was lost; run this again to continue"
    elif "no pg_hba.conf entry" in lowered:
        problem = "the server does not accept connections from this host; allow it in pg_hba.conf"
    else:
        problem = re.sub(r'^(IO|Catalog|Binder|Invalid Input) Error: |(with parameters|at) ""(: )?', "", said)
    return FinegrainError(f"{where}: {place}: {problem}")


def open_table(con: duckdb.DuckDBPyConnection, database: Database, named: str, where: str) -> DatabaseTable:
    """Find a table (`schema.table`, or `table` in PostgreSQL's public schema or MySQL's current database) and its columns. Raises
    FinegrainError if it does not exist or may not be read."""
    schema, mark, table = named.partition(".")
    if not mark:
        schema, table = ("public" if database.kind == "postgres" else database.name), named
    name = f"{schema}.{table}"
    scan = ".".join(identifier(part) for part in (database.alias, schema, table))
    try:
        there = con.execute(
            f"select table_schema || '.' || table_name from information_schema.tables where table_catalog = {quote(database.alias)} "
            "and table_schema not in ('information_schema', 'pg_catalog', 'mysql', 'performance_schema', 'sys')"
        ).fetchall()
        known = [str(row[0]) for row in there]
        if name not in known:
            shown = [other.removeprefix("public.").removeprefix(f"{database.name}.") for other in known]
            given = named if mark and schema not in ("public", database.name) else table
            raise FinegrainError(
                f"{where}.table: {database.place} has no table '{named}' that the user '{database.user}' can see"
                f"{nearest(given, shown)}"
            )
        scanned = {str(row[0]): str(row[1]) for row in con.execute(f"describe select * from {scan}").fetchall()}
        own = _types(con, database, schema, table)
        check_case(own, f"{where}.table: {name}", "read a view that names them apart")
        read = _read_postgres if database.kind == "postgres" else _read_mysql
        reads = {
            column: read(_own(database.kind, column), kind, own.get(column, "")) for column, kind in scanned.items()
        }
        opened = DatabaseTable(database, name, reads, {}, dict.fromkeys(scanned, ""))
        # Get the resulting types, and check that the table may be read.
        asked = opened.ask(
            ", ".join(f"{each.value} as {opened.own(column)}" for column, each in reads.items()), "1 = 0"
        )
        raw = {str(row[0]): str(row[1]) for row in con.execute(f"describe select * from {asked}").fetchall()}
        con.execute(f"select * from {asked}").fetchall()
        moments = {column: "TIMESTAMP WITH TIME ZONE" for column, kind in own.items() if kind == "timestamp"}
        return replace(opened, raw=raw, columns=raw | (moments if database.kind == "mysql" else {}))
    except duckdb.Error as error:
        raise unreachable(database, error, name) from None


def _types(con: duckdb.DuckDBPyConnection, database: Database, schema: str, table: str) -> dict[str, str]:
    """The server's type names of a table's columns; for a domain, its base type."""
    if database.kind == "postgres":
        asked = (
            "select n.nspname as a, c.relname as b, a.attname as c, case when t.typtype = 'd' then format_type(t.typbasetype, t.typtypmod) "
            "else format_type(a.atttypid, a.atttypmod) end as d from pg_attribute a join pg_class c on c.oid = a.attrelid "
            "join pg_namespace n on n.oid = c.relnamespace join pg_type t on t.oid = a.atttypid where a.attnum > 0 and not a.attisdropped"
        )
    else:
        asked = (
            "select cast(table_schema as char) as a, cast(table_name as char) as b, cast(column_name as char) as c, "
            "cast(if(data_type = 'timestamp', data_type, column_type) as char) as d from information_schema.columns"
        )
    found = con.execute(
        f"select c, d from {database.kind}_query({quote(database.alias)}, {quote(asked)}) "
        f"where a = {quote(schema)} and b = {quote(table)}"
    ).fetchall()
    return {str(column): str(kind) for column, kind in found}


_NO_NUMBER: Final = "NaN or infinite"
_NO_MOMENT: Final = "infinite or outside the years 1 to 9999"
_NO_DAY: Final = "no day of the calendar (a month or day of zero, as in 2024-00-15)"


def _read_postgres(column: str, scanned: str, own: str) -> Read:
    """How a column of PostgreSQL is read. DuckDB's scanner reads numbers without a precision as doubles, NaN as 0, and times out of its
    range as other times."""
    if own == "money":
        return Read(f"{column}::numeric::text")
    if own.startswith("numeric") and own.endswith("[]"):
        return Read(f"{column}::text[]")
    if own.startswith("numeric"):
        limits = re.fullmatch(r"numeric\((\d+),(\d+)\)", own)
        if limits is not None and int(limits[2]) <= int(limits[1]) <= 38:
            return _unless(f"{column} = 'NaN'", column, _NO_NUMBER, own)
        return _unless(f"{column}::text in ('NaN', 'Infinity', '-Infinity')", f"{column}::text", _NO_NUMBER)
    if scanned in ("FLOAT", "DOUBLE"):
        return _unless(f"{column} in ('NaN', 'Infinity', '-Infinity')", column, _NO_NUMBER)
    if scanned == "DATE":
        return _unless(f"({column} < '0001-01-01' or {column} > '9999-12-31')", column, _NO_MOMENT)
    if scanned.startswith("TIMESTAMP") and "[" not in scanned:
        first, end = (
            "'0001-01-01 00:00:00+00'",
            "'10000-01-01 00:00:00+00'",
        )  # +00 only applies if the column has a time zone
        return _unless(f"({column} < {first} or {column} >= {end})", column, _NO_MOMENT)
    return Read(f"{column}::text" if scanned == "VARCHAR" or scanned.startswith("ENUM(") else column)


def _read_mysql(column: str, scanned: str, own: str) -> Read:
    """How a column of MySQL is read. DuckDB's scanner fails on invalid dates, reads numbers of more than 38 digits as doubles, and texts
    with a binary collation as bytes."""
    if scanned == "DATE" or scanned.startswith("TIMESTAMP"):
        is_day = f"year({column}) > 0 and dayofmonth({column}) between 1 and dayofmonth(last_day({column}))"
        # As text, because for a zero date MySQL returns true for both null and not null.
        return _unless(f"(cast({column} as char) is not null and not coalesce({is_day}, false))", column, _NO_DAY)
    if scanned == "VARCHAR" or (own.startswith("decimal") and not scanned.startswith("DECIMAL")):
        return Read(f"cast({column} as char)")
    return Read(column)


def _unless(unreadable: str, value: str, why: str, kind: str = "") -> Read:
    shown = f"case when {unreadable} then null else {value} end"
    return Read(f"cast({shown} as {kind})" if kind else shown, unreadable, why)


def unreadable_value(con: duckdb.DuckDBPyConnection, table: DatabaseTable, error: duckdb.Error) -> FinegrainError:
    """A readable error for a table that cannot be read: names the column with a bad value, or gives the server's error."""
    if isinstance(error, (duckdb.ConversionException, duckdb.InvalidInputException)):
        for name in table.columns:
            try:
                con.execute(f"create or replace temp table __probe as {table.rows(only=[name])}")
            except (duckdb.ConversionException, duckdb.InvalidInputException) as found:
                said = re.sub(r"^[A-Za-z ]*Error: ", "", " ".join(str(found).split()))
                return FinegrainError(
                    f"{table.database.where}: {table.origin}: column '{name}' holds a value that cannot be read ({said[:200]}); "
                    "correct it, or read a view that leaves it out"
                )
            except duckdb.Error:
                break
    return unreachable(table.database, error, table.name)
