"""Land files in the lake by a mapping: all of one mapping's files in one transaction, each file once."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from orchestration import console, deliveries, lake, landing
from orchestration.contracts import columns
from orchestration.errors import FinegrainError
from orchestration.files import DataFile, EmptyFile, Look, find, look
from orchestration.lake import quote
from orchestration.mapping import Csv, Table, mapping_files, nearest, read_mapping
from orchestration.settings import Settings, settings

#: Paths given on the command line in place of the mapping's `files`: for the only table, or by table.
Paths = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass
class FileReport:
    """One file's part in a load. `malformed` of its `rows` could not be read and landed with their reason.
    `skipped` says why nothing was done; `notes` what the user may want to know. Where a delivery came again, `rows` are those that
    are new, `unchanged` were there before, and `gone` are those that it lacks now, told with the first of its files."""

    source: str
    table: str
    file: str
    rows: int = 0
    malformed: int = 0
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
    """One mapping entry with its files: `where` names it in errors, `number` counts the entries of its table."""

    where: str
    table: str
    mapping: Table
    zone: str
    number: int
    files: tuple[DataFile, ...]


@dataclass(frozen=True)
class Plan:
    """One mapping file, read and checked, with the files it names."""

    path: Path
    source: str
    entries: tuple[Entry, ...]

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
        raise FinegrainError(f"{base}: no such data folder")
    plans = []
    for path in found:
        read = read_mapping(path)
        given = _by_table(path, paths, {name: len(entries) for name, entries in read.tables.items()})
        entries = []
        for table, number, entry, zone, where in read.entries(path):
            if table in given:
                files = find(given[table], entry.format, Path.cwd())
            elif entry.files:
                files = find(entry.files, entry.format, base)
            else:
                continue
            if table == "ga4_events" and any(file.format == "csv" for file in files):
                raise FinegrainError(f"{where}: GA4's export is nested; export it as parquet or jsonl, not csv")
            entries.append(Entry(where, table, entry, zone, number, tuple(files)))
        plans.append(Plan(path, read.source, tuple(entries)))
    return plans


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
    *,
    where: Settings | None = None,
    now: datetime | None = None,
    quiet: bool = True,
) -> LoadReport:
    """Land the files of a mapping (or of every mapping in a folder) in the lake.

    Each mapping's files land in one transaction or not at all. A file that its table holds already (same name,
    same bytes, same source) is skipped unless `again`. What comes again of a delivery replaces it (`deliveries`). `now` is
    the moment of arrival, naive UTC.
    Raises FinegrainError; the lake is then as it was before the mapping that failed.
    """
    where = where or settings()
    started = time.monotonic()
    plans = plan(mapping, paths, data)
    if len(plans) == 1 and not plans[0].entries:
        raise no_files(plans[0].path)
    reports: list[FileReport] = []
    # Looking costs about a third of landing, so each byte counts once for either.
    # Two loads at once could both miss that the other lands the same file.
    one = lake.alone(where)
    with console.progress("load", 2 * sum(each.size for each in plans), quiet=quiet) as advance, one:
        con = lake.connect(where)
        try:
            for place in lake.places(where):
                if not os.access(place, os.W_OK):  # else it would be told by the commit, after all the work
                    raise FinegrainError(f"{place}: the lake is here, and cannot be written")
            for each in plans:
                reports += _load(con, where, each, again, now or datetime.now(UTC).replace(tzinfo=None), advance)
            [(snapshot,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
        finally:
            con.close()
    return LoadReport(reports, int(snapshot), time.monotonic() - started)


@dataclass
class Landing:
    """What a load lands in one raw table: SELECTs of files that are new, and of deliveries that came again, which are compared with
    what the lake has of them. `names` are the files by what their rows' positions begin with; `expected` how many rows each
    SELECT must give, by the file's own count."""

    table: str
    fresh: list[tuple[DataFile, str]] = field(default_factory=list)
    again: list[tuple[DataFile, str]] = field(default_factory=list)
    deliveries: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)


def _load(
    con: duckdb.DuckDBPyConnection, where: Settings, plan: Plan, again: bool, now: datetime, advance: console.Advance
) -> list[FileReport]:
    """One mapping: look at every file, bind all, compare what came again, then land all in one transaction."""
    reports: list[FileReport] = []
    looks: dict[tuple[str, str], Look] = {}
    looked = Looked()
    empty: dict[tuple[str, int], set[DataFile]] = {}
    for entry in plan.entries:
        nothing_in = empty.setdefault((entry.table, entry.number), set())
        for file in entry.files:
            try:
                looks[entry.table, file.name] = looked.at(file, entry.mapping)
            except EmptyFile:
                nothing_in.add(file)
                if len(nothing_in) == len(entry.files):
                    raise
            advance(file.size, file.name)
    with lake.unmoved(where):
        loads = deliveries.Loads(con, plan.source)
        patterns = {entry.table: entry.mapping.deliveries(entry.table) for entry in plan.entries}
        standings = {
            table: loads.standings(
                table, told, {name: seen.fingerprint for (of, name), seen in looks.items() if of == table}, again
            )
            for table, told in patterns.items()
        }
        if any(standing.delivery for table in standings.values() for standing in table.values()):
            now = deliveries.moment(con, plan.source, loads, now)
    landings = {table: Landing(table) for table in patterns}
    opened: set[DataFile] = set()
    for entry in plan.entries:
        landing_of = landings[entry.table]
        for file in entry.files:
            if file in empty[entry.table, entry.number]:
                reports.append(FileReport(plan.source, entry.table, file.name, skipped="the file is empty (0 bytes)"))
                advance(file.size, file.name)
                continue
            standing, seen = standings[entry.table][file.name], looks[entry.table, file.name]
            report = FileReport(plan.source, entry.table, file.name, skipped=standing.skipped)
            reports.append(report)
            if standing.skipped:
                advance(file.size, file.name)
                continue
            # A row that cannot be read is one row, in however many entries.
            file_opened = looked.opened(con, file, entry.table, entry.mapping, entry.where)
            bound = landing.bind_opened(
                con, file_opened, entry.table, entry.mapping, entry.zone, entry.where, malformed=file not in opened
            )
            opened.add(file)
            landing.check_sample(con, bound, entry.where)
            report.notes += bound.opened.notes + standing.notes
            standing.notes = []
            # Positions tell rows apart: a second entry over the same file must not repeat those of the first.
            name = loads.name(entry.table, file.name, seen.fingerprint)
            suffix = f".{entry.number + 1}" if name in landing_of.names else ""
            landing_of.names[name] = file.name
            select = landing.select(bound, plan.source, landing.in_file(name, suffix), now)
            landing_of.expected[select] = bound.expected(con)
            (landing_of.again if standing.delivery else landing_of.fresh).append((file, select))
            if standing.delivery:
                landing_of.deliveries[file.name] = standing.delivery
    if any(each.names for each in landings.values()):
        try:
            for each in landings.values():
                if each.again:
                    with lake.unmoved(where):
                        _compare(con, plan.source, each, loads, patterns[each.table], advance)
            lake.retry(lambda: _land(con, where, plan, list(landings.values()), looks, now, advance, reports))
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
    """Stage the deliveries that came again, and find what is new and gone. Not in the transaction, which is to be short: whoever
    else lands files waits for this load."""
    for number, batch in enumerate(landing.batches(of.again)):
        try:
            told = [(of.deliveries[file.name], select) for file, select in batch]
            deliveries.stage(con, of.table, told, first=number == 0)
        except duckdb.Error as error:
            raise _Failed(batch, error) from None
        for file, _ in batch:
            advance(file.size, file.name)
    came = set(of.deliveries.values())
    former = {
        (loads.name(each.table, each.file, each.fingerprint), told)
        for told, before in loads.of(of.table, patterns).items()
        for _, each in before
        if told in came
    }
    deliveries.compare(con, source, of.table, former)
    of.held = deliveries.held(con, of.table)
    _check_count(con, of.again, of.expected, sum(of.held.values()))


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
            raise landing.miscounted(file.name, rows, expected[text])
    raise landing.miscounted(", ".join(file.name for file, _ in batch), read, held)


def _land(
    con: duckdb.DuckDBPyConnection,
    where: Settings,
    plan: Plan,
    landings: list[Landing],
    looks: dict[tuple[str, str], Look],
    now: datetime,
    advance: console.Advance,
    reports: list[FileReport],
) -> None:
    """The transaction: rows, what is gone, and the note of each file, together."""
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
            if each.again:
                deliveries.land(con, plan.source, each.table, now)
        # Literals, here and elsewhere: DuckDB imports pandas, where it is installed, to read a list of parameters.
        moment = f"timestamp {quote(now.isoformat(sep=' '))}"
        noted: list[str] = []
        for each in landings:
            if not each.names:
                continue
            counts = con.execute(
                f"select regexp_extract(_position, '^(.*)#[0-9.]+$', 1), count(*), count(_error) from lake.raw.{each.table} "
                f"where _ingested_at = {moment} and _source = {quote(plan.source)} group by 1"
            ).fetchall()
            found = {each.names.get(str(name)): (int(rows), int(bad)) for name, rows, bad in counts}
            gone = deliveries.gone(con, each.table) if each.again else {}
            for name, file_name in each.names.items():
                rows, bad = found.get(file_name, (0, 0))
                told = each.deliveries.get(file_name)
                holds = each.held.get(name, 0) if told else rows
                texts = ", ".join(
                    map(quote, (plan.source, each.table, file_name, looks[each.table, file_name].fingerprint))
                )
                noted.append(f"({texts}, {holds}, {moment})")
                report = next(r for r in reports if r.table == each.table and r.file == file_name and r.skipped is None)
                report.rows, report.malformed, report.unchanged = rows, bad, holds - rows
                report.gone = gone.pop(told, 0) if told else 0
        con.execute(f"insert into lake.raw.loads values {', '.join(noted)}")


def _of_file(con: duckdb.DuckDBPyConnection, failed: _Failed) -> FinegrainError:
    """Name the file that could not be read to its end: read each again, alone. If all can be, the lake is at fault."""
    for file, text in failed.batch:
        try:
            con.execute(f"select bit_xor(hash(landed)) from ({text}) as landed").fetchall()
        except duckdb.Error as error:
            return landing.unreadable(str(file.path), error, file.format == "parquet")
    return FinegrainError(f"the lake cannot be written: {str(failed.error).splitlines()[0]}")
