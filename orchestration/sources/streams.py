"""What a loader asks of a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pyarrow as pa

from orchestration.errors import SafeError
from orchestration.lake.positions import Position

#: Columns of messages as they come off a stream: which each is, its bytes (null for none), when it was sent in ms since 1970 (-1
#: unknown), its key, and its headers as a JSON text.
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
    """Messages taken off a stream, in Arrow batches of the columns `MESSAGES`; `bytes` of payload. By partition, `starts` is where reading
    began, and `ends` where it goes on after them; it may move where no message is. `notes` are for the user."""

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
        """From the columns of `MESSAGES`, each a list or an Arrow array, all of one length."""
        arrays = [
            column.cast(kind.type) if isinstance(column, pa.Array) else pa.array(column, kind.type)
            for column, kind in zip(columns, MESSAGES, strict=True)
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=MESSAGES)
        return cls([batch] if batch.num_rows else [], starts, ends, size, batch.num_rows)

    def __len__(self) -> int:
        return self.rows

    def add(self, other: Chunk) -> None:
        """Append what `other` holds."""
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
    """What a source asks of its loader when partitions come and go."""

    def known(self) -> dict[str, Position]:
        """How far each partition that was ever read has been."""

    def claim(self, partitions: Mapping[str, Callable[[], str]], topic_id: str | None) -> dict[str, Position]:
        """Take over partitions; where each goes on by the lake, or by its function where it was never read."""

    def settle(self) -> None:
        """Land what was taken so far, since its partitions go to another."""

    def drop(self) -> None:
        """Forget what was taken and not landed: its partitions are another's already."""


class Source(Protocol):
    """A stream that is read from the positions that its owner says."""

    #: How one calls it: `kafka:shop.events`.
    stream_id: str

    def open(self, owner: PartitionOwner) -> None:
        """Connect. Raises FinegrainError where trying again would not help, Unreachable where it might."""

    def poll(self, rows: int, seconds: float) -> Chunk:
        """At most so many messages, or none after so long. Raises as `open` does."""

    def landed(self, ends: dict[str, str]) -> None:
        """Everything before these positions is in the lake."""

    def lag(self) -> dict[str, int]:
        """By partition, how much lies before the reader: messages, or bytes of a folder, or milliseconds of Kinesis."""

    def is_drained(self) -> bool:
        """Whether everything that was there has been taken."""

    def close(self) -> None:
        """Leave; nothing that is not in the lake counts as read."""


class Unreachable(SafeError):
    """The stream does not answer now; it may later. The text is a sentence."""
