"""Graceful shutdown on Ctrl-C and SIGTERM: running work stops, one line reports the resulting state, and the exit code is 128 plus the
signal number.

The signal becomes an exception in the main thread, so transactions roll back, locks are released and temporary files are removed.
Queries in other threads (dbt's) are interrupted. Anything still running after a grace period is killed. That is safe, because loading
and publishing are atomic.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from orchestration.errors import console

#: Grace period in seconds.
PATIENCE: Final = 15.0
#: Seconds between interrupts. They are repeated, because a thread may start another query after one was interrupted, and libraries swallow
#: some interrupts in the main thread.
PAUSE: Final = 0.25


class Stopped(KeyboardInterrupt):
    """Raised by the signal handler. A bare KeyboardInterrupt would not do: if one leaves an `exec`, Python later kills itself with SIGINT,
    whatever the exit code."""


class Interruptible(Protocol):
    """A DuckDB connection."""

    def interrupt(self) -> None:
        """Interrupt the running query."""


_interruptible: weakref.WeakSet[Interruptible] = weakref.WeakSet()


def interruptible(con: Interruptible) -> None:
    """Register a connection whose queries are interrupted when the process is stopped. DuckDB notices the signal in the main thread by itself,
    but its worker threads go on with the query, and a rollback waits for them."""
    _interruptible.add(con)


def release_semaphores() -> None:
    """Release multiprocessing's semaphores. Call this before `os._exit` or `exec`; otherwise the semaphores that dbt created leak, and
    multiprocessing warns about it on standard error."""
    if "multiprocessing.util" in sys.modules:
        sys.modules["multiprocessing.util"]._run_finalizers()


@contextlib.contextmanager
def in_order(left: Callable[[], str]) -> Iterator[None]:
    """Shut down gracefully on SIGINT or SIGTERM inside this block (see above); a second signal exits at once. `left` returns the sentence about
    the state in which stopped work is left."""
    caught: list[int] = []
    main = threading.main_thread().ident or 0
    nudged, over, said = threading.Event(), threading.Event(), threading.Event()

    def say() -> None:
        if not said.is_set():
            said.set()
            console.say(f"stopped; {left()}")

    def end() -> None:
        say()
        release_semaphores()
        os._exit(128 + caught[0])

    def hurry() -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for con in list(_interruptible):
                with contextlib.suppress(Exception):  # closed by now
                    con.interrupt()
            time.sleep(PAUSE)
            if not over.is_set():
                nudged.set()
                signal.pthread_kill(main, caught[0])
        end()

    def stop(number: int, frame: Any) -> None:
        if nudged.is_set():
            nudged.clear()
            if not over.is_set() and not _is_ending(sys.exc_info()[1]):
                raise Stopped
            return
        if caught:
            end()
        caught.append(number)
        threading.Thread(target=hurry, daemon=True).start()
        raise Stopped

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup, or after a script's `&`
            with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
                before[number] = signal.signal(number, stop)
    try:
        yield
    except BaseException:
        over.set()
        if not caught:
            raise
    finally:
        over.set()
        if not caught:
            for number, handler in before.items():
                signal.signal(number, handler)
    if caught:
        say()
        raise SystemExit(128 + caught[0])


def _is_ending(error: BaseException | None) -> bool:
    """Whether a KeyboardInterrupt is already being handled, so that cleanup is running."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
