"""How far each source has been read. A position moves in the transaction that lands its rows, so neither is ever without the
other; and it moves only from where its owner left it, so who was overtaken cannot land anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

import duckdb

from orchestration.lake import quote


@dataclass(frozen=True)
class Position:
    """Where the reading of one part (a partition, a shard, a file, a table) of a place (a topic, a stream, a database) goes on.
    `incarnation` tells a place from another of the same name; `owner` is the reader that may move it."""

    part: str
    position: str
    incarnation: str | None = None
    owner: str | None = None


class Overtaken(Exception):
    """Another reader has moved or claimed the position since."""


def positions(con: duckdb.DuckDBPyConnection, source: str, place: str) -> dict[str, Position]:
    """Where the reading of a place goes on, by part; nothing for parts that were never read."""
    found = con.execute(
        "select part, position, incarnation, owner from lake.raw.positions "
        f"where source = {quote(source)} and place = {quote(place)}"
    ).fetchall()
    return {str(part): Position(str(part), str(position), kind, owner) for part, position, kind, owner in found}


def move(
    con: duckdb.DuckDBPyConnection,
    source: str,
    place: str,
    moves: dict[str, tuple[Position | None, Position]],
    now: datetime,
) -> None:
    """Within a writing transaction, move parts from where they are taken to be (None: never read) to where they come.

    Raises Overtaken, and the transaction must be given up, when one of them is not there any more.
    """
    if not moves:
        return
    of_place = f"source = {quote(source)} and place = {quote(place)}"
    held = [before for before, _ in moves.values() if before is not None]
    if held:
        # Deleting them tells whether they were there, without another look. As rows in a list, in which nulls are alike; a long
        # condition would be planned for longer than it runs.
        same = ", ".join(f"row({_literals(*asdict(before).values())})" for before in held)
        [(deleted,)] = con.execute(
            f"delete from lake.raw.positions where {of_place} and "
            f"list_contains([{same}], row({', '.join(asdict(held[0]))}))"
        ).fetchall()
        if deleted != len(held):
            present = positions(con, source, place)
            # What was there has been deleted above, within this transaction.
            raise Overtaken(next((before.part for before in held if before.part in present), held[0].part))
    if len(held) < len(moves):
        present = positions(con, source, place)
        for part, (before, _) in moves.items():
            if before is None and part in present:
                raise Overtaken(part)
    rows = ", ".join(
        f"({_literals(source, place, *asdict(to).values())}, timestamp {quote(now.isoformat(sep=' '))})"
        for _, to in moves.values()
    )
    con.execute(f"insert into lake.raw.positions values {rows}")


def _literals(*texts: str | None) -> str:
    return ", ".join("null::varchar" if text is None else quote(text) for text in texts)
