"""`finegrain load`: load files into the lake by a mapping. All files of a mapping land in one transaction, and each file only once.

If the mapping has changed since files were loaded, their rows are compared with what the mapping would make of them now (`deliveries`). The
user decides whether they are replaced or kept; otherwise nothing lands.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from orchestration.config.project import PACKAGE
from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError, console
from orchestration.ingest import deliveries, landing, personal
from orchestration.lake import lake, shop
from orchestration.mapping.contracts import IN_RECORD, columns
from orchestration.mapping.mapping import Csv, Table, format_of, mapping_files, nearest, read_mapping
from orchestration.sources.files import DataFile, EmptyFile, Look, find, look
from orchestration.sources.patterns import may_name
from orchestration.sql.text import quote, timestamp_literal

#: Paths from the command line that replace the mapping's `files`: for its only table, or by table.
Paths = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass
class FileReport:
    """The result of loading one file. `malformed` of its `rows` could not be read and landed with a reason. `skipped` says why nothing was done;
    `notes` are for the user. If a delivery is loaded again, or its mapping changed, `rows` are new or changed, `replaced` of them replace a
    previous row, `unchanged` were in the lake before, and `gone` are deleted because the delivery no longer has them (reported with the first
    of its files)."""

    source: str
    table: str
    file: str
    rows: int = 0
    malformed: int = 0
    replaced: int = 0
    unchanged: int = 0
    gone: int = 0
    skipped: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class LoadReport:
    """The result of a load. `snapshot` is the lake's newest after it; `seconds` is wall time."""

    files: list[FileReport]
    snapshot: int
    seconds: float

    @property
    def rows(self) -> int:
        """Rows landed by this load."""
        return sum(file.rows for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "rows": self.rows}


@dataclass(frozen=True)
class Entry:
    """One mapping entry with its files: `where` names it in errors, `number` counts the entries of its table. `notes` are about unreadable values
    of a database table."""

    where: str
    table: str
    mapping: Table
    zone: str
    number: int
    files: tuple[DataFile, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One mapping, read and checked, with its files. `is_whole`: all of them, not only some from the command line."""

    path: Path
    source: str
    entries: tuple[Entry, ...]
    is_whole: bool = True

    @property
    def size(self) -> int:
        """Total size in bytes."""
        return sum(file.size for entry in self.entries for file in entry.files)


def plan(mapping: str | Path, paths: Paths | None = None, data: str | Path | None = None) -> list[Plan]:
    """Read one mapping, or all of a folder, and find their files. No data is read yet; entries without files are left out.

    `paths` replace the mapping's `files` (`table=path` if the mapping fills several tables); `data` is the base folder of its relative paths
    (default: the current folder).
    """
    found = mapping_files(mapping)
    if paths and len(found) > 1:
        raise FinegrainError(f"{mapping}: paths go with one mapping, and this folder holds {len(found)}")
    base = Path(data) if data is not None else Path.cwd()
    if not base.is_dir():
        raise FinegrainError(f"{console.shown(base)}: no such data folder")
    plans = []
    for path in found:
        read = read_mapping(path)
        given = _by_table(path, paths, {name: len(entries) for name, entries in read.tables.items()})
        entries = []
        for table, number, entry, zone, where in read.entries(path):
            if table in given:
                files = find(given[table], entry.format, Path.cwd())
            elif entry.files:
                files = _find(path, entry, base)
            else:
                continue
            if table == "ga4_events" and any(file.format == "csv" for file in files):
                raise FinegrainError(f"{where}: GA4's export is nested; export it as parquet or jsonl, not csv")
            entries.append(Entry(where, table, entry, zone, number, tuple(files)))
        plans.append(Plan(path, read.source, tuple(entries), not given))
    return plans


def _find(path: Path, entry: Table, base: Path) -> list[DataFile]:
    """The files of an entry. Data of the examples is not part of the project."""
    try:
        return find(entry.files, entry.format, base)
    except FinegrainError as error:
        examples = PACKAGE / "examples"
        if not path.resolve().is_relative_to(examples.resolve()):
            raise
        raise FinegrainError(f"{error}; see {examples / 'README.md'} for where to get this example's data") from None


def no_files(path: Path) -> FinegrainError:
    """The error for a mapping without files."""
    streams = any(entry.stream for mapped in read_mapping(path).tables.values() for entry in mapped)
    how = f"a stream; run `finegrain stream {path}`" if streams else f"tables or APIs; run `finegrain ingest {path}`"
    return FinegrainError(f"{path}: its rows come from {how}")


def _by_table(path: Path, paths: Paths | None, tables: dict[str, int]) -> dict[str, list[str]]:
    """The paths of the command line, by table."""
    if not paths:
        return {}
    if isinstance(paths, Mapping):
        given = {table: list(files) for table, files in paths.items()}
    else:
        given = {}
        for text in paths:
            table, mark, rest = text.partition("=")
            if mark and table in tables:
                given.setdefault(table, []).append(rest)
            elif len(tables) == 1:
                given.setdefault(next(iter(tables)), []).append(text)
            else:
                raise FinegrainError(
                    f"{text}: the mapping {path} fills several tables; name one, as in {next(iter(tables))}={rest or text}"
                )
    for table in given:
        if table not in tables:
            raise FinegrainError(f"{path}: the mapping does not fill '{table}'{nearest(table, tables)}")
        if tables[table] > 1:
            raise FinegrainError(f"{path}: {table} has several entries, so their files cannot be replaced by paths")
    return given


def load(
    mapping: str | Path,
    paths: Paths | None = None,
    data: str | Path | None = None,
    remap: bool = False,
    keep: bool = False,
    *,
    where: Settings | None = None,
    now: datetime | None = None,
    quiet: bool = True,
) -> LoadReport:
    """Load the files of a mapping (or of every mapping in a folder) into the lake.

    The files of a mapping land in one transaction. A file that is already loaded (same source, table, name and content) is skipped. If the
    current mapping would change loaded rows, nothing lands, unless `remap` replaces them or `keep` leaves them as they are. A delivery that
    arrives again replaces the previous one (`deliveries`). `now` is the arrival time, naive UTC.
    Raises FinegrainError; nothing of the mapping that failed has landed then.
    """
    if remap and keep:
        raise FinegrainError("--remap replaces loaded rows, and --keep leaves them as they are; give only one of them")
    where = where or settings()
    started = time.monotonic()
    plans = plan(mapping, paths, data)
    if len(plans) == 1 and not plans[0].entries:
        raise no_files(plans[0].path)
    reports: list[FileReport] = []
    mappings = shop.mappings_at(mapping)
    # Each byte counts twice for progress: once when the file is inspected, once when it lands.
    # Without the lock, two loads at once could both land the same file.
    one = lake.exclusive(where, "load")
    with console.progress("load", 2 * sum(each.size for each in plans), quiet=quiet) as advance, one:
        con = lake.connect(where)
        try:
            personal.register(con, where)
            for place in lake.places(where):
                if not os.access(place, os.W_OK):  # otherwise the commit would fail, after all the work
                    raise FinegrainError(f"{place}: the lake cannot be written; check its permissions")
            shop.check(con, mappings)
            for each in plans:
                asked = Asked(remap, keep, now or datetime.now(UTC).replace(tzinfo=None))
                reports += _load(con, where, each, asked, advance)
            shop.record(con, where, mappings, now)
            [(snapshot,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
        finally:
            con.close()
    return LoadReport(reports, int(snapshot), time.monotonic() - started)


def fingerprint_of(entries: Sequence[Entry]) -> str:
    """A fingerprint of how these entries, which all read one file, map it."""
    return " ".join(entry.mapping.fingerprint(entry.zone) for entry in sorted(entries, key=lambda entry: entry.number))


@dataclass(frozen=True)
class Asked:
    """The options of a load, and its time."""

    remap: bool
    keep: bool
    now: datetime


@dataclass
class FileLanding:
    """One file of a load. `status` is what to do with it, `report` the result; `is_here`: the file itself was read, not only its rows in the
    lake."""

    file: str
    fingerprint: str
    mapping: str
    status: deliveries.FileStatus
    report: FileReport
    is_here: bool = True
    changes: deliveries.Changes | None = None


@dataclass
class Landing:
    """What a load lands in one raw table: SELECTs of new files (`fresh`), and of files that are `compared` with their rows in the lake. `parts`
    are the files by the prefix of their rows' positions; `kept` are files whose mapping changed and whose rows are kept as they are;
    `expected` is the number of rows each SELECT of a file must return, counted from the file's bytes."""

    table: str
    fresh: list[tuple[DataFile, str]] = field(default_factory=list)
    compared: list[tuple[DataFile, str]] = field(default_factory=list)
    deliveries: dict[DataFile, str] = field(default_factory=dict)
    parts: dict[str, FileLanding] = field(default_factory=dict)
    kept: list[FileLanding] = field(default_factory=list)
    expected: dict[str, int] = field(default_factory=dict)

    def moved(self) -> set[str]:
        """The deliveries with new, changed or deleted rows."""
        return {
            part.changes.delivery
            for part in self.parts.values()
            if part.changes is not None and (part.changes.any or not part.status.is_there)
        }


def _load(
    con: duckdb.DuckDBPyConnection, where: Settings, plan: Plan, asked: Asked, advance: console.Advance
) -> list[FileReport]:
    """Load one mapping: inspect and bind all files, compare those loaded before, then land everything in one transaction."""
    reports: list[FileReport] = []
    looks: dict[tuple[str, str], Look] = {}
    looked = Looked()
    empty: dict[tuple[str, int], set[DataFile]] = {}
    readers: dict[tuple[str, str], list[Entry]] = {}
    first_reader: dict[DataFile, Entry] = {}
    for entry in plan.entries:
        nothing_in = empty.setdefault((entry.table, entry.number), set())
        for file in entry.files:
            try:
                looks[entry.table, file.name] = looked.at(file, entry.mapping)
                readers.setdefault((entry.table, file.name), []).append(entry)
                first_reader.setdefault(file, entry)
            except EmptyFile:
                nothing_in.add(file)
                if len(nothing_in) == len(entry.files):
                    raise
            advance(file.size, file.name)
    mapped = {key: fingerprint_of(entries) for key, entries in readers.items()}
    with lake.reading(where):
        loads = deliveries.Loads(con, plan.source)
        patterns = {entry.table: entry.mapping.deliveries(entry.table) for entry in plan.entries}
        statuses = {
            table: loads.statuses(
                table,
                names,
                {name: (seen.fingerprint, mapped[of, name]) for (of, name), seen in looks.items() if of == table},
                asked.remap,
                asked.keep,
            )
            for table, names in patterns.items()
        }
        replaces = any(status.delivery for table in statuses.values() for status in table.values())
        now = deliveries.moment(con, plan.source, loads, asked.now, replaces or asked.remap)
    landings = {table: Landing(table) for table in patterns}
    for entry in plan.entries:
        landing_of = landings[entry.table]
        for file in entry.files:
            if file in empty[entry.table, entry.number]:
                reports.append(FileReport(plan.source, entry.table, file.name, skipped="the file is empty (0 bytes)"))
                advance(file.size, file.name)
                continue
            key = (entry.table, file.name)
            status, seen = statuses[entry.table][file.name], looks[key]
            report = FileReport(plan.source, entry.table, file.name, skipped=status.skipped)
            reports.append(report)
            # Positions are unique: a second entry over the same file must not reuse those of the first.
            name = loads.name(entry.table, file.name, seen.fingerprint)
            suffix = f".{entry.number + 1}" if name in landing_of.parts else ""
            part = FileLanding(file.name, seen.fingerprint, mapped[key], status, report)
            if status.skipped:
                if status.is_remapped:
                    landing_of.kept.append(part)
                advance(file.size, file.name)
                continue
            file_opened = looked.opened(con, file, entry.table, entry.mapping, entry.where)
            # A row that cannot be read lands once, even if several entries read the file.
            is_first = first_reader[file] is entry
            bound = landing.bind_opened(
                con, file_opened, entry.table, entry.mapping, entry.zone, entry.where, malformed=is_first
            )
            landing.check_sample(con, bound, entry.where)
            report.notes += bound.opened.notes + status.notes
            status.notes = []
            landing_of.parts.setdefault(name, part)
            select = landing.select(bound, plan.source, landing.in_file(name, suffix), now)
            landing_of.expected[select] = bound.expected(con)
            (landing_of.compared if status.delivery else landing_of.fresh).append((file, select))
            if status.delivery:
                landing_of.deliveries[file] = status.delivery
    with lake.reading(where):
        for each in landings.values():
            reports += _bind_missing(con, plan, each, loads, patterns[each.table], set(looks), asked, now)
    try:
        for each in landings.values():
            if each.compared:
                with lake.reading(where):
                    _compare(con, plan.source, each, loads, patterns[each.table], advance)
        _refuse(plan, list(landings.values()), asked)
        lake.retry(lambda: _land(con, where, plan, list(landings.values()), now, advance))
    except _Failed as failed:
        raise _of_file(con, failed) from None
    except duckdb.Error as error:
        raise FinegrainError(
            f"the lake cannot be written: {' '.join(str(error).split())}; nothing has landed"
        ) from None
    return reports


class Looked:
    """A cache of inspected files, for entries that read the same file in the same way."""

    def __init__(self) -> None:
        self._seen: dict[tuple[DataFile, str | None, Csv | None], Look] = {}
        self._opened: dict[tuple[DataFile, str | None, Csv | None], landing.Opened] = {}

    def at(self, file: DataFile, entry: Table) -> Look:
        """Inspect a file as an entry reads it. Raises FinegrainError, for an empty file EmptyFile."""
        key = (file, entry.encoding, entry.csv)
        if key not in self._seen:
            self._seen[key] = look(*key)
        return self._seen[key]

    def opened(
        self, con: duckdb.DuckDBPyConnection, file: DataFile, table: str, entry: Table, where: str
    ) -> landing.Opened:
        """Open a file as an entry reads it. CSV is opened once for all entries with the same CSV settings."""
        key = (file, entry.encoding, entry.csv)
        if key not in self._opened:
            opened = landing.open_file(con, file, self.at(file, entry), table, entry, where)
            if file.format != "csv":
                return opened
            self._opened[key] = opened
        return replace(self._opened[key], notes=list(self._opened[key].notes))


def _bind_missing(
    con: duckdb.DuckDBPyConnection,
    plan: Plan,
    of: Landing,
    loads: deliveries.Loads,
    patterns: Sequence[str],
    here: set[tuple[str, str]],
    asked: Asked,
    now: datetime,
) -> list[FileReport]:
    """Bind files that are in the lake but no longer present: with `remap`, or as part of a delivery that is compared, their rows are mapped again
    from their payload in the lake."""
    compared = {part.status.delivery for part in of.parts.values() if part.status.is_there}
    replaced = {part.status.delivery for part in of.parts.values()} - compared
    missing: dict[str, tuple[str, deliveries.Loaded]] = {}
    for delivery, before in loads.of(of.table, patterns).items():
        for _, each in before:
            wanted = delivery in compared or (asked.remap and plan.is_whole and delivery not in replaced)
            if wanted and each.name not in of.parts:
                missing[each.name] = (delivery, each)
    if not missing:
        return []
    names = ", ".join(map(quote, missing))
    alive = (
        f"select *, regexp_replace(_position, '{deliveries.IN_FILE}', '') as __name from lake.raw.{of.table} as t "
        f"where _source = {quote(plan.source)} and not {deliveries.is_deleted(of.table, 't')}"
    )
    counts = con.execute(
        f"select __name, count(*) from ({alive}) where __name in ({names}) group by 1 order by 1"
    ).fetchall()
    reports = []
    for name, count in counts:
        delivery, each = missing[str(name)]
        report = FileReport(plan.source, of.table, each.file, unchanged=int(count))
        reports.append(report)
        entries = [
            entry
            for entry in plan.entries
            if entry.table == of.table
            and any(may_name(pattern, entry.mapping.format, each.file) for pattern in entry.mapping.files)
        ]
        kind = next((entry.mapping.format or format_of(each.file) for entry in entries), None)
        stays = f"the file is not here, so its {count:,} rows stay as they are: "
        undo = f"`finegrain unload {plan.source}.{of.table} --file {shlex.quote(each.file)}` removes them"
        if not entries or len({entry.mapping.files for entry in entries}) > 1:
            which = "several entries may have read it" if entries else "no entry reads it any more"
            report.notes.append(f"{stays}{which}; {undo}")
        elif kind not in ("csv", "jsonl"):
            report.notes.append(f"{stays}rows of a Parquet file cannot be mapped again from the lake; {undo}")
        else:
            report.notes.append("the file is not here: its rows are mapped again from their payload in the lake")
            # One record of the file may have become several rows: by two entries, or by the elements of a list.
            rows = (
                f"select cast(regexp_extract(_position, '#([0-9]+)(?:{IN_RECORD})?[0-9.]*$', 1) as bigint) as __n, any_value(payload) as payload, "
                f"any_value(_error) as _error from ({alive}) where __name = {quote(str(name))} group by 1"
            )
            file = DataFile(Path(each.file), str(name), kind, 0)
            is_remapped = each.mapping != (mapping := fingerprint_of(entries))
            status = deliveries.FileStatus(delivery=delivery, is_there=True, is_remapped=is_remapped)
            of.parts[str(name)] = FileLanding(each.file, each.fingerprint, mapping, status, report, is_here=False)
            of.deliveries[file] = delivery
            for place, entry in enumerate(entries):
                opened = landing.open_landed(con, rows, each.file, of.table, entry.mapping, entry.where)
                bound = landing.bind_opened(
                    con, opened, of.table, entry.mapping, entry.zone, entry.where, malformed=not place
                )
                suffix = f".{entry.number + 1}" if place else ""
                of.compared.append((file, landing.select(bound, plan.source, landing.in_file(str(name), suffix), now)))
    return reports


def _refuse(plan: Plan, landings: Sequence[Landing], asked: Asked) -> None:
    """Raise FinegrainError if loaded rows would change and the user has not decided what to do with them."""
    lines = []
    for each in landings:
        moved = each.moved()
        for part in each.parts.values():
            status, changes = part.status, part.changes
            if changes is None or not status.is_there or asked.remap:
                continue
            if status.delivery not in moved:
                part.report.skipped = "already loaded; the mapping changed, but none of its rows"
            else:
                lines.append(
                    f"  {each.table} {console.shown(part.file)}: {changes.replaced:,} rows would be replaced, {changes.deleted:,} deleted, "
                    f"{changes.added:,} added, {changes.holds - changes.replaced - changes.added:,} unchanged"
                )
    if lines:
        raise FinegrainError(
            f"{plan.path}: the mapping has changed since these files were loaded; nothing has landed\n"
            + "\n".join(lines)
            + f"\n  finegrain load {plan.path} --remap replaces them"
            + f"\n  finegrain load {plan.path} --keep leaves loaded rows as they are, and loads new files by the new mapping"
        )


class _Failed(Exception):
    """A batch of files that failed to land, with DuckDB's error."""

    def __init__(self, batch: list[tuple[DataFile, str]], error: duckdb.Error) -> None:
        super().__init__(str(error))
        self.batch, self.error = batch, error


def _compare(
    con: duckdb.DuckDBPyConnection,
    source: str,
    of: Landing,
    loads: deliveries.Loads,
    patterns: Sequence[str],
    advance: console.Advance,
) -> None:
    """Stage files that were loaded before, and find new, changed and deleted rows. This happens outside the transaction, to keep that short:
    other loads wait for it."""
    for number, batch in enumerate(landing.batches(of.compared)):
        try:
            rows = [(of.deliveries[file], select) for file, select in batch]
            deliveries.stage(con, of.table, rows, first=number == 0)
        except duckdb.Error as error:
            raise _Failed(batch, error) from None
        for file, _ in batch:
            advance(file.size, file.name)
    compared = set(of.deliveries.values())
    former = {
        (each.name, delivery)
        for delivery, before in loads.of(of.table, patterns).items()
        if delivery in compared
        for _, each in before
    }
    deliveries.compare(con, of.table, deliveries.of_files(source, of.table, former))
    found = deliveries.changes(con, of.table)
    for name, part in of.parts.items():
        if part.status.delivery:
            part.changes = found.pop(name, deliveries.Changes(part.status.delivery))
    for other in found.values():  # files that are no longer part of the delivery
        first = next(part for part in of.parts.values() if part.status.delivery == other.delivery)
        assert first.changes is not None
        first.changes.deleted += other.deleted
    here = [(file, text) for file, text in of.compared if text in of.expected]
    read = sum(part.changes.holds for part in of.parts.values() if part.changes is not None and part.is_here)
    _check_count(con, here, of.expected, read)


def _check_count(
    con: duckdb.DuckDBPyConnection, batch: list[tuple[DataFile, str]], expected: Mapping[str, int], read: int
) -> None:
    """Check that as many rows were read as the files contain. Raises FinegrainError that names the file."""
    held = sum(expected[text] for _, text in batch)
    if read == held:
        return
    for file, text in batch:
        [(rows,)] = con.execute(f"select count(*) from ({text})").fetchall()
        if rows != expected[text]:
            raise landing.miscounted(str(file), rows, expected[text])
    raise landing.miscounted(", ".join(str(file) for file, _ in batch), read, held)


def _land(
    con: duckdb.DuckDBPyConnection,
    where: Settings,
    plan: Plan,
    landings: list[Landing],
    now: datetime,
    advance: console.Advance,
) -> None:
    """The transaction: rows, deletions, and the record of each file, together."""
    recorded = [
        (each, part)
        for each in landings
        for part in (*each.parts.values(), *each.kept)
        if part.status.is_remapped and (part in each.kept or part.status.delivery not in each.moved())
    ]
    if not recorded and not any(each.fresh or each.moved() for each in landings):
        for each in landings:
            _report(each, {})
        return
    with lake.writing(con, where):
        for each in landings:
            shown = ", ".join(f'"{name}"' for name in columns(each.table))
            for batch in landing.batches(each.fresh):
                union = " union all ".join(text for _, text in batch)
                try:
                    [(landed,)] = con.execute(f"insert into lake.raw.{each.table} ({shown}) {union}").fetchall()
                except duckdb.Error as error:
                    if isinstance(error, duckdb.TransactionException) or lake.busy(error):
                        raise
                    raise _Failed(batch, error) from None
                _check_count(con, batch, each.expected, landed)
                for file, _ in batch:
                    advance(file.size, file.name)
            if each.compared and each.moved():
                deliveries.land(con, plan.source, each.table, now)
        # Literals instead of parameters: to read a list of parameters, DuckDB would import pandas if it is installed.
        moment = timestamp_literal(now)
        noted: list[str] = []
        for each in landings:
            counts = con.execute(
                f"select regexp_replace(_position, '{deliveries.IN_FILE}', ''), count(*), count(_error) from lake.raw.{each.table} "
                f"where _ingested_at = {moment} and _source = {quote(plan.source)} group by 1"
            ).fetchall()
            _report(each, {str(name): (int(rows), int(bad)) for name, rows, bad in counts})
            moved = each.moved()
            for name, part in each.parts.items():
                holds = part.changes.holds if part.changes else part.report.rows
                if part.changes is None or part.status.delivery in moved:
                    texts = (plan.source, each.table, part.file, part.fingerprint)
                    noted.append(
                        f"({', '.join(map(quote, texts))}, {holds}, {moment}, {quote(name)}, {quote(part.mapping)})"
                    )
        if noted:
            con.execute(f"insert into lake.raw.loads values {', '.join(noted)}")
        for each, part in recorded:
            con.execute(
                f"update lake.raw.loads set mapping = {quote(part.mapping)} where source = {quote(plan.source)} "
                f"and raw_table = {quote(each.table)} and file = {quote(part.file)} and fingerprint = {quote(part.fingerprint)}"
            )


def _report(of: Landing, landed: Mapping[str, tuple[int, int]]) -> None:
    """Fill in the reports from `landed`: rows and malformed rows by position prefix."""
    for name, part in of.parts.items():
        report, changes = part.report, part.changes
        if report.skipped:
            continue
        report.rows, report.malformed = landed.get(name, (0, 0))
        if changes is not None:
            report.replaced, report.gone = changes.replaced, changes.deleted
            report.unchanged = changes.holds - changes.added - changes.replaced


def _of_file(con: duckdb.DuckDBPyConnection, failed: _Failed) -> FinegrainError:
    """Find the file that could not be read, by reading each one alone. If all can be read, the lake is at fault."""
    for file, text in failed.batch:
        try:
            con.execute(f"select bit_xor(hash(landed)) from ({text}) as landed").fetchall()
        except duckdb.Error as error:
            return landing.unreadable(str(file), error, file.format == "parquet")
    return FinegrainError(f"the lake cannot be written: {str(failed.error).splitlines()[0]}")
