"""`finegrain catalog`: features as in the YAML, statistics as computed by pandas, raw fields as used in the SQL."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from orchestration.cli.commands import app
from orchestration.config.settings import PROJECT, Settings
from orchestration.errors import FinegrainError
from orchestration.features import catalog as module
from orchestration.features.catalog import (
    BINS,
    Catalog,
    Feature,
    Figures,
    Letters,
    catalog,
    declared,
    page,
    percent,
    shown,
)
from orchestration.warehouse.lineage import Origin, Tracer
from orchestration.warehouse.publish import publish

PAGE = PROJECT / "docs" / "reference" / "features.md"
YAMLS = sorted((PROJECT / "models" / "marts" / "features").glob("*_features.yml"))


@pytest.fixture(scope="module")
def shop(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The built shop, published to a folder of this module."""
    where = replace(built_shop, published=tmp_path_factory.mktemp("catalog") / "published")
    publish(where)
    return where


@pytest.fixture(scope="module")
def whole_catalog(shop: Settings) -> Catalog:
    return catalog(shop)


def values_of(shop: Settings, mart: str) -> pd.DataFrame:
    with duckdb.connect(str(shop.published / "finegrain.duckdb"), read_only=True) as con:
        return con.sql(f"from {mart}").df()


# ------------------------------------------------------------------------------------------------ what the YAML says


def test_every_declared_column_is_in_the_catalogue(whole_catalog: Catalog) -> None:
    found = {mart.name: [*mart.keys, *(each.name for each in mart.features)] for mart in whole_catalog.marts}
    wanted = {}
    for path in YAMLS:
        [model] = yaml.safe_load(path.read_text("utf-8"))["models"]
        wanted[model["name"]] = [column["name"] for column in model["columns"]]
    assert found == wanted


def test_the_page_lists_what_is_declared(whole_catalog: Catalog) -> None:
    """The committed page without statistics: run `finegrain demo`, then write it again (docs/reference/features.md says how)."""
    rows = [
        line.removeprefix("| ").split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")
    ]
    width = len(module.COLUMNS)
    wanted = []
    for mart in whole_catalog.marts:
        letters = Letters(mart)
        wanted += [module.page_cells(measure, letters) for measure in mart.measures()]
    assert [[cell.rstrip(" |").replace("\\|", "|") for cell in row[:width]] for row in rows] == wanted
    for mart in whole_catalog.marts:
        for measure in mart.measures():
            assert len(measure.windows) in (0, len(measure.features)), measure


def test_the_page_is_the_same_each_time(shop: Settings, whole_catalog: Catalog) -> None:
    assert page(whole_catalog) == page(catalog(shop))


def test_measures_that_differ_in_their_window_share_a_line() -> None:
    [users] = [mart for mart in declared() if mart.name == "user_features"]
    by_name = {measure.name: measure for measure in users.measures()}
    assert by_name["views_<window>"].windows == ["1h", "24h", "7d", "14d", "30d", "90d", "365d", "lifetime"]
    assert by_name["views_<window>"].meaning == "Product views."
    assert by_name["session_seconds_mean_<window>_was_missing"].windows == ["90d", "lifetime"]
    assert by_name["hours_since_view"].windows == ["lifetime"]
    assert sum(len(measure.features) for measure in by_name.values()) == len(users.features)


# ------------------------------------------------------------------------------------------------ figures


@pytest.mark.parametrize(
    ("mart", "column"),
    [
        ("user_features", "views_lifetime"),
        ("user_features", "revenue_lifetime"),
        ("user_features", "tenure_days"),
        ("user_features", "price_std_lifetime"),
        ("user_features", "orders_1h"),
        ("item_features", "price_now"),
        ("item_features", "popularity_rank_7d"),
    ],
)
def test_figures_of_numbers_are_those_of_pandas(shop: Settings, whole_catalog: Catalog, mart: str, column: str) -> None:
    series = values_of(shop, mart)[column]
    feature = next(each for m in whole_catalog.marts if m.name == mart for each in m.features if each.name == column)
    assert feature.figures == expected_figures(series, whole=feature.data_type == "bigint")


def expected_figures(series: pd.Series[Any], *, whole: bool) -> Any:
    values = series.dropna().astype(float)
    low, first, p05, median, p95, last, high = np.quantile(
        values, [0, 0.01, 0.05, 0.5, 0.95, 0.99, 1], method="inverted_cdf"
    )
    zeros = (values == 0).mean()
    drawn = values
    if zeros > 0.5:
        drawn = values[values != 0]
        first, last = np.quantile(drawn, [0.01, 0.99], method="inverted_cdf") if len(drawn) else (0, 0)
    picture = ""
    if first < last:
        span = last - first + 1 if whole else last - first
        bins = min(BINS, int(span)) if whole else BINS
        drawn = drawn[(drawn >= first) & (drawn <= last)]
        counts = np.bincount(np.minimum(np.floor((drawn - first) / span * bins), bins - 1).astype(int), minlength=bins)
        picture = "".join("·▁▂▃▄▅▆▇█"[math.ceil(count / counts.max() * 8)] for count in counts)
    return Figures(
        nulls=pytest.approx(series.isna().mean()),
        zeros=pytest.approx(zeros),
        numbers=pytest.approx(
            {"min": low, "p05": p05, "median": median, "p95": p95, "max": high, "mean": values.mean()}
        ),
        picture=picture,
    )


def test_figures_of_flags_and_labels_are_those_of_pandas(shop: Settings, whole_catalog: Catalog) -> None:
    values = values_of(shop, "user_features")
    figures = {
        each.name: each.figures
        for mart in whole_catalog.marts
        if mart.name == "user_features"
        for each in mart.features
    }
    flag = figures["session_seconds_mean_90d_was_missing"]
    assert flag and flag.true == pytest.approx(values["session_seconds_mean_90d_was_missing"].mean())
    segment = figures["rfm_segment"]
    counts = values["rfm_segment"].value_counts(normalize=True)
    wanted = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:3]
    assert segment and segment.labels and list(segment.labels.items()) == [(n, pytest.approx(v)) for n, v in wanted]
    assert segment.nulls == pytest.approx(values["rfm_segment"].isna().mean())


def test_a_mart_that_is_scanned_in_parts_has_the_same_figures(
    shop: Settings, whole_catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD", 5000)
    assert catalog(shop).marts == whole_catalog.marts


def test_statistics_of_the_warehouse_on_request(shop: Settings, whole_catalog: Catalog) -> None:
    found = catalog(shop, of_warehouse=True)
    assert found.marts == whole_catalog.marts and found.read_from == str(shop.warehouse)


ODD = {
    "nothing": "double",
    "one": "bigint",
    "all_zero": "decimal(38,4)",
    "mostly_zero": "double",
    "endless": "double",
    "tiny": "double",
    "label": "varchar",
    "no_label": "varchar",
    "flag": "boolean",
    "moment": "timestamp",
    "items": "varchar[]",
    "not_built": "bigint",
}


OWNED = "name: finegrain\nmodels: {finegrain: {+meta: {owner: all}, marts: {features: {+meta: {owner: us}}}}}\n"


@pytest.fixture
def odd(tmp_path: Path) -> tuple[Settings, Path]:
    """A published mart with unusual values, and the project that declares it."""
    folder = tmp_path / "models" / "marts" / "features"
    folder.mkdir(parents=True)
    meta = {"unit": "u", "window": "none", "null_means": "never null"}
    (tmp_path / "dbt_project.yml").write_text(OWNED)
    columns = [
        {"name": name, "data_type": kind, "description": "A.", "config": {"meta": meta}} for name, kind in ODD.items()
    ]
    (folder / "odd_features.yml").write_text(yaml.safe_dump({"models": [{"name": "odd_features", "columns": columns}]}))
    where = Settings.below(tmp_path / "home")
    version = where.published / "versions" / "1"
    version.mkdir(parents=True)
    (where.published / "current").symlink_to(version)
    with duckdb.connect(str(version / "finegrain.duckdb")) as con:
        con.execute("""
            create table odd_features as
            select
                null::double as nothing, 7::bigint as one, 0::decimal(38, 4) as all_zero,
                case when n % 10 = 0 then n else 0 end::double as mostly_zero,
                case n when 1 then 'inf' when 2 then 'nan' when 3 then '-inf' else n::varchar end::double as endless,
                n * 1e-9 as tiny,
                case n % 4 when 0 then 'a | <b>' when 1 then '' when 2 then repeat('x', 99) else 'new' || chr(10) || 'line' end as label,
                null::varchar as no_label, case when n > 50 then n > 75 end as flag,
                timestamp '2025-01-01' + to_days(n::integer) as moment, range(n % 3)::varchar[] as items,
                timestamp '2025-01-01' as as_of, 3 as built_from
            from range(1, 101) as r(n)
        """)
    return where, tmp_path


@pytest.mark.parametrize(
    ("config", "column_owner", "owner"),
    [({}, None, "us"), ({"meta": {"owner": "them"}}, None, "them"), ({"meta": {"owner": "them"}}, "me", "me")],
)
def test_a_feature_is_owned_by_its_folder_its_model_or_itself(
    tmp_path: Path, config: dict[str, Any], column_owner: str | None, owner: str
) -> None:
    folder = tmp_path / "models" / "marts" / "features"
    folder.mkdir(parents=True)
    (tmp_path / "dbt_project.yml").write_text(OWNED)
    meta = {"unit": "u", "window": "none", "null_means": "never null"} | (
        {"owner": column_owner} if column_owner else {}
    )
    columns = [{"name": "n", "data_type": "bigint", "description": "A.", "config": {"meta": meta}}]
    (folder / "a.yml").write_text(yaml.safe_dump({"models": [{"name": "a", "config": config, "columns": columns}]}))
    assert [[each.owner for each in mart.features] for mart in declared(tmp_path)] == [[owner]]


def test_unusual_values_are_shown_as_they_are(odd: tuple[Settings, Path]) -> None:
    where, project = odd
    found = catalog(where, lineage=False, project=project)
    figures = {each.name: each.figures for each in found.marts[0].features}

    def spread(name: str) -> str:
        found = figures[name]
        assert found
        return found.spread()

    assert figures["nothing"] == Figures(nulls=1) and spread("nothing") == "no values"
    assert figures["no_label"] == Figures(nulls=1)
    assert figures["not_built"] is None
    assert figures["one"] and figures["one"].picture == "" and spread("one") == "7 | 7 · 7 · 7 | 7"
    assert figures["all_zero"] and figures["all_zero"].drawn() == "100 % 0"
    assert figures["mostly_zero"] and figures["mostly_zero"].drawn().startswith("90 % 0 █")
    assert figures["endless"] and figures["endless"].numbers
    assert spread("tiny") == "1.00e-09 | 5.00e-09 · 5.00e-08 · 9.50e-08 | 1.00e-07"
    assert spread("label") == "(empty) 25 %, a | <b> 25 %, new line 25 %"
    assert spread("flag") == "50 % true" and figures["flag"] and figures["flag"].nulls == 0.5
    assert spread("moment") == "2025-01-02 00:00 .. 2025-04-11 00:00"
    assert spread("items") == "1 long on average"
    text = page(found)
    [line] = [line for line in text.splitlines() if line.startswith("| `label`")]
    assert "a \\| &lt;b&gt; 25 %" in line and line.count(" | ") == 10
    json.dumps(found.as_dict(), default=str)


def test_an_empty_mart_has_no_figures(odd: tuple[Settings, Path]) -> None:
    where, project = odd
    with duckdb.connect(str(where.published / "current" / "finegrain.duckdb")) as con:
        con.execute("delete from odd_features")
    [mart] = catalog(where, lineage=False, project=project).marts
    assert mart.rows == 0 and {each.figures and each.figures.spread() for each in mart.features} == {"", None}


def test_nothing_is_published(home: Settings) -> None:
    found = catalog(home, lineage=False)
    assert found.read_from is None and all(mart.rows is None for mart in found.marts)
    assert "Nothing is published yet" in page(found)
    said = CliRunner().invoke(app, ["catalog"])
    assert said.exit_code == 0 and "nothing is published yet" in said.stdout
    assert not home.home.exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12345.6, "12,346"),
        (0.123456, "0.123"),
        (-2.5, "-2.5"),
        (100, "100"),
        (math.inf, "inf"),
        (1e-7, "1.00e-07"),
    ],
)
def test_numbers_are_shown_short(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_share_is_never_rounded_to_nothing_or_everything() -> None:
    assert [percent(share) for share in (0, 0.0001, 0.5, 0.9999, 1)] == ["0 %", "<1 %", "50 %", ">99 %", "100 %"]


def test_windows_in_a_range() -> None:
    feature = Feature("a", "double", "A.", "u", "none", "never null", (None, 1), "me")
    assert feature.between() == "..1" and replace(feature, range=None).between() == ""


# ------------------------------------------------------------------------------------------------ lineage


def traced(*models: tuple[str, str]) -> dict[str, Origin]:
    """The columns of the last of some models over raw.events and a seed of currencies."""
    nodes: dict[str, Any] = {
        f"model.{name}": {
            "name": name,
            "alias": name,
            "schema": "main",
            "resource_type": "model",
            "compiled_code": sql,
            "depends_on": {"nodes": []},
        }
        for name, sql in models
    }
    seed = {
        "name": "fx",
        "alias": "fx",
        "schema": "main",
        "resource_type": "seed",
        "root_path": str(PROJECT),
        "original_file_path": "seeds/fx_rates.csv",
    }
    sources = {
        f"source.{name}": {"name": name, "identifier": name, "schema": "raw", "resource_type": "source"}
        for name in ("events", "ga4_events")
    }
    tracer = Tracer({"nodes": {**nodes, "seed.fx": seed}, "sources": sources})
    found = tracer.mart(f"model.{models[-1][0]}").columns
    assert found is not None
    return found


def origin(values: str = "", conditions: str = "") -> Origin:
    return Origin(
        frozenset(f"events.{each}" for each in values.split()),
        frozenset(f"events.{each}" for each in conditions.split()),
    )


def test_values_and_conditions_are_distinguished() -> None:
    found = traced(
        (
            "m",
            """
            with e as (select *, cast(event_at as date) as day from lake.raw.events at (version => 3)),
            f as (
                select
                    user_id,
                    sum(case when event_type = 'purchase' and day > '2025-01-01' then price * quantity end) as spent,
                    count(*) filter (device = 'mobile') as mobile,
                    max(country) as country
                from e where consent = 'yes' group by user_id
            )
            select f.user_id as who, f.spent / 2 as spent, f.mobile, rank() over (partition by f.country order by f.spent) as place
            from f
            """,
        )
    )
    assert found["who"] == origin("user_id")
    assert found["spent"] == origin("price quantity", "event_type event_at")
    assert found["mobile"] == origin("", "device user_id")
    assert found["place"] == origin("price quantity", "event_type event_at country")


def test_a_seed_stands_for_what_it_is_looked_up_by() -> None:
    found = traced(
        (
            "m",
            "select e.price * f.usd as money, f.gbp from lake.raw.events e left join main.fx f on e.event_at::date = f.rate_date",
        )
    )
    assert found == {"money": origin("price event_at"), "gbp": origin("event_at")}


def test_models_unions_and_subqueries_are_followed() -> None:
    found = traced(
        (
            "a",
            "select price as x, query as y from lake.raw.events union all select quantity, page from lake.raw.events",
        ),
        ("b", "select *, (select max(m.y) from main.a as m where m.x = a.x) as z from main.a"),
        (
            "c",
            "select * exclude (y) replace (x + 1 as x), y in (select device from lake.raw.events) as known from main.b",
        ),
    )
    assert found["x"] == origin("price quantity")
    assert found["z"] == origin("query page")
    assert found["known"] == origin("query page device")


def test_fields_within_a_struct_are_found() -> None:
    found = traced(
        (
            "m",
            "select item.price as price, list_filter(event_params, p -> p.key = user_id)[1] as parameter from ("
            "select unnest(items) as item, event_params, user_id from lake.raw.ga4_events) as u",
        )
    )
    assert found["price"].values == {"ga4_events.items.price"}
    assert found["parameter"].values == {"ga4_events.event_params", "ga4_events.user_id"}


def test_columns_that_every_raw_row_has_are_left_out() -> None:
    assert traced(("m", "select available_at, _source, rowid, price from lake.raw.events"))["available_at"] == Origin()


@pytest.mark.parametrize(
    "sql",
    [
        "select price from lake.raw.events join main.fx using (rate_date)",
        "select * from read_csv('x.csv')",
        "select nothing from lake.raw.events",
        "select price from main.unknown",
        "pivot lake.raw.events on device using sum(price)",
        "select columns('p.*') from lake.raw.events",
        "no sql",
    ],
)
def test_what_is_not_known_is_not_guessed(sql: str) -> None:
    with pytest.raises(AssertionError):
        traced(("m", sql))


def test_every_mart_is_traced_to_raw_fields(whole_catalog: Catalog) -> None:
    for mart in whole_catalog.marts:
        assert mart.lineage and mart.lineage.columns is not None, (
            f"{mart.name} has SQL that orchestration/warehouse/lineage.py does not know"
        )
        assert set(mart.lineage.columns) == {*mart.keys, *(each.name for each in mart.features)}
        assert "events" in mart.lineage.raw and "fx_rates" in mart.lineage.seeds
        nowhere = [each.name for each in mart.features if mart.origin([each.name]) == Origin()]
        assert not nowhere, f"{mart.name}: {nowhere} come from no raw field"


def test_revenue_comes_from_price_quantity_and_currency(whole_catalog: Catalog) -> None:
    [users] = [mart for mart in whole_catalog.marts if mart.name == "user_features"]
    found = users.origin(["revenue_90d"])
    assert found
    for table in ("events", "order_items"):
        assert {f"{table}.price", f"{table}.quantity", f"{table}.currency"} <= found.values
    assert {"refunds.amount", "ga4_events.items.price", "orders.created_at"} <= found.values
    assert "events.event_type" in found.conditions and not any(
        ".query" in each for each in found.values | found.conditions
    )
    assert users.origin(["searches_7d"]) == users.origin(["views_7d"])


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_shows_marts_features_and_json(
    shop: Settings, whole_catalog: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in shop.environment().items():
        monkeypatch.setenv(name, value)
    run = CliRunner().invoke
    assert "one row per customer and as_of" in run(app, ["catalog"]).stdout
    one = run(app, ["catalog", "item_features"])
    [items] = [mart for mart in whole_catalog.marts if mart.name == "item_features"]
    assert one.exit_code == 0 and all(each.name in one.stdout for each in items.features)
    some = run(app, ["catalog", "--like", "Revenue", "--json"])
    names = [each["name"] for mart in json.loads(some.stdout)["marts"] for each in mart["features"]]
    assert "revenue_90d" in names and "views_7d" not in names
    written = run(app, ["catalog", "--write", str(tmp_path / "features.md")])
    assert written.exit_code == 0 and (tmp_path / "features.md").read_text("utf-8") == page(whole_catalog)
    with pytest.raises(FinegrainError, match="there is no mart nix; there are: "):
        catalog(shop, mart="nix")
    with pytest.raises(FinegrainError, match="no feature has 'nix'"):
        catalog(shop, like="nix")
