"""Generated parts of files: between two marks, rewritten by a script, and checked in lint and tests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Part:
    """What stands in the file at `path` between the marks `start` and `end`; the rest is written by hand."""

    path: Path
    start: str
    end: str
    text: str


def write_or_check(script: str, parts: Sequence[Part]) -> int:
    """Write the parts. With `--check` on the command line, write nothing, name the files that are out of date, and return 1 if there are any."""
    stale = 0
    for part in parts:
        text = part.path.read_text("utf-8")
        before, rest = text.split(part.start)
        wanted = before + part.start + part.text + part.end + rest.split(part.end)[1]
        if text == wanted:
            continue
        if "--check" in sys.argv[1:]:
            print(f"{part.path.relative_to(ROOT)} is out of date; run python scripts/{script}.py")
            stale = 1
        else:
            part.path.write_text(wanted, "utf-8")
    return stale
