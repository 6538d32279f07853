"""Names and descriptions of asset checks, from dbt's tests of all kinds; and times of builds."""

from __future__ import annotations

import re
import zlib
from typing import Any

import dagster as dg
import pytest

from orchestration.dagster.checks import with_readable_checks
from orchestration.dagster.groups import group, group_of
from orchestration.dagster.times import BUILDS, report, with_seconds

ORDERS = "model.shop.orders"
LAKE = "source.shop.lake.events"


def manifest(*tests: dict[str, Any]) -> dict[str, Any]:
    """One with a model, a source, and these tests."""
    nodes: dict[str, Any] = {
        ORDERS: {"unique_id": ORDERS, "name": "orders", "resource_type": "model", "fqn": ["shop", "marts", "orders"]},
        "model.shop.other": {"unique_id": "model.shop.other", "name": "other", "resource_type": "model"},
    }
    source = {"unique_id": LAKE, "name": "events", "source_name": "lake", "resource_type": "source"}
    return {"nodes": {**nodes, **{test["unique_id"]: test for test in tests}}, "sources": {LAKE: source}}


def generic(
    kind: str, given: dict[str, Any], name: str | None = None, namespace: str | None = None, **config: Any
) -> dict[str, Any]:
    """A generic test of the model `orders`, as dbt writes it; with the name that dbt makes if `name` is None."""
    name = name or f"{f'{namespace}_' if namespace else ''}{kind}_orders_and_more"
    return {
        "unique_id": f"test.shop.{name}.{zlib.crc32(str(given).encode()):010x}",
        "name": name,
        "resource_type": "test",
        "fqn": ["shop", "marts", name],
        "test_metadata": {"name": kind, "namespace": namespace, "kwargs": {**given, "model": "{{ ref('orders') }}"}},
        "column_name": given.get("column_name"),
        "attached_node": ORDERS,
        "depends_on": {"nodes": [ORDERS]},
        "config": {"severity": "ERROR", "meta": {}, **config},
        "meta": {},
    }


def singular(code: str, reads: list[str], **config: Any) -> dict[str, Any]:
    name = "no_order_is_above_60"
    return {
        "unique_id": f"test.shop.{name}",
        "name": name,
        "resource_type": "test",
        "fqn": ["shop", name],
        "original_file_path": f"tests/singular/{name}.sql",
        "raw_code": code,
        "depends_on": {"nodes": reads},
        "config": {"severity": "ERROR", "meta": {}, **config},
    }


def readable(*tests: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, description) of each test."""
    nodes = with_readable_checks(manifest(*tests))["nodes"]
    return [(nodes[test["unique_id"]]["name"], nodes[test["unique_id"]]["meta"]["description"]) for test in tests]


@pytest.mark.parametrize(
    ("kind", "given", "name", "fails"),
    [
        ("not_null", {"column_name": "id"}, "id_is_not_null", "`id` is null in a row of `orders`."),
        ("unique", {"column_name": "_id"}, "id_is_unique", "two rows of `orders` have the same `_id`."),
        (
            "accepted_values",
            {"column_name": "status", "values": ["paid", "open", 3]},
            "status_is_an_accepted_value",
            "`status` of `orders` is neither null nor `paid`, `open` or `3`.",
        ),
        (
            "relationships",
            {"column_name": "user_id", "to": "ref('dim_users')", "field": "id"},
            "user_id_is_in_dim_users",
            "a value of `user_id` in `orders` is missing from `id` of `dim_users`.",
        ),
        (
            "relationships",
            {"column_name": "user_id", "to": 'source("lake", "users")', "field": "id"},
            "user_id_is_in_users",
            "a value of `user_id` in `orders` is missing from `id` of `users`.",
        ),
        (
            "expect_compound_columns_to_be_unique",
            {"column_list": ["a", "b", "c"]},
            "one_row_per_a_b_and_c",
            "two rows of `orders` have the same `a`, `b` and `c`.",
        ),
        (
            "expect_column_values_to_be_unique",
            {"column_name": "id", "row_condition": "ended  is null"},
            "id_is_unique_where_ended_is_null",
            "two rows of `orders` have the same `id`.\n\nOnly rows where `ended is null` are checked.",
        ),
        (
            "expect_column_values_to_be_between",
            {"column_name": "price", "min_value": 0},
            "price_is_at_least_0",
            "`price` of `orders` is not at least 0.",
        ),
        (
            "expect_column_values_to_be_between",
            {"column_name": "price", "min_value": 0, "max_value": 9},
            "price_is_between_0_and_9",
            "`price` of `orders` is not between 0 and 9.",
        ),
        (
            "expect_table_row_count_to_be_between",
            {"min_value": 1, "max_value": 1},
            "row_count_is_1",
            "the number of rows of `orders` is not 1.",
        ),
        (
            "expect_table_row_count_to_equal_other_table",
            {"compare_model": "ref('lines')", "compare_row_condition": "is_first"},
            "row_count_is_that_of_lines",
            "`orders` has more or fewer rows than `lines` where `is_first`.",
        ),
        (
            "expect_table_aggregation_to_equal_other_table",
            {
                "expression": "sum(n)",
                "compare_model": "ref('lines')",
                "compare_expression": "count(*)",
                "group_by": ["k"],
            },
            "sum_n_is_that_of_lines",
            "`sum(n)` of `orders` differs from `count(*)` of `lines`, for each `k`.",
        ),
        (
            "expression_is_true",
            {"expression": "a is not null and\n b is not null"},
            "a_and_b_are_not_null",
            "a row of `orders` does not satisfy `a is not null and b is not null`.",
        ),
        (
            "expression_is_true",
            {"expression": "a >= b"},
            "a_at_least_b",
            "a row of `orders` does not satisfy `a >= b`.",
        ),
        (
            "every_row",
            {"rules": {"a is small": "a < 3"}},
            "every_row_keeps_the_rules",
            "a row of `orders` breaks one of these rules:\n\n- a is small: `a < 3`",
        ),
        (
            "one_value_per_key",
            {"key": "k", "value": "v"},
            "k_has_one_v",
            "one `k` of `orders` has more than one `v`.",
        ),
        (
            "expect_column_values_to_match_regex",
            {"column_name": "code", "regex": "[a-z]+"},
            "code_to_match_regex_a_z",
            "the test `expect_column_values_to_match_regex` for `code` finds wrong rows in `orders` (regex: `[a-z]+`).",
        ),
        # Of another package, with other arguments than ours.
        (
            "every_row",
            {"rules": "none"},
            "every_row_none",
            "the test `every_row` finds wrong rows in `orders` (rules: `none`).",
        ),
        (
            "accepted_values",
            {"column_name": "a"},
            "a_accepted_values",
            "the test `accepted_values` for `a` finds wrong rows in `orders`.",
        ),
    ],
)
def test_each_kind_of_test_says_when_it_fails(kind: str, given: dict[str, Any], name: str, fails: str) -> None:
    namespace = "dbt_expectations" if kind.startswith("expect") else None
    test = generic(kind, given, namespace=namespace)
    assert readable(test) == [(name, f"Fails if {fails}\n\ndbt test: `{test['name']}`")]


def test_the_projects_own_words_come_first() -> None:
    test = generic("unique", {"column_name": "id"}, name="no_order_twice", severity="warn", where="id > 5")
    test["description"] = "An order counts once."
    assert readable(test) == [
        (
            "no_order_twice",
            "An order counts once.\n\nFails if two rows of `orders` have the same `id`.\n\nOnly rows where `id > 5` are checked.\n\n"
            "A failure is only a warning.\n\ndbt test: `no_order_twice`",
        )
    ]
    assert (
        readable(generic("every_row", {"rules": {"a": "b"}}, name="orders_rows"))[0][0] == "every_row_keeps_the_rules"
    )


def test_a_test_of_its_own_has_its_comment() -> None:
    code = "-- Nobody spends more\n-- than 60.\n-- depends_on: {{ ref('other') }}\nselect 1 -- never"
    [(name, text)] = readable(singular(code, [ORDERS]))
    assert name == "no_order_is_above_60"
    assert text.split("\n\n") == [
        "Fails if the query in `tests/singular/no_order_is_above_60.sql` returns a row.",
        "Nobody spends more than 60.",
        "dbt test: `no_order_is_above_60`",
    ]
    [(_, text)] = readable(singular("select 1", [ORDERS, "model.shop.other"]))
    assert len(text.split("\n\n")) == 2


def test_a_source_is_named_with_its_own_source() -> None:
    test = generic("not_null", {"column_name": "_source"}, name="source_not_null_lake_events__source")
    test.update(attached_node=None, depends_on={"nodes": [LAKE]})
    [(name, text)] = readable(test)
    assert name == "source_is_not_null" and text.startswith("Fails if `_source` is null in a row of `lake.events`.")


def test_names_are_unique_for_an_asset_stable_and_as_dagster_takes_them() -> None:
    same = [generic("unique", {"column_name": "id", "limit": limit}) for limit in (1, 2)]
    alone = generic("not_null", {"column_name": "id"})
    long = generic("expect_compound_columns_to_be_unique", {"column_list": [f"column_{n}" for n in range(40)]})
    strange = generic("expression_is_true", {"expression": "größe <> 'ü'"})
    empty = generic("expression_is_true", {"expression": "''"})
    # The same question, of a singular test that `meta` gives to this asset.
    moved = singular("select 1", ["model.shop.other", LAKE], meta={"dagster": {"ref": {"name": "orders"}}})
    moved.update(name="id_is_not_null", fqn=["shop", "id_is_not_null"])
    names = [name for name, _ in readable(*same, alone, long, strange, empty, moved)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"\w{1,90}", name, re.ASCII) for name in names)
    assert all(re.fullmatch(r"id_is_unique_[0-9a-f]{6}", name) for name in names[:2])
    backwards = [name for name, _ in readable(moved, empty, strange, long, alone, *reversed(same))]
    assert backwards == names[::-1]
    # Of another asset, it needs no more than its name.
    moved["config"]["meta"]["dagster"]["ref"]["name"] = "other"
    assert [name for name, _ in readable(alone, moved)] == ["id_is_not_null", "id_is_not_null"]


def test_the_manifest_itself_stays_as_it_was() -> None:
    test = generic("unique", {"column_name": "id"})
    given = manifest(test)
    with_readable_checks(given)
    assert given == manifest(test) and test["meta"] == {}


@pytest.mark.parametrize(
    ("kind", "fqn", "expected"),
    [
        ("model", ["finegrain", "intermediate", "tiles", "x"], "5_intermediate/08_tiles"),
        ("model", ["finegrain", "marts", "core", "x"], "6_marts/1_core"),
        ("model", ["my-shop", "marts", "of my own", "x"], "6_marts/of_my_own"),
        ("model", ["my-shop", "x"], "my_shop"),
        ("seed", ["finegrain", "x"], "3_seeds"),
        ("snapshot", ["finegrain", "file", "x"], "7_snapshots"),
    ],
)
def test_groups_come_from_folders(kind: str, fqn: list[str], expected: str) -> None:
    assert group_of({"resource_type": kind, "fqn": fqn}) == expected
    dg.AssetSpec("x", group_name=expected)


def test_sources_are_the_lake_or_bookkeeping() -> None:
    source = {"resource_type": "source", "fqn": ["finegrain", "staging", "lake", "events"]}
    assert group_of({**source, "source_name": "lake"}) == group("lake") == "2_lake"
    assert group_of({**source, "source_name": "bookkeeping"}) == "5_intermediate/01_bookkeeping"


def test_times_of_a_build() -> None:
    def made(name: str, seconds: float, rows: int | None = None) -> dg.Output[None]:
        counted = {} if rows is None else {"dagster/row_count": rows}
        return dg.Output(None, name, metadata={"unique_id": f"model.{name}", "Execution Duration": seconds, **counted})

    check = dg.AssetCheckResult(asset_key="quick", check_name="c", passed=True, metadata={"Execution Duration": 0.25})
    seen = dg.AssetObservation("quick", metadata={"Execution Duration": 0.5})
    events = [with_seconds(each) for each in (made("quick", 0.1239), made("slow", 2.5, 7), check, seen)]
    assert all("Execution Duration" not in each.metadata for each in events)
    line, done = report(3.0, events, {"model.quick": "quick", "model.slow": "slow"})
    assert (
        line == "dbt took 3.0 s: 2 models, seeds and snapshots 2.6 s, 1 checks 0.2 s. Slowest: slow 2.5 s, quick 0.1 s"
    )
    assert done.asset_key == BUILDS
    assert [each.data for each in done.metadata["times"].value.records] == [
        {"model": "slow", "seconds": 2.5, "rows": 7, "checks": 0, "seconds_of_checks": 0},
        {"model": "quick", "seconds": 0.124, "rows": None, "checks": 1, "seconds_of_checks": 0.25},
    ]
    assert {name: value.value for name, value in done.metadata.items() if name != "times"} == {
        "seconds": 3.0,
        "seconds_of_models": 2.624,
        "seconds_of_checks": 0.25,
        "models": 2,
        "checks": 1,
    }
    # Tests alone make no table.
    assert "times" not in report(1.0, [events[2]], {})[1].metadata
