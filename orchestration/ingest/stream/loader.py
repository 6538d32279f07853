"""The loader: micro-batches off a stream into the lake, exactly once.

Rows, dead letters and the new positions of a batch commit in one lake transaction, which also asks whether the positions are
still where this loader left them. One that was overtaken (its partition went to another while it slept) lands nothing: it
drops what it took and begins again from the lake. So does one that is started anew; no step between taking and committing
leaves anything behind.

One thread takes messages off the stream, two land them: while one writes its batch the other reads through the next. They commit
in the order in which batches were closed, and a batch knows from which position to which it goes, so none can follow one that
failed. There are four batches at most, so a slow lake holds the stream back and memory is bounded whatever the producer does.
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

from orchestration.config.settings import Settings, memory
from orchestration.errors import FinegrainError, Unavailable
from orchestration.ingest.stream import isolation
from orchestration.ingest.stream.attempts import Attempt, Attempts
from orchestration.ingest.stream.isolation import Piece
from orchestration.ingest.stream.messages import Landed, Messages
from orchestration.ingest.stream.watch import Watch
from orchestration.lake import lake
from orchestration.lake.positions import Fenced, Position, Stream, move, positions
from orchestration.sources import devices
from orchestration.sources.streams import Chunk, Source, Unreachable
from orchestration.sql.text import quote

#: Messages that are asked for at once, and how long a poll waits for the first of them, in seconds.
ASKED: Final = 10_000
POLL: Final = 0.1
#: Seconds from losing a stream to beginning again: at first, and at most. It doubles from one attempt to the next, until one has lasted
#: for so long.
PAUSE: Final = 0.5
PAUSE_AT_MOST: Final = 10.0
LASTED: Final = 60.0
#: After so many processes died in a batch, its messages are tried in other processes.
DEATHS: Final = 2
#: Messages of a piece that is not halved further where the lake cannot be written.
FEW: Final = 100


@dataclass(frozen=True)
class Limits:
    """When a batch is closed: at so many rows, so many bytes of payload, or so old (seconds), whichever comes first."""

    rows: int = 10_000
    bytes: int = 4 * 2**20
    age: float = 1.0


@dataclass
class Batch:
    """A closed batch: messages, where its partitions go from and to, and when its first message was taken."""

    number: int
    messages: Chunk
    moves: dict[str, tuple[Position | None, Position]]
    since: float
    attempt: Attempt = field(default_factory=Attempt)

    @property
    def topic_id(self) -> str | None:
        """Of the stream, as its partitions were claimed."""
        [found] = {to.topic_id for _, to in self.moves.values()}
        return found


class Loader:
    """One loader of one stream (a `PartitionOwner`). `run` returns when the stream is drained, if so asked, or `stop` was called."""

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
        #: Parts that have been begun from_beginning, so that they are once, however often they come and go.
        self._begun: set[str] = set()
        self._earliest = datetime.min
        self.owner = str(uuid.uuid4())
        self._held: dict[str, Position] = {}
        self._open = Chunk()
        self._since = 0.0
        # Mean bytes of the last messages, so that no more are asked for than a batch may have; at first they may be large.
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
        """The lake, as the thread that takes asks it."""
        if self._con is None:
            self._con = self._connected()
            for writer in self.writers:
                writer.con = self._con.cursor()
        return self._con

    def _connected(self) -> duckdb.DuckDBPyConnection:
        """A new connection to the lake that can run what the writers have bound."""
        con = self._connect()
        devices.register(con)
        return con

    def stop(self) -> None:
        """End soon: the open batch is landed first. Safe to call from a signal handler."""
        self._stopping.set()

    def run(self, *, drain: bool = False) -> None:
        """Load until stopped, or (`drain`) until everything that is there is in the lake. Raises FinegrainError."""
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
                    failed = self._told(error) if isinstance(error, duckdb.Error) else error
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
        """From joining to leaving."""
        _ = self.con  # which is made first, since without the lake there is nothing to read for
        self.source.open(self)
        while True:
            stopping = self._stopping.is_set()
            if not stopping:
                self._take(self.source.poll(self._asked(), self._patience()))
            self._raise()
            self._tell()
            is_end = stopping or (drain and self.source.is_drained())
            if self._is_full() or (is_end and self._open.ends):
                self._close_batch()
            self.watch.lag(self.source.lag)
            if is_end and not self._open.ends:
                self._wait()
                if stopping or self.source.is_drained():
                    return

    def _asked(self) -> int:
        """How many messages are asked for: what a batch has room for, by rows and by bytes."""
        room = (self.limits.bytes - self._open.bytes) / self._size
        return max(min(ASKED, self.limits.rows, int(room) + 1), 1)

    def _patience(self) -> float:
        """How long a poll may take, so that a batch is not closed late."""
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
            del chunk.ends[partition]  # the end of a partition, seen again
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
                    f"part {partition} was read from {start}, and not from {expected}, where the last read ended"
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
        """Hand the open batch to the threads that land; waits while they are busy."""
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

    # --- what a source asks ---

    def known(self) -> dict[str, Position]:
        """How far each partition that was ever read has been."""
        return positions(self.con, self.stream)

    def claim(self, partitions: Mapping[str, Callable[[], str]], topic_id: str | None) -> dict[str, Position]:
        """Take over partitions: from now on nobody else's batch of them can land."""
        self.settle()
        if not partitions:
            return {}
        # The stream is asked where a partition begins before anything is locked: its answer may take seconds.
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
                        if partition not in beginnings:  # its position was there a moment ago, and is deleted
                            raise Fenced(partition)
                        at = Position(partition, beginnings[partition], topic_id, self.owner)
                    elif before.topic_id != topic_id:
                        raise FinegrainError(
                            f"{self.stream_id}: it was deleted and recreated since it was last read (partition {partition} was at {before.position}). "
                            "To go on with the new one from its beginning, run it once with --from_beginning; rows that have landed stay"
                        )
                    else:
                        at = replace(before, owner=self.owner)
                    moves[partition] = (before, at)
                move(self.con, self.stream, moves, _now())
            return {partition: to for partition, (_, to) in moves.items()}

        # First positions do not conflict in the lake, so two that claim do it one after the other.
        with lake.alone(self.where, f"claim {self.stream.source} {self.stream.table} {self.stream_id}"):
            self._held = lake.retry(work)
        self._begun |= partitions.keys()
        self._attempts.claimed(self._held)
        return dict(self._held)

    def _after_deletions(self) -> datetime:
        """What was unloaded and is read again lands after its deletion, or it would count as deleted; the clock may have been put back."""
        [(last,)] = self.con.execute(
            f"select max(_ingested_at) from lake.raw.deletions where _source = {quote(self.stream.source)} "
            f"and raw_table = {quote(self.stream.table)} and row_key is null"
        ).fetchall()
        return last + timedelta(microseconds=1) if last is not None else datetime.min

    def _starts_over(self, partition: str) -> bool:
        return self.from_beginning and partition not in self._begun

    def settle(self) -> None:
        """Land the open batch before its partitions go to another."""
        self._close_batch()
        self._wait()
        self._held = {}

    def drop(self) -> None:
        """What was taken and has not landed is another's to land."""
        self._open = Chunk()
        self._held = {}

    # --- the threads that land ---

    def _write(self, writer: Messages) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                if self._failure is None:
                    self._land(writer, batch)
            except BaseException as error:  # told by the thread that takes
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
        """Wait until all batches before this one have landed; whether they did."""
        with self._turn:
            self._turn.wait_for(lambda: self._landed == batch.number)
        return self._failure is None

    def _commit(self, writer: Messages, batch: Batch, pieces: Sequence[Piece] | None) -> Landed:
        """Land a batch in one transaction: whole, as it was validated, or in pieces."""
        with lake.writing(writer.con, self.where):
            now = max(_now(), self._earliest)
            move(writer.con, self.stream, batch.moves, now)
            if pieces is None:
                return writer.land(batch.messages, now)
            done = Landed()
            for piece in pieces:
                if piece.why is None:
                    writer.validate(piece.messages, batch.topic_id)
                    done.add(writer.land(piece.messages, now))
                else:
                    done.add(writer.dead_letter_all(piece.messages, piece.why, now, batch.topic_id))
            return done

    def _land_in_pieces(self, writer: Messages, batch: Batch) -> Landed:
        """Land a batch that fails, or kills processes, for its own sake: without the messages that cannot be processed."""
        pieces = isolation.pieces(writer, batch.messages, self.where.home / "tmp", memory("FINEGRAIN_STREAM_MEMORY"))
        while True:
            self._revive(writer)
            try:
                return lake.retry(partial(self._commit, writer, batch, pieces))
            except Exception as error:
                # What can be processed alone can be too much for a process that does other things, too.
                if not _is_of_the_batch(error) or all(len(piece.messages) <= FEW for piece in pieces):
                    raise
            pieces = [half for piece in pieces for half in piece.halves()]

    def _revive(self, writer: Messages) -> None:
        """Give a thread a new connection, where an error of the engine has made its own useless."""
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
        """Leave the lake, while no batch is being landed."""
        for con in (*(writer.con for writer in self.writers), self._con):
            with suppress(duckdb.Error):
                if con is not None:
                    con.close()
        self._con = None

    def _wait(self) -> None:
        """Until everything that was closed has landed."""
        self._batches.join()
        self._tell()
        self._raise()

    def _tell(self) -> None:
        """Tell the source what has landed; from the thread that takes, since no client is for two."""
        ends: dict[str, str] = {}
        while not self._news.empty():
            ends |= self._news.get()
        if ends:
            self.source.landed(ends)

    def _raise(self) -> None:
        """Tell what went wrong where batches are landed. None lands any more until the loader has begun again from the lake."""
        if self._failure is None:
            return
        if isinstance(self._failure, duckdb.Error):
            raise self._told(self._failure) from None
        raise self._failure

    @staticmethod
    def _told(error: duckdb.Error) -> FinegrainError:
        return lake.failure(error, "what has not landed is still in the stream")

    def _leave(self) -> None:
        """Give up what is open, and leave the stream."""
        self._batches.join()
        for attempt in self._tried:
            attempt.end()
        self._tried.clear()
        self.drop()
        self._failure = None  # or it would be told again, when the source settles what it leaves
        self.source.close()


def _is_of_the_batch(error: Exception) -> bool:
    """Whether it is for what is in a batch that it cannot be landed, and not for the lake, the stream or the mapping."""
    if isinstance(error, duckdb.Error):
        elsewhere = (duckdb.IOException, duckdb.PermissionException, duckdb.InterruptException)
        return not (isinstance(error, elsewhere) or lake.is_outage(error) or lake.busy(error))
    return not isinstance(error, (FinegrainError, Unreachable, Fenced, OSError))


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
