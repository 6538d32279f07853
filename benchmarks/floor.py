"""The floor that the build is measured against: benchmarks/floor.sql, timed statement by statement.

    FINEGRAIN_HOME=… python benchmarks/floor.py [--keep floor.duckdb]

It reads the lake of that home, writes its marts to a separate DuckDB file and prints JSON: seconds in total and by statement, peak
memory in MiB, and the rows of each table at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from orchestration.config.settings import PROJECT, Settings, settings
from orchestration.lake import lake
from orchestration.sql.text import quote

SCRIPT = Path(__file__).with_name("floor.sql")


def build(database: Path, where: Settings | None = None, threads: int = 2) -> dict[str, Any]:
    """Run the script on the lake of a home, into `database`, which must not exist. Returns the report."""
    where = where or settings()
    config: dict[str, str | bool | int | float | list[str]] = {
        "extension_directory": str(where.extensions),
        "threads": threads,
        "memory_limit": os.environ.get("FINEGRAIN_MEMORY", "3GB"),
    }
    statements = []
    started = time.monotonic()
    with duckdb.connect(str(database), config=config) as con:
        lake.attach(con, where, read_only=True)
        # Name lists and rates are read from seeds/, relative to the project.
        con.execute(f"set file_search_path = {quote(str(PROJECT))}")
        for statement in con.extract_statements(SCRIPT.read_text("utf-8")):
            before, spent = time.monotonic(), time.process_time()
            con.execute(statement)
            statements.append(
                {
                    "name": _name(statement.query),
                    "seconds": round(time.monotonic() - before, 3),
                    "cpu_seconds": round(time.process_time() - spent, 3),
                }
            )
        seconds = time.monotonic() - started
        rows = {
            table: con.execute(f'select count(*) from "{table}"').fetchall()[0][0]
            for (table,) in con.execute(
                "select table_name from duckdb_tables() where database_name = current_database() and not temporary order by 1"
            ).fetchall()
        }
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(time.process_time(), 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "statements": [each for each in statements if each["name"]],
        "rows": rows,
    }


def _name(query: str) -> str | None:
    found = re.search(r"create (?:temp )?table (\w+)", query)
    return found[1] if found else None


def main() -> None:
    """Read the arguments; print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, help="DuckDB file for the marts, kept afterwards")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("FINEGRAIN_THREADS", "2")))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finegrain-floor-") as folder:
        print(json.dumps(build(given.keep or Path(folder) / "floor.duckdb", threads=given.threads)))


if __name__ == "__main__":
    main()
