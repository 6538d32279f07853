"""One process at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestration.errors import FinegrainError


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold the lock file `lock`, made with its folder if need be; whoever comes second waits. Raises FinegrainError when it
    cannot be written."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("w")
    except OSError as error:
        raise FinegrainError(
            f"{error.filename}: this cannot be written: {error.strerror}; FINEGRAIN_HOME says where everything is kept"
        ) from None
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
