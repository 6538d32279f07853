"""Collects current problems from Dagster, the lake, the published marts and the loaders; alerts.py sends them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import dagster as dg
import duckdb

from orchestration.config.published import published_report
from orchestration.config.settings import Environment, Settings, settings
from orchestration.dagster.assets import loader_key
from orchestration.dagster.page import REPORT, base
from orchestration.dagster.shop import Connection
from orchestration.errors import FinegrainError
from orchestration.lake import lake
from orchestration.quality import alerts
from orchestration.quality.account import anomalies, ledger, waiting_letters
from orchestration.quality.alerts import DATA_ENGINEERING, Loader, Problem, Rules
from orchestration.quality.streams import streams
from orchestration.warehouse.publish import published_at


def _report(part: str, mart: str, where: Settings) -> str:
    """A part of the published report; the page of a mart if this version has no report."""
    return f"{base()}{REPORT}#{part}" if published_report(where) else f"{base()}/assets/published/{mart}"


def failed_runs(instance: dg.DagsterInstance, jobs: Sequence[str]) -> list[Problem]:
    """The jobs whose last run that ended failed."""
    found = []
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    for job in jobs:
        [*last] = instance.get_runs(dg.RunsFilter(job_name=job, statuses=ended), limit=1)
        if last and last[0].status is dg.DagsterRunStatus.FAILURE:
            said = _said(instance, last[0].run_id)
            found.append(
                Problem(
                    kind="run",
                    subject=job,
                    owner=DATA_ENGINEERING,
                    text=f"The last run of the job {job} failed: {said}",
                    link=f"{base()}/runs/{last[0].run_id}",
                    state=said,
                )
            )
    return found


def _said(instance: dg.DagsterInstance, run_id: str) -> str:
    """The first failure of a run, in its own words."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1).records
    for record in records:
        event = record.event_log_entry.get_dagster_event()
        data = event.step_failure_data
        failure = data.user_failure_data
        text = failure.description if failure else data.error_display_string if data.error else None
        lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
        return f"{event.step_key}: {lines[-1] if failure is None and lines else ' '.join(lines[:4])}"
    return "it ended before any step did"


def failed_checks(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey], owners: Mapping[dg.AssetKey, str]
) -> list[Problem]:
    """The asset checks whose last execution failed, with a sample of the rows, masked."""
    found = []
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    for key, record in sorted(records.items()):
        evaluation = record.evaluation
        # While a run is under way, it is only planned.
        if not isinstance(evaluation, dg.AssetCheckEvaluation) or evaluation.passed:
            continue
        metadata: dict[str, Any] = {name: value.value for name, value in evaluation.metadata.items()}
        rows = metadata.get("dagster_dbt/failed_row_count")
        asset = key.asset_key.to_user_string()
        found.append(
            Problem(
                kind="check",
                subject=f"{asset}: {key.name}",
                owner=owners.get(key.asset_key, DATA_ENGINEERING),
                text=f"The check {key.name} of {asset} failed" + (f": {rows} rows" if rows else ""),
                link=f"{base()}/assets/{'/'.join(quote(part) for part in key.asset_key.path)}?view=checks",
                sample=tuple(metadata.get("sample") or ()),
                state=evaluation.severity.value,
            )
        )
    return found


def _lake(where: Settings) -> tuple[dict[str, datetime | None], dict[str, int]]:
    """(last arrival by raw table, waiting dead letters by rule)."""
    if not lake.exists(where):
        return {}, {}
    with lake.connect(where, read_only=True) as con:
        return {table: each.at for table, each in lake.arrived(con).items()}, waiting_letters(con)


def loaders() -> dict[str, Loader | None]:
    """Each loader that `FINEGRAIN_LOADERS` names; None of one that does not answer."""
    return {address: alerts.read_loader(address) for address in Environment.read().loaders}


def watch_sensor(rules: Rules, shop: Sequence[Connection], status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """Checks once a minute, and reports new, changed and resolved problems."""
    assets = {
        place.entry.stream.stream_id: loader_key(each, place.table)
        for each in shop
        for place in each.mapping.entries(each.path)
        if place.entry.stream is not None
    }

    @dg.sensor(
        name="watch",
        minimum_interval_seconds=60,
        default_status=status,
        description="Alerts: failed runs and checks, stale data, poor quality, anomalies of days and of streams, dead letters, lagging loaders (docs/how-to/alerts.md).",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        where = settings()
        now = datetime.now(UTC).replace(tzinfo=None)
        repository = context.repository_def
        assert repository is not None
        graph = repository.asset_graph
        owners = {key: _owner(graph.get(key).owners) for key in graph.get_all_asset_keys()}
        seen: dict[str, Loader | None] = {}

        def of_loaders() -> list[Problem]:
            seen.update(loaders())
            return alerts.lagging(seen, rules, f"{base()}/asset-groups")

        def of_lake() -> list[Problem]:
            arrivals, letters = _lake(where)
            arrivals = {table: at for table, at in arrivals.items() if table in rules.freshness.lake}
            return [
                *alerts.stale(arrivals, published_at(where), now, rules, f"{base()}/asset-groups"),
                *alerts.dead_letters(letters, rules, f"{base()}/assets/lake"),
            ]

        def of_streams() -> list[dict[str, Any]]:
            minutes = rules.streams.minutes
            return [] if minutes is None else streams(minutes, now, where).anomalies

        looks: dict[tuple[alerts.Kind, ...], Callable[[], list[Problem]]] = {
            ("run",): lambda: failed_runs(context.instance, sorted(repository.job_names)),
            ("check",): lambda: failed_checks(context.instance, sorted(graph.asset_check_keys), owners),
            ("freshness", "dead_letters"): of_lake,
            ("quality",): lambda: alerts.poor_quality(
                ledger(where) or {"raw_rows": 0}, rules, _report("rows", "event_ledger", where)
            ),
            ("anomaly",): lambda: alerts.anomalous(
                anomalies(rules.anomalies.days or 0, where), _report("trends", "metric_anomalies", where)
            ),
            ("stream",): lambda: alerts.anomalous(of_streams(), f"{base()}/assets/lake", "stream"),
            ("lag",): of_loaders,
        }
        problems: list[Problem] = []
        looked: list[alerts.Kind] = []
        for kinds, look in looks.items():
            try:
                problems += look()
                looked += kinds
            except (FinegrainError, duckdb.Error) as error:
                # What cannot be looked at is neither well nor ill.
                context.log.warning(f"could not look at {' and '.join(kinds)}: {alerts.scrub(str(error))}")
        outcome = alerts.notify(
            problems,
            looked=looked,
            rules=rules,
            channels=alerts.channels_from_environment(),
            now=now,
            where=where,
        )
        for each in outcome.undelivered:
            context.log.error(each)
        return dg.SensorResult(
            skip_reason=f"{len(problems)} problems; {outcome}",
            asset_events=[
                dg.AssetObservation(assets[loader.stream_id], metadata=_figures(loader))
                for loader in seen.values()
                if loader is not None and loader.stream_id in assets
            ],
        )

    return sensor


def _owner(owners: Sequence[str]) -> str:
    return owners[0].removeprefix("team:") if owners else DATA_ENGINEERING


def _figures(loader: Loader) -> dict[str, Any]:
    return {"up": loader.up, "lag": sum(loader.lag.values()), "lag_by_part": dg.JsonMetadataValue(dict(loader.lag))}
