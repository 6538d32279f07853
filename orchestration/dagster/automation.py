"""What starts runs: schedules, and a sensor for arrivals in the lake. Decisions are pure functions of the state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dagster as dg

from orchestration.config.settings import Environment, settings
from orchestration.lake import lake
from orchestration.lake.lake import Arrived

#: The lake's tables beside the raw ones of which news asks for a build.
ASK_TOO: Final = frozenset({"deletions", "exchange_rates", "shop"})
#: Statuses of a run that has not ended.
UNDER_WAY: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class Policy:
    """When to build: after this many new rows, or when the first of them has waited this long."""

    rows: int
    wait: timedelta


@dataclass(frozen=True)
class Waiting:
    """The state at the last requested build (`snapshot`, `rows`; -1 and 0 for an empty lake), and since when newer rows have been waiting."""

    snapshot: int = -1
    rows: int = 0
    since: datetime | None = None

    @classmethod
    def read(cls, cursor: str | None) -> Waiting:
        """What `write` wrote; nothing seen yet for a cursor that is not there or not ours."""
        try:
            stored = json.loads(cursor or "{}")
            since = stored.get("since")
            return cls(int(stored["snapshot"]), int(stored["rows"]), datetime.fromisoformat(since) if since else None)
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def write(self) -> str:
        """For the sensor's cursor."""
        return json.dumps({**asdict(self), "since": self.since.isoformat() if self.since else None})


@dataclass(frozen=True)
class Decision:
    """Whether to build now, the reason, and the state to keep."""

    build: bool
    reason: str
    waiting: Waiting


def decide(
    now: datetime, arrived: Mapping[str, Arrived], waiting: Waiting, *, is_building: bool, policy: Policy
) -> Decision:
    """Whether enough has arrived since the last build. `arrived` is by raw table. No build is requested while one is running; rows that arrive
    meanwhile are considered after it."""
    newest = max((each.snapshot for each in arrived.values()), default=-1)
    rows = sum(each.rows for each in arrived.values())
    if newest == waiting.snapshot:
        return Decision(False, "nothing has arrived since the last build", waiting)
    if newest < waiting.snapshot:  # another lake, or none any more
        return decide(now, arrived, Waiting(), is_building=is_building, policy=policy)
    since = min(waiting.since or now, now)  # the clock may have been put back
    came = rows - waiting.rows
    waits = Waiting(waiting.snapshot, waiting.rows, since)
    reason = f"{came:,} rows wait since {since:%H:%M:%S} UTC"
    if is_building:
        return Decision(False, f"{reason}; a build is under way", waits)
    if came < policy.rows and now - since < policy.wait:
        due = since + policy.wait
        return Decision(False, f"{reason}; a build starts at {policy.rows:,} rows, or at {due:%H:%M:%S}", waits)
    return Decision(True, reason, Waiting(newest, rows, None))


def policy() -> Policy:
    """`FINEGRAIN_BUILD_ROWS` and `FINEGRAIN_BUILD_MINUTES`. Raises FinegrainError."""
    given = Environment.read()
    return Policy(int(given.build_rows), timedelta(minutes=given.build_minutes))


def news(arrived: Mapping[str, Arrived], reported: Mapping[str, int]) -> dict[str, Arrived]:
    """The tables into which rows came since `reported`, the last reported snapshot of each."""
    return {table: each for table, each in sorted(arrived.items()) if reported.get(table) != each.snapshot}


def lake_sensor(job: Any, tables: frozenset[str], status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """Reports arrivals in the lake's tables, and requests a build when the policy says so."""

    @dg.sensor(
        name="lake",
        job=job,
        minimum_interval_seconds=30,
        default_status=status,
        description="Requests a build when enough rows have arrived in the lake, or have waited long enough.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        where = settings()
        cursor = _cursor(context.cursor)
        if not lake.exists(where):
            return dg.SensorResult(skip_reason="there is no lake yet")
        with lake.connect(where, read_only=True) as con:
            arrived = {table: each for table, each in lake.arrived(con).items() if table in tables}
        running = context.instance.get_runs(dg.RunsFilter(job_name=job.name, statuses=UNDER_WAY), limit=1)
        done = decide(
            datetime.now(UTC).replace(tzinfo=None, microsecond=0),
            {table: each for table, each in arrived.items() if table not in lake.BOOKKEEPING or table in ASK_TOO},
            Waiting.read(cursor.get("waiting")),
            is_building=bool(running),
            policy=policy(),
        )
        came = news(arrived, cursor.get("told", {}))
        reported = {table: each.snapshot for table, each in arrived.items()}
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=_key(arrived))] if done.build else [],
            skip_reason=None if done.build else done.reason,
            cursor=json.dumps({"waiting": done.waiting.write(), "told": reported}),
            asset_events=[
                dg.AssetMaterialization(
                    ["lake", table],
                    metadata={
                        "rows_ever": each.rows,
                        "snapshot": each.snapshot,
                        "arrived_at": dg.MetadataValue.timestamp(each.at.replace(tzinfo=UTC)),
                    },
                )
                for table, each in came.items()
            ],
        )

    return sensor


def _key(arrived: Mapping[str, Arrived]) -> str:
    """Of what has arrived there is one build, whatever becomes of the sensor's cursor."""
    newest = max(arrived.values(), key=lambda each: each.snapshot)
    return f"{newest.snapshot} of {newest.at.isoformat()}"


def _cursor(text: str | None) -> dict[str, Any]:
    try:
        stored = json.loads(text or "{}")
    except ValueError:
        return {}
    return stored if isinstance(stored, dict) else {}
