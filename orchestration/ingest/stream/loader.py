"""The stream loader: micro-batches from a stream into the lake, exactly once.

Rows, dead letters and the new positions of a batch commit in one lake transaction, which also checks that the positions are still where this
loader left them. A loader that lost a partition to another one is fenced: it lands nothing, drops its open batch and starts over from the
positions in the lake. A restarted loader does the same. Nothing is stored between reading and committing.

One thread reads the stream and two write: while one commits its batch, the other validates the next. They commit in the order in which batches
were closed. A batch has a start and an end position, so none can land after one that failed. At most four batches exist at once, so a slow
lake slows down reading, and memory is bounded.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import duckdb

from orchestration.config.settings import Environment, Settings
from orchestration.errors import FinegrainError, Unavailable
from orchestration.ingest.stream import isolation
from orchestration.ingest.stream.attempts import Attempt, Attempts
from orchestration.ingest.stream.isolation import Piece
from orchestration.ingest.stream.messages import BatchResult, Messages
from orchestration.ingest.stream.watch import Watch
from orchestration.lake import lake
from orchestration.lake.positions import Fenced, Position, Stream, move, positions
from orchestration.sources import devices
from orchestration.sources.streams import Chunk, Source, Unreachable
from orchestration.sql.text import quote

#: Messages per poll, and how many seconds a poll waits for the first one.
ASKED: Final = 10_000
POLL: Final = 0.1
#: Seconds to wait before reconnecting to a stream: at first, and at most. The pause doubles with each attempt, and is reset after a session
#: that lasted `LASTED` seconds.
PAUSE: Final = 0.5
PAUSE_AT_MOST: Final = 10.0
LASTED: Final = 60.0
#: After this many crashes in a batch, its messages are tried in separate processes.
DEATHS: Final = 2
#: A piece with at most this many messages is not split further if it cannot be committed.
FEW: Final = 100


@dataclass(frozen=True)
class Limits:
    """When a batch is closed: at this many rows, bytes of payload, or seconds after its first message, whichever comes first."""

    rows: int = 10_000
    bytes: int = 4 * 2**20
    age: float = 1.0


@dataclass
class Batch:
    """A closed batch: its messages, the moves of its partitions, and when its first message was read."""

    number: int
    messages: Chunk
    moves: dict[str, tuple[Position | None, Position]]
    since: float
    attempt: Attempt = field(default_factory=Attempt)

    @property
    def topic_id(self) -> str | None:
        """The topic id under which its partitions were claimed."""
        [found] = {to.topic_id for _, to in self.moves.values()}
        return found


class Loader:
    """A loader of one stream (a `PartitionOwner`). `run` returns after `stop` was called, or when the stream is drained if asked to."""

    def __init__(
        self,
        source: Source,
        writers: Sequence[Messages],
        connect: Callable[[], duckdb.DuckDBPyConnection],
        where: Settings,
        watch: Watch,
        limits: Limits | None = None,
        *,
        from_beginning: bool = False,
    ) -> None:
        self.source, self.writers, self.where, self.watch = source, writers, where, watch
        self._connect = connect
        self._con: duckdb.DuckDBPyConnection | None = None
        self.stream_id = writers[0].stream_id
        self.stream = Stream(writers[0].source, writers[0].table, self.stream_id)
        self.limits = limits or Limits()
        self.from_beginning = from_beginning
        #: Partitions already restarted with `from_beginning`, so that each is restarted once, even if it is revoked and assigned again.
        self._begun: set[str] = set()
        self._earliest = datetime.min
        self.owner = str(uuid.uuid4())
        self._held: dict[str, Position] = {}
        self._open = Chunk()
        self._since = 0.0
        # Mean size of recent messages, so that a poll does not read more than a batch may hold; starts high, in case they are large.
        self._size = self.limits.bytes / 100
        self._stopping = threading.Event()
        self._batches: queue.Queue[Batch | None] = queue.Queue(1)
        self._closed = 0
        self._landed = 0
        self._news: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        self._turn = threading.Condition()
        self._failure: BaseException | None = None
        self._attempts = Attempts(where.home / "attempts", f"{self.stream.source}/{self.stream.table}/{self.stream_id}")
        self._tried: list[Attempt] = []

    @property
    def con(self) -> duckdb.DuckDBPyConnection:
        """The lake connection of the reading thread."""
        if self._con is None:
            self._con = self._connected()
            for writer in self.writers:
                writer.con = self._con.cursor()
        return self._con

    def _connected(self) -> duckdb.DuckDBPyConnection:
        """A new lake connection that can run the writers' SQL."""
        con = self._connect()
        devices.register(con)
        return con

    def stop(self) -> None:
        """Stop after landing the open batch. Safe to call from a signal handler."""
        self._stopping.set()

    def run(self, *, drain: bool = False) -> None:
        """Load until stopped, or (`drain`) until all available messages have landed. Raises FinegrainError."""
        threads = [threading.Thread(target=self._write, args=(each,), daemon=True) for each in self.writers]
        for thread in threads:
            thread.start()
        pause = PAUSE
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                try:
                    self._session(drain)
                    return
                except (Unreachable, Fenced, Unavailable, duckdb.Error) as error:
                    failed = self._lake_failure(error) if isinstance(error, duckdb.Error) else error
                    self._leave()
                    if isinstance(failed, FinegrainError):
                        if not isinstance(failed, Unavailable):
                            raise failed from None
                        self._disconnect()
                    trouble = (
                        f"another loader has taken over partition {failed}"
                        if isinstance(failed, Fenced)
                        else str(failed)
                    )
                if time.monotonic() - began > LASTED:
                    pause = PAUSE
                self.watch.trouble(f"{trouble}; trying again in {pause:.1f} s")
                self._stopping.wait(pause)
                pause = min(2 * pause, PAUSE_AT_MOST)
        finally:
            self._leave()
            for _ in threads:
                self._batches.put(None)
            for thread in threads:
                thread.join()
            self._disconnect()

    def _session(self, drain: bool) -> None:
        """One connection to the stream, until it is stopped, drained or lost."""
        _ = self.con  # connect to the lake first: without it there is no point in reading
        self.source.open(self)
        while True:
            stopping = self._stopping.is_set()
            if not stopping:
                self._take(self.source.poll(self._asked(), self._patience()))
            self._raise()
            self._report_landed()
            is_end = stopping or (drain and self.source.is_drained())
            if self._is_full() or (is_end and self._open.ends):
                self._close_batch()
            self.watch.lag(self.source.lag)
            if is_end and not self._open.ends:
                self._wait()
                if stopping or self.source.is_drained():
                    return

    def _asked(self) -> int:
        """How many messages to poll for: what the open batch has room for, by rows and bytes."""
        room = (self.limits.bytes - self._open.bytes) / self._size
        return max(min(ASKED, self.limits.rows, int(room) + 1), 1)

    def _patience(self) -> float:
        """How long a poll may take without closing the batch late."""
        if not self._open.ends:
            return POLL
        return min(POLL, max(self._since + self.limits.age - time.monotonic(), 0.001))

    def _take(self, chunk: Chunk) -> None:
        for note in chunk.notes:
            self.watch.note(note)
        for partition in [
            partition
            for partition, end in chunk.ends.items()
            if partition in self._held and not self._moves(partition, end)
        ]:
            del chunk.ends[partition]  # the end of a partition, reported again
        if not chunk.ends:
            return
        for partition, start in chunk.starts.items():
            if partition not in chunk.ends:
                continue
            expected = self._open.ends.get(
                partition, self._held[partition].position if partition in self._held else None
            )
            if start != expected:
                raise Unreachable(
                    f"partition {partition} was read from {start}, and not from {expected}, where the last read ended"
                )
        if not self._open.ends:
            self._since = time.monotonic()
        self._open.add(chunk)
        if len(chunk):
            self._size = max(chunk.bytes / len(chunk), 1.0)
        self.watch.took(len(chunk), chunk.bytes)

    def _moves(self, partition: str, end: str) -> bool:
        return end != self._open.ends.get(partition, self._held[partition].position)

    def _is_full(self) -> bool:
        batch = self._open
        return bool(batch.ends) and (
            len(batch) >= self.limits.rows
            or batch.bytes >= self.limits.bytes
            or time.monotonic() - self._since >= self.limits.age
        )

    def _close_batch(self) -> None:
        """Hand the open batch to the writer threads; blocks while they are busy."""
        if not self._open.ends:
            return
        messages, self._open = self._open, Chunk()
        moves: dict[str, tuple[Position | None, Position]] = {}
        for partition, end in messages.ends.items():
            before = self._held.get(partition)
            if before is None:
                raise Fenced(partition)
            moves[partition] = (before, replace(before, position=end))
        self._held.update({partition: to for partition, (_, to) in moves.items()})
        batch = Batch(self._closed, messages, moves, self._since, self._attempts.of(moves))
        self._closed += 1
        while True:
            try:
                self._batches.put(batch, timeout=0.5)
                return
            except queue.Full:
                continue

    # --- called by the source ---

    def known(self) -> dict[str, Position]:
        """The position of each partition that was ever read."""
        return positions(self.con, self.stream)

    def claim(self, partitions: Mapping[str, Callable[[], str]], topic_id: str | None) -> dict[str, Position]:
        """Take over partitions: from now on, batches of other loaders are fenced."""
        self.settle()
        if not partitions:
            return {}
        # Ask the stream where partitions begin before taking any lock: the answer may take seconds.
        known = self.known()
        beginnings = {
            partition: beginning()
            for partition, beginning in partitions.items()
            if partition not in known or self._starts_over(partition)
        }
        if any(map(self._starts_over, partitions)):
            self._earliest = self._after_deletions()

        def work() -> dict[str, Position]:
            moves: dict[str, tuple[Position | None, Position]] = {}
            with lake.writing(self.con, self.where):
                present = self.known()
                for partition in partitions:
                    before = present.get(partition)
                    if before is None or self._starts_over(partition):
                        if partition not in beginnings:  # its position was deleted a moment ago
                            raise Fenced(partition)
                        at = Position(partition, beginnings[partition], topic_id, self.owner)
                    elif before.topic_id != topic_id:
                        raise FinegrainError(
                            f"{self.stream_id}: it was deleted and recreated since it was last read (partition {partition} was at {before.position}). "
                            "To read the new one from its beginning, run this once with --from-beginning; rows that have landed stay"
                        )
                    else:
                        at = replace(before, owner=self.owner)
                    moves[partition] = (before, at)
                move(self.con, self.stream, moves, _now())
            return {partition: to for partition, (_, to) in moves.items()}

        # First positions do not conflict in the lake, so claims are serialized by a lock.
        with lake.exclusive(self.where, f"claim {self.stream.source} {self.stream.table} {self.stream_id}"):
            self._held = lake.retry(work)
        self._begun |= partitions.keys()
        self._attempts.claimed(self._held)
        return dict(self._held)

    def _after_deletions(self) -> datetime:
        """The earliest time for rows read again after an unload: they must land after their deletion, even if the clock was set back."""
        [(last,)] = self.con.execute(
            f"select max(_ingested_at) from lake.raw.deletions where _source = {quote(self.stream.source)} "
            f"and raw_table = {quote(self.stream.table)} and row_key is null"
        ).fetchall()
        return last + timedelta(microseconds=1) if last is not None else datetime.min

    def _starts_over(self, partition: str) -> bool:
        return self.from_beginning and partition not in self._begun

    def settle(self) -> None:
        """Land the open batch before its partitions are reassigned."""
        self._close_batch()
        self._wait()
        self._held = {}

    def drop(self) -> None:
        """Drop messages that were read but not landed; another loader will land them."""
        self._open = Chunk()
        self._held = {}

    # --- the writer threads ---

    def _write(self, writer: Messages) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                if self._failure is None:
                    self._land(writer, batch)
            except BaseException as error:  # raised again by the reading thread
                self._failure = self._failure or error
            finally:
                with self._turn:
                    self._turn.wait_for(lambda number=batch.number: self._landed == number)  # type: ignore[misc]
                    self._landed += 1
                    self._turn.notify_all()
                self._batches.task_done()

    def _land(self, writer: Messages, batch: Batch) -> None:
        started = time.monotonic()
        attempt, done = batch.attempt, None
        if attempt.is_careful and not self._is_my_turn(batch):
            return
        self._tried.append(attempt)
        attempt.begin()
        if attempt.deaths < DEATHS:
            try:
                writer.validate(batch.messages, batch.topic_id)
                if not self._is_my_turn(batch):
                    return
                done = lake.retry(partial(self._commit, writer, batch, None))
            except Exception as error:
                if not _is_of_the_batch(error):
                    raise
        if done is None:
            if not self._is_my_turn(batch):
                return
            done = self._land_in_pieces(writer, batch)
        attempt.end()
        self._tried.remove(attempt)
        self._news.put({partition: to.position for partition, (_, to) in batch.moves.items()})
        finished = time.monotonic()
        self.watch.landed(len(batch.messages), batch.messages.bytes, done, finished - started, finished - batch.since)

    def _is_my_turn(self, batch: Batch) -> bool:
        """Wait for all earlier batches; returns whether they landed."""
        with self._turn:
            self._turn.wait_for(lambda: self._landed == batch.number)
        return self._failure is None

    def _commit(self, writer: Messages, batch: Batch, pieces: Sequence[Piece] | None) -> BatchResult:
        """Land a batch in one transaction: as a whole, already validated, or in pieces."""
        with lake.writing(writer.con, self.where):
            now = max(_now(), self._earliest)
            move(writer.con, self.stream, batch.moves, now)
            if pieces is None:
                return writer.land(batch.messages, now)
            done = BatchResult()
            for piece in pieces:
                if piece.why is None:
                    writer.validate(piece.messages, batch.topic_id)
                    done.add(writer.land(piece.messages, now))
                else:
                    done.add(writer.dead_letter_all(piece.messages, piece.why, now, batch.topic_id))
            return done

    def _land_in_pieces(self, writer: Messages, batch: Batch) -> BatchResult:
        """Land a batch that fails or crashes because of its messages, without those that cannot be processed."""
        pieces = isolation.pieces(writer, batch.messages, self.where.home / "tmp", Environment.read().stream_memory)
        while True:
            self._revive(writer)
            try:
                return lake.retry(partial(self._commit, writer, batch, pieces))
            except Exception as error:
                # Pieces that work in a separate process may still be too large for this one.
                if not _is_of_the_batch(error) or all(len(piece.messages) <= FEW for piece in pieces):
                    raise
            pieces = [half for piece in pieces for half in piece.halves()]

    def _revive(self, writer: Messages) -> None:
        """Give a writer a new connection if an engine error has broken its own."""
        with suppress(duckdb.Error):
            writer.con.execute("select 1")
            return
        with self._turn:
            try:
                assert self._con is not None
                writer.con = self._con.cursor()
                writer.con.execute("select 1")
            except duckdb.Error:
                self._con = self._connected()
                writer.con = self._con.cursor()

    def _disconnect(self) -> None:
        """Close the lake connections. No batch may be in progress."""
        for con in (*(writer.con for writer in self.writers), self._con):
            with suppress(duckdb.Error):
                if con is not None:
                    con.close()
        self._con = None

    def _wait(self) -> None:
        """Wait until all closed batches have landed."""
        self._batches.join()
        self._report_landed()
        self._raise()

    def _report_landed(self) -> None:
        """Tell the source what has landed, from the reading thread: the clients are not thread-safe."""
        ends: dict[str, str] = {}
        while not self._news.empty():
            ends |= self._news.get()
        if ends:
            self.source.landed(ends)

    def _raise(self) -> None:
        """Raise the error of a writer thread, if any. After it no batch lands until the loader has started over from the lake."""
        if self._failure is None:
            return
        if isinstance(self._failure, duckdb.Error):
            raise self._lake_failure(self._failure) from None
        raise self._failure

    @staticmethod
    def _lake_failure(error: duckdb.Error) -> FinegrainError:
        return lake.failure(error, "messages that have not landed are still in the stream")

    def _leave(self) -> None:
        """Drop the open batch and disconnect from the stream."""
        self._batches.join()
        for attempt in self._tried:
            attempt.end()
        self._tried.clear()
        self.drop()
        self._failure = None  # otherwise it would be raised again when the source settles on closing
        self.source.close()


def _is_of_the_batch(error: Exception) -> bool:
    """Whether an error is caused by the messages of a batch, and not by the lake, the stream or the mapping."""
    if isinstance(error, duckdb.Error):
        elsewhere = (duckdb.IOException, duckdb.PermissionException, duckdb.InterruptException)
        return not (isinstance(error, elsewhere) or lake.is_outage(error) or lake.busy(error))
    return not isinstance(error, (FinegrainError, Unreachable, Fenced, OSError))


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
