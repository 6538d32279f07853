"""`finegrain doctor`: checks a mapping and its data before anything is loaded, and reports problems by field.

It binds files exactly as the loader does (`landing`), copies a sample of their rows into a temporary table, and runs the checks the models will
run later: is this a valid time, do the seeds know this name, which ids are missing. It writes nothing. Errors in the mapping itself and missing
files are raised before it starts.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import duckdb
import yaml
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestration.config import settings
from orchestration.config.project import seed as seed_rows
from orchestration.config.project import seed_file
from orchestration.config.settings import Settings, Variable
from orchestration.config.settings import variable as _variable
from orchestration.errors import FinegrainError, console, stopping
from orchestration.ingest import landing
from orchestration.ingest.deliveries import is_deleted
from orchestration.ingest.ingest import samples
from orchestration.ingest.landing import Bound, macros, parse_time
from orchestration.ingest.load import Entry, Looked, Paths, Plan, fingerprint_of, no_files, plan
from orchestration.lake import lake, shop
from orchestration.lake.locks import scratch
from orchestration.lake.shop import Shop
from orchestration.mapping import contracts
from orchestration.mapping.contracts import EVENT_TIME, IDS, RAW_TABLES
from orchestration.mapping.mapping import (
    REQUIRED,
    Column,
    Field,
    Sql,
    entries_together,
    mapping_files,
    nearest,
    strptime,
)
from orchestration.mapping.personal import masked
from orchestration.sources.files import DataFile, EmptyFile, Look
from orchestration.sql.text import identifier, quote

Level = Literal["error", "warning", "note"]

#: The most rows of one mapping entry that are checked one by one; of more rows, every k-th is checked.
ROWS: Final = 200_000
#: The most unmapped columns that a note lists by name.
NAMED: Final = 10
#: Free disk space, in bytes, below which a build may fail.
LITTLE_SPACE: Final = 2 * 2**30
#: Numeric fields: those the loader checks, and others that only the models read.
NUMBERS: Final = landing.NUMBERS | {"household_size", "income"}
#: The key of each table: the first field is required, the others count if they are mapped. Of rows that are not events, the one
#: that arrived later is the newer version.
KEYS: Final[dict[str, tuple[str, ...]]] = {
    "events": ("event_id", "product_id", "line_id"),
    "customers": ("customer_id", "updated_at"),
    "products": ("product_id", "updated_at"),
    "orders": ("order_id", "updated_at"),
    "order_items": ("line_id", "order_id", "updated_at"),
    "refunds": ("refund_id", "line_id", "updated_at"),
}
#: Time formats that the doctor tries: each format of a day with each format of a clock time, and complete formats.
_DAYS: Final = (
    "%d/%m/%Y", "%m/%d/%Y", "%d/%m/%y", "%m/%d/%y", "%d.%m.%Y", "%d.%m.%y", "%d-%m-%Y", "%m-%d-%Y", "%d-%m-%y", "%m-%d-%y",
    "%Y/%m/%d", "%Y.%m.%d", "%Y-%m-%d", "%Y%m%d", "%d-%b-%Y", "%d-%b-%y", "%d/%b/%Y", "%d %b %Y", "%d %B %Y", "%d. %B %Y",
    "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%a, %d %b %Y", "%A, %d %B %Y",
)  # fmt: skip
_CLOCKS: Final = (
    "", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", ", %H:%M", ", %H:%M:%S", ", %I:%M %p", " at %H:%M", "T%H:%M:%S",
    " %H:%M:%S.%f", " %H:%M %z", " %H:%M:%S %z", ":%H:%M:%S %z", "-%H:%M", " %H.%M", " %H.%M.%S",
)  # fmt: skip
_WHOLE: Final = (
    "%Y%m%d%H%M",
    "%Y%m%d%H%M%S",
    "%a %b %d %H:%M:%S %Y",
    "%a %b %d %H:%M:%S %z %Y",
    "%a %d %b %Y %H:%M:%S",
)
#: The share of unreadable times that formats must parse to be suggested, and the number of distinct times tried.
_NEARLY_ALL: Final = 0.9
_TRIED: Final = 1_000
#: Contract fields that identify persons.
PERSONS: Final = frozenset({"user_id", "anonymous_id", "user_pseudo_id"})
#: A long number as a spreadsheet writes it, in scientific notation.
ROUNDED: Final = "[0-9]([.,][0-9]+)?[eE][+][0-9]+"
#: An id with at least this many rows, and more than this share of the rows with an id, may be a placeholder for unknown persons.
CROWD: Final = 20
CROWD_SHARE: Final = 0.05
#: The required fields under their names in a GA4 export.
_GA4_REQUIRED: Final = (("event_name",), ("event_timestamp",), ("user_id", "user_pseudo_id"))
_STYLES: Final[dict[Level, str]] = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class Finding:
    """One finding. An `error` would stop a load, or makes a field or file unusable; a `warning` costs rows or values; a `note` costs nothing.
    `where` is the mapping's entry or a file, `field` a contract field or ""."""

    level: Level
    where: str
    field: str
    message: str

    @property
    def place(self) -> str:
        """The path of the entry or field in the mapping."""
        return f"{self.where}.fields.{self.field}" if self.field else self.where


@dataclass(frozen=True)
class FieldLook:
    """The values of one contract field. Of the checked rows, `filled` are not empty and `read` are valid for the field's `kind` (time,
    number or text). `first` and `last` are the smallest and largest valid values, `example` is one value."""

    name: str
    origin: str
    kind: str
    filled: int
    read: int
    first: str | None
    last: str | None
    example: str | None


@dataclass
class EntryLook:
    """One entry of a mapping: of its `rows`, `looked_at` were checked one by one, and `malformed` of those could not be read at all."""

    where: str
    source: str
    table: str
    files: list[str]
    rows: int = 0
    looked_at: int = 0
    malformed: int = 0
    fields: list[FieldLook] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """One check of this machine."""

    level: Literal["error", "warning", "fine"]
    what: str
    said: str


@dataclass
class Report:
    """The doctor's report: `entries` of mappings, or `checks` of the machine and its `settings`. `seconds` is wall time."""

    entries: list[EntryLook] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    settings: list[Variable] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, level: Level) -> int:
        """How many findings there are of a level."""
        return sum(finding.level == level for entry in self.entries for finding in entry.findings) + sum(
            check.level == level for check in self.checks
        )

    @property
    def exit_code(self) -> int:
        """1 with an error, else 0."""
        return int(self.count("error") > 0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "notes": self.count("note"),
            **asdict(self),
        }

    def render(self) -> RenderableType:
        """For people."""
        parts: list[RenderableType] = [_shown(entry) for entry in self.entries]
        if self.checks:
            table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
            for check in self.checks:
                style = "" if check.level == "fine" else _STYLES[check.level]
                table.add_row(check.what, Text("ok" if check.level == "fine" else check.level, style), Text(check.said))
            parts += [table, *_shown_settings(self.settings)]
        levels: tuple[Level, ...] = ("error", "warning", "note")
        counted = [_count(self.count(level), level) for level in levels]
        parts.append(
            Text(f"{', '.join(counted)} in {self.seconds:.1f} s" + ("" if self.checks else "; nothing was loaded"))
        )
        return Group(*parts)


def _shown_settings(variables: Iterable[Variable]) -> Iterator[RenderableType]:
    for group, together in itertools.groupby(variables, key=lambda each: each.group):
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for each in together:
            table.add_row(each.name, Text(each.value or "not set"), Text(each.source, "dim"), Text(each.purpose, "dim"))
        yield Group(Text(f"\n{group}", "bold"), table)
    yield Text("")


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _shown(entry: EntryLook) -> RenderableType:
    all_of_them = "all of them" if entry.rows == entry.looked_at else f"a sample of {entry.looked_at:,}"
    files = console.shown(entry.files[0]) if len(entry.files) == 1 else f"{len(entry.files):,} files"
    parts: list[RenderableType] = [
        Text.assemble(
            (f"{entry.source}.{entry.table}", "bold"),
            f"  {files}, {entry.rows:,} rows" + (f", {all_of_them} looked at" if entry.rows else ""),
            (f"  ({entry.where})", "dim"),
        )
    ]
    if entry.fields:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("field", "from", "filled", "read as", "values"):
            table.add_column(name, justify="right" if name == "filled" else "left", overflow="ellipsis", no_wrap=True)
        good = entry.looked_at - entry.malformed
        for each in entry.fields:
            reads = each.kind if each.read == each.filled else f"{each.kind} {_share(each.read, each.filled)}"
            span = each.example or ""
            if each.first is not None:
                span = each.first if each.first == each.last else f"{each.first} .. {each.last}"
            table.add_row(*(Text(x) for x in (each.name, each.origin, _share(each.filled, good), reads, span)))
        parts.append(Padding(table, (0, 0, 0, 2)))
    for finding in entry.findings:
        about = f"{finding.field}: " if finding.field else ""
        parts.append(Text.assemble("  ", (finding.level, _STYLES[finding.level]), f" {about}{finding.message}"))
    parts.append(Text())
    return Group(*parts)


def _share(part: int, whole: int) -> str:
    """A share that never rounds to all or nothing."""
    if part in (0, whole):
        return "–" if not whole else "100 %" if part else "0 %"
    percent = 100 * part / whole
    return "<0.1 %" if percent < 0.1 else ">99.9 %" if percent > 99.9 else f"{percent:.1f} %"


def examine(
    mapping: str | Path | None = None,
    paths: Paths | None = None,
    data: str | Path | None = None,
    where: Settings | None = None,
    *,
    now: datetime | None = None,
    quiet: bool = True,
) -> Report:
    """Check the data of a mapping, or of every mapping in a folder; without one, check this machine.

    Takes the arguments of `load`; `now` is naive UTC. Raises FinegrainError for errors in the mappings and for missing files, of all mappings
    together; problems in the data are in the report.
    """
    where = where or settings.settings()
    started = time.monotonic()
    if mapping is None:
        report = Report(checks=list(_checks(where)), settings=settings.described())
    else:
        plans = _plans(mapping, paths, data)
        now = now or datetime.now(UTC).replace(tzinfo=None)
        with (
            scratch(Path(tempfile.gettempdir()), "finegrain-doctor-") as folder,
            console.progress("doctor", sum(each.size for each in plans), quiet=quiet) as advance,
            duckdb.connect() as con,
        ):
            stopping.interruptible(con)
            con.execute("set timezone = 'UTC'")
            plans = [
                replace(each, entries=(*each.entries, *samples(each.path, folder / str(number), where, ROWS, data)))
                for number, each in enumerate(plans)
            ]
            if len(plans) == 1 and not plans[0].entries:
                raise no_files(plans[0].path)
            shop_settings = shop.look(where, shop.mappings_at(mapping))
            exams = [
                _Exam(con, each, entry, now, looked, taken, shop_settings)
                for each in plans
                for looked, taken in [(Looked(), set[DataFile]())]
                for entry in each.entries
            ]
            for exam in exams:
                exam.open(advance)
            loaded = _Loaded(where)
            _same_bytes(exams)
            for exam in exams:
                exam.validate()
            _reporting_currency(exams, shop_settings)
            for what, name in (("customers", "user_id"), ("products", "product_id")):
                _orphans(con, exams, loaded, what, name)
            for exam in exams:
                exam.note_what_is_loaded(loaded)
                exam.seen.findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.level))
            _say_once([exam.seen for exam in exams])
        report = Report(entries=[exam.seen for exam in exams])
    report.seconds = time.monotonic() - started
    return report


def _plans(mapping: str | Path, paths: Paths | None, data: str | Path | None) -> list[Plan]:
    found = mapping_files(mapping)
    if len(found) == 1 or paths:
        return plan(mapping, paths, data)
    plans: list[Plan] = []
    mistakes: list[str] = []
    for path in found:
        try:
            plans += plan(path, None, data)
        except FinegrainError as error:
            mistakes.append(str(error))
    if mistakes:
        raise FinegrainError("\n".join(dict.fromkeys(mistakes)))
    return plans


# --- one entry of a mapping --------------------------------------------------------------------------------------


def clean(column: str) -> str:
    """SQL of a field's text as the models read it: trimmed, and null if empty; an id is also null if it is a null word."""
    text = str(macros("fields.sql").clean_text(identifier(column)))
    if column not in IDS:
        return text
    return f"case when lower({text}) not in ({', '.join(map(quote, _seed('null_words', 'word')))}) then {text} end"


_numbers = itertools.count()


class _Exam:
    """The checks of one entry. `table` is its temporary table: `__file`, `__n`, `__bad`, `__available` and the contract's fields; it has
    every `step`-th row of each file. `looked` and `taken` (the files whose malformed rows were reported for an earlier entry) are shared
    by the whole mapping."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        plan: Plan,
        entry: Entry,
        now: datetime,
        looked: Looked,
        taken: set[DataFile],
        shop_settings: Shop,
    ) -> None:
        self.looked, self.taken, self.shop = looked, taken, shop_settings
        self.con, self.plan, self.entry, self.now = con, plan, entry, now
        self.seen = EntryLook(entry.where, plan.source, entry.table, [file.name for file in entry.files])
        self.bounds: list[Bound] = []
        self.looks: dict[DataFile, Look] = {}
        self.table = f"__looked_{next(_numbers)}"
        self.step = 1
        self.fields = list(entry.mapping.fields) if entry.table != "ga4_events" else list(RAW_TABLES["ga4_events"])
        if entry.mapping.explode is not None and {"order_id", "line_id"} & {*self.fields} == {"order_id"}:
            self.fields += [name for name in ("line_id",) if name in RAW_TABLES[entry.table]]
        self.unread: dict[str, int] = {}

    def say(self, level: Level, message: str, field: str = "", where: str | None = None) -> None:
        self.seen.findings.append(Finding(level, where or self.entry.where, field, message))

    def refused(self, error: FinegrainError, field: str = "") -> None:
        """Add the error with which the loader would reject a file."""
        message = str(error).removeprefix(f"{self.entry.where}.fields.{field}: ").removeprefix(f"{self.entry.where}.")
        if not self.entry.mapping.files:  # a sample of a table, an API or a stream
            for file in self.entry.files:
                message = message.replace(str(file), file.name)
        self.say("error", message.removeprefix(f"{self.entry.where}: "), field)

    def open(self, advance: console.Advance) -> None:
        """Inspect every file, and copy rows of it."""
        kinds = RAW_TABLES[self.entry.table]
        shown = ", ".join(f"{identifier(name)} {kinds[name]}" for name in self.fields)
        self.con.execute(
            f"create temp table {identifier(self.table)} (__file int, __n bigint, __bad varchar, __available varchar, {shown})"
        )
        for note in self.entry.notes:
            self.say("warning", note)
        limit = max(landing.SAMPLE, ROWS // len(self.entry.files))
        empty: list[EmptyFile] = []
        for number, file in enumerate(self.entry.files):
            try:
                self.looks[file] = self.looked.at(file, self.entry.mapping)
                bound = self._bind(file)
                if bound is not None:
                    self._copy(number, bound, limit)
            except EmptyFile as error:
                empty.append(error)
            except FinegrainError as error:
                self.refused(error)
            self.taken.add(file)
            advance(file.size, file.name)
        for each in empty:
            if len(empty) == len(self.entry.files):
                self.refused(each)
            else:
                self.say("note", f"{each}; a load leaves it out")
        if self.bounds:
            counted = f"select count(*), count(__bad) from {identifier(self.table)}"
            [(self.seen.looked_at, self.seen.malformed)] = self.con.execute(counted).fetchall()

    def _elements(self, bound: Bound) -> None:
        """Report how many rows come from list elements."""
        ours, records = bound.opened.own, bound.opened.records
        [(there, without, elements)] = self.con.execute(
            f"select count(*), count(*) filter ({ours}bad is null and {ours}state in ('absent', 'null', 'list') "
            f"and (len({ours}pieces) = 0 or ({ours}pieces[1].place = [] and {ours}pieces[1].why is null))), "
            f"coalesce(sum(len(list_filter({ours}pieces, lambda x: len(x.place) > 0))), 0)::bigint from {records}"
        ).fetchall()
        kept = "each is one row" if self.entry.table == "events" else "they give no rows"
        self.say(
            "note",
            f"explode finds {_count(elements, 'element')} of {bound.entry.explode} in {there:,} records of "
            f"{Path(bound.opened.origin).name}" + (f"; {without:,} records have none: {kept}" if without else ""),
        )

    def _copy(self, file: int, bound: Bound, limit: int) -> None:
        try:
            [(rows,)] = self.con.execute(f"select count(*) from ({bound.rows})").fetchall()
            number = "__n"
            if bound.opened.records is not None:
                number = "__record"
                self._elements(bound)
            if bound.entry.where or bound.entry.distinct:
                [(there,)] = self.con.execute(f"select count(*) from {bound.opened.relation}").fetchall()
                what = " and ".join(name for name in ("where", "distinct") if getattr(bound.entry, name))
                self.say("note", f"{what} keeps {rows:,} of {there:,} rows of {Path(bound.opened.origin).name}")
            step = -(-rows // limit) or 1
            shown = ", ".join(identifier(name) for name in bound.fields if name in self.fields)
            self.con.execute(
                f"insert into {identifier(self.table)} by name select {file} as __file, {number} as __n, __bad, __available, {shown} "
                f"from ({bound.rows}) where ({number} - 1) % {step} = 0"
            )
        except duckdb.Error as error:
            raise landing.unreadable(bound.opened.origin, error, bound.opened.is_typed) from None
        self.step = max(self.step, step)
        self.seen.rows += rows
        self.bounds.append(bound)
        for name in _unread(bound):
            self.unread[name] = self.unread.get(name, 0) + 1
        for note in bound.opened.notes:
            self.say("note", note)

    def _bind(self, file: DataFile) -> Bound | None:
        """Bind a file. If that fails, report the fields for which it fails, and bind the others."""
        entry = self.entry
        whole = entry.mapping
        if entry.table == "ga4_events":
            opened = self.looked.opened(self.con, file, entry.table, whole, entry.where)
            return landing.bind_opened(
                self.con, opened, entry.table, whole, entry.zone, entry.where, malformed=file not in self.taken
            )
        bare = whole.model_copy(update={"fields": {}, "available_at": "now", "where": None, "distinct": False})
        opened = self.looked.opened(self.con, file, entry.table, bare, entry.where)

        def tried(**parts: Any) -> FinegrainError | Bound:
            part = bare.model_copy(update=parts)
            try:
                mine = opened
                if file.format == "jsonl":
                    mine = landing.open_file(self.con, file, self.looks[file], entry.table, part, entry.where)
                return landing.bind_opened(
                    self.con, mine, entry.table, part, entry.zone, entry.where, malformed=file not in self.taken
                )
            except FinegrainError as error:
                return error

        everything = {name: getattr(whole, name) for name in ("fields", "available_at", "where", "distinct")}
        bound = tried(**everything)
        if (
            isinstance(bound, FinegrainError)
            and whole.explode is not None
            and isinstance(error := tried(), FinegrainError)
        ):
            self.refused(error)  # not caused by a field
            return None
        if isinstance(bound, FinegrainError):
            before = len(self.seen.findings)
            good = {}
            for name, source in whole.fields.items():
                part = tried(fields={name: source})
                if isinstance(part, FinegrainError):
                    self.refused(part, name)
                else:
                    good[name] = source
            if not isinstance(whole.available_at, str):
                part = tried(available_at=whole.available_at)
                if isinstance(part, FinegrainError):
                    self.refused(part)
                    everything["available_at"] = "now"
            elif whole.available_at == "event_time" and EVENT_TIME[entry.table] not in good:
                everything["available_at"] = "now"
            part = tried(where=whole.where)
            if isinstance(part, FinegrainError):
                self.refused(part)
                everything["where"] = None
            if len(self.seen.findings) == before:
                raise bound
            bound = tried(**{**everything, "fields": good}) if good else bound
            if isinstance(bound, FinegrainError):
                return None
        self._check_sample(bound)
        return bound

    def _check_sample(self, bound: Bound) -> None:
        """Report files that the loader would reject for their values. The loader stops at the first field; this checks each one."""
        try:
            landing.check_sample(self.con, bound, self.entry.where)
        except FinegrainError:
            for name in bound.fields:
                try:
                    landing.check_sample(self.con, replace(bound, fields=(name,)), self.entry.where)
                except FinegrainError as error:
                    self.refused(error, name)

    # --- checks --- -------------------------------------------------------------------------------------------------

    def ask(self, select: str, where: str = "true", rest: str = "") -> list[tuple[Any, ...]]:
        """Query the rows that could be read; `rest` follows the condition."""
        return self.con.execute(
            f"select {select} from {identifier(self.table)} where __bad is null and ({where}) {rest}"
        ).fetchall()

    def about(self, rows: int) -> str:
        """A count of rows as text, with the total and the share."""
        good = self.seen.looked_at - self.seen.malformed
        return f"{rows:,} of {good:,} rows{'' if self.seen.looked_at == self.seen.rows else ' looked at'} ({_share(rows, good)})"

    def common(self, select: str, where: str) -> str:
        """The most common values of an expression, as a list for a sentence."""
        found = self.ask(
            f"{select} as v, count(*)", f"({where}) and {select} is not null", "group by v order by 2 desc, 1 limit 3"
        )
        return ", ".join(f"'{_brief(value)}'" + (f" ({count:,})" if count > 1 else "") for value, count in found)

    def validate(self) -> None:
        """Run all checks on the rows."""
        if not self.bounds:
            return
        if not self.seen.rows:
            self.say("warning", "no rows at all")
            return
        self._malformed()
        good = self.seen.looked_at - self.seen.malformed
        if not good:
            return
        self._look_at_fields(good)
        self._required(good)
        self._buyers()
        self._arrival()
        self._names()
        self._limits()
        self._repeats()
        self._ids()
        if self.unread:
            files = len(self.bounds)
            names = [
                f"'{name}'" + ("" if count == files else f" (in {count} of {files} files)")
                for name, count in self.unread.items()
            ]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            kept = "it" if len(names) == 1 else "them"
            self.say("note", f"nothing maps {', '.join(names[:NAMED])}{more}; the payload keeps {kept}")
        self._personal()

    def _personal(self) -> None:
        """Say which columns hold personal data, and what is done with it."""
        held: dict[str, list[str]] = {}
        for name in dict.fromkeys([*self.unread, *(source.key or "" for source in self.entry.mapping.fields.values())]):
            found = self.entry.mapping.policy.of(self.table, name)
            if found is not None:
                held.setdefault(found[1], []).append(f"'{name}'")
        done = {"hash": "hashed", "drop": "dropped"}
        said = "; ".join(f"{done[treatment]}: {', '.join(names[:NAMED])}" for treatment, names in sorted(held.items()))
        if said:
            self.say("note", f"personal data, by the names of columns: {said} (personal: in the mapping)")

    def _malformed(self) -> None:
        bad, looked_at = self.seen.malformed, self.seen.looked_at
        if not bad:
            return
        found = self.con.execute(
            f"select __bad, count(*), min_by(__n, (__file, __n)), min_by(__file, (__file, __n)) "
            f"from {identifier(self.table)} where __bad is not null group by 1 order by 2 desc, 1 limit 3"
        ).fetchall()
        why = "; ".join(
            f"{said}: {count:,}, first {console.shown(self.entry.files[file].name)}#{n}"
            for said, count, n, file in found
        )
        level: Level = "error" if bad == looked_at else "warning"
        share = _share(bad, looked_at)
        arrows = any(f"the sql of {name} fails" in why and "->" in text for name, text in self._expressions().items())
        self.say(
            level,
            f"{bad:,} of {looked_at:,} rows ({share}) cannot be read and would be quarantined whole ({why})"
            + (f"; {landing.ARROWS}" if arrows else ""),
        )

    def _expressions(self) -> dict[str, str]:
        """The entry's SQL, by its name in errors."""
        mapping = self.entry.mapping
        found = {name: source.sql for name, source in mapping.fields.items()} | {"where": mapping.where}
        if isinstance(mapping.available_at, Sql):
            found["available_at"] = mapping.available_at.sql
        return {name: text for name, text in found.items() if text is not None}

    def _kind(self, name: str) -> tuple[str, str]:
        """(kind, SQL of its value) of a field."""
        if contracts.is_time(name):
            return "time", parse_time(clean(name), quote(self.entry.zone))
        if name in NUMBERS:
            return "number", f"try_cast({clean(name)} as decimal(38, 6))"
        nested = RAW_TABLES[self.entry.table][name] != "VARCHAR"
        return ("nested", identifier(name)) if nested else ("text", clean(name))

    def _look_at_fields(self, good: int) -> None:
        for name in self.fields:
            kind, value = self._kind(name)
            filled_if = identifier(name) if kind == "nested" else clean(name)
            ordered = kind in ("time", "number")
            bounds = f"min({value}), max({value})" if ordered else "null, null"
            example = (
                "null"
                if kind == "nested"
                else f"min_by({clean(name)}, (__file, __n)) filter ({clean(name)} is not null)"
            )
            [(filled, read, first, last, one)] = self.ask(f"count({filled_if}), count({value}), {bounds}, {example}")
            source = self.entry.mapping.fields.get(name)
            origin = "place" if source is None and self.entry.table != "ga4_events" else name
            if source is not None:
                origin = source.reads or ("sql" if source.sql else f"= {source.value}")
            self.seen.fields.append(
                FieldLook(
                    name,
                    origin,
                    kind,
                    filled,
                    read,
                    _bound_text(first),
                    _bound_text(last),
                    _brief(one) if one else None,
                )
            )
            hint = self._spelling(clean(name), value, source) if kind == "time" and read < filled else ""
            said = [finding for finding in self.seen.findings if finding.field == name and finding.level == "error"]
            if said:
                if hint and f" {kind};" in said[0].message:  # the loader's refusal
                    self.seen.findings[self.seen.findings.index(said[0])] = replace(
                        said[0], message=said[0].message + hint
                    )
                continue
            if read < filled:
                bad = self.common(clean(name), f"{value} is null") + hint
                word = "a time" if kind == "time" else "a number"
                if read:
                    self.say("warning", f"{self.about(filled - read)} have a value that is not {word}: {bad}", name)
                else:
                    self.say("error", f"none of its {filled:,} values is {word}: {bad}", name)
            elif not filled and source is not None and name not in _required_names(self.entry.table):
                self.say("warning", "empty in every row", name)
            if kind == "time" and read:
                self._times(name, value, first)

    def _spelling(self, text: str, value: str, source: Any) -> str:
        """A suggested `format` for the texts (SQL) whose `value` (SQL) is null, as the end of a sentence; "" if no known format fits. `source`
        is a field or a column of the mapping."""
        found = self.ask(f"distinct {text}", f"{text} is not null and {value} is null", f"order by 1 limit {_TRIED}")
        left = [str(row[0]) for row in found]
        first, last = _variable("earliest_year"), _variable("latest_year")
        dated = [
            each for each in left if each[4:5] == "-" and each[:4].isdecimal() and not first <= int(each[:4]) <= last
        ]
        years = f" (years outside {first}..{last} are not valid)" if dated else ""
        formats, others, count = list(getattr(source, "format", ())), [], len(left)
        while len(left) > (1 - _NEARLY_ALL) * count:
            fitting, left = _fitting(self.con, left)
            if not fitting:
                return years
            formats.append(fitting[0])
            others += fitting[1:]
        if not count or (others and len(formats) > 1):
            return years
        where = "sql: …" if getattr(source, "column", None) is None else f"column: {source.column}"
        if getattr(source, "element", None) is not None:
            where = f"element: {source.element}"
        if others:
            both = " and ".join(quote(each) for each in (*formats, *others))
            return f"{years}; {both} fit all of them alike, so it is not clear which is meant; set it, as in {{{where}, format: {quote(formats[0])}}}"
        said = quote(formats[0]) if len(formats) == 1 else f"[{', '.join(map(quote, formats))}]"
        return f"{years}; write {{{where}, format: {said}}}"

    def _times(self, name: str, value: str, first: datetime) -> None:
        odd = landing.local_time_is_odd(clean(name), quote(self.entry.zone))
        [(count,)] = self.ask("count(*)", odd)
        if count:
            examples = self.common(clean(name), odd)
            what = f"local times that occur twice or never in {self.entry.zone}, because of clock changes"
            self.say("note", f"{self.about(count)} are {what}: {examples}; if there are two, the first is used", name)
        if first < datetime(2000, 1, 1):
            [(count,)] = self.ask("count(*)", f"{value} < timestamp '2000-01-01'")
            examples = self.common(clean(name), f"{value} < timestamp '2000-01-01'")
            self.say(
                "warning",
                f"{self.about(count)} are dated before 2000: {examples}; is the unit of epoch time right?",
                name,
            )
        late = f"timestamp {quote(str(self.now + timedelta(minutes=_variable('future_tolerance_minutes', 10))))}"
        said = "dated in the future"
        if name == EVENT_TIME[self.entry.table] and not isinstance(self.entry.mapping.available_at, str):
            arrived = parse_time("trim(__available)", quote(self.entry.zone))
            minutes = _variable("future_tolerance_minutes", 10)
            late = f"least(coalesce({arrived}, {late}) + interval {int(minutes)} minute, {late})"
            said = "dated later than they arrived, or in the future"
        [(count,)] = self.ask("count(*)", f"{value} > {late}")
        if count:
            level: Level = "error" if count == self.seen.fields[-1].read else "warning"
            quarantine = ", and would be quarantined" if self.entry.table in ("events", "ga4_events", "refunds") else ""
            self.say(
                level,
                f"{self.about(count)} are {said}{quarantine}: {self.common(clean(name), f'{value} > {late}')}",
                name,
            )

    def _required(self, good: int) -> None:
        for names in _GA4_REQUIRED if self.entry.table == "ga4_events" else REQUIRED[self.entry.table]:
            mapped = [name for name in names if name in self.fields]
            if not mapped or any(f.field in mapped and f.level == "error" for f in self.seen.findings):
                continue
            empty = " and ".join(f"{clean(name)} is null" for name in mapped)
            [(missing,)] = self.ask("count(*)", empty)
            if missing:
                [(file, n)] = self.ask("__file, __n", empty, "order by 1, 2 limit 1")
                place = f"{console.shown(self.entry.files[file].name)}#{n}"
                what = "empty" if len(mapped) == 1 else f"{' and '.join(mapped)} are both empty"
                hint = self._order_as_identity(empty) if "user_id" in names else ""
                if missing == good:
                    self.say("error", f"{what} in every row, so no row can be used{hint}", mapped[0])
                else:
                    said = f"{what} in {self.about(missing)}, first {place}; such rows cannot be used{hint}"
                    self.say("warning", said, mapped[0])

    def _buyers(self) -> None:
        """Report orders without a buyer: their lines get an identity only from them."""
        if self.entry.table != "orders" or "order_id" not in self.fields:
            return
        mapped = [name for name in ("user_id", "anonymous_id") if name in self.fields]
        empty = " and ".join(f"{clean(name)} is null" for name in mapped) or "true"
        # One version of an order with a buyer is enough.
        [(orders, without)] = self.con.execute(
            f"select count(*), count(*) filter (is_empty) from (select bool_and({empty}) as is_empty from {identifier(self.table)} "
            f"where __bad is null and {clean('order_id')} is not null group by {clean('order_id')})"
        ).fetchall()
        if without:
            looked_at = "" if self.seen.looked_at == self.seen.rows else " looked at"
            how = "are both empty" if len(mapped) == 2 else f"{mapped[0]} is empty" if mapped else "are not mapped"
            what = how if len(mapped) == 1 else f"user_id and anonymous_id {how}"
            self.say(
                "warning",
                f"{what} in {without:,} of {orders:,} orders{looked_at} ({_share(without, orders)}); their lines in order_items would be "
                f"quarantined (missing_identity){self._order_as_identity(empty)}",
                mapped[0] if mapped else "",
            )

    def _order_as_identity(self, empty: str) -> str:
        """A hint for rows without an identity (`empty`) that have an order id: it can be used as the identity."""
        fields = self.entry.mapping.fields
        if "order_id" not in self.fields or not self.ask(
            "1", f"({empty}) and {clean('order_id')} is not null", "limit 1"
        ):
            return ""
        user, anonymous, order = (_sql_of(fields.get(name)) for name in ("user_id", "anonymous_id", "order_id"))
        text = order if user is None else f"case when {user} is null then {order} end"
        text = text if anonymous is None else f"coalesce({anonymous}, {text})"
        column = fields["order_id"].column
        given = column if text == order and column is not None else {"sql": text}
        shown = yaml.safe_dump({"anonymous_id": given}, default_flow_style=True, allow_unicode=True, width=10**6)
        return f"; to use the order in place of its buyer, write {shown.strip()[1:-1]}"

    def _arrival(self) -> None:
        how = self.entry.mapping.available_at
        if how == "now":
            self.say("note", "available_at: now; every row counts as available only from the time it is loaded")
        if not isinstance(how, str) and self.bounds[0].entry.available_at != "now":
            text = str(macros("fields.sql").clean_text("__available"))
            parsed = parse_time("trim(__available)", quote(self.entry.zone))
            of = f"'{how.column}'" if isinstance(how, Column) else "the result of its sql"
            [(bad,)] = self.ask("count(*)", f"{parsed} is null")
            if bad:
                examples = self.common("__available", f"{text} is not null and {parsed} is null")
                hint = self._spelling(text, parsed, how) if isinstance(how, Column) else ""
                what = f"have no valid time in {of}" + (f": {examples}{hint}" if examples else "")
                level: Level = "error" if bad == self.seen.looked_at - self.seen.malformed else "warning"
                self.say(level, f"available_at: {self.about(bad)} {what}; they count as available when they are loaded")

    def _names(self) -> None:
        """Report names that are not in the seeds."""
        kind = "event_name" if self.entry.table == "ga4_events" else "event_type"
        if kind in self.fields:
            known = _seed("event_types", "raw_name")
            spelling = str(macros("fields.sql").event_spelling(clean(kind)))
            spellings = [
                row[0]
                for row in self.con.execute(
                    f"select {macros('fields.sql').event_spelling('x')} from (select unnest([{', '.join(map(quote, known))}]) as x)"
                ).fetchall()
            ]
            said = f"{seed_file('event_types')} does not map"
            self._unknown(kind, spelling, [*known, *spellings], said, "would be quarantined")
        if "currency" in self.fields:
            currencies = list(self.shop.currencies)
            parts = zip(_seed("minor_currencies", "minor_currency"), _seed("minor_currencies", "currency"), strict=True)
            currencies += [part.upper() for part, whole in parts if whole.upper() in currencies]
            code = str(macros("fields.sql").currency_code(identifier("currency")))
            said, then = "there is no exchange rate for", "have no price that could be used"
            self._unknown("currency", code, currencies, said, f"{then}; finegrain rates update loads more currencies")
        consent = "privacy_info" if self.entry.table == "ga4_events" else "consent"
        if consent in self.fields:
            given = "privacy_info.analytics_storage" if consent == "privacy_info" else clean(consent)
            said_of = str(macros("engine/functions.sql").duckdb__texts_of_json(given, _variable("consent_keys", ())))
            words = ", ".join(map(quote, _seed("consent_words", "word")))
            unknown = f"{given} is not null and (len({said_of}) = 0 or not list_has_all([{words}], {said_of}))"
            [(rows,)] = self.ask("count(*)", unknown)
            if rows:
                self.say(
                    "warning",
                    f"{seed_file('consent_words')} does not know {self.common(given, unknown)}; {self.about(rows)} give no consent that "
                    "could be read, and would be quarantined",
                    consent,
                )
        if "status" in self.fields:
            spelled = str(macros("fields.sql").status_spelling(clean("status")))
            said = f"{seed_file('order_statuses')} does not know"
            self._unknown("status", spelled, _seed("order_statuses", "raw_status"), said, "would count as sold")
        if "weight_unit" in self.fields:
            units = _seed("unit_conversions", "unit")
            said = f"{seed_file('unit_conversions')} does not contain"
            self._unknown(
                "weight_unit", f"lower({clean('weight_unit')})", units, said, "have a weight that cannot be used"
            )
        money = next((name for name in ("price", "amount") if name in self.fields), None)
        if money and "currency" not in self.fields:
            self.say("note", f"no currency is mapped, so {self.shop.reporting_currency} is assumed", money)
        if self.entry.table == "ga4_events" and self.entry.mapping.currency is None:
            silent = "len(items) > 0 and len(list_filter(event_params, lambda p: p.key = 'currency')) = 0"
            [(rows,)] = self.ask("count(*)", silent)
            if rows:
                self.say(
                    "note",
                    f"{self.about(rows)} have items but no currency, so {self.shop.reporting_currency} is assumed; "
                    "set the property's currency with the mapping's key currency",
                    "event_params",
                )
        if "category" in self.fields:
            spelling = str(macros("fields.sql").category_spelling(clean("category")))
            known = [*_seed("category_map", "raw_category"), *_seed("category_map", "category")]
            found = self.ask(f"{spelling} as v", f"{spelling} is not null", "group by v order by count(*) desc, 1")
            strange = [str(value) for (value,) in found if value not in known]
            if strange:
                most = ", ".join(f"'{_brief(value)}'" for value in strange[:3])
                self.say(
                    "note",
                    f"{seed_file('category_map')} does not contain {most}{' …' if len(strange) > 3 else ''} ({len(strange):,} of "
                    f"{len(found):,} spellings); each is kept as it is, or corrected if it is a misspelling of a mapped one",
                    "category",
                )

    def currencies(self) -> set[str]:
        """The currencies in the rows."""
        if not self.bounds or not self.seen.rows:
            return set()
        if self.entry.table == "ga4_events":
            name = "list_filter(event_params, lambda p: p.key = 'currency')[1].value.string_value"
            said = {self.entry.mapping.currency} if self.entry.mapping.currency else set()
            return said | {str(each) for (each,) in self.ask(f"distinct {name}", f"{name} is not null")}
        if "currency" not in self.fields:
            return set()
        code = str(macros("fields.sql").currency_code(identifier("currency")))
        return {str(each) for (each,) in self.ask(f"distinct {code}", f"{code} is not null")}

    def _unknown(self, name: str, value: str, known: Iterable[str], said: str, then: str) -> None:
        known = list(known)
        unknown = f"{value} is not null and not list_contains([{', '.join(quote(each) for each in known)}], {value})"
        found = self.ask(f"min({clean(name)}), count(*), {value} as v", unknown, "group by v order by 2 desc, 3")
        if not found:
            return
        rows = sum(count for _, count, _ in found)
        filled = next(each.filled for each in self.seen.fields if each.name == name)
        shown = []
        for spelled, count, _ in found[:5]:
            hint = nearest(str(spelled), known)
            shown.append(f"'{_brief(spelled)}' ({count:,}{hint if 'did you mean' in hint else ''})")
        more = f" and {len(found) - 5:,} more" if len(found) > 5 else ""
        level: Level = "error" if rows == filled else "warning"
        self.say(level, f"{said} {', '.join(shown)}{more}; {self.about(rows)} {then}", name)

    def _limits(self) -> None:
        """Report numbers out of range: they quarantine the row or, for customers and orders, make the value null."""
        limits = [
            ("price", "< 0", "max_price"),
            ("quantity", "<= 0", "max_quantity"),
            ("amount", "< 0", "max_amount"),
            ("discount", "< 0", "max_amount"),
        ]
        then = "would be quarantined"
        if self.entry.table == "orders":
            limits = [(name, "< 0", "max_amount") for name in ("discount", "tax", "shipping", "total")]
            then = "would be treated as missing"
        if self.entry.table == "customers":
            born = f"< {_variable('earliest_birth_year', 1850)}"
            limits = [
                ("income", "< 0", "max_income"),
                ("household_size", "< 1", "max_household_size"),
                ("birth_year", born, "latest_year"),
            ]
            then = "would be null"
        for name, low, limit in limits:
            if name not in self.fields:
                continue
            value = self._kind(name)[1]
            most = int(_variable(limit, 0))
            outside = f"{value} {low} or {value} > {most}"
            [(count,)] = self.ask("count(*)", outside)
            if count:
                self.say(
                    "warning",
                    f"{self.about(count)} are {low} or > {most if name == 'birth_year' else f'{most:,}'}, and {then}: {self.common(clean(name), outside)}",
                    name,
                )

    def _repeats(self) -> None:
        """Report rows with the same key. In a large table, a sample of keys is searched in all rows, because a sample of rows would miss most
        repetitions."""
        key, *others = KEYS.get(self.entry.table, ("",))
        if key not in self.fields:
            return
        names = [key, *(name for name in others if name in self.fields)]
        apart = names if self.entry.table == "events" else [*names, "__available"]
        whole = self.seen.looked_at == self.seen.rows
        shown = ", ".join(identifier(name) for name in apart)
        rows = (
            identifier(self.table)
            if whole
            else "("
            + " union all ".join(
                f"(select {shown}, __bad from ({bound.rows}) where hash({identifier(key)}) % {self.step} = 0)"
                for bound in self.bounds
                if set(names) <= set(bound.fields)
            )
            + ")"
        )
        [(again, example)] = self.con.execute(
            f"select coalesce(sum(n - 1), 0)::bigint, max_by({identifier(key)}, n) filter (n > 1) from (select {shown}, count(*) as n "
            f"from {rows} where __bad is null and {clean(key)} is not null group by {shown})"
        ).fetchall()
        if not again:
            return
        about = f"{again:,}" if whole else f"about {again * self.step:,}"
        then = "a repeated event counts once" if self.entry.table == "events" else "it is not clear which one is right"
        level: Level = "note" if self.entry.table == "events" else "warning"
        self.say(
            level,
            f"{about} rows have the same {' + '.join(names)} as another, for example '{_brief(example)}'; {then}",
            key,
        )

    def _ids(self) -> None:
        """Report ids that are null words, rounded or ambiguous."""
        words = ", ".join(map(quote, _seed("null_words", "word")))
        for name in (name for name in self.fields if name in IDS):
            given, text = str(macros("fields.sql").clean_text(identifier(name))), clean(name)
            [(count,)] = self.ask("count(*)", f"lower({given}) in ({words})")
            if count:
                examples = self.common(given, f"lower({given}) in ({words})")
                self.say(
                    "warning",
                    f"{self.about(count)} have a word that means null, {examples}, and count as empty ({seed_file('null_words')})",
                    name,
                )
            rounded = f"regexp_full_match({text}, {quote(ROUNDED)})"
            [(count,)] = self.ask("count(*)", rounded)
            if count:
                self.say(
                    "warning",
                    f"{self.about(count)} are in scientific notation: {self.common(text, rounded)}; a spreadsheet has rounded them, so "
                    "the original ids are lost; such rows are quarantined (unusable_id)",
                    name,
                )
            found = self.ask(
                f"count(distinct {text}) as spellings, min({text}), max({text})",
                f"{text} is not null",
                f"group by lower({text}) having spellings > 1 order by 2",
            )
            if found:
                _, one, other = found[0]
                more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
                self.say(
                    "warning",
                    f"ids that differ only in case: '{_brief(one)}' and '{_brief(other)}'{more}; they are different ids, unless the mapping "
                    "has ids: case_insensitive",
                    name,
                )
            if name in PERSONS:
                self._crowds(name, text)
        if {"currency", "order_id"} <= set(self.fields) and self.entry.mapping.explode is None:
            self._currencies()

    def _crowds(self, name: str, text: str) -> None:
        """Report ids with so many rows that they may be placeholders for unknown persons."""
        [(filled,)] = self.ask(f"count({text})")
        found = self.ask(
            f"{text} as v, count(*) as n",
            f"{text} is not null",
            f"group by v having n >= {CROWD} and n > {CROWD_SHARE} * {filled} order by n desc, v limit 5",
        )
        if found:
            shown = ", ".join(f"'{_brief(value)}' ({_share(count, filled)})" for value, count in found)
            words = yaml.safe_dump(
                [value for value, _ in found], default_flow_style=True, default_style='"', width=10**6
            )
            self.say(
                "warning",
                f"single ids on more than {CROWD_SHARE:.0%} of the {filled:,} rows that have one: {shown}; if such an id means an "
                f"unknown person, write null_ids: {words.strip()}",
                name,
            )

    def _currencies(self) -> None:
        """Report orders with a currency on only some of their rows."""
        order, currency = clean("order_id"), clean("currency")
        [(orders, rows)] = self.con.execute(
            f"select count(*), coalesce(sum(without), 0)::bigint from (select count(*) - count({currency}) as without, count({currency}) as with_it "
            f"from {identifier(self.table)} where __bad is null and {order} is not null group by {order}) where without > 0 and with_it > 0"
        ).fetchall()
        if orders:
            columns = [self.entry.mapping.fields[name].column or name for name in ("currency", "order_id")]
            self.say(
                "warning",
                f"empty in {self.about(rows)}, of {_count(orders, 'order')} with a currency on another row; if that is the currency of the whole order, "
                f"write carry: {{columns: [{columns[0]}], within: {columns[1]}}}",
                "currency",
            )

    def note_what_is_loaded(self, loaded: _Loaded) -> None:
        """Report files that a load would skip, or reject because the mapping has changed."""
        there: dict[bool, list[str]] = {True: [], False: []}
        for file, seen in self.looks.items():
            key = (self.plan.source, self.entry.table, file.name, seen.fingerprint)
            if key in loaded.files:
                readers = [each for each in self.plan.entries if each.table == self.entry.table and file in each.files]
                there[loaded.files[key] == fingerprint_of(readers)].append(file.name)
        for same, names in there.items():
            if names:
                some = f"{', '.join(map(console.shown, names[:3]))}{' …' if len(names) > 3 else ''}"
                self.say(
                    "note" if same else "warning",
                    f"in the lake already, so a load skips: {some}"
                    if same
                    else f"loaded by another mapping: {some}; a load lands nothing of this one if their rows would change, "
                    "unless you use --remap, which replaces them, or --keep, which leaves them as they are",
                )


def _unread(bound: Bound) -> list[str]:
    """The columns of a file that the mapping does not read."""
    if bound.table == "ga4_events":
        return []
    names = bound.opened.names
    wanted = {name.lower() for name in landing.read_columns(bound.table, bound.entry, names)}
    return [name for name in names if name.lower() not in wanted]


def _fitting(con: duckdb.DuckDBPyConnection, texts: list[str]) -> tuple[list[str], list[str]]:
    """Returns the format that parses most of the texts, with any others that parse the same texts as different times; and the texts left over."""
    first, last = _variable("earliest_year"), _variable("latest_year")
    # Planning takes most of the time, so try only formats whose punctuation occurs in some text.
    marks = {frozenset(char for char in text if not char.isalnum()) for text in texts}
    spellings = [day + clock for day in _DAYS for clock in _CLOCKS] + list(_WHOLE)
    spellings = [each for each in spellings if any(set(re.sub("%.|[a-zA-Z]", "", each)) <= seen for seen in marks)]
    if not spellings:
        return [], texts
    rows = f"(select x, unnest([{', '.join(strptime('x', each) for each in spellings)}]) as t, unnest(range({len(spellings)})) as n from (select unnest($1::varchar[]) as x))"
    good = f"year(t) between {int(first)} and {int(last)}"
    found = con.execute(
        f"select n, bit_xor(hash(x)), bit_xor(hash(x, t)) from {rows} where {good} group by n "
        "qualify count(*) = max(count(*)) over () order by n",
        [texts],
    ).fetchall()
    if not found:
        return [], texts
    fitting: dict[int, str] = {}
    for n, which, moments in found:
        if which == found[0][1]:
            fitting.setdefault(moments, spellings[n])
    left = con.execute(f"select x from {rows} where n = {found[0][0]} and ({good}) is not true", [texts]).fetchall()
    return list(fitting.values()), [str(x) for (x,) in left]


def _sql_of(source: Field | None) -> str | None:
    """SQL of a field's source; None for a constant or an unmapped field."""
    if source is None or (source.reads is None and source.sql is None):
        return None
    for holder in ("element", "parent"):
        if (keys := getattr(source, holder)) is not None:
            return f"({holder}->>'$.{keys}')"
    return identifier(source.column) if source.column is not None else f"({source.sql})"


def _required_names(table: str) -> set[str]:
    return {name for names in (_GA4_REQUIRED if table == "ga4_events" else REQUIRED[table]) for name in names}


def _brief(value: Any) -> str:
    text = console.shown(masked(" ".join(str(value).split())))
    return text if len(text) <= 40 else text[:39] + "…"


def _bound_text(value: Any) -> str | None:
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    return None if value is None else f"{value:f}".rstrip("0").rstrip(".")


# --- entries together --------------------------------------------------------------------------------------------


class _Loaded:
    """What the lake already has: `files` (source, table, name, fingerprint) with the fingerprint of their mapping; `ids` of customers and products."""

    def __init__(self, where: Settings) -> None:
        self.files: dict[tuple[str, str, str, str], str] = {}
        self.ids: dict[str, list[str]] = {"customers": [], "products": []}
        try:
            if not lake.exists(where):
                return
            con = lake.connect(where, read_only=True)
        except (duckdb.Error, FinegrainError):
            return  # reported by the check of the machine
        try:
            loads = con.execute(
                "select source, raw_table, file, fingerprint, mapping from lake.raw.loads order by loaded_at, rowid"
            ).fetchall()
            self.files = {(of, table, file, fingerprint): by for of, table, file, fingerprint, by in loads}
            for table in self.ids:
                key = clean(KEYS[table][0])
                found = con.execute(
                    f"select distinct {key} from lake.raw.{table} as t where {key} is not null and not {is_deleted(table, 't')}"
                ).fetchnumpy()
                self.ids[table] = list(next(iter(found.values())))
        except duckdb.Error:
            pass
        finally:
            con.close()


def _reporting_currency(exams: Sequence[_Exam], shop_settings: Shop) -> None:
    """Suggest a reporting currency if all prices are in one other currency."""
    named = {exam: exam.currencies() for exam in exams}
    found = set().union(*named.values())
    if (
        shop_settings.has_reporting_currency
        or len(found) != 1
        or found == {shop_settings.reporting_currency}
        or not found <= {*shop_settings.currencies}
    ):
        return
    [currency] = found
    first = next(exam for exam in exams if named[exam])
    field = "event_params" if first.entry.table == "ga4_events" else "currency"
    first.say(
        "warning",
        f"every price is in {currency}, and will be reported in {shop_settings.reporting_currency}: write reporting_currency: {currency} beside "
        f"source in {console.shown(first.plan.path)} to have it reported in {currency}",
        field,
    )


def _say_once(entries: Sequence[EntryLook]) -> None:
    """Merge equal findings of several entries: the first entry keeps it, and names the others."""
    first: dict[tuple[str, ...], tuple[EntryLook, Finding, list[str]]] = {}
    for entry in entries:
        for finding in list(entry.findings):
            key = (*entry.files, finding.level, finding.field, finding.message)
            if key in first:
                entry.findings.remove(finding)
                first[key][2].append(finding.where)
            else:
                first[key] = (entry, finding, [])
    for entry, finding, others in first.values():
        if others:
            also = replace(finding, message=f"{finding.message} (also in {entries_together(others)})")
            entry.findings[entry.findings.index(finding)] = also


def _same_bytes(exams: Sequence[_Exam]) -> None:
    """Report files with equal content: each of their rows would land twice."""
    for exam in exams:
        first: dict[str, DataFile] = {}
        for file, seen in exam.looks.items():
            twin = first.setdefault(seen.fingerprint, file)
            if twin is not file:
                exam.say("warning", f"{file} has the same bytes as {twin}; each of its rows would land twice")


def _orphans(con: duckdb.DuckDBPyConnection, exams: Sequence[_Exam], loaded: _Loaded, what: str, name: str) -> None:
    """Report customers and products that rows refer to, and that are neither in the mappings nor in the lake."""
    asking = [exam for exam in exams if exam.bounds and what in exam.entry.mapping.expects]
    if not asking:
        return
    key = KEYS[what][0]
    given = [
        f"select distinct {clean(key)} as id from ({bound.rows}) where __bad is null"
        for exam in exams
        if exam.entry.table == what
        for bound in exam.bounds
        if key in bound.fields
    ]
    known = f"__known_{what}"
    con.execute(
        f"create temp table {known} as {' union all '.join(given)}"
        if given
        else f"create temp table {known} (id varchar)"
    )
    if loaded.ids[what]:
        con.execute(f"insert into {known} select unnest(?)", [loaded.ids[what]])
    for exam in asking:
        items = exam.entry.table == "ga4_events" and what == "products"
        if not items and name not in exam.fields:
            continue
        if not given and not loaded.ids[what]:
            exam.say(
                "warning",
                f"expects {what}, but no mapping looked at here provides them and the lake holds none; rows that name one wait "
                "in quarantine until they arrive",
            )
            continue
        relation, ids = (
            identifier(exam.table),
            f"select {clean(name)} as given from {identifier(exam.table)} where __bad is null",
        )
        if items:
            ids = f"select nullif(trim(item.item_id), '') as given from (select unnest(items) as item from {relation} where __bad is null)"
        missing = f"given is not null and given not in (select id from {known} where id is not null)"
        [(rows, lost)] = con.execute(f"select count(given), count(*) filter ({missing}) from ({ids})").fetchall()
        if lost:
            found = con.execute(
                f"select given from ({ids}) where {missing} group by 1 order by count(*) desc, 1 limit 3"
            ).fetchall()
            examples = ", ".join(f"'{_brief(row[0])}'" for row in found)
            field = "items" if items else name
            exam.say(
                "error" if lost == rows else "warning",
                f"{lost:,} of {rows:,} ids ({_share(lost, rows)}) are not among the {what}: {examples}; such rows wait in quarantine",
                field,
            )


# --- seeds and variables -----------------------------------------------------------------------------------------


@cache
def _seed(seed: str, column: str) -> list[str]:
    """A column of a seed, in lower case as the models compare it."""
    return [row[column].lower() for row in seed_rows(seed) if row[column]]


# --- the machine -------------------------------------------------------------------------------------------------


def _checks(where: Settings) -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    yield Check("error" if old else "fine", "Python", version + (": finegrain needs 3.11 or newer" if old else ""))
    yield _duckdb(where)
    try:
        core, adapter = importlib.metadata.version("dbt-core"), importlib.metadata.version("dbt-duckdb")
        yield Check("fine", "dbt", f"dbt-core {core}, dbt-duckdb {adapter}")
    except importlib.metadata.PackageNotFoundError as error:
        yield Check("error", "dbt", f"{error.name} is not installed; run make setup")
    yield _packages()
    yield _lake(where)
    yield _warehouse(where)
    yield _published(where)
    yield _access(where)
    yield _memory()
    free = shutil.disk_usage(_existing(where.home)).free
    little = free < LITTLE_SPACE
    yield Check(
        "warning" if little else "fine",
        "disk",
        f"{free / 2**30:.1f} GB free at {where.home}" + ("; a build may need more" if little else ""),
    )


def _duckdb(where: Settings) -> Check:
    try:
        wheel = importlib.metadata.version("duckdb-extension-ducklake")
        if wheel != duckdb.__version__:
            return Check(
                "error",
                "DuckDB",
                f"{duckdb.__version__}, but its extensions are of {wheel}; the versions must be equal",
            )
        where.extensions.mkdir(parents=True, exist_ok=True)
        with duckdb.connect(config=lake.extension_options(where)) as con:
            lake.load_extensions(con, where)
    except (duckdb.Error, OSError, ImportError) as error:
        return Check("error", "DuckDB", f"{duckdb.__version__}; its extensions do not load: {_line(error)}")
    *others, last = lake.extensions(where)
    return Check("fine", "DuckDB", f"{duckdb.__version__} with {', '.join(others)} and {last}")


def _memory() -> Check:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = settings.Environment.read().memory
    if settings.memory_bytes(limit) > there:
        said = f"FINEGRAIN_MEMORY is {limit}, but this machine has {there / 10**9:.1f} GB, so a build may run out of memory; lower FINEGRAIN_MEMORY"
        return Check("warning", "memory", said)
    return Check("fine", "memory", f"{there / 10**9:.1f} GB, of which DuckDB may use {limit} in a build")


def _packages() -> Check:
    folder = settings.PROJECT / "dbt_packages" / "dbt_expectations"
    if not (folder / "dbt_project.yml").is_file() and settings.PROJECT != settings.PACKAGE:
        return Check(
            "warning",
            "dbt packages",
            "not in dbt_packages/ yet; the next finegrain build, or dbt deps, puts them there",
        )
    if not (folder / "dbt_project.yml").is_file():
        return Check("error", "dbt packages", "dbt_expectations is not in dbt_packages/; run make setup, or dbt deps")
    if folder.resolve().parent.name == "fallback_packages":
        return Check("fine", "dbt packages", "dbt_expectations: the stand-in of fallback_packages/")
    version = yaml.safe_load((folder / "dbt_project.yml").read_text("utf-8")).get("version", "")
    return Check("fine", "dbt packages", f"dbt_expectations {version} of dbt's hub")


def _lake(where: Settings) -> Check:
    closed = [place for place in sorted(lake.places(where)) if not os.access(_existing(place), os.W_OK)]
    if closed:
        return Check("error", "lake", f"{closed[0]} cannot be written")
    try:
        if not lake.exists(where):
            return Check("fine", "lake", f"none yet at {where.lake_catalog}; the first load makes it")
        con = lake.connect(where, read_only=True)
    except FinegrainError as error:
        return Check("error", "lake", str(error))
    except duckdb.Error as error:
        return Check("error", "lake", f"{where.lake_catalog} cannot be opened: {_line(error)}")
    try:
        [(snapshot,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
        counts = {table: con.execute(f"select count(*) from lake.raw.{table}").fetchall()[0][0] for table in RAW_TABLES}
    except duckdb.Error as error:
        return Check("error", "lake", f"{where.lake_catalog} cannot be read: {_line(error)}")
    finally:
        con.close()
    held = ", ".join(f"{count:,} {table}" for table, count in counts.items() if count)
    return Check("fine", "lake", f"snapshot {snapshot}: {held or 'no rows'}")


def _warehouse(where: Settings) -> Check:
    if not where.warehouse.exists():
        return Check("fine", "warehouse", f"none yet at {where.warehouse}; finegrain build makes it")
    size = f"{where.warehouse.stat().st_size / 2**20:,.0f} MB"
    try:
        with duckdb.connect(str(where.warehouse), read_only=True) as con:
            found = con.execute(
                "select command, status, built_from from main.builds order by number desc nulls last limit 1"
            ).fetchall()
    except duckdb.CatalogException:
        return Check("warning", "warehouse", f"{size}; it holds no build")
    except duckdb.BinderException:
        return Check("warning", "warehouse", f"{size}; an earlier version of finegrain built it; run finegrain build")
    except duckdb.Error as error:
        if "lock" in str(error).lower():
            return Check("fine", "warehouse", f"{size}; another process is writing it")
        return Check("error", "warehouse", f"{where.warehouse} cannot be opened: {_line(error)}")
    if not found:
        return Check("warning", "warehouse", f"{size}; it holds no build")
    command, status, snapshot = found[0]
    level: Literal["warning", "fine"] = "fine" if status == "passed" else "warning"
    return Check(level, "warehouse", f"{size}; the last dbt {command}, of snapshot {snapshot}: {status}")


def _published(where: Settings) -> Check:
    from orchestration.config.published import current

    folder = current(where)
    if folder is None:
        return Check("fine", "published", f"nothing yet at {where.published}; finegrain publish puts it there")
    return Check("fine", "published", f"version {folder.name} at {where.published}")


def _access(where: Settings) -> Check:
    """Whether other users of this machine can read existing files, which earlier versions allowed. New files are private (FINEGRAIN_UMASK)."""
    if not settings.Environment.read().umask & 0o004:
        return Check("fine", "access", "FINEGRAIN_UMASK lets all on this machine read what finegrain makes")
    places = [where.home, *lake.places(where), where.warehouse, where.published]
    for place in places:
        if place.exists() and place.stat().st_mode & 0o005 and all(up.stat().st_mode & 0o001 for up in place.parents):
            return Check("warning", "access", f"all on this machine can read {place}; chmod -R o-rwx {place} ends that")
    return Check("fine", "access", f"others on this machine cannot read {where.home}")


def _existing(path: Path) -> Path:
    """The path, or its nearest existing parent."""
    return next(place for place in (path, *path.parents) if place.exists())


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
