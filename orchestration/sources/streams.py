"""The interface between a stream source and its loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pyarrow as pa

from orchestration.errors import SafeError
from orchestration.lake.positions import Position

#: Columns of stream messages: partition and position, payload (null if there is none), time sent in ms since 1970 (-1: unknown), key, and
#: headers as JSON text.
MESSAGES: Final = pa.schema(
    [
        ("part", pa.string()),
        ("position", pa.string()),
        ("payload", pa.binary()),
        ("sent_at", pa.int64()),
        ("key", pa.binary()),
        ("headers", pa.string()),
    ]
)


@dataclass
class Chunk:
    """Messages read from a stream, in Arrow batches of the columns `MESSAGES`; `bytes` is the size of their payload. By partition, `starts` is
    where reading began, and `ends` where it resumes; a position may move without a message. `notes` are for the user."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    starts: dict[str, str] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    rows: int = 0
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, columns: Sequence[pa.Array | Sequence[Any]], starts: dict[str, str], ends: dict[str, str], size: int
    ) -> Chunk:
        """A chunk from the columns of `MESSAGES`, each a list or an Arrow array, all of the same length."""
        arrays = [
            column.cast(kind.type) if isinstance(column, pa.Array) else pa.array(column, kind.type)
            for column, kind in zip(columns, MESSAGES, strict=True)
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=MESSAGES)
        return cls([batch] if batch.num_rows else [], starts, ends, size, batch.num_rows)

    def __len__(self) -> int:
        return self.rows

    def add(self, other: Chunk) -> None:
        """Append another chunk."""
        self.batches += other.batches
        self.starts = other.starts | self.starts
        self.ends |= other.ends
        self.bytes += other.bytes
        self.rows += other.rows

    @property
    def table(self) -> pa.Table:
        """All messages."""
        return pa.Table.from_batches(self.batches, schema=MESSAGES)


class PartitionOwner(Protocol):
    """What a source calls on its loader when partitions are assigned or revoked."""

    def known(self) -> dict[str, Position]:
        """The position of each partition that was ever read."""

    def claim(self, partitions: Mapping[str, Callable[[], str]], topic_id: str | None) -> dict[str, Position]:
        """Take over partitions. Returns where each resumes: its position in the lake, or if it was never read, the result of its function."""

    def settle(self) -> None:
        """Land what was read so far, because partitions are being reassigned."""

    def drop(self) -> None:
        """Drop what was read and not landed: its partitions already belong to another loader."""


class Source(Protocol):
    """A stream, read from the positions its owner gives."""

    #: Its identifier, as in `kafka:shop.events`.
    stream_id: str

    def open(self, owner: PartitionOwner) -> None:
        """Connect. Raises Unreachable if a retry may help, otherwise FinegrainError."""

    def poll(self, rows: int, seconds: float) -> Chunk:
        """Read at most `rows` messages, waiting at most `seconds`. Raises as `open` does."""

    def landed(self, ends: dict[str, str]) -> None:
        """Called when everything before these positions is in the lake."""

    def lag(self) -> dict[str, int]:
        """The lag by partition: messages, for a folder bytes, for Kinesis milliseconds."""

    def is_drained(self) -> bool:
        """Whether all available messages have been read."""

    def close(self) -> None:
        """Disconnect. Messages that have not landed do not count as read."""


class Unreachable(SafeError):
    """The stream is temporarily unavailable."""
