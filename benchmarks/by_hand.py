"""Training sets by other means than finegrain's: a range join over clean events, in DuckDB SQL and in Polars, and Feast's point-in-time join over
daily snapshots.

    python benchmarks/by_hand.py sql|polars|feast --spine spine.parquet --out rows.parquet [--events FOLDER]

`sql` reads the clean events of the home's warehouse, `polars` the files that `export` wrote to FOLDER, `feast` the published history, by the repository
that `finegrain store apply` wrote. `sql` and `polars` compute `FEATURES`, `feast` joins all of user_features. benchmarks/training_sets.py measures them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import duckdb

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from measures import COUNTS, DAYS, HOURS, MONEY, SUMS  # noqa: E402

from orchestration.config.settings import Settings, settings  # noqa: E402
from orchestration.sql.text import quote  # noqa: E402
from orchestration.warehouse import warehouse  # noqa: E402

MART = "user_features"
#: Recency, each with the column of the moment since which it counts the hours.
HOURS_SINCE = {
    "hours_since_view": "last_view_at",
    "hours_since_cart_add": "last_cart_add_at",
    "hours_since_order": "last_order_at",
    "hours_since_session": "last_event_at",
}
#: All counts, sums and orders by window, and recency.
FEATURES = [
    *(f"{name}_{window}" for window in (*HOURS, *DAYS) for name in (*COUNTS, *SUMS, "orders")),
    *HOURS_SINCE,
    "tenure_days",
]
#: For a validity that has no end.
FOREVER = "9999-12-31"


def query() -> str:
    """DuckDB's SQL, over `spine` (customer_id, as_of), the versions of clean events, and the links between identities and customers."""
    inside = {window: f"{{last}}_at >= as_of - interval {hours} hour" for window, hours in HOURS.items()}
    for window, days in DAYS.items():
        inside[window] = "true" if days is None else f"{{last}}_day >= cast(as_of as date) - {days}"
    sums, orders = [], []
    for window, condition in inside.items():
        in_window = condition.format(last="event")
        for name, kind in COUNTS.items():
            sums.append(f"count(*) filter (event_type = '{kind}' and {in_window}) as {name}_{window}")
        for name, (kind, value) in SUMS.items():
            rows = f"filter (event_type = '{kind}' and {in_window})"
            # Money is null where something was bought or given back, and none of it has a known amount.
            nothing = f"case when count(*) {rows} = 0 then 0 end" if name in MONEY else "0"
            sums.append(f"cast(coalesce(sum({value}) {rows}, {nothing}) as double) as {name}_{window}")
        orders.append(f"count(*) filter ({condition.format(last='last')}) as orders_{window}")
    since = [f"(epoch_us(as_of) - epoch_us({at})) / 3600000000.0 as {name}" for name, at in HOURS_SINCE.items()]
    of_sums = [name for name in FEATURES if not name.startswith(("orders_", "hours_", "tenure_"))]
    of_orders = [name for name in FEATURES if name.startswith("orders_")]
    return f"""
with members as (

    select s.customer_id, s.as_of, l.identity
    from spine as s
    inner join int_identity__links as l
        on s.customer_id = l.customer_id and l.known_from <= s.as_of and s.as_of < coalesce(l.known_to, timestamp '{FOREVER}')

),

visible as not materialized (

    select m.customer_id, m.as_of, e.event_type, e.event_at, e.event_day, e.order_key, e.quantity, e.amount, e.gross_amount
    from members as m
    inner join int_cleaning__events as e
        on m.identity = e.identity and e.event_at < m.as_of
        and e.known_from <= m.as_of and m.as_of < coalesce(e.known_to, timestamp '{FOREVER}')

),

sums as (

    select
        customer_id, as_of, {", ".join(sums)},
        max(event_at) filter (event_type = 'view_item') as last_view_at,
        max(event_at) filter (event_type = 'add_to_cart') as last_cart_add_at,
        max(event_at) as last_event_at,
        min(event_at) as first_event_at
    from visible
    group by customer_id, as_of

),

orders as (

    select customer_id, as_of, order_key, min(event_at) as ordered_at, max(event_at) as last_at, max(event_day) as last_day
    from visible
    where order_key is not null
    group by customer_id, as_of, order_key

),

by_order as (

    select customer_id, as_of, {", ".join(orders)}, max(ordered_at) as last_order_at
    from orders
    group by customer_id, as_of

)

select
    customer_id,
    as_of,
    {", ".join(f"case when last_event_at is null then 0 else {name} end as {name}" for name in of_sums)},
    {", ".join(f"coalesce({name}, 0) as {name}" for name in of_orders)},
    {", ".join(since)},
    (epoch_us(as_of) - epoch_us(first_event_at)) / 3600000000.0 / 24 as tenure_days
from spine
left join sums using (customer_id, as_of)
left join by_order using (customer_id, as_of)
"""


def in_sql(spine: Path, out: Path, where: Settings) -> None:
    """DuckDB, from the warehouse, within FINEGRAIN_MEMORY."""
    with tempfile.TemporaryDirectory() as spill, duckdb.connect(config=warehouse.limits(Path(spill))) as con:
        warehouse.attach(con, where.warehouse)
        con.execute("use warehouse.main; set timezone = 'UTC'")
        con.execute(f"create temp view spine as from {quote(str(spine))}")
        con.execute(f"copy ({query()}) to {quote(str(out))} (format parquet, compression zstd)")


def export(where: Settings, folder: Path) -> None:
    """Write clean events and links as Parquet for Polars, with money as doubles, since it sums decimals badly."""
    folder.mkdir(parents=True, exist_ok=True)
    values = ", ".join(f"cast({name} as double) as {name}" for name in ("quantity", "amount", "gross_amount"))
    copies = {
        "events": f"select identity, event_type, event_at, event_day, known_from, known_to, order_key, {values} from int_cleaning__events",
        "links": "select customer_id, identity, known_from, known_to from int_identity__links",
    }
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        for name, rows in copies.items():
            con.execute(f"copy ({rows}) to {quote(str(folder / f'{name}.parquet'))} (format parquet)")


def in_polars(spine: Path, out: Path, events: Path) -> None:
    """Polars, lazy, in the streaming engine, from the files of `export`."""
    import polars as pl

    keys = ["customer_id", "as_of"]
    at, kind = pl.col("as_of"), pl.col("event_type")

    def valid() -> pl.Expr:
        return (pl.col("known_from") <= at) & (pl.col("known_to").is_null() | (pl.col("known_to") > at))

    def inside(window: str, last: str) -> pl.Expr:
        if window in HOURS:
            return pl.col(f"{last}_at") >= at - pl.duration(hours=HOURS[window])
        days = DAYS[window]
        if days is None:
            return pl.col(f"{last}_at").is_not_null()
        return pl.col(f"{last}_day") >= at.dt.date() - pl.duration(days=days)

    asked = pl.scan_parquet(spine).select(keys)
    members = asked.join(pl.scan_parquet(events / "links.parquet"), on="customer_id").filter(valid())
    visible = (
        members.select(*keys, "identity")
        .join(pl.scan_parquet(events / "events.parquet"), on="identity")
        .filter(valid() & (pl.col("event_at") < at))
    )
    sums = []
    for window in (*HOURS, *DAYS):
        in_window = inside(window, "event")
        sums += [
            (in_window & (kind == of)).sum().cast(pl.Int64).alias(f"{name}_{window}") for name, of in COUNTS.items()
        ]
        for name, (of, value) in SUMS.items():
            values = pl.col(value).filter(in_window & (kind == of))
            total = values.sum()
            if name in MONEY:
                total = pl.when((values.len() == 0) | (values.count() > 0)).then(total)
            sums.append(total.alias(f"{name}_{window}"))
    by_event = visible.group_by(keys).agg(
        *sums,
        last_view_at=pl.col("event_at").filter(kind == "view_item").max(),
        last_cart_add_at=pl.col("event_at").filter(kind == "add_to_cart").max(),
        last_event_at=pl.col("event_at").max(),
        first_event_at=pl.col("event_at").min(),
    )
    orders = (
        visible.filter(pl.col("order_key").is_not_null())
        .group_by(*keys, "order_key")
        .agg(ordered_at=pl.col("event_at").min(), last_at=pl.col("event_at").max(), last_day=pl.col("event_day").max())
    )
    by_order = orders.group_by(keys).agg(
        *(inside(window, "last").sum().cast(pl.Int64).alias(f"orders_{window}") for window in (*HOURS, *DAYS)),
        last_order_at=pl.col("ordered_at").max(),
    )

    def hours_since(moment: str) -> pl.Expr:
        return (at - pl.col(moment)).dt.total_microseconds() / 3_600_000_000

    rows = asked.join(by_event, on=keys, how="left").join(by_order, on=keys, how="left")
    of_sums = [name for name in FEATURES if not name.startswith(("orders_", "hours_", "tenure_"))]
    rows.select(
        *keys,
        *(pl.when(pl.col("last_event_at").is_null()).then(0).otherwise(pl.col(name)).alias(name) for name in of_sums),
        pl.col("^orders_.*$").fill_null(0),
        *(hours_since(moment).alias(name) for name, moment in HOURS_SINCE.items()),
        tenure_days=hours_since("first_event_at") / 24,
    ).sink_parquet(out)


def in_feast(spine: Path, out: Path, where: Settings) -> None:
    """Feast's DuckDB offline store, from the published history: all features of the mart."""
    import pandas as pd

    from orchestration.store.repository import opened

    store = opened(where)
    rows = pd.read_parquet(spine, columns=["customer_id", "as_of"])
    rows["event_timestamp"] = rows.pop("as_of").dt.tz_localize("UTC")
    names = [f"{MART}:{each.name}" for each in store.get_feature_view(MART).features]
    found = store.get_historical_features(entity_df=rows, features=names).to_arrow()
    with duckdb.connect() as con:
        con.execute("set timezone = 'UTC'")
        con.register("found", found)
        con.execute(
            f"copy (select * exclude (event_timestamp), cast(event_timestamp as timestamp) as as_of from found) to {quote(str(out))} (format parquet)"
        )


def main() -> None:
    """Read the arguments; write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("way", choices=("sql", "polars", "feast"))
    parser.add_argument("--spine", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--events", type=Path, help="for polars: the folder of the exported files")
    given = parser.parse_args()
    if given.way == "sql":
        in_sql(given.spine, given.out, settings())
    elif given.way == "polars":
        # Polars reads it at import. DuckDB uses all cores, too.
        os.environ.setdefault("POLARS_MAX_THREADS", str(os.cpu_count()))
        in_polars(given.spine, given.out, given.events)
    else:
        in_feast(given.spine, given.out, settings())


if __name__ == "__main__":
    main()
