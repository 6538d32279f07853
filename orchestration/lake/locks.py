"""File locks between processes, and temporary folders that are removed when their process ends."""

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

#: Seconds to wait for a lock before reporting it.
SHORT: Final = 1.0
#: Seconds between attempts until then.
LOOKS: Final = 0.02


@contextmanager
def one_at_a_time(lock: Path, *, shared: bool = False, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock on the file `lock`, created with its folder if needed. Others wait, and call `on_wait` once if that takes long. `shared` holders
    wait only for exclusive ones. Raises FinegrainError if the file cannot be written."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("w")
    except OSError as error:
        raise FinegrainError(
            f"{error.filename}: cannot write here: {error.strerror}; set FINEGRAIN_HOME to a folder that can be written"
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
        fcntl.flock(handle, mode)  # returns at once if already held
        yield


def soon(is_free: Callable[[], bool]) -> bool:
    """Whether `is_free` becomes true at once, or within a short wait."""
    until = time.monotonic() + SHORT
    while not is_free():
        if time.monotonic() > until:
            return False
        time.sleep(LOOKS)
    return True


@contextmanager
def scratch(parent: Path, prefix: str = "") -> Iterator[Path]:
    """A new folder in `parent`, removed at the end. Folders with this `prefix` that killed processes left behind are removed first: a running
    process holds a lock on its folder. Raises OSError if the folder cannot be created."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{prefix}*"):
        if (handle := _held(left, wait=False)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # Until it is locked, another process may take it for an abandoned folder and remove it.
        if (handle := _held(folder, wait=True)) is not None and folder.exists():
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def unlocked(folder: Path) -> bool:
    """Whether no process holds a lock on a folder, as `scratch` does."""
    if (handle := _held(folder, wait=False)) is None:
        return False
    os.close(handle)
    return True


def _held(folder: Path, *, wait: bool) -> int | None:
    """A handle that locks a folder; None if it is not a folder, or (unless `wait`) another process holds it."""
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
