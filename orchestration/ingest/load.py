"""Land files in the lake by a mapping: all of one mapping's files in one transaction, each file once.

What was loaded by another mapping is compared with what the mapping makes of it now (`deliveries`): it is replaced where the user
asks for that, and otherwise a reason to land nothing.
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

from orchestration.config.settings import PROJECT, Settings, settings
from orchestration.errors import FinegrainError, console
from orchestration.ingest import deliveries, landing
from orchestration.lake import lake, shop
from orchestration.mapping.contracts import IN_RECORD, columns
from orchestration.mapping.mapping import Csv, Table, format_of, mapping_files, nearest, read_mapping
from orchestration.sources.files import DataFile, EmptyFile, Look, find, look
from orchestration.sources.patterns import may_name
from orchestration.sql.text import quote, timestamp_literal

#: Paths given on the command line in place of the mapping's `files`: for the only table, or by table.
Paths = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass
class FileReport:
    """One file's part in a load. `malformed` of its `rows` could not be read and landed with their reason.
    `skipped` says why nothing was done; `notes` what the user may want to know. Where a delivery came again, or its mapping changed,
    `rows` are those that are new or mapped otherwise, `replaced` of them in place of a former row; `unchanged` were there before, and
    `gone` are those that it lacks now, reported with the first of its files."""

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
    """What a load did. `snapshot` is the lake's newest after it; `seconds` is wall time."""

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
    """One mapping entry with its files: `where` names it in errors, `number` counts the entries of its table. `notes` say which values of
    a database's table could not be read."""

    where: str
    table: str
    mapping: Table
    zone: str
    number: int
    files: tuple[DataFile, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One mapping file, read and checked, with the files it names. `is_whole`: all of them, and not some of the command line."""

    path: Path
    source: str
    entries: tuple[Entry, ...]
    is_whole: bool = True

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for entry in self.entries for file in entry.files)


def plan(mapping: str | Path, paths: Paths | None = None, data: str | Path | None = None) -> list[Plan]:
    """Read one mapping file, or all of a folder, and find their files. Nothing is read of the data yet; entries that name
    no files are left out.

    `paths` stand in for the mapping's `files` (`table=path` where the mapping fills several tables); `data` is
    the folder where its relative paths begin (default: the current one).
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
    """The files of an entry. An example's are not part of the project."""
    try:
        return find(entry.files, entry.format, base)
    except FinegrainError as error:
        examples = PROJECT / "examples"
        if not path.resolve().is_relative_to(examples.resolve()):
            raise
        raise FinegrainError(f"{error}; {examples / 'README.md'} says where to get this example's data") from None


def no_files(path: Path) -> FinegrainError:
    """What to do with a mapping that names no files."""
    streams = any(entry.stream for mapped in read_mapping(path).tables.values() for entry in mapped)
    how = f"by stream; run `finegrain stream {path}`" if streams else f"from elsewhere; run `finegrain ingest {path}`"
    return FinegrainError(f"{path}: its rows come {how}")


def _by_table(path: Path, paths: Paths | None, tables: dict[str, int]) -> dict[str, list[str]]:
    """Which table each path of the command line is for."""
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
                    f"{text}: the mapping {path} fills several tables; say which, as in {next(iter(tables))}={rest or text}"
                )
    for table in given:
        if table not in tables:
            raise FinegrainError(f"{path}: the mapping does not fill '{table}'{nearest(table, tables)}")
        if tables[table] > 1:
            raise FinegrainError(f"{path}: {table} has several entries, so paths cannot stand in for their files")
    return given


def load(
    mapping: str | Path,
    paths: Paths | None = None,
    data: str | Path | None = None,
    again: bool = False,
    keep: bool = False,
    *,
    where: Settings | None = None,
    now: datetime | None = None,
    quiet: bool = True,
) -> LoadReport:
    """Land the files of a mapping (or of every mapping in a folder) in the lake.

    Each mapping's files land in one transaction or not at all. A file that its table holds already (same name, same bytes, same
    source) is skipped. If the mapping would now make other rows of it, nothing lands, unless the user says what is to be done:
    `again` maps all that was loaded again and replaces what comes out otherwise, `keep` leaves it as it is. What comes again of a
    delivery replaces it (`deliveries`). `now` is the moment of arrival, naive UTC.
    Raises FinegrainError; the lake is then as it was before the mapping that failed.
    """
    if again and keep:
        raise FinegrainError("--again replaces what is loaded, and --keep leaves it as it is: give one of them")
    where = where or settings()
    started = time.monotonic()
    plans = plan(mapping, paths, data)
    if len(plans) == 1 and not plans[0].entries:
        raise no_files(plans[0].path)
    reports: list[FileReport] = []
    mappings = shop.mappings_at(mapping)
    # Looking costs about a third of landing, so each byte counts once for either.
    # Two loads at once could both miss that the other lands the same file.
    one = lake.alone(where, "load")
    with console.progress("load", 2 * sum(each.size for each in plans), quiet=quiet) as advance, one:
        con = lake.connect(where)
        try:
            for place in lake.places(where):
                if not os.access(place, os.W_OK):  # else it would be told by the commit, after all the work
                    raise FinegrainError(f"{place}: the lake is here, and cannot be written")
            shop.check(con, mappings)
            for each in plans:
                asked = Asked(again, keep, now or datetime.now(UTC).replace(tzinfo=None))
                reports += _load(con, where, each, asked, advance)
            shop.record(con, where, mappings, now)
            [(snapshot,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
        finally:
            con.close()
    return LoadReport(reports, int(snapshot), time.monotonic() - started)


def fingerprint_of(entries: Sequence[Entry]) -> str:
    """What tells how entries map a file that all of them read, in their order."""
    return " ".join(entry.mapping.fingerprint(entry.zone) for entry in sorted(entries, key=lambda entry: entry.number))


@dataclass(frozen=True)
class Asked:
    """What the user wants of a load."""

    again: bool
    keep: bool
    now: datetime


@dataclass
class Part:
    """One file's part in a landing. `standing` says what becomes of it, `report` what did; a file that `is_here` was read."""

    file: str
    fingerprint: str
    mapping: str
    standing: deliveries.Standing
    report: FileReport
    is_here: bool = True
    changes: deliveries.Changes | None = None


@dataclass
class Landing:
    """What a load lands in one raw table: SELECTs of files that are new, and of those that are compared with what the lake has of them.
    `parts` are the files by what their rows' positions begin with, `kept` those that are left as they are, by another mapping than
    the one they were loaded by; `expected` how many rows each SELECT of a file must give, by the file's own count."""

    table: str
    fresh: list[tuple[DataFile, str]] = field(default_factory=list)
    again: list[tuple[DataFile, str]] = field(default_factory=list)
    deliveries: dict[DataFile, str] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    kept: list[Part] = field(default_factory=list)
    expected: dict[str, int] = field(default_factory=dict)

    def moved(self) -> set[str]:
        """The deliveries of which anything is new, changed or deleted."""
        return {
            part.changes.delivery
            for part in self.parts.values()
            if part.changes is not None and (part.changes.any or not part.standing.is_there)
        }


def _load(
    con: duckdb.DuckDBPyConnection, where: Settings, plan: Plan, asked: Asked, advance: console.Advance
) -> list[FileReport]:
    """One mapping: look at every file, bind all, compare what was loaded before, then land all in one transaction."""
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
    with lake.unmoved(where):
        loads = deliveries.Loads(con, plan.source)
        patterns = {entry.table: entry.mapping.deliveries(entry.table) for entry in plan.entries}
        standings = {
            table: loads.standings(
                table,
                told,
                {name: (seen.fingerprint, mapped[of, name]) for (of, name), seen in looks.items() if of == table},
                asked.again,
                asked.keep,
            )
            for table, told in patterns.items()
        }
        replaces = any(standing.delivery for table in standings.values() for standing in table.values())
        now = deliveries.moment(con, plan.source, loads, asked.now, replaces or asked.again)
    landings = {table: Landing(table) for table in patterns}
    for entry in plan.entries:
        landing_of = landings[entry.table]
        for file in entry.files:
            if file in empty[entry.table, entry.number]:
                reports.append(FileReport(plan.source, entry.table, file.name, skipped="the file is empty (0 bytes)"))
                advance(file.size, file.name)
                continue
            key = (entry.table, file.name)
            standing, seen = standings[entry.table][file.name], looks[key]
            report = FileReport(plan.source, entry.table, file.name, skipped=standing.skipped)
            reports.append(report)
            # Positions tell rows apart: a second entry over the same file must not repeat those of the first.
            name = loads.name(entry.table, file.name, seen.fingerprint)
            suffix = f".{entry.number + 1}" if name in landing_of.parts else ""
            part = Part(file.name, seen.fingerprint, mapped[key], standing, report)
            if standing.skipped:
                if standing.is_remapped:
                    landing_of.kept.append(part)
                advance(file.size, file.name)
                continue
            file_opened = looked.opened(con, file, entry.table, entry.mapping, entry.where)
            # A row that cannot be read is one row, in however many entries.
            is_first = first_reader[file] is entry
            bound = landing.bind_opened(
                con, file_opened, entry.table, entry.mapping, entry.zone, entry.where, malformed=is_first
            )
            landing.check_sample(con, bound, entry.where)
            report.notes += bound.opened.notes + standing.notes
            standing.notes = []
            landing_of.parts.setdefault(name, part)
            select = landing.select(bound, plan.source, landing.in_file(name, suffix), now)
            landing_of.expected[select] = bound.expected(con)
            (landing_of.again if standing.delivery else landing_of.fresh).append((file, select))
            if standing.delivery:
                landing_of.deliveries[file] = standing.delivery
    with lake.unmoved(where):
        for each in landings.values():
            reports += _bind_missing(con, plan, each, loads, patterns[each.table], set(looks), asked, now)
    try:
        for each in landings.values():
            if each.again:
                with lake.unmoved(where):
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
    """The files of a mapping, each looked at once, though several entries read it in one way."""

    def __init__(self) -> None:
        self._seen: dict[tuple[DataFile, str | None, Csv | None], Look] = {}
        self._opened: dict[tuple[DataFile, str | None, Csv | None], landing.Opened] = {}

    def at(self, file: DataFile, entry: Table) -> Look:
        """A look at a file as an entry reads it. Raises FinegrainError, EmptyFile among them."""
        key = (file, entry.encoding, entry.csv)
        if key not in self._seen:
            self._seen[key] = look(*key)
        return self._seen[key]

    def opened(
        self, con: duckdb.DuckDBPyConnection, file: DataFile, table: str, entry: Table, where: str
    ) -> landing.Opened:
        """A file opened as an entry reads it. CSV is the same for all entries that say the same of it, and is opened once."""
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
    """Files that are in the lake and not at hand: their rows are mapped again from their payload there, if all is to be mapped again,
    or what else there was of a delivery."""
    compared = {part.standing.delivery for part in of.parts.values() if part.standing.is_there}
    replaced = {part.standing.delivery for part in of.parts.values()} - compared
    missing: dict[str, tuple[str, deliveries.Loaded]] = {}
    for told, before in loads.of(of.table, patterns).items():
        for _, each in before:
            wanted = told in compared or (asked.again and plan.is_whole and told not in replaced)
            if wanted and each.name not in of.parts:
                missing[each.name] = (told, each)
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
        told, each = missing[str(name)]
        report = FileReport(plan.source, of.table, each.file, unchanged=int(count))
        reports.append(report)
        entries = [
            entry
            for entry in plan.entries
            if entry.table == of.table
            and any(may_name(pattern, entry.mapping.format, each.file) for pattern in entry.mapping.files)
        ]
        kind = next((entry.mapping.format or format_of(each.file) for entry in entries), None)
        stays = f"the file is not here, so {count:,} rows of it stay as they are: "
        undo = f"`finegrain unload {plan.source}.{of.table} --file {shlex.quote(each.file)}` takes them back"
        if not entries or len({entry.mapping.files for entry in entries}) > 1:
            which = "several entries may have read it" if entries else "no entry reads it now"
            report.notes.append(f"{stays}{which}; {undo}")
        elif kind not in ("csv", "jsonl"):
            report.notes.append(f"{stays}of a Parquet file the lake has no copy that could be mapped again; {undo}")
        else:
            report.notes.append("the file is not here: its rows are mapped again from what the lake has of them")
            # Several rows may have been made of one of the file's: by two entries, or of the elements of a list.
            rows = (
                f"select cast(regexp_extract(_position, '#([0-9]+)(?:{IN_RECORD})?[0-9.]*$', 1) as bigint) as __n, any_value(payload) as payload, "
                f"any_value(_error) as _error from ({alive}) where __name = {quote(str(name))} group by 1"
            )
            file = DataFile(Path(each.file), str(name), kind, 0)
            is_remapped = each.mapping != (mapping := fingerprint_of(entries))
            standing = deliveries.Standing(delivery=told, is_there=True, is_remapped=is_remapped)
            of.parts[str(name)] = Part(each.file, each.fingerprint, mapping, standing, report, is_here=False)
            of.deliveries[file] = told
            for place, entry in enumerate(entries):
                opened = landing.open_landed(con, rows, each.file, of.table, entry.mapping, entry.where)
                bound = landing.bind_opened(
                    con, opened, of.table, entry.mapping, entry.zone, entry.where, malformed=not place
                )
                suffix = f".{entry.number + 1}" if place else ""
                of.again.append((file, landing.select(bound, plan.source, landing.in_file(str(name), suffix), now)))
    return reports


def _refuse(plan: Plan, landings: Sequence[Landing], asked: Asked) -> None:
    """Raise FinegrainError where rows that are in the lake would come out otherwise and the user has not said what to do."""
    lines = []
    for each in landings:
        moved = each.moved()
        for part in each.parts.values():
            told, changes = part.standing, part.changes
            if changes is None or not told.is_there or asked.again:
                continue
            if told.delivery not in moved:
                part.report.skipped = "already there; the mapping changed, but none of its rows"
            else:
                lines.append(
                    f"  {each.table} {console.shown(part.file)}: {changes.replaced:,} rows would be replaced, {changes.deleted:,} deleted, "
                    f"{changes.added:,} added, {changes.holds - changes.replaced - changes.added:,} unchanged"
                )
    if lines:
        raise FinegrainError(
            f"{plan.path}: the mapping is not the one by which these files were loaded; nothing has landed\n"
            + "\n".join(lines)
            + f"\n  finegrain load {plan.path} --again replaces them"
            + f"\n  finegrain load {plan.path} --keep leaves what is loaded as it is, and loads new files by the new mapping"
        )


class _Failed(Exception):
    """A batch of files that did not land, and DuckDB's error."""

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
    """Stage what was loaded before, and find what is new, changed and deleted. Not in the transaction, which is to be short: whoever
    else lands files waits for this load."""
    for number, batch in enumerate(landing.batches(of.again)):
        try:
            told = [(of.deliveries[file], select) for file, select in batch]
            deliveries.stage(con, of.table, told, first=number == 0)
        except duckdb.Error as error:
            raise _Failed(batch, error) from None
        for file, _ in batch:
            advance(file.size, file.name)
    compared = set(of.deliveries.values())
    former = {
        (each.name, told)
        for told, before in loads.of(of.table, patterns).items()
        if told in compared
        for _, each in before
    }
    deliveries.compare(con, of.table, deliveries.of_files(source, of.table, former))
    found = deliveries.changes(con, of.table)
    for name, part in of.parts.items():
        if part.standing.delivery:
            part.changes = found.pop(name, deliveries.Changes(part.standing.delivery))
    for other in found.values():  # of files that are not part of the delivery any more
        first = next(part for part in of.parts.values() if part.standing.delivery == other.delivery)
        assert first.changes is not None
        first.changes.deleted += other.deleted
    here = [(file, text) for file, text in of.again if text in of.expected]
    read = sum(part.changes.holds for part in of.parts.values() if part.changes is not None and part.is_here)
    _check_count(con, here, of.expected, read)


def _check_count(
    con: duckdb.DuckDBPyConnection, batch: list[tuple[DataFile, str]], expected: Mapping[str, int], read: int
) -> None:
    """Hold what was read of files to what they hold by their own count. Raises FinegrainError that names the file."""
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
    """The transaction: rows, what is deleted, and the note of each file, together."""
    recorded = [
        (each, part)
        for each in landings
        for part in (*each.parts.values(), *each.kept)
        if part.standing.is_remapped and (part in each.kept or part.standing.delivery not in each.moved())
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
            if each.again and each.moved():
                deliveries.land(con, plan.source, each.table, now)
        # Literals, here and elsewhere: DuckDB imports pandas, where it is installed, to read a list of parameters.
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
                if part.changes is None or part.standing.delivery in moved:
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
    """Fill in the reports from what `landed`, rows and malformed ones, by what positions begin with."""
    for name, part in of.parts.items():
        report, changes = part.report, part.changes
        if report.skipped:
            continue
        report.rows, report.malformed = landed.get(name, (0, 0))
        if changes is not None:
            report.replaced, report.gone = changes.replaced, changes.deleted
            report.unchanged = changes.holds - changes.added - changes.replaced


def _of_file(con: duckdb.DuckDBPyConnection, failed: _Failed) -> FinegrainError:
    """Name the file that could not be read to its end: read each again, alone. If all can be, the lake is at fault."""
    for file, text in failed.batch:
        try:
            con.execute(f"select bit_xor(hash(landed)) from ({text}) as landed").fetchall()
        except duckdb.Error as error:
            return landing.unreadable(str(file), error, file.format == "parquet")
    return FinegrainError(f"the lake cannot be written: {str(failed.error).splitlines()[0]}")
