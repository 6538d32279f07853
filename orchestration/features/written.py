"""Folders of results (training sets, exports): written aside, then moved to their place, with a YAML file that says what they were made from."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from orchestration import __version__
from orchestration.errors import FinegrainError
from orchestration.warehouse.compiled import Compiled


def must_be_new(out: Path) -> None:
    """Raises FinegrainError where there is something at `out` already, other than an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FinegrainError(f"{out} is not empty; name a new folder")


def put_in_place(folder: Path, out: Path) -> None:
    """Move a complete folder to `out`, of which `must_be_new` holds."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    shutil.move(folder, out)


def made_from(models: Compiled, built_from: int) -> dict[str, Any]:
    """What the YAML of every result begins with. The same code, lake snapshot and options give the same rows."""
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "finegrain": __version__,
        "duckdb": duckdb.__version__,
        "lake_snapshot": built_from,
        "code": models.digest,
    }
