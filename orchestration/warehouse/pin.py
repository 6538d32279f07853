"""What a build reads: one snapshot of the lake, one as-of time, the shop's settings, and the files of the dbt project."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from orchestration.config.settings import Environment
from orchestration.errors import FinegrainError
from orchestration.lake import lake, shop
from orchestration.warehouse.fingerprints import of_files


@dataclass(frozen=True)
class Pin:
    """What one build sees. `as_of` (naive UTC) is None if nobody asked for a moment; `arrivals` has the last snapshot, up to the pinned one, that
    inserted rows into each raw table; `shop` has the settings of mappings that override vars."""

    snapshot: int
    as_of: datetime | None
    arrivals: Mapping[str, int]
    shop: Mapping[str, str]

    def inputs(self, project: Path, variables: Mapping[str, Any] | None = None) -> str:
        """A digest of all that decides what a build of the whole project gives. `variables` are those of dbt's command line."""
        parts = [of_files(project), str(self.as_of), dict(self.arrivals), dict(self.shop), dict(variables or {})]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def pin(con: duckdb.DuckDBPyConnection) -> Pin:
    """The pin of a build that begins now, from the attached lake and the environment. Raises FinegrainError."""
    number = snapshot(con)
    return Pin(number, as_of(), lake.arrivals(con, number), shop.of_lake(con, number))


def as_of() -> datetime | None:
    """`FINEGRAIN_AS_OF` as naive UTC, or None when it is not set. A time without an offset is UTC."""
    return Environment.read().as_of


def snapshot(con: duckdb.DuckDBPyConnection) -> int:
    """The lake snapshot to build from: `FINEGRAIN_SNAPSHOT`, else the newest."""
    text = (Environment.read().snapshot or "").strip()
    first, newest = con.execute("select min(snapshot_id), max(snapshot_id) from lake.snapshots()").fetchall()[0]
    if not text:
        return int(newest)
    if not text.isdecimal() or not first <= int(text) <= newest:
        raise FinegrainError(f"FINEGRAIN_SNAPSHOT is {text!r}; the lake holds the snapshots {first} to {newest}")
    return int(text)
