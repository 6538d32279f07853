"""Paths of the published marts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from orchestration.config.settings import Settings, settings

DATABASE: Final = "finegrain.duckdb"
#: The report of a published version, beside its marts.
REPORT: Final = "report.html"


def current(where: Settings | None = None) -> Path | None:
    """The folder of the current published version; None if nothing is published."""
    link = (where or settings()).published / "current"
    return link.resolve() if link.exists() else None


def published_report(where: Settings | None = None) -> Path | None:
    """The report of the current published version; None if it has none."""
    folder = current(where)
    return folder / REPORT if folder and (folder / REPORT).exists() else None
