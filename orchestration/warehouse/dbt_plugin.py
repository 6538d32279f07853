"""The dbt-duckdb plugin: attaches the lake, and pins one snapshot and one as-of time for the whole invocation.

dbt-duckdb loads this module by name (see profiles.yml), so bare `dbt build` works without any set-up. Models and
tests read two DuckDB variables, the same in every thread of one invocation:

- `getvariable('pinned')`, BIGINT: the lake snapshot the build sees. `FINEGRAIN_SNAPSHOT` overrides the newest one.
- `getvariable('as_of')`, TIMESTAMP in UTC or NULL: the as-of time of the build, from `FINEGRAIN_AS_OF`.
- `getvariable('fingerprints')`, VARCHAR of JSON: by node, a fingerprint of its SQL, macros and vars (orchestration/warehouse/fingerprints.py).
- `getvariable('arrivals')`, MAP(VARCHAR, BIGINT): by raw table, the last snapshot up to the pinned one that inserted rows.
- `getvariable('shop')`, MAP(VARCHAR, VARCHAR): shop-wide settings of mappings, which override vars of the same names.
- `getvariable('pass_through')`, VARCHAR of JSON: the fields of events that pass through all models, with their type.

At its end a build asks the function `whole_marts(graph)` which marts it was of (orchestration/warehouse/whole_marts.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import duckdb
from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.flags import get_flags
from dbt_common.exceptions import DbtRuntimeError
from dbt_common.invocation import get_invocation_id

from orchestration.config.settings import PROJECT, Settings, private, settings
from orchestration.errors import FinegrainError, stopping
from orchestration.lake import lake, shop
from orchestration.lake.locks import scratch
from orchestration.mapping.contracts import pass_through_fields
from orchestration.sql.text import map_literal, quote, timestamp_literal
from orchestration.warehouse.fingerprints import of_project
from orchestration.warehouse.whole_marts import of_graph

#: What the name of the folder beside the warehouse begins with in which a build keeps its copy of the catalogue.
COPY: Final = ".catalog-"


def as_of() -> datetime | None:
    """`FINEGRAIN_AS_OF` as naive UTC, or None when it is not set. A time without an offset is UTC."""
    text = os.environ.get("FINEGRAIN_AS_OF", "").strip()
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise FinegrainError(
            f"FINEGRAIN_AS_OF (--as-of) is {text!r}, which is not an ISO 8601 time; write it like 2024-03-31T00:00:00Z"
        ) from None
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def snapshot(con: duckdb.DuckDBPyConnection) -> int:
    """The lake snapshot to build from: `FINEGRAIN_SNAPSHOT`, else the newest."""
    text = os.environ.get("FINEGRAIN_SNAPSHOT", "").strip()
    first, newest = con.execute("select min(snapshot_id), max(snapshot_id) from lake.snapshots()").fetchall()[0]
    if not text:
        return int(newest)
    if not text.isdecimal() or not first <= int(text) <= newest:
        raise FinegrainError(f"FINEGRAIN_SNAPSHOT is {text!r}; the lake holds the snapshots {first} to {newest}")
    return int(text)


def fingerprints(of_shop: Mapping[str, str]) -> dict[str, str]:
    """The fingerprints of the nodes of the project that dbt runs, with the vars of its command line and the shop settings that override vars
    (`of_shop`)."""
    flags: Any = get_flags()  # type: ignore[no-untyped-call]
    project = Path(getattr(flags, "PROJECT_DIR", None) or PROJECT)
    return of_project(project, {**(getattr(flags, "VARS", None) or {}), **of_shop})


class Plugin(BasePlugin):
    """Attach the lake as it is when an invocation begins; set `pinned` and `as_of` on every cursor."""

    def initialize(self, plugin_config: dict[str, Any]) -> None:
        self._lock = threading.Lock()
        self._invocation: str | None = None
        self._pinned = 0
        self._fingerprints: dict[str, str] = {}
        self._arrivals: dict[str, int] = {}
        self._shop: dict[str, str] = {}
        self._pass_through: dict[str, str] = {}

    def update_connection_config(self, creds: DuckDBCredentials, config: dict[str, Any]) -> None:
        try:
            where = settings()
            private()  # where dbt is run bare
        except FinegrainError as error:
            raise DbtRuntimeError(str(error)) from None
        where.extensions.mkdir(parents=True, exist_ok=True)
        Path(creds.path).resolve().parent.mkdir(parents=True, exist_ok=True)
        # Set here, before DuckDB starts: as a later setting it comes too late, and DuckDB would try to download.
        for option, value in lake.extension_options(where).items():
            config.setdefault(option, value)

    def configure_connection(self, conn: duckdb.DuckDBPyConnection) -> None:
        try:
            self._attach(conn)
        except FinegrainError as error:
            raise DbtRuntimeError(str(error)) from None
        conn.create_function("whole_marts", of_graph, ["VARCHAR"], "VARCHAR[]")

    def _attach(self, con: duckdb.DuckDBPyConnection) -> None:
        where = settings()
        lake.attach_copy(con, where, self._folder(where))

    def _folder(self, where: Settings) -> Path:
        """A folder for a copy of the catalogue, removed when this process ends; folders of killed builds are removed now."""
        held = contextlib.ExitStack()
        folder = held.enter_context(scratch(where.warehouse.parent, COPY))
        weakref.finalize(self, held.close)
        return folder

    def configure_cursor(self, cursor: duckdb.DuckDBPyConnection) -> None:
        stopping.interruptible(cursor)
        # Variables live on the cursor; the pin lives as long as one dbt invocation, whose threads must agree.
        try:
            moment = as_of()
            with self._lock:
                if self._invocation != get_invocation_id():
                    if self._invocation is not None:  # a process that runs dbt again, on the connection that it has
                        cursor.execute("detach lake")
                        self._attach(cursor)
                    self._pinned = snapshot(cursor)
                    self._arrivals = lake.arrivals(cursor, self._pinned)
                    self._shop = shop.of_lake(cursor, self._pinned)
                    self._fingerprints = fingerprints(self._shop)
                    self._pass_through = pass_through_fields()
                    self._invocation = get_invocation_id()
        except FinegrainError as error:
            raise DbtRuntimeError(str(error)) from None  # dbt prints this kind without a stack trace
        cursor.execute("set timezone = 'UTC'")
        cursor.execute(f"set variable pinned = {self._pinned}::bigint")
        # As text, since a map takes DuckDB some milliseconds, and every node of dbt has a cursor of its own.
        cursor.execute(f"set variable fingerprints = {quote(json.dumps(self._fingerprints))}")
        cursor.execute(f"set variable pass_through = {quote(json.dumps(self._pass_through))}")
        pairs = ", ".join(f"'{table}': {newest}::bigint" for table, newest in self._arrivals.items())
        cursor.execute(f"set variable arrivals = map {{{pairs}}}::map(varchar, bigint)")
        cursor.execute(f"set variable shop = {map_literal(self._shop)}")
        literal = timestamp_literal(moment) if moment else "null::timestamp"
        cursor.execute(f"set variable as_of = {literal}")
