"""Dagster's folder."""

from __future__ import annotations

import os
from pathlib import Path

from orchestration.config.settings import settings


def dagster_home() -> Path:
    """Dagster's folder: `DAGSTER_HOME`, by default `dagster` below the home."""
    return Path(os.environ.get("DAGSTER_HOME") or settings().home / "dagster").resolve()
