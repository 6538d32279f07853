"""How long a build took, and each model of it: dbt builds all in one step, whose bar on the run's page shows only the sum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import dagster as dg

#: The asset with the times of builds. It belongs to no job: each run that builds reports it.
BUILDS: Final = dg.AssetKey(["upkeep", "builds"])
#: The key of dagster-dbt's metadata.
_DURATION: Final = "Execution Duration"


def with_seconds(event: Any) -> Any:
    """The event with its time as `seconds`, as all assets here call it: Dagster draws a chart of it."""
    if _DURATION not in (event.metadata or {}):
        return event
    metadata = {key: value for key, value in event.metadata.items() if key != _DURATION}
    metadata["seconds"] = round(float(event.metadata[_DURATION].value), 3)
    return (
        event._replace(metadata=metadata) if isinstance(event, dg.AssetCheckResult) else event.with_metadata(metadata)
    )


def report(seconds: float, events: Sequence[Any], names: Mapping[str, str]) -> tuple[str, dg.AssetMaterialization]:
    """A line for the run's log, and the times for Dagster's page: of a build of so many `seconds`, from its events. `names` are the names of dbt's
    nodes by unique id."""
    models = [event for event in events if isinstance(event, dg.Output)]
    checks = [event for event in events if isinstance(event, dg.AssetCheckResult)]
    of_checks: defaultdict[str, list[float]] = defaultdict(list)
    for check in checks:
        if check.asset_key is not None:
            of_checks[check.asset_key.path[-1]].append(_seconds(check))
    records = []
    for model in sorted(models, key=_seconds, reverse=True):
        name, rows = names[str(model.metadata["unique_id"].value)], model.metadata.get("dagster/row_count")
        took = of_checks[name]
        records.append(
            dg.TableRecord(
                {
                    "model": name,
                    "seconds": _seconds(model),
                    "rows": rows.value if isinstance(rows, dg.IntMetadataValue) else None,
                    "checks": len(took),
                    "seconds_of_checks": round(sum(took), 3),
                }
            )
        )
    in_models, in_checks = sum(map(_seconds, models), 0.0), sum(map(_seconds, checks), 0.0)
    slowest = ", ".join(f"{each.data['model']} {each.data['seconds']:.1f} s" for each in records[:5])
    line = (
        f"dbt took {seconds:.1f} s: {len(models)} models, seeds and snapshots {in_models:.1f} s, {len(checks)} checks {in_checks:.1f} s"
        + (f". Slowest: {slowest}" if slowest else "")
    )
    metadata = {
        "seconds": dg.MetadataValue.float(round(seconds, 3)),
        "seconds_of_models": dg.MetadataValue.float(round(in_models, 3)),
        "seconds_of_checks": dg.MetadataValue.float(round(in_checks, 3)),
        "models": dg.MetadataValue.int(len(models)),
        "checks": dg.MetadataValue.int(len(checks)),
        # Without a record, a table has no columns.
        **({"times": dg.MetadataValue.table(records)} if records else {}),
    }
    return line, dg.AssetMaterialization(BUILDS, metadata=metadata)


def _seconds(event: Any) -> float:
    value = (event.metadata or {}).get("seconds")
    return float(getattr(value, "value", value) or 0)
