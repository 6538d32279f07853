"""Names and values as SQL text: no other module spells a quote."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final


def timestamp_literal(moment: datetime) -> str:
    """A SQL timestamp of a naive time."""
    return f"timestamp {quote(moment.isoformat(sep=' '))}"


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str, mark: str = '"') -> str:
    """A SQL identifier; `mark` is what the engine puts around it."""
    return mark + name.replace(mark, mark * 2) + mark


def free_prefix(names: Iterable[str]) -> str:
    """How our columns are called beside columns of these names, which others chose: none of them begins so."""
    marks = itertools.chain(["__"], (f"__{number}_" for number in itertools.count(1)))
    names = list(names)
    return next(mark for mark in marks if not any(name.startswith(mark) for name in names))


def path_literal(path: Path) -> str:
    """A file's path as DuckDB reads it: exactly this file, though its name may look like a pattern."""
    return quote(re.sub(r"([*?\[])", r"[\1]", str(path)))


def map_literal(values: Mapping[str, str]) -> str:
    """SQL of settings: a map."""
    pairs = ", ".join(f"{quote(name)}: {quote(value)}" for name, value in sorted(values.items()))
    return f"map {{{pairs}}}::map(varchar, varchar)"


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
