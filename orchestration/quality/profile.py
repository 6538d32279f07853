"""Profiles a table in a few SQL statements: counts, ranges, sets, patterns and keys, with bounded memory however long the table is.

What holds for all rows is counted on all rows. Only where something has to be found first (a pattern, a key of several columns) a sample is looked at,
and what is found there is checked on all rows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import duckdb

from orchestration.sql.text import identifier, quote

#: A set has no more values than this.
MOST_VALUES: Final = 20
#: Columns that are tried together as a key, and columns of a key.
KEY_CANDIDATES: Final = 10
KEY_COLUMNS: Final = 3
#: The rows on which keys of several columns are tried first.
KEY_SAMPLE: Final = 20_000
#: Patterns of a text column that are of different shapes.
SHAPES: Final = 3
#: Known kinds of texts, the narrower first: name and regular expression.
KNOWN: Final = {
    "UUIDs": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "hashes of 32 digits": "^[0-9a-f]{32}$",
    "hashes of 64 digits": "^[0-9a-f]{64}$",
    "codes of three capitals, as of currencies": "^[A-Z]{3}$",
    "codes of two capitals, as of countries": "^[A-Z]{2}$",
    "e-mail addresses": "^[^@ ]+@[^@ ]+[.][^@ ]+$",
    "addresses of the web": "^https?://[^ ]+$",
    "days": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
    "whole numbers": "^[0-9]+$",
}
#: Names of columns that are keys, or parts of keys.
_KEY_NAME: Final = re.compile(r"(^|_)(id|key|code|sku|uuid|guid|hash|number|no)$|^as_of", re.IGNORECASE)
_WHOLE: Final = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?")
_NUMBER: Final = re.compile(rf"{_WHOLE.pattern}|DOUBLE|FLOAT|DECIMAL.*")


@dataclass
class Column:
    """Of one column: its rows with a value, about how many distinct values it has, and the least and greatest of its numbers that are finite, or of the years
    of its times. `infinite`: the rows of the others. `values`: the rows of each
    value, if there are few values; `halves`: in how many halves of the table the rarest of these is. `pattern`: what all texts match, and what that is.
    `is_unique`: whether no value is there twice. `parent`: a model and its key column which holds all values."""

    name: str
    kind: str
    rows: int
    distinct: int
    low: int | float | Decimal | None = None
    high: int | float | Decimal | None = None
    infinite: int = 0
    values: dict[str, int] | None = None
    halves: int = 0
    pattern: tuple[str, str] | None = None
    is_unique: bool = False
    parent: tuple[str, str] | None = None

    @property
    def is_text(self) -> bool:
        return self.kind == "VARCHAR"

    @property
    def is_number(self) -> bool:
        return _NUMBER.fullmatch(self.kind) is not None

    @property
    def is_whole(self) -> bool:
        return _WHOLE.fullmatch(self.kind) is not None

    @property
    def is_moment(self) -> bool:
        return self.kind in ("DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE")

    @property
    def may_be_key(self) -> bool:
        """Whether its values can identify a row: those of a measure are distinct only by chance."""
        is_named = _KEY_NAME.search(self.name) is not None
        return (
            self.kind == "UUID"
            or (self.is_text and (is_named or self.pattern is not None))
            or (self.is_whole and is_named)
        )


@dataclass
class Profile:
    """Of one table. `key`: the fewest columns that together identify a row, if no column alone does."""

    rows: int
    columns: list[Column]
    key: list[str] = field(default_factory=list)


def profile(
    con: duckdb.DuckDBPyConnection,
    table: str,
    *,
    sample: int,
    parents: Mapping[str, list[tuple[str, str]]],
    finds_key: bool = True,
) -> Profile:
    """Profile a table. `table`: its quoted name; `sample`: the rows in which patterns and keys are looked for; `parents`: by name of a column,
    the models that have it as their key, with the quoted name of each; `finds_key`: whether to look for a key of several columns."""
    kinds = {str(name): str(kind) for name, kind, *_ in con.execute(f"describe {table}").fetchall()}
    rows, columns = _counted(con, table, kinds)
    found = Profile(rows, columns)
    if not rows:
        return found
    # By a hash of the row: the same rows each time, on any number of cores, in no memory.
    part = f"(from {table} as t" + (f" where hash(t) % {-(-rows // sample)} = 0)" if rows > sample else ")")
    patterns = _patterns(con, part, columns)
    _check(con, table, columns, patterns)
    for each in columns:
        if each.may_be_key and each.rows and each.distinct > 0.8 * each.rows:
            each.is_unique = not _repeats(con, table, [each.name])
    if finds_key and not any(each.is_unique and each.rows == rows for each in columns):
        found.key = _key(con, table, part, found)
    for each in columns:
        for model, place in parents.get(each.name, []):
            if each.rows and place != table and not _orphans(con, table, each.name, place):
                each.parent = (model, each.name)
                break
    return found


def _counted(con: duckdb.DuckDBPyConnection, table: str, kinds: Mapping[str, str]) -> tuple[int, list[Column]]:
    """Counts and ranges, in one scan."""
    columns = [Column(name, kind, 0, 0) for name, kind in kinds.items()]
    asked = ["count(*)"]
    for each in columns:
        name = identifier(each.name)
        asked += [f"count({name})", f"approx_count_distinct({name})"]
        if each.is_number or each.is_moment:
            is_finite = f"isfinite({name})" if each.kind in ("DOUBLE", "FLOAT") or each.is_moment else "true"
            number = f"year({name})" if each.is_moment else name
            asked += [f"{end}({number}) filter ({is_finite})" for end in ("min", "max")]
            asked.append(f"count(*) filter (not {is_finite})")
    [answers] = con.execute(f"select {', '.join(asked)} from {table}").fetchall()
    answer = iter(answers)
    rows = int(next(answer))
    for each in columns:
        each.rows, each.distinct = int(next(answer)), int(next(answer))
        if each.is_number or each.is_moment:
            each.low, each.high, each.infinite = next(answer), next(answer), int(next(answer))
    return rows, columns


# -------------------------------------------------------------------------------------------------- sets, patterns


def _patterns(con: duckdb.DuckDBPyConnection, part: str, columns: Iterable[Column]) -> dict[str, tuple[str, str]]:
    """By text column, what all of its texts in the sample match: a known kind of text, or the shapes that they have."""
    texts = [each for each in columns if each.is_text and each.rows]
    if not texts:
        return {}
    asked = []
    for each in texts:
        name = identifier(each.name)
        shape = name
        for runs, letter in (("[0-9]+", "9"), ("[a-z]+", "a"), ("[A-Z]+", "A")):
            shape = f"regexp_replace({shape}, '{runs}', '{letter}', 'g')"
        asked += [
            f"count({name})",
            f"min(length({name}))",
            f"max(length({name}))",
            f"approx_top_k({shape}, {SHAPES + 1})",
        ]
        asked += [f"count(*) filter (regexp_matches({name}, {quote(regex)}))" for regex in KNOWN.values()]
    [answers] = con.execute(f"select {', '.join(asked)} from {part}").fetchall()
    found, answer = {}, iter(answers)
    for each in texts:
        rows, shortest, longest, shapes = (next(answer) for _ in range(4))
        matches = {what: next(answer) for what in KNOWN}
        known = next(((KNOWN[what], what) for what, count in matches.items() if count == rows), None)
        if rows and (pattern := known or _of_shapes(shapes, shortest, longest)):
            found[each.name] = pattern
    return found


#: Runs of digits (9), small letters (a) and capitals (A), with marks between them.
_SHAPE: Final = re.compile("[9aA]?([-_./:|#+@][9aA]+|[9aA]){0,11}")
_RUNS: Final = {"9": "[0-9]", "a": "[a-z]", "A": "[A-Z]"}


def _of_shapes(shapes: list[str], shortest: int, longest: int) -> tuple[str, str] | None:
    """A regular expression of texts of these shapes. Those without a digit are words, of which the next may look otherwise."""
    if not 0 < len(shapes) <= SHAPES or not all("9" in each and _SHAPE.fullmatch(each) for each in shapes):
        return None
    length = f"{{{shortest}}}" if shortest == longest else "+"
    bodies = [
        "".join(_RUNS[mark] + (length if len(shape) == 1 else "+") if mark in _RUNS else f"[{mark}]" for mark in shape)
        for shape in sorted(shapes)
    ]
    if len(bodies) == 1:
        return f"^{bodies[0]}$", "one shape"
    return f"^({'|'.join(bodies)})$", f"{len(bodies)} shapes"


def _check(
    con: duckdb.DuckDBPyConnection, table: str, columns: Iterable[Column], patterns: Mapping[str, tuple[str, str]]
) -> None:
    """On all rows: which values columns of few values have, and whether all texts match the patterns found in the sample."""
    columns = list(columns)
    # The first time that differs between rows; without one, the halves are of any rows.
    moment = next((each for each in columns if each.kind in ("DATE", "TIMESTAMP") and each.distinct > 1), None)
    if moment is not None:
        name = identifier(moment.name)
        middle = f"{name} < (select approx_quantile({name}, 0.5) from {table} where isfinite({name}))"
    else:
        middle = "hash(t) % 2 = 0"
    # The estimate of distinct values is off by a few percent.
    sets = [each for each in columns if each.is_text and each.rows and each.distinct <= 1.2 * MOST_VALUES]
    asked = ["count(*)"]
    for each in sets:
        name = identifier(each.name)
        asked += [
            f"histogram({name})",
            f"histogram({name}) filter (is_early)",
            f"histogram({name}) filter (not is_early)",
        ]
    asked += [
        f"count(*) filter (not regexp_matches({identifier(name)}, {quote(regex)}))"
        for name, (regex, _) in patterns.items()
    ]
    [answers] = con.execute(
        f"select {', '.join(asked)} from (select *, coalesce({middle}, false) as is_early from {table} as t)"
    ).fetchall()
    answer = iter(answers[1:])
    for each in sets:
        values, early, late = (next(answer) or {} for _ in range(3))
        if len(values) <= MOST_VALUES:
            each.values = dict(sorted(values.items()))
            each.halves = min((value in early) + (value in late) for value in values)
    by_name = {each.name: each for each in columns}
    for name, pattern in patterns.items():
        if next(answer) == 0:
            by_name[name].pattern = pattern


# ----------------------------------------------------------------------------------------------------------- keys


def _repeats(con: duckdb.DuckDBPyConnection, table: str, names: Iterable[str]) -> bool:
    """Whether values of these columns together are there twice. A GROUP BY, which can spill to disk."""
    columns = [identifier(name) for name in names]
    present = " and ".join(f"{each} is not null" for each in columns)
    grouped = ", ".join(columns)
    found = con.execute(
        f"select 1 from {table} where {present} group by {grouped} having count(*) > 1 limit 1"
    ).fetchall()
    return bool(found)


def _key(con: duckdb.DuckDBPyConnection, table: str, part: str, found: Profile) -> list[str]:
    """The fewest columns that identify a row, up to `KEY_COLUMNS`; none if there are no such columns."""
    candidates = [
        each
        for each in found.columns
        if each.rows == found.rows and each.distinct > 1 and (each.may_be_key or each.is_text or each.is_moment)
    ]
    # Names that are those of keys go first; of these, columns of many values.
    candidates.sort(key=lambda each: (_KEY_NAME.search(each.name) is None, -each.distinct))
    candidates = candidates[:KEY_CANDIDATES]
    for size in range(2, KEY_COLUMNS + 1):
        # The estimates are off by a few percent each.
        groups = [
            group
            for group in itertools.combinations(candidates, size)
            if _product(each.distinct for each in group) >= 0.7 * found.rows
        ]
        if not groups:
            continue
        hashes = ", ".join(
            f"count(distinct hash({', '.join(identifier(each.name) for each in group)}))" for group in groups
        )
        [(rows, *counts)] = con.execute(f"select count(*), {hashes} from (from {part} limit {KEY_SAMPLE})").fetchall()
        for group, count in zip(groups, counts, strict=True):
            names = [each.name for each in group]
            if count == rows and not _repeats(con, table, names):
                return [each.name for each in found.columns if each.name in names]
    return []


def _product(numbers: Iterable[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def _orphans(con: duckdb.DuckDBPyConnection, table: str, name: str, parent: str) -> bool:
    """Whether a column has a value that the same column of another table has not."""
    column = identifier(name)
    try:
        found = con.execute(
            f"select 1 from {table} as t anti join {parent} as p on t.{column} = p.{column} where t.{column} is not null limit 1"
        ).fetchall()
    except duckdb.Error:  # of another type
        return True
    return bool(found)
