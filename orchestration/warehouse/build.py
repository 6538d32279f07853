"""Builds the warehouse with dbt, in this process, and reports the result of each model and test, with failing rows."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from orchestration.config import packages
from orchestration.config.project import PROJECT, check_seeds, is_installed
from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError, Unavailable, console
from orchestration.lake import lake
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.sql.text import identifier
from orchestration.warehouse import warehouse
from orchestration.warehouse.openlineage import recording
from orchestration.warehouse.pin import as_of, pin
from orchestration.warehouse.pin import snapshot as pinned_snapshot

#: Failing rows shown per test.
SHOWN = 5
#: Of a row with more columns than this, only its first few, which are its key, and those that the test reads are shown.
WIDE, KEYS = 8, 2


@dataclass
class Node:
    """One model, seed, snapshot or test of a run. `seconds` is wall time; `failures` counts a test's failing rows, of
    which `rows` are the first few, kept whole in the warehouse's table `kept_in`; `test` is what a generic test is called, and `asks` are its
    arguments."""

    name: str
    kind: str
    status: str
    seconds: float
    message: str | None = None
    failures: int = 0
    kept_in: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    test: str = ""
    asks: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.status in ("error", "fail", "runtime error")

    def in_brief(self, row: dict[str, Any]) -> dict[str, Any]:
        """Of a row that broke a test: its key (a model's first columns), the rules that it breaks, and the columns that these read. `asks`
        are the test's arguments. A row of few columns is whole."""
        if len(row) <= WIDE:
            return row
        broken = str(row.get("broken_rules", ""))
        rules = self.asks.get("rules")
        read = (
            [str(rule) for name, rule in rules.items() if name in broken]
            if isinstance(rules, dict)
            else [str(self.asks)]
        )
        words = set(re.findall(r"\w+", " ".join([broken, *read])))
        names = [name for name in row if name != "broken_rules"]
        shown = {name: row[name] for name in names if name in names[:KEYS] or name in words}
        return {"broken_rules": broken, **shown} if broken else shown


@dataclass
class Build:
    """The result of a dbt run. `seconds` is wall time, of which `startup_seconds` passed before the first node started; `notes` are sentences about
    what was built from scratch, and the time for which features are computed. `unchanged_since` is the number of the last build, if nothing
    has changed since, so that dbt was not started."""

    nodes: list[Node]
    seconds: float
    startup_seconds: float
    notes: list[str] = field(default_factory=list)
    unchanged_since: int | None = None

    @property
    def passed(self) -> bool:
        """Whether every model was built and every test passed."""
        # An exposure is a node without anything to do.
        return all(node.status in ("success", "pass", "warn", "no-op") for node in self.nodes)

    @property
    def failed(self) -> list[Node]:
        """The nodes that failed, in the order of the run, without those skipped as a consequence."""
        return [node for node in self.nodes if node.failed]

    @property
    def summary(self) -> str:
        """What ran, in one line."""
        if self.unchanged_since is not None:
            return f"nothing to build: nothing has changed since build {self.unchanged_since}, which built everything and passed all tests"
        return (
            f"{self.count('model', 'seed', 'snapshot')} models, seeds and snapshots and "
            f"{self.count('test', 'unit_test')} tests in {self.seconds:.1f} s"
        )

    def count(self, *kinds: str) -> int:
        """How many nodes of these kinds ran."""
        return sum(node.kind in kinds for node in self.nodes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"passed": self.passed, **asdict(self)}


@contextlib.contextmanager
def environment(where: Settings, **extra: str | None) -> Iterator[None]:
    """Set environment variables for one run: dbt reads paths and times from the environment."""
    wanted: dict[str, str | None] = {
        **where.environment(),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        **extra,
    }
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def run_dbt(
    arguments: Sequence[str],
    *,
    where: Settings | None = None,
    project: Path = PROJECT,
    moment: str | None = None,
    on_node: Callable[[str, int, int], None] | None = None,
) -> Build:
    """Run one dbt command in this process: `run_dbt(["build", "--full-refresh"])`.

    `moment` is the as-of time of the build (ISO 8601); `on_node(name, number, of)` is called when a node starts. A failing test is part of the
    result, not an error; FinegrainError means that dbt could not run at all, and has dbt's message.
    """
    where = where or settings()
    try:
        where.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinegrainError(
            f"{where.home}: cannot create this folder: {error.strerror}; set FINEGRAIN_HOME to another one"
        ) from None
    packages.ensure(project)
    check_seeds(project)
    started = time.monotonic()
    begun: list[float] = []
    said: list[str] = []

    def follow(name: str, number: int, of: int) -> None:
        begun.append(time.monotonic() - started)
        if on_node:
            on_node(name, number, of)

    with environment(where, **({"FINEGRAIN_AS_OF": moment} if moment is not None else {})):
        as_of()  # reports an invalid time before anything starts
        result = _invoke(arguments, where, project, follow, said.append)
    nodes = [_node(each) for each in result.result] if _is_run(result.result) else []
    if result.exception is not None or (not result.success and not nodes):
        why = _sentence(result.exception)
        raise (Unavailable if lake.says_outage(why) else FinegrainError)(why)
    _fetch_failures(where, nodes)
    seconds = time.monotonic() - started
    return Build(nodes, seconds, startup_seconds=min(begun, default=seconds), notes=from_scratch(said))


def from_scratch(said: Sequence[str]) -> list[str]:
    """What dbt's lines say of the models that it built from scratch (macros/materializations.sql), in one sentence; none where it built
    none. A model that was for what it reads is only counted."""
    why: dict[str, list[str]] = {}
    for line in said:
        if match := re.match(r"Built from scratch: (\w+), (.*)", line):
            why.setdefault(match[2], []).append(match[1])
    parts = []
    for reason, models in why.items():
        several = len(models) > 1
        if source := re.fullmatch(r"since (\w+) was", reason):
            parts.append(f"{len(models)} {'models that read' if several else 'model that reads'} {source[1]}")
        else:
            parts.append(f"{', '.join(models)}, {reason.replace('its', 'their') if several else reason}")
    return [f"built from scratch: {'; '.join(parts)}"] if parts else []


def _is_run(result: Any) -> bool:
    return hasattr(result, "results") and not isinstance(result, list)


def _invoke(
    arguments: Sequence[str],
    where: Settings,
    project: Path,
    on_node: Callable[[str, int, int], None],
    on_line: Callable[[str], None],
) -> Any:
    main = importlib.import_module("dbt.cli.main")

    def heard(event: Any) -> None:
        if event.info.name == "LogStartLine":
            on_node(event.data.node_info.node_name, event.data.index, event.data.total)
        elif event.info.name == "JinjaLogInfo":
            on_line(event.data.msg)

    own = [
        "--quiet",
        "--log-level",
        "none",
        "--no-use-colors",
        "--log-path",
        str(where.home / "logs"),
        "--log-level-file",
        "info",
    ]
    place = ["--project-dir", str(project), "--profiles-dir", str(project)]
    if is_installed(project) and "--target-path" not in arguments:  # the wheel's folder is not written to
        place += ["--target-path", str(where.home / "target")]
    command, *rest = arguments
    try:
        return main.dbtRunner(callbacks=[heard]).invoke([*own, command, *place, *rest])
    finally:
        _let_go()


def _let_go() -> None:
    """Close the warehouse, which dbt-duckdb would keep open as long as the process lives, so that others can read it."""
    manager = importlib.import_module("dbt.adapters.duckdb.connections").DuckDBConnectionManager
    with contextlib.suppress(Exception):
        manager.env().close()
    manager.close_all_connections()


def _sentence(error: BaseException | None) -> str:
    text = str(error) if error else "dbt could not run; see its log under var/logs"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "dbt: " + " ".join(lines[:4])


def _node(result: Any) -> Node:
    node = result.node
    kind = str(node.resource_type.value if hasattr(node.resource_type, "value") else node.resource_type)
    kept_in = None
    if kind == "test" and node.config.get("store_failures"):
        kept_in = f"{identifier(node.schema)}.{identifier(node.alias)}"
    return Node(
        name=node.name,
        kind=kind,
        status=str(result.status.value if hasattr(result.status, "value") else result.status),
        seconds=round(result.execution_time, 3),
        message=result.message,
        failures=int(result.failures or 0),
        kept_in=kept_in,
        test=str(getattr(getattr(node, "test_metadata", None), "name", "") or ""),
        asks=dict(getattr(getattr(node, "test_metadata", None), "kwargs", None) or {}),
    )


def _fetch_failures(where: Settings, nodes: list[Node]) -> None:
    """Read the first failing rows of each failed test, which dbt stored in the warehouse."""
    failed = [node for node in nodes if node.status == "fail" and node.kept_in]
    if not failed:
        return
    with duckdb.connect() as con:
        warehouse.attach(con, where.warehouse)
        for node in failed:
            assert node.kept_in is not None
            node.rows = first_rows(con, node.kept_in)


def first_rows(con: duckdb.DuckDBPyConnection, table: str) -> list[dict[str, Any]]:
    """The first rows of a quoted table of the attached warehouse."""
    found = con.execute(f"select * from warehouse.{table} limit {SHOWN}")
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def build(
    *,
    where: Settings | None = None,
    full_refresh: bool = False,
    moment: str | None = None,
    snapshot: int | None = None,
    unit_tests: bool = False,
    full_audit: bool = False,
    quiet: bool = True,
) -> Build:
    """Build and audit everything: `dbt build`, with a progress bar.

    Unit tests check the SQL, not the data, so they run only in CI (and in plain dbt) unless requested. `full_audit` runs all data tests on all
    rows, also on those that passed before and have not changed.

    The build is a full refresh if requested, or if an incremental build would be wrong: `snapshot` (of the lake; default the newest) is older
    than what is built, or maintenance from another home has expired snapshots this one has not read. If rules have changed, only the models
    that depend on them are built from scratch; `notes` name them. If nothing at all has changed since the last whole build, dbt is not
    started. Raises FinegrainError as `run_dbt` does.
    """
    where = where or settings()
    _must_hold_rows(where)
    started = time.monotonic()
    extra = {"FINEGRAIN_SNAPSHOT": str(snapshot)} if snapshot is not None else {}
    if not (full_refresh or unit_tests or full_audit):
        asked = {**extra, **({"FINEGRAIN_AS_OF": moment} if moment is not None else {})}
        with environment(where, **asked):
            number = unchanged_since(where)
        if number is not None:
            seconds = time.monotonic() - started
            return Build([], seconds, seconds, notes(where), unchanged_since=number)
    with (
        environment(where, **audit(full_audit), **extra),
        recording(where) as record,
        console.progress("build", 1, quiet=quiet) as advance,
    ):

        def follow(name: str, number: int, of: int) -> None:
            record.started(name)
            advance(1 / of, name)

        done = run_dbt(
            arguments(where, full_refresh=full_refresh, unit_tests=unit_tests),
            where=where,
            moment=moment,
            on_node=follow,
        )
    record.ended(done)
    done.notes += [*notes(where), *record.notes]
    return done


#: Profiles, products and orders that are dated later than the last event by no more than this are the usual course of things.
USUAL_LAG = timedelta(days=1)


def notes(where: Settings) -> list[str]:
    """Notes on the as-of time of the last build, unless one was requested: how many events it leaves out, how far it is from the last event, and
    which tables are dated later than the events."""
    with duckdb.connect() as con:
        warehouse.attach(con, where.warehouse)
        try:
            [(asked, as_of, last, events, waiting, until, hidden)] = con.execute(_MOMENT).fetchall()
            later = con.execute(_LATER, {"after": last + USUAL_LAG if last else None}).fetchall()
        except duckdb.Error:  # a build that failed before it came to the moment
            return []
    found = []
    if asked is None and last is not None:
        remedy = "Where customers, products or orders were known all along, say so in the mapping (available_at, docs/reference/mapping.md)"
        if as_of - last > timedelta(microseconds=1):
            found.append(
                f"features are as of {_shown(as_of)}, though the last event arrived at {_shown(last)}: {waiting:,} of {events:,} events "
                f"wait for customers, products or orders that are dated later, up to {_shown(until)}, so windows of the last days "
                f"may be empty. {remedy}, or build with --as-of {(last + timedelta(microseconds=1)).isoformat()}Z"
            )
        elif hidden:
            found.append(
                f"{hidden:,} of {events:,} events are not in the features, which are as of {_shown(as_of)}: they wait for customers, products "
                f"or orders that are dated later, up to {_shown(until)}. {remedy}"
            )
        found += [
            f"{rows:,} {table} are dated later than the last event, up to {_shown(newest)}"
            for table, rows, newest in later
        ]
    return found


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


_MOMENT = """
    with events as (
        select available_at, greatest(raw_available_at, event_at) as arrived_at
        from warehouse.main.int_events__validated where verdict = 'kept'
    ), arrivals as (select max(arrived_at) as last, count(*) as events from events)
    select
        (select as_of from warehouse.main.builds order by number desc nulls last limit 1), b.as_of, a.last, a.events,
        (select count(*) from events where available_at > a.last), (select max(available_at) from events where available_at > a.last),
        (select count(*) from events where available_at > b.as_of)
    from warehouse.main.int_identity__build as b cross join arrivals as a
"""
_LATER = """
    select raw_table, count(distinct record_key), max(raw_available_at) from warehouse.main.int_reference__record_verdicts
    where verdict = 'kept' and raw_available_at > $after group by raw_table order by raw_table
"""


def _must_hold_rows(where: Settings) -> None:
    """Reject an empty lake, from which dbt would build an empty warehouse that passes its audit. Raises FinegrainError and creates nothing."""
    if lake.exists(where):
        with lake.connect(where, read_only=True) as con:
            if lake.arrived(con).keys() & {*RAW_TABLES, "dead_letters"}:
                return
    raise FinegrainError(
        f"{where.lake_catalog}: the lake has no rows yet; load some first, with finegrain load, ingest or stream "
        "(docs/how-to/connect-files.md), or try finegrain demo"
    )


def stale_rates(where: Settings | None = None) -> str | None:
    """A sentence about rows of the warehouse that were converted by an old exchange rate; None if there are none."""
    where = where or settings()
    with duckdb.connect() as con:
        warehouse.attach(con, where.warehouse)
        try:
            return warehouse.stale_rates(con, "warehouse.main.int_cleaning__events")
        except duckdb.Error:  # of a build that failed, there may be no events
            return None


def arguments(where: Settings, *, full_refresh: bool = False, unit_tests: bool = False) -> list[str]:
    """The arguments of `dbt build`, with a full refresh if requested or needed (see `build`). Raises FinegrainError."""
    full_refresh = full_refresh or needs_full_refresh(where)
    left_out = [] if unit_tests else ["--exclude-resource-type", "unit_test"]
    return ["build", *(["--full-refresh"] if full_refresh else []), *left_out]


def audit(full: bool) -> dict[str, str | None]:
    """The environment variable for running all tests on all rows (macros/tests.sql)."""
    return {"FINEGRAIN_FULL_AUDIT": "1"} if full else {}


def unchanged_since(where: Settings) -> int | None:
    """The number of the last build, if a build would give the same again: that build was of the whole project, passed, and saw the same
    inputs (orchestration/warehouse/pin.py). dbt finds that out, too, but asks for every model and test, which takes it seconds."""
    if not where.warehouse.exists():
        return None
    with lake.connect(where, read_only=True) as con:
        inputs = pin(con).inputs(PROJECT)
    with duckdb.connect() as con:
        warehouse.attach(con, where.warehouse)
        try:
            found = con.execute(
                "select number from warehouse.main.builds qualify row_number() over (order by number desc) = 1 "
                "and is_whole and status = 'passed' and inputs = $inputs and command = 'build'",
                {"inputs": inputs},
            ).fetchall()
        except duckdb.Error:  # of an older version
            return None
    return int(found[0][0]) if found and not needs_full_refresh(where) else None


def needs_full_refresh(where: Settings) -> bool:
    """Whether the warehouse is newer than the requested snapshot, or needs snapshots that have expired. (Which models have to be built from
    scratch because rules changed, dbt finds out: macros/materializations.sql.)"""
    if not where.warehouse.exists():
        return False
    with lake.connect(where) as con:
        wanted = pinned_snapshot(con)
        kept = [number for (number,) in con.execute("select snapshot_id from lake.snapshots()").fetchall()]
    with duckdb.connect() as con:
        warehouse.attach(con, where.warehouse)
        try:
            [(stale,)] = con.execute(
                "select count(*) from warehouse.main.watermarks where snapshot > $wanted "
                "or (snapshot < $wanted and not list_contains($kept, snapshot + 1))",
                {"wanted": wanted, "kept": kept},
            ).fetchall()
        except duckdb.CatalogException:  # nothing has been built in it yet
            return False
    return bool(stale)
