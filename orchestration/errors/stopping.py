"""What Ctrl-C and SIGTERM do to a command: the work in hand ends in order, one line says what is true then, and the exit code is 128 and
the signal's number.

The signal becomes an exception in the main thread, so transactions roll back, locks are released and drafts are removed on
the way out. Queries of other threads (dbt's) are interrupted. Whatever does not end is ended after a while: nothing
depends on an orderly end, since all that lands or is published does so in one step.
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

#: Seconds that are given to an orderly end.
PATIENCE: Final = 15.0
#: Seconds between two interrupts of queries (after one of them a thread may begin another), and of the main thread, since libraries
#: swallow some.
PAUSE: Final = 0.25


class Stopped(KeyboardInterrupt):
    """What the signal raises. Of the bare KeyboardInterrupt Python notes that one left some `exec`, and then dies by SIGINT whatever the
    exit code."""


class Interruptible(Protocol):
    """A connection of DuckDB."""

    def interrupt(self) -> None:
        """End its query."""


_interruptible: weakref.WeakSet[Interruptible] = weakref.WeakSet()


def interruptible(con: Interruptible) -> None:
    """Note a connection whose queries are to end when the process is stopped. In the main thread DuckDB sees the signal by itself, but
    what other threads do for the query goes on, and a rollback waits for it."""
    _interruptible.add(con)


def release_semaphores() -> None:
    """To be called where a process ends, or becomes another, without Python's own way out: else the semaphores that dbt made stay,
    and multiprocessing says so on standard error."""
    if "multiprocessing.util" in sys.modules:
        sys.modules["multiprocessing.util"]._run_finalizers()


@contextlib.contextmanager
def in_order(left: Callable[[], str]) -> Iterator[None]:
    """While inside, SIGINT and SIGTERM end the process in order (see above); a second one ends it at once. `left` gives what is
    true of work that was stopped."""
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
        if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or a script's `&`
            with contextlib.suppress(ValueError):  # not the main thread: whoever called hears the signals
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
    """Whether the error that is being handled came of a KeyboardInterrupt: then things are being put in order."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
