"""Checks the SQL of `sql:` and `where:` in a mapping: one scalar expression over a row."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import duckdb

from orchestration.mapping.messages import short
from orchestration.sql.functions import ARGUMENTS, FUNCTIONS
from orchestration.sql.text import quote

#: The kinds of nodes an expression may have. Others (subqueries, windows, stars, parameters) read more than the row.
_CLASSES: Final = frozenset((
    "BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION",
    "LAMBDA", "OPERATOR",
))  # fmt: skip
#: The allowed operators. GROUPING and * read more than one row or column.
_OPERATORS: Final = frozenset((
    "ARRAY_CONSTRUCTOR", "ARRAY_EXTRACT", "ARRAY_SLICE", "COMPARE_IN", "COMPARE_NOT_IN", "OPERATOR_COALESCE",
    "OPERATOR_IS_NOT_NULL", "OPERATOR_IS_NULL", "OPERATOR_NOT", "OPERATOR_NULLIF", "OPERATOR_TRY",
    "STRUCT_EXTRACT",
))  # fmt: skip


def _refused(node: Any) -> str | None:
    """Why a function may not be used in an expression; None if it may."""
    name = node["function_name"].lower()
    if node["catalog"]:
        return f"{node['catalog']}.{node['schema']}.{name}: write functions without schema or catalogue"
    if name not in FUNCTIONS:
        close = difflib.get_close_matches(name, sorted(FUNCTIONS), 1, 0.6)
        return f"{name}() is not one of the functions that an expression may use" + (
            f"; did you mean {close[0]}()?" if close else "; docs/reference/mapping.md says which it may use"
        )
    if len(node["children"]) < ARGUMENTS.get(name, 0):
        return f"{name}() reads the clock here; give it {ARGUMENTS[name]} arguments"
    return None


@cache
def expression(text: str) -> tuple[str, ...]:
    """Check that `text` is one scalar expression over a row. Returns the columns it names, in order of appearance. Raises ValueError
    with a readable message."""
    try:
        return _parsed(text)
    except (RecursionError, duckdb.Error):
        raise ValueError(f"'{short(text)}' is too long or nested too deeply to be read") from None


def _parsed(text: str) -> tuple[str, ...]:
    """Check with DuckDB's parser: the text must be one SELECT of one item, without FROM, whose tree has only row-wise nodes."""
    if "\0" in text:
        raise ValueError("a SQL expression holds no NUL characters")
    con = duckdb.connect()
    [(answer,)] = con.execute(f"select json_serialize_sql({quote('select ' + text)})").fetchall()
    tree = json.loads(answer)
    if tree["error"]:
        raise ValueError(
            f"'{short(text)}' is not a SQL expression: {tree['error_message'].splitlines()[0]} (quote a column that is an SQL word, as in \"at\")"
        )
    statements = [statement["node"] for statement in tree["statements"]]
    node = statements[0] if len(statements) == 1 else {}
    one = (
        node.get("type") == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"] == "EMPTY"
        and not node["modifiers"]
        and not node["cte_map"]["map"]
        and not any(node[part] for part in ("where_clause", "group_expressions", "having", "qualify", "sample"))
    )
    if not one or text.rstrip().endswith(";"):
        raise ValueError(f"'{short(text)}' is not one scalar expression over the row's columns")
    if node["select_list"][0]["alias"]:
        raise ValueError(f"'{short(text)}' has a name of its own; leave the alias out")
    return tuple(dict.fromkeys(_columns(node["select_list"][0], text, frozenset())))


def _columns(node: Any, text: str, bound: frozenset[str], lambdas: bool = False) -> Iterator[str]:
    """Walk an expression's tree, reject what is not row-wise, and yield the columns that no lambda binds."""
    if isinstance(node, list):
        for child in node:
            yield from _columns(child, text, bound, lambdas)
    if not isinstance(node, dict):
        return
    kind = node.get("class")
    if kind is not None and kind not in _CLASSES:
        raise ValueError(f"'{short(text)}' reads more than the row's own columns ({kind.lower()})")
    if kind == "CONSTANT":
        return
    if kind == "COLUMN_REF":
        if node["column_names"][0] not in bound:
            yield node["column_names"][0]
        return
    if kind == "OPERATOR" and node["type"] not in _OPERATORS:
        raise ValueError(f"'{short(text)}' reads more than the row's own columns ({node['type'].lower()})")
    if kind == "FUNCTION":
        refused = _refused(node)
        if refused:
            raise ValueError(f"'{short(text)}': {refused}")
        # Functions that the parser makes from syntax have the schema `main`. Any other schema is a column: `a.lower()` is lower(a).
        if node["schema"] not in ("", "main", *bound):
            yield node["schema"]
    if kind == "LAMBDA" and lambdas:  # elsewhere the same arrow reads a JSON member
        left = node["lhs"] if isinstance(node["lhs"], list) else [node["lhs"]]
        names = [child["column_names"][0] for part in left for child in (part.get("children") or [part])]
        yield from _columns(node["expr"], text, bound | set(names))
        return
    lambdas = kind == "FUNCTION" and re.match("list_|array_|apply|filter|reduce", node["function_name"]) is not None
    for value in node.values():
        yield from _columns(value, text, bound, lambdas)
