"""user_category_features and user_brand_features in plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date, datetime
from fractions import Fraction
from typing import Any

from plainly import (
    DAY,
    HOUR,
    PRICED,
    Event,
    Shop,
    distinct,
    grouped,
    money_of,
    of_type,
    order_of,
    ratio,
    seed,
    sums,
    total,
    windows,
)

MEASURES = "views cart_adds units revenue orders"
KINDS = {"views": "view_item", "cart_adds": "add_to_cart", "purchases": "purchase"}
SUPPORT = 5


def weight_by_age(events: list[Event], today: date, half_life: int) -> Fraction:
    """The sum of the events' weights, each halved per half-life of age and rounded to nine decimals."""
    weights = {KINDS[row["measure"]]: int(row["weight"]) for row in seed("event_weights")}
    found = Fraction(0)
    for event in of_type(events, *weights):
        decay = 0.5 ** ((today - event["event_at"].date()).days / half_life)
        found += weights[event["event_type"]] * Fraction(int(decay * 10**9 + 0.5), 10**9)
    return found


def hours_since(as_of: datetime, moments: Iterable[datetime]) -> float | None:
    last = max(moments, default=None)
    return None if last is None else (as_of - last) / HOUR


def ordered_at(events: list[Event]) -> list[datetime]:
    """The time of each order in these events: that of its first line."""
    found: dict[Any, datetime] = {}
    for event in of_type(events, "purchase"):
        order = order_of(event)
        found[order] = min(found.get(order, event["event_at"]), event["event_at"])
    return sorted(found.values())


def prices(events: list[Event]) -> list[Any]:
    return [event["price"] for event in of_type(events, *PRICED) if event["price"] is not None]


def in_90_days(events: list[Event], as_of: datetime) -> list[Event]:
    return [event for event in events if event["event_at"].date() >= as_of.date() - 90 * DAY]


def affinity_features(kind: str, shop: Shop, as_of: datetime, asked: list[str]) -> dict[Any, dict[str, Any]]:
    """Features by customer and `kind` (category or brand), for the customers in `asked`."""
    about = [event for event in shop.visible(as_of) if event["product_id"] and event[kind]]
    of_shop = [event for event in shop.of_closed_days(as_of) if event["product_id"] and event[kind]]
    found = {}
    for customer, mine in grouped(about, "customer").items():
        if customer not in asked:
            continue
        by_kind = grouped(mine, kind)
        month = {each: weight_by_age(events, as_of.date(), 30) for each, events in by_kind.items()}
        for each, events in by_kind.items():
            theirs = [event for event in of_shop if event[kind] == each]
            found[customer, each] = {
                **of_one(kind, events, as_of),
                **beside(events, mine, theirs, of_shop, as_of),
                "affinity_share_30d": ratio(month[each], sum(month.values())),
                "preference_rank": 1 + sum(other > month[each] for other in month.values()),
            }
    return found


def of_one(kind: str, events: list[Event], as_of: datetime) -> dict[str, Any]:
    """The features that only need the customer's events about the category or brand."""
    found: dict[str, Any] = {}
    for window, inside in windows(events, as_of).items():
        if window not in ("1h", "24h"):
            every = sums(inside)
            found |= {f"{measure}_{window}": every[measure] for measure in MEASURES.split()}
    for half_life in (1, 7, 30):
        found[f"{kind}_affinity_{half_life}d"] = float(weight_by_age(events, as_of.date(), half_life))
    return {
        **found,
        "hours_since_event": hours_since(as_of, (event["event_at"] for event in events)),
        "hours_since_view": hours_since(as_of, (event["event_at"] for event in of_type(events, "view_item"))),
        "hours_since_cart_add": hours_since(as_of, (event["event_at"] for event in of_type(events, "add_to_cart"))),
        "hours_since_order": hours_since(as_of, ordered_at(events)),
        "active_days_90d": distinct(event["event_at"].date() for event in in_90_days(events, as_of)),
        "distinct_products_lifetime": distinct(event["product_id"] for event in events),
        "price_mean_lifetime": ratio(total(prices(events)), len(prices(events))),
    }


def beside(
    events: list[Event], mine: list[Event], theirs: list[Event], of_shop: list[Event], as_of: datetime
) -> dict[str, Any]:
    """Compare these events with all events of the customer, with the shop's events about the same category or brand, and with all events of the shop."""
    found: dict[str, Any] = {}
    every = (events, mine, theirs, of_shop)
    for window, (inside, of_mine, of_theirs, of_all) in {
        "90d": [in_90_days(some, as_of) for some in every],
        "lifetime": every,
    }.items():
        spent, in_all = (money_of(event["amount"] for event in of_type(some, "purchase")) for some in (inside, of_mine))
        enough = len(inside) >= SUPPORT and of_theirs
        lift = len(inside) / len(of_mine) / (len(of_theirs) / len(of_all)) if enough else None
        found |= {
            f"share_of_events_{window}": ratio(len(inside), len(of_mine)),
            f"share_of_spend_{window}": None if spent is None or in_all is None else ratio(spent, in_all),
            f"lift_{window}": lift,
            f"pmi_{window}": None if lift is None else math.log(lift),
        }
    mean, shops_mean = (ratio(total(prices(some)), len(prices(some))) for some in (events, theirs))
    found["price_ratio_lifetime"] = ratio(mean, shops_mean) if mean is not None and shops_mean else None
    return found
