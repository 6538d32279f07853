"""PostgreSQL and MySQL as DuckDB reads them: attached read-only, rows by the hundred thousand, filters worked out over there.

What is asked of a server in its own words holds nothing but names. Of filters only times and whole numbers go there: DuckDB
does not spell a text the way MySQL reads it, and servers sort texts by rules of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import duckdb
from duckdb_extensions import import_extension

from orchestration.errors import FinegrainError
from orchestration.lake import quote
from orchestration.landing import identifier, without_nan
from orchestration.mapping import from_environment, nearest

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
class DatabaseTable:
    """A table: `scan` is how SQL names it, `raw` its columns as they come (name to DuckDB type), `columns` as they are meant:
    MySQL's moments in UTC come without saying so. `name` is the table's, with its schema."""

    database: Database
    name: str
    scan: str
    raw: dict[str, str]
    columns: dict[str, str]

    @property
    def origin(self) -> str:
        """What errors call it."""
        return f"{self.database.place}/{self.name}"

    def rows(self, condition: str) -> str:
        """A SELECT of all columns, as they are meant, of the rows of which a condition over the raw ones is true."""
        shown = []
        for name, kind in self.columns.items():
            value = without_nan(identifier(name), kind)
            shown.append(f"{value if kind == self.raw[name] else f'{value}::{kind}'} as {identifier(name)}")
        return f"select {', '.join(shown)} from {self.scan} where {condition}"

    def ask(self, select: str, condition: str = "") -> str:
        """A question to the server in its own words: `select` holds the column as {column}."""
        schema, table = self.name.split(".", 1)
        mark = '"' if self.database.kind == "postgres" else "`"
        spelled = [mark + part.replace(mark, mark * 2) + mark for part in (schema, table)]
        sql = f"select {select} from {'.'.join(spelled)}" + (f" where {condition}" if condition else "")
        return f"(from {self.database.kind}_query({quote(self.database.alias)}, {quote(sql)}))"

    def own(self, column: str) -> str:
        """A column's name as the server itself spells it."""
        mark = '"' if self.database.kind == "postgres" else "`"
        return mark + column.replace(mark, mark * 2) + mark


def attach(con: duckdb.DuckDBPyConnection, url: str, where: str) -> Database:
    """Attach the database at `url` (${NAME} in it comes from the environment), for reading. Raises FinegrainError in one
    sentence, without the password, where it cannot be reached."""
    place = f"{where}: database"
    told = from_environment(url, place)
    try:
        parts = urlsplit(told)
        port = parts.port
    except ValueError:
        raise FinegrainError(
            f"{place}: this is no address of a database (is the port a number, is a password with @ or / spelled %40, %2F?); "
            f"{_EXAMPLE}"
        ) from None
    kind = _KINDS.get(parts.scheme)
    name = unquote(parts.path.removeprefix("/"))
    if kind is None or not parts.hostname or not name or "/" in name:
        wrong = (
            f"'{parts.scheme}' is no kind of database" if kind is None else "the host or the database's name is missing"
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
            raise FinegrainError(f"{place}: the option '{option}' after the ? is not understood")
        options.append(f"{option}={value}")
    try:
        import_extension(f"{kind}_scanner", con=con)
        con.execute(f"load {kind}_scanner")
        if kind == "mysql":
            # Times in UTC; no limit to how long a big table may take.
            con.execute("set mysql_session_time_zone = '+00:00'")
            con.execute("set mysql_query_timeout_enabled = false")
        secret = ", ".join(f"{key} {quote(value)}" for key, value in given.items() if value)
        con.execute(f"detach database if exists {alias}")
        con.execute(f"create or replace temporary secret {alias} (type {kind}, {secret})")
        con.execute(f"attach {quote(' '.join(options))} as {alias} (type {kind}, secret {alias}, read_only)")
    except duckdb.Error as error:
        raise unreachable(database, error) from None
    return database


def unreachable(database: Database, error: duckdb.Error, table: str = "") -> FinegrainError:
    """What a server, or the way to it, said: one sentence that never holds the password."""
    said = " ".join(str(error).split())
    for secret in sorted(filter(None, database.secrets), key=len, reverse=True):
        said = said.replace(secret, "…")
    where, place = database.where, database.place
    lowered = said.lower()
    if "permission denied" in lowered or "command denied" in lowered or "to database" in lowered:
        mend = f"the user '{database.user}' may not read {table or 'it'}; grant select on it"
    elif "password authentication failed" in lowered or "access denied for user" in lowered or "no password" in lowered:
        mend = f"the server refuses the user '{database.user}' or the password"
    elif ("does not exist" in lowered and "database" in lowered) or "unknown database" in lowered:
        mend = f"there is no database '{database.name}' on this server"
    elif "translate host name" in lowered or "unknown server host" in lowered or "unknown mysql server host" in lowered:
        mend = "this host is not known"
    elif "refused" in lowered or "can't connect" in lowered or "timed out" in lowered or "timeout" in lowered:
        mend = "no server answers there; is it running, and are host and port right?"
    elif "closed the connection" in lowered or "gone away" in lowered or "lost connection" in lowered:
        mend = "the connection broke off; what has landed is whole, run this again"
    elif "no pg_hba.conf entry" in lowered:
        mend = "the server lets nobody in from here (pg_hba.conf)"
    else:
        mend = re.sub(r'^(IO|Catalog|Binder|Invalid Input) Error: |(with parameters|at) ""(: )?', "", said)
    return FinegrainError(f"{where}: {place}: {mend}")


def open_table(con: duckdb.DuckDBPyConnection, database: Database, named: str, where: str) -> DatabaseTable:
    """Find a table (`schema.table`, or `table` in PostgreSQL's public schema or MySQL's own database) and learn its columns.
    Raises FinegrainError where it is not there or may not be read."""
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
        raw = {str(row[0]): str(row[1]) for row in con.execute(f"describe select * from {scan}").fetchall()}
        columns = dict(raw)
        if database.kind == "mysql":
            moments = con.execute(
                f"from mysql_query({quote(database.alias)}, "
                "'select table_schema, table_name, column_name from information_schema.columns where data_type = ''timestamp''')"
            ).fetchall()
            columns |= {str(c): "TIMESTAMP WITH TIME ZONE" for s, t, c in moments if (s, t) == (schema, table)}
        opened = DatabaseTable(database, name, scan, raw, columns)
        con.execute(opened.ask("1", "1 = 0")).fetchall()  # whether it may be read
        return opened
    except duckdb.Error as error:
        raise unreachable(database, error, name) from None
