"""Readable names and descriptions of asset checks: dbt makes names of all of a test's arguments, and describes none."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

#: Longer names do not fit into Dagster's lists.
_LONGEST: Final = 80
_REFERENCE: Final = re.compile(r"""(?:ref|source)\(\s*(['"]\w+['"](?:\s*,\s*['"]\w+['"])*)""")
_NOT_NULL: Final = re.compile(r"(\w+) is not null", re.IGNORECASE)


def with_readable_checks(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """dbt's manifest with a name and a description of each data test as a person would give them. dagster-dbt reads both from the manifest, when it
    makes checks and when it reports their results. Names are unique for each asset, and depend on nothing but the test: Dagster keeps a
    check's history by its name. dbt's own name stays the last part of `fqn`."""
    tests = {key: node for key, node in manifest["nodes"].items() if node["resource_type"] == "test"}
    checked = {key: _checked(node, manifest) for key, node in tests.items()}
    names = {key: name_of(node, checked[key]) for key, node in tests.items()}
    count = Counter((_id(checked[key]), name) for key, name in names.items())
    renamed = {}
    for key, node in tests.items():
        name = names[key]
        if count[_id(checked[key]), name] > 1:
            name = f"{name}_{hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()[:6]}"
        meta = {**node.get("meta", {}), "description": description_of(node, checked[key])}
        renamed[key] = {**node, "name": name, "meta": meta}
    return {**manifest, "nodes": {**manifest["nodes"], **renamed}}


def _id(node: Mapping[str, Any] | None) -> str:
    return str(node["unique_id"]) if node else ""


def _checked(test: Mapping[str, Any], manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The node whose asset has the check, as dagster-dbt chooses it: the one that `meta` names, the only one that is read, or the one that has
    the test in its YAML. None if a singular test reads several."""
    nodes = {**manifest["nodes"], **manifest["sources"]}
    named = (test["config"].get("meta") or test.get("meta") or {}).get("dagster", {}).get("ref", {}).get("name")
    if named:
        return next((node for node in nodes.values() if node["name"] == named), None)
    read = set(test["depends_on"]["nodes"])
    return nodes.get(read.pop() if len(read) == 1 else test.get("attached_node"))


def name_of(test: Mapping[str, Any], checked: Mapping[str, Any] | None) -> str:
    """The name that the project gave, or one from what the test asks."""
    found = test.get("test_metadata")
    # `<model>_rows` says no more than that it is the model's.
    if not found or not (_is_generated(test) or test["name"] == f"{_label(checked)}_rows"):
        return _identifier(test["name"])
    name, _ = _rule(found["name"], _arguments(test), _label(checked))
    where = _condition(test)
    return _identifier(f"{name} where {where}" if where else name)


def description_of(test: Mapping[str, Any], checked: Mapping[str, Any] | None) -> str:
    """When the test fails, in a sentence; what the project says of it; and dbt's name, which `dbt test --select` takes."""
    found = test.get("test_metadata")
    if found:
        _, fails = _rule(found["name"], _arguments(test), f"`{_label(checked)}`")
        where = _condition(test)
        said = [f"Fails if {fails}", f"Only rows where `{where}` are checked." if where else ""]
    else:
        said = [f"Fails if the query in `{test['original_file_path']}` returns a row.", _comment(test)]
    given = test.get("description") or test["config"].get("meta", {}).get("description") or ""
    severity = "A failure is only a warning." if str(test["config"].get("severity")).lower() == "warn" else ""
    return "\n\n".join(part for part in (given, *said, severity, f"dbt test: `{test['fqn'][-1]}`") if part)


def _is_generated(test: Mapping[str, Any]) -> bool:
    """Whether dbt made the name: from the test's name, the model's and the arguments."""
    found = test["test_metadata"]
    begins = f"{found['namespace']}_" if found.get("namespace") else ""
    return str(test["name"]).startswith((f"{begins}{found['name']}_", f"{begins}source_{found['name']}_"))


def _label(node: Mapping[str, Any] | None) -> str:
    if node is None:
        return "the models"
    return f"{node['source_name']}.{node['name']}" if node["resource_type"] == "source" else str(node["name"])


def _arguments(test: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(test["test_metadata"].get("kwargs") or {})
    if test.get("column_name"):
        given["column_name"] = test["column_name"]
    return given


def _condition(test: Mapping[str, Any]) -> str:
    """Which rows the test is about, if not all."""
    row_condition = ((test.get("test_metadata") or {}).get("kwargs") or {}).get("row_condition")
    return " and ".join(" ".join(str(each).split()) for each in (row_condition, test["config"].get("where")) if each)


def _comment(test: Mapping[str, Any]) -> str:
    """The comment at the beginning of a singular test."""
    lines = []
    for line in str(test.get("raw_code") or "").strip().splitlines():
        if not line.startswith("--") or line.startswith("-- depends_on"):
            break
        lines.append(line.lstrip("- ").rstrip())
    return " ".join(lines)


def _rule(test: str, given: Mapping[str, Any], model: str) -> tuple[str, str]:
    """(name, "Fails if …") of a generic test."""
    try:
        known = _known_rule(test, given, model)
    except (KeyError, TypeError, AttributeError):  # another package's test of this name
        known = None
    return known or _other_rule(test, given, model)


def _known_rule(test: str, given: Mapping[str, Any], model: str) -> tuple[str, str] | None:
    column, other = str(given.get("column_name", "")), _referred(given.get("to") or given.get("compare_model"))
    match test:
        case "not_null":
            return f"{column} is not null", f"`{column}` is null in a row of {model}."
        case "unique" | "expect_column_values_to_be_unique":
            return f"{column} is unique", f"two rows of {model} have the same `{column}`."
        case "expect_compound_columns_to_be_unique":
            columns = [str(each) for each in given["column_list"]]
            return f"one row per {_joined(columns)}", f"two rows of {model} have the same {_listed(columns)}."
        case "accepted_values":
            values = _listed(given["values"], "or")
            return f"{column} is an accepted value", f"`{column}` of {model} is neither null nor {values}."
        case "relationships":
            field = given["field"]
            return (
                f"{column} is in {other}",
                f"a value of `{column}` in {model} is missing from `{field}` of `{other}`.",
            )
        case "expect_column_values_to_be_between":
            limits = _limits(given)
            return f"{column} is {limits}", f"`{column}` of {model} is not {limits}."
        case "expect_table_row_count_to_be_between":
            limits = _limits(given)
            return f"row count is {limits}", f"the number of rows of {model} is not {limits}."
        case "expect_table_row_count_to_equal_other_table":
            condition = given.get("compare_row_condition")
            which = f" where `{' '.join(str(condition).split())}`" if condition else ""
            return (
                f"row count is that of {other}",
                f"{model} has more or fewer rows than `{other}`{which}.",
            )
        case "expect_table_aggregation_to_equal_other_table":
            mine, theirs = given["expression"], given.get("compare_expression") or given["expression"]
            keys = given.get("group_by")
            each = f", for each {_listed(keys)}" if keys else ""
            return (
                f"{mine} is that of {other}",
                f"`{mine}` of {model} differs from `{theirs}` of `{other}`{each}.",
            )
        case "expression_is_true":
            expression = " ".join(str(given["expression"]).split())
            parts = [_NOT_NULL.fullmatch(part) for part in re.split(r"\s+and\s+", expression, flags=re.IGNORECASE)]
            columns = [part[1] for part in parts if part]
            are = "are" if len(columns) > 1 else "is"
            name = expression if len(columns) < len(parts) else f"{_joined(columns)} {are} not null"
            return name, f"a row of {model} does not satisfy `{expression}`."
        case "every_row":
            rules = "\n".join(f"- {name}: `{' '.join(str(rule).split())}`" for name, rule in given["rules"].items())
            return "every row keeps the rules", f"a row of {model} breaks one of these rules:\n\n{rules}"
        case "ranges_as_declared":
            return (
                "ranges as declared",
                f"a column of {model} is outside the range that its YAML declares (`range`), is null although `null_means` or a constraint "
                "says never, or is not a finite number.",
            )
        case "windows_grow":
            return "windows grow", f"a measure of {model} is smaller over a longer window than over a shorter one."
        case "one_value_per_key":
            key, value = given["key"], given["value"]
            return f"{key} has one {value}", f"one `{key}` of {model} has more than one `{value}`."
    return None


def _other_rule(test: str, given: Mapping[str, Any], model: str) -> tuple[str, str]:
    column = str(given.get("column_name", ""))
    rest = {key: value for key, value in given.items() if key not in ("model", "column_name", "row_condition")}
    about = f" for `{column}`" if column else ""
    values = f" ({', '.join(f'{key}: `{value}`' for key, value in rest.items())})" if rest else ""
    words = test.removeprefix("expect_").removeprefix("column_values_").replace("_", " ")
    return (
        f"{column} {words} {' '.join(str(value) for value in rest.values())}".strip(),
        f"the test `{test}`{about} finds wrong rows in {model}{values}.",
    )


def _limits(given: Mapping[str, Any]) -> str:
    low, high = given.get("min_value"), given.get("max_value")
    if low is not None and high is not None:
        return f"{low}" if low == high else f"between {low} and {high}"
    return f"at least {low}" if low is not None else f"at most {high}"


def _referred(text: Any) -> str:
    """The model of `ref('model')`, the table of `source('source', 'table')`."""
    found = _REFERENCE.search(str(text or ""))
    return found[1].replace("'", '"').split('"')[-2] if found else str(text or "")


def _listed(names: Sequence[Any], last: str = "and") -> str:
    return _joined([f"`{name}`" for name in names], last)


def _joined(names: Sequence[str], last: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def _identifier(text: str) -> str:
    """As Dagster takes names: of letters, digits and underscores."""
    signs = {"<=": " at most ", ">=": " at least ", "<>": " is not ", "<": " below ", ">": " above ", "=": " is "}
    for sign, words in signs.items():
        text = text.replace(sign, words)
    name = "_".join(word.strip("_") for word in re.split(r"\W+", text, flags=re.ASCII) if word.strip("_")) or "test"
    if len(name) <= _LONGEST:
        return name
    return name[:_LONGEST].rpartition("_")[0] or name[:_LONGEST]
