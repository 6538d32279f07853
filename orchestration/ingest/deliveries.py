"""Reloading of files: a delivery that arrives again, or a file whose mapping changed.

A delivery is all files of one load with the same delivery name (`replaces` in the mapping); any other file is a delivery of its own. Its
rows, mapped by the current mapping, are compared with its live rows in the lake: first by position, and the rest by content. New rows land,
changed rows replace the previous row, missing rows are recorded in raw.deletions by position, and unchanged rows stay as they are. Everything
is bulk SQL over the staged deliveries of one raw table:

    __incoming  the rows as they would land, and __delivery
    __new       the rows to land: _position, __available (when the previous row was known; null if there is none) and __delivery
    __removed   the rows of the lake to remove: __delivery, _position, __last (when they landed) and __replaced (whether a new row follows)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import duckdb

from orchestration.mapping.contracts import IN_RECORD, RAW_TABLES, columns
from orchestration.sql.text import identifier, quote, timestamp_literal

#: The end of a position after the file name: `#n`, the element of an exploded list if there is one, and the number of the mapping entry if
#: several read the file.
IN_FILE: Final = f"#[0-9]+({IN_RECORD})?([.][0-9]+)?$"


def delivery_of(name: str, patterns: Sequence[str]) -> tuple[str, int] | None:
    """The delivery that a file name belongs to, and the index of the matching pattern: a later pattern means more final data."""
    for place, pattern in enumerate(patterns):
        found = re.search(pattern, name)
        if found and found[1]:
            return found[1], place
    return None


@dataclass(frozen=True)
class Loaded:
    """A loaded file: a row of raw.loads. Its rows' positions begin with `name`; `mapping` is the fingerprint of the mapping used."""

    table: str
    file: str
    fingerprint: str
    at: datetime
    name: str
    mapping: str


@dataclass
class FileStatus:
    """What a load does with a file: skip it for a reason, compare it as part of a `delivery`, or else land it.
    `is_there`: its bytes were loaded before. `is_remapped`: by another mapping."""

    skipped: str | None = None
    delivery: str | None = None
    is_there: bool = False
    is_remapped: bool = False
    notes: list[str] = field(default_factory=list)


class Loads:
    """The loads of one source, in order."""

    def __init__(self, con: duckdb.DuckDBPyConnection, source: str) -> None:
        found = con.execute(
            "select raw_table, file, fingerprint, loaded_at, position, mapping from lake.raw.loads "
            f"where source = {quote(source)} order by loaded_at, rowid"
        ).fetchall()
        self.all = [
            Loaded(str(table), str(file), str(fingerprint), at, str(name), str(by))
            for table, file, fingerprint, at, name, by in found
        ]
        #: The last load of each file.
        self.last = {(each.table, each.file, each.fingerprint): each for each in self.all}
        self._taken = {(each.table, each.name) for each in self.all}

    def name(self, table: str, file: str, fingerprint: str) -> str:
        """The prefix of this file's positions. A file that arrives again with other content must not reuse the positions of the first."""
        known = self.last.get((table, file, fingerprint))
        if known:
            return known.name
        return f"{file}@{fingerprint.partition('-')[2][:8]}" if (table, file) in self._taken else file

    def of(self, table: str, patterns: Sequence[str]) -> dict[str, list[tuple[int, Loaded]]]:
        """The loads of each delivery, each with the index of its pattern; a file that matches no pattern is its own delivery."""
        found: dict[str, list[tuple[int, Loaded]]] = {}
        for each in self.all:
            if each.table == table:
                name, place = delivery_of(each.file, patterns) or (own(each.name), 0)
                found.setdefault(name, []).append((place, each))
        return found

    def statuses(
        self,
        table: str,
        patterns: Sequence[str],
        files: Mapping[str, tuple[str, str]],
        remap: bool = False,
        keep: bool = False,
    ) -> dict[str, FileStatus]:
        """What to do with each of the `files` (name to fingerprints of its content and its mapping) of a load for a table. Loaded files are
        compared with `remap`, or if their mapping changed, unless they are kept as they are (`keep`)."""
        found: dict[str, FileStatus] = {}
        here: dict[str, dict[str, int]] = {}
        for file, (fingerprint, _) in files.items():
            name, place = delivery_of(file, patterns) or (own(self.name(table, file, fingerprint)), 0)
            here.setdefault(name, {})[file] = place
        formerly = self.of(table, patterns)
        for delivery_name, places in here.items():
            before = formerly.get(delivery_name, [])
            best, winner = max(
                [(place, file) for file, place in places.items()] + [(place, each.file) for place, each in before]
            )
            final = {file for file, place in places.items() if place == best}
            for file in places.keys() - final:
                found[file] = FileStatus(f"{winner} is loaded already, and is more final")
            last = max((each.at for _, each in before), default=None)
            now = [each for place, each in before if each.at == last and place == best]
            same = {(file, files[file][0]) for file in final} <= {(each.file, each.fingerprint) for each in now}
            remapped = same and any(self.last[table, file, files[file][0]].mapping != files[file][1] for file in final)
            skips = same and not remap and (keep or not remapped)
            for file in final:
                found[file] = FileStatus(
                    ("already loaded; the mapping changed, and its rows are kept" if remapped else "already loaded")
                    if skips
                    else None,
                    delivery_name if before and not skips else None,
                    is_there=same,
                    is_remapped=remapped,
                )
            absent = sorted({each.file for each in now} - final)
            if absent and not same and final:
                found[min(final)].notes.append(
                    f"the last load of {delivery_name} also had {', '.join(absent)}, which is not among the files; its rows are replaced, too. "
                    "Load all files of a delivery together"
                )
        return found

    def latest(self) -> datetime | None:
        """The time of the last load."""
        return max((each.at for each in self.all), default=None)


def own(name: str) -> str:
    """The delivery name of a file that is its own delivery; `name` is the prefix of its rows' positions."""
    return f"#{name}"


def moment(con: duckdb.DuckDBPyConnection, source: str, loads: Loads, now: datetime, replaces: bool) -> datetime:
    """The time of a load: later than all deletions by position and, if it `replaces` rows, than all loads, even if the clock was set back."""
    [(deleted,)] = con.execute(
        f"select max(_ingested_at) from lake.raw.deletions where _source = {quote(source)} and row_key is null"
    ).fetchall()
    former = [each for each in (deleted, loads.latest() if replaces else None) if each is not None]
    return max([now, *(each + timedelta(microseconds=1) for each in former)])


def is_deleted(table: str, row: str) -> str:
    """SQL: whether a `row` (its alias) of a raw table has been deleted by its position since it landed."""
    return (
        f"exists (select 1 from lake.raw.deletions as d where d._source = {row}._source and d.raw_table = {quote(table)} "
        f"and d.row_key is null and d._position = {row}._position and d._ingested_at > {row}._ingested_at)"
    )


def mark_deleted(
    con: duckdb.DuckDBPyConnection, source: str, table: str, rows: str, now: datetime, at: str | None = None
) -> None:
    """Record `rows` (a relation with _position) as deleted in raw.deletions; `at` is SQL of the time, by default `now`."""
    moment = timestamp_literal(now)
    con.execute(
        f"insert into lake.raw.deletions select {quote(source)}, _position, {quote(table)}, null, null, null, "
        f"{at or moment}, {moment} from {rows}"
    )


def stage(con: duckdb.DuckDBPyConnection, table: str, rows: Sequence[tuple[str, str]], first: bool) -> None:
    """Add rows to `__incoming`, given as (delivery, SELECT of its rows as they would land); create the table if `first`."""
    union = " union all ".join(f"select *, {quote(name)} as __delivery from ({select})" for name, select in rows)
    con.execute(
        f"create or replace temp table __incoming_{table} as {union}"
        if first
        else f"insert into __incoming_{table} {union}"
    )


def of_files(source: str, table: str, former: set[tuple[str, str]]) -> str:
    """SQL of the rows that were loaded, with their `delivery`. `former` is (what positions begin with, delivery) of each
    file."""
    listed = ", ".join(f"({quote(name)}, {quote(delivery)})" for name, delivery in sorted(former))
    # A range over the names, so that the lake can skip files.
    first, last = min(f"{name}#" for name, _ in former), max(f"{name}$" for name, _ in former)
    return (
        f"select t.*, delivery from lake.raw.{table} as t inner join (values {listed}) as f(name, delivery) "
        f"on f.name = regexp_replace(t._position, '{IN_FILE}', '') "
        f"where _source = {quote(source)} and _position >= {quote(first)} and _position < {quote(last)}"
    )


def compare(con: duckdb.DuckDBPyConnection, table: str, landed: str) -> None:
    """Fill `__new` and `__removed`. `landed` is SQL of all rows that the lake got of these deliveries, with their `delivery`."""
    # All mapped values. available_at is compared separately, because it may be the time of the load.
    mapped = ", ".join(
        identifier(name) for name in ("_error", "_origin", "_time_zone", "_expects", *RAW_TABLES[table], "payload")
    )
    content = f"md5(to_json([{_as_json(mapped)}])::varchar)"
    # If a row was available when it landed, a later landing of the same row keeps that time.
    con.execute(
        f"""create or replace temp table __alive_{table} as
        with landed as ({landed}),
        moments as (
            select _position, md5(payload) as __hash, min(_ingested_at) as __first, list(_ingested_at) as __moments
            from landed group by all
        ),
        alive as (
            select _position, any_value(delivery) as __delivery, arg_max({content}, _ingested_at) as __content,
                arg_max(md5(payload), _ingested_at) as __hash, arg_max(available_at, _ingested_at) as available_at,
                max(_ingested_at) as __last
            from landed as t where not {is_deleted(table, "t")} group by _position
        )
        select *, case when list_contains(__moments, available_at) then available_at else __first end as __latest
        from alive inner join moments using (_position, __hash)"""
    )
    con.execute(
        f"create or replace temp table __came_{table} as select _position, __delivery, {content} as __content, "
        f"md5(payload) as __hash, available_at from __incoming_{table}"
    )
    con.execute(
        f"create or replace temp table __pairs_{table} as "
        f"select _position as __new, _position as __old from __came_{table} inner join __alive_{table} using (_position)"
    )
    for key in ("__content", "__hash"):

        def counted(rows: str, side: str, order: str, key: str = key) -> str:
            return (
                f"select *, row_number() over (partition by __delivery, {key} order by {order}) as __nth from {rows}_{table} "
                f"where _position not in (select {side} from __pairs_{table})"
            )

        con.execute(
            f"insert into __pairs_{table} select c._position, a._position from ({counted('__came', '__new', '_position')}) as c "
            f"inner join ({counted('__alive', '__old', 'available_at, _position')}) as a using (__delivery, {key}, __nth)"
        )
    con.execute(
        f"""create or replace temp table __changed_{table} as
        select __new, __old, least(c.available_at, a.__latest) as __available
        from __pairs_{table} as p
        inner join __came_{table} as c on p.__new = c._position
        inner join __alive_{table} as a on p.__old = a._position
        where c.__content <> a.__content or a.available_at <> least(c.available_at, a.__latest)"""
    )
    con.execute(
        f"create or replace temp table __new_{table} as select _position, __available, __delivery from __came_{table} "
        f"left join __changed_{table} on _position = __new "
        f"where __new is not null or _position not in (select __new from __pairs_{table})"
    )
    con.execute(
        f"create or replace temp table __removed_{table} as select __delivery, _position, __last, __old is not null as __replaced "
        f"from __alive_{table} left join __changed_{table} on _position = __old "
        f"where __old is not null or _position not in (select __old from __pairs_{table})"
    )


def _as_json(names: str) -> str:
    return ", ".join(f"to_json({name})" for name in names.split(", "))


def land(con: duckdb.DuckDBPyConnection, source: str, table: str, now: datetime) -> None:
    """Land new and changed rows, and record deletions."""
    shown = ", ".join(identifier(name) for name in columns(table))
    values = shown.replace('"available_at"', "coalesce(__available, available_at)")
    con.execute(
        f"insert into lake.raw.{table} ({shown}) "
        f"select {values} from __incoming_{table} inner join __new_{table} using (_position)"
    )
    after = f"greatest({timestamp_literal(now)}, __last + interval 1 microsecond)"
    mark_deleted(con, source, table, f"__removed_{table}", now, after)


@dataclass
class Changes:
    """The result of comparing one file (or delivery): how many rows it `holds`, how many of them are `added` and `replaced`, and how many rows
    of the lake are `deleted` without a replacement."""

    delivery: str
    holds: int = 0
    added: int = 0
    replaced: int = 0
    deleted: int = 0

    @property
    def any(self) -> bool:
        """Whether there are any changes."""
        return bool(self.added or self.replaced or self.deleted)


def changes(con: duckdb.DuckDBPyConnection, table: str) -> dict[str, Changes]:
    """The changes by position prefix."""
    found: dict[str, Changes] = {}
    name = f"regexp_replace(_position, '{IN_FILE}', '')"
    for place, delivery, holds, added, replaced in con.execute(
        f"select {name}, t.__delivery, count(*), count(n._position) - count(__available), count(__available) "
        f"from __incoming_{table} as t left join __new_{table} as n using (_position) group by all"
    ).fetchall():
        found[str(place)] = Changes(str(delivery), int(holds), int(added), int(replaced))
    for place, delivery, deleted in con.execute(
        f"select {name}, __delivery, count(*) from __removed_{table} where not __replaced group by all"
    ).fetchall():
        found.setdefault(str(place), Changes(str(delivery))).deleted = int(deleted)
    return found


def in_all(con: duckdb.DuckDBPyConnection, table: str, delivery: str) -> Changes:
    """The changes of one delivery, over all position prefixes."""
    [(holds, added, replaced, deleted)] = con.execute(
        f"select (select count(*) from __incoming_{table}), (select count(*) - count(__available) from __new_{table}), "
        f"(select count(__available) from __new_{table}), (select count(*) from __removed_{table} where not __replaced)"
    ).fetchall()
    return Changes(delivery, int(holds), int(added), int(replaced), int(deleted))
