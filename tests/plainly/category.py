"""category_features, plainly."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import Decimal
from typing import Any

from plainly import (
    DAY,
    HOUR,
    Event,
    Shop,
    distinct,
    grouped,
    money,
    of_type,
    ratio,
    step_rates,
    sums,
    total,
    versions_at,
    windows,
)
from plainly.item import category_and_price


def features(shop: Shop, as_of: datetime, asked: list[str]) -> dict[Any, dict[str, Any]]:
    """All categories known by then that are in `asked`; shares and rates compare each with all."""
    met = [event for event in shop.visible(as_of) if event["product_id"]]
    of_category, of_product = grouped(met, "category"), grouped(met, "product_id")
    catalogue = versions_at(shop.versions, as_of)
    listed = [version["category"] for version in catalogue.values() if version["category"]]
    offers = [
        category_and_price(of_product.get(product, []), catalogue.get(product))
        for product in of_product.keys() | catalogue.keys()
    ]
    found = {
        category: {
            **category_alone(of_category.get(category, []), as_of),
            "products_in_catalogue": listed.count(category),
            **quartiles([price for label, price in offers if label == category and price is not None]),
        }
        for category in of_category.keys() | set(listed)
    }
    for row in found.values():
        row |= step_rates(row, found.values())
        for measure in ("views", "revenue"):
            part, whole = row[f"{measure}_30d"], sum(other[f"{measure}_30d"] or 0 for other in found.values())
            row[f"share_of_{measure}_30d"] = None if part is None else ratio(part, whole)
    return {category: found[category] for category in asked if category in found}


def category_alone(mine: list[Event], as_of: datetime) -> dict[str, Any]:
    """The features that only need its own events."""
    found: dict[str, Any] = {}
    measures = "views list_views cart_adds cart_removes wishlist_adds orders units revenue gross_revenue refunds"
    inside = windows(mine, as_of)
    for window, events in inside.items():
        every = sums(events)
        found |= {f"{measure}_{window}": every[measure] for measure in measures.split()}
        found[f"users_{window}"] = distinct(event["customer"] for event in events)

    ordered = of_type(mine, "purchase")
    returned = ratio(
        total(event["quantity"] for event in of_type(mine, "refund")), total(event["quantity"] for event in ordered)
    )
    found |= {
        "items_with_events_30d": distinct(event["product_id"] for event in inside["30d"]),
        "hours_since_event": min(((as_of - event["event_at"]) / HOUR for event in mine), default=None),
        "hours_since_order": min(((as_of - event["event_at"]) / HOUR for event in ordered), default=None),
        "return_rate_lifetime": None if returned is None else min(returned, 1.0),
    }
    for measure in ("views", "units"):
        week, month = (
            float(sums([event for event in mine if 1 <= age(event, as_of) <= days])[measure]) / days for days in (7, 30)
        )
        found |= {f"{measure}_sma_7d": week, f"{measure}_sma_30d": month}
        found[f"{measure}_trend_7d_30d"] = (week + 1 / 30) / (month + 1 / 30)
    return found


def age(event: Event, as_of: datetime) -> int:
    """The age of an event in calendar days."""
    return (as_of.date() - event["event_at"].date()) // DAY


def quartiles(prices: list[Decimal]) -> dict[str, Any]:
    """The quartiles of prices."""
    ranked = sorted(prices)

    def at(share: Decimal) -> Decimal | None:
        if not ranked:
            return None
        place = share * (len(ranked) - 1)
        low, high = ranked[math.floor(place)], ranked[math.ceil(place)]
        return money(low + (high - low) * (place - math.floor(place)))

    return {
        "products_priced": len(ranked),
        "price_q25": at(Decimal("0.25")),
        "price_median": at(Decimal("0.5")),
        "price_q75": at(Decimal("0.75")),
    }
