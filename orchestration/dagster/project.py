"""The dbt project as Dagster assets: every seed, model and snapshot is an asset, every data test an asset check."""

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg
import duckdb
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, DbtCliResource, DbtProject, dbt_assets

from orchestration.config import packages
from orchestration.config.project import PROJECT
from orchestration.config.settings import Settings, settings
from orchestration.dagster.checks import with_readable_checks
from orchestration.dagster.groups import group_of
from orchestration.dagster.home import dagster_home
from orchestration.dagster.times import report, with_seconds
from orchestration.errors import FinegrainError
from orchestration.quality.alerts import DATA_ENGINEERING, MASK, mask, scrub
from orchestration.sql.text import identifier
from orchestration.warehouse import warehouse
from orchestration.warehouse.build import arguments, audit, environment, first_rows
from orchestration.warehouse.fingerprints import of_files

#: One op at a time of all that writes the warehouse, or reads it whole while nobody may write (dagster.yaml).
POOL: Final = "warehouse"
#: dbt may meet who looks into the warehouse for long, or a lake that is out of reach: then it is tried again. What failed its
#: audit is not, since the rows are the same.
RETRY: Final = dg.RetryPolicy(max_retries=2, delay=30, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
#: The asset that shows how long builds took. It belongs to no job: each run of `dbt_build` reports it.
BUILDS: Final = dg.AssetKey(["upkeep", "builds"])


class Translator(DagsterDbtTranslator):
    """Groups by folder, owners as teams, and how dbt makes each: as a view, a table and so on. Everything else is as dagster-dbt has it."""

    def __init__(self) -> None:
        super().__init__(DagsterDbtTranslatorSettings(enable_source_tests_as_checks=True))

    def get_asset_spec(self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None) -> dg.AssetSpec:
        spec = super().get_asset_spec(manifest, unique_id, project)
        made = self.get_resource_props(manifest, unique_id).get("config", {}).get("materialized")
        return spec.merge_attributes(kinds={str(made)}) if made else spec

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        return group_of(dbt_resource_props)

    def get_owners(self, dbt_resource_props: Mapping[str, Any]) -> Sequence[str] | None:
        return [f"team:{owner_of(dbt_resource_props)}"]


def owner_of(node: Mapping[str, Any]) -> str:
    """Who owns a dbt node, as its `meta` says."""
    return str({**node.get("meta", {}), **node.get("config", {}).get("meta", {})}.get("owner", DATA_ENGINEERING))


def dbt_project() -> DbtProject:
    """The project with its manifest, parsed again when a file of it has changed. Raises FinegrainError."""
    packages.ensure()
    target = dagster_home() / "dbt"
    project = DbtProject(project_dir=PROJECT, profiles_dir=PROJECT, target_path=target)
    mark, fingerprint = target / "parsed", of_files(PROJECT)
    if not project.manifest_path.exists() or not mark.exists() or mark.read_text() != fingerprint:
        with environment(settings()):
            done = DbtCliResource(project_dir=project, dbt_executable=_dbt()).cli(
                ["parse", "--quiet"], target_path=target, raise_on_error=False
            )
            if not done.wait().is_successful():
                raise FinegrainError(f"{PROJECT}: dbt cannot read the project: {_last_words(done.get_error())}")
        mark.write_text(fingerprint)
    return project


def manifest_of(project: DbtProject) -> dict[str, Any]:
    """dbt's manifest, with readable names of tests."""
    manifest: dict[str, Any] = json.loads(project.manifest_path.read_text("utf-8"))
    return with_readable_checks(manifest)


def _dbt() -> str:
    return str(Path(sys.executable).with_name("dbt"))


def dbt_resource(project: DbtProject) -> DbtCliResource:
    """dbt as a command, in a process of its own."""
    return DbtCliResource(project_dir=project, dbt_executable=_dbt())


@contextlib.contextmanager
def clear() -> Iterator[None]:
    """Turn FinegrainError into a failed step with its message and no stack trace."""
    try:
        yield
    except FinegrainError as error:
        raise dg.Failure(scrub(str(error))) from None


class BuildConfig(dg.Config):
    """How a run builds: `full_refresh` from scratch; `full_audit` with every test of all rows."""

    full_refresh: bool = False
    full_audit: bool = False


def build_assets(manifest: Mapping[str, Any], project: DbtProject, translator: Translator) -> dg.AssetsDefinition:
    """The seeds, models and snapshots, and their tests; unit tests prove the SQL, not the data, and are left to CI."""

    @dbt_assets(
        manifest=manifest,
        project=project,
        dagster_dbt_translator=translator,
        name="dbt_build",
        pool=POOL,
        retry_policy=RETRY,
    )
    def dbt_build(context: dg.AssetExecutionContext, dbt: DbtCliResource, config: BuildConfig) -> Iterator[Any]:
        where = settings()
        # Of a build of some assets, a test that compares with another waits for a build of both.
        with environment(where, DBT_INDIRECT_SELECTION="buildable", **audit(config.full_audit)):
            yield from _run(context, dbt, where, config)

    return dbt_build


def _run(context: dg.AssetExecutionContext, dbt: DbtCliResource, where: Settings, config: BuildConfig) -> Iterator[Any]:
    with clear():
        asked = arguments(where, full_refresh=config.full_refresh)
    # Not where the manifest is, which others read while dbt writes its own.
    target = dagster_home() / "dbt" / "run"
    begun = time.monotonic()
    done = dbt.cli(asked, context=context, target_path=target, raise_on_error=False)
    # dbt lets nobody else into the warehouse while it runs, so what the tables hold is reported when it has ended.
    try:
        events = list(done.stream())
    except dg.DagsterExecutionInterruptedError:
        # Dagster would try it again; dbt has ended by now.
        raise dg.Failure("the run was stopped", allow_retries=False) from None
    passed, seconds = done.is_successful(), time.monotonic() - begun
    manifest = json.loads((target / "manifest.json").read_text("utf-8")) if events else {"nodes": {}, "sources": {}}
    nodes = with_readable_checks(manifest)["nodes"]
    failed = sorted({_named(nodes[_unique_id(event)]) for event in events if _is_failed_test(event)})
    with _warehouse(where) as con:
        events = [_completed(with_seconds(event), con, nodes) for event in events]
    yield from events
    if events:
        line, times = report(seconds, events, {key: node["name"] for key, node in nodes.items()})
        context.log.info(line)
        context.log_event(times)
    if failed:
        raise dg.Failure(
            f"the audit failed, and the published marts are unchanged: {', '.join(failed)}", allow_retries=False
        )
    if not passed:
        raise dg.Failure(scrub(_last_words(done.get_error())))


def _last_words(error: Exception | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("The dbt CLI process", "`", "failed with exit code"))]
    # What stands in quotes may be a value, and somebody's name.
    return "dbt: " + re.sub("'[^']*'", f"'{MASK}'", " ".join(said[:6]))


def _unique_id(event: Any) -> str:
    return str(event.metadata["unique_id"].text)


def _named(test: Mapping[str, Any]) -> str:
    """As Dagster's page calls a test, and as dbt does."""
    readable, name = str(test["name"]), str(test["fqn"][-1])
    return name if readable == name else f"{readable} ({name})"


def _is_failed_test(event: Any) -> bool:
    """Of a check, or of a test that was asked beside those that Dagster had asked for."""
    if isinstance(event, dg.AssetObservation):
        return "status" in event.metadata and event.metadata["status"].value == "fail"
    return getattr(event, "passed", True) is False


@contextlib.contextmanager
def _warehouse(where: Settings) -> Iterator[duckdb.DuckDBPyConnection | None]:
    """The warehouse as it now is; None if another got into it first, or dbt made none."""
    with duckdb.connect() as con:
        try:
            warehouse.attach(con, where.warehouse)
        except FinegrainError:
            yield None
        else:
            yield con


def _completed(event: Any, con: duckdb.DuckDBPyConnection | None, nodes: Mapping[str, Any]) -> Any:
    """The event with what only the warehouse knows: of a table its rows and columns, of a failed test the first rows that failed."""
    if con is None or "unique_id" not in (event.metadata or {}):
        return event
    node = nodes[_unique_id(event)]
    table = f"{identifier(node['schema'])}.{identifier(node['alias'])}"
    metadata: dict[str, Any] = {}
    with contextlib.suppress(
        duckdb.CatalogException
    ):  # a test that does not keep its rows, or a model that was dropped since
        if isinstance(event, dg.AssetCheckResult):
            if not event.passed:
                metadata = {
                    "sample": dg.JsonMetadataValue([mask(row) for row in first_rows(con, table)]),
                    "kept_in": table,
                }
        elif isinstance(event, dg.Output):
            metadata = {"dagster/column_schema": _columns(con, node)}
            if node["config"]["materialized"] != "view":  # a view's would have to be worked out
                [(rows,)] = con.execute(f"select count(*) from warehouse.{table}").fetchall()
                metadata["dagster/row_count"] = rows
    if not metadata:
        return event
    if isinstance(event, dg.Output):
        return event.with_metadata({**event.metadata, **metadata})
    return event._replace(metadata={**event.metadata, **metadata})


def _columns(con: duckdb.DuckDBPyConnection, node: Mapping[str, Any]) -> dg.TableSchema:
    found = con.execute(
        "select column_name, data_type, comment, is_nullable from duckdb_columns() where database_name = 'warehouse' "
        "and schema_name = ? and table_name = ? order by column_index",
        [node["schema"], node["alias"]],
    ).fetchall()
    return dg.TableSchema(
        [
            dg.TableColumn(name, kind, description, constraints=dg.TableColumnConstraints(nullable=nullable))
            for name, kind, description, nullable in found
        ]
    )
