"""Names and values as SQL text. All quoting and escaping is done here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final


def timestamp_literal(moment: datetime) -> str:
    """A SQL timestamp literal of a naive datetime."""
    return f"timestamp {quote(moment.isoformat(sep=' '))}"


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str, mark: str = '"') -> str:
    """A quoted SQL identifier; `mark` is the engine's quote character."""
    return mark + name.replace(mark, mark * 2) + mark


def free_prefix(names: Iterable[str]) -> str:
    """A prefix for our own columns that none of these names, which users chose, starts with."""
    marks = itertools.chain(["__"], (f"__{number}_" for number in itertools.count(1)))
    names = list(names)
    return next(mark for mark in marks if not any(name.startswith(mark) for name in names))


def path_literal(path: Path) -> str:
    """A file path for DuckDB, with glob characters escaped, so that it matches exactly this file."""
    return quote(re.sub(r"([*?\[])", r"[\1]", str(path)))


def map_literal(values: Mapping[str, str]) -> str:
    """A SQL map literal."""
    pairs = ", ".join(f"{quote(name)}: {quote(value)}" for name, value in sorted(values.items()))
    return f"map {{{pairs}}}::map(varchar, varchar)"


#: Regular expressions: a cheap test for a JSON number with more digits than a double keeps; such a number; and JSON tokens (a string, or
#: anything between strings).
_LONG: Final = "[0-9.]{17}"
_INEXACT: Final = (
    "-?(?:"
    + "|".join(rf"[0-9]{{{n}}}\.[0-9]{{{16 - n},}}" for n in range(1, 16))
    + r"|[0-9]{16,}\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
)
_TOKENS: Final = r'"(?:[^"\\]|\\.)*"|[^"]+'


def exact_numbers(json: str, quoted: str = r'"\0"') -> str:
    """SQL of a JSON text in which decimal numbers that a double cannot hold are quoted, so that DuckDB's JSON reader keeps all their digits.
    (Integers keep theirs anyway.)"""
    parts = (
        f"list_transform(regexp_extract_all({json}, {quote(_TOKENS)}), lambda part: case when starts_with(part, '\"') then part "
        f"else regexp_replace(part, {quote(_INEXACT)}, {quote(quoted)}, 'g') end)"
    )
    return f"case when regexp_matches({json}, {quote(_LONG)}) then array_to_string({parts}, '') else {json} end"


def text_of_bytes(column: str) -> str:
    """SQL of a BLOB as text. Where it is not UTF-8, only its ASCII characters are there, and spaces for all others."""
    return f"coalesce(try(decode({column})), regexp_replace({column}::varchar, '\\\\x[0-9A-F]{{2}}', ' ', 'g'))"
