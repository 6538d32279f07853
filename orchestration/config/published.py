"""Paths of the published marts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from orchestration.config.settings import Settings, settings

DATABASE: Final = "finegrain.duckdb"


def current(where: Settings | None = None) -> Path | None:
    """The folder of the current published version; None if nothing is published."""
    link = (where or settings()).published / "current"
    return link.resolve() if link.exists() else None
