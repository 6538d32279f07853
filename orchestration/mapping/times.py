"""Times in a mapping: strptime formats, time zones and time spans."""

from __future__ import annotations

import difflib
import re
from functools import cache

import duckdb

from orchestration.sql.text import quote


@cache
def check_format(text: str) -> None:
    """Reject a time format that DuckDB does not know, or that is ambiguous. Raises ValueError."""
    if _directive("Z", text):
        raise ValueError(
            f"'{text}': %Z reads abbreviations that mean several zones (BST, IST); write the letters themselves, and their zone in time_zone"
        )
    try:
        [(month, day, hour)] = (
            duckdb.connect()
            .execute(
                f"select strftime(t, '%Y-%m'), strftime(t, '%d'), hour(t) from (select {strptime('x', text)} as t from "
                f"(select strftime(timestamp '2001-02-03 16:05:06', {quote(text)}) as x))"
            )
            .fetchall()
        )
    except duckdb.Error as error:
        said = str(error).splitlines()[0].rpartition("specifier ")[2].removeprefix(f"{text}: ")
        raise ValueError(f"'{text}' is not a time format: {said}") from None
    if (month, day) != ("2001-02", "03"):
        raise ValueError(f"'{text}' does not give a whole date; a time needs year, month and day, as in %d/%m/%Y")
    if hour not in (0, 16):
        raise ValueError(
            f"'{text}' does not say which half of the day %I is in; add %p, or write %H for hours up to 23"
        )


def _directive(letter: str, format: str) -> re.Match[str] | None:
    return re.match(f"(?:[^%]|%[^{letter}])*?%{letter}", format, re.DOTALL)


def has_offset(format: str) -> bool:
    """Whether a time format reads an offset from UTC."""
    return _directive("z", format) is not None


def strptime(text: str, format: str) -> str:
    """SQL that parses `text` (SQL) by a format: a timestamp, in UTC if the format has an offset; null if the text does not match."""
    text = f"trim({text})"
    moment = f"try_strptime({text}, {quote(format)})"
    found = _directive("z", format)
    if found is None:
        return f"cast({moment} as timestamp)"
    # DuckDB would accept +25:00 and +02:75 as offsets.
    after = "".join(
        ".+" if part.startswith("%") else re.escape(part) for part in re.findall("%-?.|[^%]", format[found.end() :])
    )
    offset = f"(?s).*[+-](?:(?:0[0-9]|1[0-3])(?::?[0-5][0-9])?|14(?::?00)?){after}"
    return f"case when regexp_full_match({text}, {quote(offset)}) then timezone('UTC', {moment}) end"


def span(text: str) -> str:
    """A text like `10 minutes` as a SQL interval. Raises ValueError if it is not one."""
    found = re.fullmatch(r"(\d+) *(second|minute|hour|day|week)s?", text.strip())
    if not found:
        raise ValueError("write a number of seconds, minutes, hours, days or weeks, as in 10 minutes")
    return f"interval '{found[1]} {found[2]}s'"


@cache
def time_zones() -> frozenset[str]:
    """The time zones that DuckDB knows: it parses the times, so its list counts, not the machine's."""
    return frozenset(row[0] for row in duckdb.connect().execute("select name from pg_timezone_names()").fetchall())


def check_zone(zone: str) -> None:
    """Reject an unknown time zone. Raises ValueError."""
    if zone not in time_zones():
        close = difflib.get_close_matches(zone, time_zones(), 1, 0.6)
        hint = f"did you mean '{close[0]}'?" if close else "write an IANA name like Europe/London"
        raise ValueError(f"'{zone}' is not a time zone; {hint}")
