"""The visitor and session of each kept event (int_events__sessionized) in plain Python, one event at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

Row = dict[str, Any]

ROWS = (
    *("row_id", "identity", "user_id", "anonymous_id", "event_at", "dedup_key", "origin", "verdict", "event_type"),
    *("source_session_id", "purchase_order_id", "is_repeated_order"),
)
GAP = JOIN = timedelta(minutes=30)


def sessions(rows: list[Row]) -> dict[int, tuple[str, str | None, str]]:
    """For each kept row of `rows` (of int_events__validated), by row_id: the visitor, the source's session, and the first event's id."""
    kept = sorted((row for row in rows if row["verdict"] == "kept" and not is_database_refund(row)), key=moment)
    hits = web_hits(rows)
    seen: dict[int, tuple[str | None, str | None]] = {}
    for row in kept:
        visitor, session = row["anonymous_id"] and "a:" + row["anonymous_id"], row["source_session_id"]
        hit = row["origin"] == "database" and best(hits[row["purchase_order_id"]], row["identity"])
        if not session and hit:
            session, visitor = hit["source_session_id"], (hit["anonymous_id"] and "a:" + hit["anonymous_id"]) or visitor
        seen[row["row_id"]] = visitor, session
    placed = {row["row_id"]: place(row, kept, seen) for row in kept}
    return dict(cut(kept, placed))


def moment(row: Row) -> Any:
    return row["event_at"], row["dedup_key"]


def is_database_refund(row: Row) -> bool:
    """A refund in the shop's database is not a visit."""
    return row["origin"] == "database" and row["event_type"] in ("refund", "refund_of_no_sale")


def web_hits(rows: list[Row]) -> dict[str, list[Row]]:
    """The web events of orders that are also in the database, by order."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["is_repeated_order"] and row["origin"] != "database" and row["purchase_order_id"]:
            found[row["purchase_order_id"]].append(row)
    return found


def best(hits: list[Row], identity: str) -> Row | None:
    """The web event of an order: of its own identity, and of several the first session by name; for a guest, only if it has one visitor."""
    own = [hit for hit in hits if hit["identity"] == identity and (hit["anonymous_id"] or hit["source_session_id"])]
    others = [hit for hit in hits if hit["anonymous_id"]]
    return min(
        own or others, key=lambda hit: (hit["source_session_id"] or "~", hit["anonymous_id"] or "~"), default=None
    )


def place(row: Row, kept: list[Row], seen: dict[int, tuple[str | None, str | None]]) -> tuple[str, str | None]:
    """The visitor and the source's session of one event."""
    visitor, session = seen[row["row_id"]]
    if row["origin"] == "database" and not session:
        # The last web event of its visitor or, if it names none, of its identity.
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
    """The last visitor named up to an event, or else the first one after it."""
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
    """The sessions of all visitors: the source's sessions, or runs that end at a gap or another login."""
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
