"""From one file and its mapping to SQL that gives rows of a raw table. The loader inserts it, the doctor asks it.

Nothing here reads rows into Python. A file is opened (its columns learned, malformed rows set aside), its mapping
bound to those columns, and the result is one SELECT that streams. Values from files never become SQL text.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Final

import duckdb
from jinja2 import Environment

from orchestration import settings
from orchestration.contracts import EVENT_TIME, RAW_TABLES, columns
from orchestration.errors import FinegrainError
from orchestration.files import LONGEST_LINE, DataFile, Look
from orchestration.lake import quote
from orchestration.mapping import Column, Field, Table, expression, nearest

#: Fields that are numbers; those whose name ends with `_at` are times; `properties` may be nested; others are text.
NUMBERS: Final = frozenset({"amount", "birth_year", "price", "quantity", "weight"})
#: Rows of a file that are tried before anything is landed.
SAMPLE: Final = 10_000
#: From so many values on, a time or number field of which none can be read is taken for a mistake in the mapping.
ENOUGH: Final = 20

#: The first and the last moment that is one, in UTC.
_MOMENTS: Final = ("0001-01-01 00:00:00", "9999-12-31 23:59:59.999999")

_numbers = itertools.count()


@dataclass
class Opened:
    """Rows to land as a relation: their own `columns` (name to DuckDB type) plus `__n` (what tells a row; in a file its
    number from 1), `__bad` (why the row could not be read, or NULL) and `__payload` (the row as it was delivered).
    `origin` is how errors call the place they come from, `is_typed` whether its columns have types or are text.
    `names` are all columns that are seen; of JSON `columns` holds only those that the mapping reads. `along` are further columns
    of the relation that bound rows keep."""

    origin: str
    columns: dict[str, str]
    relation: str
    names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    is_typed: bool = False
    along: tuple[str, ...] = ()


@dataclass
class Bound:
    """A file's rows in contract shape: `rows` gives `__n`, `__bad`, `__payload`, `__available` (text) and every
    mapped contract field. `fields` are the mapped ones."""

    opened: Opened
    table: str
    entry: Table
    zone: str
    fields: tuple[str, ...]
    rows: str


def identifier(name: str) -> str:
    """A SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def path_literal(file: DataFile) -> str:
    """A file's path as DuckDB reads it: exactly this file, though its name may look like a pattern."""
    return quote(re.sub(r"([*?\[])", r"[\1]", str(file.path)))


@cache
def macros(file: str) -> Any:
    """The macros of one file below macros/, each a function that gives SQL. Only those that are plain Jinja work."""
    text = (settings.PROJECT / "macros" / file).read_text("utf-8")
    return Environment().from_string(text).module


def parse_time(value: str, zone: str) -> str:
    """SQL that reads the text `value` (SQL) as a UTC timestamp: the same macro that the models use."""
    return str(macros("engine/time.sql").duckdb__parse_time(value, zone))


def local_time_is_odd(value: str, zone: str) -> str:
    """SQL, true for a naive local time that occurs twice or never in `zone`."""
    return str(macros("engine/time.sql").duckdb__local_time_is_odd(value, zone))


def bind(
    con: duckdb.DuckDBPyConnection, file: DataFile, look: Look, table: str, entry: Table, zone: str, where: str
) -> Bound:
    """Open a file and bind its mapping to its columns. `where` is how errors name the mapping's entry."""
    return bind_opened(con, open_file(con, file, look, table, entry, where), table, entry, zone, where)


def open_file(
    con: duckdb.DuckDBPyConnection, file: DataFile, look: Look, table: str, entry: Table, where: str
) -> Opened:
    """Learn a file's columns and set its malformed rows aside. Only JSON lines depend on `entry`, for their keys."""
    try:
        return _open(con, file, look, table, entry, where)
    except duckdb.Error as error:
        raise unreadable(str(file.path), error, file.format == "parquet") from None


def bind_opened(
    con: duckdb.DuckDBPyConnection, opened: Opened, table: str, entry: Table, zone: str, where: str
) -> Bound:
    """Bind a mapping to the columns of a file that is open."""
    try:
        if table == "ga4_events":
            return _bind_ga4(con, opened, entry, zone)
        return _bind(con, opened, table, entry, zone, where)
    except duckdb.Error as error:
        raise unreadable(opened.origin, error, opened.is_typed) from None


def unreadable(origin: str, error: duckdb.Error, is_typed: bool) -> FinegrainError:
    """What DuckDB said of a file or another origin of rows, as a sentence."""
    text = str(error)
    if is_typed and not isinstance(error, duckdb.ConversionException):
        return FinegrainError(f"{origin}: this is no whole Parquet file (cut off, or another format); copy it again")
    if "maximum line size" in text.lower() or "max_line_size" in text:
        return FinegrainError(
            f"{origin}: a row is longer than {LONGEST_LINE // 2**20} MB; is a quotation mark never closed?"
        )
    return FinegrainError(f"{origin}: {text.splitlines()[0].removeprefix('Error: ')}")


# --- opening -----------------------------------------------------------------------------------------------------


def _open(con: duckdb.DuckDBPyConnection, file: DataFile, look: Look, table: str, entry: Table, where: str) -> Opened:
    match file.format:
        case "parquet":
            return _open_parquet(con, file)
        case "csv":
            return _open_csv(con, file, look)
        case "jsonl":
            return _open_jsonl(con, file, table, entry, where)


def _open_parquet(con: duckdb.DuckDBPyConnection, file: DataFile) -> Opened:
    read = f"read_parquet({path_literal(file)}, hive_partitioning = false, file_row_number = true)"
    described = con.execute(f"describe select * from {read}").fetchall()
    kinds = {str(row[0]): str(row[1]) for row in described if row[0] != "file_row_number"}
    shown = ", ".join(f"{_finite(identifier(name), kind)} as {identifier(name)}" for name, kind in kinds.items())
    relation = (
        f"(select *, null::varchar as __bad, {packed(kinds)} as __payload "
        f"from (select {shown}, file_row_number + 1 as __n from {read}))"
    )
    notes = [
        f"column '{name}' of {file.name}: {count:,} {'value is' if count == 1 else 'values are'} {why}, and so null"
        for name, count, why in _beyond(con, read, kinds)
    ]
    return Opened(str(file.path), kinds, relation, tuple(kinds), notes, is_typed=True)


def _finite(value: str, kind: str) -> str:
    """SQL of a value. NaN is how pandas spells a missing number; neither it nor an infinite number is JSON."""
    return f"case when isfinite({value}) then {value} end" if kind in ("FLOAT", "DOUBLE") else value


def _beyond(con: duckdb.DuckDBPyConnection, read: str, kinds: dict[str, str]) -> list[tuple[str, int, str]]:
    """(column, values, what they are) of the typed values of a file that land as null, NaN not counted."""
    counted: dict[str, tuple[str, str]] = {}
    for name, kind in kinds.items():
        column = identifier(name)
        if kind in ("FLOAT", "DOUBLE"):
            counted[name] = f"isinf({column})", "infinite"
        elif (moment := _moment(column, kind)) is not None:
            counted[name] = f"{column} is not null and {moment} is null", "infinite or outside the years 1 to 9999"
    if not counted:
        return []
    row = con.execute(
        f"select {', '.join(f'count(*) filter ({condition})' for condition, _ in counted.values())} from {read}"
    ).fetchall()[0]
    return [(name, count, why) for count, (name, (_, why)) in zip(row, counted.items(), strict=True) if count]


def packed(names: Iterable[str]) -> str:
    """SQL of columns as one JSON text."""
    members = ", ".join(f"{quote(name)}: {identifier(name)}" for name in names)
    return f"to_json({{{members}}})::varchar"


def _read_lines(file: DataFile) -> str:
    """Every line of a text file, in order, as `line`; a blank one is NULL. The delimiter is one that no text has."""
    return (
        f"read_csv({path_literal(file)}, auto_detect = false, header = false, delim = '\x01\x02\x03\x04', quote = '', "
        f"escape = '', columns = {{'line': 'VARCHAR'}}, max_line_size = {LONGEST_LINE})"
    )


def _open_csv(con: duckdb.DuckDBPyConnection, file: DataFile, look: Look) -> Opened:
    names, delimiter, header_lines = _header(file)
    kinds = dict.fromkeys(names, "VARCHAR")
    shape = ", ".join(f"{quote(name)}: 'VARCHAR'" for name in names)
    dialect = (
        f"{path_literal(file)}, auto_detect = false, header = true, delim = {quote(delimiter)}, quote = '\"', "
        f"escape = '\"', columns = {{{shape}}}, max_line_size = {LONGEST_LINE}"
    )
    rejects = _set_aside(con, file, names, dialect, look.quoted, header_lines)
    everything = ", ".join(identifier(name) for name in names)
    good = f"(select row_number() over () as __g, * from read_csv({dialect}, ignore_errors = true))"
    if rejects is None:
        numbered = f"(select {everything}, __g as __n from {good})"
        rest = ""
    else:
        # A good row's number counts the malformed rows before it.
        numbered = (
            f"(select {everything}, __g + coalesce(shift, 0) as __n from {good} asof left join ("
            f"select n - rank as before, max(rank) as shift from "
            f"(select n, row_number() over (order by n) as rank from {rejects}) group by all) on __g > before)"
        )
        rest = f" union all by name select n as __n, why as __bad, raw as __payload from {rejects}"
    relation = f"(select {everything}, __n, null::varchar as __bad, {packed(names)} as __payload from {numbered}{rest})"
    return Opened(str(file.path), kinds, relation, tuple(names))


def _header(file: DataFile) -> tuple[list[str], str, int]:
    """(column names, delimiter, lines the header takes). The delimiter is the one that splits the header most."""
    opener = gzip.open if file.path.suffix == ".gz" else open
    tried: list[tuple[list[str], str, int]] = []
    try:
        for delimiter in (",", ";", "\t", "|"):
            with opener(file.path, "rt", encoding="utf-8-sig", newline="") as stream:
                reader = csv.reader(stream, delimiter=delimiter)
                tried.append(([name.strip() for name in next(reader, [])], delimiter, reader.line_num))
    except csv.Error as error:
        raise FinegrainError(f"{file.path}: the header cannot be read: {error}") from None
    names, delimiter, lines = max(tried, key=lambda header: len(header[0]))
    names = [name or f"column{number}" for number, name in enumerate(names, 1)]
    lowered = [name.lower() for name in names]
    twice = next((name for name in names if lowered.count(name.lower()) > 1), None)
    if not names or twice is not None:
        raise FinegrainError(
            f"{file.path}: the header names '{twice}' twice; each column needs its own name"
            if twice
            else f"{file.path}: the first line is blank; it must name the columns"
        )
    return names, delimiter, lines


def _set_aside(
    con: duckdb.DuckDBPyConnection, file: DataFile, names: list[str], dialect: str, quoted: bool, header_lines: int
) -> str | None:
    """Read a CSV once to find its malformed rows: a temporary table of (n, raw, why), or None without any.

    DuckDB drops text after a stray quotation mark without a word, so with quotes about, every line that is not
    blank must be found again in a row, or the file is refused.
    """
    number = next(_numbers)
    table, scan, kept = f"__rejects_{number}", f"__scans_{number}", f"__malformed_{number}"
    text = f"concat_ws(',', {', '.join(identifier(name) for name in names)})"
    folded = f"regexp_replace({text}, '(\\r?\\n)+', chr(10), 'g')"
    lines = (
        f"1 + case when contains({text}, chr(10)) then len({folded}) - len(replace({folded}, chr(10), '')) else 0 end"
    )
    [(found,)] = con.execute(
        f"select coalesce(sum({lines if quoted else '1'}), 0) from read_csv({dialect}, store_rejects = true, "
        f"rejects_table = '{table}', rejects_scan = '{scan}', rejects_limit = 0)"
    ).fetchall()
    con.execute(
        f"""create or replace temp table {kept} as
        select line - 1 as n, trim(any_value(csv_line), chr(10) || chr(13)) as raw,
            case
                when bool_or(error_type = 'MISSING COLUMNS')  -- an error for each column that is missing
                    then min(try_cast(regexp_extract(error_message, 'Found: ([0-9]+)', 1) as bigint)) || ' columns instead of {len(names)}'
                when bool_or(error_type = 'TOO MANY COLUMNS')  -- and one for each that is too many
                    then max(try_cast(regexp_extract(error_message, 'Found: ([0-9]+)', 1) as bigint)) || ' columns instead of {len(names)}'
                else 'not CSV: ' || lower(any_value(error_type))
            end as why,
            bool_or(error_type = 'UNQUOTED VALUE') and contains(raw, chr(10)) as open
        from {table} group by line"""
    )
    con.execute(f"drop table {table}; drop table {scan}")
    count, in_rejects, unclosed = con.execute(
        f"select count(*), coalesce(sum(len(list_filter(split(raw, chr(10)), lambda x: trim(x, chr(13)) <> ''))), 0), "
        f"min(n) filter (open) from {kept}"
    ).fetchall()[0]
    if quoted:
        [(present,)] = con.execute(
            f"select count(*) - {header_lines} from {_read_lines(file)} where trim(line, chr(13)) <> ''"
        ).fetchall()
        if unclosed is not None or found + in_rejects < present:
            raise FinegrainError(
                f"{file.path}: line {_stray_quote(con, file)} opens a quotation mark that is never closed"
            )
    return kept if count else None


def _stray_quote(con: duckdb.DuckDBPyConnection, file: DataFile) -> int:
    """The line whose opened quotation mark stays open longest."""
    rows = con.execute(
        f"""with odd as (
            select n, row_number() over (order by n) as nth, lead(n) over (order by n) as closing
            from (select row_number() over () as n, line from {_read_lines(file)})
            where (len(line) - len(replace(line, '"', ''))) % 2 = 1
        )
        select n from odd where nth % 2 = 1 order by coalesce(closing - n, 9e15) desc, n limit 1"""
    ).fetchall()
    return int(rows[0][0]) if rows else 1


#: Regular expressions: what a JSON number with more digits than a double keeps at least has; such a number; and strings and all between.
_LONG: Final = "[0-9.]{17}"
_INEXACT: Final = (
    "-?(?:"
    + "|".join(rf"[0-9]{{{n}}}\.[0-9]{{{16 - n},}}" for n in range(1, 16))
    + r"|[0-9]{16,}\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
)
_TOKENS: Final = r'"(?:[^"\\]|\\.)*"|[^"]+'


def exact_numbers(json: str, quoted: str = r'"\0"') -> str:
    """SQL of a JSON text in which numbers that a double cannot hold are texts, so that the engine's reader keeps all their digits.
    (Whole numbers it keeps by itself.)"""
    parts = (
        f"list_transform(regexp_extract_all({json}, {quote(_TOKENS)}), lambda part: case when starts_with(part, '\"') then part "
        f"else regexp_replace(part, {quote(_INEXACT)}, {quote(quoted)}, 'g') end)"
    )
    return f"case when regexp_matches({json}, {quote(_LONG)}) then array_to_string({parts}, '') else {json} end"


def _open_jsonl(con: duckdb.DuckDBPyConnection, file: DataFile, table: str, entry: Table, where: str) -> Opened:
    # An object, and not merely JSON: a list or a number on a line has no fields.
    lines = (
        f"(select row_number() over () as __n, line, case when ltrim(line) like '{{%' then try_cast(line as json) end "
        f"as __json from {_read_lines(file)})"
    )
    seen: dict[str, int] = {
        str(key): int(count)
        for key, count in con.execute(
            f"select key, count(*) from (select unnest(json_keys(__json)) as key from "
            f"(select __json from {lines} where line is not null limit {SAMPLE})) group by key order by min(key)"
        ).fetchall()
    }
    wanted = read_columns(table, entry, list(seen))
    opened = Opened(str(file.path), dict.fromkeys(wanted, "VARCHAR"), "", tuple(seen))
    for name in [name for name in wanted if name not in seen]:
        rows, with_it = con.execute(
            f"select count(__json), count(*) filter (list_contains(json_keys(__json), {quote(name)})) from {lines}"
        ).fetchall()[0]
        if with_it:
            continue
        # A key that is rare may be absent from a small file; one that is misspelt must not pass for absent.
        close = nearest(name, [key for key in seen if key not in wanted])
        if rows and ("did you mean" in close or rows >= 1000 or _needs(table, entry, name)):
            hint = close if "did you mean" in close else nearest(name, seen)
            raise FinegrainError(f"{where}: {file.path} has no column '{name}'{hint}")
        opened.notes.append(f"no row of {file.name} has '{name}'; it stays null")
    shape = json.dumps(dict.fromkeys(wanted, "VARCHAR")) if wanted else '{"": "VARCHAR"}'
    got = ", ".join(f"__row.{identifier(name)} as {identifier(name)}" for name in wanted)
    opened.relation = (
        f"(select {got + ', ' if got else ''}__n, case when __json is null then 'not a JSON object' end as __bad, "
        f"line as __payload from (select *, case when __json is not null then from_json({exact_numbers('line')}, {quote(shape)}) end as __row from {lines} where line is not null))"
    )
    return opened


def read_columns(table: str, entry: Table, seen: Sequence[str]) -> list[str]:
    """The columns that a mapping reads of a file, which is seen to have some."""
    if table == "ga4_events":
        return list(RAW_TABLES[table])
    exact, loose = set(seen), {name.lower(): name for name in seen}
    names = [source.column for source in entry.fields.values() if source.column is not None]
    names += [where.column for where in (entry.available_at, entry.deletes) if isinstance(where, Column)]
    names += entry.key
    if entry.http is not None and entry.http.since is not None:
        names.append(entry.http.since.column)
    for text in [source.sql for source in entry.fields.values()] + [entry.where]:
        if text is not None:  # SQL does not tell upper from lower case
            names += [name if name in exact else loose.get(name.lower(), name) for name in expression(text)]
    return list(dict.fromkeys(names))


def _needs(table: str, entry: Table, column: str) -> bool:
    """Whether the moment or the kind of a row hangs on a column."""
    if column in entry.key or (entry.http and entry.http.since and entry.http.since.column == column):
        return True
    needed = {"event_type", EVENT_TIME[table], f"{table.removesuffix('s')}_id"}
    return any(source.column == column for name, source in entry.fields.items() if name in needed)


# --- binding -----------------------------------------------------------------------------------------------------


def as_text(value: str, kind: str) -> str:
    """SQL that turns `value` of DuckDB type `kind` into the text that lands."""
    if _nested(kind):
        return f"to_json({value})::varchar"
    if kind in ("FLOAT", "DOUBLE"):
        # An id that pandas made a float is 17850, not 17850.0. Beyond what the type counts one by one, a number is not exact: it is
        # spelled in scientific notation, by which the models know that it tells nothing apart.
        most, digits = (2**24, 8) if kind == "FLOAT" else (2**53, 16)
        text = f"cast({value} as varchar)"
        return (
            f"case when not isfinite({value}) then null when {value} <> trunc({value}) or contains({text}, 'e') then {text} "
            f"when abs({value}) <= {most} then cast(cast({value} as bigint) as varchar) else printf('%.{digits}e', {value}::double) end"
        )
    moment = _moment(value, kind)
    if moment is not None:
        return f"cast({moment} as varchar)"
    return value if kind == "VARCHAR" else f"cast({value} as varchar)"


def _moment(value: str, kind: str) -> str | None:
    """SQL of a typed time, to the microsecond; null where it is infinite or outside the years 1 to 9999. None for another type."""
    if kind == "DATE":
        return f"case when {value} between date '0001-01-01' and date '9999-12-31' then {value} end"
    if not kind.startswith("TIMESTAMP") or "[" in kind:
        return None
    exact = "timestamptz" if kind == "TIMESTAMP WITH TIME ZONE" else "timestamp"
    if kind.startswith("TIMESTAMP_"):  # seconds, milliseconds, nanoseconds
        value = f"try_cast({value} as timestamp)"
    ends = (f"{exact} '{text}{'+00' if exact == 'timestamptz' else ''}'" for text in _MOMENTS)
    return f"case when {value} between {' and '.join(ends)} then {value} end"


def _nested(kind: str) -> bool:
    return kind.startswith(("STRUCT", "MAP", "UNION", "VARIANT")) or kind.endswith("]")


def is_time(name: str) -> bool:
    """Whether a contract field holds a moment."""
    return name.endswith("_at") or name == "event_timestamp"


def _check_kind(where: str, name: str, kind: str, said: str) -> None:
    """Refuse a column whose type can never be what the field means."""
    if _nested(kind) and name != "properties":
        raise FinegrainError(f'{where}: {said} is nested ({_brief(kind)}); take a part of it, say {{sql: "x.y"}}')
    if kind == "BLOB":
        raise FinegrainError(f'{where}: {said} is binary; decode it, say {{sql: "decode(x)"}}')
    base = kind.partition("(")[0]
    if is_time(name) and base in ("BOOLEAN", "TIME", "INTERVAL", "UUID"):
        raise FinegrainError(f"{where}: {said} is {base.lower()}, which is no moment in time")
    if name in NUMBERS and (base in ("BOOLEAN", "TIME", "INTERVAL", "UUID", "DATE") or base.startswith("TIMESTAMP")):
        raise FinegrainError(f"{where}: {said} is {base.lower()}, which is no number")


def _brief(kind: str) -> str:
    return kind if len(kind) <= 40 else kind[:39] + "…"


def _bind(con: duckdb.DuckDBPyConnection, opened: Opened, table: str, entry: Table, zone: str, where: str) -> Bound:
    tries: list[str] = []
    failed: list[str] = []
    values: dict[str, str] = {}
    keep = "true"
    for name, source in entry.fields.items():
        place = f"{where}.fields.{name}"
        if source.sql is not None:
            kind = _kind_of(con, opened, source.sql, place)
            _check_kind(place, name, kind, "the expression's value")
            # An expression that fails on one row must not fail the load, nor pass for an absent value.
            tries.append(f"try({{'v': ({source.sql}\n)}}) as {identifier('__try_' + name)}")
            failed.append(
                f"when {identifier('__try_' + name)} is null then {quote(f'the sql of {name} fails on this row')}"
            )
            values[name] = as_text(identifier("__try_" + name) + ".v", kind)
        else:
            values[name] = _plain(opened, source, name, place)
    if entry.where is not None:
        kind = _kind_of(con, opened, entry.where, f"{where}.where")
        if kind != "BOOLEAN":
            raise FinegrainError(f"{where}.where: its value is {kind.lower()}, not true or false")
        tries.append(f"try({{'v': ({entry.where}\n)}}) as __try_where")
        failed.append("when __try_where is null then 'the sql of where fails on this row'")
        keep = "__bad is not null or __try_where is null or __try_where.v"
    if isinstance(entry.available_at, Column):
        place = f"{where}.available_at"
        available = _plain(opened, Field(column=entry.available_at.column), "available_at", place)
    else:
        # Said by its value rather than by name: the file may have a column of that name.
        available = values[EVENT_TIME[table]] if entry.available_at == "event_time" else "null::varchar"
    bad = f"coalesce(__bad, case {' '.join(failed)} end)" if failed else "__bad"
    shown = ", ".join(f"{value} as {identifier(name)}" for name, value in values.items())
    relation = f"(select *, {', '.join(tries)} from {opened.relation})" if tries else opened.relation
    along = "".join(f", {name}" for name in opened.along)
    rows = f"select __n, {bad} as __bad, __payload{along}, {available} as __available, {shown} from {relation} where {keep}"
    if entry.distinct:
        keys = ", ".join(identifier(name) for name in entry.fields)
        rows = f"select * from ({rows}) where __n in (select min(__n) from ({rows}) group by {keys})"
    return Bound(opened, table, entry, zone, tuple(entry.fields), rows)


def _plain(opened: Opened, source: Field, name: str, place: str) -> str:
    """SQL of a field that is a constant or a column."""
    if source.column is None:
        if source.value is None:
            return "null::varchar"
        return quote(str(source.value).lower() if isinstance(source.value, bool) else str(source.value))
    kind = opened.columns.get(source.column)
    if kind is None:
        raise FinegrainError(
            f"{place}: {opened.origin} has no column '{source.column}'{nearest(source.column, opened.columns)}"
        )
    _check_kind(place, name if source.map is None else "", kind, f"column '{source.column}'")
    text = as_text(identifier(source.column), kind)
    if source.map:
        pairs = " ".join(
            f"when {quote(old)} then {'null' if new is None else quote(new)}" for old, new in source.map.items()
        )
        return f"case {text} {pairs} else {text} end"
    return text


def _kind_of(con: duckdb.DuckDBPyConnection, opened: Opened, text: str, place: str) -> str:
    """The DuckDB type of an expression over a file's columns; errors name the column or the function."""
    known = {name.lower() for name in opened.columns}
    for name in expression(text):
        if name.lower() not in known:
            raise FinegrainError(f"{place}: {opened.origin} has no column '{name}'{nearest(name, opened.columns)}")
    empty = ", ".join(f"null::{kind} as {identifier(name)}" for name, kind in opened.columns.items())
    try:
        described = con.execute(f"describe select ({text}\n) as v from (select {empty or 'null as __none'})").fetchall()
    except duckdb.Error as error:
        hint = "" if opened.is_typed else " (columns of a text file are text: cast them, as in try_cast(x as double))"
        raise FinegrainError(f"{place}: {str(error).splitlines()[0]}{hint}") from None
    return str(described[0][1]).strip('"')


def _structure(kind: Any) -> Any:
    """A DuckDB type as the structure that `from_json` takes."""
    match kind.id:
        case "list":
            return [_structure(dict(kind.children)["child"])]
        case "struct":
            return {name: _structure(child) for name, child in kind.children}
        case _:
            return str(kind)


def _bind_ga4(con: duckdb.DuckDBPyConnection, opened: Opened, entry: Table, zone: str) -> Bound:
    """GA4's own export: each nested column cast by name, so that fields it lacks become null and others stay in
    the payload alone."""
    for name in ("event_name", "event_timestamp"):
        if name not in opened.columns:
            raise FinegrainError(
                f"{opened.origin} has no column '{name}', so it is no GA4 export{nearest(name, opened.columns)}"
            )
    shown = []
    for name, kind in RAW_TABLES["ga4_events"].items():
        given = opened.columns.get(name)
        if given is None:
            value = f"null::{kind}"
        elif kind == "VARCHAR":
            _check_kind(opened.origin, name, given, f"column '{name}'")
            value = as_text(identifier(name), given)
        else:
            structure = quote(json.dumps(_structure(duckdb.sqltype(kind))))
            inner = f"try_cast({identifier(name)} as json)" if given == "VARCHAR" else f"to_json({identifier(name)})"
            value = f"from_json({inner}, {structure})"
            if given != "VARCHAR":  # the engine's own cast by name is twenty times faster, where the types allow it
                native = f"try_cast({identifier(name)} as {kind})"
                try:
                    con.execute(f"describe select {native} from (select null::{given} as {identifier(name)})")
                    value = native
                except duckdb.Error:
                    pass
        shown.append(f"{value} as {identifier(name)}")
    available = {"event_time": as_text("event_timestamp", opened.columns["event_timestamp"])}.get(
        str(entry.available_at), "null::varchar"
    )
    if isinstance(entry.available_at, Column):
        available = _plain(opened, Field(column=entry.available_at.column), "available_at", "available_at")
    rows = f"select __n, __bad, __payload, {available} as __available, {', '.join(shown)} from {opened.relation}"
    return Bound(opened, "ga4_events", entry, zone, tuple(RAW_TABLES["ga4_events"]), rows)


# --- landing -----------------------------------------------------------------------------------------------------


def in_file(name: str, suffix: str = "") -> str:
    """SQL of a row's position in a file: `name#n` and `suffix`."""
    return f"{quote(name + '#')} || __n" + (f" || {quote(suffix)}" if suffix else "")


def select(bound: Bound, source: str, position: str, ingested_at: datetime, *, are_good: bool = False) -> str:
    """The SELECT that lands rows: every column of their raw table, in order. `position` is SQL over the relation. Where all rows
    `are_good`, none has `__bad`."""
    now = f"timestamp {quote(ingested_at.isoformat(sep=' '))}"
    entry = bound.entry
    moment = parse_time("__available", quote(bound.zone))
    values = {
        "_source": quote(source),
        "_position": position,
        "_origin": quote(entry.origin),
        "_time_zone": quote(bound.zone),
        "_expects": quote(",".join(entry.expects)) if entry.expects else "null",
        "_error": "null" if are_good else "__bad",
        "_ingested_at": now,
        # The shop cannot have known a row after the lake did.
        "available_at": now if entry.available_at == "now" else f"least(coalesce({moment}, {now}), {now})",
        "payload": "__payload",
    }
    shown = []
    for column, kind in columns(bound.table).items():
        if column in values:
            value = values[column]
        elif column in bound.fields:
            value = identifier(column) if are_good else f"case when __bad is null then {identifier(column)} end"
        else:
            value = "null"
        shown.append(f"cast({value} as {kind}) as {identifier(column)}")
    return f"select {', '.join(shown)} from ({bound.rows})"


def check_sample(con: duckdb.DuckDBPyConnection, bound: Bound, where: str) -> None:
    """Refuse a file of which no time, or no number, can be read: the mapping is wrong, not some rows.

    The lake never forgets, so junk must not get in. Rows that are bad one by one do land, and are quarantined.
    """
    tested = [name for name in bound.fields if is_time(name) or name in NUMBERS]
    if not tested:
        return
    parts = []
    for name in tested:
        text = identifier(name)
        good = parse_time(text, quote(bound.zone)) if is_time(name) else f"try_cast({text} as double)"
        parts.append(f"count({text}), count({good}), min({text})")
    try:
        row = con.execute(
            f"select {', '.join(parts)} from (select * from ({bound.rows}) where __bad is null limit {SAMPLE})"
        ).fetchall()[0]
    except duckdb.Error as error:
        raise unreadable(bound.opened.origin, error, bound.opened.is_typed) from None
    for position, name in enumerate(tested):
        filled, good, example = row[3 * position : 3 * position + 3]
        if filled >= ENOUGH and not good:
            what = "a time" if is_time(name) else "a number"
            raise FinegrainError(
                f"{where}.fields.{name}: no value of it in {bound.opened.origin} is {what}; the first is '{str(example)[:60]}'"
            )


def batches(
    files: list[tuple[DataFile, str]], size: int = 64 * 2**20, count: int = 50
) -> Iterator[list[tuple[DataFile, str]]]:
    """Group small files, so that the lake does not get a small file for each: (file, SELECT) pairs."""
    batch: list[tuple[DataFile, str]] = []
    for pair in files:
        if batch and (len(batch) >= count or sum(file.size for file, _ in batch) + pair[0].size > size):
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch
