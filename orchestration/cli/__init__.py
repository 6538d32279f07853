"""The `finegrain` command. Results go to stdout, progress and errors to stderr.

Exit codes: 0 success; 1 the data did not pass (a failed audit, findings of the doctor); 2 an error the user can fix; 70 a bug in finegrain, with
the stack trace in a log; 75 a server is temporarily unavailable; 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import Final, cast

import typer

from orchestration.cli.commands import app
from orchestration.config import settings
from orchestration.errors import FinegrainError, Unavailable, console, stopping

#: The state in which a stopped command leaves things, and what to do. Other commands only read.
LEFT: Final = {
    "init": "the project's folder is incomplete: remove it, and run it again",
    "simulate": "the shop's files are incomplete: run it again",
    "load": "mappings that had not finished have not landed at all: run it again",
    "ingest": "finished batches have landed, and the next ingest continues from there",
    "stream": "finished batches have landed, and the next loader continues from there",
    "replay": "finished batches have landed, and the others are still waiting: run it again",
    "build": "the warehouse is incomplete, and the published marts are unchanged: run finegrain build again",
    "publish": "the published marts are complete, in the new or the previous version: run it again",
    "contracts": "some contracts are not written: run it again",
    "demo": "finished steps are kept, and the published marts are complete: run it again",
    "lake": "the lake is consistent, and the next maintenance does the rest",
    "store": "no vector in the online store is older than it was: run it again",
    "rates": "no rates have landed unless all have: run it again",
}


#: Usage errors of the command line: an unknown option, an invalid number.
_UsageError: Final = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])


def main() -> None:
    """Run the command line. Errors the user can fix are printed as one sentence, without a stack trace, and the exit code is 2, or 75 if a server is
    temporarily unavailable. An unexpected error is also one sentence, which names the log with the stack trace."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    left = LEFT.get(command, "nothing was changed")
    threading.excepthook = lambda caught: _report(caught.exc_value)
    try:
        settings.private()
        with stopping.in_order(lambda: left):
            code = app(standalone_mode=False)
            sys.stdout.flush()
        sys.exit(code)
    except _UsageError as error:
        text = io.StringIO()
        error.show(file=text)
        for line in text.getvalue().splitlines():
            console.say(line)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        from orchestration.lake import lake

        if not isinstance(error, FinegrainError):
            if not lake.is_outage(error):
                sys.exit(_report(error))
            error = lake.failure(error, left)
        for line in str(error).splitlines():
            console.say(line if line.startswith(" ") else f"error: {line}")
        sys.exit(Unavailable.exit_code if lake.is_outage(error) else error.exit_code)


def _report(error: BaseException | None) -> int:
    from orchestration.cli import failures

    return failures.report(error) if error is not None else 0
