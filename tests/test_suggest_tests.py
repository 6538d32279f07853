"""`finegrain suggest-tests`: what it suggests passes on the data it came from, and fails on data that is broken; dbt runs it for real."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from conftest import PROJECT, run_dbt
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from orchestration.cli.commands import app
from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.lake.lake import connect
from orchestration.quality.profile import profile
from orchestration.quality.suggestions import least_rows, outward, suggest, suggestion, write, written

EXPECT = "dbt_expectations.expect_"
KEYWORDS = frozenset({"order", "select"})


def suggested(con: duckdb.DuckDBPyConnection, table: str = "t", confidence: float = 0.95, sample: int = 100_000) -> str:
    """The YAML for a table that no YAML declares."""
    return written([suggestion(table, profile(con, table, sample=sample, parents={}), confidence, None, KEYWORDS)])


def by_column_of(text: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The arguments of each test, by column (`""`: the table) and name."""
    [model] = yaml.safe_load(text)["models"]
    parts = {
        "": model.get("data_tests", []),
        **{each["name"]: each.get("data_tests", []) for each in model.get("columns", [])},
    }
    return {
        column: {
            (each if isinstance(each, str) else next(iter(each))): (
                {} if isinstance(each, str) else next(iter(each.values()))["arguments"]
            )
            for each in tests
        }
        for column, tests in parts.items()
    }


# --------------------------------------------------------------------------------------------------- with dbt itself

PROFILE = """
suggested:
  target: dev
  outputs:
    dev: {{type: duckdb, path: '{path}', attach: [{{path: '{shop}', alias: shop, read_only: true}}]}}
"""
MODELS = ("dim_customers", "visits", "hits", "odd")


@pytest.fixture(scope="module")
def folder(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with marts that nobody declared, and a dbt project that builds them with the tests suggested for them."""
    folder = tmp_path_factory.mktemp("suggested")
    shop = Settings.below(folder / "home", built_shop.extensions)
    shop.home.mkdir()
    with duckdb.connect() as con:
        con.execute(f"attach '{built_shop.warehouse}' as warehouse (read_only)")  # the name by which its views know it
        con.execute(f"attach '{shop.warehouse}' as made")
        con.execute("use made")
        con.execute("create schema marts")
        con.execute("create table marts.dim_customers as from warehouse.marts.dim_customers")
        con.execute("create table marts.visits as from warehouse.marts.fct_sessions")
        # A key of two columns: the event's place within its session.
        con.execute(
            "create table marts.hits as select session_id, row_number() over (partition by session_id order by event_id) as hit_no, "
            "customer_id, event_type, event_at, price from warehouse.marts.fct_events"
        )
        con.execute(
            'create table marts.odd as select row_number() over () as "order", \'it\'\'s \' || range % 3 as "a b", range % 7 as "Größe", '
            'null::integer as "nothing", \'A-\' || range as "sel{ect", range as "in""side" from range(100)'
        )
    text = suggest(MODELS[1:], where=shop)
    (folder / "models").mkdir()
    write(text, folder / "models" / "suggested.yml")
    for model in MODELS:
        (folder / "models" / f"{model}.sql").write_text(f"select * from shop.marts.{model}")
    (folder / "dbt_project.yml").write_text(
        "{name: suggested, version: '1.0.0', profile: suggested, model-paths: [models], models: {suggested: {+materialized: table}}}"
    )
    (folder / "profiles.yml").write_text(PROFILE.format(path=folder / "build.duckdb", shop=shop.warehouse))
    shutil.copytree(PROJECT / "fallback_packages" / "dbt_expectations", folder / "dbt_packages" / "dbt_expectations")
    (folder / "packages.yml").write_text("packages: [{local: dbt_packages/dbt_expectations}]")
    return folder


def built(folder: Path) -> dict[str, str]:
    """The status of each node of `dbt build`, by name."""
    done = run_dbt(folder, "build", "--profiles-dir", str(folder))
    results = folder / "target" / "run_results.json"
    assert results.exists(), done.stdout + done.stderr
    return {
        each["unique_id"].split(".")[2]: each["status"] for each in json.loads(results.read_text("utf-8"))["results"]
    }


def test_dbt_passes_what_is_suggested_and_finds_what_breaks(folder: Path) -> None:
    found = built(folder)
    assert {name: status for name, status in found.items() if status not in ("success", "pass")} == {}
    # The kinds of tests, each at least once.
    for kind in (
        "not_null_",
        "unique_visits_session_id",
        "accepted_values_",
        "relationships_visits_customer_id",
        "_to_match_regex",
        "_to_be_between",
    ):
        assert any(kind in name for name in found), kind
    assert any("expect_compound_columns_to_be_unique_hits" in name for name in found)
    assert any("expect_table_row_count_to_be_between_visits" in name for name in found)

    with duckdb.connect(str(folder / "home" / "warehouse.duckdb")) as con:
        con.execute(
            "update marts.visits set started_at = null where session_id = (select min(session_id) from marts.visits)"
        )
        con.execute(
            "update marts.visits set device = 'fridge' where session_id = (select max(session_id) from marts.visits)"
        )
        con.execute(
            "update marts.visits set length_seconds = length_seconds * 100 where length_seconds = (select max(length_seconds) from marts.visits)"
        )
        con.execute("insert into marts.visits from marts.visits limit 1")
        con.execute("insert into marts.hits from marts.hits limit 1")
        con.execute("update marts.hits set customer_id = 'nobody' where hit_no = 2")
    failed = {name for name, status in built(folder).items() if status == "fail"}
    for kind in (
        "not_null_visits_started_at",
        "accepted_values_visits_device",
        "expect_column_values_to_be_between_visits_length_seconds",
        "unique_visits_session_id",
        "expect_compound_columns_to_be_unique_hits",
        "relationships_hits_customer_id",
    ):
        assert any(kind in name for name in failed), (kind, failed)


def test_odd_columns_are_quoted_or_left_out(folder: Path) -> None:
    models = yaml.safe_load((folder / "models" / "suggested.yml").read_text("utf-8"))["models"]
    [odd] = [each for each in models if each["name"] == "odd"]
    columns = {each["name"]: each for each in odd["columns"]}
    assert columns["order"]["quote"] and columns["a b"]["quote"] and columns["Größe"]["quote"]
    # dbt cannot name these, so the model has no contract, which would list all columns.
    assert "sel{ect" not in columns and 'in"side' not in columns and "config" not in odd
    assert "nothing" not in columns


# ------------------------------------------------------------------------------------------------------ what it sees


def test_each_rule_has_its_reason() -> None:
    con = duckdb.connect()
    con.execute(
        "create table t as select range as order_id, 'P-' || range % 50 as sku, ['web', 'app', 'till'][1 + range % 3] as channel, "
        "(range % 90) / 90.0 as share, 1950 + range % 60 as born, range % 4 as lines, -range % 30 as change, "
        "timestamp '2024-05-01' + range * interval 1 hour as at, "
        "case when range % 10 > 0 then 'x' end as sometimes, md5(range::varchar) as token, 'c' || range || '@shop.com' as email, "
        "'Anna' as first_name, 'EUR' as currency, [1] as list, {'a': 1} as struct, 1.5::double as constant from range(1000)"
    )
    found = by_column_of(suggested(con))
    between = f"{EXPECT}column_values_to_be_between"
    regex = f"{EXPECT}column_values_to_match_regex"
    assert found[""] == {f"{EXPECT}table_row_count_to_be_between": {"min_value": 500, "max_value": 5000}}
    assert found["order_id"] == {"not_null": {}, "unique": {}, between: {"min_value": 0}}
    assert found["sku"] == {"not_null": {}, regex: {"regex": "^[A-Z]+[-][0-9]+$"}}
    assert found["channel"] == {"not_null": {}, "accepted_values": {"values": ["app", "till", "web"]}}
    assert found["share"][between] == {"min_value": 0, "max_value": 1}
    assert found["born"][between] == {"min_value": 1890, "max_value": 2070}
    assert found["lines"][between] == {"min_value": 0, "max_value": 10}
    assert found["change"][between] == {"min_value": -100, "max_value": 0}
    assert found["at"][between] == {"min_value": "timestamp '2023-01-01'"}
    assert "not_null" not in found["sometimes"]
    assert found["token"] == {"not_null": {}, "unique": {}, regex: {"regex": "^[0-9a-f]{32}$"}}
    assert found["email"] == {"not_null": {}, "unique": {}, regex: {"regex": "^[^@ ]+@[^@ ]+[.][^@ ]+$"}}
    assert found["currency"] == {"not_null": {}, regex: {"regex": "^[A-Z]{3}$"}}
    assert found["first_name"] == found["list"] == found["struct"] == {"not_null": {}}
    assert found["constant"] == {"not_null": {}, between: {"min_value": 0}}


def test_types_are_a_contract() -> None:
    con = duckdb.connect()
    con.execute(
        "create table t as select range as a, [range] as b, {'x': 1.5} as c, date '2024-01-01' as d from range(3)"
    )
    [model] = yaml.safe_load(suggested(con))["models"]
    assert model["config"] == {"contract": {"enforced": True}}
    assert {each["name"]: each["data_type"] for each in model["columns"]} == {
        "a": "bigint", "b": "bigint[]", "c": "struct(x decimal(2,1))", "d": "date",
    }  # fmt: skip


def test_few_rows_suggest_nothing_but_types() -> None:
    con = duckdb.connect()
    least = least_rows(0.95)
    # The largest share that could break a rule which so many rows keep, at that confidence.
    assert 0.95**least <= 0.05 < 0.95 ** (least - 1)
    for rows, is_enough in ((0, False), (least - 1, False), (least, True)):
        con.execute(f"create or replace table t as select range as id, 'x' as word from range({rows})")
        text = suggested(con)
        assert any(by_column_of(text).values()) == is_enough, rows
        assert ("too few" in text) == (not is_enough)


def test_a_column_without_values_and_one_without_a_name_for_it_suggest_nothing() -> None:
    con = duckdb.connect()
    con.execute(
        "create table t as select null::varchar as a, null::double as b, 'nan'::double as c, 'infinity'::timestamp as d, "
        "1e300 as e, json('{}') as f, time '10:00' as g, interval 1 day as h from range(100)"
    )
    found = by_column_of(suggested(con))
    assert found["a"] == found["b"] == {}
    assert all(found[name] == {"not_null": {}} for name in "cdefgh")


def test_a_set_that_changed_is_no_set() -> None:
    con = duckdb.connect()
    con.execute(
        "create table t as select timestamp '2024-01-01' + range * interval 1 day as at, "
        "case when range < 300 then ['a', 'b'][1 + range % 2] else ['b', 'c'][1 + range % 2] end as moved, "
        "['a', 'b'][1 + range % 2] as stayed, case when range = 7 then 'rare' else 'usual' end as rarely from range(600)"
    )
    found = by_column_of(suggested(con))
    assert "accepted_values" not in found["moved"] and "accepted_values" not in found["rarely"]
    assert found["stayed"]["accepted_values"] == {"values": ["a", "b"]}


@pytest.mark.parametrize(
    "values",
    [
        ["eve@shop.com", "bob@shop.com"],
        ["+49 151 2345678", "+49 151 8765432"],
        ["10.0.0.17", "10.0.0.18"],
    ],
)
def test_no_personal_value_is_written(values: list[str]) -> None:
    con = duckdb.connect()
    con.execute(
        "create table t as select $values[1 + range % 2] as contact, $names[1 + range % 2] as full_name from range(500)",
        {"values": values, "names": ["Eve Adams", "Bob Stone"]},
    )
    text = suggested(con)
    assert not any(value in text for value in [*values, "Eve", "Stone"])


def test_values_that_dbt_would_not_read_as_they_are_make_no_set() -> None:
    con = duckdb.connect()
    odd = ["{{ run() }}", "it's", "back\\slash"]
    con.execute(
        "create table t as select $odd[1 + range % 3] as a, ['no', '1', 'null', '2024-01-01', ': x #'][1 + range % 5] as b from range(500)",
        {"odd": odd},
    )
    found = by_column_of(suggested(con))
    assert "accepted_values" not in found["a"]
    assert found["b"]["accepted_values"] == {"values": sorted(["no", "1", "null", "2024-01-01", ": x #"])}


def test_what_the_sample_did_not_show_is_checked_on_all_rows() -> None:
    con = duckdb.connect()
    con.execute("create table t as select 'P' || range as sku, range as id, range % 9 as n from range(50000)")
    con.execute("insert into t values ('not one', 49999, 5000)")
    found = by_column_of(suggested(con, sample=1000))
    assert found["sku"] == {"not_null": {}, "unique": {}}
    assert "unique" not in found["id"]
    assert found["n"][f"{EXPECT}column_values_to_be_between"] == {"min_value": 0, "max_value": 10000}


def test_the_fewest_columns_that_are_a_key() -> None:
    con = duckdb.connect()
    con.execute(
        "create table t as select customer_id, day, slot_no, 'x' as word, random() as amount "
        "from (select 'C' || range as customer_id from range(30)), (select date '2024-01-01' + range::integer as day from range(20)), (select range as slot_no from range(4))"
    )
    assert profile(con, "t", sample=100_000, parents={}).key == ["customer_id", "day", "slot_no"]
    con.execute("create table pairs as from t where slot_no = 2")
    assert profile(con, "pairs", sample=100_000, parents={}).key == ["customer_id", "day"]
    con.execute("insert into pairs from pairs limit 1")
    assert profile(con, "pairs", sample=100_000, parents={}).key == []


def test_a_key_of_another_model_is_a_relationship() -> None:
    con = duckdb.connect()
    con.execute("create table dim as select 'P' || range as product_id from range(50)")
    con.execute("create table t as select 'P' || range % 50 as product_id from range(500)")
    known = {"product_id": [("dim_products", "dim")]}
    assert profile(con, "t", sample=1000, parents=known).columns[0].parent == ("dim_products", "product_id")
    con.execute("insert into t values ('P99')")
    assert profile(con, "t", sample=1000, parents=known).columns[0].parent is None


# -------------------------------------------------------------------------------------------------------- invariants

NUMBERS = st.one_of(
    st.integers(-(10**12), 10**12),
    st.decimals(-(10**9), 10**9, places=4),
    st.floats(allow_nan=False, allow_infinity=False, width=64).filter(lambda number: abs(number) < 1e29),
)


@given(st.lists(NUMBERS, min_size=1))
def test_a_suggested_range_holds_the_data_and_is_not_the_data(numbers: list[Any]) -> None:
    exact = [Decimal(str(number)) for number in numbers]
    low, high = outward(min(exact), max(exact), whole=False)
    assert Decimal(str(low)) <= min(exact) and max(exact) <= Decimal(str(high))
    assert low != high or not any(exact)
    # Ends are natural (0, 1) or further out than what was seen.
    assert low == 0 or Decimal(str(low)) < min(exact)
    assert high in (0, 1) or Decimal(str(high)) > max(exact)
    # A value a hundred times too large is outside.
    if max(exact) > 1:
        assert max(exact) * 100 > Decimal(str(high))


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(-(2**40), 2**40),
            st.none() | st.decimals(-(10**6), 10**6, places=2),
            st.none() | st.text(max_size=8) | st.sampled_from(["A-1", "B-22", "web", "app"]),
            st.none() | st.datetimes(datetime(1, 1, 1), datetime(2200, 1, 1)),
        ),
        min_size=14,
        max_size=60,
    ),
    st.text(min_size=1, max_size=12).filter(
        lambda name: "\0" not in name and name.lower() not in ("number", "money", "at")
    ),
)
def test_whatever_is_in_a_table_its_tests_parse_and_hold(rows: list[tuple[Any, ...]], name: str) -> None:
    con = duckdb.connect()
    quoted = '"' + name.replace('"', '""') + '"'
    con.execute(f'create table t (number bigint, money decimal(18, 2), {quoted} varchar, "at" timestamp)')
    texts = [row[2].replace("\0", "") if row[2] is not None else None for row in rows]
    con.executemany(
        "insert into t values (?, ?, ?, ?)",
        [(row[0], row[1], text, row[3]) for row, text in zip(rows, texts, strict=True)],
    )
    found = by_column_of(suggested(con, confidence=0.5))
    columns = {
        "number": [row[0] for row in rows],
        "money": [row[1] for row in rows],
        name: texts,
        "at": [row[3] for row in rows],
    }
    for column, tests in found.items():
        values = [value for value in columns.get(column, []) if value is not None]
        for test, arguments in tests.items():
            if test == "not_null":
                assert len(values) == len(rows)
            elif test == "unique":
                assert max(Counter(values).values()) == 1
            elif test == "accepted_values":
                assert set(values) == set(arguments["values"])
            elif test.endswith("match_regex"):
                assert all(re.search(arguments["regex"], value) for value in values)
            elif test.endswith("values_to_be_between") and column != "at":
                assert all(Decimal(str(arguments["min_value"])) <= value for value in values)
                assert all(value <= Decimal(str(arguments.get("max_value", value))) for value in values)
            elif test.endswith("values_to_be_between"):
                least = datetime.fromisoformat(arguments["min_value"].split("'")[1])
                assert all(least < value for value in values)
            elif test.endswith("compound_columns_to_be_unique"):
                picked = [columns[each.strip('"').replace('""', '"')] for each in arguments["column_list"]]
                assert max(Counter(zip(*picked, strict=True)).values()) == 1
            elif test.endswith("row_count_to_be_between"):
                assert arguments["min_value"] <= len(rows) <= arguments["max_value"]
            else:
                raise AssertionError(test)


# --------------------------------------------------------------------------------------------------------- the command


def test_tests_that_a_model_has_are_not_suggested(built_shop: Settings) -> None:
    text = suggest(["fct_sessions", "user_features"], where=built_shop)
    sessions, customers = yaml.safe_load(text)["models"]
    by_column = {each["name"]: each["data_tests"] for each in sessions["columns"]}
    # Its key and types are declared; what it may contain is not.
    assert "unique" not in by_column.get("session_id", []) and "not_null" not in by_column.get("session_id", [])
    assert any("accepted_values" in each for each in by_column["device"] if isinstance(each, dict))
    assert "config" not in sessions and "models/marts/core/fct_sessions.yml declares it" in text
    declared = yaml.safe_load((PROJECT / "models" / "marts" / "features" / "user_features.yml").read_text("utf-8"))[
        "models"
    ][0]
    ranged = {each["name"] for each in declared["columns"] if "range" in each.get("config", {}).get("meta", {})}
    for column in customers["columns"]:
        if column["name"] in ranged:
            assert not any("to_be_between" in str(each) for each in column["data_tests"]), column


def test_the_published_marts(built_shop: Settings, tmp_path: Path) -> None:
    where = replace(built_shop, published=tmp_path)
    with pytest.raises(FinegrainError, match="nothing is published"):
        suggest(["dim_products"], where=where, published=True)
    version = tmp_path / "versions" / "1"
    version.mkdir(parents=True)
    (tmp_path / "current").symlink_to(version)
    with duckdb.connect(str(version / "finegrain.duckdb")) as con:
        con.execute(
            "create table dim_products as select 'P' || range as product_id, 'N' || range as sku from range(80)"
        )
    [model] = yaml.safe_load(suggest(["dim_products"], where=where, published=True))["models"]
    assert {each["name"] for each in model["columns"] if each.get("data_tests")} == {"product_id", "sku"}


def test_raw_tables_of_the_lake_are_tables_of_its_source(built_shop: Settings) -> None:
    """Beside a model, in one file; without what models/staging/_sources.yml has already. What is suggested holds of all rows."""
    text = suggest(["raw.orders", "dim_customers"], where=built_shop)
    found = yaml.safe_load(text)
    assert [model["name"] for model in found["models"]] == ["dim_customers"]
    [source] = found["sources"]
    assert (source["name"], source["schema"]) == ("lake", "raw")
    [orders] = source["tables"]
    assert orders["name"] == "orders" and "config" not in orders
    declared = yaml.safe_load((PROJECT / "models/staging/_sources.yml").read_text())["sources"][0]["tables"]
    own = {name for table in declared if table["name"] == "orders" for each in table["data_tests"] for name in each}
    assert not own & {name for each in orders["data_tests"] for name in each}
    never_null = [column["name"] for column in orders["columns"] if "not_null" in column["data_tests"]]
    with connect(built_shop, read_only=True) as con:
        [(rows, *counts)] = con.execute(
            f"select count(*), {', '.join(f'count({name})' for name in never_null)} from lake.raw.orders"
        ).fetchall()
    assert "order_id" in never_null and set(counts) == {rows}


def test_a_raw_table_that_is_not_there_is_named_with_the_nearest(built_shop: Settings, tmp_path: Path) -> None:
    with pytest.raises(FinegrainError, match=r"no table raw\.order in the lake; did you mean raw\.orders\?"):
        suggest(["raw.order"], where=built_shop)
    with pytest.raises(FinegrainError, match="there is no lake yet"):
        suggest(["raw.orders"], where=Settings.below(tmp_path / "none", built_shop.extensions))


def test_a_new_file_is_written_and_none_is_overwritten(
    built_shop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in built_shop.environment().items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "new" / "tests.yml"
    done = CliRunner().invoke(app, ["suggest-tests", "dim_products", "--write", str(file)])
    assert done.exit_code == 0, done.output
    before = file.read_text("utf-8")
    printed = CliRunner().invoke(app, ["suggest-tests", "dim_products"])
    assert printed.stdout == before and yaml.safe_load(before)["models"][0]["name"] == "dim_products"
    done = CliRunner().invoke(app, ["suggest-tests", "dim_products", "--write", str(file)])
    assert isinstance(done.exception, FinegrainError) and "is not overwritten" in str(done.exception)
    assert file.read_text("utf-8") == before


def test_an_unknown_table_is_named_with_the_nearest(built_shop: Settings) -> None:
    with pytest.raises(FinegrainError, match="no table fct_order in the warehouse; did you mean fct_orders"):
        suggest(["fct_order"], where=built_shop)
    with pytest.raises(FinegrainError, match="run `finegrain build` first"):
        suggest(["fct_orders"], where=replace(built_shop, warehouse=built_shop.home / "none.duckdb"))
