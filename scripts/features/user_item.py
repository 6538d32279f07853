"""user_item_features: one row per customer and product with an event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from features import MONEY, ORDERS, PRICE, Feature, Project, _affinity

KEYS: Final = {
    "customer_id": _affinity.CUSTOMER,
    "product_id": "A product that the customer had events about (dim_products).",
}


def features(project: Project) -> Iterator[Feature]:
    yield from project.by_window({**project.measures("user_item"), **ORDERS})
    never = "never ordered it"
    for name, what, null in (
        ("view", "view of it", "never viewed it"),
        ("cart_add", "addition of it to the cart", "never put it into the cart"),
        ("order", "order of it, which is as old as its first line of it", never),
    ):
        yield Feature(f"hours_since_{name}", "double", f"Hours since the last {what}", "hours", "lifetime", null)
    yield Feature(
        "days_since_first_event",
        "double",
        "Days since the customer's first event about the product",
        "days",
        "lifetime",
    )
    yield Feature(
        "in_cart_now",
        "boolean",
        "True if it was last put into the cart after it was last taken out and last bought",
        "flag",
        "lifetime",
        range=None,
    )
    yield Feature(
        "orders_since_last",
        "bigint",
        "Distinct orders of the customer, of whatever products, since the last order of it",
        "orders",
        "lifetime",
        never,
    )
    yield Feature(
        "reorder_gap_days_mean",
        "double",
        "Mean time from one order of it to the customer's next",
        "days",
        "lifetime",
        "less than two orders of it yet",
    )
    yield Feature(
        "due_ratio",
        "double",
        "Time since the last order of it over reorder_gap_days_mean; above 1 when it is overdue",
        "ratio",
        "lifetime",
        "less than two orders of it yet, or all at one moment",
    )
    yield from _affinity.affinities("item", project)
    unknown = "unknown to the catalogue"
    yield Feature("category", "varchar", "The product's category by then", "label", "none", unknown, None, True)
    yield Feature("brand", "varchar", "The product's brand by then", "label", "none", unknown, None, True)
    yield Feature("price_now", PRICE, "The catalogue's price by then", MONEY, "none", unknown)
    yield Feature(
        "price_at_last_view",
        PRICE,
        "Price at the customer's last view of it that has one",
        MONEY,
        "lifetime",
        "never viewed with a price",
    )
    yield Feature(
        "price_change_since_view",
        "double",
        "price_now over price_at_last_view, less 1",
        "ratio",
        "none",
        "either is unknown, or that of the view is 0",
        (-1, None),
    )
