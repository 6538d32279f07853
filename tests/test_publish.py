"""What readers see: the audited marts, complete, either old or new, never a mixture."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from random import Random

import duckdb
import pandas as pd
import polars as pl
import pytest
import sqlalchemy
from rich.console import Console

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.lake import lake
from orchestration.quality.account import account, anomalies
from orchestration.warehouse.build import run_dbt
from orchestration.warehouse.publish import Publication, publish
from orchestration.warehouse.whole_marts import of_graph


@pytest.fixture
def shop(built_shop: Settings, tmp_path: Path) -> Settings:
    """A warehouse to publish from and to break."""
    where = replace(built_shop, warehouse=tmp_path / "warehouse.duckdb", published=tmp_path / "published")
    shutil.copy(built_shop.warehouse, where.warehouse)
    return where


def scribble(where: Settings, sql: str) -> None:
    with duckdb.connect(str(where.warehouse)) as con:
        con.execute(sql)


def another_build(where: Settings, change: str) -> None:
    """Simulate a later build: a change, and the record of a build that passed. The clock was put back an hour before
    each."""
    scribble(
        where,
        f"{change}; insert into main.builds by name select * replace (uuid() || ' later' as invocation_id, "
        "opened_at - interval 1 hour as opened_at, number + 1 as number) from main.builds order by number desc limit 1",
    )


def test_every_mart_is_published_twice_value_for_value(shop: Settings) -> None:
    done = publish(shop)
    same_as_the_warehouse(shop, done)
    with duckdb.connect(str(shop.warehouse), read_only=True) as con:
        found = con.execute("select marts from main.builds order by number desc limit 1").fetchall()
    assert found == [(sorted(done.marts),)]


def same_as_the_warehouse(shop: Settings, done: Publication) -> None:
    """Both copies of every mart have exactly the warehouse's rows."""
    with duckdb.connect() as con:
        con.execute(f"attach '{shop.warehouse}' as warehouse (read_only)")
        con.execute(f"attach '{shop.published / 'finegrain.duckdb'}' as published (read_only)")
        marts = con.execute(
            "select table_name from information_schema.tables where table_catalog = 'warehouse' and table_schema = 'marts'"
        ).fetchall()
        assert sorted(done.marts) == sorted(name for (name,) in marts) and len(marts) >= 10
        for (name,) in marts:
            for copy in (f"published.main.{name}", f"'{shop.published}/parquet/{name}/*.parquet'"):
                counts = con.execute(
                    f"select (select count(*) from warehouse.marts.{name}), (select count(*) from {copy}), "
                    f"(select count(*) from (from warehouse.marts.{name} except all from {copy}))"
                ).fetchall()
                assert counts == [(done.marts[name][0], done.marts[name][0], 0)], copy


#: Texts of few values, as their marts' YAML declares them; ids, pages and titles are not among them.
CATEGORICAL = {
    "fct_events": {
        "event_type",
        "category",
        "brand",
        "device",
        "country",
        "source",
        "origin",
        "currency",
        "campaign",
        "client_class",
    },
    "dim_customers": {"gender", "country", "acquisition_channel"},
    "fct_orders": {"source", "origin", "status", "raw_status", "discount_code", "currency"},
    "session_features": {"entry_channel", "entry_campaign", "visitor_class", "device", "country", "day_part"},
    "user_features": {"rfm_segment"},
    "user_category_features": {"category"},
}


@pytest.mark.parametrize("rows_a_day", [1, 20_000])
def test_parquet_types_texts_of_few_values_as_categories(
    shop: Settings, monkeypatch: pytest.MonkeyPatch, rows_a_day: int
) -> None:
    """pandas and Polars read them as categories, and every reader reads the same values; also of a mart with a file per
    period."""
    monkeypatch.setattr("orchestration.warehouse.publish.ROWS_A_DAY", rows_a_day)
    publish(shop)
    with duckdb.connect(str(shop.published / "finegrain.duckdb"), read_only=True) as con:
        for mart, expected in CATEGORICAL.items():
            folder = shop.published / "parquet" / mart
            frame = pd.read_parquet(folder)
            assert {name for name in frame if frame[name].dtype == "category"} == expected, mart
            read = pl.read_parquet(folder / "*.parquet")
            assert {name for name, kind in read.schema.items() if kind == pl.Categorical} == expected, mart
            names = ", ".join(sorted(expected))
            rows = sorted(con.execute(f"select {names} from {mart}").fetchall(), key=repr)
            texts = frame[sorted(expected)].astype(object)
            in_pandas = texts.where(texts.notna(), None).itertuples(index=False, name=None)
            in_polars = read.select(pl.col(sorted(expected)).cast(pl.String)).rows()
            in_duckdb = con.execute(f"select {names} from '{folder}/*.parquet'").fetchall()
            for found in (in_pandas, in_polars, in_duckdb):
                assert sorted(found, key=repr) == rows, mart


def test_a_column_declared_categorical_later_is_written_again(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(shop)
    monkeypatch.setattr("orchestration.warehouse.publish.categorical_columns", lambda: {"dim_products": {"product_id"}})
    another_build(shop, "select 1")
    publish(shop)
    frame = pd.read_parquet(shop.published / "parquet" / "dim_products")
    assert [name for name in frame if frame[name].dtype == "category"] == ["product_id"]


def files_of(shop: Settings) -> dict[str, int]:
    """The inode of every published Parquet file: a file that was reused keeps it."""
    folder = shop.published / "parquet"
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.glob("*/*.parquet")}


@pytest.mark.parametrize("rows_a_day", [1, 20_000])
def test_a_publish_writes_what_changed(shop: Settings, monkeypatch: pytest.MonkeyPatch, rows_a_day: int) -> None:
    monkeypatch.setattr("orchestration.warehouse.publish.ROWS_A_DAY", rows_a_day)
    publish(shop)
    before = files_of(shop)
    another_build(
        shop,
        "update int_cleaning__events set page = '/changed' where event_day = (select max(event_day) from int_cleaning__events); "
        "delete from int_cleaning__events where event_day = (select min(event_day) from int_cleaning__events); "
        "update marts.dim_products set title = 'changed' where product_id = (select min(product_id) from marts.dim_products)",
    )
    done = publish(shop)
    same_as_the_warehouse(shop, done)
    after = files_of(shop)
    with duckdb.connect(str(shop.warehouse), read_only=True) as con:
        [(first, last)] = con.execute("select min(event_day), max(event_day) from marts.fct_events").fetchall()
    changed = {name for name, inode in after.items() if before.get(name) != inode}
    if rows_a_day == 1:
        assert changed == {f"fct_events/{last}.parquet", "dim_products/all.parquet"}
        assert {name.partition("/")[0] for name in before.keys() - after.keys()} == {"fct_events"}
        assert all(name < f"fct_events/{first}" for name in before.keys() - after.keys())
    else:
        assert changed == {
            f"fct_events/{first:%Y-%m}.parquet",
            f"fct_events/{last:%Y-%m}.parquet",
            "dim_products/all.parquet",
        }
    # And nothing, when nothing changed.
    another_build(shop, "select 1")
    same_as_the_warehouse(shop, publish(shop))
    assert files_of(shop) == after


def a_build_of(where: Settings, marts: list[str], change: str, status: str = "passed") -> None:
    """Simulate a later build of some marts only."""
    another_build(where, change)
    scribble(
        where,
        f"update main.builds set is_whole = false, marts = {marts}, status = '{status}' where number = (select max(number) from main.builds)",
    )


def test_a_build_of_the_past_does_not_replace_the_present(shop: Settings) -> None:
    def a_build_as_of(moment: str) -> None:
        another_build(shop, "select 1")
        newest = "number = (select max(number) from main.builds)"
        scribble(shop, f"update main.builds set as_of = {moment} where {newest}")

    first = publish(shop)
    a_build_as_of("timestamp '2025-04-01'")
    with pytest.raises(
        FinegrainError, match=r"the last build is as of 2025-04-01 00:00:00, .*--past.* without --as-of"
    ):
        publish(shop)
    assert (shop.published / "current").resolve() == first.folder.resolve()
    assert publish(shop, past=True).as_of == datetime(2025, 4, 1)
    # A later moment is allowed, and so is one after all known rows, and a build without a moment.
    a_build_as_of("timestamp '2025-04-02'")
    assert publish(shop).as_of == datetime(2025, 4, 2)
    a_build_as_of("timestamp '2025-04-01'")
    with pytest.raises(FinegrainError, match="--past"):
        publish(shop)
    a_build_as_of("null")
    assert publish(shop).is_new
    a_build_as_of("timestamp '2030-01-01'")
    assert publish(shop).is_new


def test_a_build_of_some_marts_replaces_only_those(shop: Settings) -> None:
    first = publish(shop)
    everywhere = (
        "update marts.dim_products set title = 'changed'; update marts.item_features set views_7d = views_7d + 1"
    )
    a_build_of(shop, ["category_features", "item_features"], everywhere)
    done = publish(shop)
    assert done.renewed == ["category_features", "item_features"] and done.marts.keys() == first.marts.keys()
    with duckdb.connect() as con:
        con.execute(f"attach '{shop.warehouse}' as warehouse (read_only)")
        con.execute(f"attach '{shop.published / 'finegrain.duckdb'}' as published (read_only)")
        for mart, differ in (("item_features", 0), ("dim_products", done.marts["dim_products"][0])):
            for copy in (f"published.main.{mart}", f"'{shop.published}/parquet/{mart}/*.parquet'"):
                found = con.execute(
                    f"select count(*) from (from warehouse.marts.{mart} except all from {copy})"
                ).fetchall()
                assert found == [(differ,)], copy
    # The next full build brings the rest.
    another_build(shop, "select 1")
    scribble(shop, "update main.builds set is_whole = true")
    done = publish(shop)
    assert done.renewed == sorted(first.marts)
    same_as_the_warehouse(shop, done)


#: The inputs of each node of a small project: a seed, two steps, three marts, a snapshot of one of them, and tests.
READS = {
    "rates": (),
    "events": ("raw.events", "rates"),
    "states": ("events",),
    "orders": ("events",),
    "users": ("states",),
    "orders_of_users": ("orders", "users"),
    "users_history": ("users",),
    "test_events": ("events",),
    "test_orders": ("orders",),
    "test_orders_have_users": ("orders", "users"),
    "test_of_nothing": (),
}


@pytest.mark.parametrize(
    ("left_out", "whole"),
    [
        (set(), ["orders", "orders_of_users", "users"]),
        ({"users_history"}, ["orders", "orders_of_users", "users"]),
        ({"states"}, ["orders"]),
        ({"rates"}, []),
        ({"test_events"}, []),
        ({"test_orders"}, ["users"]),
        ({"test_orders_have_users"}, ["orders", "users"]),
        ({"test_of_nothing"}, []),
    ],
)
def test_a_mart_is_complete_with_all_its_inputs(left_out: set[str], whole: list[str]) -> None:
    marts = {"orders", "users", "orders_of_users"}
    kinds = {"rates": "seed", "users_history": "snapshot"}
    graph = {
        name: [
            kinds.get(name, "test" if "test" in name else "model"),
            name,
            name in marts,
            inputs,
            name not in left_out,
        ]
        for name, inputs in READS.items()
    }
    assert of_graph(json.dumps(graph)) == whole


@pytest.mark.parametrize(
    ("marts", "status", "between"),
    [
        pytest.param([], "passed", None, id="of no mart whole"),
        pytest.param(["item_features"], "failed", None, id="that failed"),
        pytest.param(["item_features"], "passed", ("status = 'failed'", True), id="after a whole one that failed"),
        pytest.param(["item_features"], "passed", ("status = 'open'", False), id="after one that was killed"),
        pytest.param(
            ["item_features"], "passed", ("command = 'run', marts = []", False), id="after models without tests"
        ),
    ],
)
def test_a_build_of_some_marts_is_refused(
    shop: Settings, marts: list[str], status: str, between: tuple[str, bool] | None
) -> None:
    before = publish(shop).folder
    if between:
        another_build(shop, "select 1")
        change, is_whole = between
        scribble(
            shop,
            f"update main.builds set {change}, is_whole = {is_whole} where number = (select max(number) from main.builds)",
        )
    a_build_of(shop, marts, "update marts.item_features set views_7d = 9", status)
    with pytest.raises(FinegrainError, match="nothing was published"):
        publish(shop)
    assert (shop.published / "current").resolve() == before


def test_a_clock_that_was_put_back_hides_no_build(shop: Settings) -> None:
    """A killed build is the newest, whatever its time is, and so is the one that repairs it."""
    first = publish(shop).folder
    another_build(shop, "update marts.item_features set views_7d = 9")
    scribble(shop, "update main.builds set status = 'open' where number = (select max(number) from main.builds)")
    with pytest.raises(FinegrainError, match="did not end"):
        publish(shop)
    assert (shop.published / "current").resolve() == first
    another_build(shop, "select 1")
    scribble(shop, "update main.builds set status = 'passed' where number = (select max(number) from main.builds)")
    healed = publish(shop)
    assert healed.is_new and healed.folder != first
    same_as_the_warehouse(shop, healed)


def test_builds_are_numbered_as_they_begin(shop: Settings) -> None:
    """By dbt itself, also in a warehouse from before builds had numbers."""
    known = "select invocation_id, number from main.builds order by number nulls first"
    with duckdb.connect(str(shop.warehouse)) as con:
        assert [number for _, number in con.execute(known).fetchall()] == [1]
        con.execute("alter table main.builds drop number")
    with pytest.raises(FinegrainError, match=r"earlier version of finegrain; run `finegrain build`$"):
        publish(shop)
    scribble(
        shop, "update main.builds set opened_at = opened_at + interval 1 hour"
    )  # as if the clock was put back since
    assert run_dbt(["seed", "--select", "event_weights"], where=shop).passed
    with duckdb.connect(str(shop.warehouse), read_only=True) as con:
        assert [number for _, number in con.execute(known).fetchall()] == [None, 1]
    with pytest.raises(FinegrainError, match="the last `dbt seed` changed the warehouse"):
        publish(shop)


def test_a_build_of_some_marts_cannot_be_the_first_version(shop: Settings) -> None:
    a_build_of(shop, ["item_features"], "select 1")
    with pytest.raises(FinegrainError, match="Run `finegrain build`"):
        publish(shop)


@pytest.mark.parametrize(
    "change",
    [
        "alter table marts.dim_products drop title",
        "drop table marts.dim_products",
        "create table marts.of_its_own as select 1 as one",
        "delete from marts.fct_orders",
    ],
)
def test_a_mart_of_another_shape_is_written_whole(shop: Settings, change: str) -> None:
    publish(shop)
    another_build(shop, change)
    same_as_the_warehouse(shop, publish(shop))


def test_a_broken_version_before_does_not_matter(shop: Settings) -> None:
    publish(shop)
    (shop.published / "current" / "about.json").write_text("{")
    another_build(shop, "select 1")
    same_as_the_warehouse(shop, publish(shop))


def test_descriptions_travel_with_the_marts(shop: Settings) -> None:
    publish(shop)
    query = (
        "select table_name, comment from duckdb_tables() where schema_name = '{}' and comment is not null order by 1"
    )
    with duckdb.connect(str(shop.warehouse), read_only=True) as con:
        wanted = con.execute(query.format("marts")).fetchall()
    with duckdb.connect(str(shop.published / "finegrain.duckdb"), read_only=True) as con:
        assert set(con.execute(query.format("main")).fetchall()) >= set(wanted) and wanted
        [(described,)] = con.execute(
            "select count(*) from duckdb_columns() where table_name = 'user_features' and comment is null"
        ).fetchall()
        assert described == 0


def test_a_description_that_changed_is_published_though_no_row_did(shop: Settings) -> None:
    publish(shop)
    another_build(
        shop,
        "comment on column marts.dim_products.title is 'another name'; comment on table marts.dim_products is 'goods'",
    )
    publish(shop)
    with duckdb.connect(str(shop.published / "finegrain.duckdb"), read_only=True) as con:
        found = con.execute(
            "select column_name, comment from duckdb_columns() where table_name = 'dim_products' and column_name in ('title', 'brand') order by 1"
        ).fetchall()
        tables = con.execute("select comment from duckdb_tables() where table_name = 'dim_products'").fetchall()
    with duckdb.connect(str(shop.warehouse), read_only=True) as con:
        [(brand,)] = con.execute(
            "select comment from duckdb_columns() where schema_name = 'marts' and table_name = 'dim_products' and column_name = 'brand'"
        ).fetchall()
    assert found == [("brand", brand), ("title", "another name")] and tables == [("goods",)]


READER = """
import sys
if sys.argv[1] == "duckdb":
    import duckdb
    con = duckdb.connect(sys.argv[2], read_only=True)
    ask = lambda sql: con.execute(sql).fetchall()[0][0]
else:
    import sqlalchemy
    con = sqlalchemy.create_engine(f"duckdb:///{sys.argv[2]}", connect_args={"read_only": True}).connect()
    ask = lambda sql: con.execute(sqlalchemy.text(sql)).scalar()
for sql in sys.stdin:
    print(ask(sql), flush=True)
"""


class Reader:
    """A process that has the published file open and answers queries."""

    def __init__(self, how: str, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, how, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, sql: str) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(sql + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(params=["duckdb", "sqlalchemy"])
def reader(shop: Settings, request: pytest.FixtureRequest) -> Iterator[Reader]:
    publish(shop)
    opened = Reader(request.param, shop.published / "finegrain.duckdb")
    yield opened
    opened.close()


def test_an_open_reader_is_not_disturbed(shop: Settings, reader: Reader) -> None:
    users, items = "select count(*) from user_features", "select count(*) from item_features"
    before = reader.ask(users)
    assert int(before) > 0
    for _ in range(3):  # more often than versions are kept
        another_build(shop, "delete from main.int_features__user; delete from marts.item_features")
        assert publish(shop).is_new
    # Also the files that it had not touched yet.
    assert reader.ask(users) == before and int(reader.ask(items)) > 0
    with duckdb.connect(str(shop.published / "finegrain.duckdb"), read_only=True) as con:
        assert con.execute(users).fetchall() == [(0,)]
    engine = sqlalchemy.create_engine(
        f"duckdb:///{shop.published / 'finegrain.duckdb'}", connect_args={"read_only": True}
    )
    with engine.connect() as link:
        assert link.execute(sqlalchemy.text(users)).scalar() == 0
    engine.dispose()
    assert len(list((shop.published / "versions").iterdir())) == 2


def test_a_place_that_cannot_be_written_is_one_sentence(shop: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FinegrainError, match="cannot write here: Not a directory; set FINEGRAIN_HOME"):
        publish(replace(shop, published=tmp_path / "file" / "published"))


def test_a_build_is_published_once(shop: Settings) -> None:
    assert publish(shop).is_new
    link = (shop.published / "current").readlink()
    assert not publish(shop).is_new
    assert (shop.published / "current").readlink() == link


#: Publishes once, and reports when it begins.
PUBLISHER = """
from orchestration.warehouse.publish import publish
print(flush=True)
publish()
"""


@pytest.mark.long
def test_publishes_that_are_killed_leave_nothing_behind(shop: Settings) -> None:
    """At any moment: readers find a complete version, and the next publish removes the leftovers."""
    (shop.published / ".draft-123").mkdir(parents=True)  # as earlier versions of finegrain left them
    (shop.published / ".draft-123" / "file").touch()
    publish(shop)
    random, environment = Random(5), {**os.environ, **shop.environment()}
    counts = "select (select count(*) from fct_events), (select count(*) from user_features)"
    with duckdb.connect(str(shop.published / "finegrain.duckdb"), read_only=True) as con:
        wanted = con.execute(counts).fetchall()
    for number in range(12):
        another_build(shop, f"update marts.item_features set views_7d = {number}")
        process = subprocess.Popen([sys.executable, "-c", PUBLISHER], env=environment, stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline()
        time.sleep(random.uniform(0, 1.5))
        process.kill()
        process.communicate()
        with duckdb.connect(str(shop.published / "finegrain.duckdb"), read_only=True) as con:
            assert con.execute(counts).fetchall() == wanted
            parquet = f"'{shop.published}/parquet/fct_events/*.parquet'"
            assert con.execute(f"select count(*) from {parquet}").fetchall() == [wanted[0][:1]]
    same_as_the_warehouse(shop, publish(shop))
    for _ in range(2):
        left = {path.name for path in shop.published.iterdir()}
        assert left == {".lock", "contracts", "current", "finegrain.duckdb", "parquet", "versions"}
        assert len(list((shop.published / "versions").iterdir())) <= 2
        assert not publish(shop).is_new


def test_without_a_build_nothing_is_published(shop: Settings) -> None:
    with pytest.raises(FinegrainError, match="does not exist; run `finegrain build`"):
        publish(replace(shop, warehouse=shop.home / "none.duckdb"))
    scribble(shop, "delete from main.builds")
    with pytest.raises(FinegrainError, match="has no build"):
        publish(shop)
    with pytest.raises(FinegrainError, match="nothing is published"):
        account(shop)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("status = 'open', command = 'build'", "the last `dbt build` did not end"),
        ("is_whole = false, command = 'run'", "the last `dbt run` changed the warehouse without a whole audit"),
        ("status = 'failed', failed = 1", "did not pass its audit"),
    ],
)
def test_builds_without_a_full_audit_stay_unpublished(shop: Settings, change: str, said: str) -> None:
    publish(shop)
    before = (shop.published / "current").readlink()
    another_build(shop, "delete from main.int_features__user")
    scribble(shop, f"update main.builds set {change} where invocation_id like '% later'")
    with pytest.raises(FinegrainError, match=said):
        publish(shop)
    assert (shop.published / "current").readlink() == before
    assert account(shop).marts["user_features"][0] > 0


def test_a_warehouse_that_is_being_written_is_not_read(shop: Settings) -> None:
    code = "import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(shop.warehouse)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout and writer.stdout.readline() == "open\n"
    with pytest.raises(FinegrainError, match="is being written by another process"):
        publish(shop)
    writer.communicate()
    assert publish(shop).is_new


@pytest.fixture
def broken_project(project: Path, tmp_path: Path) -> Path:
    """The project with one more test, which fails on two rows."""
    copy = tmp_path / "project"
    kept = [
        "models",
        "seeds",
        "macros",
        "snapshots",
        "dbt_packages",
        "fallback_packages",
        "tests/singular",
        "tests/generic",
    ]
    for name in kept:
        if (project / name).exists():
            shutil.copytree(project / name, copy / name, symlinks=True)
    for name in ("dbt_project.yml", "profiles.yml", "packages.yml"):
        shutil.copy(project / name, copy / name)
    (copy / "tests" / "singular" / "no_mugs.sql").write_text(
        "select product_id, category from {{ ref('dim_products') }} order by product_id limit 2"
    )
    return copy


def test_a_failed_audit_names_the_test_and_the_rows_and_publishes_nothing(shop: Settings, broken_project: Path) -> None:
    publish(shop)
    before = (shop.published / "current").readlink()
    done = run_dbt(
        ["build", "--select", "dim_products", "--exclude-resource-type", "unit_test"],
        where=shop,
        project=broken_project,
    )
    assert not done.passed
    [failed] = done.failed
    assert (failed.name, failed.failures, failed.kept_in) == ("no_mugs", 2, '"audit"."no_mugs"')
    assert [sorted(row) for row in failed.rows] == [["category", "product_id"]] * 2
    with pytest.raises(FinegrainError, match=r"(?s)did not pass its audit.*no_mugs: 2 rows, kept in audit.no_mugs"):
        publish(shop)
    assert (shop.published / "current").readlink() == before
    with duckdb.connect(str(shop.warehouse), read_only=True) as con:
        assert con.execute("select count(*) from audit.no_mugs").fetchall() == [(2,)]


def test_a_partial_run_closes_the_gate(shop: Settings) -> None:
    assert publish(shop).is_new
    assert run_dbt(["run", "--select", "dim_products"], where=shop).passed
    with pytest.raises(FinegrainError, match="without a whole audit"):
        publish(shop)
    # A dbt command that only reads does not change what may be published.
    assert run_dbt(["compile", "--select", "dim_products"], where=shop)
    with pytest.raises(FinegrainError, match="without a whole audit"):
        publish(shop)


def test_the_row_report_adds_up(shop: Settings) -> None:
    publish(shop)
    report = account(shop)
    assert {row["source"] for row in report.sources} == {"shop_web", "shop_app", "shop_store", "shop_database"}
    for row in report.sources:
        assert row["kept"] + row["duplicates"] + row["quarantined"] == row["raw_rows"] > 0
    landed = json.loads((shop.home / "shop" / "simulation.json").read_text())["rows"]
    assert sum(row["raw_rows"] for row in report.sources) == sum(
        count for name, count in landed.items() if name != "ga4_items"
    )
    of_events = [
        row for row in report.sources if row["raw_table"] in ("events", "ga4_events", "order_items", "refunds")
    ]
    assert {row["raw_table"] for row in report.sources} > {row["raw_table"] for row in of_events}
    assert report.events == {name: sum(row[name] for row in of_events) for name in report.events}
    text = io.StringIO()
    report.show(Console(file=text, width=200))
    raw, kept = (f"{report.events[name]:,}" for name in ("raw_rows", "kept"))
    assert re.search(rf"all that hold events +{raw} +{kept} ", text.getvalue())
    assert re.search(r"shop_database +customers +\d", text.getvalue())
    assert report.reasons["malformed"] > 0 and report.cleaned["event price imputed"] > 0
    assert report.sample and {"customer_id", "rfm_segment"} <= set(report.sample[0])
    assert report.dead_letters == {}


def test_the_row_report_shows_anomalies_of_the_newest_closed_days(shop: Settings) -> None:
    day = "(select cast(max(as_of) as date) from marts.metric_history)"
    values = "'events', 'shop_web', 'source', 'shop_web'"
    another_build(
        shop,
        f"""delete from marts.metric_anomalies;
        insert into marts.metric_anomalies
        select rule, metric, {values}, col, {day} - age, 0.5, 0.1, null, 0.2, score, 10, severity, 'data-engineering', suppressed, now(), 1
        from (values
            ('top', 'top_share', 'user_id', 1, 9.0, 'warn', false), ('quarantined', 'quarantined_share', 'row', 1, 20.0, 'error', false),
            ('drift', 'psi', 'price', 7, 8.0, 'warn', false), ('drift', 'psi', 'price', 8, 8.0, 'warn', false),
            ('volume', 'volume', 'row', 2, 30.0, 'error', true)
        ) as v (rule, metric, col, age, score, severity, suppressed);
        update marts.metric_anomalies set as_of = (select max(as_of) from marts.metric_history)""",
    )
    publish(shop)
    report = account(shop)
    assert [(row["source"], row["severity"], row["rules"]) for row in report.anomalies] == [
        ("shop_web", "error", ["quarantined", "top"]),
        ("shop_web", "warn", ["drift"]),
    ]
    text = io.StringIO()
    report.show(Console(file=text, width=200))
    assert "quarantined, top  quarantined_share is 0.5, expected 0.1" in text.getvalue()
    assert [row["rules"] for row in anomalies(1, shop)] == [["quarantined", "top"]]
    assert anomalies(0, shop) == []


def test_the_row_report_names_columns_that_are_null_in_every_row(shop: Settings) -> None:
    """In all files of a mart together, also lists; a column with one value is not named."""
    publish(shop)
    before = account(shop).empty
    another_build(
        shop,
        "update marts.dim_products set title = null, brand = null; "
        "update marts.dim_products set brand = 'b' where product_id = (select min(product_id) from marts.dim_products); "
        "update int_cleaning__events set query = null, warnings = null",
    )
    publish(shop)
    report = account(shop)
    assert report.empty["dim_products"] == [*before.get("dim_products", []), "title"]
    assert sorted(report.empty["fct_events"]) == sorted([*before.get("fct_events", []), "query", "warnings"])
    text = io.StringIO()
    report.show(Console(file=text, width=200))
    columns = report.marts["dim_products"][1]
    assert f"dim_products: 1 of {columns} columns are null in every row: title\n" in text.getvalue()


def test_the_row_report_counts_open_dead_letters(shop: Settings, tmp_path: Path) -> None:
    shop = replace(shop, lake_catalog=tmp_path / "catalog.sqlite", lake_data=tmp_path / "data")
    publish(shop)
    assert account(shop).dead_letters == {}
    assert not (tmp_path / "catalog.sqlite").exists()
    with lake.connect(shop) as con:
        for number, rule in enumerate(["not_json", "not_json", "wrong_type"]):
            con.execute(
                "insert into lake.raw.dead_letters (_source, _position, raw_table, rule_id, _ingested_at) "
                "values ('web', ?, 'events', ?, timestamp '2025-03-02')",
                [str(number), rule],
            )
        # The second is of the same message, read at a different time.
        for letter_at in ("2025-03-02", "2025-03-01"):
            con.execute(
                "insert into lake.raw.replayed (_source, _position, raw_table, letter_at) values ('web', ?, 'events', ?)",
                ["0" if letter_at == "2025-03-02" else "1", letter_at],
            )
    report = account(shop)
    assert report.dead_letters == {"not_json": 1, "wrong_type": 1}
    text = io.StringIO()
    report.show(Console(file=text, width=200))
    assert re.search(r"Dead letters\s+rows\s+not_json +1\s+wrong_type +1\s", text.getvalue())
