"""Where things are. Every path comes from the environment, with a default under `var/` in the project."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
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

    @classmethod
    def below(cls, home: Path, extensions: Path | None = None) -> Settings:
        """Everything below one folder, whatever the environment says."""
        return cls(
            home=home,
            lake_catalog=home / "lake" / "catalog.sqlite",
            lake_data=home / "lake" / "data",
            warehouse=home / "warehouse.duckdb",
            published=home / "published",
            extensions=extensions or home / "extensions",
        )

    def environment(self) -> dict[str, str]:
        """The variables from which `settings` reads these very paths."""
        return {_variable(field.name): str(getattr(self, field.name)) for field in fields(self)}


def _variable(name: str) -> str:
    return f"FINEGRAIN_{name.upper()}"


def settings() -> Settings:
    """Read the environment now, so that one process can work on several homes in turn."""
    default = Settings.below(Path(os.environ.get("FINEGRAIN_HOME", PROJECT / "var")).resolve())
    told = {
        field.name: Path(os.environ[variable]).resolve()
        for field in fields(Settings)
        if (variable := _variable(field.name)) in os.environ
    }
    return replace(default, **told)
