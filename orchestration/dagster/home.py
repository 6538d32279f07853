"""Dagster's folder."""

from __future__ import annotations

from pathlib import Path

from orchestration.config.settings import Environment, settings


def dagster_home() -> Path:
    """Dagster's folder: `DAGSTER_HOME`, by default `dagster` below the home."""
    return (Environment.read().dagster_home or settings().home / "dagster").resolve()
