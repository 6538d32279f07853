"""The one command, `finegrain`. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done; 1 the data did not pass (a failed audit, findings of the doctor); 2 something to fix first; 70 a bug of finegrain,
whose stack trace is in a log; 75 a server does not answer now; 130 stopped by Ctrl-C, 143 by SIGTERM.
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

#: What is true of a command that was stopped. Of the others there is nothing to say: they only read.
LEFT: Final = {
    "simulate": "the shop's files are not whole: run it again",
    "load": "what had not landed whole has not landed at all: run it again",
    "ingest": "what has landed is whole, and the next ingest goes on from there",
    "stream": "what has landed is whole, and the next loader goes on from there",
    "replay": "what has not landed waits as before: run it again",
    "build": "the warehouse is not whole, and what is published stays as it was: run finegrain build again",
    "publish": "what is published is whole, be it the new version or the one before: run it again",
    "demo": "run it again; what has landed stays, and what is published is whole",
    "lake": "the lake is whole, and the next upkeep does the rest",
    "rates": "what had not landed whole has not landed at all: run it again",
}


#: What the command line's own mistakes are: an option that there is not, a number that is none.
_UsageError: Final = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])


def main() -> None:
    """Run the command line. What a user can fix is a sentence, never a stack trace, and the exit code is 2; where a server does not answer
    now, it is 75. An error that was not foreseen is a sentence, too, which names the log that has its stack trace."""
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
    except BrokenPipeError:  # whoever read the output has seen enough
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
