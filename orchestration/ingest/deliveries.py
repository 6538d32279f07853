"""Rows of files that were loaded before: a delivery that comes again, or a file whose mapping was corrected.

A delivery is all files of one load whose names say the same of it (`replaces` in the mapping); any other file is a delivery of its own.
Its rows, as they are mapped now, are compared with those of it that the lake has and that are not deleted. Two rows at the same
position are compared with each other; the others count as the same where all that was mapped of them is, and as often as both sides have
them. What is new lands, what changed replaces the former row, what the delivery lacks is noted in raw.deletions by its position, and the
rest stays as it is. All of it is SQL in bulk, over the staged deliveries of one raw table:

    __told   their rows as they would land, and __delivery
    __new    of these the ones that land: _position, __available (when the former row was known, null without one) and __delivery
    __gone   rows of the lake that go: __delivery, _position, __last (when they landed) and __replaced (whether a new one follows)
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

#: What follows a file's name in a position: `#n`, which element of a list it is, where the record has one that is exploded, and of which
#: entry of the mapping the row is, where several read the file.
IN_FILE: Final = f"#[0-9]+({IN_RECORD})?([.][0-9]+)?$"


def delivery(name: str, patterns: Sequence[str]) -> tuple[str, int] | None:
    """Which delivery a file belongs to by its name, and the place of the pattern that says so: a later one is more final."""
    for place, pattern in enumerate(patterns):
        found = re.search(pattern, name)
        if found and found[1]:
            return found[1], place
    return None


@dataclass(frozen=True)
class Loaded:
    """One file as it was loaded: a row of raw.loads. Its rows' positions begin with `name`; `mapping` is by what they were mapped."""

    table: str
    file: str
    fingerprint: str
    at: datetime
    name: str
    mapping: str


@dataclass
class Standing:
    """What a load is to do with a file: skip it for a reason, compare it as part of a `delivery`, or, with neither, land it.
    `is_there`: its bytes were loaded before; `is_remapped`: and by another mapping."""

    skipped: str | None = None
    delivery: str | None = None
    is_there: bool = False
    is_remapped: bool = False
    notes: list[str] = field(default_factory=list)


class Loads:
    """What has been loaded of one source, in order."""

    def __init__(self, con: duckdb.DuckDBPyConnection, source: str) -> None:
        found = con.execute(
            "select raw_table, file, fingerprint, loaded_at, position, mapping from lake.raw.loads "
            f"where source = {quote(source)} order by loaded_at, rowid"
        ).fetchall()
        self.all = [
            Loaded(str(table), str(file), str(told), at, str(name), str(by))
            for table, file, told, at, name, by in found
        ]
        #: The last load of each file: a later one stands for those before it.
        self.last = {(each.table, each.file, each.fingerprint): each for each in self.all}
        self._taken = {(each.table, each.name) for each in self.all}

    def name(self, table: str, file: str, fingerprint: str) -> str:
        """What positions of these bytes begin with: a file that came again with other bytes must not repeat those of the first."""
        known = self.last.get((table, file, fingerprint))
        if known:
            return known.name
        return f"{file}@{fingerprint.partition('-')[2][:8]}" if (table, file) in self._taken else file

    def of(self, table: str, patterns: Sequence[str]) -> dict[str, list[tuple[int, Loaded]]]:
        """By delivery what was loaded of it, each with the place of its pattern; a file that no pattern matches is its own."""
        found: dict[str, list[tuple[int, Loaded]]] = {}
        for each in self.all:
            if each.table == table:
                told = delivery(each.file, patterns) or (own(each.name), 0)
                found.setdefault(told[0], []).append((told[1], each))
        return found

    def standings(
        self,
        table: str,
        patterns: Sequence[str],
        files: Mapping[str, tuple[str, str]],
        again: bool = False,
        keep: bool = False,
    ) -> dict[str, Standing]:
        """What to do with each of the `files` (name to fingerprints of its bytes and of its mapping) that a load has for a table.
        What is there is compared where `again`, or where its mapping changed, unless it is to be kept (`keep`)."""
        found: dict[str, Standing] = {}
        here: dict[str, dict[str, int]] = {}
        for file, (fingerprint, _) in files.items():
            told = delivery(file, patterns) or (own(self.name(table, file, fingerprint)), 0)
            here.setdefault(told[0], {})[file] = told[1]
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
            same = {(file, files[file][0]) for file in final} <= {(each.file, each.fingerprint) for each in now}
            remapped = same and any(self.last[table, file, files[file][0]].mapping != files[file][1] for file in final)
            skips = same and not again and (keep or not remapped)
            for file in final:
                found[file] = Standing(
                    ("already there; the mapping changed, and it is kept" if remapped else "already there")
                    if skips
                    else None,
                    told_of if before and not skips else None,
                    is_there=same,
                    is_remapped=remapped,
                )
            absent = sorted({each.file for each in now} - final)
            if absent and not same and final:
                found[min(final)].notes.append(
                    f"of {told_of} there was also {', '.join(absent)}, which is not among the files; it is replaced, too. "
                    "All files of a delivery are loaded together"
                )
        return found

    def latest(self) -> datetime | None:
        """When the last load was."""
        return max((each.at for each in self.all), default=None)


def own(name: str) -> str:
    """The delivery that a file is by itself; `name` is what its rows' positions begin with."""
    return f"#{name}"


def moment(con: duckdb.DuckDBPyConnection, source: str, loads: Loads, now: datetime, replaces: bool) -> datetime:
    """When a load takes place: later than all deletions by position and, where it `replaces` rows, than all loads, though the clock
    were put back."""
    [(deleted,)] = con.execute(
        f"select max(_ingested_at) from lake.raw.deletions where _source = {quote(source)} and row_key is null"
    ).fetchall()
    former = [each for each in (deleted, loads.latest() if replaces else None) if each is not None]
    return max([now, *(each + timedelta(microseconds=1) for each in former)])


def is_deleted(table: str, row: str) -> str:
    """SQL: whether a `row` (its alias) of a raw table that has no key has been deleted since it landed."""
    return (
        f"exists (select 1 from lake.raw.deletions as d where d._source = {row}._source and d.raw_table = {quote(table)} "
        f"and d.row_key is null and d._position = {row}._position and d._ingested_at > {row}._ingested_at)"
    )


def tell_gone(
    con: duckdb.DuckDBPyConnection, source: str, table: str, rows: str, now: datetime, at: str | None = None
) -> None:
    """Note in raw.deletions that `rows` (a relation with _position) are gone; `at` is SQL of when, where that is not `now`."""
    moment = timestamp_literal(now)
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


def of_files(source: str, table: str, former: set[tuple[str, str]]) -> str:
    """SQL of the rows that were loaded, with the delivery that `told` them. `former` is (what positions begin with, delivery) of each
    file."""
    listed = ", ".join(f"({quote(name)}, {quote(told)})" for name, told in sorted(former))
    # Between the ends of the names the lake skips files.
    first, last = min(f"{name}#" for name, _ in former), max(f"{name}$" for name, _ in former)
    return (
        f"select t.*, told from lake.raw.{table} as t inner join (values {listed}) as f(name, told) "
        f"on f.name = regexp_replace(t._position, '{IN_FILE}', '') "
        f"where _source = {quote(source)} and _position >= {quote(first)} and _position < {quote(last)}"
    )


def compare(con: duckdb.DuckDBPyConnection, table: str, landed: str) -> None:
    """Fill `__new` and `__gone`. `landed` is SQL of all rows that the lake got of these deliveries, with the delivery that `told` them."""
    # All that was mapped. When the row was known is compared by itself, since it may be the moment of the load.
    mapped = ", ".join(
        identifier(name) for name in ("_error", "_origin", "_time_zone", "_expects", *RAW_TABLES[table], "payload")
    )
    content = f"md5(to_json([{_as_json(mapped)}])::varchar)"
    # Of a row that was known as it landed, a later landing of the same is still known since then.
    con.execute(
        f"""create or replace temp table __alive_{table} as
        with landed as ({landed}),
        moments as (
            select _position, md5(payload) as __hash, min(_ingested_at) as __first, list(_ingested_at) as __moments
            from landed group by all
        ),
        alive as (
            select _position, any_value(told) as __delivery, arg_max({content}, _ingested_at) as __content,
                arg_max(md5(payload), _ingested_at) as __hash, arg_max(available_at, _ingested_at) as available_at,
                max(_ingested_at) as __last
            from landed as t where not {is_deleted(table, "t")} group by _position
        )
        select *, case when list_contains(__moments, available_at) then available_at else __first end as __latest
        from alive inner join moments using (_position, __hash)"""
    )
    con.execute(
        f"create or replace temp table __came_{table} as select _position, __delivery, {content} as __content, "
        f"md5(payload) as __hash, available_at from __told_{table}"
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
        f"create or replace temp table __gone_{table} as select __delivery, _position, __last, __old is not null as __replaced "
        f"from __alive_{table} left join __changed_{table} on _position = __old "
        f"where __old is not null or _position not in (select __old from __pairs_{table})"
    )


def _as_json(names: str) -> str:
    return ", ".join(f"to_json({name})" for name in names.split(", "))


def land(con: duckdb.DuckDBPyConnection, source: str, table: str, now: datetime) -> None:
    """Land what is new or changed, and note what is deleted."""
    shown = ", ".join(identifier(name) for name in columns(table))
    values = shown.replace('"available_at"', "coalesce(__available, available_at)")
    con.execute(
        f"insert into lake.raw.{table} ({shown}) "
        f"select {values} from __told_{table} inner join __new_{table} using (_position)"
    )
    after = f"greatest({timestamp_literal(now)}, __last + interval 1 microsecond)"
    tell_gone(con, source, table, f"__gone_{table}", now, after)


@dataclass
class Changes:
    """What comparing found of the rows whose positions begin with one name: how many the file `holds`, how many of them are `added` and
    `replaced`, and how many that the lake has are `deleted` without another in their place."""

    delivery: str
    holds: int = 0
    added: int = 0
    replaced: int = 0
    deleted: int = 0

    @property
    def any(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.added or self.replaced or self.deleted)


def changes(con: duckdb.DuckDBPyConnection, table: str) -> dict[str, Changes]:
    """By what positions begin with."""
    found: dict[str, Changes] = {}
    name = f"regexp_replace(_position, '{IN_FILE}', '')"
    for place, told, holds, added, replaced in con.execute(
        f"select {name}, t.__delivery, count(*), count(n._position) - count(__available), count(__available) "
        f"from __told_{table} as t left join __new_{table} as n using (_position) group by all"
    ).fetchall():
        found[str(place)] = Changes(str(told), int(holds), int(added), int(replaced))
    for place, told, deleted in con.execute(
        f"select {name}, __delivery, count(*) from __gone_{table} where not __replaced group by all"
    ).fetchall():
        found.setdefault(str(place), Changes(str(told))).deleted = int(deleted)
    return found


def in_all(con: duckdb.DuckDBPyConnection, table: str, told: str) -> Changes:
    """Of one delivery, whatever its rows' positions begin with."""
    [(holds, added, replaced, deleted)] = con.execute(
        f"select (select count(*) from __told_{table}), (select count(*) - count(__available) from __new_{table}), "
        f"(select count(__available) from __new_{table}), (select count(*) from __gone_{table} where not __replaced)"
    ).fetchall()
    return Changes(told, int(holds), int(added), int(replaced), int(deleted))
