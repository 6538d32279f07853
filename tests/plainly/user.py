"""user_features, plainly."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

from plainly import (
    DAY,
    HOUR,
    PRICED,
    Event,
    Shop,
    grouped,
    local,
    money,
    money_of,
    of_type,
    order_of,
    ratio,
    seed,
    smoothed,
    spread,
    sums,
    total,
    whole_seconds,
    windows,
)


def features(shop: Shop, as_of: datetime, asked: list[str]) -> dict[Any, dict[str, Any]]:
    """All customers in `asked`, known or not."""
    by_customer = grouped(shop.visible(as_of), "customer")
    before_today = shop.of_closed_days(as_of)
    return {customer: user_features(by_customer.get(customer, []), before_today, as_of) for customer in asked}


def user_features(mine: list[Event], arrived_before_today: list[Event], as_of: datetime) -> dict[str, Any]:
    """All features of one customer; `mine` are the customer's visible events."""
    found: dict[str, Any] = {}
    inside = windows(mine, as_of)
    for window, events in inside.items():
        found |= {f"{measure}_{window}": value for measure, value in sums(events).items()}

    def hours_since(moments: Iterable[datetime], pick: Callable[[list[datetime]], datetime] = max) -> float | None:
        known = list(moments)
        return (as_of - pick(known)) / HOUR if known else None

    orders: dict[Any, list[Event]] = defaultdict(list)
    for event in of_type(mine, "purchase"):
        orders[order_of(event)].append(event)
    ordered_at = sorted(min(event["event_at"] for event in lines) for lines in orders.values())
    worths = [money_of(event["amount"] for event in lines) for lines in orders.values()]
    values = [worth for worth in worths if worth is not None]
    gaps = [whole_seconds(*pair) for pair in pairwise(ordered_at)]
    gap_mean = ratio(sum(gaps), len(gaps) * 86400)
    gap_std = spread(gaps)
    since_order = hours_since(ordered_at)
    found |= {
        "hours_since_view": hours_since(event["event_at"] for event in of_type(mine, "view_item")),
        "hours_since_cart_add": hours_since(event["event_at"] for event in of_type(mine, "add_to_cart")),
        "hours_since_order": since_order,
        "hours_since_session": hours_since(event["event_at"] for event in mine),
        "tenure_days": (lambda hours: hours and hours / 24)(hours_since((e["event_at"] for e in mine), min)),
        "order_value_mean": ratio(total(values), len(values)),
        "order_value_max": max(values, default=None),
        "order_gap_days_mean": gap_mean,
        "order_gap_days_std": None if gap_std is None else gap_std / 86400,
        "days_to_expected_order": None if gap_mean is None else gap_mean - since_order / 24,
    }

    for window in ("90d", "lifetime"):
        shop = windows(arrived_before_today, as_of)[window]
        views, adds = len(of_type(shop, "view_item")), len(of_type(shop, "add_to_cart"))
        units = float(total(event["quantity"] for event in of_type(shop, "purchase")))
        found |= {f"{name}_{window}": value for name, value in preferences(inside[window]).items()}
        found[f"session_seconds_mean_{window}_was_missing"] = found[f"session_seconds_mean_{window}"] is None
        found[f"view_to_cart_rate_{window}"] = smoothed(
            found[f"cart_adds_{window}"], found[f"views_{window}"], min(ratio(adds, views) or 0, 1)
        )
        found[f"cart_to_unit_rate_{window}"] = smoothed(
            float(found[f"units_{window}"]), found[f"cart_adds_{window}"], min(ratio(units, adds) or 0, 1)
        )
    for window, days in (("30d", 30), ("90d", 90), ("lifetime", None)):
        carts, value = abandoned(mine, as_of, days)
        found |= {f"abandoned_carts_{window}": carts, f"abandoned_cart_value_{window}": value}

    bought_this_year = found["orders_365d"] > 0
    found |= {
        "rfm_recency_score": score("recency_days", since_order and since_order / 24),
        "rfm_frequency_score": score("orders", found["orders_365d"] if bought_this_year else None),
        "rfm_monetary_score": score(
            "revenue", float(found["revenue_365d"]) if bought_this_year and found["revenue_365d"] is not None else None
        ),
    }
    found["rfm_segment"] = next(
        (
            row["segment"]
            for row in seed("rfm_segments")
            if int(row["recency_score"]) == found["rfm_recency_score"]
            and int(row["frequency_score"]) == found["rfm_frequency_score"]
        ),
        None,
    )
    return found


def preferences(events: list[Event]) -> dict[str, Any]:
    """The preferences over 90 days and the lifetime."""
    bought = of_type(events, "purchase")
    listed = [event for event in bought if event["list_price"] is not None and event["quantity"] is not None]
    full = total(
        money(max(event["list_price"], event["price"] or event["list_price"]) * event["quantity"]) for event in listed
    )
    saved = total(
        money((event["list_price"] - event["price"]) * event["quantity"])
        for event in listed
        if event["price"] is not None and event["list_price"] > event["price"]
    )
    prices = [
        event["price"] for event in of_type(events, *PRICED) if event["price"] is not None and event["product_id"]
    ]
    ranks = [
        event["price_percentile"]
        for event in of_type(events, *PRICED)
        if event["price"] is not None and event["product_id"] and event["price_percentile"] is not None
    ]
    categories = Counter(event["category"] for event in events if event["product_id"] and event["category"])
    hours = [local(event["event_at"]).hour for event in events]
    devices = [event["device"] for event in events if event["device"]]
    sessions: dict[str, list[datetime]] = defaultdict(list)
    for event in events:
        if event["session_id"]:
            sessions[event["session_id"]].append(event["event_at"])
    lengths = [whole_seconds(min(moments), max(moments)) for moments in sessions.values()]
    shares = {
        "night": sum(hour < 6 for hour in hours),
        "morning": sum(6 <= hour < 12 for hour in hours),
        "afternoon": sum(12 <= hour < 18 for hour in hours),
        "evening": sum(hour >= 18 for hour in hours),
        "weekend": sum(local(event["event_at"]).weekday() >= 5 for event in events),
    }
    units = total(event["quantity"] for event in bought)
    refunded = total(event["quantity"] for event in of_type(events, "refund"))
    units = total(event["quantity"] for event in bought)
    return {
        "discount_share": ratio(saved, full),
        "return_rate": ratio(min(refunded, units), units),
        "price_mean": ratio(total(prices), len(prices)),
        "price_std": spread(prices),
        "price_percentile_mean": ratio(sum(ranks), len(ranks)),
        "category_entropy": -sum(n / categories.total() * math.log(n / categories.total()) for n in categories.values())
        if categories
        else None,
        **{f"{name}_share": ratio(n, len(events)) for name, n in shares.items()},
        **{f"{name}_share": ratio(devices.count(name), len(devices)) for name in ("desktop", "mobile", "tablet")},
        "session_seconds_mean": ratio(sum(lengths), len(lengths)),
    }


def abandoned(events: list[Event], as_of: datetime, days: int | None) -> tuple[int, Decimal | None]:
    """The number of sessions that ended at least half an hour ago with a cart but no purchase, and the value of their carts."""
    sessions: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event["session_id"]:
            sessions[event["session_id"]].append(event)
    values: list[Decimal | None] = []
    for session in sessions.values():
        last_at = max(event["event_at"] for event in session)
        if not of_type(session, "add_to_cart") or of_type(session, "purchase") or last_at >= as_of - HOUR / 2:
            continue
        if days is None or last_at.date() >= as_of.date() - days * DAY:
            put_in = [event["amount"] for event in of_type(session, "add_to_cart")]
            taken_out = [event["amount"] for event in of_type(session, "remove_from_cart")]
            is_known = money_of(put_in + taken_out) is not None
            values.append(max(total(put_in) - total(taken_out), Decimal(0)) if is_known else None)
    return len(values), money_of(values)


def score(measure: str, value: float | None) -> int | None:
    if value is None:
        return None
    for row in seed("rfm_bounds"):
        if row["measure"] == measure and float(row["at_least"]) <= value < float(row["below"] or "inf"):
            return int(row["score"])
    return None
