"""dbt's context for sqlfluff's jinja templater: the project's vars and macros, with `return` and dispatch as in dbt.

sqlfluff adds every public name of this module to the context in which it renders a model (see .sqlfluff). That is several times
faster than its dbt templater, and needs neither a profile nor a lake. Its own macro loader loses the value that a macro returns to
another one of the same file.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import yaml
from sqlfluff.core.templaters.builtins.dbt import DBT_BUILTINS

from orchestration.mapping import contracts

#: SQL that sqlfluff's DuckDB dialect does not parse (`at (version => …)`), replaced by a table's name.
_UNPARSABLE = ("lake_rows", "lake_table", "lake_table_of_touched_orders")


class _Returned(Exception):
    """Carries a macro's value out of it, as dbt's `return` does."""


def _return(value: Any) -> None:
    raise _Returned(value)


def _macro(name: str) -> Callable[..., Any]:
    """The macro of that name, looked up when it is called."""

    def call(*values: Any, **named: Any) -> Any:
        try:
            return _MACROS[name](*values, **named)
        except _Returned as returned:
            return returned.args[0]

    return call


class _Adapter:
    """`adapter` for an empty DuckDB warehouse: no relation exists."""

    def dispatch(self, name: str, package: str | None = None) -> Callable[..., Any]:
        found: Callable[..., Any] = _CONTEXT.get(f"duckdb__{name}") or _CONTEXT[f"default__{name}"]
        return found

    def get_relation(self, **where: str) -> None:
        return None

    def get_columns_in_relation(self, relation: object) -> list[Any]:
        return []

    def quote(self, name: str) -> str:
        return f'"{name}"'


_VARS = yaml.safe_load(Path("dbt_project.yml").read_text(encoding="utf-8")).get("vars", {})
_CONTEXT: dict[str, Any] = {
    **DBT_BUILTINS,
    "adapter": _Adapter(),
    "execute": False,
    "flags": SimpleNamespace(FULL_REFRESH=False, WHICH="build"),
    "return": _return,
    "target": SimpleNamespace(name="dev", type="duckdb", database="warehouse", schema="main"),
    "var": lambda name, default=None: _VARS.get(name, default),
}


_MACROS: dict[str, Callable[..., Any]] = {}


def _load_macros() -> None:
    """Add every macro of the project to the context. Renamed in its own file, it is only found through the context."""
    # A materialization is a tag of dbt, and no model calls one.
    own = re.compile(r"{%-?\s*materialization\b.*?{%-?\s*endmaterialization\s*-?%}", re.DOTALL)
    sources = [own.sub("", file.read_text(encoding="utf-8")) for file in Path("macros").rglob("*.sql")]
    tag = re.compile(r"({%-?\s*macro\s+)(\w+)")
    for source in sources:
        _CONTEXT.update({name: _macro(name) for _, name in tag.findall(source)})
    # A macro that a shop's project may call names the macros that it calls itself with their package.
    _CONTEXT["finegrain"] = {name: value for name, value in _CONTEXT.items() if callable(value)}
    environment = jinja2.Environment(extensions=["jinja2.ext.do"])
    for source in sources:
        module = environment.from_string(tag.sub(r"\1the_\2", source), globals=_CONTEXT).module
        _MACROS.update({name.removeprefix("the_"): macro for name, macro in vars(module).items()})
    _MACROS.update(dict.fromkeys(_UNPARSABLE, "lake_{}".format))
    # What it asks DuckDB for.
    _MACROS["pass_through_fields"] = lambda: contracts.pass_through_fields(Path())


_load_macros()
globals().update(_CONTEXT)
