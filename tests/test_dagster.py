"""finegrain in Dagster: the graph is complete, each job runs, a failed audit is not published and is reported, and a killed run is repaired.

One small shop is used by all tests, in this order."""

from __future__ import annotations

import contextlib
import http.server
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
import duckdb
import pandas as pd
import pytest
import yaml
from dagster_dbt import DbtCliResource
from playwright.sync_api import Page, sync_playwright
from servers import free_ports

from orchestration.config.published import current, published_report
from orchestration.config.settings import PROJECT, Settings, settings
from orchestration.dagster import automation
from orchestration.dagster.assets import FEATURE_STORE
from orchestration.dagster.automation import Decision, Policy, Waiting, decide
from orchestration.dagster.groups import FOLDERS, LAYERS
from orchestration.dagster.home import dagster_home
from orchestration.dagster.instance import STORAGE, command, end_what_was_left, write_settings
from orchestration.dagster.shop import connections
from orchestration.errors import FinegrainError
from orchestration.features.catalog import declared
from orchestration.features.history import features_of
from orchestration.lake import lake
from orchestration.lake.lake import Arrived
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.quality.account import ledger
from orchestration.store.materialize import materialize
from orchestration.warehouse.publish import publish

#: A day of the shop's history, and one well before it.
DAY = date(2025, 4, 2)


@dataclass
class Shop:
    """A built shop in its own home, and its code location. `inbox` is the folder that its connectors read."""

    where: Settings
    inbox: Path
    defs: dg.Definitions

    def run(
        self,
        job: str,
        config: Mapping[str, Any] | None = None,
        partition: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        with dg.DagsterInstance.get() as instance:
            return self.defs.resolve_job_def(job).execute_in_process(
                run_config=config, instance=instance, raise_on_error=False, partition_key=partition, tags=tags
            )

    def asset_graph(self) -> Any:
        return self.defs.get_repository_def().asset_graph


@pytest.fixture(scope="module")
def shop(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    home = tmp_path_factory.mktemp("dagster") / "home"
    shutil.copytree(built_shop.home, home, ignore=shutil.ignore_patterns("logs"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("FINEGRAIN_", "DAGSTER_"))]:
            if name != "FINEGRAIN_PRIVACY_KEY":
                patch.delenv(name)
        for name, value in Settings.below(home, built_shop.extensions).environment().items():
            patch.setenv(name, value)
        mappings = home / "mappings"
        shutil.copytree(PROJECT / "examples" / "simulated_shop", mappings)
        (mappings / "more.yml").write_text(yaml.safe_dump(MORE))
        (home / "more").mkdir()
        patch.setenv("FINEGRAIN_SHOP", str(mappings))
        patch.setenv("FINEGRAIN_DATA", str(home / "shop"))
        patch.setenv("DAGSTER_HOME", str(home / "dagster"))
        write_settings(dagster_home())
        from orchestration.dagster.definitions import definitions

        yield Shop(settings(), home / "shop" / "more", definitions())


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_pool() -> Iterator[None]:
    """If a test fails during a run, the next tests must not wait for that run's pool slot."""
    yield
    if "DAGSTER_HOME" in os.environ:
        with dg.DagsterInstance.get() as instance:
            end_what_was_left(instance)


#: Another source beside the simulated shop's: files that arrive, and a topic for a loader.
MORE = {
    "source": "more",
    "tables": {
        "events": [
            {
                "files": "more/*.csv",
                "available_at": {"column": "came"},
                "fields": {
                    "event_id": "id",
                    "event_type": "what",
                    "event_at": "at",
                    "user_id": "who",
                    "product_id": "sku",
                },
            },
            {
                "stream": {"kafka": "shop.events"},
                "available_at": "now",
                "fields": {"event_id": "id", "event_type": "what", "event_at": "at", "user_id": "who"},
            },
        ]
    },
}


def deliver(shop: Shop, name: str, rows: list[tuple[str, str, str]]) -> None:
    """A file of views: (id, event time, arrival time)."""
    shop.inbox.mkdir(exist_ok=True)
    with duckdb.connect(str(shop.where.warehouse), read_only=True) as con:
        [(user, product)] = con.execute(
            "select min(user_id), (select min(product_id) from marts.dim_products where is_in_catalogue) "
            "from marts.fct_events where user_id is not null"
        ).fetchall()
    lines = [f"{id_},view_item,{at},{user},{product},{arrival}" for id_, at, arrival in rows]
    (shop.inbox / name).write_text("\n".join(["id,what,at,who,sku,came", *lines]) + "\n")


def published_rows(where: Settings) -> dict[str, int]:
    """Rows by published mart, counted by DuckDB."""
    folder = current(where)
    assert folder is not None
    with duckdb.connect(str(folder / "finegrain.duckdb"), read_only=True) as con:
        names = [name for (name,) in con.execute("select table_name from duckdb_tables()").fetchall()]
        return {name: con.execute(f"select count(*) from {name}").fetchall()[0][0] for name in names}


# The graph.


def test_every_node_of_dbt_is_an_asset_or_a_check(shop: Shop) -> None:
    manifest = json.loads((dagster_home() / "dbt" / "manifest.json").read_text())
    nodes = manifest["nodes"].values()
    graph = shop.asset_graph()
    shown = {
        key.path[-1] for key in graph.get_all_asset_keys() if key.path[0] not in ("published", "connectors", "systems")
    }
    wanted = {node["name"] for node in nodes if node["resource_type"] in ("model", "seed", "snapshot")}
    assert wanted <= shown and len(wanted) > 80
    assert {(each["source_name"], each["name"]) for each in manifest["sources"].values()} == {
        tuple(key.path) for key in graph.get_all_asset_keys() if key.path[0] in ("lake", "bookkeeping")
    }
    tests = sorted(node["unique_id"] for node in nodes if node["resource_type"] == "test")
    assert sorted(spec.metadata["dagster_dbt/unique_id"] for spec in check_specs(shop)) == tests and len(tests) > 200
    assert {each["name"] for each in manifest["exposures"].values()} == {
        key.path[-1] for key in graph.get_all_asset_keys() if key.path[0] == "consumers"
    }


def check_specs(shop: Shop) -> list[dg.AssetCheckSpec]:
    return [
        spec for each in shop.defs.assets or [] if isinstance(each, dg.AssetsDefinition) for spec in each.check_specs
    ]


def test_every_check_has_a_readable_name_and_says_when_it_fails(shop: Shop) -> None:
    specs = check_specs(shop)
    assert len({spec.key for spec in specs}) == len(specs)
    for spec in specs:
        dbt_name = spec.metadata["dagster_dbt/unique_id"].split(".")[2]
        assert len(spec.name) <= 80 and "dbt_expectations" not in spec.name, spec.name
        assert not dbt_name.startswith("dbt_") or spec.name != dbt_name
        first, *_, last = (spec.description or "").split("\n\n")
        assert first.startswith("Fails if ") and last == f"dbt test: `{dbt_name}`", spec
        assert (
            f"`{spec.asset_key.path[-1]}" in first or f".{spec.asset_key.path[-1]}`" in first or "the query in" in first
        ), spec
    of_validated = {spec.name for spec in specs if spec.asset_key == dg.AssetKey("int_events__validated")}
    assert {"row_id_is_unique", "row_id_is_not_null", "verdict_is_an_accepted_value"} <= of_validated
    # A comment says what a test of its own is about.
    for spec in specs:
        if "the query in" in (spec.description or ""):
            assert len((spec.description or "").split("\n\n")) == 3, spec.name


def test_the_graph_goes_from_systems_to_the_feature_store(shop: Shop) -> None:
    graph = shop.asset_graph()
    store = dg.AssetKey(["consumers", "feature_store"])
    above = set(graph.get_ancestor_asset_keys(store))
    groups = {graph.get(key).group_name for key in above}
    layers = {
        "1_sources/1_systems",
        "1_sources/2_connectors",
        "1_sources/3_loaders",
        "2_lake",
        "4_staging/shop",
        "3_seeds",
        "5_intermediate/03_events",
        "6_marts/2_features",
        "8_published",
    }
    assert layers <= groups
    assert (
        dg.AssetKey(["loaders", "more_events"]) in above
        and not graph.get(dg.AssetKey(["loaders", "more_events"])).is_executable
    )
    # A published asset depends only on its mart; the job and publish ensure that it waits for all checks.
    for mart in published_marts(shop):
        assert graph.get(dg.AssetKey(["published", mart])).parent_keys == {dg.AssetKey(["marts", mart])}


def test_groups_sort_in_the_order_of_the_data(shop: Shop) -> None:
    """No asset reads one of a later group: the outer groups are a chain, and so are the folders of a layer, which the linter knows."""
    from check_layers import ROOMS

    for layer, rooms in ROOMS.items():
        assert [room for room in FOLDERS[layer] if room != "bookkeeping"] == rooms
    graph = shop.asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        layer, *_ = str(node.group_name).split("/")
        assert layer[:2] in {f"{number + 1}_" for number in range(len(LAYERS))} or layer == "upkeep", key
        for parent in node.parent_keys:
            before = str(graph.get(parent).group_name)
            assert before.split("/")[0] <= layer, (parent, key)
            if before.startswith("5_") and layer.startswith("5_"):
                assert before <= str(node.group_name), (parent, key)


def published_marts(shop: Shop) -> set[str]:
    return {key.path[-1] for key in shop.asset_graph().get_all_asset_keys() if key.path[0] == "published"}


def test_every_asset_has_a_description_and_an_owner(shop: Shop) -> None:
    graph = shop.asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and node.owners and node.kinds and node.group_name != "default", key
    assert graph.get(dg.AssetKey(["marts", "user_features"])).owners == ["team:personalization"]
    assert all(graph.get(dg.AssetKey(["published", mart])).freshness_policy for mart in published_marts(shop))
    assert graph.get(dg.AssetKey(["lake", "events"])).freshness_policy


def test_all_jobs_that_use_the_warehouse_share_one_pool(shop: Shop) -> None:
    made = [each for each in shop.defs.assets or [] if isinstance(each, dg.AssetsDefinition)]
    pools = {each.op.name: each.op.pool for each in made}
    with_pool = {name for name, pool in pools.items() if pool == "warehouse"}
    assert with_pool == {"dbt_build", "publish", "history__features"}
    config = yaml.safe_load((dagster_home() / "dagster.yaml").read_text())
    assert config["concurrency"]["pools"] == {"granularity": "op", "default_limit": 1}
    assert not config["telemetry"]["enabled"]


# When a build starts.

NOON = datetime(2025, 4, 1, 12)
TEN, QUARTER = Policy(rows=10, wait=timedelta(minutes=15)), timedelta(minutes=15)


def arrived(snapshot: int, rows: int) -> dict[str, Arrived]:
    """Rows of two tables, the newest in `snapshot`."""
    return {"events": Arrived(snapshot, NOON, rows - 1), "orders": Arrived(1, NOON, 1)}


@pytest.mark.parametrize(
    ("arrived", "waiting", "is_building", "now", "builds", "says", "then"),
    [
        pytest.param({}, Waiting(), False, NOON, False, "nothing", Waiting(), id="an empty lake"),
        pytest.param(
            arrived(3, 12), Waiting(), False, NOON, True, "12 rows", Waiting(3, 12), id="the first rows, enough"
        ),
        pytest.param(
            arrived(3, 9), Waiting(), False, NOON, False, "9 rows", Waiting(-1, 0, NOON), id="the first rows, few"
        ),
        pytest.param(
            arrived(3, 9),
            Waiting(-1, 0, NOON),
            False,
            NOON + QUARTER,
            True,
            "9 rows",
            Waiting(3, 9),
            id="few, long enough",
        ),
        pytest.param(
            arrived(3, 9),
            Waiting(-1, 0, NOON),
            False,
            NOON + QUARTER / 2,
            False,
            "12:15:00",
            Waiting(-1, 0, NOON),
            id="few, not yet",
        ),
        pytest.param(
            arrived(3, 12), Waiting(3, 12), False, NOON + QUARTER, False, "nothing", Waiting(3, 12), id="nothing new"
        ),
        pytest.param(arrived(5, 22), Waiting(3, 12), False, NOON, True, "10 rows", Waiting(5, 22), id="just enough"),
        pytest.param(
            arrived(5, 21), Waiting(3, 12), False, NOON, False, "9 rows", Waiting(3, 12, NOON), id="one too few"
        ),
        pytest.param(
            arrived(5, 99),
            Waiting(3, 12),
            True,
            NOON,
            False,
            "under way",
            Waiting(3, 12, NOON),
            id="while one is built",
        ),
        pytest.param(
            arrived(5, 99),
            Waiting(3, 12, NOON),
            False,
            NOON + QUARTER * 9,
            True,
            "87 rows",
            Waiting(5, 99),
            id="after it",
        ),
        pytest.param(arrived(2, 11), Waiting(7, 500), False, NOON, True, "11 rows", Waiting(2, 11), id="another lake"),
        pytest.param({}, Waiting(7, 500), False, NOON, False, "nothing", Waiting(), id="the lake is gone"),
    ],
)
def test_when_a_build_is_requested(
    arrived: dict[str, Arrived],
    waiting: Waiting,
    is_building: bool,
    now: datetime,
    builds: bool,
    says: str,
    then: Waiting,
) -> None:
    done = decide(now, arrived, waiting, is_building=is_building, policy=TEN)
    assert done == Decision(builds, done.reason, then)
    assert says in done.reason
    assert Waiting.read(then.write()) == then


@pytest.mark.parametrize("cursor", [None, "", "no JSON", "[]", "{}", '{"snapshot": "x"}'])
def test_an_unknown_cursor_starts_from_the_beginning(cursor: str | None) -> None:
    assert Waiting.read(cursor) == Waiting()


def test_settings_of_the_sensor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert automation.policy() == Policy(10_000, timedelta(minutes=15))
    monkeypatch.setenv("FINEGRAIN_BUILD_ROWS", "5")
    monkeypatch.setenv("FINEGRAIN_BUILD_MINUTES", "0.5")
    assert automation.policy() == Policy(5, timedelta(seconds=30))
    for wrong in ("many", "-1"):
        monkeypatch.setenv("FINEGRAIN_BUILD_ROWS", wrong)
        with pytest.raises(FinegrainError, match="FINEGRAIN_BUILD_ROWS"):
            automation.policy()


def test_the_sensor_reports_arrivals_and_requests_one_build(shop: Shop) -> None:
    sensor = shop.defs.get_repository_def().get_sensor_def("lake")
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.get() as instance:
        patch.setenv("FINEGRAIN_BUILD_ROWS", "1")

        def tick(cursor: str | None) -> Any:
            context = dg.build_sensor_context(instance, cursor=cursor, repository_def=shop.defs.get_repository_def())
            return sensor.evaluate_tick(context)

        first = tick(None)
        [request] = first.run_requests
        with lake.connect(shop.where, read_only=True) as con:
            counts = {
                table: con.execute(f"select count(*) from lake.raw.{table}").fetchall()[0][0]
                for table in [*RAW_TABLES, "loads"]
            }
        row_counts = {event.asset_key.path[-1]: event.metadata["rows_ever"].value for event in first.asset_events}
        assert row_counts == {table: rows for table, rows in counts.items() if rows}
        second = tick(first.cursor)
        assert not second.run_requests and not second.asset_events and "nothing" in second.skip_message
        # A lost cursor requests the same key, which Dagster runs once.
        assert tick(None).run_requests[0].run_key == request.run_key


# The jobs.


def test_connectors_load_new_rows(shop: Shop) -> None:
    deliver(
        shop,
        "a.csv",
        [
            ("m1", "2025-04-08T10:00:00Z", "2025-04-08T10:00:05Z"),
            ("m2", "2025-04-08T11:00:00Z", "2025-04-08T11:00:05Z"),
        ],
    )
    done = shop.run("connectors")
    assert done.success
    landed = {
        event.asset_key.path[-1]: event.materialization.metadata["dagster/row_count"].value
        for event in done.get_asset_materialization_events()
    }
    assert landed == {"more": 2, "shop_app": 0, "shop_database": 0, "shop_store": 0, "shop_web": 0}


def test_a_run_that_is_stopped_is_not_tried_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        def stream(self) -> Iterator[Any]:
            raise dg.DagsterExecutionInterruptedError

    monkeypatch.setattr(DbtCliResource, "cli", lambda *_, **__: Stopped())
    done = shop.run("build")
    assert not done.success and "the run was stopped" in failures(done)[0]
    assert not [event for event in done.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]


@pytest.mark.soak
def test_a_crash_in_the_middle_of_a_build_is_repaired(shop: Shop) -> None:
    """The build job is killed, including dbt, while models are built; the published version stays, and the next run repairs the warehouse."""

    deliver(shop, "c.csv", [("m0", "2025-04-08T09:00:00Z", "2025-04-08T09:00:05Z")])
    assert shop.run("connectors").success
    publish(shop.where)
    before = current(shop.where)
    log = dagster_home() / "dbt" / "run" / "dbt.log"
    log.unlink(missing_ok=True)
    code = (
        "import dagster as dg\nfrom orchestration.dagster.definitions import defs\n"
        "with dg.DagsterInstance.get() as instance: defs.resolve_job_def('build').execute_in_process(instance=instance)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        # Verdicts are built, and models that depend on them are not.
        wait_for(
            lambda: log.exists() and "OK created sql incremental model main.int_events__validated" in log.read_text(),
            process,
            seconds=900,  # dbt may have to parse the whole project first
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # dbt is a child of that process: its lock on the warehouse goes when the kernel is done with it, which is a moment later.
    wait_for(lambda: is_unlocked(shop.where.warehouse))
    assert current(shop.where) == before
    assert watermark(shop.where, "int_events__validated") > watermark(shop.where, "int_features__user")

    # As `finegrain dagster` does when it starts again.
    with dg.DagsterInstance.get() as instance:
        [killed] = end_what_was_left(instance)
        assert instance.get_run_by_id(killed).status is dg.DagsterRunStatus.FAILURE
        assert not instance.event_log_storage.get_concurrency_run_ids()

    done = shop.run("build")
    assert done.success, failures(done)
    checks = done.get_asset_check_evaluations()
    # Parity of the online store is checked nightly only.
    nightly = dg.AssetCheckKey(FEATURE_STORE, "parity")
    assert {each.asset_check_key for each in checks} == set(shop.asset_graph().asset_check_keys) - {nightly}
    assert all(each.passed for each in checks)
    assert current(shop.where) != before
    # Every raw row was processed, including the two new ones.
    with lake.connect(shop.where, read_only=True) as con:
        [(raw,)] = con.execute(
            f"select sum(n) from ({' union all '.join(f'select count(*) as n from lake.raw.{table}' for table in RAW_TABLES)})"
        ).fetchall()
        newest = max(each.snapshot for table, each in lake.arrived(con).items() if table in RAW_TABLES)
    assert ledger(shop.where)["raw_rows"] == raw
    assert watermark(shop.where, "int_events__validated") == watermark(shop.where, "int_features__user") >= newest
    # Rows and columns as Dagster shows them are the tables' own.
    metadata = {
        event.asset_key.to_user_string(): event.materialization.metadata
        for event in done.get_asset_materialization_events()
    }
    for mart, rows in published_rows(shop.where).items():
        assert metadata[f"published/{mart}"]["dagster/row_count"].value == rows
    with duckdb.connect(str(shop.where.warehouse), read_only=True) as con:
        [(rows,)] = con.execute("select count(*) from int_cleaning__events").fetchall()
        columns = con.execute("describe marts.user_features").fetchall()
    assert metadata["int_cleaning__events"]["dagster/row_count"].value == rows
    assert [each.name for each in metadata["marts/user_features"]["dagster/column_schema"].value.columns] == [
        name for name, *_ in columns
    ]
    assert metadata["int_cleaning__events"]["seconds"].value > 0
    # The run shows what each model took.
    times = metadata["upkeep/builds"]
    records = {each.data["model"]: each.data for each in times["times"].value.records}
    assert set(records) == {name.rpartition("/")[2] for name in metadata if "published/" not in name} - {"builds"}
    assert records["int_cleaning__events"]["seconds"] == metadata["int_cleaning__events"]["seconds"].value
    assert records["int_cleaning__events"]["rows"] == rows and records["int_cleaning__events"]["checks"] >= 4
    assert times["seconds"].value > sum(each["seconds"] for each in records.values()) > 0
    assert times["checks"].value == len(checks)
    lineage = metadata["published/user_features"]["dagster/column_lineage"].value.deps_by_column["revenue_90d"]
    assert dg.TableColumnDep(dg.AssetKey(["lake", "order_items"]), "price") in lineage


def watermark(where: Settings, model: str) -> int:
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        return int(con.execute("select snapshot from watermarks where model = ?", [model]).fetchall()[0][0])


def is_unlocked(warehouse: Path) -> bool:
    """Whether no other process has the file locked."""
    try:
        duckdb.connect(str(warehouse), read_only=True).close()
    except duckdb.IOException as error:
        assert "Conflicting lock" in str(error), error
        return False
    return True


def wait_for(holds: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not so after {seconds:.0f} s"
        assert process is None or process.poll() is None, f"the process ended with {process.returncode}"
        time.sleep(0.05)


def failures(done: dg.ExecuteInProcessResult) -> list[str]:
    return [
        str(event.step_failure_data.user_failure_data or event.step_failure_data.error)
        for event in done.all_events
        if event.is_step_failure
    ]


@pytest.mark.soak
def test_product_marts_have_a_schedule_of_their_own(shop: Shop) -> None:
    deliver(shop, "b.csv", [("m3", "2025-04-08T12:00:00Z", "2025-04-08T12:00:05Z")])
    assert shop.run("connectors").success
    publish(shop.where)
    before = published_moments(shop.where)
    materialize(shop.where)
    done = shop.run("items")
    assert done.success, failures(done)
    after = published_moments(shop.where)
    renewed = {mart for mart in after if after[mart] != before[mart]}
    assert renewed == {"item_features", "category_features", "item_pair_features"}
    published = {
        event.asset_key.path[-1]
        for event in done.get_asset_materialization_events()
        if event.asset_key.path[0] == "published"
    }
    assert published == renewed
    for event in done.get_asset_materialization_events():
        if event.asset_key.path[0] == "published":
            assert event.materialization.metadata["report"].value == "http://127.0.0.1:3000/finegrain/report"
    assert published_report(shop.where) is not None
    [filled] = done.asset_materializations_for_node("store")
    assert filled.metadata["dagster/row_count"].value == sum(after[mart][0] for mart in renewed)
    assert set(filled.metadata["unchanged"].value) == {mart.name for mart in declared()} - renewed
    shutil.rmtree(shop.where.home / "store")


def test_the_online_store_is_filled_if_there_is_one(shop: Shop) -> None:
    publish(shop.where)
    [store] = [
        each for each in shop.defs.assets or [] if isinstance(each, dg.AssetsDefinition) and FEATURE_STORE in each.keys
    ]
    nothing = dg.materialize([store])
    assert nothing.success and nothing.asset_materializations_for_node("store") == []
    assert not (shop.where.home / "store").exists()
    (shop.where.home / "store").mkdir()
    try:
        done = dg.materialize([store])
        [filled] = done.asset_materializations_for_node("store")
        marts = published_moments(shop.where)
        assert filled.metadata["dagster/row_count"].value == sum(marts[mart.name][0] for mart in declared())
    finally:
        shutil.rmtree(shop.where.home / "store")
    graph = shop.asset_graph()
    for job in ("build", "nightly", "items"):
        assert FEATURE_STORE in shop.defs.resolve_job_def(job).asset_layer.selected_asset_keys, job
    assert graph.get(FEATURE_STORE).is_executable


def published_moments(where: Settings) -> dict[str, tuple[Any, ...]]:
    """(rows, as_of, built_from) of each published mart; checks that its Parquet files agree."""
    folder = current(where)
    assert folder is not None
    found = {}
    with duckdb.connect(str(folder / "finegrain.duckdb"), read_only=True) as con:
        for (name,) in con.execute("select table_name from duckdb_tables()").fetchall():
            columns = [column for column, *_ in con.execute(f"describe {name}").fetchall()]
            about = ", ".join(["count(*)", *(f"max({each})" for each in ("as_of", "built_from") if each in columns)])
            [found[name]] = con.execute(f"select {about} from {name}").fetchall()
            assert [found[name]] == con.execute(f"select {about} from '{folder}/parquet/{name}/*.parquet'").fetchall()
    return found


class Sink(http.server.BaseHTTPRequestHandler):
    """Keeps what was sent to a webhook."""

    got: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        Sink.got.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def webhook() -> Iterator[list[str]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Sink.got = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINEGRAIN_ALERT_WEBHOOK", f"http://127.0.0.1:{server.server_port}/services/T0/B0/secret")
        try:
            yield Sink.got
        finally:
            server.shutdown()
            server.server_close()


def look(shop: Shop) -> None:
    """One evaluation of the alert sensor."""
    with dg.DagsterInstance.get() as instance:
        repository = shop.defs.get_repository_def()
        context = dg.build_sensor_context(instance, repository_def=repository)
        repository.get_sensor_def("watch").evaluate_tick(context)


@pytest.mark.long
def test_a_failed_audit_is_not_published_and_is_reported_until_resolved(shop: Shop) -> None:
    before = current(shop.where)
    with webhook() as got:
        look(shop)
        settled = len(got)  # by the clock, the shop's rows arrived years ago or just now; both may cause alerts
        doubled = "insert into int_events__validated select * from int_events__validated order by row_id limit 1"
        with duckdb.connect(str(shop.where.warehouse)) as con:
            [(user,)] = con.execute(
                "select user_id from int_events__validated where user_id is not null limit 1"
            ).fetchall()
            con.execute(doubled)
        done = shop.run("nightly")
        assert not done.success
        failed = [each for each in done.get_asset_check_evaluations() if not each.passed]
        assert "row_id_is_unique" in [each.check_name for each in failed]
        # Nothing that depends on it was built, nothing was published, and it was not retried, because the rows are the same.
        assert not [
            event for event in done.get_asset_materialization_events() if event.asset_key.path[0] == "published"
        ]
        assert not [event for event in done.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]
        assert current(shop.where) == before
        [said] = failures(done)
        assert "the audit failed" in said and "Traceback" not in said
        assert "row_id_is_unique (unique_int_events__validated_row_id)" in said

        look(shop)
        text = "\n".join(got[settled:])
        assert "The check row_id_is_unique of int_events__validated failed" in text and "job nightly failed" in text
        assert "data-engineering" in text and "http://127.0.0.1:3000/runs/" in text
        assert user not in text
        sent = len(got)
        look(shop)
        assert len(got) == sent  # nothing changed

        with duckdb.connect(str(shop.where.warehouse)) as con:
            con.execute(
                "delete from int_events__validated where rowid = (select max(rowid) from int_events__validated "
                "where row_id in (select row_id from int_events__validated group by row_id having count(*) > 1))"
            )
        done = shop.run("nightly")
        assert done.success, failures(done)
        assert current(shop.where) != before
        look(shop)
        assert "recovered" in got[-1] and "nightly" in got[-1]
    metadata = {
        event.asset_key.to_user_string(): event.materialization.metadata
        for event in done.get_asset_materialization_events()
    }
    assert "shop_web" in metadata["upkeep/report"]["report"].value and metadata["upkeep/lake"]["files_before"].value > 0
    assert all(mart in published_rows(shop.where) for mart in published_marts(shop))


@pytest.mark.soak
def test_a_day_that_is_built_again_is_unchanged(shop: Shop) -> None:
    """The day is built first on time, then again after late rows of that day have arrived, in one run over two days."""
    if current(shop.where) is None:
        publish(shop.where)
    features_of([DAY])
    first = features(shop.where, DAY)
    assert first["user_features"] and first["item_features"]
    segments = pd.read_parquet(shop.where.published / "history" / f"day={DAY}" / "user_features.parquet").rfm_segment
    assert segments.dtype == "category"
    deliver(shop, "late.csv", [("m4", f"{DAY}T09:00:00Z", "2025-04-08T13:00:00Z")])
    assert shop.run("connectors").success
    before = current(shop.where)
    yesterday = DAY - timedelta(days=1)
    done = shop.run(
        "history",
        tags={
            "dagster/asset_partition_range_start": yesterday.isoformat(),
            "dagster/asset_partition_range_end": DAY.isoformat(),
        },
    )
    assert done.success, failures(done)
    assert features(shop.where, DAY) == first
    # The day before differs, and only the history was changed.
    assert features(shop.where, yesterday) != first and features(shop.where, yesterday)["user_features"]
    assert current(shop.where) == before
    # The expected count: views that had arrived by the end of the day.
    end_of_day = f"timestamp '{DAY + timedelta(days=1)}'"
    with duckdb.connect(str(shop.where.published / "finegrain.duckdb"), read_only=True) as con:
        [(views,)] = con.execute(
            f"select count(*) from fct_events where event_type = 'view_item' and customer_id is not null "
            f"and event_at < {end_of_day} and available_at <= {end_of_day}"
        ).fetchall()
        folder = shop.where.published / "history" / f"day={DAY}"
        [(summed,)] = con.execute(
            f"select sum(views_lifetime)::bigint from '{folder}/user_features.parquet'"
        ).fetchall()
    assert summed == views > 0


def features(where: Settings, day: date) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of each mart of a day."""
    folder = where.published / "history" / f"day={day}"
    with duckdb.connect() as con:
        return {
            path.stem: sorted(con.execute(f"select * from '{path}'").fetchall(), key=repr)
            for path in sorted(folder.glob("*.parquet"))
        }


# The page.

#: The folder for screenshots of the docs, if set.
SCREENSHOTS = os.environ.get("FINEGRAIN_SCREENSHOTS")


def chromium() -> str:
    """The browser's path; without it the test is skipped, or fails in CI."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        said = "no Chromium on this machine (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    return found


@contextlib.contextmanager
def page_of(shop: Shop) -> Iterator[str]:
    """Run `finegrain dagster` as a user does. Yields the address of its page."""
    port = free_ports(1)[0]
    log = shop.where.home / "dagster.log"
    command = [str(Path(sys.executable).with_name("finegrain")), "dagster", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env={**os.environ, "FINEGRAIN_AUTOMATION": "off"}, stdout=out, stderr=out, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:

        def answers() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/server_info", timeout=5) as answer:
                return bool(answer.status == 200)
            return False

        wait_for(answers, process)
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) is not None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.long
def test_the_page_shows_the_graph_and_a_click_materializes(shop: Shop) -> None:
    browser_program = chromium()
    groups = {str(shop.asset_graph().get(key).group_name) for key in shop.asset_graph().get_all_asset_keys()}
    assert len(groups) > 15
    outer = {group.split("/")[0] for group in groups}
    with page_of(shop) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(60_000)

        page.goto(f"{address}/asset-groups")
        for group in sorted(outer):
            page.get_by_text(group, exact=True).first.wait_for()
        page.wait_for_timeout(2000)  # the graph is laid out
        picture(page, "dagster-graph")

        page.goto(f"{address}/assets/connectors/shop_web")
        with dg.DagsterInstance.get() as instance:
            before = {run.run_id for run in instance.get_runs()}
            page.get_by_role("button", name="Materialize", exact=False).first.click()

            def ended() -> bool:
                runs = [run for run in instance.get_runs() if run.run_id not in before]
                return bool(runs) and runs[0].is_finished

            deadline = time.monotonic() + 120
            while not ended():
                assert time.monotonic() < deadline
                page.wait_for_timeout(500)
            [run] = [run for run in instance.get_runs() if run.run_id not in before]
            assert run.status is dg.DagsterRunStatus.SUCCESS
        page.goto(f"{address}/runs/{run.run_id}")
        page.get_by_text("Success", exact=True).first.wait_for()
        page.get_by_text("connectors__shop_web").first.wait_for()
        page.get_by_text("Finished execution of run", exact=False).first.wait_for()
        picture(page, "dagster-run")

        page.goto(f"{address}/assets/marts/user_features")
        for text in ("personalization", "customer_id", "The moment of which the features are true, UTC."):
            page.get_by_text(text, exact=False).first.wait_for()
        picture(page, "dagster-asset")
        page.goto(f"{address}/assets/int_events__validated?view=checks")
        page.get_by_text("row_id_is_unique", exact=False).first.click()
        page.get_by_text("Fails if two rows", exact=False).first.wait_for()
        picture(page, "dagster-checks")
        page.goto(f"{address}/assets/upkeep/builds?view=events")
        page.locator("text='seconds_of_checks' >> visible=true").first.wait_for()
        picture(page, "dagster-builds")
        browser.close()


def picture(page: Page, name: str) -> None:
    """A screenshot for the docs."""
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


# Dagster's settings, and errors before it starts.


def test_runs_and_events_go_to_postgresql_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORAGE, "postgresql://dagster:secret@db:5432/dagster")
    write_settings(tmp_path)
    text = (tmp_path / "dagster.yaml").read_text()
    assert yaml.safe_load(text)["storage"] == {"postgres": {"postgres_url": {"env": STORAGE}}} and "secret" not in text
    monkeypatch.setenv(STORAGE, "mysql://dagster:secret@db/dagster")
    with pytest.raises(FinegrainError, match=f"{STORAGE} is not a PostgreSQL address") as refused:
        write_settings(tmp_path)
    assert "secret" not in str(refused.value)


def test_postgresql_holds_the_runs(
    postgres: Any, postgres_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on the real server, found again by another instance."""
    access = postgres.environment()
    who = f"{access['PGUSER']}:{access['PGPASSWORD']}"
    monkeypatch.setenv(STORAGE, f"postgresql://{who}@127.0.0.1:{postgres.port}/{postgres_database}")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    write_settings(tmp_path)

    @dg.op
    def one() -> int:
        return 1

    @dg.job
    def counts() -> None:
        one()

    with dg.DagsterInstance.get() as instance:
        assert counts.execute_in_process(instance=instance).success
    with dg.DagsterInstance.get() as instance:
        [run] = instance.get_runs()
        assert run.status is dg.DagsterRunStatus.SUCCESS and "PostgresRunStorage" in type(instance.run_storage).__name__
    assert not list(tmp_path.rglob("*.db"))


def test_servers_bind_to_loopback_by_default() -> None:
    from orchestration.cli.commands import run_dagster

    assert inspect.signature(run_dagster).parameters["host"].default == "127.0.0.1"
    for part in ("dev", "webserver"):
        arguments = command(part, "127.0.0.1", 3000)
        assert arguments[arguments.index("-h") + 1] == "127.0.0.1"
        assert arguments[2:5] == ["-m", "orchestration.dagster.page", part]  # the guard (tests/test_dagster_page.py)
    assert command("daemon", "127.0.0.1", 3000)[1] == "run"


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--shop", "nowhere.yml"], {}, "nowhere.yml"),
        (["--shop", "SHOP"], {STORAGE: "sqlite:///x"}, f"{STORAGE} is not a PostgreSQL address"),
        (["--shop", "SHOP"], {"FINEGRAIN_ALERTS": "nowhere.yml"}, "nowhere.yml"),
        (["--shop", "BROKEN"], {}, "tabels"),
    ],
)
def test_errors_are_reported_before_anything_starts(
    home: Settings, tmp_path: Path, arguments: list[str], environment: dict[str, str], says: str
) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text("source: shop\ntabels: {}\n")
    places = {"SHOP": str(PROJECT / "examples" / "ga4_export.yml"), "BROKEN": str(broken)}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("finegrain")), "dagster", *(places.get(each, each) for each in arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


def test_two_mapping_files_of_one_source_are_two_connectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(MORE))
    monkeypatch.setenv("FINEGRAIN_SHOP", str(tmp_path))
    assert [each.name for each in connections()] == ["more_one", "more_two"]
    assert [each.kinds for each in connections()] == [{"csv", "kafka"}] * 2


def test_text_from_a_mapping_is_not_read_as_markdown() -> None:
    from orchestration.dagster.assets import _page

    text = str(_page(["column '![x](http://127.0.0.1/beacon)' is new", "`\n```\n<b>\x1b[31m"]).value)
    lines = text.splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("```text", "```", 4) and all(
        line.startswith("- ") for line in lines[1:-1]
    )
    assert lines[2] == r"- `\n```\n<b>\x1b[31m"
