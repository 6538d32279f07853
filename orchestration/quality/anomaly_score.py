"""Scores the detection of anomalies: which planted incidents (orchestration/simulation/incidents.py) it finds, after how many builds, and how often it
raises an alarm where nothing was planted.

An alarm is a day and source with an anomaly, as alerts report them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import duckdb
from rich.table import Table

from orchestration.warehouse.warehouse import attach

#: So many builds, one a day, may find an incident; the first one is that after its day has closed.
BUILDS: Final = 3
#: An alarm is right if so many of the rows that were kept, and so are in features, are planted bots'. Bots that were quarantined excuse none.
BOT_SHARE: Final = 0.1
DAYS_OF_MONTH: Final = 30


@dataclass(frozen=True)
class Found:
    """An incident, the rules that found it, and in which build after the end of its day (1 is the first); None if in none of the first `BUILDS`."""

    incident: str
    source: str
    day: date
    detail: str
    rules: list[str]
    builds: int | None


@dataclass(frozen=True)
class Alarm:
    """An anomalous day of a source in a shop without incidents. `bot_share`: the share of planted bots in the rows that were kept."""

    day: date
    source: str
    rules: list[str]
    bot_share: float

    @property
    def is_false(self) -> bool:
        return self.bot_share < BOT_SHARE


@dataclass(frozen=True)
class Score:
    """Incidents of one shop, and the alarms of a quiet one over so many tested days."""

    incidents: list[Found]
    alarms: list[Alarm]
    tested_days: int

    @property
    def false_alarms(self) -> int:
        return sum(alarm.is_false for alarm in self.alarms)

    @property
    def false_alarms_per_month(self) -> float:
        return self.false_alarms * DAYS_OF_MONTH / self.tested_days

    @property
    def alarms_per_month(self) -> float:
        """As if every alarm was false."""
        return len(self.alarms) * DAYS_OF_MONTH / self.tested_days

    @property
    def fails(self) -> bool:
        """Whether the first build misses an incident, or there is more than one false alarm a month."""
        return any(each.builds != 1 for each in self.incidents) or self.false_alarms_per_month > 1


def incidents(warehouse: Path, shop: Path, build_as_of: Callable[[date], None]) -> list[Found]:
    """Look for each incident of the simulated `shop` in the warehouse, after builds as of the following days. `build_as_of` builds as of the beginning of
    a day, UTC."""
    with duckdb.connect() as con:
        planted = con.execute(
            "select incident, source, day, detail from read_parquet($file) order by day",
            {"file": str(shop / "truth" / "incidents.parquet")},
        ).fetchall()
    found = []
    for incident, source, day, detail in planted:
        rules: list[str] = []
        builds = 0
        while not rules and builds < BUILDS:
            builds += 1
            build_as_of(day + timedelta(days=builds))
            rules = _rules(warehouse, source, day)
        found.append(Found(incident, source, day, detail, rules, builds if rules else None))
    return found


def alarms(warehouse: Path, shop: Path, warm_up_days: int) -> tuple[list[Alarm], int]:
    """The alarms in the warehouse of a shop without incidents, and the number of days on which there could have been one."""
    with duckdb.connect() as con:
        con.execute("set timezone = 'UTC'")
        attach(con, warehouse)
        found = con.execute(_ALARMS, {"bots": str(shop / "truth" / "bot.parquet")}).fetchall()
        [(days,)] = con.execute(_CLOSED_DAYS).fetchall()
        return [Alarm(*row) for row in found], max(days - warm_up_days, 0)


def _rules(warehouse: Path, source: str, day: date) -> list[str]:
    with duckdb.connect() as con:
        attach(con, warehouse)
        found = con.execute(
            "select distinct rule_id from warehouse.marts.metric_anomalies where source = $source and day = $day order by rule_id",
            {"source": source, "day": day},
        ).fetchall()
    return [rule for (rule,) in found]


def tables(score: Score) -> list[Table]:
    """The score as tables for a terminal."""
    planted = Table(title="Planted incidents", title_justify="left")
    for name in ("incident", "source", "day", "what happened", "found", "build", "by"):
        planted.add_column(name)
    for each in score.incidents:
        planted.add_row(
            each.incident, each.source, str(each.day), each.detail, "yes" if each.rules else "no",
            "" if each.builds is None else str(each.builds), ", ".join(each.rules), style=None if each.builds == 1 else "red",
        )  # fmt: skip
    quiet = Table(title=f"Alarms in {score.tested_days} days without incidents", title_justify="left")
    for name in ("day", "source", "by", "bots in kept rows", ""):
        quiet.add_column(name)
    for alarm in score.alarms:
        quiet.add_row(
            str(alarm.day),
            alarm.source,
            ", ".join(alarm.rules),
            f"{alarm.bot_share:.0%}",
            "false" if alarm.is_false else "bots were kept",
        )
    return [planted, quiet]


# Customers and products are years older than the first event.
_CLOSED_DAYS: Final = """
    select cast(date_diff('day', min(day), max(day)) + 1 as integer)
    from warehouse.marts.metric_history
    where metric = 'volume' and table_name = 'events'
"""
_ALARMS: Final = """
    with alarms as (
        select day, source, list(distinct rule_id order by rule_id) as rules
        from warehouse.marts.metric_anomalies
        where not is_suppressed
        group by day, source
    ),
    bots as (
        select v.source, cast(v.raw_available_at as date) as day, count(*) filter (b.position is not null) / count(*) as bot_share
        from warehouse.int_events__validated as v
        left join read_parquet($bots) as b on v.raw_table = b.raw_table and v.source = b.source and v.position = b.position
        where v.verdict = 'kept'
        group by all
    )
    select a.day, a.source, a.rules, coalesce(b.bot_share, 0)
    from alarms as a left join bots as b on a.source = b.source and a.day = b.day
    order by a.day, a.source
"""
