"""Turns a file and its mapping into SQL that returns rows of a raw table. The loader inserts them; the doctor checks them.

No rows are read into Python. A file is opened (its columns are found and malformed rows are marked), the mapping is bound to its columns, and
the result is one streaming SELECT. Values from files never become SQL text.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from typing import Any, Final

import duckdb
from jinja2 import Environment

from orchestration.config import settings
from orchestration.errors import FinegrainError, console
from orchestration.ingest import personal
from orchestration.lake.forgotten import IDS as PEOPLE
from orchestration.lake.forgotten import hash_of
from orchestration.mapping.contracts import EVENT_TIME, IDS, RAW_TABLES, columns
from orchestration.mapping.contracts import is_time as is_time
from orchestration.mapping.mapping import (
    ELEMENT,
    PARENT,
    Column,
    Csv,
    Explosion,
    Field,
    Sql,
    Table,
    expression,
    has_offset,
    nearest,
    strptime,
)
from orchestration.mapping.personal import Personal, masked
from orchestration.sources import counting, devices, records
from orchestration.sources.columns import check_case
from orchestration.sources.files import LONGEST_LINE, DataFile, Look
from orchestration.sql.text import exact_numbers, free_prefix, identifier, path_literal, quote, timestamp_literal

#: Numeric fields. Fields whose name ends in `_at` are times, `properties` may be nested, and all others are text.
NUMBERS: Final = frozenset(
    {"amount", "birth_year", "discount", "price", "quantity", "shipping", "tax", "total", "weight"}
)
#: The most elements of a list that become rows, as the models allow for GA4's items. A record with more is malformed.
MOST_ELEMENTS: Final = 511
#: Rows of a file that are checked before anything lands.
SAMPLE: Final = 10_000
#: If none of at least this many values of a time or number field can be read, the mapping is assumed to be wrong.
ENOUGH: Final = 20

#: The first and the last valid time, in UTC.
_MOMENTS: Final = ("0001-01-01 00:00:00", "9999-12-31 23:59:59.999999")
#: `_error` of the rows of forgotten people.
FORGOTTEN: Final = "forgotten: this person was forgotten"
#: A hint for a common mistake in expressions with an arrow.
ARROWS: Final = "-> and ->> bind more loosely than most operators: write (a->>'$.x') > 5, not a->>'$.x' > 5"

_numbers = itertools.count()


@dataclass
class Opened:
    """Rows to land, as a relation: their `columns` (name to DuckDB type) and three of ours, whose names begin with `own`: `n` (the row's id; in a
    file its number from 1), `bad` (why the row could not be read, or NULL) and `payload` (the row as delivered).

    `origin` names the source in errors. `is_typed`: its columns have types, otherwise they are text. `names` are all columns seen; for JSON,
    `columns` has only those the mapping reads. `along` are further columns of ours that bound rows keep. `is_json`: the payload is a JSON object
    whose keys are the columns. `expected` is an independent count of the rows, if there is one. If elements of lists are rows, `records` is the
    relation before exploding, `more` a SELECT of how many more rows than records there are, and `types` SQL of the JSON types of members."""

    origin: str
    columns: dict[str, str]
    relation: str
    names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    is_typed: bool = False
    along: tuple[str, ...] = ()
    is_json: bool = False
    expected: int | None = None
    records: str | None = None
    more: str | None = None
    types: dict[str, str] = field(default_factory=dict)

    @property
    def own(self) -> str:
        """The prefix of our own columns."""
        return free_prefix(self.columns)


@dataclass
class Bound:
    """Rows bound to a contract: `rows` is a SELECT of `__n`, `__bad`, `__payload`, `__available` (text) and every mapped field, and `fields` are
    the mapped fields. `left_out` is a SELECT of how many rows of the file are filtered out."""

    opened: Opened
    table: str
    entry: Table
    zone: str
    fields: tuple[str, ...]
    rows: str
    left_out: str | None = None

    def expected(self, con: duckdb.DuckDBPyConnection) -> int:
        """How many rows of a file must land, counted independently."""
        assert self.opened.expected is not None, "not a file"
        try:
            more, left_out = (
                int(con.execute(select).fetchall()[0][0]) if select is not None else 0
                for select in (self.opened.more, self.left_out)
            )
        except duckdb.Error as error:
            raise unreadable(self.opened.origin, error, self.opened.is_typed) from None
        return self.opened.expected + more - left_out


@cache
def macros(file: str) -> Any:
    """The macros of one file below macros/, as functions that return SQL. Works only for macros in plain Jinja."""
    text = (settings.PACKAGE / "macros" / file).read_text("utf-8")
    return Environment().from_string(text, globals={"var": settings.variable}).module


def parse_time(value: str, zone: str) -> str:
    """SQL that parses the text `value` (SQL) as a UTC timestamp, with the macro that the models use."""
    return str(macros("engine/time.sql").duckdb__parse_time(value, zone))


def is_plain_time(value: str) -> str:
    """SQL, true only for valid times, and for nearly all common formats: faster than `parse_time`."""
    return str(macros("engine/time.sql").duckdb__is_plain_time(value))


def local_time_is_odd(value: str, zone: str) -> str:
    """SQL, true for a local time without offset that occurs twice or never in `zone`."""
    return str(macros("engine/time.sql").duckdb__local_time_is_odd(value, zone))


def bind(
    con: duckdb.DuckDBPyConnection,
    file: DataFile,
    look: Look,
    table: str,
    entry: Table,
    zone: str,
    where: str,
    malformed: bool = True,
) -> Bound:
    """Open a file and bind its mapping to its columns. `where` names the mapping's entry in errors. Unreadable rows are included only if
    `malformed`: if several entries read one file, the first takes them."""
    return bind_opened(con, open_file(con, file, look, table, entry, where), table, entry, zone, where, malformed)


def open_file(
    con: duckdb.DuckDBPyConnection, file: DataFile, look: Look, table: str, entry: Table, where: str
) -> Opened:
    """Find a file's columns and mark its malformed rows. Only JSON lines depend on `entry`, for their keys."""
    try:
        return _open(con, file, look, table, entry, where)
    except duckdb.Error as error:
        raise unreadable(str(file), error, file.format == "parquet") from None


def bind_opened(
    con: duckdb.DuckDBPyConnection,
    opened: Opened,
    table: str,
    entry: Table,
    zone: str,
    where: str,
    malformed: bool = True,
) -> Bound:
    """Bind a mapping to the columns of a file that is open."""
    personal.register(con)
    try:
        if not malformed:
            readable = replace(opened, relation=f"(select * from {opened.relation} where {opened.own}bad is null)")
            bound = bind_opened(con, readable, table, entry, zone, where)
            unread = f"select count(*) from {opened.relation} where {opened.own}bad is not null"
            bound.left_out = unread if bound.left_out is None else f"select ({unread}) + ({bound.left_out})"
            return bound
        if table == "ga4_events":
            return _bind_ga4(con, opened, entry, zone)
        if entry.explosion is not None:
            opened = _exploded(con, opened, table, entry, entry.explosion, where)
        return _bind(con, opened, table, entry, zone, where)
    except duckdb.Error as error:
        raise unreadable(opened.origin, error, opened.is_typed) from None


def unreadable(origin: str, error: duckdb.Error, is_typed: bool) -> FinegrainError:
    """A readable error for DuckDB's error about a file or another source."""
    text = str(error)
    if is_typed and not isinstance(error, duckdb.ConversionException):
        return FinegrainError(
            f"{origin}: this is not a complete Parquet file (cut off, or another format); copy it again"
        )
    if "maximum line size" in text.lower() or "max_line_size" in text:
        return FinegrainError(
            f"{origin}: a row is longer than {LONGEST_LINE // 2**20} MB; is a quotation mark never closed?"
        )
    return FinegrainError(f"{origin}: {text.splitlines()[0].removeprefix('Error: ')}")


# --- opening -----------------------------------------------------------------------------------------------------


def _open(con: duckdb.DuckDBPyConnection, file: DataFile, look: Look, table: str, entry: Table, where: str) -> Opened:
    match file.format:
        case "parquet":
            opened = _open_parquet(con, file, look)
        case "csv":
            opened = _open_csv(con, file, look, entry.csv or Csv())
        case "jsonl":
            opened = _open_json(con, file, look, table, entry, where)
    opened.notes[:0] = look.notes
    return opened


def _open_parquet(con: duckdb.DuckDBPyConnection, file: DataFile, look: Look) -> Opened:
    import pyarrow as pa  # a fifth of a second that other files need not wait
    import pyarrow.parquet as pq

    file_itself = f"read_parquet({path_literal(look.path)}, hive_partitioning = false)"
    described = con.execute(f"describe select * from {file_itself}").fetchall()
    kinds = {str(row[0]).replace("\0", "\\0"): str(row[1]) for row in described}
    ours = free_prefix(kinds)
    # By position: a column may have the name that DuckDB uses for the row number.
    places = [f"c{place}" for place in range(len(kinds))]
    named = ", ".join(f"{place} as {identifier(name)}" for place, name in zip(places, kinds, strict=True))
    read = f"(select {named}, file_row_number + 1 as {ours}n from {file_itself} as p({', '.join(places)}))"
    shown = ", ".join(f"{_finite(identifier(name), kind)} as {identifier(name)}" for name, kind in kinds.items())
    relation = (
        f"(select *, null::varchar as {ours}bad, {packed(kinds)} as {ours}payload "
        f"from (select {shown}, {ours}n from {read}))"
    )
    metadata = pq.read_metadata(look.path)
    held: list[str] = []
    with suppress(pa.ArrowException):  # of types that it does not know
        held = metadata.schema.to_arrow_schema().names
    renamed = [f"'{given}' as '{name}'" for given, name in zip(held, kinds, strict=False) if given != name]
    notes = (
        [f"{console.shown(file.name)} has columns that SQL cannot name or tell apart: read {', '.join(renamed)}"]
        if renamed
        else []
    )
    notes += [
        f"column '{name}' of {console.shown(file.name)}: {count:,} {'value is' if count == 1 else 'values are'} {why}, and so null"
        for name, count, why in _beyond(con, read, kinds)
    ]
    return Opened(str(file), kinds, relation, tuple(kinds), notes, is_typed=True, expected=metadata.num_rows)


def _finite(value: str, kind: str) -> str:
    """SQL of a value, null if it is NaN or infinite. pandas writes missing numbers as NaN, and JSON has neither."""
    return f"case when isfinite({value}) then {value} end" if kind in ("FLOAT", "DOUBLE") else value


def _beyond(con: duckdb.DuckDBPyConnection, read: str, kinds: dict[str, str]) -> list[tuple[str, int, str]]:
    """(column, count, reason) of a file's typed values that land as null, not counting NaN."""
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


def _compression(look: Look) -> str:
    return f"compression = '{'gzip' if look.is_gzipped else 'uncompressed'}'"


def _open_csv(con: duckdb.DuckDBPyConnection, file: DataFile, look: Look, how: Csv) -> Opened:
    """Use DuckDB's reader if it reads as many records as were counted from the bytes, otherwise our own."""
    names, header_lines = (list(how.columns), 0) if how.columns else _header(file, look, how)
    kinds = dict.fromkeys(names, "VARCHAR")
    everything = ", ".join(identifier(name) for name in names)
    opened = Opened(str(file), kinds, "", tuple(names))
    ours = opened.own
    if look.records is not None and look.is_uniform:
        shape = ", ".join(f"{quote(name)}: 'VARCHAR'" for name in names)
        read = (
            f"read_csv({path_literal(look.path)}, {_compression(look)}, auto_detect = false, header = {str(not how.columns).lower()}, "
            f"delim = {quote(look.delimiter)}, quote = '\"', escape = '\"', columns = {{{shape}}}, max_line_size = {LONGEST_LINE})"
        )
        rows = look.records - (header_lines > 0)
        try:
            [(found,)] = con.execute(f"select count(*) from {read}").fetchall()
        except duckdb.Error:
            found = None
        if found == rows:
            numbered = f"(select {everything}, row_number() over () as {ours}n from {read})"
            payload = f"(select *, null::varchar as {ours}bad, {packed(names)} as {ours}payload from {numbered})"
            opened.relation, opened.expected = _without_null(payload, names, how.null), rows
            return opened
    escape = how.escape if how.escape and how.escape != how.quote else ""
    null = how.null if how.null is not None else "\\N" if escape == "\\" else None
    dialect = records.Dialect(look.delimiter, how.quote, escape)
    held = records.read(con, look, dialect, len(names), header_lines)
    if held.lines != look.lines:
        raise miscounted(opened.origin, held.lines, look.lines, "lines")
    values, shown = [], []
    for place, name in enumerate(names, 1):
        field = f"{ours}fields[{place}]"
        # A text that means null is kept in the payload as it is.
        is_null = f"{dialect.bare(field)} = {quote(null)}" if null else "false"
        value = f"nullif({dialect.value(field)}, '')"
        values.append(f"case when {is_null} then {quote(null or '')} else {value} end as {identifier(name)}")
        shown.append(
            f"case when {is_null} then null else {identifier(name)} end as {identifier(name)}"
            if null
            else identifier(name)
        )
    found = ", ".join(f"{name} as {ours}{called}" for name, called in _RECORD.items())
    kept = ", ".join(f"{ours}{called}" for called in _RECORD.values())
    opened.relation = (
        f"(select {', '.join(shown)}, {ours}n, {ours}bad, {ours}payload "
        f"from (select *, coalesce({ours}raw, {packed(names)}) as {ours}payload "
        f"from (select {', '.join(values)}, {kept} from (select {found} from {held.table}))))"
    )
    opened.expected = held.rows
    return opened


#: The columns of `records.Found`, and what they are among ours.
_RECORD: Final = {"n": "n", "why": "bad", "raw": "raw", "fields": "fields"}


def _without_null(relation: str, names: list[str], null: str | None) -> str:
    """A relation in which a text means null, in all columns but the payload."""
    if not null:
        return relation
    shown = ", ".join(f"nullif({identifier(name)}, {quote(null)}) as {identifier(name)}" for name in names)
    return f"(select * replace ({shown}) from {relation})"


def miscounted(origin: str, read: int, held: int, what: str = "rows") -> FinegrainError:
    """The error for a file that was not read completely."""
    return FinegrainError(
        f"{origin}: {read:,} {what} were read, but {held:,} were counted in the file's bytes; nothing has landed. "
        "Please report this with the file"
    )


def _header(file: DataFile, look: Look, how: Csv) -> tuple[list[str], int]:
    """(column names, lines the header takes)."""
    with io.TextIOWrapper(look.open(), encoding="utf-8-sig", newline="\n") as stream:
        reader = csv.reader(stream, delimiter=look.delimiter, strict=True, **counting.quoting(how))
        try:
            names = [name.strip() for name in next(reader, [])]
            lines = reader.line_num
        except csv.Error as error:
            if "unexpected end" in str(error) or "field larger" in str(error):
                raise FinegrainError(f"{file}: the header opens a quotation mark that is never closed") from None
            if "new-line" in str(error):
                raise FinegrainError(
                    f"{file}: the header has a CR that ends no line; convert it to LF, say with tr '\\r' '\\n'"
                ) from None
            raise FinegrainError(f"{file}: the header cannot be read: {error}") from None
    names = [name or f"column{number}" for number, name in enumerate(names, 1)]
    lowered = [name.lower() for name in names]
    twice = next((name for name in names if lowered.count(name.lower()) > 1), None)
    if not names or twice is not None:
        raise FinegrainError(
            f"{file}: the header names '{twice}' twice; each column needs its own name"
            if twice
            else f"{file}: the first line is blank; it must name the columns"
        )
    return names, lines


def _json_values(con: duckdb.DuckDBPyConnection, file: DataFile, look: Look) -> tuple[str, int]:
    """(relation of `__n` and `line`, number of rows): the values of a JSON file, each as written."""
    if look.layout != "lines" and look.records is not None:
        form = "array" if look.layout == "array" else "unstructured"
        table = f"__values_{next(_numbers)}"
        try:
            con.execute(
                f"create temp table {table} as select row_number() over () as __n, json::varchar as line from read_json_objects("
                f"{path_literal(look.path)}, {_compression(look)}, format = '{form}', maximum_object_size = {LONGEST_LINE})"
            )
            [(found,)] = con.execute(f"select count(*) from {table}").fetchall()
            if found != look.records:
                raise miscounted(str(file), found, look.records, "values")
            return table, look.records
        except duckdb.Error as error:
            if look.layout == "array":
                said = " ".join(str(error).splitlines()[0].split()).replace(str(look.path), console.shown(file.name))
                raise FinegrainError(f"{file}: this JSON array cannot be read: {said}") from None
    # A blank line is NULL. The delimiter is one that no text has.
    read = (
        f"(select row_number() over () as __n, line from read_csv({path_literal(look.path)}, {_compression(look)}, auto_detect = false, "
        f"header = false, delim = '\x01\x02\x03\x04', quote = '', escape = '', columns = {{'line': 'VARCHAR'}}, "
        f"max_line_size = {LONGEST_LINE}))"
    )
    found = None
    if look.is_uniform:
        with suppress(duckdb.Error):
            [(found,)] = con.execute(f"select count(line) from {read}").fetchall()
    if found == look.lines:
        return f"(select * from {read} where line is not null)", look.lines
    table = f"__values_{next(_numbers)}"
    with records.lines(con, look) as lines:
        con.execute(
            f"create temp table {table} as select n as __n, case when ends_with(line, chr(13)) then line[:-2] else line end as line "
            f"from {lines} where line not in ('', chr(13)) order by n"
        )
    [(found,)] = con.execute(f"select count(*) from {table}").fetchall()
    if found != look.lines:
        raise miscounted(str(file), found, look.lines, "lines")
    return table, look.lines


def _open_json(
    con: duckdb.DuckDBPyConnection, file: DataFile, look: Look, table: str, entry: Table, where: str
) -> Opened:
    values, count = _json_values(con, file, look)
    if look.starts_object and count > 1:
        is_object = "ltrim(line) like '{%' and try_cast(line as json) is not null"
        if not con.execute(f"select 1 from {values} where {is_object} limit 1").fetchall():
            raise FinegrainError(
                f"{file}: no line is a JSON object, and its objects over several lines are cut off or broken; write one a line"
            )
    lines = f"(select __n, line, 'not a JSON object' as __why from {values})"
    opened = _open_objects(con, lines, str(file), file.name, table, entry, where)
    opened.expected = count
    return opened


def open_landed(
    con: duckdb.DuckDBPyConnection,
    rows: str,
    place: str,
    table: str,
    entry: Table,
    where: str,
    is_lenient: bool = False,
) -> Opened:
    """Rows of a text file or an API in the lake, opened for mapping them again. `rows` is SQL of `__n`, `payload` and `_error`. A column that no row
    has is an error or, if `is_lenient`, null."""
    # The payload of a malformed CSV line is not an object and stays malformed; that of a good one is an object of its columns' text.
    lines = f"(select __n, payload as line, coalesce(_error, 'not a JSON object') as __why from ({rows}))"
    return _open_objects(con, lines, f"{place} (as the lake has it)", place, table, entry, where, is_lenient)


def _open_objects(
    con: duckdb.DuckDBPyConnection,
    lines: str,
    origin: str,
    file: str,
    table: str,
    entry: Table,
    where: str,
    is_lenient: bool = False,
) -> Opened:
    """JSON lines: `lines` is a relation of `__n`, `line` and, for lines that are not objects, `__why`."""
    # It must be an object: a list or a number on a line has no fields.
    lines = f"(select *, case when ltrim(line) like '{{%' then try_cast(line as json) end as __json from {lines})"
    seen: dict[str, int] = {
        str(key): int(count)
        for key, count in con.execute(
            f"select key, count(*) from (select unnest(json_keys(__json)) as key from "
            f"(select __json from {lines} limit {SAMPLE})) group by key order by min(key)"
        ).fetchall()
    }
    wanted = read_columns(table, entry, list(seen))
    check_case(wanted, f"{where}: {origin}")
    opened = Opened(origin, dict.fromkeys(wanted, "VARCHAR"), "", tuple(seen), is_json=True)
    for name in [name for name in wanted if name not in seen]:
        rows, with_it = con.execute(
            f"select count(__json), count(*) filter (list_contains(json_keys(__json), {quote(name)})) from {lines}"
        ).fetchall()[0]
        if with_it:
            continue
        if is_lenient:
            opened.notes.append(f"no row of {origin} has '{name}'; it stays null there")
            continue
        # A rare key may be missing from a small file, but a misspelt one must be reported.
        close = nearest(name, [key for key in seen if key not in wanted])
        is_list = table == "events" and entry.explosion is not None and entry.explosion.outer == (name,)
        if rows and not is_list and ("did you mean" in close or rows >= 1000 or _needs(table, entry, name)):
            hint = close if "did you mean" in close else nearest(name, seen)
            raise FinegrainError(f"{where}: {origin} has no column '{name}'{hint}")
        if not is_list or not rows:  # of a list check_elements says it
            opened.notes.append(f"no row of {console.shown(file)} has '{name}'; it stays null")
    shape = json.dumps(dict.fromkeys(wanted, "VARCHAR")) if wanted else '{"": "VARCHAR"}'
    absent = entry.csv.null if entry.csv else None  # of a CSV file's rows as the lake has them
    read = {name: f"__row.{identifier(name)}" for name in wanted}
    if absent is not None:
        read = {name: f"nullif({value}, {quote(absent)})" for name, value in read.items()}
    got = ", ".join(f"{value} as {identifier(name)}" for name, value in read.items())
    opened.relation = (
        f"(select {got + ', ' if got else ''}__n as {opened.own}n, case when __json is null then __why end as {opened.own}bad, "
        f"line as {opened.own}payload from (select *, "
        f"case when __json is not null then from_json({exact_numbers('line')}, {quote(shape)}) end as __row from {lines}))"
    )
    return opened


def read_columns(table: str, entry: Table, seen: Sequence[str]) -> list[str]:
    """The columns that a mapping reads of a file with the columns `seen`."""
    exact, loose = set(seen), {name.lower(): name for name in seen}
    names = [name for name in RAW_TABLES[table] if name != "property_currency"] if table == "ga4_events" else []
    mine = () if entry.explode is None else (ELEMENT, PARENT)
    columns = (source.column for source in entry.fields.values() if source.column is not None)
    names += [name for name in columns if name not in mine]
    names += [where.column for where in (entry.available_at, entry.deletes) if isinstance(where, Column)]
    names += entry.key
    if entry.carry is not None:
        names += [*entry.carry.columns, entry.carry.within]
    if entry.explosion is not None:
        names.append(entry.explosion.outer[0])
    if entry.http is not None and entry.http.since is not None:
        names.append(entry.http.since.column)
    arrival = entry.available_at.sql if isinstance(entry.available_at, Sql) else None
    for text in [source.sql for source in entry.fields.values()] + [entry.where, arrival]:
        if text is not None:  # SQL does not tell upper from lower case
            read = [name for name in expression(text) if name.lower() not in mine]
            names += [name if name in exact else loose.get(name.lower(), name) for name in read]
    return list(dict.fromkeys(names))


def _needs(table: str, entry: Table, column: str) -> bool:
    """Whether a column decides the key, the time or the type of a row."""
    if column in entry.key or (entry.http and entry.http.since and entry.http.since.column == column):
        return True
    needed = {"event_type", EVENT_TIME[table], f"{table.removesuffix('s')}_id"}
    return any(source.column == column for name, source in entry.fields.items() if name in needed)


# --- binding -----------------------------------------------------------------------------------------------------


def as_text(value: str, kind: str) -> str:
    """SQL that converts `value` of DuckDB type `kind` to the text that lands."""
    if _nested(kind):
        return f"to_json({value})::varchar"
    if kind in ("FLOAT", "DOUBLE"):
        # An id that pandas made a float is 17850, not 17850.0. Above the largest exact integer of the type, a number is written in
        # scientific notation, from which the models know that it is not a usable id.
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
    """SQL of a typed time, to the microsecond; null if it is infinite or outside the years 1 to 9999. None for other types."""
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


def _check_kind(where: str, name: str, kind: str, said: str) -> None:
    """Reject a column whose type does not fit the field."""
    if _nested(kind) and name != "properties":
        raise FinegrainError(
            f'{where}: {said} is nested ({_brief(kind)}); extract a value from it, as in {{sql: "x.y"}}'
        )
    if kind == "BLOB":
        raise FinegrainError(f'{where}: {said} is binary; decode it, as in {{sql: "decode(x)"}}')
    base = kind.partition("(")[0]
    if is_time(name) and base in ("BOOLEAN", "TIME", "INTERVAL", "UUID"):
        raise FinegrainError(f"{where}: {said} is {base.lower()}, which is not a time")
    if name in NUMBERS and (base in ("BOOLEAN", "TIME", "INTERVAL", "UUID", "DATE") or base.startswith("TIMESTAMP")):
        raise FinegrainError(f"{where}: {said} is {base.lower()}, which is not a number")


def _brief(kind: str) -> str:
    return kind if len(kind) <= 40 else kind[:39] + "…"


def _bind(con: duckdb.DuckDBPyConnection, opened: Opened, table: str, entry: Table, zone: str, where: str) -> Bound:
    tries: list[str] = []
    failed: list[str] = []
    values: dict[str, str] = {}
    plain: dict[str, str] = {}  # columns whose text is a value, and where the mapping says so
    keep, ours = "true", opened.own
    given = _carried(opened, entry, where)
    for name, source in entry.fields.items():
        place = f"{where}.fields.{name}"
        if source.sql is not None:
            kind = _kind_of(con, opened, source.sql, place)
            _check_kind(place, name, kind, "the expression's value")
            # An expression that fails on one row must neither fail the load nor count as a missing value.
            tried = identifier(f"{ours}try_{name}")
            tries.append(f"try({{'v': ({source.sql}\n)}}) as {tried}")
            failed.append(f"when {tried} is null then {quote(f'the sql of {name} fails on this row')}")
            values[name] = _spelled(as_text(f"{tried}.v", kind), source.format, kind, place)
        else:
            values[name] = _plain(opened, source, name, place)
            if source.reads is not None and name != "properties":
                plain[source.reads] = place
        values[name] = as_id(values[name], name, entry)
    if table == "events" and "user_agent" in values:
        devices.register(con)
        for name in devices.FOUND:
            values[name] = devices.filled(name, values.get(name, "null::varchar"), values["user_agent"])
    needs_line = "line_id" in RAW_TABLES[table] and "order_id" in values and "line_id" not in values
    if needs_line and (entry.key or opened.records):  # a key that identifies rows also identifies lines
        parts = [as_text(identifier(name), opened.columns[name]) for name in entry.key]
        if opened.records is not None:
            # If a record is an order, the element's position in it identifies the line.
            parts = (
                [f"{ours}place"] if entry.key in ((), (entry.fields["order_id"].column,)) else [*parts, f"{ours}place"]
            )
        values["line_id"] = f"'#' || concat_ws('/', {', '.join(parts)})"
        if opened.records is not None:
            values["line_id"] = (
                f"case when {ours}place <> '' and {values['order_id']} is not null then {values['line_id']} end"
            )
    if entry.where is not None:
        kind = _kind_of(con, opened, entry.where, f"{where}.where")
        if kind != "BOOLEAN":
            raise FinegrainError(f"{where}.where: its value is {kind.lower()}, not true or false")
        tries.append(f"try({{'v': ({entry.where}\n)}}) as {ours}try_where")
        failed.append(f"when {ours}try_where is null then 'the sql of where fails on this row'")
        keep = f"{ours}bad is not null or {ours}try_where is null or {ours}try_where.v"
    place = f"{where}.available_at"
    if isinstance(entry.available_at, Column):
        available = _plain(opened, Field(**dict(entry.available_at)), "available_at", place)
        plain[entry.available_at.column] = place
    elif isinstance(entry.available_at, Sql):
        available, tried, fails = _arrival(con, opened, entry.available_at.sql, place)
        tries.append(tried)
        failed.append(fails)
    else:
        # By its value rather than by its name: the file may have a column of that name.
        available = values[EVENT_TIME[table]] if entry.available_at == "event_time" else "null::varchar"
    failed += _nested_json(con, opened, plain)
    bad = f"coalesce({ours}bad, case {' '.join(failed)} end)" if failed else f"{ours}bad"
    shown = ", ".join(f"{value} as {identifier(name)}" for name, value in values.items())
    relation = f"(select *, {', '.join(tries)} from {given})" if tries else given
    kept = "".join(f"{ours}{name} as __{name}, " for name in ("n", "payload", *opened.along))
    rows = f"select {kept}{bad} as __bad, {available} as __available, {shown} from {relation} where {keep}"
    left_out = f"select count(*) from {relation} where ({keep}) is not true" if entry.where is not None else None
    if entry.distinct:
        keys = ", ".join(identifier(name) for name in entry.fields)
        least = "min(__n)" if opened.records is None else "arg_min(__n, (__record, length(__n), __n))"
        first = f"select {least} from ({rows}) where __bad is null group by {keys}"
        rows = f"select * from ({rows}) where __bad is not null or __n in ({first})"
        left_out = f"select (select count(*) from {opened.relation}) - (select count(*) from ({rows}))"
    bound = Bound(opened, table, entry, zone, tuple(values), rows, left_out)
    return _with_lines(bound) if needs_line and entry.files and opened.records is None else bound


def as_id(value: str, name: str, entry: Table) -> str:
    """SQL of a field's text. An id is null if the mapping lists it in `null_ids`, and upper case if the mapping calls it caseless."""
    if name in IDS and entry.null_ids:
        value = f"case when trim({value}) not in ({', '.join(map(quote, entry.null_ids))}) then {value} end"
    return f"upper({value})" if name in entry.caseless else value


def _carried(opened: Opened, entry: Table, where: str) -> str:
    """The relation of a file, with empty columns of `carry` filled from the first row of the same order that has a value."""
    if entry.carry is None:
        return opened.relation
    for name in (*entry.carry.columns, entry.carry.within):
        if name not in opened.columns:
            raise FinegrainError(f"{where}.carry: {_no_column(opened, name)}")
    within, names = identifier(entry.carry.within), [identifier(name) for name in entry.carry.columns]
    filled = {
        column: f"nullif(trim({column}), '')" if opened.columns[name] == "VARCHAR" else column
        for name, column in zip(entry.carry.columns, names, strict=True)
    }
    ours = opened.own
    first = ", ".join(
        f"arg_min({column}, {ours}n) filter ({filled[column]} is not null) as {column}" for column in names
    )
    shown = ", ".join(
        f"coalesce({filled[column].replace(column, 'r.' + column)}, f.{column}) as {column}" for column in names
    )
    return (
        f"(select r.* replace ({shown}) from {opened.relation} as r left join (select {within} as {ours}within, {first} "
        f"from {opened.relation} where {within} is not null group by {within}) as f on r.{within} = f.{ours}within)"
    )


def _with_lines(bound: Bound) -> Bound:
    """Add line ids to orders without them: `#2`, `#3`, … for repeated lines of one order, in the order of the file, so that the same order delivered
    again gets the same ids. Rows with the same client event id, quantity and price are one event that was sent twice."""
    ids = ("order_id", "product_id", "event_type", "event_at", "user_id", "anonymous_id", "refund_id", "refunded_at")
    apart = ", ".join(identifier(name) for name in ids if name in bound.fields)
    first = "__n"
    if "event_id" in bound.fields:
        same = ", ".join(
            [apart, *(name for name in ("event_id", "quantity", "price", "amount") if name in bound.fields)]
        )
        first = f"case when event_id is null then __n else min(__n) over (partition by {same}) end"
    # Most lines of an event log belong to no order; a text search avoids parsing them twice.
    column = bound.entry.fields["order_id"].column
    with_order = "true"
    if bound.opened.is_json and column is not None:
        with_order = (
            f"(contains(__payload, {quote(json.dumps(column, ensure_ascii=False))}) or contains(__payload, '\\u'))"
        )
    numbered = (
        f"select __n, '#' || nth as line_id from (select __n, dense_rank() over (partition by {apart} order by __first) as nth "
        f"from (select __n, {apart}, {first} as __first from (select * from ({bound.rows}) where {with_order}) "
        "where __bad is null and order_id is not null)) where nth > 1"
    )
    rows = f"select * from ({bound.rows}) left join ({numbered}) using (__n)"
    return replace(bound, fields=(*bound.fields, "line_id"), rows=rows)


def _nested_json(con: duckdb.DuckDBPyConnection, opened: Opened, plain: Mapping[str, str]) -> list[str]:
    """SQL `when … then reason`, for each column of `plain`, for rows in which a JSON key holds an object or a list, whose text would otherwise count
    as a value. Raises FinegrainError if all rows of a file's sample do: then the mapping is wrong."""
    kinds, nested = {}, {}
    plain = {name: place for name, place in plain.items() if opened.is_json or name in opened.types}
    for column in plain:
        text = identifier(column)
        # Only text that starts with a bracket is parsed again; a string may start with one, too.
        looks = f"(starts_with({text}, '{{') or starts_with({text}, '['))"
        kinds[column] = opened.types.get(
            column, f"json_type(try_cast({opened.own}payload as json), {_pointer([column])})"
        )
        nested[column] = f"({looks} and coalesce({kinds[column]} in ('OBJECT', 'ARRAY'), false))"
    if opened.expected is not None and plain:
        counts = ", ".join(
            f"count({identifier(column)}), count(*) filter ({nested[column]}), any_value({kinds[column]}) filter ({nested[column]})"
            for column in plain
        )
        [found] = con.execute(
            f"select {counts} from (select * from {opened.relation} where {opened.own}bad is null limit {SAMPLE})"
        ).fetchall()
        for number, (column, place) in enumerate(plain.items()):
            filled, bad, which = found[3 * number : 3 * number + 3]
            if filled and filled == bad:
                what, part = ("an object", "$.id") if which == "OBJECT" else ("a list", "$[0]")
                raise FinegrainError(
                    f"{place}: column '{column}' of {opened.origin} is {what}; extract a value from it, as in {{sql: \"{column}->>'{part}'\"}}"
                )
    return [f"when {nested[column]} then {quote(f'{column} holds an object or a list')}" for column in plain]


def _arrival(con: duckdb.DuckDBPyConnection, opened: Opened, text: str, place: str) -> tuple[str, str, str]:
    """SQL of the time an expression returns, as text; of the attempt to evaluate it; and of the check whether that failed."""
    kind = _kind_of(con, opened, text, place)
    _check_kind(place, "available_at", kind, "the expression's value")
    tried = f"{opened.own}try_available_at"
    return (
        as_text(f"{tried}.v", kind),
        f"try({{'v': ({text}\n)}}) as {tried}",
        f"when {tried} is null then {quote('the sql of available_at fails on this row')}",
    )


# --- lists whose elements become rows ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _List:
    """A list in the rows of a relation: `value` is its SQL, `state` SQL of its state: 'absent', 'null', 'list', or a sentence about what is wrong.
    Its elements have the DuckDB type `kind`; `is_json`: they are JSON."""

    value: str
    state: str
    kind: str

    @property
    def is_json(self) -> bool:
        return self.kind == "JSON"

    @property
    def elements(self) -> str:
        return f"from_json({self.value}, '[\"json\"]')" if self.is_json else self.value

    def wrong(self, element: str) -> str:
        """SQL: whether an element is not an object."""
        return f"json_type({element}) is distinct from 'OBJECT'" if self.is_json else f"{element} is null"


def _pointer(keys: Iterable[str]) -> str:
    """SQL of the JSON pointer for a path of keys."""
    return quote("".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys))


def _walk(value: str, kind: str, keys: Sequence[str], said: str) -> tuple[str, str, list[str]]:
    """Follow keys from a value of DuckDB type `kind` through structs. Returns the SQL, its type, and the remaining keys, which are JSON keys. `said`
    is the start of error texts."""
    rest = list(keys)
    while rest and kind not in ("VARCHAR", "JSON"):
        if not kind.startswith("STRUCT"):
            raise FinegrainError(f"{said}: '{rest[0]}' is a key of an object, and this is {_brief(kind)}")
        members = {str(name): str(each) for name, each in duckdb.sqltype(kind).children}
        if rest[0] not in members:
            raise FinegrainError(f"{said}: there is no '{rest[0]}' in it{nearest(rest[0], members)}")
        value, kind = f"struct_extract({value}, {quote(rest[0])})", members[rest.pop(0)]
    return value, kind, rest


def _list(value: str, kind: str, keys: Sequence[str], path: str, said: str) -> _List:
    """The list at a path of keys below a value; `path` is the path as written in the mapping."""
    value, kind, rest = _walk(value, kind, keys, said)
    none = quote(f"{path} is not a list")
    if kind in ("VARCHAR", "JSON"):
        held = value
        if kind == "VARCHAR":
            held = f"try_cast({exact_numbers(value)} as json)"
        found = f"json_extract({held}, {_pointer(rest)})" if rest else held
        is_there = f"json_exists({held}, {_pointer(rest)})" if rest else f"{value} is not null"
        no_json = quote(f"{path} is not JSON")
        return _List(
            found,
            f"case when {value} is null or trim({value}::varchar) = '' then 'absent' when {held} is null then {no_json} "
            f"when not {is_there} then 'absent' when json_type({found}) = 'NULL' then 'null' "
            f"when json_type({found}) = 'ARRAY' then 'list' else {none} end",
            "JSON",
        )
    typed = duckdb.sqltype(kind)
    if typed.id not in ("list", "array"):
        raise FinegrainError(f"{said}: it is {_brief(kind)}, and no list; name a list of objects")
    element = str(dict(typed.children)["child"])
    if not element.startswith("STRUCT"):
        raise FinegrainError(f"{said}: its elements are {_brief(element)}, and no objects")
    return _List(value, f"case when {value} is null then 'null' else 'list' end", element)


def _exploded(
    con: duckdb.DuckDBPyConnection, opened: Opened, table: str, entry: Table, explosion: Explosion, where: str
) -> Opened:
    """Explode a list: each element becomes a row, with the columns of its record, `element` (and `parent`), and a column for each member the mapping
    reads. `n` includes the element, and `record` is the record's `n`. An event without elements is one row, and so is a record whose list cannot be
    read; in other tables a record without elements has no rows."""
    ours, place, path = opened.own, f"{where}.explode", explosion.path
    root = explosion.outer[0]
    if root not in opened.columns:
        raise FinegrainError(f"{place}: {_no_column(opened, root)}")
    said = f"{place}: '{path}' of {opened.origin}"
    outer = _list(identifier(root), opened.columns[root], explosion.outer[1:], ".".join(explosion.outer), said)
    bad = quote(f"an element of {path} is not an object")
    inner = outer
    if explosion.inner:
        inner = _list("p", outer.kind, explosion.inner, path, said)
    parent = outer.kind if explosion.inner else "JSON"

    def piece(place: str, of: str = "null", element: str = "null", why: str = "null") -> str:
        return f"{{'place': {place}::bigint[], 'parent': {of}::{parent}, 'element': {element}::{inner.kind}, 'why': {why}::varchar}}"

    alone = f"[{piece('[]')}]" if table == "events" else f"[{piece('[]')}][:0]"
    without = f"[{piece('[i]', 'p')}]" if table == "events" else f"[{piece('[i]')}][:0]"
    one = f"case when {inner.wrong('e')} then {piece('[i]', why=bad)} else {piece('[i]', element='e')} end"
    made = f"list_transform({ours}elements, lambda e, i: {one})"
    if explosion.inner:
        one = f"case when {inner.wrong('e')} then {piece('[i, j]', 'p', why=bad)} else {piece('[i, j]', 'p', 'e')} end"
        made = (
            f"flatten(list_transform({ours}elements, lambda p, i: case when {outer.wrong('p')} then [{piece('[i]', why=bad)}] "
            f"when {inner.state} in ('absent', 'null') then {without} when {inner.state} <> 'list' then [{piece('[i]', why=inner.state)}] "
            f"when len({inner.elements}) = 0 then {without} else list_transform({inner.elements}, lambda e, j: {one}) end))"
        )
    many = quote(f"{path} has more than {MOST_ELEMENTS} elements")
    states = f"select *, case when {ours}bad is null then {outer.state} else 'null' end as {ours}state from {opened.relation}"
    lists = f"select *, case when {ours}state = 'list' then {outer.elements} end as {ours}elements from ({states})"
    pieces = f"select *, case when {ours}state = 'list' then {made} end as {ours}made from ({lists})"
    records = (
        f"(select * exclude ({ours}elements, {ours}made), case when {ours}bad is not null then [{piece('[]')}] "
        f"when {ours}state in ('absent', 'null') or len({ours}made) = 0 then {alone} "
        f"when {ours}state <> 'list' then [{piece('[]', why=f'{ours}state')}] "
        f"when len({ours}made) > {MOST_ELEMENTS} then [{piece('[]', why=many)}] else {ours}made end as {ours}pieces from ({pieces}))"
    )
    columns, types, shown = _members(
        entry, inner.kind, outer.kind if explosion.inner else None, where, opened.origin, path
    )
    kept = {
        name: kind for name, kind in opened.columns.items() if name.lower() not in {each.lower() for each in columns}
    }
    mine = [f"{ours}{name}" for name in ("payload", *opened.along)]
    number = f"{ours}n::varchar"
    at = f"'[' || {ours}place || ']'"
    # In the position of a row with a key, the version stays at the end.
    numbered = (
        f"case when {ours}place = '' then {number} when regexp_matches({number}, '@[0-9]{{9}}[.][0-9a-f]{{16}}$') "
        f"then left({number}, -27) || {at} || right({number}, 27) else {number} || {at} end"
    )
    unnested = (
        f"select * exclude ({ours}piece, {ours}bad), coalesce({ours}bad, {ours}piece.why) as {ours}bad, "
        f"array_to_string({ours}piece.place, '.') as {ours}place, {ours}piece.element as {ours}element, {ours}piece.parent as {ours}parent "
        f"from (select *, unnest({ours}pieces) as {ours}piece from {records})"
    )
    found = ", ".join([*map(identifier, kept), *mine, f"{ours}bad", f"{ours}place", *shown(ours)])
    exploded = replace(
        opened,
        columns={**kept, **columns},
        relation=f"(select {found}, {numbered} as {ours}n, {ours}n as {ours}record from ({unnested}))",
        notes=list(opened.notes),
        along=(*opened.along, "record"),
        records=records,
        more=f"select coalesce(sum(len({ours}pieces)), 0)::bigint - count(*) from {records}",
        types=types,
    )
    if opened.expected is not None:
        check_elements(con, exploded, table, entry, where)
    return exploded


def _members(
    entry: Table, element: str, parent: str | None, where: str, origin: str, path: str
) -> tuple[dict[str, str], dict[str, str], Any]:
    """The columns of an element: their types, SQL of the JSON types of JSON members, and a function that returns SQL of them all for the prefix of
    our columns."""
    columns = {ELEMENT: element} | ({PARENT: parent} if parent is not None else {})
    types = {holder: f"json_type({holder})" for holder, kind in columns.items() if kind == "JSON"}
    parts: dict[str, tuple[str, list[str], str]] = {}
    for name, source in entry.fields.items():
        for holder, kind, keys in ((ELEMENT, element, source.element), (PARENT, parent or "JSON", source.parent)):
            column = f"{holder}.{keys}"
            if keys is None or column in columns:
                continue
            said = f"{where}.fields.{name}: an element of '{path}' of {origin}"
            value, leaf, rest = _walk(holder, kind, keys.split("."), said)
            is_json = bool(rest) or leaf == "JSON"
            columns[column] = "VARCHAR" if is_json else leaf
            parts[column] = (value, rest, leaf) if is_json else (value, [], "")
            if is_json:
                held = value if leaf == "JSON" else f"try_cast({exact_numbers(value)} as json)"
                types[column] = f"json_type({held}, {_pointer(rest)})"
    check_case(columns, f"{where}.fields: an element of '{path}'")

    def shown(ours: str) -> list[str]:
        texts = [f"{ours}{holder} as {holder}" for holder in (ELEMENT, PARENT) if holder in columns]
        for column, (value, rest, leaf) in parts.items():
            # The holder under our own column name.
            value = re.sub(r"\b(element|parent)\b", lambda found: ours + found[1], value, count=1)
            if leaf:
                held = value if leaf == "JSON" else f"try_cast({exact_numbers(value)} as json)"
                value = f"json_extract_string({held}, {_pointer(rest)})"
            texts.append(f"{value} as {identifier(column)}")
        return texts

    return columns, types, shown


def check_elements(con: duckdb.DuckDBPyConnection, opened: Opened, table: str, entry: Table, where: str) -> None:
    """Reject a file in which no row has the list to explode, or has it as a list of objects: then the mapping is wrong."""
    explosion, ours = entry.explosion, opened.own
    assert explosion is not None
    place, path, origin = f"{where}.explode", explosion.path, opened.origin
    sample = f"(select * from {opened.records} where {ours}bad is null limit {SAMPLE})"
    [(rows, absent, lists, elements, objects, example)] = con.execute(
        f"select count(*), count(*) filter ({ours}state = 'absent'), count(*) filter ({ours}state = 'list'), "
        f"coalesce(sum(len(list_filter({ours}pieces, lambda x: len(x.place) > 0))), 0), "
        f"coalesce(sum(len(list_filter({ours}pieces, lambda x: len(x.place) > 0 and x.why is null))), 0), "
        f"any_value({ours}state) filter ({ours}state not in ('absent', 'null', 'list')) from {sample}"
    ).fetchall()
    if not rows:
        return
    if not lists and example is not None:
        raise FinegrainError(f"{place}: {example} in any row of {origin}; name a list of objects")
    if elements and not objects:
        raise FinegrainError(f"{place}: {path} of {origin} has no element that is an object; name a list of objects")
    if absent == rows:
        _check_path(con, opened, table, explosion, sample, where)
    if opened.columns[ELEMENT] == "JSON" and objects:
        _check_members(con, opened, entry, objects, sample, where)


def _check_path(
    con: duckdb.DuckDBPyConnection, opened: Opened, table: str, explosion: Explosion, sample: str, where: str
) -> None:
    """Report a list that no row has. For events it is a note, since events without products are normal. In other tables no rows would land, so it is
    an error."""
    place, path, origin = f"{where}.explode", explosion.path, opened.origin
    root, *keys = explosion.outer
    close = nearest(root, [name for name in opened.names if name != root])
    hint = nearest(root, [name for name in opened.names if name not in opened.columns])
    for depth, key in enumerate(keys):
        value = f"try_cast({identifier(root)}::varchar as json)"
        above = ".".join((root, *keys[:depth]))
        [(lists, *_)] = con.execute(
            f"select count(*) filter (json_type({value}, {_pointer(keys[:depth])}) = 'ARRAY') from {sample}"
        ).fetchall()
        if lists:
            raise FinegrainError(
                f"{place}: {above} of {origin} is a list itself; write {above}[].{'.'.join(keys[depth:])}"
            )
        at = f"{_pointer(keys[:depth])} || '/' || replace(replace(key, '~', '~0'), '/', '~1')"
        seen = con.execute(
            f"select key, bool_or(json_type(value, {at}) in ('ARRAY', 'OBJECT')) from (select {value} as value, "
            f"unnest(json_keys({value}, {_pointer(keys[:depth])})) as key from {sample}) group by key order by key"
        ).fetchall()
        names = [str(name) for name, _ in seen]
        if names and key not in names:
            said = f"; {above} has no '{key}'"
            # For events, suggest only keys that could contain a list: product_id is not a misspelling of products.
            close, hint = (said + nearest(key, of) for of in (names, [str(name) for name, holds in seen if holds]))
            break
    if table != "events":
        raise FinegrainError(f"{place}: no row of {origin} has '{path}'{close}")
    if "did you mean" not in hint:
        hint = ""
    opened.notes.append(f"no row of {console.shown(origin)} has '{path}', so no row has an element{hint}")


def _check_members(
    con: duckdb.DuckDBPyConnection, opened: Opened, entry: Table, objects: int, sample: str, where: str
) -> None:
    """Reject members that no element has, if they look misspelt or are missing from many elements."""
    for holder in (ELEMENT, PARENT):
        if opened.columns.get(holder) != "JSON":
            continue
        found = con.execute(
            f"select distinct unnest(json_keys(x.{holder})) as key from (select unnest({opened.own}pieces) as x from {sample}) order by key"
        ).fetchall()
        seen = [str(name) for (name,) in found]
        read = {source.reads for source in entry.fields.values() if source.reads is not None}
        for name, source in entry.fields.items():
            keys = source.element if holder == ELEMENT else source.parent
            first = "" if keys is None else keys.split(".")[0]
            if keys is None or first in seen:
                continue
            close = nearest(first, [key for key in seen if f"{holder}.{key}" not in read])
            said = f"no {holder} of {entry.explode} of {opened.origin} has '{first}'"
            if "did you mean" in close or objects >= 1000:
                raise FinegrainError(f"{where}.fields.{name}: {said}{close}")
            opened.notes.append(f"{said}; it stays null")


#: A number, a date or a time, as in the first line of a text file without a header.
_VALUE: Final = re.compile(r"[-+]?\d[\d.,:/ TZ+-]*")


def _no_column(opened: Opened, name: str) -> str:
    """The error text for a column that does not exist, with a suggestion."""
    values = [column for column in opened.columns if _VALUE.fullmatch(column)]
    if values and not opened.is_typed and not opened.is_json:
        return (
            f"{opened.origin} has no column '{name}'; its first line has '{values[0]}', which looks like a value, not a name: "
            "if the file has no header, name its columns: csv: {columns: [...]}"
        )
    return f"{opened.origin} has no column '{name}'{nearest(name, opened.columns)}"


def _plain(opened: Opened, source: Field, name: str, place: str) -> str:
    """SQL of a field that is a constant or a column."""
    column = source.reads
    if column is None:
        if source.value is None:
            return "null::varchar"
        return quote(str(source.value).lower() if isinstance(source.value, bool) else str(source.value))
    kind = opened.columns.get(column)
    if kind is None:
        raise FinegrainError(f"{place}: {_no_column(opened, column)}")
    _check_kind(place, name if source.map is None else "", kind, f"column '{column}'")
    text = as_text(identifier(column), kind)
    if source.map:
        pairs = " ".join(
            f"when {quote(old)} then {'null' if new is None else quote(new)}" for old, new in source.map.items()
        )
        text = f"case {text} {pairs} else {text} end"
    return _spelled(text, source.format, kind, place)


def _spelled(text: str, formats: Sequence[str], kind: str, place: str) -> str:
    """SQL of a time's text as ISO 8601, by the first format that reads it as a plausible time; otherwise unchanged."""
    if not formats:
        return text
    if kind.startswith(("DATE", "TIMESTAMP")):
        raise FinegrainError(
            f"{place}: its values are {kind.lower()} already, so there is no text to read; leave format out"
        )
    first, last = settings.variable("earliest_year"), settings.variable("latest_year")
    tried = []
    for each in formats:
        read, iso = strptime(text, each), quote("%Y-%m-%dT%H:%M:%S.%f" + ("Z" if has_offset(each) else ""))
        tried.append(f"case when year({read}) between {int(first)} and {int(last)} then strftime({read}, {iso}) end")
    return f"coalesce({', '.join(tried)}, {text})"


def _kind_of(con: duckdb.DuckDBPyConnection, opened: Opened, text: str, place: str) -> str:
    """The DuckDB type of an expression over a file's columns. Raises FinegrainError that names the column or function."""
    known = {name.lower() for name in opened.columns}
    for name in expression(text):
        if name.lower() not in known:
            raise FinegrainError(f"{place}: {_no_column(opened, name)}")
    empty = ", ".join(f"null::{kind} as {identifier(name)}" for name, kind in opened.columns.items())
    try:
        described = con.execute(f"describe select ({text}\n) as v from (select {empty or 'null as __none'})").fetchall()
    except duckdb.Error as error:
        hint = "" if opened.is_typed else " (columns of a text file are text: cast them, as in try_cast(x as double))"
        hint += f" ({ARROWS})" if "->" in text else ""
        raise FinegrainError(f"{place}: {str(error).splitlines()[0]}{hint}") from None
    return str(described[0][1]).strip('"')


def _structure(kind: Any) -> Any:
    """A DuckDB type as a structure for `from_json`."""
    match kind.id:
        case "list":
            return [_structure(dict(kind.children)["child"])]
        case "struct":
            return {name: _structure(child) for name, child in kind.children}
        case _:
            return str(kind)


def _bind_ga4(con: duckdb.DuckDBPyConnection, opened: Opened, entry: Table, zone: str) -> Bound:
    """Bind GA4's own export: nested columns are cast by name, so that missing fields become null and unknown ones stay only in the payload."""
    for name in ("event_name", "event_timestamp"):
        if name not in opened.columns:
            raise FinegrainError(
                f"{opened.origin} has no column '{name}', so it is not a GA4 export{nearest(name, opened.columns)}"
            )
    shown = []
    for name, kind in RAW_TABLES["ga4_events"].items():
        given = opened.columns.get(name)
        if name == "property_currency":
            value = "null::varchar" if entry.currency is None else quote(entry.currency)
        elif given is None:
            value = f"null::{kind}"
        elif kind == "VARCHAR":
            _check_kind(opened.origin, name, given, f"column '{name}'")
            value = as_id(as_text(identifier(name), given), name, entry)
        else:
            structure = quote(json.dumps(_structure(duckdb.sqltype(kind))))
            inner = f"try_cast({identifier(name)} as json)" if given == "VARCHAR" else f"to_json({identifier(name)})"
            value = f"from_json({inner}, {structure})"
            if given != "VARCHAR":  # DuckDB's cast by name is twenty times faster, if the types allow it
                native = f"try_cast({identifier(name)} as {kind})"
                try:
                    con.execute(f"describe select {native} from (select null::{given} as {identifier(name)})")
                    value = native
                except duckdb.Error:
                    pass
        if name == "items" and "product_id" in entry.caseless:
            value = f"list_transform({value}, lambda i: struct_update(i, item_id := upper(i.item_id)))"
        shown.append(f"{value} as {identifier(name)}")
    available = {"event_time": as_text("event_timestamp", opened.columns["event_timestamp"])}.get(
        str(entry.available_at), "null::varchar"
    )
    ours = opened.own
    relation, bad = opened.relation, f"{ours}bad"
    if isinstance(entry.available_at, Column):
        available = _plain(opened, Field(**dict(entry.available_at)), "available_at", "available_at")
    elif isinstance(entry.available_at, Sql):
        available, tried, fails = _arrival(con, opened, entry.available_at.sql, "available_at")
        relation, bad = f"(select *, {tried} from {relation})", f"coalesce({ours}bad, case {fails} end)"
    rows = (
        f"select {ours}n as __n, {bad} as __bad, {ours}payload as __payload, {available} as __available, {', '.join(shown)} "
        f"from {relation}"
    )
    return Bound(opened, "ga4_events", entry, zone, tuple(RAW_TABLES["ga4_events"]), rows)


# --- landing -----------------------------------------------------------------------------------------------------


def in_file(name: str, suffix: str = "") -> str:
    """SQL of a row's position in a file: `name#n`, and `suffix`."""
    return f"{quote(name + '#')} || __n" + (f" || {quote(suffix)}" if suffix else "")


def select(bound: Bound, source: str, position: str, ingested_at: datetime, *, are_good: bool = False) -> str:
    """The SELECT that lands rows: every column of their raw table, in order, without personal data. `position` is SQL over the relation.
    `are_good`: no row has `__bad`. Rows of forgotten people land without fields and payload."""
    now = timestamp_literal(ingested_at)
    entry, policy = bound.entry, bound.entry.policy
    moment = parse_time("trim(__available)", quote(bound.zone))
    values = {
        "_source": quote(source),
        "_position": position,
        "_origin": quote(entry.origin),
        "_time_zone": quote(bound.zone),
        "_expects": quote(",".join(entry.expects)) if entry.expects else "null",
        "_error": "__forgotten" if are_good else "coalesce(__forgotten, __bad)",
        "_ingested_at": now,
        # A row cannot become available after it was loaded.
        "available_at": now if entry.available_at == "now" else f"least(coalesce({moment}, {now}), {now})",
        # Not null, by which a row could not be compared with that of the same file loaded again.
        "payload": f"case when __forgotten is null then {_payload(bound, policy, are_good=are_good)} else '' end",
    }
    is_whole = "__forgotten is null" if are_good else "__bad is null and __forgotten is null"
    shown = []
    for column, kind in columns(bound.table).items():
        if column in values:
            value = values[column]
        elif column in bound.fields:
            value = f"case when {is_whole} then {identifier(column)} end"
        else:
            value = "null"
        shown.append(f"cast({value} as {kind}) as {identifier(column)}")
    rows = without_personal(bound, bound.rows, bound.fields)
    return f"select {', '.join(shown)} from ({guarded(bound.table, bound.fields, rows)})"


def without_personal(bound: Bound, rows: str, fields: Iterable[str]) -> str:
    """SQL: the rows of a SELECT, these fields without personal data."""
    kinds = columns(bound.table)
    clean = [f"{_clean(bound, name, kinds[name])} as {identifier(name)}" for name in fields]
    return f"select * replace ({', '.join(clean)}) from ({rows})" if clean else rows


def guarded(table: str, fields: Sequence[str], rows: str) -> str:
    """SQL: the rows of a SELECT with these contract fields, and `__forgotten`: why a row must not land as it is, or null. A row is a
    forgotten person's by its login; without a login, by its visitor or its order, since others who log in may use the same device."""
    ids = {kind: each for kind, each in PEOPLE.get(table, {}).items() if each.partition(".")[0] in fields}
    if not ids:
        return f"select *, null::varchar as __forgotten from ({rows})"
    anonymous = f" and {clean_text(ids['login'])} is null" if "login" in ids else ""
    # Nothing is hashed as long as nobody is on the list.
    texts = {
        kind: f"case when getvariable('forgotten') is not null{'' if kind == 'login' else anonymous} then {clean_text(column)} end"
        for kind, column in ids.items()
    }
    listed = [
        f"coalesce({hash_of(kind, text)} in (select unnest(getvariable('forgotten')::varchar[])), false)"
        for kind, text in texts.items()
    ]
    return f"select *, case when {' or '.join(listed)} then {quote(FORGOTTEN)} end as __forgotten from ({rows})"


def clean_text(column: str) -> str:
    """SQL of a text as the models read it."""
    return str(macros("fields.sql").clean_text(column))


def _payload(bound: Bound, policy: Personal, *, are_good: bool) -> str:
    """SQL of the payload without personal data. A line of a CSV file that could not be split into its columns has no keys, so it is not kept if the
    file has personal columns."""
    table, opened = bound.table, bound.opened
    value = personal.text("__payload", policy, table, is_json=True)
    held = [name for name in opened.columns if policy.of(table, name)]
    if are_good or opened.is_json or opened.is_typed or not held:
        return value
    said = quote(f"a line that is not kept, because the file has personal columns: {', '.join(held)}")
    return f"case when __bad is not null and not json_valid(__payload) then {said} else {value} end"


def _clean(bound: Bound, column: str, kind: str) -> str:
    """SQL of a contract field without personal data: hashed or dropped as a whole if it is personal, otherwise without e-mail addresses."""
    value, table, entry = identifier(column), bound.table, bound.entry
    policy = entry.policy
    if kind != "VARCHAR":  # GA4's nested columns
        texts = f"to_json({value})::varchar"
        structure = quote(json.dumps(_structure(duckdb.sqltype(kind))))
        clean = f"from_json({personal.text(texts, policy, table, is_json=True)}, {structure})"
        return f"case when contains(__payload, '@') or contains(__payload, '%40') then {clean} else {value} end"
    source = entry.fields.get(column)
    key = source.key if source is not None and source.reads is not None else None
    found = policy.of(table, column, *([] if key is None else [key]))
    if column == "properties":
        return personal.text(value, policy, table, is_json=True)
    clean = personal.whole(value, *found) if found else personal.text(value, policy, table, is_json=False)
    return f"upper({clean})" if column in entry.caseless else clean


def check_sample(con: duckdb.DuckDBPyConnection, bound: Bound, where: str) -> None:
    """Reject a file if none of the values of a time or number field can be read: then the mapping is wrong.

    The lake is append-only, so unusable files must not get in. Single bad rows do land, and are quarantined.
    """
    tested = [name for name in bound.fields if is_time(name) or name in NUMBERS]
    if not tested:
        return
    parts = []
    for name in tested:
        text = identifier(name)
        good = parse_time(f"trim({text})", quote(bound.zone)) if is_time(name) else f"try_cast({text} as double)"
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
            hint = "; set a format: for it" if is_time(name) else ""
            raise FinegrainError(
                f"{where}.fields.{name}: no value of it in {bound.opened.origin} is {what}; the first is '{masked(str(example))[:60]}'{hint}"
            )


def batches(
    files: list[tuple[DataFile, str]], size: int = 64 * 2**20, count: int = 50
) -> Iterator[list[tuple[DataFile, str]]]:
    """Group small files, so that not each becomes a small file in the lake: (file, SELECT) pairs."""
    batch: list[tuple[DataFile, str]] = []
    for pair in files:
        if batch and (len(batch) >= count or sum(file.size for file, _ in batch) + pair[0].size > size):
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch
