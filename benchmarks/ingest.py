"""Load a database table into the lake with finegrain, with only DuckDB's extension, and with dlt, each in a separate process.

    python benchmarks/ingest.py make URL --rows 5000000            # the table bench_orders, on PostgreSQL or MySQL
    python benchmarks/ingest.py measure URL finegrain bare
    python benchmarks/ingest.py measure URL dlt-pyarrow dlt-connectorx  # where dlt[ducklake,sql_database] is installed

`measure` prints JSON: seconds and peak memory of the first run, and seconds of a second run that finds nothing new. Run nothing else
at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TABLE = "bench_orders"
MAPPING = """
source: bench
database: ${BENCH_URL}
tables:
  orders:
    table: bench_orders
    incremental: {column: updated_at}
    key: [id]
    origin: database
    available_at: {column: updated_at}
    fields: {order_id: id, user_id: customer, status: status, currency: currency, created_at: created_at, updated_at: updated_at,
      properties: {sql: "json_object('total', total)"}}
"""


def make(url: str, rows: int) -> None:
    """Fill the table on the server."""
    from orchestration.lake import lake
    from orchestration.sources import databases

    con = lake.connect()
    database = databases.attach(con, url, "make")
    con.execute(f"detach {database.alias}")
    con.execute(f"attach '' as {database.alias} (type {database.kind}, secret {database.alias})")
    target = f"{database.alias}.{'public.' if database.kind == 'postgres' else ''}{TABLE}"
    con.execute(f"drop table if exists {target}")
    con.execute(
        f"create table {target} (id bigint, customer varchar(20), total decimal(12,2), currency varchar(3), "
        "status varchar(10), created_at timestamp, updated_at timestamp, note varchar(40))"
    )
    for first in range(0, rows, 500_000):
        con.execute(
            f"insert into {target} select i, 'c' || (i * 7919 % 200000), (i % 9973) / 7, 'EUR', if(i % 10 = 0, null, 'paid'), "
            "timestamp '2024-01-01' + i * interval '3 seconds', timestamp '2024-01-01' + i * interval '3 seconds', md5(i::varchar) "
            f"from range({first}, {min(first + 500_000, rows)}) t(i)"
        )
    for statement in (
        f"alter table {TABLE} add primary key (id)",
        f"create index bench_by_time on {TABLE} (updated_at)",
    ):
        con.execute(f"call {database.kind}_execute('{database.alias}', '{statement}')")


def by_finegrain(url: str, folder: Path) -> int:
    """`finegrain ingest`: contract fields, payload, version of each row."""
    from orchestration.ingest.ingest import ingest

    (folder / "bench.yml").write_text(MAPPING)
    os.environ["BENCH_URL"] = url
    return ingest(folder / "bench.yml").rows


def by_duckdb(url: str, folder: Path) -> int:
    """Only the extension: copy the columns unchanged into a table of the lake."""
    from orchestration.lake import lake
    from orchestration.sources import databases

    con = lake.connect()
    table = databases.open_table(con, databases.attach(con, url, "bench"), TABLE, "bench")
    if con.execute("select 1 from duckdb_tables() where table_name = 'bare'").fetchall():
        return 0
    con.execute(f"create table lake.raw.bare as {table.rows('true')}")
    return int(con.execute("select count(*) from lake.raw.bare").fetchall()[0][0])


def by_dlt(url: str, folder: Path, backend: str) -> int:
    """dlt, from its SQL source to its DuckLake destination."""
    try:
        import dlt
        from dlt.destinations.impl.ducklake.configuration import DuckLakeCredentials
        from dlt.sources.sql_database import sql_table
    except ImportError as error:
        sys.exit(
            f"dlt is not installed here ({error.name}); try: pip install 'dlt[ducklake,sql_database]' in a separate venv"
        )
    from duckdb_extensions import import_extension  # type: ignore[import-untyped,unused-ignore]

    for name in ("ducklake", "sqlite_scanner"):
        import_extension(name)
    os.environ |= {"DLT_DATA_DIR": str(folder / "dlt"), "RUNTIME__DLTHUB_TELEMETRY": "false"}
    lake = dlt.destinations.ducklake(
        credentials=DuckLakeCredentials(
            "bench", catalog=f"sqlite:///{folder}/catalog.sqlite", storage=f"{folder}/files"
        )
    )
    driver = url.replace("mysql://", "mysql+pymysql://")
    source = sql_table(
        credentials=driver,
        table=TABLE,
        incremental=dlt.sources.incremental("updated_at"),
        backend=backend,
        chunk_size=100_000,
        reflection_level="full_with_precision",
        backend_kwargs={"conn": url} if backend == "connectorx" else {},
    )
    pipeline = dlt.pipeline("bench", destination=lake, dataset_name="raw", pipelines_dir=str(folder / "pipelines"))
    pipeline.run(source, write_disposition="append")
    counts: dict[str, int] = pipeline.last_trace.last_normalize_info.row_counts
    return counts.get(TABLE, 0)


WAYS: dict[str, Any] = {
    "finegrain": by_finegrain,
    "bare": by_duckdb,
    "dlt-pyarrow": lambda url, folder: by_dlt(url, folder, "pyarrow"),
    "dlt-connectorx": lambda url, folder: by_dlt(url, folder, "connectorx"),
}


def measure(url: str, way: str) -> dict[str, Any]:
    """Run one approach twice, each in a separate process, in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, __file__, "run", url, way, folder],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env={**os.environ, "FINEGRAIN_HOME": folder},
            )
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    first, again = runs
    return {"way": way, **first, "again_rows": again["rows"], "again_seconds": again["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "measure", "run"])
    parser.add_argument("url")
    parser.add_argument("ways", nargs="*")
    parser.add_argument("--rows", type=int, default=5_000_000)
    arguments = parser.parse_args()
    if arguments.what == "make":
        make(arguments.url, arguments.rows)
    elif arguments.what == "measure":
        print(json.dumps([measure(arguments.url, way) for way in arguments.ways or ["finegrain", "bare"]], indent=2))
    else:
        way, folder = arguments.ways
        started = time.monotonic()
        rows = WAYS[way](arguments.url, Path(folder))
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print(json.dumps({"rows": rows, "seconds": round(time.monotonic() - started, 1), "peak_mb": peak // 1024}))


if __name__ == "__main__":
    main()
