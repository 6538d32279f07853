"""Console output: progress bars on a terminal, plain lines elsewhere, and JSON for programs.

Progress goes to stderr and results to stdout, so that either can be piped. All output goes through this module, because names, values and
server messages are untrusted text: none of it is treated as markup, and control characters are escaped, as in `\\x1b`.
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

#: Called with (work done since the last call, current item). Work is in the units of the total.
Advance = Callable[[float, str], None]


def out() -> Console:
    """A console on the current standard output. Lines are not wrapped when it is not a terminal, so that grep works."""
    wide = None if sys.stdout.isatty() else 160
    return plain(sys.stdout, width=wide, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """A console on the current standard error."""
    return plain(sys.stderr, soft_wrap=True)


#: Characters with a short escape.
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
#: Escapes in ASCII JSON: a surrogate pair, a lone surrogate, or any other escape.
_ESCAPES: Final = re.compile(r"\\(?:u(?:d[89ab]..\\ud[c-f]..|(?P<half>d[89a-f]..)|....)|[^u])")


def shown(text: object, keep: str = "") -> str:
    """Untrusted text as one safe line: characters that are not printable are escaped, except those in `keep`. Bytes of a file name that are not
    valid UTF-8 are shown as hex escapes."""
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
    """A console that escapes all control characters except its own."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text, keep="\n\t"), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else shown(segment.text, keep="\n")
            yield segment if text == segment.text else Segment(text, segment.style)


def plain(file: TextIO, **options: Any) -> Console:
    """A console without markup: a name may contain `[red]` or `:cat:`. Set styles with `style=` or Text."""
    return _Plain(file=file, markup=False, emoji=False, highlight=False, **options)


def say(line: str) -> None:
    """Print a line on standard error and flush it."""
    print(shown(line), file=sys.stderr, flush=True)


def as_json(value: Any, indent: int | None = None) -> str:
    """`value` as ASCII JSON. Lone surrogates, which many JSON parsers reject, are escaped as `shown` does."""
    text = json.dumps(value, indent=indent, default=str)
    if "\\ud" not in text:
        return text
    return _ESCAPES.sub(lambda found: f"\\{_number(chr(int(found['half'], 16)))}" if found["half"] else found[0], text)


def show_json(value: Any, indent: int | None = 2) -> None:
    """Print one JSON document on stdout; on one line without `indent`."""
    print(as_json(value, indent), flush=True)


@contextmanager
def progress(title: str, total: float, *, quiet: bool = False) -> Iterator[Advance]:
    """Show the progress of `total` units of work: `with progress(…) as advance: advance(done, "file x")`."""
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
    started = reported = time.monotonic()
    reached = 0.0

    def advance(done: float, what: str) -> None:
        nonlocal reported, reached
        reached += done
        if time.monotonic() - reported >= 5:
            reported = time.monotonic()
            share = 100 * reached / max(total, 1e-9)
            say(f"{title} {what}: {share:.0f} % after {reported - started:.0f} s")

    yield advance
