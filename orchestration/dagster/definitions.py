"""The code location: `dagster dev -m orchestration.dagster.definitions`, or `finegrain dagster`."""

from __future__ import annotations

from typing import Any, Final

import dagster as dg

from orchestration.config.settings import Environment, private
from orchestration.dagster import assets
from orchestration.dagster.automation import ASK_TOO, lake_sensor
from orchestration.dagster.project import (
    BuildConfig,
    Translator,
    build_assets,
    dbt_project,
    dbt_resource,
    manifest_of,
)
from orchestration.dagster.shop import connections
from orchestration.dagster.watch import watch_sensor
from orchestration.errors import FinegrainError
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.quality.alerts import read_rules


def definitions() -> dg.Definitions:
    """Everything, as the environment says. Raises FinegrainError."""
    private()  # where Dagster is started by hand
    given = Environment.read()
    schedules = dg.DefaultScheduleStatus.RUNNING if given.automation else dg.DefaultScheduleStatus.STOPPED
    sensors = dg.DefaultSensorStatus.RUNNING if given.automation else dg.DefaultSensorStatus.STOPPED
    shop, rules, project, translator = connections(), read_rules(), dbt_project(), Translator()
    manifest = manifest_of(project)
    dbt = build_assets(manifest, project, translator)
    tables = assets.lake_tables(manifest, project, translator, shop, rules)
    published = assets.published(manifest, project, translator, rules)
    connectors = [assets.connector(each) for each in shop if each.pulled]
    features = sorted(key for key in dbt.keys if key.path[0] == "marts" and key.path[-1].endswith("_features"))
    history = assets.history(features, given.history_start.isoformat())

    # Tests of sources are dbt's, too, though the sources are not.
    source_tests = dg.AssetSelection.checks(*(key for key in dbt.check_keys if key.asset_key not in dbt.keys))
    everything = dg.AssetSelection.assets(dbt) | source_tests
    store = dg.AssetSelection.assets(assets.FEATURE_STORE).without_checks()
    publish = dg.AssetSelection.assets(published) | store
    upkeep = dg.AssetSelection.assets(assets.lake_upkeep, assets.report)
    build = _job("build", everything | publish, "Build what has arrived, audit it, publish it.")
    nightly = _job(
        "nightly",
        everything | publish | upkeep | dg.AssetSelection.checks(assets.parity_check),
        "Upkeep of the lake; fits, models and snapshots; every test of all rows; publish; report.",
        config={"ops": {"dbt_build": {"config": BuildConfig(full_audit=True).model_dump()}}},
    )
    by_day = _job(
        "history",
        dg.AssetSelection.assets(history),
        "The features as of the end of a day.",
        partitions=history.partitions_def,
    )
    products = dg.AssetSelection.assets(
        *(["marts", name] for name in assets.ITEMS)
    ).upstream() & dg.AssetSelection.assets(dbt)
    items = _job(
        "items",
        products | source_tests | dg.AssetSelection.assets(*(["published", name] for name in assets.ITEMS)) | store,
        "The marts of products, and what these are made of, on a beat of their own.",
    )
    jobs = [build, nightly, items, by_day]
    timetable = [
        dg.ScheduleDefinition(job=nightly, cron_schedule="15 2 * * *", default_status=schedules),
        dg.ScheduleDefinition(job=items, cron_schedule="5,35 * * * *", default_status=schedules),
        dg.build_schedule_from_partitioned_job(by_day, hour_of_day=3, minute_of_hour=15, default_status=schedules),
    ]
    if connectors:
        # Each is a process of its own, so that a database that does not answer holds up no other.
        ingest = dg.define_asset_job(
            "connectors",
            dg.AssetSelection.assets(*connectors),
            description="Bring in what is new of databases, APIs and files.",
            executor_def=dg.multiprocess_executor.configured({"max_concurrent": 4}),
            tags=_TAGS,
        )
        jobs.append(ingest)
        timetable.append(dg.ScheduleDefinition(job=ingest, cron_schedule="0 * * * *", default_status=schedules))
    return dg.Definitions(
        assets=[
            *assets.systems(shop),
            *assets.loaders(shop),
            *connectors,
            *tables,
            dbt,
            published,
            *assets.consumers(manifest),
            assets.lake_upkeep,
            assets.report,
            assets.builds(),
            history,
        ],
        asset_checks=[assets.parity_check],
        jobs=jobs,
        schedules=timetable,
        sensors=[
            lake_sensor(build, frozenset(RAW_TABLES) | ASK_TOO | {"loads"}, sensors),
            watch_sensor(rules, shop, sensors),
        ],
        resources={"dbt": dbt_resource(project)},
        # dbt is a process of its own already.
        executor=dg.in_process_executor,
    )


_TAGS: Final = {"finegrain": "yes"}


def _job(
    name: str,
    selection: dg.AssetSelection,
    description: str,
    config: dict[str, Any] | None = None,
    partitions: dg.PartitionsDefinition[str] | None = None,
) -> Any:
    return dg.define_asset_job(
        name, selection, description=description, config=config, partitions_def=partitions, tags=_TAGS
    )


try:
    defs = definitions()
except FinegrainError as error:
    # Dagster's page shows it in place of the assets.
    raise dg.DagsterInvalidDefinitionError(str(error)) from None
