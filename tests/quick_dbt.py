"""dbt with less overhead, for tests that run it dozens of times in one process. What it builds stays the same: only work is saved that dbt does
again for every command, or for log lines that nobody reads."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import agate.data_types.date
import agate.data_types.date_time
import parsedatetime
from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.constants import PARTIAL_PARSE_FILE_NAME
from dbt.contracts.graph.manifest import Manifest
from dbt.parser.manifest import ManifestLoader
from dbt_common.clients.jinja import MacroFuzzEnvironment
from dbt_common.events.base_types import BaseEvent, EventLevel
from dbt_common.events.event_manager import EventManager


def _parse_once_for_all_warehouses() -> None:
    """dbt parses the whole project again where the connection is another than last time. Here only the warehouse's path is, which no model reads."""
    connection_keys = DuckDBCredentials._connection_keys
    DuckDBCredentials._connection_keys = lambda self: tuple(key for key in connection_keys(self) if key != "path")


def _keep_templates() -> None:
    """Compile a template of Jinja once. dbt makes an environment for each, all with the same extensions and filters."""
    compile_afresh = MacroFuzzEnvironment.compile
    known: dict[tuple[Any, ...], CodeType] = {}

    def compile_once(self: MacroFuzzEnvironment, source: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(source, str) or arguments or options:
            return compile_afresh(self, source, *arguments, **options)
        key = (type(self), source)
        if key not in known:
            known[key] = compile_afresh(self, source)
        return known[key]

    MacroFuzzEnvironment.compile = compile_once


def _drop_events_that_nobody_reads() -> None:
    """dbt writes out each of its thousands of debug events, and then finds that the log's level is higher."""
    fire = EventManager.fire_event

    def fire_if_read(
        self: EventManager,
        e: BaseEvent,
        level: EventLevel | None = None,
        node: Any = None,
        force_warn_or_error_handling: bool = False,
    ) -> None:
        is_read = any(logger.level in (EventLevel.DEBUG, EventLevel.TEST) for logger in self.loggers)
        if is_read or (level or e.level_tag()) != EventLevel.DEBUG:
            fire(self, e, level, node, force_warn_or_error_handling)

    EventManager.fire_event = fire_if_read


def _share_calendars() -> None:
    """agate makes parsers of human dates for the result of every query, and dbt never asks them."""
    constants = parsedatetime.Constants()
    calendar = parsedatetime.Calendar(constants, version=parsedatetime.VERSION_CONTEXT_STYLE)
    shared = SimpleNamespace(
        Constants=lambda **_: constants,
        Calendar=lambda **_: calendar,
        VERSION_CONTEXT_STYLE=parsedatetime.VERSION_CONTEXT_STYLE,
    )
    agate.data_types.date.parsedatetime = agate.data_types.date_time.parsedatetime = shared


def share_parses(folder: Path, project: Path) -> None:
    """Keep in `folder`, for all workers, what dbt made of the project, by the vars of the command line. Whoever has not parsed it yet begins from
    there; dbt itself finds out which files are others, as in a copy of the project with a change."""
    read, write = ManifestLoader.read_manifest_for_partial_parse, ManifestLoader.write_manifest_for_partial_parse

    def places(loader: ManifestLoader) -> tuple[Path, Path]:
        config = loader.root_project
        variables = hashlib.md5(repr(sorted(config.cli_vars.items())).encode()).hexdigest()
        name = f"{config.project_name}-{variables}.msgpack"
        return Path(config.project_target_path) / PARTIAL_PARSE_FILE_NAME, folder / name

    def read_shared(self: ManifestLoader) -> Manifest | None:
        own, shared = places(self)
        if not own.exists() and shared.exists():
            own.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(shared, own)
        return read(self)

    def write_shared(self: ManifestLoader) -> None:
        write(self)
        own, shared = places(self)
        if Path(self.root_project.project_root) == project:
            draft = shared.with_name(f"{shared.name}.{os.getpid()}")
            shutil.copyfile(own, draft)
            draft.replace(shared)

    ManifestLoader.read_manifest_for_partial_parse = read_shared
    ManifestLoader.write_manifest_for_partial_parse = write_shared


def quicken() -> None:
    """For this process, for good."""
    _parse_once_for_all_warehouses()
    _keep_templates()
    _drop_events_that_nobody_reads()
    _share_calendars()
