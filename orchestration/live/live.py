"""`finegrain live`: follows the lake, computes the features of the customers of whom rows came, and writes them to the online store.

Nothing of its own is lost in a crash: the rows are in the lake, vectors are written under the store's guard on as_of, and the snapshot up to which all of
them are written is kept in a file, with their as_of. A restart computes the vectors of all that came after it, each once, as of now. When it falls behind, it does the same:
identities wait, not rows, and an answer to one is of all its rows.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import duckdb

from orchestration.config.project import PROJECT
from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError, Unavailable
from orchestration.ingest.stream.loader import Limits, Loader
from orchestration.ingest.stream.run import stream
from orchestration.ingest.stream.watch import Form
from orchestration.lake import lake
from orchestration.lake.locks import scratch
from orchestration.live import state as states
from orchestration.live.engine import BATCH, Engine
from orchestration.live.feed import Feed
from orchestration.live.plan import plan
from orchestration.live.watch import LiveWatch
from orchestration.sql.text import identifier
from orchestration.store.online import OnlineStore
from orchestration.warehouse.compiled import Compiled, compiled

#: In the home: the folder, and the file in it that says up to which snapshot all vectors are written.
FOLDER: Final = "live"
PROGRESS: Final = "progress.json"
DRAFT: Final = ".state-"
#: Seconds between looks into the lake when nothing came, between looks for a new build, and before a store or lake that is away is asked again.
POLL: Final = 0.02
BUILDS: Final = 5.0
PAUSE: Final = 1.0
#: The loader's batches: small ones, so that they land soon.
LIMITS: Final = Limits(rows=2_000, age=0.1)


@dataclass
class _Generation:
    """A state with what runs on it."""

    engine: Engine
    feed: Feed
    held: ExitStack

    def close(self) -> None:
        self.held.close()


class Live:
    """The process. `run` returns once `stopping` is set, after the batch at hand, or with `drain` once all that came is written."""

    def __init__(
        self,
        where: Settings,
        store: OnlineStore,
        watch: LiveWatch,
        stopping: threading.Event,
        *,
        project: Path = PROJECT,
        batch: int = BATCH,
    ) -> None:
        self.where, self.store, self.watch, self.batch = where, store, watch, batch
        self.models: Compiled = compiled(where, project)
        self.plan = plan(self.models)
        self._stopping = stopping
        self._next: _Generation | None = None
        self._failure: BaseException | None = None
        self._progress = where.home / FOLDER / PROGRESS

    def run(self, is_drained: Callable[[], bool] | None = None) -> None:
        """Follow the lake until stopped or, once `is_drained` says that nothing more comes, until all is written. Raises FinegrainError."""
        self.watch.note("reading the last build")
        now = self._open(states.PATIENCE)
        watcher = threading.Thread(target=self._follow_builds, args=(now.engine.state.snapshot,), daemon=True)
        watcher.start()
        try:
            self._catch_up(now)
            while not self._stopping.is_set():
                if self._failure is not None:
                    raise self._failure
                if self._next is not None:
                    fresh, self._next = self._next, None
                    # The build may have what was not answered yet, so that it does not come again.
                    unanswered = now.engine.unanswered()
                    now.close()
                    now = fresh
                    self._catch_up(now)
                    now.engine.ask_again(unanswered)
                was_drained = is_drained is not None and is_drained()
                busy = self._retrying(lambda now=now: self._step(now))  # type: ignore[misc]
                if not busy:
                    if was_drained:
                        return
                    self._stopping.wait(POLL)
        finally:
            self._stopping.set()
            watcher.join()
            now.close()
            if self._next is not None:
                self._next.close()

    def _step(self, now: _Generation) -> bool:
        """Take in what came, and answer a batch; returns whether there was anything to do."""
        came = now.feed.read()
        if came:
            now.engine.take(came, now.feed.snapshot)
        waiting = now.engine.waiting
        self.watch.waits(waiting, now.feed.snapshot)
        if not waiting:
            self._keep_progress(now)
            return bool(came)
        began = time.monotonic()
        answered = now.engine.answer(self.batch)
        if answered is None:
            return False
        computed = time.monotonic()
        written = {}
        for mart, query in answered.queries.items():
            now.engine.con.execute(f"create or replace temp view {identifier('out_' + mart)} as {query}")
            written[mart] = self.store.write_from(now.engine.con, mart, identifier("out_" + mart))
        now.engine.done()
        self.watch.wrote(written, answered, computed - began, time.monotonic() - computed)
        if not now.engine.waiting:
            self._keep_progress(now)
        return True

    def _retrying(self, work: Callable[[], bool]) -> bool:
        """Run a step. If the lake or the store is away, wait and try again; what came meanwhile waits."""
        while True:
            try:
                done = work()
                self.watch.recovered()
                return done
            except (Unavailable, duckdb.Error) as error:
                if isinstance(error, duckdb.Error) and not (lake.is_outage(error) or lake.busy(error)):
                    raise
                said = error if isinstance(error, Unavailable) else lake.failure(error, "nothing is lost")
                self.watch.trouble(f"{said}; trying again")
            if self._stopping.wait(PAUSE):
                return False

    def _open(self, patience: float) -> _Generation:
        """A new state of the last build, with its engine and feed. `patience`: how long to wait for a build that is writing, in seconds."""
        with ExitStack() as held:
            folder = held.enter_context(scratch(self.where.home / FOLDER, DRAFT))
            state = states.create(self.where, self.plan, folder / "state.duckdb", patience)
            feed = Feed(self.where, self.models, state.snapshot)
            held.callback(feed.close)
            engine = Engine(self.plan, state, feed.shapes(), folder / "spill")
            held.callback(engine.close)
            return _Generation(engine, feed, held.pop_all())

    def _catch_up(self, fresh: _Generation) -> None:
        """Take in what came after the build. What came by the snapshot up to which vectors are written does not wait for an answer."""
        written, as_of = self._written()

        def work() -> bool:
            if fresh.feed.snapshot < written:
                came = fresh.feed.read(written)
                fresh.engine.take(came, fresh.feed.snapshot, answered=as_of)
            return True

        self._retrying(work)
        self.watch.rests_on(fresh.engine.state.snapshot)
        self.watch.note(
            f"ready: the build is of {fresh.engine.state.as_of:%Y-%m-%d %H:%M:%S} UTC, lake snapshot {fresh.engine.state.snapshot}"
        )

    def _follow_builds(self, snapshot: int) -> None:
        """Read each new build, for the thread that answers to take over."""
        try:
            while not self._stopping.wait(BUILDS):
                if self._next is not None:
                    continue
                with contextlib.suppress(FinegrainError, duckdb.Error):  # a build is writing, or did not pass
                    newest = states.last_build(self.where)
                    if newest > snapshot:
                        self._next, snapshot = self._open(0.0), newest
        except BaseException as error:
            self._failure = error

    def _written(self) -> tuple[int, datetime | None]:
        """The snapshot up to which all vectors are written, and their as_of; -1 if that is not known, or they were of other models."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._progress.read_text("utf-8"))
            if kept["models"] == self.models.digest and kept["store"] == self.store.backend.name:
                return int(kept["snapshot"]), datetime.fromisoformat(kept["as_of"])
        return -1, None

    def _keep_progress(self, now: _Generation) -> None:
        snapshot = now.feed.snapshot
        if snapshot == self.watch.written:
            return
        self.watch.written = snapshot
        # By its as_of, a restart finds the rows that features did not see yet.
        as_of = now.engine.as_of.isoformat()
        text = json.dumps(
            {"snapshot": snapshot, "as_of": as_of, "models": self.models.digest, "store": self.store.backend.name}
        )
        draft = self._progress.with_suffix(".new")
        draft.write_text(text, "utf-8")
        draft.replace(self._progress)


def live(
    mapping: str | Path | None = None,
    table: str | None = None,
    data: str | Path | None = None,
    *,
    drain: bool = False,
    wait: bool = False,
    limits: Limits = LIMITS,
    form: Form = Form.none,
    port: int | None = None,
    address: str = "127.0.0.1",
    batch: int = BATCH,
    where: Settings | None = None,
    project: Path = PROJECT,
) -> dict[str, Any]:
    """Serve live features until SIGTERM or SIGINT or, with `drain`, until the stream is drained and all vectors are written. With a `mapping`, its stream is
    loaded in the same process (orchestration/ingest/stream); else loaders run elsewhere. With `wait`, it first waits until there is a build that has passed,
    and loads meanwhile. Returns totals. Raises FinegrainError."""
    where = where or settings()
    watch = LiveWatch(form, port, address)
    stopping = threading.Event()
    loading = None if mapping is None else _Loading(mapping, table, data, drain, limits, watch, where)
    try:
        with _signals(stopping, loading):
            if wait:
                if loading is not None:
                    loading.start()
                _wait_for_build(where, watch, stopping)
            if not stopping.is_set():
                with OnlineStore(where) as store, lake.held_open(where):
                    follower = Live(where, store, watch, stopping, project=project, batch=batch)
                    if loading is not None and not wait:
                        loading.start()
                    follower.run(_drained(loading) if drain else None)
    finally:
        if loading is not None:
            loading.end()
        watch.close()
    if loading is not None and loading.failure is not None:
        raise loading.failure
    return watch.as_dict()


def _wait_for_build(where: Settings, watch: LiveWatch, stopping: threading.Event) -> None:
    """Wait until the last build has passed, or until stopped."""
    while not stopping.is_set():
        try:
            states.last_build(where)
            return
        except (FinegrainError, duckdb.Error) as error:
            watch.trouble(f"waits for a build that has passed: {error}")
        stopping.wait(BUILDS)


def _drained(loading: _Loading | None) -> Callable[[], bool]:
    """Whether nothing more comes."""

    def is_drained() -> bool:
        return loading is None or not loading.is_alive()

    return is_drained


class _Loading(threading.Thread):
    """The stream's loader, in a thread of its own."""

    def __init__(
        self,
        mapping: str | Path,
        table: str | None,
        data: str | Path | None,
        drain: bool,
        limits: Limits,
        watch: LiveWatch,
        where: Settings,
    ) -> None:
        super().__init__(daemon=True)
        self._ask: Callable[[], dict[str, Any]] = lambda: stream(
            mapping,
            table,
            data,
            drain=drain,
            limits=limits,
            where=where,
            started=self._take_loader,
            registry=watch.registry,
        )
        self._loader: Loader | None = None
        self._is_ended = False
        self.failure: BaseException | None = None
        self._on_failure: list[Callable[[], None]] = []

    def run(self) -> None:
        try:
            self._ask()
        except BaseException as error:
            self.failure = error
            for do in self._on_failure:
                do()

    def on_failure(self, do: Callable[[], None]) -> None:
        """Call `do` if loading fails for good."""
        self._on_failure.append(do)

    def _take_loader(self, loader: Loader) -> None:
        self._loader = loader
        if self._is_ended:
            loader.stop()

    def stop_loading(self) -> None:
        """Stop after the open batch."""
        self._is_ended = True
        if self._loader is not None:
            self._loader.stop()

    def end(self) -> None:
        """Stop, and wait until the open batch has landed."""
        self.stop_loading()
        if self.ident is not None:
            self.join()


@contextlib.contextmanager
def _signals(stopping: threading.Event, loading: _Loading | None) -> Iterator[None]:
    """SIGTERM and SIGINT stop the process gracefully; a second signal at once."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        if loading is not None:
            loading.stop_loading()
        stopping.set()

    if loading is not None:
        loading.on_failure(stopping.set)
    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
