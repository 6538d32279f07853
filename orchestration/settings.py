"""Where things are. Every place comes from the environment, with a default under `var/` in the project."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from orchestration.errors import FinegrainError

PROJECT = Path(os.environ.get("FINEGRAIN_PROJECT", Path(__file__).resolve().parent.parent))


@cache
def variable(name: str, default: Any = None) -> Any:
    """A variable of dbt_project.yml, or `default` where it has none of that name."""
    return yaml.safe_load((PROJECT / "dbt_project.yml").read_text("utf-8")).get("vars", {}).get(name, default)


@dataclass(frozen=True)
class Settings:
    """Resolved paths: `lake_catalog` (DuckLake's SQLite file), `lake_data` (its Parquet folder), `warehouse`
    (the build's private DuckDB file), `published` (what readers open), `extensions` (DuckDB's own).

    The lake may be elsewhere, and its place is then text: a catalogue `postgres:…` (libpq's words or address, never a
    password), files below `s3://…`."""

    home: Path
    lake_catalog: Path | str
    lake_data: Path | str
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


def _place(variable: str, text: str) -> Path | str:
    """A path, or the text of a place that is elsewhere. Raises FinegrainError for what is neither."""
    if variable == "FINEGRAIN_LAKE_CATALOG" and re.match("postgres(ql)?:", text):
        # Places are printed and passed on; what holds no password cannot tell one.
        if re.search("password *=|://[^@]*:[^@]*@", text, re.IGNORECASE):
            raise FinegrainError(
                f"{variable} holds a password; leave it out, and set it in PGPASSWORD or in libpq's file ~/.pgpass"
            )
        return re.sub("^postgres(ql)?://", "postgres:postgresql://", text)
    if variable == "FINEGRAIN_LAKE_DATA" and text.startswith("s3://"):
        if "?" in text:
            raise FinegrainError(
                f"{variable} holds a '?'; write s3://bucket/folder, and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
                "AWS_REGION and FINEGRAIN_S3_ENDPOINT for the rest"
            )
        return text.rstrip("/")
    if "://" in text:
        elsewhere = {"FINEGRAIN_LAKE_CATALOG": ", or postgres:…", "FINEGRAIN_LAKE_DATA": ", or s3://bucket/folder"}
        raise FinegrainError(f"{variable} is no place finegrain knows; write a path{elsewhere.get(variable, '')}")
    return Path(text).resolve()


def settings() -> Settings:
    """Read the environment now, so that one process can work on several homes in turn. Raises FinegrainError."""
    default = Settings.below(Path(os.environ.get("FINEGRAIN_HOME", PROJECT / "var")).resolve())
    told = {
        field.name: _place(variable, os.environ[variable])
        for field in fields(Settings)
        if (variable := _variable(field.name)) in os.environ
    }
    return replace(default, **told)  # type: ignore[arg-type]  # only the lake's places are ever text
