"""Fingerprints of the dbt project, by node: of a model's text, the macros that it calls, and the vars that these read.

A comment or a blank line changes none, nor does a macro that no model calls: dbt's hooks, materializations and tests count only for
who names them. What a node reads with `ref` is not part of its own fingerprint: dbt knows that exactly (macros/materializations.sql adds
the seeds and views), and a model between two others is a node of its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from orchestration import __version__
from orchestration.config.project import package_of, roots
from orchestration.config.project import variables as vars_of
from orchestration.mapping.contracts import pass_through_fields

#: The name in `of_project` under which all macros and vars stand together, for a text that is not known here.
ALL: Final = "*"
#: What dbt parses of a project: files, and folders.
_FILES: Final = ("dbt_project.yml", "profiles.yml", "packages.yml", "dependencies.yml")
_FOLDERS: Final = ("models", "seeds", "macros", "tests/singular", "tests/generic", "snapshots")
#: What dispatched macros are called that run on DuckDB, the first that there is counting.
_DISPATCHED: Final = ("duckdb__", "default__")

_PARTS = re.compile(r"(?P<string>'[^']*'|\"[^\"]*\")|(?:--[^\n]*|\s)+")
_MACRO = re.compile(r"\{%-? ?(macro|test) (\w+) ?\(.*?\{%-? ?end(?:macro|test) ?-?%\}", re.DOTALL)
_CALL = re.compile(r"\b(\w+) ?\(")
#: A var is always named in quotes: in var() itself, or where a macro is given its name.
_QUOTED = re.compile(r"['\"](\w+)['\"]")


def code(text: str) -> str:
    """The text without its comments, every space outside of strings a single one."""
    return _PARTS.sub(lambda part: part["string"] or " ", re.sub(r"\{#.*?#\}", " ", text, flags=re.DOTALL)).strip()


def of_project(project: Path, values: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The fingerprint of every model, snapshot and singular test of the project, and of finegrain where that is a package of it, by name, of
    generic tests as `test_<name>`, and of all macros and vars as `*`. `values` go before the vars of dbt_project.yml: those of the command
    line, and what the shop says."""
    macros = _macros(project)
    said = {**vars_of(project), **(values or {})}
    variables = {name: json.dumps(value, sort_keys=True, default=str) for name, value in said.items()}
    texts = {
        path.stem: code(path.read_text("utf-8"))
        for root in roots(project)
        for folder in ("models", "snapshots", "tests/singular")
        for path in (root / folder).rglob("*.sql")
    }
    texts |= {name: text for name, text in macros.items() if name.startswith("test_")}
    found = {name: _digest(parts_of(text, macros, variables)) for name, text in texts.items()}
    return {**found, ALL: _digest({**macros, **variables})}


def parts_of(text: str, macros: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """What a text says, by name: itself (under no name), the macros it calls, those that they call, and the vars that any of them name."""
    found = {"": text}
    waiting = [text]
    while waiting:
        said = waiting.pop()
        for called in _calls(said):
            for name in (called, next((each + called for each in _DISPATCHED if each + called in macros), "")):
                if name in macros and name not in found:
                    found[name] = macros[name]
                    waiting.append(macros[name])
    named = set().union(*map(_quoted, found.values()))
    return found | {f"var {name}": value for name, value in variables.items() if name in named}


@functools.cache
def _calls(text: str) -> frozenset[str]:
    return frozenset(_CALL.findall(text))


@functools.cache
def _quoted(text: str) -> frozenset[str]:
    return frozenset(_QUOTED.findall(text))


def _macros(project: Path) -> dict[str, str]:
    """The macros and generic tests of the project, by the name that dbt calls them by. Of two with one name, one may call the other, so
    both texts count."""
    found: dict[str, str] = {}
    for root in roots(project):
        for folder in ("macros", "tests/generic"):
            for path in (root / folder).rglob("*.sql"):
                for macro in _MACRO.finditer(code(path.read_text("utf-8"))):
                    name = ("test_" if macro[1] == "test" else "") + macro[2]
                    found[name] = found.get(name, "") + macro[0]
    if "pass_through_fields" in found:
        # It asks for them with a query, so they are no part of its text.
        found["pass_through_fields"] += json.dumps(pass_through_fields(package_of(project)))
    return found


def of_files(project: Path) -> str:
    """A digest of all files that dbt parses in the project and in the packages of it that are finegrain's, and of finegrain's version."""
    digest = hashlib.sha256(__version__.encode())
    for root in roots(project):
        files = [root / name for name in _FILES if (root / name).is_file()]
        for folder in _FOLDERS:
            files += [file for file in (root / folder).rglob("*") if file.suffix in (".sql", ".yml", ".csv", ".md")]
        for file in sorted(files):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _digest(parts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
