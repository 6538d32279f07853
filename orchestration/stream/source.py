"""What a loader asks of a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from orchestration.positions import Position


@dataclass
class Chunk:
    """Messages taken off a stream, column by column: all lists are of one length. `parts` and `positions` say which each is,
    `payloads` are its bytes (None for none), `sent_at` when it was sent in ms since 1970 (-1 unknown). `headers` are JSON
    texts. `ends` is where reading goes on after them, by part; it may move where no message is."""

    parts: list[str] = field(default_factory=list)
    positions: list[str] = field(default_factory=list)
    payloads: list[bytes | None] = field(default_factory=list)
    sent_at: list[int] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    headers: list[str | None] = field(default_factory=list)
    ends: dict[str, str] = field(default_factory=dict)
    bytes: int = 0

    def __len__(self) -> int:
        return len(self.payloads)

    def add(self, other: Chunk) -> None:
        """Append what `other` holds."""
        self.parts += other.parts
        self.positions += other.positions
        self.payloads += other.payloads
        self.sent_at += other.sent_at
        self.keys += other.keys
        self.headers += other.headers
        self.ends |= other.ends
        self.bytes += other.bytes


class Keeper(Protocol):
    """What a source asks of its loader when parts come and go."""

    def claim(self, parts: Mapping[str, Callable[[], str]], incarnation: str | None) -> dict[str, Position]:
        """Take over parts; where each goes on by the lake, or by its function where it was never read."""

    def settle(self) -> None:
        """Land what was taken so far, since its parts go to another."""

    def drop(self) -> None:
        """Forget what was taken and not landed: its parts are another's already."""


class Source(Protocol):
    """A stream that is read from the positions that its keeper says."""

    #: How one calls it: `kafka:shop.events`.
    place: str

    def open(self, keeper: Keeper) -> None:
        """Connect. Raises FinegrainError where trying again would not help, Unreachable where it might."""

    def poll(self, rows: int, seconds: float) -> Chunk:
        """At most so many messages, or none after so long. Raises as `open` does."""

    def landed(self, ends: dict[str, str]) -> None:
        """Everything before these positions is in the lake."""

    def lag(self) -> dict[str, int]:
        """By part, how much lies before the reader: messages, or bytes of a folder, or milliseconds of Kinesis."""

    def is_drained(self) -> bool:
        """Whether everything that was there has been taken."""

    def close(self) -> None:
        """Leave; nothing that is not in the lake counts as read."""


class Unreachable(Exception):
    """The stream does not answer now; it may later. The text is a sentence."""
