"""The last resort: an error that nobody foresaw is one sentence for the user, and a log for those who can fix it."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import duckdb

from orchestration import __version__
from orchestration.config.settings import PROJECT
from orchestration.errors import console, without_secrets

#: The exit code of a bug.
EXIT_CODE: Final = 70


def report(error: BaseException) -> int:
    """Say what happened, with the log that has the stack trace; the exit code. Of what the system refuses (a full disk, a right that is
    lacking, more memory) that is 2."""
    log = _log(error)
    if isinstance(error, MemoryError | duckdb.OutOfMemoryException):
        console.say(
            f"error: there is not enough memory; FINEGRAIN_MEMORY says how much DuckDB may use, and {log} has more of it"
        )
        return 2
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        console.say(f"error: {place}{error.strerror}; {log} has more of it")
        return 2
    said = (without_secrets(str(error)).strip().splitlines() or [""])[0]
    console.say(
        f"error: this is a bug of finegrain: {type(error).__name__}"
        + (f": {said[:300]}" if said else "")
        + f"; please report it with {log}"
    )
    return EXIT_CODE


def _log(error: BaseException) -> Path:
    """Write the stack trace below FINEGRAIN_HOME, else where temporary files are. It may quote data: only its owner may read it."""
    text = without_secrets("".join(traceback.format_exception(error))).encode("utf-8", "backslashreplace").decode()
    now = datetime.now(UTC)
    head = (
        f"finegrain {__version__}, {now:%Y-%m-%dT%H:%M:%SZ}\n{console.shown(without_secrets(' '.join(sys.argv)))}\n\n"
    )
    name = f"error-{now:%Y%m%dT%H%M%S}-{os.getpid()}.log"
    for folder in (
        Path(os.environ.get("FINEGRAIN_HOME") or PROJECT / "var").absolute() / "logs",
        Path(tempfile.gettempdir()),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with os.fdopen(
                os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8"
            ) as file:
                file.write(head + text)
            return folder / name
        except OSError:
            continue
    return Path(os.devnull)
