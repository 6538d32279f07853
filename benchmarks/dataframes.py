"""The same features from the same clean events in Polars or pandas, for comparison with the build and the floor.

    python benchmarks/dataframes.py FOLDER --export-from floor.duckdb
    python benchmarks/dataframes.py FOLDER --engine polars

Clean events, the catalogue and as_of come from a database that benchmarks/floor.py kept, or from a home's warehouse, and are
written to Parquet; that is not measured. The second command prints JSON: seconds by mart and in all, reading included, and peak memory in MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb

EVENTS = (
    "event_id, customer_id, identity, session_id, event_type, event_at, event_day, available_at, product_id, category, brand, "
    "order_key, price, price_percentile, quantity, amount, gross_amount, list_price, device, country, page, referrer, campaign"
)
#: The values that features are computed from, with their names in the models.
TREATED = {
    "price": "price_treated",
    "quantity": "quantity_treated",
    "amount": "amount_treated",
    "gross_amount": "amount",
    "list_price": "list_price",
}


def export(database: Path, folder: Path) -> None:
    """Write the inputs of the features as Parquet, with money and quantities as doubles: neither engine sums decimals well."""
    with duckdb.connect(str(database), read_only=True) as con:
        tables = {row[0] for row in con.execute("select table_name from information_schema.tables").fetchall()}
        built = "int_identity__build" in tables
        events = "marts.fct_events" if built else "fct_events"
        casts = ", ".join(f"cast({of} as double) as {name}" for name, of in TREATED.items())
        money = ", ".join(sorted({*TREATED, *TREATED.values()} - {"gross_amount"}))
        ids = ", ".join(f"replace(cast({name} as varchar), '-', '') as {name}" for name in ("event_id", "session_id"))
        copies = {
            "events": f"select {EVENTS} from (select * exclude ({money}) replace ({ids}, cast(customer_id as varchar) as customer_id), {casts} from {events})",
            "products": "select product_id, category, brand, cast(price as double) as price, created_at, first_known_at from "
            + (
                "int_reference__product_versions as v, int_identity__build as b "
                "where v.known_at <= b.as_of and (v.known_until > b.as_of or v.known_until is null)"
                if built
                else "catalogue"
            ),
            "build": "select as_of from int_identity__build"
            if built
            else "select min(as_of) as as_of from user_features",
        }
        for name, query in copies.items():
            con.execute(f"copy ({query}) to '{folder / name}.parquet' (format parquet)")


def measure(engine: str, folder: Path, marts: list[str] | None = None) -> dict[str, Any]:
    """Compute each mart from the files, and discard it."""
    module = import_module(f"in_{engine}")
    started = time.monotonic()
    shop = module.Shop.read(folder)
    seconds = {"read": round(time.monotonic() - started, 3)}
    for mart in marts or list(module.MARTS):
        before = time.monotonic()
        module.compute(shop, mart)
        seconds[mart] = round(time.monotonic() - before, 3)
    return {
        "engine": engine,
        "seconds": round(time.monotonic() - started, 3),
        "cpu_seconds": round(time.process_time(), 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "marts": seconds,
    }


def main() -> None:
    """Read the arguments; print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, help="folder of Parquet files")
    parser.add_argument("--engine", choices=("polars", "pandas"), default="polars")
    parser.add_argument("--marts", nargs="*")
    parser.add_argument("--export-from", type=Path, metavar="DATABASE", help="only write the files from it")
    given = parser.parse_args()
    if given.export_from:
        given.files.mkdir(parents=True, exist_ok=True)
        export(given.export_from, given.files)
    else:
        # Read by the engine at import.
        os.environ.setdefault("POLARS_MAX_THREADS", os.environ.get("FINEGRAIN_THREADS", "2"))
        print(json.dumps(measure(given.engine, given.files, given.marts)))


if __name__ == "__main__":
    main()
