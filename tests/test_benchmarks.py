"""The benchmarks do the same work as the build: the marts of the floor and of each data frame engine equal those of the build, column
by column. This is also an independent implementation of the whole pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import dataframes
import duckdb
import floor
import pytest

from orchestration.config.settings import Settings
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
    "session_features": {"entry_channel"},
}
#: Compared with a larger tolerance. The build rounds each tile's part of a decayed average to millionths before summing, and
#: deviations to millionths at the end, from exact sums; the others round once or never.
TOLERANCES = {"views_ema_": 1e-4, "_std": 2e-6}


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


@pytest.mark.long
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
