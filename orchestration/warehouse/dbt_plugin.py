"""The dbt-duckdb plugin: attaches the lake, and pins one snapshot and one as-of time for the whole invocation.

dbt-duckdb loads this module by name (see profiles.yml), so bare `dbt build` works without any set-up. Models and
tests read two DuckDB variables, the same in every thread of one invocation:

- `getvariable('pinned')`, BIGINT: the lake snapshot the build sees. `FINEGRAIN_SNAPSHOT` overrides the newest one.
- `getvariable('as_of')`, TIMESTAMP in UTC or NULL: the as-of time of the build, from `FINEGRAIN_AS_OF`.
- `getvariable('inputs')`, VARCHAR: a digest of all that decides what a build of the whole project gives (orchestration/warehouse/pin.py).
- `getvariable('fingerprints')`, VARCHAR of JSON: by node, a fingerprint of its SQL, macros and vars (orchestration/warehouse/fingerprints.py).
- `getvariable('arrivals')`, MAP(VARCHAR, BIGINT): by raw table, the last snapshot up to the pinned one that inserted rows.
- `getvariable('shop')`, MAP(VARCHAR, VARCHAR): shop-wide settings of mappings, which override vars of the same names.
- `getvariable('pass_through')`, VARCHAR of JSON: the fields of events that pass through all models, with their type.

At its end a build asks the function `whole_marts(graph)` which marts it was of (orchestration/warehouse/whole_marts.py).
"""

from __future__ import annotations

import contextlib
import json
import threading
import weakref
from pathlib import Path
from typing import Any, Final

import duckdb
from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.flags import get_flags
from dbt_common.exceptions import DbtRuntimeError
from dbt_common.invocation import get_invocation_id

from orchestration.config.project import PROJECT, package_of
from orchestration.config.settings import Settings, private, settings
from orchestration.errors import FinegrainError, stopping
from orchestration.lake import lake
from orchestration.lake.locks import scratch
from orchestration.mapping.contracts import pass_through_fields
from orchestration.sql.text import map_literal, quote, timestamp_literal
from orchestration.warehouse.fingerprints import of_project
from orchestration.warehouse.pin import Pin, pin
from orchestration.warehouse.whole_marts import of_graph

#: What the name of the folder beside the warehouse begins with in which a build keeps its copy of the catalogue.
COPY: Final = ".catalog-"


class Plugin(BasePlugin):
    """Attach the lake as it is when an invocation begins; set `pinned` and `as_of` on every cursor."""

    def initialize(self, plugin_config: dict[str, Any]) -> None:
        self._lock = threading.Lock()
        self._invocation: str | None = None
        self._variables = ""

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
            with self._lock:
                if self._invocation != get_invocation_id():
                    if self._invocation is not None:  # a process that runs dbt again, on the connection that it has
                        cursor.execute("detach lake")
                        self._attach(cursor)
                    self._variables = _variables(pin(cursor))
                    self._invocation = get_invocation_id()
        except FinegrainError as error:
            raise DbtRuntimeError(str(error)) from None  # dbt prints this kind without a stack trace
        cursor.execute(self._variables)


def _variables(pinned: Pin) -> str:
    """The statements that tell a cursor what the running dbt command sees."""
    flags: Any = get_flags()  # type: ignore[no-untyped-call]
    project = Path(getattr(flags, "PROJECT_DIR", None) or PROJECT)
    of_command = dict(getattr(flags, "VARS", None) or {})
    # As text, since a map takes DuckDB some milliseconds, and every node of dbt has a cursor of its own.
    fingerprints = json.dumps(of_project(project, {**of_command, **pinned.shop}))
    arrivals = ", ".join(f"'{table}': {newest}::bigint" for table, newest in pinned.arrivals.items())
    values = {
        "pinned": f"{pinned.snapshot}::bigint",
        "as_of": timestamp_literal(pinned.as_of) if pinned.as_of else "null::timestamp",
        "inputs": quote(pinned.inputs(project, of_command)),
        "fingerprints": quote(fingerprints),
        "pass_through": quote(json.dumps(pass_through_fields(package_of(project)))),
        "arrivals": f"map {{{arrivals}}}::map(varchar, bigint)",
        "shop": map_literal(pinned.shop),
    }
    return "set timezone = 'UTC'; " + "; ".join(f"set variable {name} = {value}" for name, value in values.items())
