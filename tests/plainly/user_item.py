"""user_item_features in plain Python."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any

from plainly import DAY, Event, Shop, grouped, of_type, ratio, sums, versions_at, windows
from plainly.affinity import hours_since, ordered_at, weight_by_age

MEASURES = "views cart_adds cart_removes units revenue orders"


def features(shop: Shop, as_of: datetime, asked: list[str]) -> dict[Any, dict[str, Any]]:
    """Features by customer and product, for the customers in `asked`."""
    catalogue = versions_at(shop.versions, as_of)
    of_customer = grouped(shop.visible(as_of), "customer")
    return {
        (customer, product): user_item_features(events, of_customer[customer], catalogue.get(product), as_of)
        for customer in asked
        for product, events in grouped(of_customer.get(customer, []), "product_id").items()
    }


def user_item_features(
    events: list[Event], mine: list[Event], version: dict[str, Any] | None, as_of: datetime
) -> dict[str, Any]:
    """All features of one customer and product. `mine` are the customer's visible events, `events` those about the product."""
    found: dict[str, Any] = {}
    for window, inside in windows(events, as_of).items():
        every = sums(inside)
        found |= {f"{measure}_{window}": every[measure] for measure in MEASURES.split()}
    for half_life in (1, 7, 30):
        found[f"item_affinity_{half_life}d"] = float(weight_by_age(events, as_of.date(), half_life))

    orders = ordered_at(events)
    gaps = [(later - earlier) / DAY for earlier, later in pairwise(orders)]
    gap = ratio(sum(gaps), len(gaps))
    # The last event that changed the cart; at the same time, removal wins over addition.
    carts = of_type(events, "add_to_cart", "remove_from_cart", "purchase")
    last = max(carts, key=lambda event: (event["event_at"], event["event_type"] != "add_to_cart"), default=None)
    viewed = [
        (event["event_at"], event["price"]) for event in of_type(events, "view_item") if event["price"] is not None
    ]
    seen = max(viewed)[1] if viewed else None
    now = version["price"] if version else None
    return {
        **found,
        "hours_since_view": hours_since(as_of, (event["event_at"] for event in of_type(events, "view_item"))),
        "hours_since_cart_add": hours_since(as_of, (event["event_at"] for event in of_type(events, "add_to_cart"))),
        "hours_since_order": hours_since(as_of, orders),
        "days_since_first_event": (as_of - min(event["event_at"] for event in events)) / DAY,
        "in_cart_now": last is not None and last["event_type"] == "add_to_cart",
        "orders_since_last": sum(moment > max(orders) for moment in ordered_at(mine)) if orders else None,
        "reorder_gap_days_mean": gap,
        "due_ratio": ratio((as_of - max(orders)) / DAY, gap) if gap else None,
        "category": version and version["category"],
        "brand": version and version["brand"],
        "price_now": now,
        "price_at_last_view": seen,
        "price_change_since_view": float(now) / float(seen) - 1 if now is not None and seen else None,
    }
