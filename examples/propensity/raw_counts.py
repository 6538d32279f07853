"""The plain baseline: counts over windows, in SQL, from raw rows as they were delivered. Nothing is cleaned, deduplicated or linked.

They are point in time: of each row's customer (product, category), only events before its as_of count.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

#: Days. finegrain's windows are whole UTC days, as these are for an as_of at midnight.
WINDOWS = (7, 30, 90)
COUNTED = {
    "views": "view_item",
    "list_views": "view_item_list",
    "clicks": "select_item",
    "searches": "search",
    "cart_adds": "add_to_cart",
    "cart_removes": "remove_from_cart",
    "checkouts": "begin_checkout",
}
SINCE = {"view": "view_item", "cart_add": "add_to_cart", "order": "purchase"}


def measures() -> dict[str, str]:
    """By name, the aggregates of a customer's events in a window, with the names that finegrain has for them."""
    return {
        **{name: f"count(*) filter (e.event_type = '{kind}' and {{inside}})" for name, kind in COUNTED.items()},
        "events": "count(*) filter ({inside})",
        "orders": "count(distinct e.order_id) filter (e.event_type = 'purchase' and {inside})",
        "units": "coalesce(sum(e.quantity) filter (e.event_type = 'purchase' and {inside}), 0)",
        "revenue": "coalesce(sum(e.amount) filter (e.event_type = 'purchase' and {inside}), 0)",
        "sessions": "count(distinct e.session_id) filter ({inside})",
        "active_days": "count(distinct e.event_at::date) filter ({inside})",
        "distinct_products": "count(distinct e.product_id) filter ({inside})",
        "distinct_categories": "count(distinct e.category) filter ({inside})",
    }


#: Of a customer and a product (or category), and of a product (or category) alone.
FEW = ("views", "clicks", "cart_adds", "events", "orders", "units", "revenue")


def of_customers(con: duckdb.DuckDBPyConnection, spine: str, raw: str) -> duckdb.DuckDBPyRelation:
    """Counts for the rows of `spine`, a table with identity and as_of, from the table `raw`. One row for each."""
    return _counts(con, spine, raw, ["identity"], list(measures()))


def of_pairs(con: duckdb.DuckDBPyConnection, spine: str, raw: str, key: str) -> duckdb.DuckDBPyRelation:
    """Counts of a customer's events with each product (or category: `key`) that they had an event with before as_of."""
    touched = f"(select distinct s.identity, s.as_of, e.{key} from {spine} as s join {raw} as e on e.identity = s.identity and e.event_at < s.as_of where e.{key} is not null)"
    return _counts(con, touched, raw, ["identity", key], FEW)


def of_things(con: duckdb.DuckDBPyConnection, spine: str, raw: str, key: str) -> duckdb.DuckDBPyRelation:
    """Counts of all events with a product (or category: `key`). `spine` has it and as_of."""
    return _counts(con, spine, raw, [key], FEW)


def _counts(
    con: duckdb.DuckDBPyConnection, spine: str, raw: str, keys: Sequence[str], names: Sequence[str]
) -> duckdb.DuckDBPyRelation:
    columns = [
        f"{measures()[name].format(inside=f'e.event_at >= s.as_of - interval {days} day')} as {name}_{days}d"
        for days in WINDOWS
        for name in names
    ]
    columns += [
        f"date_diff('second', max(e.event_at) filter (e.event_type = '{kind}'), s.as_of) / 3600 as hours_since_{name}"
        for name, kind in SINCE.items()
    ]
    columns += ["date_diff('second', max(e.event_at), s.as_of) / 3600 as hours_since_event"]
    by = ", ".join(f"s.{key}" for key in (*keys, "as_of"))
    return con.sql(
        f"select {by}, {', '.join(columns)} from {spine} as s left join {raw} as e "
        f"on {' and '.join(f'e.{key} = s.{key}' for key in keys)} and e.event_at < s.as_of "
        f"and e.event_at >= s.as_of - interval {max(WINDOWS)} day group by {by}"
    )
