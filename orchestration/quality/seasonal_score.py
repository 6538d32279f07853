"""Scores outlier rules by hour of the week beside those that a warehouse was built with, against the planted outliers of a simulated shop.

Each set of rules is applied to a copy of the warehouse, in which only the models from histograms to cleaned events are built again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import duckdb
from rich.table import Table

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.lake.locks import scratch
from orchestration.quality.cleaning_score import Score, outliers_of_events, share
from orchestration.warehouse.build import run_dbt

#: column_name, method, scale, group_by, factor, min_count, min_ratio, min_distance, action.
BY_HOUR: Final = """
    ('price', 'iqr', 'log', 'hour_of_week', 8, 10, 10, 5, 'flag'), ('quantity', 'zscore', 'log', 'hour_of_week', 4, 10, 20, 20, 'flag')
"""
#: What reads the rules, up to the events that are scored.
MODELS: Final = (
    "int_cleaning__numeric_histogram",
    "int_cleaning__numeric_statistics",
    "int_cleaning__outlier_bounds",
    "int_cleaning__events",
)


@dataclass(frozen=True)
class Rules:
    """A set of rules: its name, SQL that makes them of those as built, and the window of their fits by hour of the week (0: all closed days)."""

    name: str
    sql: str
    weeks: int = 0


_REPLACED: Final = (
    f"delete from outlier_rules where column_name in ('price', 'quantity'); insert into outlier_rules values {BY_HOUR}"
)
COMPARED: Final = (
    Rules("and by hour of the week", f"insert into outlier_rules values {BY_HOUR}"),
    Rules("by hour of the week alone", _REPLACED),
    Rules("the same, of the last 4 weeks", _REPLACED, weeks=4),
)


def score(where: Settings, truth: Path) -> list[Score]:
    """The outliers of a built simulated shop by its own rules, and by each of `COMPARED`. Raises FinegrainError as cleaning_score.score does, or if
    a model fails."""
    scores = outliers_of_events(where.warehouse, truth, "as built")
    for rules in COMPARED:
        with scratch(where.home, ".cleaning-") as home:
            copy = _copy(where, home)
            _build(copy, rules)
            scores += outliers_of_events(copy.warehouse, truth, rules.name)
    return scores


def _copy(where: Settings, home: Path) -> Settings:
    """Settings of another home, with the same lake and a copy of the warehouse."""
    copy = replace(Settings.below(home, where.extensions), lake_catalog=where.lake_catalog, lake_data=where.lake_data)
    shutil.copyfile(where.warehouse, copy.warehouse)
    return copy


def _build(where: Settings, rules: Rules) -> None:
    with duckdb.connect(str(where.warehouse)) as con:
        con.execute(rules.sql)
    values = json.dumps({"hour_of_week_window_weeks": rules.weeks})
    done = run_dbt(["run", "--full-refresh", "--select", *MODELS, "--vars", values], where=where)
    if done.failed:
        raise FinegrainError(f"{done.failed[0].name} failed: {done.failed[0].message}")


def table(scores: Sequence[Score]) -> Table:
    """The scores as a table for a terminal: each kind of outliers by each set of rules."""
    out = Table(title="Outliers by other rules", title_justify="left")
    for name in ("kind", "rules", "planted", "flagged", "right", "precision", "recall"):
        out.add_column(name, justify="left" if name in ("kind", "rules") else "right")
    whole = [each for each in scores if each.detail is None]
    for kind in dict.fromkeys(each.kind for each in whole):
        for each in (row for row in whole if row.kind == kind):
            out.add_row(
                kind,
                each.rules,
                f"{each.planted:,}",
                f"{each.answered or 0:,}",
                f"{each.right or 0:,}",
                share(each.precision),
                share(each.recall),
            )
    return out
