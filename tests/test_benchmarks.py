"""The benchmarks do the same work as the build: the marts of the floor and of each data frame engine equal those of the build, column
by column. This is also an independent implementation of the whole pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import by_hand
import dataframes
import duckdb
import floor
import pytest
import training_sets

from orchestration.config.settings import Settings
from orchestration.features.training import training_set
from orchestration.mapping.contracts import pass_through_fields

KEYS = {
    "fct_events": ("event_id",),
    "fct_orders": ("order_key",),
    "fct_order_items": ("order_item_id",),
    "fct_sessions": ("session_id",),
    "dim_products": ("product_id",),
    "dim_customers": ("customer_id",),
    "user_features": ("customer_id",),
    "item_features": ("product_id",),
    "category_features": ("category",),
    "session_features": ("session_id",),
    "user_category_features": ("customer_id", "category"),
    "user_brand_features": ("customer_id", "brand"),
    "user_item_features": ("customer_id", "product_id"),
    "item_pair_features": ("product_id", "other_product_id"),
}
FEATURES = [mart for mart in KEYS if mart.endswith("_features")]
#: Not compared: columns that a single run does not have (`built_from`, `warnings`), and as_of of dimensions.
BOOKKEEPING = {"built_from", "warnings"}
LEFT_OUT = {"dim_products": {"as_of"}, "dim_customers": {"as_of"}}
#: Not computed by data frames: features that need seeds (RFM, channels), and as_of.
LEFT_OUT_OF_FRAMES = {
    "user_features": {"rfm_recency_score", "rfm_frequency_score", "rfm_monetary_score", "rfm_segment"},
    "session_features": {"entry_channel", "visitor_class"},
}
#: Compared with a larger tolerance. The build rounds each tile's part of a decayed average to millionths before summing, and
#: deviations to millionths at the end, from exact sums; the others round once or never. Half a ten-thousandth of a day's mean price goes either way.
TOLERANCES = {"views_ema_": 1e-4, "price_ema_": 1e-4, "price_trimmed_": 1e-4, "_std": 2e-6}


@pytest.fixture(scope="module")
def marts(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    """The warehouse as `warehouse` and the floor as `floor`, side by side."""
    database = tmp_path_factory.mktemp("floor") / "floor.duckdb"
    floor.build(database, built_shop)
    con = duckdb.connect()
    con.execute(f"attach '{built_shop.warehouse}' as warehouse (read_only)")
    con.execute(f"attach '{database}' as floor (read_only)")
    return con


@pytest.fixture(scope="module")
def files(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clean events of the build as files."""
    folder = tmp_path_factory.mktemp("frames")
    dataframes.export(built_shop.warehouse, folder)
    return folder


def tolerance(column: str) -> float:
    return next((allowed for part, allowed in TOLERANCES.items() if part in column), 1e-9)


def compare(con: duckdb.DuckDBPyConnection, mart: str, other: str, left_out: set[str]) -> None:
    """Every row and column of the mart is in `other`, with the same value."""

    def kinds(relation: str) -> dict[str, str]:
        return {row[0]: row[1] for row in con.execute(f"describe {relation}").fetchall()}

    built = f"warehouse.marts.{mart}"
    mine, theirs = kinds(built), kinds(other)
    if mart == "fct_events":
        # A field that is declared and passes through needs nobody to compute it a second time.
        left_out = left_out | (set(pass_through_fields()) - set(theirs))
    columns = [column for column in mine if column not in left_out | BOOKKEEPING]
    assert not set(columns) - set(theirs)

    def text(value: str) -> str:
        # Ids are hashes; the floor keeps them as UUIDs.
        return f"replace(cast({value} as varchar), '-', '')"

    def differs(column: str) -> str:
        a, b = f'a."{column}"', f'b."{column}"'
        if theirs[column] == "UUID":
            return f"{text(a)} is distinct from {text(b)}"
        if "DOUBLE" in (mine[column], theirs[column]):
            a, b = f"cast({a} as double)", f"cast({b} as double)"
            return f"({a} is null) <> ({b} is null) or abs({a} - {b}) > {tolerance(column)} * greatest(1, abs({a}))"
        return f"{a} is distinct from {b}"

    key = KEYS[mart]
    same = " and ".join(
        f"{text(f'a.{each}')} = {text(f'b.{each}')}" if theirs[each] == "UUID" else f"a.{each} = b.{each}"
        for each in key
    )
    values = [column for column in columns if column not in key]
    counts = ", ".join(f"count(case when {differs(column)} then 1 end)" for column in values)
    found = con.execute(f"select count(*), {counts} from {built} as a inner join {other} as b on {same}").fetchall()[0]
    rows = [con.execute(f"select count(*) from {each}").fetchall()[0][0] for each in (built, other)]
    assert rows[0] > 0
    assert rows == [found[0], found[0]]
    assert {column: count for column, count in zip(values, found[1:], strict=True) if count} == {}


@pytest.mark.parametrize("mart", KEYS)
def test_the_floor_equals_the_build(marts: duckdb.DuckDBPyConnection, mart: str) -> None:
    compare(marts, mart, f"floor.main.{mart}", LEFT_OUT.get(mart, set()))


@pytest.mark.parametrize("mart", FEATURES)
@pytest.mark.parametrize("engine", ["polars", "pandas"])
def test_data_frames_equal_the_build(marts: duckdb.DuckDBPyConnection, files: Path, engine: str, mart: str) -> None:
    module = import_module(f"in_{engine}")
    marts.register("frame", module.compute(module.Shop.read(files), mart))
    compare(marts, mart, "frame", {"as_of"} | LEFT_OUT_OF_FRAMES.get(mart, set()))


def test_every_mart_is_measured(marts: duckdb.DuckDBPyConnection) -> None:
    found = marts.execute(
        "select distinct table_name from duckdb_columns() where database_name = 'warehouse' and schema_name = 'marts'"
        " and table_name like '%\\_features' escape '\\'"
    ).fetchall()
    assert {row[0] for row in found} == set(FEATURES)


def test_each_runs_as_a_command(built_shop: Settings, files: Path) -> None:
    """In separate processes, so that their peak memory can be measured."""
    folder = Path(floor.__file__).parent
    for arguments in (["floor.py"], ["dataframes.py", str(files), "--marts", "item_features"]):
        done = subprocess.run(
            [sys.executable, folder / arguments[0], *arguments[1:]],
            env={"FINEGRAIN_HOME": str(built_shop.home), **built_shop.environment()},
            capture_output=True,
            text=True,
            check=True,
        )
        report = json.loads(done.stdout)
        assert report["seconds"] > 0
        assert report["peak_mib"] > 0


# ------------------------------------------------------------------------------------------------ training sets


@pytest.fixture(scope="module")
def spine(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Customers at random moments, and at moments between an event and its late arrival."""
    folder = tmp_path_factory.mktemp("spine")
    training_sets.write_spine(built_shop, 1500, folder / "random.parquet")
    with duckdb.connect(str(built_shop.warehouse), read_only=True) as con:
        con.execute(
            f"copy (from '{folder}/random.parquet' union select l.customer_id, e.event_at + interval 1 second from int_cleaning__events as e "
            "join int_identity__links as l on e.identity = l.identity and l.known_from <= e.event_at + interval 1 second "
            f"and l.known_to is null where e.known_from > e.event_at + interval 1 minute) to '{folder}/spine.parquet'"
        )
    return folder / "spine.parquet"


@pytest.fixture(scope="module")
def ours(built_shop: Settings, spine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features that are also computed by hand."""
    out = tmp_path_factory.mktemp("ours") / "set"
    training_set(out, spine=spine, features=[f"user_features.{name}" for name in by_hand.FEATURES], where=built_shop)
    return out / "all.parquet"


def rows_by_hand(way: str, spine: Path, out: Path, where: Settings) -> None:
    if way == "sql":
        by_hand.in_sql(spine, out, where)
    else:
        by_hand.export(where, out.parent / "events")
        by_hand.in_polars(spine, out, out.parent / "events")


@pytest.mark.parametrize("way", ["sql", "polars"])
def test_range_joins_by_hand_equal_a_training_set(
    built_shop: Settings, spine: Path, ours: Path, way: str, tmp_path: Path
) -> None:
    rows_by_hand(way, spine, tmp_path / "rows.parquet", built_shop)
    found = training_sets.differences(ours, tmp_path / "rows.parquet", by_hand.FEATURES)
    assert found.pop("rows") > 1500
    assert {name: count for name, count in found.items() if count} == {}


@pytest.mark.parametrize("way", ["sql", "polars"])
def test_what_is_late_makes_a_difference_to_range_joins(
    built_shop: Settings, spine: Path, ours: Path, way: str, tmp_path: Path
) -> None:
    """A join that only asks for event_at < as_of sees what had not arrived. So the rows of the test above are able to show it."""
    warehouse = tmp_path / "warehouse.duckdb"
    with duckdb.connect(str(warehouse)) as con:
        con.execute(f"attach '{built_shop.warehouse}' as built (read_only)")
        con.execute("create table int_identity__links as from built.int_identity__links")
        con.execute(
            "create table int_cleaning__events as select * replace (event_at as known_from) from built.int_cleaning__events where known_to is null"
        )
    rows_by_hand(way, spine, tmp_path / "rows.parquet", replace(built_shop, warehouse=warehouse))
    found = training_sets.differences(ours, tmp_path / "rows.parquet", by_hand.FEATURES)
    assert 0 < found["views_lifetime"] < found["rows"] / 2 and found["any"] >= found["views_lifetime"]


@pytest.mark.soak
def test_training_sets_are_measured(built_shop: Settings) -> None:
    """As a command, with Feast: all features of the mart are the same at the moment of a snapshot, or the command fails."""
    command = [
        sys.executable,
        str(Path(training_sets.__file__)),
        *("--home", str(built_shop.home), "--rows", "200", "--days", "2", "--json"),
    ]
    environment = {**os.environ, "FINEGRAIN_EXTENSIONS": str(built_shop.extensions)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    ways = {each["way"] for each in found["results"] if each["finished"] and each["peak_mib"] > 100}
    assert {"finegrain", "DuckDB SQL by hand", "Polars by hand", "Feast, daily snapshots"} <= ways
    [out_of_date] = found["out_of_date"]
    of_all, of_seen = out_of_date.values()
    assert of_all["rows"] == 100 > of_all["any"] >= of_seen["any"] == of_seen["rows"] > 0


@pytest.mark.soak
def test_online_reads_are_measured() -> None:
    """Which also compares what all stores give."""
    command = [
        sys.executable,
        str(Path(__file__).resolve().parent.parent / "benchmarks" / "online.py"),
        "--customers",
        "120",
        "--rounds",
        "20",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    kinds = {"sqlite", "redis"}
    assert {way: set(each) for way, each in found["ratios of p10"].items()} == {"sdk": kinds, "server": kinds}
    assert found["bytes a vector"]["finegrain, sqlite"] < found["bytes a vector"]["Feast, sqlite"]
