"""Where things are. Every path comes from the environment, with a default under `var/` in the project."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(os.environ.get("FINEGRAIN_PROJECT", Path(__file__).resolve().parent.parent))


@dataclass(frozen=True)
class Settings:
    """Resolved paths: `lake_catalog` (DuckLake's SQLite file), `lake_data` (its Parquet folder), `warehouse`
    (the build's private DuckDB file), `published` (what readers open), `extensions` (DuckDB's own)."""

    home: Path
    lake_catalog: Path
    lake_data: Path
    warehouse: Path
    published: Path
    extensions: Path


def settings() -> Settings:
    """Read the environment now, so that one process can work on several homes in turn."""
    home = Path(os.environ.get("FINEGRAIN_HOME", PROJECT / "var")).resolve()

    def path(variable: str, default: Path) -> Path:
        return Path(os.environ.get(variable, default)).resolve()

    return Settings(
        home=home,
        lake_catalog=path("FINEGRAIN_LAKE_CATALOG", home / "lake" / "catalog.sqlite"),
        lake_data=path("FINEGRAIN_LAKE_DATA", home / "lake" / "data"),
        warehouse=path("FINEGRAIN_WAREHOUSE", home / "warehouse.duckdb"),
        published=path("FINEGRAIN_PUBLISHED", home / "published"),
        extensions=path("FINEGRAIN_EXTENSIONS", home / "extensions"),
    )
