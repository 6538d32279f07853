"""One process at a time, and folders that go with their process."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from orchestration.errors import FinegrainError

#: Who waits for a lock for longer than so many seconds says so.
SHORT: Final = 1.0
#: And looks again every so many seconds until then.
LOOKS: Final = 0.02


@contextmanager
def one_at_a_time(lock: Path, *, shared: bool = False, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `lock`, made with its folder if need be; whoever comes second waits, and calls `on_wait` once if that takes
    long. Those who hold it `shared` wait only for one who does not. Raises FinegrainError when it cannot be written."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("w")
    except OSError as error:
        raise FinegrainError(
            f"{error.filename}: this cannot be written: {error.strerror}; FINEGRAIN_HOME says where everything is kept"
        ) from None
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX

    def is_free() -> bool:
        try:
            fcntl.flock(handle, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    with handle:
        if on_wait is not None and not soon(is_free):
            on_wait()
        fcntl.flock(handle, mode)  # at once, where it is held already
        yield


def soon(is_free: Callable[[], bool]) -> bool:
    """Whether something is free at once, or after a short wait."""
    until = time.monotonic() + SHORT
    while not is_free():
        if time.monotonic() > until:
            return False
        time.sleep(LOOKS)
    return True


@contextmanager
def scratch(parent: Path, prefix: str = "") -> Iterator[Path]:
    """A new folder in `parent`, removed at the end. Folders of this `prefix` that killed processes left there are removed first: a
    process holds a lock on its own for as long as it lives. Raises OSError where none can be made."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{prefix}*"):
        if (handle := _held(left, wait=False)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # Until it is locked, another process may take it for one that was left.
        if (handle := _held(folder, wait=True)) is not None and folder.exists():
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _held(folder: Path, *, wait: bool) -> int | None:
    """A handle that locks a folder; None where it is no folder of ours, or (unless `wait`) another process holds it."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
