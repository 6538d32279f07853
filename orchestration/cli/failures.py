"""Reports unexpected errors: one sentence for the user, and a log with the stack trace for developers."""

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
from orchestration.config.settings import settings
from orchestration.errors import console, without_secrets
from orchestration.mapping.personal import masked

#: The exit code of a bug.
EXIT_CODE: Final = 70


def report(error: BaseException) -> int:
    """Print what happened and the log with the stack trace. Returns the exit code: 2 for system limits (a full disk, missing permissions, too
    little memory), otherwise 70."""
    log = _log(error)
    if isinstance(error, MemoryError | duckdb.OutOfMemoryException):
        console.say(
            f"error: there is not enough memory; FINEGRAIN_MEMORY limits what DuckDB may use; details are in {log}"
        )
        return 2
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        console.say(f"error: {place}{error.strerror}; details are in {log}")
        return 2
    said = (masked(without_secrets(str(error))).strip().splitlines() or [""])[0]
    console.say(
        f"error: this is a bug in finegrain: {type(error).__name__}"
        + (f": {said[:300]}" if said else "")
        + f"; please report it with the log {log}"
    )
    return EXIT_CODE


def _log(error: BaseException) -> Path:
    """Write the stack trace below FINEGRAIN_HOME, or to the folder for temporary files. It may contain data, so only the owner can read it."""
    text = (
        masked(without_secrets("".join(traceback.format_exception(error)))).encode("utf-8", "backslashreplace").decode()
    )
    now = datetime.now(UTC)
    head = (
        f"finegrain {__version__}, {now:%Y-%m-%dT%H:%M:%SZ}\n{console.shown(without_secrets(' '.join(sys.argv)))}\n\n"
    )
    name = f"error-{now:%Y%m%dT%H%M%S}-{os.getpid()}.log"
    for folder in (*_logs(), Path(tempfile.gettempdir())):
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


def _logs() -> list[Path]:
    """The folder of logs below FINEGRAIN_HOME, unless the settings cannot be read."""
    try:
        return [settings().home / "logs"]
    except Exception:
        return []
