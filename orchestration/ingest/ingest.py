"""`finegrain ingest`: load new rows from databases and APIs into the lake by a mapping, each version of a row once.

Rows are read in batches. A batch is staged and compared with the lake outside of any transaction (`versions`). Then one short transaction
lands its rows and moves the position. So the process may be killed at any time, and the next run resumes from there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import duckdb

from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError, console
from orchestration.ingest import deliveries, landing, personal, versions
from orchestration.ingest.landing import Bound, Opened
from orchestration.ingest.load import Asked, Entry, FileReport, load
from orchestration.ingest.stream.run import look as look_at_stream
from orchestration.lake import lake, shop
from orchestration.lake.locks import scratch
from orchestration.lake.positions import Fenced, Position, Stream, move, positions
from orchestration.mapping.contracts import IN_RECORD, RAW_TABLES, is_time
from orchestration.mapping.contracts import columns as columns_of
from orchestration.mapping.mapping import (
    EXPLODED,
    REQUIRED,
    Column,
    Http,
    Mapping,
    NumberedEntry,
    Sql,
    Table,
    mapping_files,
    nearest,
    read_mapping,
    span,
)
from orchestration.sources import apis, databases
from orchestration.sources.databases import DatabaseTable
from orchestration.sources.files import DataFile, look
from orchestration.sql.text import free_prefix, identifier, quote, timestamp_literal

#: Rows of a batch; it may have more if many rows share one cursor value.
BATCH_ROWS: Final = 500_000
#: Default overlap that is read again on each run: rows may become visible after others with a later cursor value.
OVERLAPS: Final[dict[str, str | int]] = {"time": "10 minutes", "number": 1000}
FROM_THE_BEGINNING: Final = "it is read from its beginning; rows already in the lake do not land twice"
_WHOLE: Final = ("BIGINT", "INTEGER", "SMALLINT", "TINYINT", "HUGEINT")


@dataclass
class TableReport:
    """The result of ingesting one entry. Of the rows `read`, `landed` are new or changed (`malformed` of them with a reason in `_error`),
    `unchanged` are already in the lake, and the others are filtered by `where` or deleted. `deleted` counts recorded deletions. Of the rows in
    the lake, a changed mapping has `replaced` some and `taken_back` (removed) others."""

    source: str
    table: str
    place: str
    read: int = 0
    landed: int = 0
    malformed: int = 0
    unchanged: int = 0
    deleted: int = 0
    replaced: int = 0
    taken_back: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class IngestReport:
    """The result of an ingest. `snapshot` is the lake's newest after it; `seconds` is wall time."""

    tables: list[TableReport]
    files: list[FileReport]
    snapshot: int
    seconds: float

    @property
    def rows(self) -> int:
        """Rows landed, deletions not counted."""
        return sum(table.landed for table in self.tables) + sum(file.rows for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "rows": self.rows}


@dataclass(frozen=True)
class Batch:
    """A batch to read: a SELECT of its rows, and the cursor value it ends with."""

    select: str
    until: str


@dataclass
class Reading:
    """One mapping entry being read. `stream_id` names its table or resource, `partition` distinguishes entries that read the same one, `label` is
    the prefix of its rows' positions, and `cursor_kind` says how its position is to be understood."""

    where: str
    source: str
    name: str
    entry: Table
    zone: str
    number: int
    partition: str
    label: str
    stream_id: str
    table: DatabaseTable | None
    columns: dict[str, str]
    report: TableReport
    bound: Bound | None = None
    payload: str | None = None
    before: Position | None = None
    moved_at: datetime = datetime.min
    cursor_kind: str = ""
    changed_schema: str | None = None

    @property
    def stream(self) -> Stream:
        """The key of its position."""
        return Stream(self.source, self.name, self.stream_id)

    @property
    def is_exploded(self) -> bool:
        """Whether each element of a list becomes a row."""
        return self.entry.explode is not None

    @property
    def deleted(self) -> str | None:
        """The column that marks deleted rows."""
        return self.entry.deletes.column if isinstance(self.entry.deletes, Column) else None


def ingest(
    mapping: str | Path,
    data: str | Path | None = None,
    from_beginning: bool = False,
    remap: bool = False,
    keep: bool = False,
    *,
    batch_rows: int = BATCH_ROWS,
    where: Settings | None = None,
    now: datetime | None = None,
    quiet: bool = True,
) -> IngestReport:
    """Load new rows of every table, resource and file of a mapping (or of every mapping in a folder).

    `from_beginning` ignores stored positions; rows already in the lake do not land twice. If the current mapping would change rows already in
    the lake, nothing lands, unless `remap` replaces them or `keep` leaves them as they are. `batch_rows` is the number of rows per
    transaction; `now` (naive UTC) replaces the clock. Raises FinegrainError; earlier batches stay in the lake.
    """
    if remap and keep:
        raise FinegrainError("--remap replaces loaded rows, and --keep leaves them as they are; give only one of them")
    where = where or settings()
    started = time.monotonic()
    found = [(path, read_mapping(path)) for path in mapping_files(mapping)]
    if not any(entry.files or entry.table or entry.http for _, each in found for entry in _entries(each)):
        raise FinegrainError(f"{mapping}: this mapping has only streams; load them with finegrain stream")
    total = sum(1 for _, each in found for entry in _entries(each) if entry.table or entry.http)
    report = IngestReport([], [], 0, 0.0)
    with closing(lake.connect(where)) as con:
        shop.record(con, where, found, now)
    with console.progress("ingest", total, quiet=quiet) as advance:
        for path, each in found:
            if any(entry.files for entry in _entries(each)):
                loaded = load(path, None, data, remap, keep, where=where, now=now)
                report.files += loaded.files
                report.snapshot = loaded.snapshot
            if not any(entry.table or entry.http for entry in _entries(each)):
                continue
            # One run per source at a time: a second one would only be fenced.
            with lake.exclusive(where, f"ingest {each.source}"):
                asked = Asked(remap, keep, now or _clock())
                tables, report.snapshot = _ingest(where, path, each, from_beginning, asked, batch_rows, now, advance)
                report.tables += tables
    report.seconds = time.monotonic() - started
    return report


def _entries(mapping: Mapping) -> Iterator[Table]:
    for entries in mapping.tables.values():
        yield from entries


def _ingest(
    where: Settings,
    path: Path,
    mapping: Mapping,
    from_beginning: bool,
    asked: Asked,
    batch_rows: int,
    now: datetime | None,
    advance: console.Advance,
) -> tuple[list[TableReport], int]:
    """Ingest one mapping. All tables are found and bound before any row lands."""
    con = lake.connect(where)
    try:
        personal.register(con, where)
        readings = list(open_readings(con, path, mapping))
        run = uuid.uuid4().hex
        for reading in readings:
            if reading.table is not None:
                bind(con, reading)
        refused = [line for reading in readings for line in _remap(con, where, reading, asked)]
        if refused:
            raise FinegrainError(
                f"{path}: the mapping has changed since these rows were loaded; nothing has landed\n"
                + "\n".join(refused)
                + f"\n  finegrain ingest {path} --remap replaces them"
                + f"\n  finegrain ingest {path} --keep leaves loaded rows as they are, and maps new rows by the new mapping"
            )
        for reading in readings:
            try:
                if reading.table is not None:
                    _read_table(con, where, reading, reading.table, from_beginning, batch_rows, run, now, advance)
                elif reading.entry.http is not None:
                    _read_api(con, where, reading, reading.entry.http, from_beginning, run, now, advance)
            except Fenced:
                raise FinegrainError(
                    f"{reading.where}: another ingest is reading {reading.report.place}; wait until it has ended, and run this again"
                ) from None
        [(snapshot,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
        return [reading.report for reading in readings], int(snapshot)
    finally:
        con.close()


def open_readings(con: duckdb.DuckDBPyConnection, path: Path, mapping: Mapping) -> Iterator[Reading]:
    """The entries of a mapping that read tables or APIs, with the metadata of the tables."""
    database = databases.attach(con, mapping.database, str(path)) if mapping.database is not None else None
    labels: set[tuple[str, str]] = set()
    for name, number, entry, zone, where in mapping.entries(path):
        part = name + (f"[{number + 1}]" if number else "")
        if entry.table is not None and database is not None:
            table = databases.open_table(con, database, entry.table, where)
            place, label, columns = f"{database.place}/{table.name}", table.name, table.columns
            _check_columns(where, table, entry)
        elif entry.http is not None:
            table, columns = None, {}
            place = label = apis.place(entry.http)
        else:
            continue
        if (name, label) in labels:  # two entries that read the same rows into the same raw table
            label += f"[{number + 1}]"
        labels.add((name, label))
        report = TableReport(mapping.source, name, place)
        yield Reading(where, mapping.source, name, entry, zone, number, part, label, place, table, columns, report)


def _check_columns(where: str, table: DatabaseTable, entry: Table) -> None:
    """Reject columns that do not exist, and a cursor of an unsuitable type."""
    named = [("key", name) for name in entry.key]
    if isinstance(entry.deletes, Column):
        named.append(("deletes.column", entry.deletes.column))
    if entry.incremental is not None:
        named.append(("incremental.column", entry.incremental.column))
    for place, name in named:
        if name not in table.columns:
            raise FinegrainError(
                f"{where}.{place}: {table.origin} has no column '{name}'{nearest(name, table.columns)}"
            )
    if entry.incremental is not None:
        kind = table.columns[entry.incremental.column]
        if _family(kind) == "":
            raise FinegrainError(
                f"{where}.incremental.column: '{entry.incremental.column}' is {kind.lower()}; "
                "it must be a time or a whole number that only grows"
            )
        overlap = entry.incremental.overlap
        if overlap is not None and isinstance(overlap, str) != (_family(kind) == "time"):
            raise FinegrainError(
                f"{where}.incremental.overlap: '{entry.incremental.column}' is {kind.lower()}; "
                + ("write a span, as in 10 minutes" if _family(kind) == "time" else "write a number, as in 1000")
            )


def _family(kind: str) -> str:
    if kind.startswith(("TIMESTAMP", "DATE")):
        return "time"
    whole = kind.removeprefix("U") in _WHOLE or (kind.startswith("DECIMAL(") and kind.endswith(",0)"))
    return "number" if whole else ""


def bind(con: duckdb.DuckDBPyConnection, reading: Reading) -> None:
    """Bind the mapping to the columns."""
    relation = versions.new_rows(reading.columns)
    origin = reading.table.origin if reading.table else reading.stream_id
    is_typed = reading.table is not None
    names = tuple(reading.columns)
    opened = Opened(origin, reading.columns, relation, names, is_typed=is_typed, is_json=not is_typed)
    reading.bound = landing.bind_opened(con, opened, reading.name, reading.entry, reading.zone, reading.where)


def samples(path: Path, folder: Path, where: Settings, rows: int, data: str | Path | None = None) -> list[Entry]:
    """For the doctor: the entries of a mapping that read tables, APIs or streams, each with a sample file: the first `rows` of a table, the first
    page, or the first messages. Does not need the lake. Raises FinegrainError if a source cannot be reached, or a table lacks its key or cursor
    column."""
    mapping = read_mapping(path)
    folder.mkdir(parents=True)
    found = [_sample_of_stream(folder, each, data) for each in mapping.entries(path) if each.entry.stream]
    if not any(entry.table or entry.http for entry in _entries(mapping)):
        return found
    where.extensions.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(config=lake.extension_options(where)) as con:
        con.execute("set timezone = 'UTC'")
        for number, reading in enumerate(open_readings(con, path, mapping)):
            pages = folder / str(number)
            pages.mkdir(parents=True)
            notes: tuple[str, ...] = ()
            if reading.table is not None:
                file = pages / "rows.parquet"
                try:
                    con.execute(f"create or replace temp table sampled as {reading.table.rows(limit=rows)}")
                except duckdb.Error as error:
                    raise databases.unreadable_value(con, reading.table, error) from None
                con.execute(
                    f"copy (select * exclude ({reading.table.unread}) from sampled) to {quote(str(file))} (format parquet)"
                )
                notes = tuple(reading.table.unreadable(_unreadable(con, reading.table, "sampled")))
            elif reading.entry.http is not None:
                apis.fetch(reading.entry.http, None, pages, reading.where, most=1)
                file = apis.take_apart(con, reading.entry.http, pages)
            rows_of = DataFile(file, reading.label, "parquet" if reading.table else "jsonl", file.stat().st_size)
            found.append(
                Entry(reading.where, reading.name, reading.entry, reading.zone, reading.number, (rows_of,), notes)
            )
    return found


def _sample_of_stream(folder: Path, of: NumberedEntry, data: str | Path | None) -> Entry:
    """A stream entry with its first messages as JSON lines. Messages that are not JSON objects are reported as they are for a file."""
    name, number, entry, zone, where = of
    assert entry.stream is not None
    place = entry.stream.stream_id
    file = folder / f"{name}.{number}.jsonl"
    with duckdb.connect() as con:
        con.register("messages", look_at_stream(entry, where, data))
        con.execute(
            "create table lines as select case when json_valid(line) then json(line) else to_json(left(line, 200)) end::varchar as line "
            "from (select coalesce(undecoded, text, '') as line from messages)"
        )
        found = con.execute(
            "select undecoded, count(*) from messages where undecoded is not null group by all order by all limit 10"
        )
        notes = tuple(f"{count:,} messages would be dead letters: {why}" for why, count in found.fetchall())
        con.execute(f"copy lines to {quote(str(file))} (format csv, header false, delim '\x01', quote '', escape '')")
        if not file.stat().st_size:
            file.write_text("\n")  # an empty file would be reported as an error
        seen = con.execute(
            "select distinct unnest(json_keys(line)) from lines where json_type(line) = 'OBJECT'"
        ).fetchall()
    if not entry.fields:  # it may have any field of the contract
        must = {each for names in REQUIRED[name] for each in names[:1]}
        entry = entry.reading(each for each in RAW_TABLES[name] if (each,) in seen or each in must)
    return Entry(where, name, entry, zone, number, (DataFile(file, place, "jsonl", file.stat().st_size),), notes)


# --- a database's table ------------------------------------------------------------------------------------------


def _read_table(
    con: duckdb.DuckDBPyConnection,
    where: Settings,
    reading: Reading,
    table: DatabaseTable,
    from_beginning: bool,
    batch_rows: int,
    run: str,
    now: datetime | None,
    advance: console.Advance,
) -> None:
    _begin(con, where, reading, table, None)
    try:
        batches = _batches(con, reading, table, from_beginning, batch_rows, now or _clock())
        unreadable: list[tuple[str, int]] = []
        for each in batches:
            versions.stage(
                con, each.select, reading.columns, reading.entry, reading.name, reading.deleted, reading.zone
            )
            unreadable += _unreadable(con, table, "__read")
            _take(con, where, reading, each.until, run, now or _clock())
            advance(1 / len(batches), reading.label)
        reading.report.notes += table.unreadable(unreadable)
        if reading.entry.deletes == "compare":
            # Into a table first: otherwise the lake's keys would be sent to the server as a filter.
            con.execute(
                "create or replace temp table __there as "
                f"select {versions.key_of(reading.columns, reading.entry, reading.name)} as __key from ({table.rows(only=reading.entry.key)})"
            )
            with lake.reading(where):
                versions.find_deleted(con, reading.source, reading.name, reading.label, reading.is_exploded)
            until = reading.before.position if reading.before else ""
            _land(con, where, reading, until, run, now or _clock())
    except duckdb.Error as error:
        if lake.busy(error):
            raise
        raise databases.unreadable_value(con, table, error) from None


def _unreadable(con: duckdb.DuckDBPyConnection, table: DatabaseTable, relation: str) -> list[tuple[str, int]]:
    """Counts of unreadable values in rows of a table, as `DatabaseTable.unreadable` takes them."""
    column = table.unread
    found = con.execute(f"select {column}, count(*) from {relation} where {column} <> '' group by all order by all")
    return [(str(numbers), int(count)) for numbers, count in found.fetchall()]


def _begin(
    con: duckdb.DuckDBPyConnection,
    where: Settings,
    reading: Reading,
    table: DatabaseTable | None,
    seen: dict[str, str] | None,
) -> None:
    """Look up where the last run stopped, and report columns that have changed since."""
    with lake.reading(where):
        reading.before = positions(con, reading.stream).get(reading.partition)
        reading.moved_at = _moved_at(con, reading)
        found = _last_seen(con, reading)
    was: dict[str, str] = json.loads(found[0]) if found else {}
    # An API response only has the keys that its rows happen to have.
    now = reading.columns if table is not None else {**was, **(seen or {})}
    if was == now:
        return
    reading.changed_schema = json.dumps(now)
    if not was:
        return
    say = reading.report.notes.append
    for name in now.keys() - was.keys():
        say(f"new column '{name}' ({now[name].lower()}): it is only kept in the payload; map it to a field to use it")
    for name in was.keys() - now.keys():
        say(f"column '{name}' was removed; the mapping does not read it")
    for name in now.keys() & was.keys():
        if now[name] != was[name]:
            say(f"column '{name}' is now {now[name].lower()} (it was {was[name].lower()})")


def _batches(
    con: duckdb.DuckDBPyConnection,
    reading: Reading,
    table: DatabaseTable,
    from_beginning: bool,
    batch_rows: int,
    now: datetime,
) -> list[Batch]:
    """The batches to read: the whole table, or by cursor from where the last run stopped, in batches of about `batch_rows` rows."""
    incremental = reading.entry.incremental
    if incremental is None:
        reading.cursor_kind = "the whole table"
        return [Batch(table.rows(), "")]
    name, kind = incremental.column, table.raw[incremental.column]
    cursor, family = table.own(name), _family(kind)
    say = reading.report.notes.append
    reading.cursor_kind = f"{name} {family if family == 'number' else table.columns[name].lower()}"
    start: str | None = None
    if reading.before is not None and not from_beginning:
        if reading.before.topic_id == reading.cursor_kind:
            start = reading.before.position or None
        else:
            say(f"the cursor was {reading.before.topic_id} and is {reading.cursor_kind} now: {FROM_THE_BEGINNING}")
    # Only rows with a cursor up to now move the position. The others (null, infinite, invalid or in the future) are read on every run;
    # otherwise rows written after them would be skipped.
    steady, future = f"{cursor} is not null", "false"
    if family == "time":
        moment = str(_one(con, f"select cast({_now_in(table, name, reading.zone, now)} as {kind})::varchar"))
        if start is not None:
            first = _earlier(con, start, incremental.overlap, kind)
            if _one(con, f"select {_literal(first, kind)} > {_literal(moment, kind)}"):
                say(f"the position {start} is in the future, probably because of a wrong clock: {FROM_THE_BEGINNING}")
                start = None
        latest = table.literal(name, moment)
        odd = table.reads[name].unreadable
        steady, future = f"{cursor} <= {latest} and not {odd}", f"({cursor} > {latest} and not {odd})"
    since = steady
    if start is not None:
        since += f" and {cursor} >= {table.literal(name, _earlier(con, start, incremental.overlap, kind))}"
    edges = _edges(con, table, name, since, batch_rows)
    if start is not None:
        newest = edges[-1] if edges else _one(con, f"select m::varchar from {table.ask(f'max({cursor}) as m', steady)}")
        if newest is not None and _one(con, f"select {_literal(newest, kind)} < {_literal(start, kind)}"):
            say(
                f"the newest {name} is {newest}, which is before {start}, where the last ingest stopped; reading resumes from {newest}. "
                "If the table was restored to an earlier state, run this with --from-beginning"
            )
            if not edges:
                since = (
                    f"{steady} and {cursor} >= {table.literal(name, _earlier(con, newest, incremental.overlap, kind))}"
                )
                edges = _edges(con, table, name, since, batch_rows)
    batches, after = [], since
    for edge in edges:
        batches.append(Batch(table.rows(f"{after} and {cursor} <= {table.literal(name, edge)}"), edge))
        after = f"{steady} and {cursor} > {table.literal(name, edge)}"
    stop = batches[-1].until if batches else start or ""
    others = f"({cursor} is null or not ({steady}))"
    counted = (
        f"count(*) as n, count(case when {future} then 1 end) as f, max(case when {future} then {cursor} end) as m"
    )
    [(count, to_come, last)] = con.execute(f"select n, f, m::varchar from {table.ask(counted, others)}").fetchall()
    if to_come:
        say(f"{name} is in the future, up to {last}, in {to_come:,} rows; they are read on every run until then")
    if count > to_come:
        say(
            f"{count - to_come:,} rows have no {name}"
            + (" that is a valid time" if family == "time" else "")
            + "; they are read on every run"
        )
    if count:
        batches.append(Batch(table.rows(others), stop))
    return batches


def _edges(
    con: duckdb.DuckDBPyConnection, table: DatabaseTable, column: str, condition: str, batch_rows: int
) -> list[str]:
    """The last cursor value of each batch; rows with the same value are never split."""
    cursors = table.ask(f"{table.own(column)} as c", condition)
    found = con.execute(
        f"select max(c)::varchar from (select c, (row_number() over (order by c) - 1) // {batch_rows} as n from {cursors}) group by n order by n"
    ).fetchall()
    return list(dict.fromkeys(str(row[0]) for row in found))


def _one(con: duckdb.DuckDBPyConnection, sql: str) -> Any:
    return con.execute(sql).fetchall()[0][0]


def _literal(text: str, kind: str) -> str:
    return f"cast({quote(text)} as {kind})"


def _earlier(con: duckdb.DuckDBPyConnection, start: str, overlap: str | int | None, kind: str) -> str:
    """The cursor value to read from: `start` minus the overlap."""
    family = _family(kind)
    back: str | int = OVERLAPS[family] if overlap is None else overlap
    if family == "time":
        return str(_one(con, f"select cast({_literal(start, kind)} - {span(str(back))} as {kind})::varchar"))
    return str(
        _one(con, f"select coalesce(try_cast(cast({quote(start)} as hugeint) - {int(back)} as {kind}), 0)::varchar")
    )


def _now_in(table: DatabaseTable, column: str, zone: str, now: datetime) -> str:
    """SQL of the current time in a column's terms: local times are in the mapping's zone, MySQL timestamps in UTC."""
    utc = timestamp_literal(now)
    if table.columns[column].endswith("TIME ZONE"):
        return utc if table.raw[column] == "TIMESTAMP" else f"timezone('UTC', {utc})"
    return f"timezone({quote(zone)}, timezone('UTC', {utc}))"


# --- an API's resource -------------------------------------------------------------------------------------------


def _read_api(
    con: duckdb.DuckDBPyConnection,
    where: Settings,
    reading: Reading,
    resource: Http,
    from_beginning: bool,
    run: str,
    now: datetime | None,
    advance: console.Advance,
) -> None:
    """Fetch all pages, then land their rows in one transaction: the new position is only known after the last page."""
    with lake.reading(where):
        before = positions(con, reading.stream).get(reading.partition)
    reading.cursor_kind = f"{resource.since.column} of an API" if resource.since else "the whole resource"
    start = (
        before.position or None if before and before.topic_id == reading.cursor_kind and not from_beginning else None
    )
    if start is not None and resource.since is not None:
        _, ahead = _furthest(con, reading, resource.since.column, f"select {quote(start)} as c", now or _clock())
        if ahead is not None:
            reading.report.notes.append(
                f"the position {start} is in the future, probably because of a wrong time: {FROM_THE_BEGINNING}"
            )
            start = None
    with scratch(where.home / "tmp", "ingest-") as folder:
        apis.fetch(resource, start, folder, reading.where)
        rows = apis.take_apart(con, resource, folder)
        select = ""
        if rows.stat().st_size:
            file = DataFile(rows, reading.label, "jsonl", rows.stat().st_size)
            try:
                opened = landing.open_file(con, file, look(file), reading.name, reading.entry, reading.where)
                landing.bind_opened(con, opened, reading.name, reading.entry, reading.zone, reading.where)  # its values
            except FinegrainError as error:
                raise FinegrainError(str(error).replace(str(rows), reading.stream_id)) from None
            reading.columns = opened.columns
            reading.report.notes += opened.notes
            bind(con, reading)
            select = f"select * exclude ({opened.own}n) from {opened.relation}"
        _begin(con, where, reading, None, dict.fromkeys(opened.names, "VARCHAR") if select else None)
        until = start or ""
        if select:
            versions.stage(
                con,
                select,
                reading.columns,
                reading.entry,
                reading.name,
                reading.deleted,
                reading.zone,
                has_payload=True,
            )
            # Pages shift while they are read, so a row may occur twice: keep the later one.
            ours = free_prefix(reading.columns)
            con.execute(
                f"delete from __read where {ours}key is not null and {ours}row not in "
                "(select max(__row) from __staged where __key is not null group by __key)"
            )
            if resource.since is not None:
                column = identifier(resource.since.column)
                read = f"select {column} as c from __read where {column} is not null union all select {quote(until)} where {quote(until)} <> ''"
                until, ahead = _furthest(con, reading, resource.since.column, read, now or _clock())
                if ahead is not None:
                    said = f"is in the future, up to {ahead}, in some rows, so they do not move the position"
                    reading.report.notes.append(f"{resource.since.column} {said}")
                unread = _one(con, "select count(*) from __cursors where n is null and t is null")
                if unread:
                    said = "is neither a number nor a time, so they do not move the position"
                    reading.report.notes.append(f"{unread:,} rows whose {resource.since.column} {said}")
            _take(con, where, reading, until, run, now or _clock())
        if reading.entry.deletes == "compare":
            con.execute(
                "create or replace temp table __there as "
                + ("select __key from __staged" if select else "select null::varchar as __key")
            )
            with lake.reading(where):
                versions.find_deleted(con, reading.source, reading.name, reading.label, reading.is_exploded)
            bind(con, reading)
            _land(con, where, reading, until, run, now or _clock())
    advance(1, reading.label)


def _furthest(
    con: duckdb.DuckDBPyConnection, reading: Reading, column: str, cursors: str, now: datetime
) -> tuple[str, str | None]:
    """The greatest cursor value up to now ("" if there is none) and the greatest one in the future. `cursors` is a SELECT of the values as
    text, `c`. They are kept in `__cursors`, as numbers and times. A number counts as a time if the mapping reads a time from its column."""
    is_moment = any(is_time(name) and source.column == column for name, source in reading.entry.fields.items())
    number = "case when isfinite(try_cast(c as double)) then try_cast(c as double) end"
    ahead = f"t > {timestamp_literal(now)}" + ("" if is_moment else " and n is null")
    con.execute(
        f"create or replace temp table __cursors as select *, coalesce({ahead}, false) as is_ahead from "
        f"(select c, {number} as n, {landing.parse_time('c', quote(reading.zone))} as t from ({cursors}))"
    )
    # Exclude values that cannot be compared: a null would sort as the greatest.
    [(until, last)] = con.execute(
        "select arg_max(c, row(n, t)) filter (not is_ahead), arg_max(c, row(n, t)) filter (is_ahead) "
        "from __cursors where n is not null or t is not null"
    ).fetchall()
    return until or "", last


# --- a mapping that changed --------------------------------------------------------------------------------------


def _last_seen(con: duckdb.DuckDBPyConnection, reading: Reading) -> tuple[str, str] | None:
    """The columns (as JSON) and the mapping fingerprint of the last run; None before the first run."""
    found = con.execute(
        f"select columns, mapping from lake.raw.schemas where source = {quote(reading.source)} "
        f"and place = {quote(reading.stream_id)} and part = {quote(reading.partition)} order by rowid desc limit 1"
    ).fetchall()
    return (str(found[0][0]), str(found[0][1])) if found else None


def _moved_at(con: duckdb.DuckDBPyConnection, reading: Reading) -> datetime:
    """When rows last landed."""
    moved = _one(
        con,
        f"select max(moved_at) from lake.raw.positions where {reading.stream.condition} and part = {quote(reading.partition)}",
    )
    return moved or datetime.min


def _note_seen(con: duckdb.DuckDBPyConnection, reading: Reading, columns: str, now: datetime) -> None:
    """Within a writing transaction."""
    texts = (reading.source, reading.stream_id, reading.partition, columns)
    mapping = reading.entry.fingerprint(reading.zone)
    con.execute(
        f"insert into lake.raw.schemas values ({', '.join(map(quote, texts))}, "
        f"{timestamp_literal(now)}, {quote(mapping)})"
    )


def _remap(con: duckdb.DuckDBPyConnection, where: Settings, reading: Reading, asked: Asked) -> list[str]:
    """If the mapping changed since the last run, or with `asked.remap`, map the rows in the lake again from their payload and replace those that
    differ. Without a decision by the user nothing is changed; the returned lines say what would be."""
    with lake.reading(where):
        seen = _last_seen(con, reading)
    if seen is None or (seen[1] == reading.entry.fingerprint(reading.zone) and not asked.remap):
        return []
    changed = seen[1] != reading.entry.fingerprint(reading.zone)
    say, found = reading.report.notes.append, deliveries.Changes(reading.label)
    with lake.reading(where):
        # A replacement must land after the row it replaces, even if the clock was set back.
        came = f"select max(_ingested_at) + interval 1 microsecond from lake.raw.{reading.name} where {_of(reading)}"
        now = max(asked.now, _one(con, came) or asked.now)
        if not asked.keep:
            found = _compare(con, reading, now, seen[1].endswith(EXPLODED))
    if found.any and not asked.remap:
        return [
            f"  {reading.name} {reading.stream_id}: {found.replaced:,} rows would be replaced, {found.deleted:,} deleted, "
            f"{found.holds - found.replaced:,} unchanged"
        ]
    if not found.any and not changed:
        return []

    def work() -> None:
        with lake.writing(con, where):
            if found.any:
                deliveries.land(con, reading.source, reading.name, now)
            _note_seen(con, reading, seen[0], asked.now)

    lake.retry(work)
    reading.report.replaced, reading.report.taken_back = found.replaced, found.deleted
    if changed:
        say(
            "the mapping changed: "
            + ("loaded rows are kept as they are" if asked.keep else "loaded rows were mapped again")
            + "; rows that the former `where` excluded come with --from-beginning"
        )
    return []


def _of(reading: Reading) -> str:
    """SQL: whether a row of the raw table was loaded by this entry."""
    first, end = quote(reading.label + "/"), quote(reading.label + "0")
    return f"_source = {quote(reading.source)} and _position >= {first} and _position < {end}"


def _compare(con: duckdb.DuckDBPyConnection, reading: Reading, now: datetime, was_exploded: bool) -> deliveries.Changes:
    """Map the rows in the lake again, stage them, and find what changed."""
    first, of = quote(reading.label + "/"), _of(reading)
    landed = f"select *, {quote(reading.label)} as delivery from lake.raw.{reading.name} where {of}"
    position = "_position"
    if reading.is_exploded or was_exploded:  # one of several rows of a record is enough
        position = f"regexp_replace(_position, '{IN_RECORD}(@[^@]*)$', '\\2')"
    rows = (
        f"select substr({position}, {len(reading.label) + 2}) as __n, any_value(payload) as payload, any_value(_error) as _error "
        f"from lake.raw.{reading.name} as t where {of} and not {deliveries.is_deleted(reading.name, 't')} group by 1"
    )
    if reading.table is None:
        opened = landing.open_landed(
            con, rows, reading.stream_id, reading.name, reading.entry, reading.where, is_lenient=True
        )
        reading.report.notes += opened.notes
    else:
        # As text first: a column may have had another type when the row was loaded.
        shape = json.dumps(dict.fromkeys(reading.columns, "VARCHAR"))
        typed = ", ".join(
            f"try_cast(__row.{identifier(name)} as {kind}) as {identifier(name)}"
            for name, kind in reading.columns.items()
        )
        ours = free_prefix(reading.columns)
        relation = (
            f"(select {typed}, __n as {ours}n, null::varchar as {ours}bad, payload as {ours}payload "
            f"from (select *, from_json(payload, {quote(shape)}) as __row from ({rows})))"
        )
        opened = Opened(f"{reading.table.origin} (as the lake has it)", reading.columns, relation, is_typed=True)
    bound = landing.bind_opened(con, opened, reading.name, reading.entry, reading.zone, reading.where)
    select = landing.select(bound, reading.source, f"{first} || __n", now)
    deliveries.stage(con, reading.name, [(reading.label, select)], first=True)
    deliveries.compare(con, reading.name, landed)
    return deliveries.in_all(con, reading.name, reading.label)


# --- both --------------------------------------------------------------------------------------------------------


def _take(
    con: duckdb.DuckDBPyConnection, where: Settings, reading: Reading, until: str, run: str, now: datetime
) -> None:
    """Land the new rows of the staged batch, and move the position."""
    _check_keys(con, reading)
    with lake.reading(where):
        versions.find_new(con, reading.source, reading.name, reading.label, reading.is_exploded)
    [(read, deleted)] = con.execute("select count(*), count(*) filter (__is_deleted) from __staged").fetchall()
    [(news,)] = con.execute("select count(*) from __new_rows").fetchall()
    reading.report.read += read
    reading.report.unchanged += read - deleted - news
    if reading.bound is not None and news:
        if reading.is_exploded:
            landing.check_elements(con, reading.bound.opened, reading.name, reading.entry, reading.where)
        landing.check_sample(con, reading.bound, reading.where)
    _land(con, where, reading, until, run, now)


def _check_keys(con: duckdb.DuckDBPyConnection, reading: Reading) -> None:
    shown = f"[{', '.join(reading.entry.key)}]"
    [(rows, keyed, different)] = con.execute(
        "select count(*), count(__key), count(distinct __key) from __staged where __bad is null"
    ).fetchall()
    if keyed < rows:
        raise FinegrainError(
            f"{reading.where}.key: {rows - keyed:,} rows of {reading.stream_id} have no {shown}; name columns that are never null"
        )
    if different < keyed:
        key = _one(con, "select min(__key) from (select __key from __staged group by 1 having count(*) > 1)")
        raise FinegrainError(
            f"{reading.where}.key: {shown} is not unique in {reading.stream_id}: several rows have '{str(key)[:60]}'; "
            "add columns to the key"
        )


def _land(
    con: duckdb.DuckDBPyConnection, where: Settings, reading: Reading, until: str, run: str, now: datetime
) -> None:
    """The transaction: rows, deletions, the current columns, and the position, together."""
    bound, entry = reading.bound, reading.entry
    # A version must land after earlier ones, even if the clock was set back.
    now = max(now, reading.moved_at)
    assert bound is not None
    to = Position(reading.partition, until, reading.cursor_kind, run)
    [(news,)] = con.execute("select count(*) from __new_rows").fetchall()
    [(lost,)] = con.execute("select count(*) from __deleted").fetchall()
    before = reading.before
    if not news and not lost and reading.changed_schema is None and before and replace(before, owner=run) == to:
        return
    may_fail = entry.where is not None or isinstance(entry.available_at, Sql)
    may_fail = may_fail or reading.is_exploded or any(source.sql is not None for source in entry.fields.values())
    malformed = 0
    if news and (may_fail or reading.table is None):
        malformed = int(_one(con, f"select count(__bad) from ({bound.rows})"))
    shown = ", ".join(identifier(name) for name in columns_of(reading.name))
    select = landing.select(bound, reading.source, f"{quote(reading.label + '/')} || __n", now)
    # A forgotten person's row does not land at all: its position has its key.
    select = f"select * from ({select}) where _error is distinct from {quote(landing.FORGOTTEN)}"
    known = "__deleted_at" if entry.available_at != "now" else None
    deletions = versions.deletions(
        reading.source, reading.name, reading.label, entry.key, known, now, reading.is_exploded
    )
    # Customers and products keep their history.
    may_vanish = reading.is_exploded and reading.name in ("events", "order_items", "refunds")

    def work() -> tuple[int, int]:
        landed = deleted = 0
        with lake.writing(con, where):
            if news:
                landed = int(_one(con, f"insert into lake.raw.{reading.name} ({shown}) {select}"))
                if may_vanish:
                    vanished = versions.vanished(reading.source, reading.name, reading.label, entry.key, now)
                    deleted += int(_one(con, f"insert into lake.raw.deletions {vanished}"))
            if lost:
                deleted += int(_one(con, f"insert into lake.raw.deletions {deletions}"))
            if reading.changed_schema is not None:
                _note_seen(con, reading, reading.changed_schema, now)
            move(con, reading.stream, {reading.partition: (before, to)}, now)
        return landed, deleted

    landed, deleted = lake.retry(work)
    reading.before, reading.moved_at, reading.changed_schema = to, now, None
    reading.report.landed += landed
    reading.report.malformed += malformed
    reading.report.deleted += deleted


def _clock() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
