"""The assets around dbt's: sources, the lake, published marts, their readers, and maintenance."""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import dagster as dg
from dagster_dbt import DbtProject

from orchestration.dagster.groups import group, group_of
from orchestration.dagster.page import REPORT, base
from orchestration.dagster.project import POOL, RETRY, Translator, clear
from orchestration.dagster.shop import Connection, data
from orchestration.dagster.times import BUILDS
from orchestration.errors import console
from orchestration.features.history import features_of
from orchestration.ingest.ingest import IngestReport, ingest
from orchestration.live.parity import parity
from orchestration.quality.account import account
from orchestration.quality.alerts import DATA_ENGINEERING, Rules, scrub
from orchestration.report.page import publish_page
from orchestration.store.materialize import is_wanted, materialize
from orchestration.warehouse.lineage import Lineage, lineage
from orchestration.warehouse.maintain import maintain
from orchestration.warehouse.publish import publish

LAKE: Final = "lake"
#: The group of what is no step of the way from the sources to the consumers; it comes last.
UPKEEP: Final = "upkeep"
#: Marts of products, which are made on a beat of their own.
ITEMS: Final = ("item_features", "category_features", "item_pair_features")
#: The consumer that runs of Dagster fill.
FEATURE_STORE: Final = dg.AssetKey(["consumers", "feature_store"])
_TEAM: Final = [f"team:{DATA_ENGINEERING}"]


def systems(shop: Sequence[Connection]) -> list[dg.AssetSpec]:
    """The shop's own systems, which Dagster does not control."""
    return [
        dg.AssetSpec(
            ["systems", each.name],
            description=f"A system of the shop, as {each.path.name} maps it.",
            group_name=group("sources", "systems"),
            kinds=each.kinds,
            owners=_TEAM,
        )
        for each in shop
    ]


def loaders(shop: Sequence[Connection]) -> list[dg.AssetSpec]:
    """The stream loaders: separate services, which Dagster monitors but never starts."""
    return [
        dg.AssetSpec(
            loader_key(each, table),
            deps=[["systems", each.name]],
            description=f"`finegrain stream {each.path.name} {table}`: a service that runs outside. Its lag and state are shown here.",
            group_name=group("sources", "loaders"),
            kinds=set(kinds),
            owners=_TEAM,
        )
        for each in shop
        for table, kinds in each.streamed.items()
    ]


def loader_key(connection: Connection, table: str) -> dg.AssetKey:
    """The asset of a stream's loader."""
    return dg.AssetKey(["loaders", f"{connection.name}_{table}"])


def connector(connection: Connection) -> dg.AssetsDefinition:
    """Loads new rows of one system's tables, resources and files."""

    @dg.asset(
        key=["connectors", connection.name],
        deps=[["systems", connection.name]],
        group_name=group("sources", "connectors"),
        kinds={"python", *sorted(connection.kinds)[:2]},
        owners=_TEAM,
        op_tags={"finegrain/source": connection.name},
        retry_policy=RETRY,
        description=f"`finegrain ingest {connection.path.name}`: what is new lands in {', '.join(connection.pulled)}, each version once.",
    )
    def run(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        with clear():
            done = ingest(connection.path, data())
        for each in done.tables:
            context.log.info(f"{each.table} {console.shown(each.place)}: {each.read} rows read, {each.landed} landed")
        notes = [note for table in done.tables for note in table.notes]
        notes += [note for file in done.files for note in file.notes]
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": done.rows,
                "snapshot": done.snapshot,
                "seconds": round(done.seconds, 3),
                "landed": dg.JsonMetadataValue(_landed(done)),
                **({"notes": _page(notes)} if notes else {}),
            }
        )

    return run


def _page(notes: Sequence[str]) -> dg.MarkdownMetadataValue:
    """Notes as they are: names in them may be Markdown, with links and pictures."""
    return dg.MetadataValue.md("\n".join(["```text", *(f"- {console.shown(scrub(note))}" for note in notes), "```"]))


def _landed(done: IngestReport) -> dict[str, int]:
    landed: Counter[str] = Counter()
    for table in done.tables:
        landed[table.table] += table.landed
    for file in done.files:
        landed[file.table] += file.rows
    return dict(landed)


def lake_tables(
    manifest: Mapping[str, Any], project: DbtProject, translator: Translator, shop: Sequence[Connection], rules: Rules
) -> list[dg.AssetSpec]:
    """dbt's sources: the lake's tables, which connectors and loaders fill (the sensor `lake` reports arrivals), and what builds keep about
    themselves."""
    specs = []
    for unique_id, node in manifest["sources"].items():
        table, is_lake = node["name"], node["source_name"] == LAKE
        spec = translator.get_asset_spec(manifest, unique_id, project)
        filled = [["connectors", each.name] for each in shop if is_lake and table in each.pulled]
        filled += [list(loader_key(each, table).path) for each in shop if is_lake and table in each.streamed]
        specs.append(
            dg.AssetSpec(
                spec.key,
                deps=filled,
                description=node["description"],
                metadata=spec.metadata,
                group_name=group_of(node),
                kinds={"ducklake", "parquet"} if is_lake else {"duckdb"},
                owners=_TEAM,
                freshness_policy=_within(rules.freshness.lake.get(table)) if filled else None,
            )
        )
    return specs


def _within(hours: float | None) -> dg.FreshnessPolicy | None:
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours)) if hours else None


def published(
    manifest: Mapping[str, Any], project: DbtProject, translator: Translator, rules: Rules
) -> dg.AssetsDefinition:
    """The published marts: all are replaced in one step, and only after every test has passed."""
    marts = {
        node["name"]: (translator.get_asset_spec(manifest, unique_id, project), node)
        for unique_id, node in manifest["nodes"].items()
        if node["resource_type"] == "model" and node["fqn"][1] == "marts"
    }

    @dg.multi_asset(
        name="publish",
        specs=[
            dg.AssetSpec(
                ["published", name],
                deps=[spec.key],
                description=node["description"],
                group_name=group("published"),
                kinds={"duckdb", "parquet"},
                owners=translator.get_owners(node),
                freshness_policy=_within(rules.freshness.published),
                skippable=True,  # a build of some marts renews those alone
            )
            for name, (spec, node) in sorted(marts.items())
        ],
        can_subset=True,
        pool=POOL,
        retry_policy=RETRY,
    )
    def run(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        with clear():
            done = publish(renewed_within=rules.freshness.published)
            note = publish_page()
            traced = lineage()
        if note:
            context.log.warning(note)
        asked = {key.path[-1] for key in context.selected_asset_keys}
        for name in sorted(asked.intersection(done.renewed)):
            rows, columns = done.marts[name]
            yield dg.MaterializeResult(
                asset_key=["published", name],
                metadata={
                    "dagster/row_count": rows,
                    "columns": columns,
                    "built_from": done.built_from,
                    **({"as_of": str(done.as_of)} if done.as_of else {}),
                    "seconds": round(done.seconds, 3),
                    "folder": dg.MetadataValue.path(str(done.folder)),
                    "is_new": done.is_new,
                    **({} if note else {"report": dg.MetadataValue.url(f"{base()}{REPORT}")}),
                    **_column_lineage(traced.get(name)),
                },
            )

    return run


def _column_lineage(traced: Lineage | None) -> dict[str, Any]:
    """The raw fields that the values of each column come from, for Dagster's page."""
    if traced is None or traced.columns is None:
        return {}
    deps = {}
    for column, origin in traced.columns.items():
        fields = {tuple(field.split(".")[:2]) for field in origin.values}  # a struct as a whole
        deps[column] = [dg.TableColumnDep(dg.AssetKey([LAKE, table]), name) for table, name in sorted(fields)]
    return {"dagster/column_lineage": dg.TableColumnLineage(deps)}


def consumers(manifest: Mapping[str, Any]) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """The readers of the published marts: dbt's exposures. The feature store is filled by runs that publish; all others only read."""
    specs = [
        dg.AssetSpec(
            ["consumers", node["name"]],
            deps=[["published", manifest["nodes"][name]["name"]] for name in node["depends_on"]["nodes"]],
            description=node["description"],
            group_name=group("consumers"),
            kinds={
                {"dashboard": "dashboard", "ml": "machinelearning", "application": "feast"}.get(
                    node["type"], node["type"]
                )
            },
            owners=[f"team:{node['owner']['name']}"],
        )
        for node in manifest["exposures"].values()
    ]
    return [_feature_store(spec) if spec.key == FEATURE_STORE else spec for spec in specs]


def _feature_store(spec: dg.AssetSpec) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name="store",
        specs=[
            spec.replace_attributes(skippable=True, description=f"{spec.description} `finegrain store materialize`.")
        ],
        retry_policy=RETRY,
    )
    def run(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        if not is_wanted():
            context.log.info(
                "no online store is set or applied (docs/how-to/serve-features.md), so there is nothing to fill"
            )
            return
        with clear():
            done = materialize()
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": sum(mart.written for mart in done.marts.values()),
                "built_from": done.built_from,
                "unchanged": dg.JsonMetadataValue(done.unchanged),
                "seconds": round(done.seconds, 3),
            }
        )

    return run


@dg.asset_check(
    asset=FEATURE_STORE,
    name="parity",
    description="`finegrain parity`: a sample of the store's vectors beside the same features from the warehouse, as of each vector's moment.",
    pool=POOL,
)
def parity_check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Passes, and says so, where there is no store."""
    if not is_wanted():
        return dg.AssetCheckResult(passed=True, description="there is no online store")
    with clear():
        found = parity()
    metadata = {
        f"{mart}_{name}": dg.MetadataValue.int(getattr(each, name))
        for mart, each in found.marts.items()
        for name in ("compared", "different", "missing", "extra", "later")
    }
    examples = [example for each in found.marts.values() for example in each.examples]
    return dg.AssetCheckResult(
        passed=found.is_equal, metadata={**metadata, "examples": dg.MetadataValue.json(examples)}
    )


@dg.asset(
    key=["upkeep", "lake"],
    group_name=UPKEEP,
    kinds={"ducklake"},
    owners=_TEAM,
    description="`finegrain lake maintain`: merges small files, expires old snapshots and removes unreferenced files.",
)
def lake_upkeep(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
    """Runs beside loaders and builds."""
    with clear():
        done = maintain()
    for note in done.notes:
        context.log.warning(note)
    return dg.MaterializeResult(metadata=done.as_dict())


@dg.asset(
    key=["upkeep", "report"],
    deps=[["published", "event_ledger"]],
    group_name=UPKEEP,
    kinds={"python"},
    owners=_TEAM,
    description="`finegrain report`: what was loaded, what became of it, and what the marts contain.",
)
def report() -> dg.MaterializeResult[Any]:
    """Counts of rows only; the sample of customers that the command shows stays out of Dagster."""
    with clear():
        report = account()
    page = console.plain(io.StringIO(), width=110)
    replace(report, sample=[]).show(page)
    text = page.file.getvalue()  # type: ignore[attr-defined] # it is the StringIO from above
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.md(f"```\n{text}\n```"),
            "page": dg.MetadataValue.url(f"{base()}{REPORT}"),
            "built_from": report.built_from,
            "as_of": report.as_of,
            "dead_letters": sum(report.dead_letters.values()),
        }
    )


def builds() -> dg.AssetSpec:
    """Each run that builds reports to it (times.py)."""
    return dg.AssetSpec(
        BUILDS,
        description="How long each build took, by model: `seconds` as a chart, and a table of each build's models.",
        group_name=UPKEEP,
        kinds={"dbt"},
        owners=_TEAM,
    )


def history(marts: Sequence[dg.AssetKey], start: str) -> dg.AssetsDefinition:
    """The feature marts as of each day's end, from `start` (ISO date) on."""

    @dg.asset(
        key=["history", "features"],
        deps=marts,
        partitions_def=dg.DailyPartitionsDefinition(start_date=start),
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=group("published"),
        kinds={"duckdb", "parquet"},
        owners=["team:personalization"],
        pool=POOL,
        retry_policy=RETRY,
        description=(
            "The feature marts as of the end of a UTC day, as Parquet in `history/<day>/`: what they saw is what had arrived by then, "
            "so a day that is made again comes out as it was."
        ),
    )
    def run(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        window = context.partition_time_window
        first, end = window.start.date(), window.end.date()
        days = [first + timedelta(days=number) for number in range((end - first).days)]
        with clear():
            done = features_of(days)
        return dg.MaterializeResult(metadata={"days": len(days), "rows": dg.JsonMetadataValue(done)})

    return run
