"""dbt with less overhead, for tests that run it dozens of times in one process, and for the processes they start (child/sitecustomize.py). What it
builds stays the same: only work is saved that dbt does again for every command, or for log lines and files that nobody reads."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import agate.data_types.date
import agate.data_types.date_time
import dbt.clients.jinja
import dbt_common.clients.jinja
import jinja2
import parsedatetime
from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.compilation import Compiler, Linker
from dbt.constants import PARTIAL_PARSE_FILE_NAME
from dbt.context.macros import MacroNamespace, MacroNamespaceBuilder
from dbt.contracts.graph.manifest import Manifest
from dbt.parser.manifest import ManifestLoader
from dbt_common.clients.jinja import MacroFuzzEnvironment, MacroFuzzTemplate, NativeSandboxTemplate
from dbt_common.events.base_types import BaseEvent, DebugLevel, EventLevel
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


def _keep_environments() -> None:
    """dbt makes an environment of Jinja for each text. Two of the same kind differ in nothing, and nobody changes one; only those that report the
    macros of a node that is parsed hold the node."""
    make = dbt_common.clients.jinja.get_environment
    known: dict[bool, jinja2.Environment] = {}

    def make_once(node: Any = None, capture_macros: bool = False, native: bool = False) -> jinja2.Environment:
        if capture_macros:
            return make(node, capture_macros, native=native)
        if native not in known:
            known[native] = make(native=native)
        return known[native]

    dbt_common.clients.jinja.get_environment = make_once


def _keep_names_of_macros() -> None:
    """dbt looks for each name in a template in five chained dictionaries of macros. Chain them once, unless a package is named like a macro, which
    dbt then looks for elsewhere. All macros are parsed before the first node asks."""
    known: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}
    build = MacroNamespaceBuilder.build_namespace

    def build_flat(self: MacroNamespaceBuilder, macros_by_package: Any, ctx: Any) -> MacroNamespace:
        namespace = build(self, macros_by_package, ctx)
        key = (self.root_package, self.search_package)
        if key not in known or known[key][0] is not macros_by_package:
            known[key] = macros_by_package, dict(ChainMap(*namespace.maps))
        flat = known[key][1]
        if all(
            isinstance(flat.get(package), Mapping)
            for package in macros_by_package
            if package not in self.internal_packages
        ):
            namespace.maps = [flat]
        return namespace

    MacroNamespaceBuilder.build_namespace = build_flat


class PlainTexts(dict[str, str]):
    """What dbt keeps of texts without Jinja, by text: itself, but for line ends. So none has to be rendered first."""

    def __contains__(self, text: object) -> bool:
        return True

    def __getitem__(self, text: str) -> str:
        return re.sub("\r\n?", "\n", str(text)).removesuffix("\n")


def _render_only_what_is_jinja() -> None:
    """dbt lets Jinja render each text in YAML and each argument of a test, with a copy of all macros. A text without Jinja needs none of that; for
    the others, look macros up where they are, as dbt does for models."""
    dbt.clients.jinja._render_cache = PlainTexts()
    NativeSandboxTemplate.new_context = MacroFuzzTemplate.new_context


def _write_no_graphs() -> None:
    """For every command, dbt turns all nodes into dictionaries three times, to write files about its graph that only its developers read."""
    Linker.get_graph_summary = lambda *_: {}
    Compiler.write_graph_file = lambda *_: None


def _drop_events_that_nobody_reads() -> None:
    """dbt writes out each of its thousands of debug events, with the whole SQL, and then finds that the log's level is higher. Write one out when
    it is read."""
    fire, write_out, find = EventManager.fire_event, BaseEvent.__init__, BaseEvent.__getattr__

    def keep(self: BaseEvent, *arguments: Any, **fields: Any) -> None:
        if isinstance(self, DebugLevel):
            self.__dict__["unread"] = arguments, fields
        else:
            write_out(self, *arguments, **fields)

    def read(self: BaseEvent, name: str) -> Any:
        if "unread" in self.__dict__:
            arguments, fields = self.__dict__.pop("unread")
            write_out(self, *arguments, **fields)
            return getattr(self, name)
        return find(self, name)

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
    BaseEvent.__init__, BaseEvent.__getattr__ = keep, read


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

    def copy_whole(source: Path, target: Path) -> None:
        """So that no other process reads a part of it."""
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copyfile(source, draft)
        draft.replace(target)

    def read_shared(self: ManifestLoader) -> Manifest | None:
        own, shared = places(self)
        if not own.exists() and shared.exists():
            own.parent.mkdir(parents=True, exist_ok=True)
            copy_whole(shared, own)
        return read(self)

    def write_shared(self: ManifestLoader) -> None:
        write(self)
        own, shared = places(self)
        if Path(self.root_project.project_root) == project:
            copy_whole(own, shared)

    ManifestLoader.read_manifest_for_partial_parse = read_shared
    ManifestLoader.write_manifest_for_partial_parse = write_shared


def quicken() -> None:
    """For this process, for good."""
    _parse_once_for_all_warehouses()
    _keep_templates()
    _keep_environments()
    _keep_names_of_macros()
    _render_only_what_is_jinja()
    _write_no_graphs()
    _drop_events_that_nobody_reads()
    _share_calendars()
