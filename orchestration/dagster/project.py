"""The dbt project as Dagster assets: every seed, model and snapshot is an asset, every data test an asset check."""

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg
import duckdb
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, DbtCliResource, DbtProject, dbt_assets

from orchestration import __version__
from orchestration.config import packages
from orchestration.config.project import PROJECT, roots
from orchestration.config.settings import Settings, settings
from orchestration.dagster.home import dagster_home
from orchestration.errors import FinegrainError
from orchestration.quality.alerts import DATA_ENGINEERING, MASK, mask, scrub
from orchestration.sql.text import identifier
from orchestration.warehouse import warehouse
from orchestration.warehouse.build import arguments, audit, environment, first_rows

#: One op at a time of all that writes the warehouse, or reads it whole while nobody may write (dagster.yaml).
POOL: Final = "warehouse"
#: dbt may meet who looks into the warehouse for long, or a lake that is out of reach: then it is tried again. What failed its
#: audit is not, since the rows are the same.
RETRY: Final = dg.RetryPolicy(max_retries=2, delay=30, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
#: The folders whose change makes another manifest.
_SOURCES: Final = ("models", "seeds", "macros", "tests/singular", "tests/generic", "snapshots")


class Translator(DagsterDbtTranslator):
    """Groups by layer, owners as teams. Everything else is as dagster-dbt has it."""

    def __init__(self) -> None:
        super().__init__(DagsterDbtTranslatorSettings(enable_source_tests_as_checks=True))

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        kind = str(dbt_resource_props["resource_type"])
        if kind == "source":
            return str(dbt_resource_props["source_name"])
        if kind in ("seed", "snapshot"):
            return f"{kind}s"
        return "_".join(dbt_resource_props["fqn"][1:-1])

    def get_owners(self, dbt_resource_props: Mapping[str, Any]) -> Sequence[str] | None:
        return [f"team:{owner_of(dbt_resource_props)}"]


def owner_of(node: Mapping[str, Any]) -> str:
    """Who owns a dbt node, as its `meta` says."""
    return str({**node.get("meta", {}), **node.get("config", {}).get("meta", {})}.get("owner", DATA_ENGINEERING))


def _fingerprint() -> str:
    """Of all that dbt parses; times of files tell nothing, of an older image or a copy."""
    digest = hashlib.sha256(__version__.encode())
    for root in roots():
        names = ("dbt_project.yml", "profiles.yml", "packages.yml", "dependencies.yml", "requirements-dagster.lock")
        files = [root / name for name in names if (root / name).is_file()]
        for folder in _SOURCES:
            files += [file for file in (root / folder).rglob("*") if file.suffix in (".sql", ".yml", ".csv", ".md")]
        for file in sorted(files):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def dbt_project() -> DbtProject:
    """The project with its manifest, parsed again when a file of it has changed. Raises FinegrainError."""
    packages.ensure()
    target = dagster_home() / "dbt"
    project = DbtProject(project_dir=PROJECT, profiles_dir=PROJECT, target_path=target)
    mark, fingerprint = target / "parsed", _fingerprint()
    if not project.manifest_path.exists() or not mark.exists() or mark.read_text() != fingerprint:
        with environment(settings()):
            done = DbtCliResource(project_dir=project, dbt_executable=_dbt()).cli(
                ["parse", "--quiet"], target_path=target, raise_on_error=False
            )
            if not done.wait().is_successful():
                raise FinegrainError(f"{PROJECT}: dbt cannot read the project: {_last_words(done.get_error())}")
        mark.write_text(fingerprint)
    return project


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


def build_assets(project: DbtProject, translator: Translator) -> dg.AssetsDefinition:
    """The seeds, models and snapshots, and their tests; unit tests prove the SQL, not the data, and are left to CI."""

    @dbt_assets(
        manifest=project.manifest_path,
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
    done = dbt.cli(asked, context=context, target_path=target, raise_on_error=False)
    # dbt lets nobody else into the warehouse while it runs, so what the tables hold is reported when it has ended.
    try:
        events = list(done.stream())
    except dg.DagsterExecutionInterruptedError:
        # Dagster would try it again; dbt has ended by now.
        raise dg.Failure("the run was stopped", allow_retries=False) from None
    passed = done.is_successful()
    nodes = json.loads((target / "manifest.json").read_text("utf-8"))["nodes"] if events else {}
    failed = sorted({nodes[_unique_id(event)]["name"] for event in events if _is_failed_test(event)})
    with _warehouse(where) as con:
        for event in events:
            yield _completed(event, con, nodes)
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
