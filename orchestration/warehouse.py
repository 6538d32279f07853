"""The warehouse, `warehouse.duckdb`: private to the build, and open to others only while nothing builds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import duckdb

from orchestration.errors import FinegrainError
from orchestration.lake import quote

#: What DuckDB may use where a build or a publish works on whole tables; profiles.yml says the same.
MEMORY: Final = "3GB"


def limits(spill: Path) -> dict[str, Any]:
    """DuckDB's settings for work on whole tables: `FINEGRAIN_MEMORY`, and the folder for what does not fit in it."""
    return {
        "memory_limit": os.environ.get("FINEGRAIN_MEMORY", MEMORY),
        "temp_directory": str(spill),
        "preserve_insertion_order": False,
    }


def attach(con: duckdb.DuckDBPyConnection, warehouse: Path) -> None:
    """Attach the warehouse as `warehouse`, for reading; as long as it is attached, nobody can write to it.

    Raises FinegrainError when it is not there, or is being written.
    """
    if not warehouse.exists():
        raise FinegrainError(f"{warehouse} does not exist; run `finegrain build` first")
    try:
        con.execute(f"attach {quote(str(warehouse))} as warehouse (read_only)")
    except duckdb.IOException as error:
        if "lock" in str(error).lower():
            raise FinegrainError(f"{warehouse} is being written by another process; wait until it has ended") from None
        raise FinegrainError(f"{warehouse} cannot be opened: {str(error).splitlines()[0]}") from None
