"""Deliveries that come again: a day of an export that is delivered anew replaces what was delivered of it before.

A delivery is all files of one load whose names say the same of it (`replaces` in the mapping). Its rows are compared with those of it
that the lake has and has not told gone: by their payload, byte for byte, and counting how many there are of each. What is new lands,
what the new delivery lacks is told gone in raw.deletions by its position, and the rest stays as it is. All of it is SQL in bulk, over
the staged deliveries of one raw table:

    __told   their rows as they would land, and __delivery
    __new    of these the ones that land: _position
    __gone   rows of the lake that they lack: __delivery, _position and __last (when they landed)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import duckdb

from orchestration.contracts import columns
from orchestration.lake import quote

#: What follows a file's name in a position: `#n`, and of which entry of the mapping the row is, where several read the file.
IN_FILE: Final = "#[0-9]+([.][0-9]+)?$"


def delivery(name: str, patterns: Sequence[str]) -> tuple[str, int] | None:
    """Which delivery a file belongs to by its name, and the place of the pattern that says so: a later one is more final."""
    for place, pattern in enumerate(patterns):
        found = re.search(pattern, name)
        if found and found[1]:
            return found[1], place
    return None


@dataclass(frozen=True)
class Loaded:
    """One file as it was loaded: a row of raw.loads."""

    table: str
    file: str
    fingerprint: str
    at: datetime


@dataclass
class Standing:
    """What a load is to do with a file: skip it for a reason, compare it as part of a `delivery`, or, with neither, land it."""

    skipped: str | None = None
    delivery: str | None = None
    notes: list[str] = field(default_factory=list)


class Loads:
    """What has been loaded of one source, in order."""

    def __init__(self, con: duckdb.DuckDBPyConnection, source: str) -> None:
        found = con.execute(
            f"select raw_table, file, fingerprint, loaded_at from lake.raw.loads where source = {quote(source)} "
            "order by loaded_at, rowid"
        ).fetchall()
        self.all = [Loaded(str(table), str(file), str(told), at) for table, file, told, at in found]
        self._known = {(each.table, each.file, each.fingerprint) for each in self.all}
        self._first: dict[tuple[str, str], str] = {}
        for each in self.all:
            self._first.setdefault((each.table, each.file), each.fingerprint)

    def name(self, table: str, file: str, fingerprint: str) -> str:
        """What positions of these bytes begin with: a file that came again with other bytes must not repeat those of the first."""
        same = self._first.get((table, file), fingerprint) == fingerprint
        return file if same else f"{file}@{fingerprint.partition('-')[2][:8]}"

    def of(self, table: str, patterns: Sequence[str]) -> dict[str, list[tuple[int, Loaded]]]:
        """By delivery what was loaded of it, each with the place of its pattern."""
        found: dict[str, list[tuple[int, Loaded]]] = {}
        for each in self.all:
            told = delivery(each.file, patterns) if each.table == table else None
            if told:
                found.setdefault(told[0], []).append((told[1], each))
        return found

    def standings(
        self, table: str, patterns: Sequence[str], files: Mapping[str, str], again: bool
    ) -> dict[str, Standing]:
        """What to do with each of the `files` (name to fingerprint) that a load has for a table; `again`: though it is there."""
        found: dict[str, Standing] = {}
        here: dict[str, dict[str, int]] = {}
        for file, fingerprint in files.items():
            told = delivery(file, patterns)
            if told:
                here.setdefault(told[0], {})[file] = told[1]
            else:
                there = (table, file, fingerprint) in self._known and not again
                found[file] = Standing("already there" if there else None)
        formerly = self.of(table, patterns)
        for told_of, places in here.items():
            before = formerly.get(told_of, [])
            best, winner = max(
                [(place, file) for file, place in places.items()] + [(place, each.file) for place, each in before]
            )
            final = {file for file, place in places.items() if place == best}
            for file in places.keys() - final:
                found[file] = Standing(f"{winner} is there, which is more final")
            last = max((each.at for _, each in before), default=None)
            now = [each for place, each in before if each.at == last and place == best]
            same = {(file, files[file]) for file in final} <= {(each.file, each.fingerprint) for each in now}
            for file in final:
                found[file] = Standing(
                    "already there" if same and not again else None,
                    told_of if before and not (same and not again) else None,
                )
            absent = sorted({each.file for each in now} - final)
            if absent and not same:
                found[min(final)].notes.append(
                    f"of {told_of} there was also {', '.join(absent)}, which is not among the files; it is replaced, too. "
                    "All files of a delivery are loaded together"
                )
        return found

    def latest(self) -> datetime | None:
        """When the last load was."""
        return max((each.at for each in self.all), default=None)


def moment(con: duckdb.DuckDBPyConnection, source: str, loads: Loads, now: datetime) -> datetime:
    """When a load that replaces takes place: later than all that it may replace, though the clock were put back."""
    [(deleted,)] = con.execute(
        f"select max(_ingested_at) from lake.raw.deletions where _source = {quote(source)} and row_key is null"
    ).fetchall()
    former = [each for each in (deleted, loads.latest()) if each is not None]
    return max([now, *(each + timedelta(microseconds=1) for each in former)])


def is_gone(table: str, row: str) -> str:
    """SQL: whether a `row` (its alias) of a raw table that has no key has been told gone since it landed."""
    return (
        f"exists (select 1 from lake.raw.deletions as d where d._source = {row}._source and d.raw_table = {quote(table)} "
        f"and d.row_key is null and d._position = {row}._position and d._ingested_at > {row}._ingested_at)"
    )


def tell_gone(
    con: duckdb.DuckDBPyConnection, source: str, table: str, rows: str, now: datetime, at: str | None = None
) -> None:
    """Note in raw.deletions that `rows` (a relation with _position) are gone; `at` is SQL of when, where that is not `now`."""
    moment = f"timestamp {quote(now.isoformat(sep=' '))}"
    con.execute(
        f"insert into lake.raw.deletions select {quote(source)}, _position, {quote(table)}, null, null, null, "
        f"{at or moment}, {moment} from {rows}"
    )


def stage(con: duckdb.DuckDBPyConnection, table: str, rows: Sequence[tuple[str, str]], first: bool) -> None:
    """Add to `__told` from (delivery, SELECT of its rows as they would land); the first time, make it."""
    lot = " union all ".join(f"select *, {quote(told)} as __delivery from ({select})" for told, select in rows)
    con.execute(
        f"create or replace temp table __told_{table} as {lot}" if first else f"insert into __told_{table} {lot}"
    )


def compare(con: duckdb.DuckDBPyConnection, source: str, table: str, former: set[tuple[str, str]]) -> None:
    """Fill `__new` and `__gone`. `former` is (what positions begin with, delivery) of all that was loaded of these deliveries."""
    listed = ", ".join(f"({quote(name)}, {quote(told)})" for name, told in sorted(former))
    # Between the ends of the names the lake skips files.
    first, last = min(f"{name}#" for name, _ in former), max(f"{name}$" for name, _ in former)
    of = f"_source = {quote(source)} and _position >= {quote(first)} and _position < {quote(last)}"
    # A position that was loaded twice holds the same row twice, which counts once.
    con.execute(
        f"create or replace temp table __alive_{table} as select _position, any_value(told) as __delivery, "
        "md5(any_value(payload)) as __hash, min(available_at) as __since, max(_ingested_at) as __last "
        f"from lake.raw.{table} as t inner join (values {listed}) as f(name, told) "
        f"on f.name = regexp_replace(t._position, '{IN_FILE}', '') where {of} and not {is_gone(table, 't')} "
        "group by _position"
    )

    def counted(rows: str, other: str, order: str) -> str:
        # A row that is at its own place on both sides is paired with itself: else its place could be taken twice.
        paired = f"case when _position in (select _position from {other}) then 0 else 1 end"
        return (
            f"select *, row_number() over (partition by __delivery, __hash, __part order by {paired}, {order}) as __nth "
            f"from (select *, regexp_extract(_position, '{IN_FILE}', 1) as __part from ({rows}))"
        )

    told = f"select __delivery, _position, md5(payload) as __hash from __told_{table}"
    told = counted(told, f"__alive_{table}", "_position")
    alive = counted(f"select * from __alive_{table}", f"__told_{table}", "__since, _position")
    same = "using (__delivery, __hash, __part, __nth)"
    con.execute(
        f"create or replace temp table __new_{table} as select _position from ({told}) as t anti join ({alive}) as a {same}"
    )
    con.execute(
        f"create or replace temp table __gone_{table} as select __delivery, _position, __last from ({alive}) as a "
        f"anti join ({told}) as t {same}"
    )


def land(con: duckdb.DuckDBPyConnection, source: str, table: str, now: datetime) -> None:
    """Land what is new, and tell what is gone."""
    shown = ", ".join(f'"{name}"' for name in columns(table))
    con.execute(
        f"insert into lake.raw.{table} ({shown}) "
        f"select {shown} from __told_{table} where _position in (select _position from __new_{table})"
    )
    after = f"greatest(timestamp {quote(now.isoformat(sep=' '))}, __last + interval 1 microsecond)"
    tell_gone(con, source, table, f"__gone_{table}", now, after)


def held(con: duckdb.DuckDBPyConnection, table: str) -> dict[str, int]:
    """By what positions begin with: the rows that a file of `__told` holds."""
    found = con.execute(f"select regexp_replace(_position, '{IN_FILE}', ''), count(*) from __told_{table} group by 1")
    return {str(name): int(rows) for name, rows in found.fetchall()}


def gone(con: duckdb.DuckDBPyConnection, table: str) -> dict[str, int]:
    """By delivery: the rows that are gone."""
    found = con.execute(f"select __delivery, count(*) from __gone_{table} group by 1").fetchall()
    return {str(told): int(rows) for told, rows in found}
