"""What a person sees: a bar on a terminal, plain lines elsewhere, nothing when a program asked for JSON.

Progress goes to stderr, results to stdout, so that either can be piped. All that is printed goes through here, since names, values and
what servers say are others' words: nothing of it is markup, and what a terminal would obey is shown by its number, as in `\\x1b`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

#: Called with (work done, what is in hand); the total is in the units of the work.
Advance = Callable[[float, str], None]


def out() -> Console:
    """Standard output as it is now. Off a terminal lines are as long as they are, for grep."""
    wide = None if sys.stdout.isatty() else 160
    return plain(sys.stdout, width=wide, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """Standard error as it is now."""
    return plain(sys.stderr, soft_wrap=True)


#: What is shown as Python writes it, and not by its number.
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
#: In a JSON text of ASCII: a character of two escapes, the half of one, or any other escape.
_ESCAPES: Final = re.compile(r"\\(?:u(?:d[89ab]..\\ud[c-f]..|(?P<half>d[89a-f]..)|....)|[^u])")


def shown(text: object, keep: str = "") -> str:
    """A name or another text from outside as one line that no terminal obeys: what is not printable is escaped, but for `keep`. A byte
    of a file's name that is no text is shown as such."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _SHORT.get(each) or _number(each) for each in text)


def _number(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class _Plain(Console):
    """A console that prints no control characters but its own."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text, keep="\n\t"), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else shown(segment.text, keep="\n")
            yield segment if text == segment.text else Segment(text, segment.style)


def plain(file: TextIO, **options: Any) -> Console:
    """A console on which text is what it is: a name may hold `[red]` or `:cat:`. Styles are given by `style=` and Text."""
    return _Plain(file=file, markup=False, emoji=False, highlight=False, **options)


def say(line: str) -> None:
    """A line on standard error, at once."""
    print(shown(line), file=sys.stderr, flush=True)


def as_json(value: Any, indent: int | None = None) -> str:
    """A JSON document of ASCII. Halves of characters, which programs refuse, are spelled as `shown` shows them."""
    text = json.dumps(value, indent=indent, default=str)
    if "\\ud" not in text:
        return text
    return _ESCAPES.sub(lambda found: f"\\{_number(chr(int(found['half'], 16)))}" if found["half"] else found[0], text)


def show_json(value: Any, indent: int | None = 2) -> None:
    """One JSON document on stdout; without `indent`, one line."""
    print(as_json(value, indent), flush=True)


@contextmanager
def progress(title: str, total: float, *, quiet: bool = False) -> Iterator[Advance]:
    """Follow work of `total` units: `with progress(…) as advance: advance(done, "file x")`."""
    if quiet:
        yield lambda done, what: None
        return
    if sys.stderr.isatty():
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
        )
        with Progress(*columns, TimeElapsedColumn(), console=err(), transient=True) as bar:
            task = bar.add_task(title, total=max(total, 1e-9))
            yield lambda done, what: bar.update(task, advance=done, description=shown(f"{title} {what}"))
        return
    started = told = time.monotonic()
    reached = 0.0

    def follow(done: float, what: str) -> None:
        nonlocal told, reached
        reached += done
        if time.monotonic() - told >= 5:
            told = time.monotonic()
            share = 100 * reached / max(total, 1e-9)
            say(f"{title} {what}: {share:.0f} % after {told - started:.0f} s")

    yield follow
