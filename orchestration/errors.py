"""The one kind of error a user sees: a sentence that names the file, the field and the mend."""

from __future__ import annotations

from typing import ClassVar


class FinegrainError(Exception):
    """Something the user can mend. The command line prints the message alone and exits with 2."""

    exit_code: ClassVar[int] = 2


class Unavailable(FinegrainError):
    """A server that finegrain needs does not answer now, and may later (EX_TEMPFAIL of sysexits.h). A loader waits for it."""

    exit_code = 75
