"""Reads CSV files that DuckDB's reader cannot read completely, by finding the records with SQL over the lines.

Quotes decide whether a line feed ends a record, so the meaning of a line depends on all lines before it. But each line is a function of one bit:
whether it begins inside quotes, to whether the next line does. Two regular expressions compute that function for each line, and window functions
compose them. Records that are well-formed and have the right number of columns are rows; all others are malformed, and keep their text. A
malformed record of several lines is cut after its first line, and the rest is read again from outside quotes. So a quote that is never closed
costs only its own line.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import duckdb
import pyarrow as pa

from orchestration.sources.files import Look
from orchestration.sql.text import quote

#: A longer record, in characters, is malformed: it is probably the rest of a file after a quote that is never closed.
LONGEST_RECORD: Final = 16 * 2**20
#: The most rounds of cutting malformed records and searching again. After that, malformed records are read line by line.
ROUNDS: Final = 30
_CHUNK: Final = 2**22

_numbers = itertools.count()


@dataclass(frozen=True)
class Dialect:
    """The dialect of a file, as single characters. Without `escape`, quotes inside a field are doubled. Without `quote`, nothing is quoted."""

    delimiter: str = ","
    quote: str = '"'
    escape: str = ""

    @property
    def _marks(self) -> tuple[str, str, str]:
        """Delimiter, quote and escape for use in a regular expression, inside or outside a character class."""
        delimiter, mark, escape = (
            f"\\x{{{ord(character):x}}}" if character else "" for character in (self.delimiter, self.quote, self.escape)
        )
        return delimiter, mark, escape

    @property
    def _inside(self) -> str:
        """The text between two quotes."""
        _, mark, escape = self._marks
        return f"(?:[^{mark}{escape}]|{mark}{mark}" + (f"|{escape}." if escape else "") + ")*"

    def _text(self, first: str) -> str:
        """Unquoted text of at least one character; the first one is not in `first`."""
        delimiter, _, escape = self._marks
        escaped = f"|{escape}." if escape else ""
        return f"(?:[^{first}{delimiter}{escape}]{escaped})(?:[^{delimiter}{escape}]{escaped})*"

    @property
    def _loose(self) -> str:
        """A field that may have text after its closing quote."""
        _, mark, _ = self._marks
        text = self._text(mark)
        return f"(?:{mark}{self._inside}{mark}(?:{text})?|{text}|)" if mark else f"(?:{text}|)"

    def ends_outside(self, begins: str) -> str:
        """A regular expression for lines that begin outside (or inside) quotes and end outside."""
        delimiter, mark, _ = self._marks
        more = f"(?:{delimiter}{self._loose})*"
        if begins == "outside":
            return self._loose + more
        return f"{self._inside}{mark}(?:{self._text(mark)})?{more}"

    def field(self, strict: bool = False) -> str:
        """A well-formed field. A quote in the middle of an unquoted field is text, unless `strict`."""
        delimiter, mark, escape = self._marks
        text = self._text(mark)
        if strict:
            text = f"(?:[^{mark}{delimiter}{escape}]" + (f"|{escape}." if escape else "") + ")+"
        return f"{mark}{self._inside}{mark}|{text}|" if mark else f"{text}|"

    def well_formed(self, strict: bool = False) -> str:
        """A regular expression for a whole record."""
        return f"(?:{self.field(strict)})(?:{self._marks[0]}(?:{self.field(strict)}))*"

    def fields(self, text: str) -> str:
        """SQL of the list of fields, as written, of a well-formed record."""
        return f"regexp_extract_all({quote(self.delimiter)} || {text}, {quote(f'{self._marks[0]}({self.field()})')}, 1, 's')"

    def bare(self, field: str) -> str:
        """SQL of a field without its quotes."""
        return self._if_quoted(field, f"{field}[2:-2]", field)

    def value(self, field: str) -> str:
        """SQL of a field's value. NUL, which these files never contain, temporarily replaces an escaped escape."""
        mark, escape = self.quote, self.escape

        def protected(text: str) -> str:
            return f"replace({text}, {quote(2 * escape)}, chr(0))" if escape else text

        value = self._if_quoted(
            field, f"replace({protected(f'{field}[2:-2]')}, {quote(2 * mark)}, {quote(mark)})", protected(field)
        )
        if not escape:
            return value
        if escape == "\\":  # as MySQL and PostgreSQL read and write it
            for letter, code in (("n", 10), ("t", 9), ("r", 13), ("b", 8)):
                value = f"replace({value}, {quote(escape + letter)}, chr({code}))"
            value = f"replace({value}, {quote(escape + '0')}, '')"
        return f"replace(replace({value}, {quote(escape)}, ''), chr(0), {quote(escape)})"

    def _if_quoted(self, field: str, then: str, otherwise: str) -> str:
        if not self.quote:
            return otherwise
        return f"case when starts_with({field}, {quote(self.quote)}) then {then} else {otherwise} end"


@dataclass(frozen=True)
class Found:
    """The records of a file as a temporary table: `n` (the number), `fields` (as written; null if malformed), `why` and `raw` (null unless
    malformed). `rows` is the number of records, `lines` the number of lines that are not blank."""

    table: str
    rows: int
    lines: int


@contextmanager
def lines(con: duckdb.DuckDBPyConnection, look: Look) -> Iterator[str]:
    """A temporary table of the lines of a text file: `n` from 1, and `line` without its LF, but with a CR at its end."""
    number = next(_numbers)
    table, view = f"__lines_{number}", f"__text_{number}"
    schema = pa.schema([("first", pa.int64()), ("text", pa.string())])
    con.register(view, pa.RecordBatchReader.from_batches(schema, _batches(look, schema)))
    try:
        con.execute(
            f"create temp table {table} as select first + unnest(range(len(parts))) as n, unnest(parts) as line "
            f"from (select first, string_split(text, chr(10)) as parts from {view})"
        )
    finally:
        con.unregister(view)
    try:
        yield table
    finally:
        con.execute(f"drop table {table}")


def _batches(look: Look, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    first, rest = 1, b""

    def batch(text: bytes) -> pa.RecordBatch:
        return pa.record_batch([[first], [text.decode()]], schema)

    with look.open() as stream:
        start = stream.read(3)
        rest = b"" if start == b"\xef\xbb\xbf" else start
        while chunk := stream.read(_CHUNK):
            whole, mark, tail = chunk.rpartition(b"\n")
            if not mark:
                rest += chunk
                continue
            text = rest + whole
            yield batch(text)
            first += text.count(b"\n") + 1
            rest = tail
    if rest:
        yield batch(rest.removesuffix(b"\n"))


def read(con: duckdb.DuckDBPyConnection, look: Look, dialect: Dialect, columns: int, header_lines: int) -> Found:
    """Find the records of a CSV file with `columns` columns, after the lines of its header."""
    number = next(_numbers)
    held, units, spans, inside, many, cuts, found = (
        f"__{name}_{number}" for name in ("held", "units", "spans", "inside", "many", "cuts", "records")
    )
    with lines(con, look) as read_lines:
        con.execute(
            f"create temp table {held} as select n, line, false as is_cut, false as is_rest, {_odd_escapes('line', dialect)} as goes_on "
            f"from {read_lines} where n > {header_lines}"
        )
        [(of_header,)] = con.execute(
            f"select count(*) filter ({_is_filled('line')}) from {read_lines} where n <= {header_lines}"
        ).fetchall()
    changed = held if dialect.escape else units
    for remaining in reversed(range(ROUNDS)):
        if dialect.escape or remaining == ROUNDS - 1:
            con.execute(f"create or replace temp table {units} as {_units(held, dialect)}")
        con.execute(f"create or replace temp table {spans} as {_spans(units)}")
        con.execute(
            f"create or replace temp table {inside} as select n, first from (select n from {units}) as u "
            f"asof join {spans} as s on u.n >= s.first where n <= until"
        )
        con.execute(
            f"create or replace temp table {many} as {_validated(_of_several_units(units, inside), dialect, columns)}"
        )
        con.execute(
            f"create or replace temp table {cuts} as "
            f"{_cuts(units, inside, many, dialect, columns, at_once=not remaining)}"
        )
        [(count,)] = con.execute(f"select count(*) from {cuts}").fetchall()
        if not count:
            break
        # In the last round, also cut after the record, so that the following lines stay as they are.
        where = "h.n = c.following" if remaining else "h.n > c.n and h.n <= c.last + 1"
        con.execute(f"update {changed} as h set is_cut = true from {cuts} as c where {where}")
        con.execute(f"update {changed} as h set is_rest = true from {cuts} as c where h.n > c.n and h.n <= c.last")
    if count:
        if dialect.escape:
            con.execute(f"create or replace temp table {units} as {_units(held, dialect)}")
        con.execute(f"create or replace temp table {spans} as {_spans(units)}")
        con.execute(
            f"create or replace temp table {inside} as select n, first from (select n from {units}) as u "
            f"asof join {spans} as s on u.n >= s.first where n <= until"
        )
    everything = f"{_of_several_units(units, inside)} union all by name {_of_one_unit(units, inside)}"
    con.execute(
        f"create temp table {found} as select row_number() over (order by n) as n, filled, why, fields, raw "
        f"from ({_validated(everything, dialect, columns)})"
    )
    for table in (held, units, spans, inside, many, cuts):
        con.execute(f"drop table {table}")
    [(rows, taken)] = con.execute(f"select count(*), coalesce(sum(filled), 0) from {found}").fetchall()
    return Found(found, int(rows), int(taken) + int(of_header))


def _is_filled(line: str) -> str:
    return f"{line} not in ('', chr(13))"


def _odd_escapes(line: str, dialect: Dialect) -> str:
    """SQL: whether a line ends with an escape that is not escaped itself, so that its LF is text."""
    if not dialect.escape:
        return "false"
    return f"(len({line}) - len(rtrim({line}, {quote(dialect.escape)}))) % 2 = 1"


def _units(held: str, dialect: Dialect) -> str:
    """SELECT of units: single lines, or lines joined by an escaped LF. Columns: `n`, `last`, `line`, `filled` (lines that are not blank), and
    whether the next unit begins inside quotes if this one begins outside (`from_outside`) or inside (`from_inside`)."""
    lines = f"(select n, n as last, line, is_cut, is_rest, ({_is_filled('line')})::int as filled from {held})"
    if dialect.escape:
        lines = (
            "(select min(n) as n, max(n) as last, string_agg(line, chr(10) order by n) as line, bool_or(is_cut) as is_cut, "
            f"bool_or(is_rest) as is_rest, count(*) filter ({_is_filled('line')}) as filled from "
            "(select *, sum(begins) over (order by n) as unit from "
            f"(select *, (is_cut or not coalesce(lag(goes_on) over (order by n), false))::int as begins from {held})) group by unit)"
        )
    outside = f"not regexp_full_match(line, {quote(dialect.ends_outside('outside'))}, 's')"
    within = f"not regexp_full_match(line, {quote(dialect.ends_outside('inside'))}, 's')" if dialect.quote else "true"
    # A line without quotes does not change the state.
    special = f"contains(line, {quote(dialect.quote)})" if dialect.quote else "false"
    if dialect.escape:
        special = f"({special} or ends_with(line, {quote(dialect.escape)}))"
    return (
        f"select *, case when {special} then {outside} else false end as from_outside, "
        f"case when {special} then {within} else true end as from_inside from {lines}"
    )


def _spans(units: str) -> str:
    """SELECT of records of several units, `first` to `until`. Reads only lines that change the state: 0 outside, 1 inside quotes."""
    # `settled`: the state after a line that ends in the same state wherever it begins. `turns`: the line inverts the state.
    functions = (
        "select n, is_cut, case when is_cut or from_outside = from_inside then from_outside::int end as settled, "
        f"(not is_cut and from_outside and not from_inside)::int as turns from {units} where is_cut or from_outside or not from_inside"
    )
    turned = f"select *, sum(turns) over (order by n) as turned from ({functions})"
    states = (
        "select *, (coalesce(last_value(settled + turned ignore nulls) over (order by n), 0) + turned) % 2 as state "
        f"from ({turned})"
    )
    around = f"select *, case when is_cut then 0 else coalesce(lag(state) over (order by n), 0) end as before from ({states})"
    # The next change after an opening line is the closing line, or a cut.
    ends = (
        "select n as first, before = 0 and state = 1 as opens, "
        "coalesce(lead(n - is_cut::int) over (order by n), 9223372036854775807) as until "
        f"from ({around}) where is_cut or before <> state"
    )
    return f"select first, until from ({ends}) where opens and until > first"


def _of_several_units(units: str, inside: str) -> str:
    """SELECT of records of several units; the text of one that is too long is null."""
    sizes = f"(select first, sum(len(line)) as size from {inside} join {units} using (n) group by first)"
    return (
        "select min(n) as n, max(last) as last, min(n) filter (n > first) as following, "
        f"string_agg(line, chr(10) order by n) filter (size <= {LONGEST_RECORD}) as text, bool_or(is_rest) as is_rest, "
        f"sum(filled)::bigint as filled from {inside} join {units} using (n) join {sizes} using (first) group by first"
    )


def _of_one_unit(units: str, inside: str) -> str:
    """SELECT of records of one unit."""
    return (
        f"select n, last, n + 1 as following, line as text, is_rest, filled::bigint as filled from {units} "
        f"anti join {inside} using (n) where filled > 0"
    )


def _cuts(units: str, inside: str, many: str, dialect: Dialect, columns: int, at_once: bool) -> str:
    """SELECT of malformed records of several lines, to be cut. A record after a malformed one may begin at the wrong line, so the former
    is cut first, unless all are cut `at_once`."""
    long = f"{_of_one_unit(units, inside)} and last > n"
    bad = (
        f"(select n, last, following, why from {many} where why is not null "
        f"union all select n, last, following, why from ({_validated(long, dialect, columns)}) where why is not null)"
    )
    if at_once:
        return f"select n, last, following from {bad}"
    behind = (
        f"select b.*, coalesce(i.first, u.n) as former from {bad} as b "
        f"asof left join (select n from {units} where filled > 0) as u on b.n > u.n left join {inside} as i on i.n = u.n"
    )
    single = f"{_of_one_unit(units, inside)} and n in (select former from ({behind}))"
    formers = f"(select n, why from {many} union all select n, why from ({_validated(single, dialect, columns)}))"
    return (
        f"select b.n, b.last, b.following from ({behind}) as b left join {formers} as f on f.n = b.former "
        f"where f.why is null or b.n = (select min(n) from {bad})"
    )


def _validated(records: str, dialect: Dialect, columns: int) -> str:
    """SELECT of records with the reason `why` if they are malformed. A row has its `fields`, a malformed record its text, `raw`."""
    said = f"select *, case when ends_with(text, chr(13)) then text[:-2] else text end as whole from ({records})"
    # The rest of a record that was cut is a row only if all quotes in it are well-formed.
    well = f"regexp_full_match(whole, {quote(dialect.well_formed())}, 's')"
    strictly = f"regexp_full_match(whole, {quote(dialect.well_formed(strict=True))}, 's')"
    checked = f"select *, coalesce(case when is_rest then {strictly} else {well} end, false) as is_well from ({said})"
    split = f"select *, case when is_well then {dialect.fields('whole')} end as parts from ({checked})"
    closed = f"regexp_full_match(whole, {quote(dialect.ends_outside('outside'))}, 's')"
    escaped = f"when {_odd_escapes('whole', dialect)} then 'ends with the escape character'" if dialect.escape else ""
    # Ignore an empty field after the last delimiter: many exports end each row with a delimiter.
    extra = f"len(parts) = {columns + 1} and parts[-1] in ('', {quote(2 * dialect.quote)})"
    why = (
        f"case when is_well and (len(parts) = {columns} or {extra}) then null "
        f"when is_well then len(parts) || ' columns instead of {columns}' "
        f"{escaped} when {closed} then 'a quotation mark inside a quoted field' else 'a quotation mark is never closed' end"
    )
    reasoned = f"select *, {why} as why from ({split})"
    return (
        "select n, last, following, filled, why, case when why is null then parts end as fields, "
        f"case when why is not null then coalesce(whole, '') end as raw from ({reasoned})"
    )
