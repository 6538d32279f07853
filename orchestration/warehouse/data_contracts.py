"""Open Data Contracts (ODCS 3.1) of the marts, made of what their YAML declares: columns, types, constraints, units, owners and tests.

A test that ODCS has a word for becomes that: `required`, `unique`, a range, a set, a pattern, a number of rows. A test that is a predicate becomes SQL,
which `datacontract test` runs on the published marts. Any other is named in words, so that nothing is left out silently.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from orchestration.config.project import PROJECT, owner_of_folder, roots
from orchestration.config.published import DATABASE
from orchestration.config.settings import Settings
from orchestration.config.yaml_file import FAST
from orchestration.mapping.data_contracts import SUFFIX, contract, custom, said, sla, text_rule
from orchestration.sql.text import identifier

#: The folder of the models that are published.
MARTS: Final = "marts"
#: By the beginning of a DuckDB type, what ODCS calls it.
_LOGICAL: Final = (
    ("timestamp", "timestamp"),
    ("date", "date"),
    ("time", "time"),
    ("bool", "boolean"),
    ("struct", "object"),
    ("map", "object"),
    ("json", "string"),
    ("decimal", "number"),
    ("numeric", "number"),
    ("double", "number"),
    ("float", "number"),
    ("real", "number"),
)
_WHOLE: Final = re.compile(r"(tiny|small|big|huge|u)*int(eger)?")
_ID: Final = re.compile(r"[A-Za-z0-9_-]+")
_SAME_AS: Final = {
    "dbt_expectations.expect_column_values_to_be_unique": "unique",
    "dbt_expectations.expect_column_values_to_not_be_null": "not_null",
    "dbt_expectations.expect_column_values_to_be_in_set": "accepted_values",
}


def of_marts(
    where: Settings, renewed_within: float | None = None, project: Path = PROJECT
) -> dict[str, dict[str, Any]]:
    """The contract of each mart that declares its columns, by name. `where`: where the marts are published. `renewed_within`: hours within
    which they are published again."""
    declared = {
        model["name"]: (model, owner_of_folder(root, path.parent.relative_to(root / "models").as_posix()))
        for root in roots(project)
        for path in sorted((root / "models" / MARTS).rglob("*.yml"))
        for model in (yaml.load(path.read_text("utf-8"), Loader=FAST) or {}).get("models") or []
        if model.get("columns")
    }
    levels = [sla(renewed_within, "The marts are published")] if renewed_within else []
    return {
        name: _of_mart(model, owner, where, declared) | ({"slaProperties": levels} if levels else {})
        for name, (model, owner) in sorted(declared.items())
    }


def _of_mart(model: Mapping[str, Any], owner: str, where: Settings, marts: Collection[str]) -> dict[str, Any]:
    """The contract of a model; `marts` are the names of all that have one."""
    name, meta = model["name"], _meta(model)
    return contract(
        "marts",
        name,
        said(model.get("description", "")),
        owner=meta.get("owner", owner),
        servers=[
            {"server": "published", "type": "duckdb", "database": str(where.published / DATABASE), "schema": "main"},
            {
                "server": "parquet",
                "type": "local",
                "path": str(where.published / "parquet" / name / "*.parquet"),
                "format": "parquet",
            },
        ],
        schema=[_table(model, marts)],
    )


def _table(model: Mapping[str, Any], marts: Collection[str]) -> dict[str, Any]:
    name, grain = model["name"], _meta(model).get("grain")
    tests = list(tests_of(model))
    key = _primary_key(model, tests)
    properties = {column["name"]: _property(column, key) for column in model["columns"]}
    quality: list[dict[str, Any]] = []
    declares_ranges = False
    for test, column, arguments, config in tests:
        rule = None if config.get("where") else _translated(test, column, arguments, properties, marts)
        if rule is None:
            quality.append(text_rule(_in_words(test, column, arguments, config)))
        else:
            quality += rule
        declares_ranges |= test == "ranges_as_declared"
    if declares_ranges:
        quality += _ranges(model, properties)
    return {
        **_id(name),
        "name": name,
        "physicalName": name,
        "physicalType": "table",
        "logicalType": "object",
        "description": said(model.get("description", "")),
        **({"dataGranularityDescription": grain} if grain else {}),
        "properties": list(properties.values()),
        **({"quality": quality} if quality else {}),
    }


def _meta(part: Mapping[str, Any]) -> dict[str, Any]:
    return (part.get("config") or {}).get("meta") or part.get("meta") or {}


def _id(name: str) -> dict[str, str]:
    """What other contracts refer to."""
    return {"id": name} if _ID.fullmatch(name) else {}


def _property(column: Mapping[str, Any], key: list[str]) -> dict[str, Any]:
    name, meta = column["name"], _meta(column)
    data_type = str(column.get("data_type", "")).lower()
    is_required = any(each["type"] in ("not_null", "primary_key") for each in column.get("constraints") or [])
    return {
        **_id(name),
        "name": name,
        **_type(data_type),
        "description": said(column.get("description", "")),
        **({"required": True} if is_required else {}),
        **({"primaryKey": True, "primaryKeyPosition": key.index(name) + 1} if name in key else {}),
        **custom(
            {
                "unit": meta.get("unit"),
                "window": meta.get("window"),
                "nullMeans": meta.get("null_means"),
                "categorical": meta.get("categorical"),
                "owner": meta.get("owner"),
            }
        ),
    }


def _type(data_type: str) -> dict[str, Any]:
    """A DuckDB type in ODCS."""
    if not data_type:
        return {}
    if data_type.endswith(
        "[]"
    ):  # without its physical type: datacontract-cli reads none of a list, and takes that of the items
        return {"logicalType": "array", "items": {"name": "item", **_type(data_type[:-2])}}
    if _WHOLE.fullmatch(data_type):
        return {"logicalType": "integer", "physicalType": data_type}
    logical = next((word for start, word in _LOGICAL if data_type.startswith(start)), "string")
    return {"logicalType": logical, "physicalType": data_type}


# ---------------------------------------------------------------------------------------------------------- tests

#: A test with the column that it is of (`""`: of the table), its arguments and its config.
_Test = tuple[str, str, dict[str, Any], dict[str, Any]]


def tests_of(part: Mapping[str, Any], column: str = "") -> Iterator[_Test]:
    """The tests of a model or column. dbt knows four ways to write one."""
    for each in part.get("data_tests") or part.get("tests") or []:
        if isinstance(each, str):
            yield each, column, {}, {}
            continue
        if "test_name" in each:
            name, given = each["test_name"], each
        else:
            [(name, given)] = each.items()
        given = given or {}
        arguments = dict(given.get("arguments") or {k: v for k, v in given.items() if k not in _NOT_ARGUMENTS})
        yield name, arguments.pop("column_name", column), arguments, given.get("config") or {}
    for each in part.get("columns") or []:
        yield from tests_of(each, each["name"])


_NOT_ARGUMENTS: Final = {"name", "description", "config", "test_name", "arguments", "meta", "tags"}


def _primary_key(model: Mapping[str, Any], tests: list[_Test]) -> list[str]:
    """The columns that identify a row: those of the first test that says so, if none of them may be null."""
    never_null = {
        column["name"]
        for column in model["columns"]
        if any(each["type"] in ("not_null", "primary_key") for each in column.get("constraints") or [])
    } | {column for test, column, _, _ in tests if _SAME_AS.get(test, test) == "not_null"}
    keys = [
        arguments.get("column_list", []) if test.endswith("expect_compound_columns_to_be_unique") else [column]
        for test, column, arguments, config in tests
        if (_SAME_AS.get(test, test) == "unique" or test.endswith("expect_compound_columns_to_be_unique"))
        and not (config.get("where") or arguments.get("row_condition"))
    ]
    return next((list(key) for key in sorted(keys, key=len) if never_null.issuperset(key)), [])


def _translated(
    test: str,
    column: str,
    arguments: Mapping[str, Any],
    properties: dict[str, dict[str, Any]],
    marts: Collection[str],
) -> list[dict[str, Any]] | None:
    """A test as quality rules, or as something that its column says; None if ODCS has no word for it."""
    name = _SAME_AS.get(test, test).removeprefix("dbt_expectations.")
    own = properties.get(column, {})
    if arguments.get("row_condition"):
        return None
    if name in ("not_null", "unique") and own:
        own["required" if name == "not_null" else "unique"] = True
        return []
    if name == "relationships" and own:
        target = re.search(r"(\w+)['\"]\s*\)\s*$", str(arguments.get("to", "")))
        field = str(arguments.get("field", ""))
        if target is None or target[1] not in marts or not (_ID.fullmatch(target[1]) and _ID.fullmatch(field)):
            return None
        own["relationships"] = [{"to": f"{target[1]}{SUFFIX}#/schema/{target[1]}/properties/{field}"}]
        return []
    if name == "accepted_values" and own:
        values = arguments.get("values", arguments.get("value_set", []))
        return _of_column(own, {"metric": "invalidValues", "arguments": {"validValues": list(values)}, "mustBe": 0})
    if name == "expect_column_values_to_match_regex" and own:
        return _of_column(own, {"metric": "invalidValues", "arguments": {"pattern": arguments["regex"]}, "mustBe": 0})
    if name == "expect_column_values_to_be_between" and own and not arguments.get("strictly"):
        return _between(own, arguments.get("min_value"), arguments.get("max_value"))
    if name == "expect_table_row_count_to_be_between":
        low, high = arguments.get("min_value"), arguments.get("max_value")
        bounds: dict[str, Any] = (
            {"mustBeBetween": [low, high]}
            if low is not None and high is not None
            else {"mustBeGreaterOrEqualTo": low}
            if high is None
            else {"mustBeLessOrEqualTo": high}
        )
        return [{"type": "library", "metric": "rowCount", **bounds}]
    if name == "expect_compound_columns_to_be_unique":
        columns = list(arguments["column_list"])
        if all("primaryKey" in properties.get(each, {}) for each in columns):
            return []
        return [{"type": "library", "metric": "duplicateValues", "arguments": {"properties": columns}, "mustBe": 0}]
    if name == "every_row":
        return [
            _sql(f"not ({said(rule)})", what) if "{{" not in said(rule) else text_rule(what)
            for what, rule in arguments["rules"].items()
        ]
    if name == "one_value_per_key":
        key, value = arguments["key"], arguments["value"]
        rule = _sql("", f"all rows of one {key} hold one {value}")
        query = f"select count(*) from (select 1 from ${{table}} group by {key} having count(distinct {value}) > 1) as found"
        return [{**rule, "query": query}]
    return [] if name == "ranges_as_declared" else None


def _of_column(own: dict[str, Any], rule: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A rule that stands with its column, and leaves none for the table."""
    own.setdefault("quality", []).append({"type": "library", **rule})
    return []


def _sql(condition: str, what: str) -> dict[str, Any]:
    """A rule that no row may fulfil the condition. As in dbt, one that is null is not fulfilled."""
    return {
        "type": "sql",
        "description": what,
        "query": f"select count(*) from ${{table}} where {condition}",
        "mustBe": 0,
    }


def _between(own: dict[str, Any], low: Any, high: Any) -> list[dict[str, Any]] | None:
    bounds = {"minimum": low, "maximum": high}
    limits = {name: bound for name, bound in bounds.items() if bound is not None}
    if own.get("logicalType") not in ("integer", "number") or not all(
        isinstance(each, int | float) for each in limits.values()
    ):
        return None
    own["logicalTypeOptions"] = {**own.get("logicalTypeOptions", {}), **limits}
    return []


def _ranges(model: Mapping[str, Any], properties: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the test ranges_as_declared checks."""
    for column in model["columns"]:
        own, meta = properties[column["name"]], _meta(column)
        low, high = meta.get("range", [None, None])
        _between(own, low, high)
        if meta.get("null_means") == "never null":
            own["required"] = True
    doubles = [identifier(each["name"]) for each in model["columns"] if each.get("data_type") == "double"]
    finite = " and ".join(f"coalesce(isfinite({each}), true)" for each in doubles)
    return [_sql(f"not ({finite})", "every number is finite")] if doubles else []


def _in_words(test: str, column: str, arguments: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    given = ", ".join(f"{name}: {said(str(value))}" for name, value in arguments.items())
    where = f", where {said(str(config['where']))}" if config.get("where") else ""
    return f"dbt test {test}" + (f" of {column}" if column else "") + (f" ({given})" if given else "") + where
