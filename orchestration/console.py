"""What a person sees: a bar on a terminal, plain lines elsewhere, nothing when a program asked for JSON.

Progress goes to stderr, results to stdout, so that either can be piped.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

#: Called with (work done, what is in hand); the total is in the units of the work.
Advance = Callable[[float, str], None]


def out() -> Console:
    """Standard output as it is now. Off a terminal lines are as long as they are, for grep."""
    wide = None if sys.stdout.isatty() else 160
    return plain(sys.stdout, width=wide, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """Standard error as it is now."""
    return plain(sys.stderr, soft_wrap=True)


def plain(file: TextIO, **options: Any) -> Console:
    """A console on which text is what it is: a name may hold `[red]` or `:cat:`. Styles are given by `style=` and Text."""
    return Console(file=file, markup=False, emoji=False, highlight=False, **options)


def show_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, default=str))


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
            yield lambda done, what: bar.update(task, advance=done, description=f"{title} {what}")
        return
    started = told = time.monotonic()
    reached = 0.0

    def say(done: float, what: str) -> None:
        nonlocal told, reached
        reached += done
        if time.monotonic() - told >= 5:
            told = time.monotonic()
            share = 100 * reached / max(total, 1e-9)
            print(f"{title} {what}: {share:.0f} % after {told - started:.0f} s", file=sys.stderr, flush=True)

    yield say
