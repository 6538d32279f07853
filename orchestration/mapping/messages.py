"""Readable messages for what pydantic finds wrong in a YAML file: each names the key and the nearest valid spelling."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, Final

from pydantic import ValidationError

#: The first character of union tags. YAML cannot contain NUL, so no key of a file looks like a tag.
TAG: Final = "\0"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` if a known name is similar, otherwise the list of known names."""
    known = list(known)
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lowered, 3, 0.6)
    if close:
        # If several are equally similar, the first one.
        best = max(lowered, key=lambda name: name in close and difflib.SequenceMatcher(a=name, b=word.lower()).ratio())
        return f"; did you mean '{lowered[best]}'?"
    return f"; known are: {', '.join(known)}" if known else ""


def short(text: str) -> str:
    """The text on one line, cut to 60 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "…"


_NUMBERED: Final = re.compile(r"(.*?\btables\.\w+)\[(\d+)\](.*)", re.DOTALL)


def once(problems: Iterable[str]) -> list[str]:
    """Merge problems that several entries of a table share, and list their numbers: `tables.events[1-10].fields.price: …`."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for problem in problems:
        found = _NUMBERED.fullmatch(problem)
        same = numbers.setdefault((found[1], found[3]) if found else (problem, ""), [])
        if found:
            same.append(int(found[2]))
    return [f"{before}[{_ranges(each)}]{after}" if each else before for (before, after), each in numbers.items()]


def entries_together(places: Iterable[str]) -> str:
    """A short list of mapping entries: `shop.yml: tables.events[1-3], shop.yml: tables.orders`."""
    return ", ".join(once(places))


def _ranges(numbers: Iterable[int]) -> str:
    """`1-3, 7` of 1, 2, 3 and 7."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(sorted(set(numbers))), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _echo(detail: Any, details: list[Any]) -> bool:
    """Whether a key is only missing because it was misspelt, which is already reported."""
    return detail["type"] == "missing" and any(
        other["type"] == "extra_forbidden"
        and other["loc"][:-1] == detail["loc"][:-1]
        and difflib.get_close_matches(str(other["loc"][-1]), [detail["loc"][-1]], 1, 0.6)
        for other in details
    )


def _where(location: Iterable[Any], given: Any) -> str:
    """The path of a key as the user wrote it: `tables.events.fields.price`."""
    words: list[str] = []
    for step in location:
        if isinstance(step, int) and not isinstance(given, list):
            continue  # a single mapping that was wrapped into a list
        try:
            given = given[step]
        except (KeyError, IndexError, TypeError):
            given = None
        if isinstance(step, int):
            words[-1] += f"[{step + 1}]"
        else:
            words.append(str(step))
    return ".".join(words)


def sentences(error: ValidationError, given: Any, keys: Callable[[list[str]], Iterable[str]]) -> list[str]:
    """All problems with the content `given` of a YAML file, each with its key. `keys` returns the valid keys below some parents, for
    hints about misspelt ones."""
    details = [
        {**detail, "loc": tuple(step for step in detail["loc"] if step != "[key]" and not str(step).startswith(TAG))}
        for detail in error.errors()
    ]
    return list(dict.fromkeys(_sentence(detail, given, keys) for detail in details if not _echo(detail, details)))


#: Parts of a mapping that may hold secrets: errors do not quote their values.
_PRIVATE: Final = {"database", "http", "stream", "headers", "parameters", "settings", "registry", "url"}


def _sentence(detail: Any, given: Any, keys: Callable[[list[str]], Iterable[str]]) -> str:
    """A pydantic error as a sentence."""
    location = detail["loc"]
    where = _where(location, given)
    match detail["type"]:
        case "extra_forbidden":
            parents = [str(step) for step in location[:-1] if not isinstance(step, int)]
            return f"{where}: no such key" + nearest(str(location[-1]), keys(parents))
        case "missing":
            hint = ""
            if location[-1] == "available_at":
                hint = ": say when the shop could have known a row: event_time, now, or {column: …} or {sql: …}"
            return f"{where}: this key is missing" + hint
        case "literal_error":
            known = re.findall("'([^']*)'", detail["ctx"]["expected"])
            return f"{where}: '{short(str(detail['input']))}' is not one of its values" + nearest(
                str(detail["input"]), known
            )
        case "model_type" | "dict_type":
            if _PRIVATE & set(location):
                return f"{where}: write keys and values here"
            return f"{where}: write keys and values here, not {json.dumps(detail['input'], default=str, skipkeys=True)[:60]}"
        case _:
            message = detail["msg"].removeprefix("Value error, ")
            return f"{where}: {message[0].lower()}{message[1:]}" if message[1].islower() else f"{where}: {message}"
