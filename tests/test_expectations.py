"""The replacement for dbt-expectations: dbt runs each test on a table that passes and on one that fails.

The number of rows or groups that fail is computed here in plain Python. Where the real package is installed, it must
give the same numbers, so the replacement means the same as the original."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import duckdb
import pytest
import yaml
from conftest import PROJECT, run_dbt

FALLBACK = PROJECT / "fallback_packages" / "dbt_expectations"
INSTALLED = PROJECT / "dbt_packages" / "dbt_expectations"

Row = dict[str, Any]
COLUMNS = {"id": "integer", "code": "varchar", "shop": "varchar", "low": "double", "high": "double"}
GOOD = [
    (1, "A-1", "north", 1.0, 2.0),
    (2, "A-2", "north", 2.0, 4.5),
    (3, "B-1", "south", 3.0, 3.5),
    (4, None, "south", None, 5.0),
    (None, None, "south", 2.5, None),
]
BAD = [
    (1, "A-1", "north", 1.0, 2.0),
    (1, "A-1", "north", 1.0, 2.0),
    (2, "a-22222", "north", 99.0, 4.5),
    (None, None, "west", 3.0, 3.0),
    (None, None, None, -3.0, 7.0),
    (7, "Z", "south", None, None),
]


def rows_of(table: list[tuple[Any, ...]]) -> list[Row]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in table]


def values(rows: list[Row], column: str) -> list[Any]:
    return [row[column] for row in rows if row[column] is not None]


def outside(value: float | None, low: float | None, high: float | None, strictly: bool = False) -> bool:
    """Null is never outside."""
    if value is None:
        return False
    below = low is not None and (value <= low if strictly else value < low)
    above = high is not None and (value >= high if strictly else value > high)
    return below or above


def repeated(rows: list[Row], *columns: str, ignore: Callable[[list[bool]], bool] = all) -> int:
    keys = [tuple(row[column] for column in columns) for row in rows]
    counted = Counter(key for key in keys if not ignore([part is None for part in key]))
    return sum(count > 1 for count in counted.values())


def groups(rows: list[Row]) -> dict[Any, list[Row]]:
    by_shop: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        by_shop[row["shop"]].append(row)
    return by_shop


def counts_differ(rows: list[Row], others: list[Row]) -> int:
    """Shops whose row counts differ; a null shop is not equal to anything, so it differs on each side that has it."""
    here, there = Counter(row["shop"] for row in rows), Counter(row["shop"] for row in others)
    shops = (set(here) | set(there)) - {None}
    return sum(here[shop] != there[shop] for shop in shops) + (None in here) + (None in there)


@dataclass(frozen=True)
class Case:
    """A test with its arguments, and the number of failing rows or groups that a table must give."""

    test: str
    expected: Callable[[list[Row]], int]
    arguments: dict[str, Any] = field(default_factory=dict)
    column: str | None = None


def each(predicate: Callable[[Row], bool]) -> Callable[[list[Row]], int]:
    """The number of rows that fail by `predicate`."""
    return lambda rows: sum(map(predicate, rows))


def total(rows: list[Row]) -> float | None:
    return sum(values(rows, "low")) if values(rows, "low") else None


CASES = [
    Case("expect_column_to_exist", lambda rows: 0, column="code"),
    Case("expect_column_to_exist", lambda rows: 0, {"column_index": 2}, "CODE"),
    Case("expect_column_to_exist", lambda rows: 1, {"column_index": 1}, "code"),
    Case("expect_column_to_exist", lambda rows: 1, column="nowhere"),
    Case("expect_column_values_to_be_of_type", lambda rows: 0, {"column_type": "integer"}, "id"),
    Case("expect_column_values_to_be_of_type", lambda rows: 1, {"column_type": "varchar"}, "id"),
    Case("expect_column_values_to_be_in_type_list", lambda rows: 0, {"column_type_list": ["varchar", "double"]}, "low"),
    Case("expect_column_values_to_be_in_type_list", lambda rows: 1, {"column_type_list": ["varchar", "bigint"]}, "low"),
    Case("expect_column_values_to_not_be_null", each(lambda row: row["id"] is None), column="id"),
    Case(
        "expect_column_values_to_not_be_null",
        each(lambda row: row["shop"] == "west" and row["id"] is None),
        {"row_condition": "shop = 'west'"},
        "id",
    ),
    Case(
        "expect_column_values_to_be_between",
        each(lambda row: outside(row["low"], 1, 3)),
        {"min_value": 1, "max_value": 3},
        "low",
    ),
    Case(
        "expect_column_values_to_be_between",
        each(lambda row: outside(row["low"], 1, None, strictly=True)),
        {"min_value": 1, "strictly": True},
        "low",
    ),
    Case(
        "expect_column_values_to_be_between",
        each(lambda row: row["shop"] == "north" and outside(row["low"], None, 2.0)),
        {"max_value": 2.0, "row_condition": "shop = 'north'"},
        "low",
    ),
    Case(
        "expect_column_value_lengths_to_be_between",
        each(lambda row: row["code"] is not None and not 2 <= len(row["code"]) <= 5),
        {"min_value": 2, "max_value": 5},
        "code",
    ),
    Case(
        "expect_column_values_to_be_in_set",
        each(lambda row: row["shop"] not in {"north", "south"}),
        {"value_set": ["north", "south"]},
        "shop",
    ),
    Case(
        "expect_column_values_to_be_in_set",
        each(lambda row: row["id"] is not None and row["id"] not in {1, 2, 3, 4}),
        {"value_set": [1, 2, 3, 4], "quote_values": False, "row_condition": "id is not null"},
        "id",
    ),
    Case(
        "expect_column_values_to_match_regex",
        each(lambda row: row["code"] is not None and not re.search("^[A-Z]-[0-9]$", row["code"])),
        {"regex": "^[A-Z]-[0-9]$"},
        "code",
    ),
    Case(
        "expect_column_values_to_match_regex",
        each(lambda row: row["id"] == 2 and not re.search("^A-[0-9]{1,2}$", row["code"], re.I)),
        {"regex": "^A-[0-9]{1,2}$", "flags": "i", "row_condition": "id = 2"},
        "code",
    ),
    Case("expect_column_values_to_be_unique", lambda rows: repeated(rows, "id"), column="id"),
    Case(
        "expect_column_values_to_be_unique",
        lambda rows: repeated([row for row in rows if row["id"] == 1], "id"),
        {"row_condition": "id = 2 or id = 1"},
        "id",
    ),
    Case(
        "expect_compound_columns_to_be_unique",
        lambda rows: repeated(rows, "id", "code"),
        {"column_list": ["id", "code"]},
    ),
    Case(
        "expect_compound_columns_to_be_unique",
        lambda rows: repeated(rows, "id", "shop", ignore=any),
        {"column_list": ["id", "shop"], "quote_columns": True, "ignore_row_if": "any_value_is_missing"},
    ),
    Case(
        "expect_column_pair_values_A_to_be_greater_than_B",
        each(lambda row: None not in (row["high"], row["low"]) and not row["high"] > row["low"]),
        {"column_A": "high", "column_B": "low"},
    ),
    Case(
        "expect_column_pair_values_A_to_be_greater_than_B",
        each(lambda row: None not in (row["high"], row["low"]) and not row["high"] >= row["low"]),
        {"column_A": "high", "column_B": "low", "or_equal": True},
    ),
    Case(
        "expression_is_true",
        each(lambda row: row["low"] is not None and not row["low"] + 1 < 10),
        {"expression": "low + 1 < 10"},
    ),
    Case(
        "expression_is_true",
        lambda rows: sum(len(group) >= 4 for group in groups(rows).values()),
        {"expression": "count(*)", "test_condition": "< 4", "group_by_columns": ["shop"]},
    ),
    Case(
        "expression_between",
        each(lambda row: row["low"] is not None and outside(row["low"] * 2, 0, 10)),
        {"expression": "low * 2", "min_value": 0, "max_value": 10},
    ),
    Case(
        "expect_column_min_to_be_between",
        lambda rows: int(outside(min(values(rows, "low")), 1, 2)),
        {"min_value": 1, "max_value": 2},
        "low",
    ),
    Case(
        "expect_column_max_to_be_between",
        lambda rows: sum(outside(max(values(group, "low"), default=None), None, 3) for group in groups(rows).values()),
        {"max_value": 3, "group_by": ["shop"]},
        "low",
    ),
    Case(
        "expect_column_mean_to_be_between",
        lambda rows: int(outside(fmean(values(rows, "low")), 1, 3)),
        {"min_value": 1, "max_value": 3},
        "low",
    ),
    Case(
        "expect_column_sum_to_be_between",
        lambda rows: sum(outside(total(group), 3, 10) for group in groups(rows).values()),
        {"min_value": 3, "max_value": 10, "group_by": ["shop"]},
        "low",
    ),
    Case(
        "expect_column_sum_to_be_between",
        lambda rows: int(outside(total([row for row in rows if row["high"] is not None]), 3, 6, strictly=True)),
        {"min_value": 3, "max_value": 6, "row_condition": "high is not null", "strictly": True},
        "low",
    ),
    Case(
        "expect_column_proportion_of_unique_values_to_be_between",
        lambda rows: int(outside(len(set(values(rows, "id"))) / len(values(rows, "id")), 0.9, 1)),
        {"min_value": 0.9, "max_value": 1},
        "id",
    ),
    Case(
        "expect_table_row_count_to_be_between",
        lambda rows: int(outside(len(rows), 1, 5)),
        {"min_value": 1, "max_value": 5},
    ),
    Case(
        "expect_table_row_count_to_be_between",
        lambda rows: sum(outside(len(group), 2, None) for group in groups(rows).values()),
        {"min_value": 2, "group_by": ["shop"]},
    ),
    Case(
        "expect_table_row_count_to_equal_other_table",
        lambda rows: int(len(rows) != len(GOOD)),
        {"compare_model": "source('shop', 'other')"},
    ),
    Case(
        "expect_table_row_count_to_equal_other_table",
        lambda rows: counts_differ(rows, rows_of(GOOD)),
        {"compare_model": "source('shop', 'other')", "group_by": ["shop"]},
    ),
    Case(
        "expect_table_row_count_to_equal_other_table",
        lambda rows: int(len(rows) != 2.5 * 2),
        {
            "compare_model": "source('shop', 'other')",
            "factor": 2.5,
            "row_condition": "true",
            "compare_row_condition": "shop = 'north'",
        },
    ),
    Case(
        "expect_table_aggregation_to_equal_other_table",
        lambda rows: int(abs((total(rows) or 0) - sum(values(rows_of(GOOD), "high"))) > 10),
        {
            "expression": "sum(low)",
            "compare_model": "source('shop', 'other')",
            "compare_expression": "sum(high)",
            "tolerance": 10,
        },
    ),
]


def declared(table: str) -> dict[str, Any]:
    """The table as a dbt source with every case on it, each named after its place in CASES."""
    of_table, by_column = [], defaultdict(list)
    for index, case in enumerate(CASES):
        entry = {f"dbt_expectations.{case.test}": {"name": f"{table}_{index}", "arguments": case.arguments}}
        (by_column[case.column] if case.column else of_table).append(entry)
    columns = [{"name": name, "data_tests": tests} for name, tests in by_column.items()]
    return {"name": table, "data_tests": of_table, "columns": columns}


def failures(folder: Path, packages: Path) -> dict[str, int]:
    """Run every case in a scratch dbt project that has `packages` installed: test name to number of failing rows."""
    with duckdb.connect(str(folder / "shop.duckdb")) as con:
        for table, rows in {"good": GOOD, "bad": BAD, "other": GOOD}.items():
            con.execute(f"create table {table} ({', '.join(f'{name} {kind}' for name, kind in COLUMNS.items())})")
            con.executemany(f"insert into {table} values ({', '.join('?' * len(COLUMNS))})", rows)
    (folder / "models").mkdir()
    sources = [{"name": "shop", "schema": "main", "tables": [declared("good"), declared("bad"), {"name": "other"}]}]
    files = {
        "dbt_project.yml": {"name": "scratch", "profile": "scratch", "packages-install-path": str(packages)},
        "profiles.yml": {"scratch": {"target": "dev", "outputs": {"dev": {"type": "duckdb", "path": "shop.duckdb"}}}},
        "packages.yml": yaml.safe_load((PROJECT / "packages.yml").read_text()),
        "models/sources.yml": {"sources": sources},
    }
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content))
    run = run_dbt(folder, "test")
    results = json.loads((folder / "target" / "run_results.json").read_text())["results"]
    broken = [result["message"] for result in results if result["status"] not in ("pass", "fail")]
    assert not broken, f"dbt could not run these: {broken}\n{run.stdout}"
    return {result["unique_id"].split(".")[2]: result["failures"] for result in results}


#: The replacement and, where the hub could be reached, dbt-expectations itself.
PACKAGES = {"stand-in": FALLBACK.parent}
if INSTALLED.exists() and INSTALLED.resolve() != FALLBACK:
    PACKAGES["real"] = INSTALLED.parent


@pytest.fixture(scope="module", params=PACKAGES)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    packages = PACKAGES[request.param]
    return failures(tmp_path_factory.mktemp("scratch"), packages)


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{i}-{case.test}" for i, case in enumerate(CASES)])
def test_the_failing_rows_are_those_that_python_counts(outcome: dict[str, int], index: int) -> None:
    case = CASES[index]
    assert outcome[f"good_{index}"] == case.expected(rows_of(GOOD))
    assert outcome[f"bad_{index}"] == case.expected(rows_of(BAD))


def test_every_test_of_the_stand_in_is_seen_to_pass_and_to_fail() -> None:
    offered = {
        name
        for file in (FALLBACK / "macros").glob("*.sql")
        for name in re.findall(r"{%-? *test +(\w+)", file.read_text())
    }
    passes = {case.test for case in CASES if case.expected(rows_of(GOOD)) == 0}
    fails = {case.test for case in CASES if case.expected(rows_of(BAD)) > 0}
    assert offered == passes == fails
