"""Whose visit each kept event is part of, plainly: int_events__sessionized, worked out one event at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

Row = dict[str, Any]

ROWS = (
    *("row_id", "identity", "user_id", "anonymous_id", "event_at", "dedup_key", "origin", "verdict"),
    *("source_session_id", "purchase_order_id", "is_repeated_order"),
)
GAP = JOIN = timedelta(minutes=30)


def sessions(rows: list[Row]) -> dict[int, tuple[str, str | None, str]]:
    """By row_id of the kept rows among `rows` (of int_events__validated): visitor, source's session, first event's id."""
    kept = sorted((row for row in rows if row["verdict"] == "kept"), key=moment)
    hits = web_hits(rows)
    seen: dict[int, tuple[str | None, str | None]] = {}
    for row in kept:
        visitor, session = row["anonymous_id"] and "a:" + row["anonymous_id"], row["source_session_id"]
        hit = row["origin"] == "database" and hits.get((row["purchase_order_id"], row["identity"]))
        if not session and hit:
            session, visitor = hit["source_session_id"], (hit["anonymous_id"] and "a:" + hit["anonymous_id"]) or visitor
        seen[row["row_id"]] = visitor, session
    placed = {row["row_id"]: place(row, kept, seen) for row in kept}
    return dict(cut(kept, placed))


def moment(row: Row) -> Any:
    return row["event_at"], row["dedup_key"]


def web_hits(rows: list[Row]) -> dict[tuple[str, str], Row]:
    """What the web saw of orders that the database has, too: of several, the first session by name."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["purchase_order_id"], row["identity"]
        if row["is_repeated_order"] and row["origin"] != "database" and row["source_session_id"] and key[0]:
            found[key] = min(
                found.get(key, row), row, key=lambda hit: (hit["source_session_id"], hit["anonymous_id"] or "~")
            )
    return found


def place(row: Row, kept: list[Row], seen: dict[int, tuple[str | None, str | None]]) -> tuple[str, str | None]:
    """The visitor and the source's session of one event."""
    visitor, session = seen[row["row_id"]]
    if row["origin"] == "database" and not session:
        # By its visitor or, where it names none, by its identity: the last web event.
        before = [
            each
            for each in kept
            if each["origin"] != "database"
            and each["event_at"] <= row["event_at"]
            and (("a:" + each["anonymous_id"] if each["anonymous_id"] else None) if visitor else each["identity"])
            == (visitor or row["identity"])
        ]
        if before and before[-1]["event_at"] >= row["event_at"] - JOIN:
            return place(before[-1], kept, seen)
    if visitor:
        return visitor, session
    company = [each for each in kept if each["identity"] == row["identity"]]
    same = [each for each in company if session and seen[each["row_id"]][1] == session]
    return nearest(row, same) or nearest(row, run_of(row, company)) or row["identity"], session


def nearest(row: Row, company: list[Row]) -> str | None:
    """The last visitor named up to an event, or else the first one named after it."""
    named = [each for each in company if each["anonymous_id"]]
    at = bisect_right(named, moment(row), key=moment)
    return "a:" + named[max(at - 1, 0)]["anonymous_id"] if named else None


def runs(rows: list[Row]) -> Iterator[list[Row]]:
    run: list[Row] = []
    for row in rows:
        if run and row["event_at"] - run[-1]["event_at"] > GAP:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def run_of(row: Row, company: list[Row]) -> list[Row]:
    return next(run for run in runs(company) if row in run)


def cut(
    kept: list[Row], placed: dict[int, tuple[str, str | None]]
) -> Iterator[tuple[int, tuple[str, str | None, str]]]:
    """The sessions of all visitors: the source's, or runs that end with a gap or another login."""
    together: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for row in kept:
        together[placed[row["row_id"]]].append(row)
    for (visitor, session), rows in together.items():
        for run in [rows] if session else runs(rows):
            first, login = run[0], None
            for row in run:
                if not session and login and row["user_id"] and row["user_id"] != login:
                    first, login = row, None
                login = row["user_id"] or login
                yield row["row_id"], (visitor, session, first["dedup_key"])
