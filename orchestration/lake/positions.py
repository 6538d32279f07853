"""Where each source has been read up to, per raw table.

A position moves in the transaction that lands its rows, so the two always agree. It moves only from where its owner left it, so a
reader that lost its partition is fenced: it cannot land anything.

Two transactions that move the same position conflict, and one is rejected. Two that write a *first* position do not, because DuckLake
accepts both inserts. So claiming a partition for the first time requires `lake.exclusive` on the stream."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import duckdb

from orchestration.sql.text import quote, timestamp_literal

#: The columns of raw.positions that hold a `Position`, in the order of its fields.
_COLUMNS: Final = "part, position, incarnation, owner"


@dataclass(frozen=True)
class Position:
    """Where to resume reading one partition (a Kafka partition, a shard, a file, a table) of a stream or database. `topic_id` changes when a
    topic or stream is recreated under the same name; for a table or an API it says which cursor is used. `owner` is the reader that may
    move the position."""

    partition: str
    position: str
    topic_id: str | None = None
    owner: str | None = None

    @property
    def values(self) -> str:
        """SQL literals of `_COLUMNS`."""
        return _literals(self.partition, self.position, self.topic_id, self.owner)


@dataclass(frozen=True)
class Stream:
    """What is read into one raw table: a stream or table (`stream_id`, as in `kafka:shop.events`) of a `source`. If one stream feeds two
    tables, each has positions of its own."""

    source: str
    table: str
    stream_id: str

    @property
    def condition(self) -> str:
        """SQL: whether a row of raw.positions belongs to this stream.

        Compared as rows: for a condition on a column, DuckLake looks through its statistics of every column of every file of the lake, six times.
        """
        values = ", ".join(map(quote, (self.source, self.table, self.stream_id)))
        return f"row(source, raw_table, place) = row({values})"


class Fenced(Exception):
    """Another reader has moved or claimed the position in the meantime."""


def positions(con: duckdb.DuckDBPyConnection, stream: Stream) -> dict[str, Position]:
    """The position of each partition of a stream; partitions that were never read are absent."""
    found = con.execute(f"select {_COLUMNS} from lake.raw.positions where {stream.condition}").fetchall()
    return {
        str(partition): Position(str(partition), str(position), topic_id, owner)
        for partition, position, topic_id, owner in found
    }


def move(
    con: duckdb.DuckDBPyConnection,
    stream: Stream,
    moves: dict[str, tuple[Position | None, Position]],
    now: datetime,
) -> None:
    """Within a writing transaction, move partitions from their expected position (None: never read) to a new one.

    Raises Fenced if one of them is no longer at its expected position; the caller must roll back.
    """
    if not moves:
        return
    expected = [before for before, _ in moves.values() if before is not None]
    if expected:
        # The count of deleted rows shows whether all were there, without another query. They are compared as rows in a list, in which
        # nulls are equal; planning one long condition would take longer than running it.
        same = ", ".join(f"row({before.values})" for before in expected)
        [(deleted,)] = con.execute(
            f"delete from lake.raw.positions where {stream.condition} and list_contains([{same}], row({_COLUMNS}))"
        ).fetchall()
        if deleted != len(expected):
            present = positions(con, stream)
            # The positions that were as expected have been deleted above, in this transaction.
            raise Fenced(
                next((before.partition for before in expected if before.partition in present), expected[0].partition)
            )
    if len(expected) < len(moves):
        present = positions(con, stream)
        for partition, (before, _) in moves.items():
            if before is None and partition in present:
                raise Fenced(partition)
    rows = ", ".join(
        f"({_literals(stream.source, stream.table, stream.stream_id)}, {to.values}, {timestamp_literal(now)})"
        for _, to in moves.values()
    )
    con.execute(f"insert into lake.raw.positions values {rows}")


def _literals(*texts: str | None) -> str:
    return ", ".join("null::varchar" if text is None else quote(text) for text in texts)
