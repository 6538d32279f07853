"""How far each source has been read into each raw table. A position moves in the transaction that lands its rows, so neither is
ever without the other; and it moves only from where its owner left it, so a reader that was overtaken cannot land anything.

Two transactions that move one position conflict, and one of them is refused. Two that write a part's *first* position do not, since
DuckLake lets two inserts pass; so who claims parts for the first time holds `lake.alone` of the stream."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

import duckdb

from orchestration.sql.text import quote, timestamp_literal


@dataclass(frozen=True)
class Position:
    """Where the reading of one part (a partition, a shard, a file, a table) of a place (a topic, a stream, a database) goes on.
    `incarnation` tells a place from another of the same name; `owner` is the reader that may move it."""

    part: str
    position: str
    incarnation: str | None = None
    owner: str | None = None


@dataclass(frozen=True)
class Stream:
    """What is read into one raw table: a `place` (`kafka:shop.events`) as a `source` of the mapping. Two tables that one place feeds
    are read apart."""

    source: str
    table: str
    place: str

    @property
    def condition(self) -> str:
        """SQL: whether a row of raw.positions is of this."""
        return f"source = {quote(self.source)} and raw_table = {quote(self.table)} and place = {quote(self.place)}"


class Overtaken(Exception):
    """Another reader has moved or claimed the position since."""


def positions(con: duckdb.DuckDBPyConnection, stream: Stream) -> dict[str, Position]:
    """Where the reading of a place goes on, by part; nothing for parts that were never read."""
    found = con.execute(
        f"select part, position, incarnation, owner from lake.raw.positions where {stream.condition}"
    ).fetchall()
    return {str(part): Position(str(part), str(position), kind, owner) for part, position, kind, owner in found}


def move(
    con: duckdb.DuckDBPyConnection,
    stream: Stream,
    moves: dict[str, tuple[Position | None, Position]],
    now: datetime,
) -> None:
    """Within a writing transaction, move parts from where they are taken to be (None: never read) to where they come.

    Raises Overtaken, and the transaction must be given up, when one of them is not there any more.
    """
    if not moves:
        return
    held = [before for before, _ in moves.values() if before is not None]
    if held:
        # Deleting them tells whether they were there, without another look. As rows in a list, in which nulls are alike; a long
        # condition would be planned for longer than it runs.
        same = ", ".join(f"row({_literals(*asdict(before).values())})" for before in held)
        [(deleted,)] = con.execute(
            f"delete from lake.raw.positions where {stream.condition} and "
            f"list_contains([{same}], row({', '.join(asdict(held[0]))}))"
        ).fetchall()
        if deleted != len(held):
            present = positions(con, stream)
            # What was there has been deleted above, within this transaction.
            raise Overtaken(next((before.part for before in held if before.part in present), held[0].part))
    if len(held) < len(moves):
        present = positions(con, stream)
        for part, (before, _) in moves.items():
            if before is None and part in present:
                raise Overtaken(part)
    rows = ", ".join(
        f"({_literals(stream.source, stream.table, stream.place, *asdict(to).values())}, {timestamp_literal(now)})"
        for _, to in moves.values()
    )
    con.execute(f"insert into lake.raw.positions values {rows}")


def _literals(*texts: str | None) -> str:
    return ", ".join("null::varchar" if text is None else quote(text) for text in texts)
