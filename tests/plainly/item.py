"""item_features, plainly."""

from __future__ import annotations

from collections import defaultdict
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from plainly import (
    DAY,
    HOUR,
    PRICED,
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


def features(shop: Shop, as_of: datetime, asked: list[str]) -> dict[Any, dict[str, Any]]:
    """All items known by then that are in `asked`; ranks and rates compare each with all."""
    found = item_features(shop, as_of)
    return {item: found[item] for item in asked if item in found}


def item_features(shop: Shop, as_of: datetime) -> dict[str, dict[str, Any]]:
    """All features of all items known by then."""
    of_product = grouped(shop.visible(as_of), "product_id")
    catalogue = versions_at(shop.versions, as_of)
    found = {
        product: item_alone(of_product.get(product, []), catalogue.get(product), as_of)
        for product in of_product.keys() | catalogue.keys()
    }
    for item in found.values():
        peers = [other for other in found.values() if other["category"] == item["category"]]
        item |= step_rates(item, peers)
        for rank, measure in (
            ("popularity_rank_7d", "views_7d"),
            ("popularity_rank_30d", "views_30d"),
            ("revenue_rank_30d", "revenue_30d"),
        ):
            # Unknown values are not compared, and have no rank.
            known = [other[measure] for other in found.values() if other[measure] is not None]
            mine = item[measure]
            item[rank] = None if mine is None else 1 + sum(other > mine for other in known)
        priced = [peer["price_now"] for peer in peers if peer["price_now"] is not None]
        item["price_percentile_in_category"] = None
        if item["price_now"] is not None:
            cheaper = sum(price < item["price_now"] for price in priced)
            item["price_percentile_in_category"] = cheaper / max(len(priced) - 1, 1)
    return found


def item_alone(mine: list[Event], version: dict[str, Any] | None, as_of: datetime) -> dict[str, Any]:
    """The features of an item that need no other items."""
    inside = windows(mine, as_of)
    found: dict[str, Any] = {}
    measures = "views list_views cart_adds cart_removes wishlist_adds orders units revenue gross_revenue refunds"
    for window, events in inside.items():
        every = sums(events)
        found |= {f"{measure}_{window}": every[measure] for measure in measures.split()}
        found[f"users_{window}"] = distinct(event["customer"] for event in events)

    moments = [event["event_at"] for event in mine]
    ordered = [event["event_at"] for event in of_type(mine, "purchase")]
    born = moments + [version[name] for name in ("created_at", "first_known_at") if version and version[name]]
    bought: dict[str, set[date]] = defaultdict(set)
    for event in mine:
        if event["event_type"] == "purchase" and (event["quantity"] or 0) > 0:
            bought[event["customer"]].add(event["event_at"].date())
    daily = prices_by_day(mine)
    category, price = category_and_price(mine, version)
    month = [price for day, prices in daily.items() if day >= as_of.date() - 30 * DAY for price in prices]
    returned = ratio(
        total(event["quantity"] for event in of_type(mine, "refund")),
        total(event["quantity"] for event in of_type(mine, "purchase")),
    )
    found |= {
        "hours_since_event": (as_of - max(moments)) / HOUR if moments else None,
        "hours_since_order": (as_of - max(ordered)) / HOUR if ordered else None,
        "age_days": max((as_of - min(born)) / DAY, 0),
        "repeat_buy_rate": ratio(sum(len(days) > 1 for days in bought.values()), len(bought)),
        "return_rate_lifetime": None if returned is None else min(returned, 1.0),
        "category": category,
        "brand": version and version["brand"],
        "price_now": price,
        "price_mean_30d": ratio(total(month), len(month)),
    }
    mean = found["price_mean_30d"]
    found["price_to_mean_30d"] = None if price is None or mean is None else ratio(price, mean)

    # By age, in whole days.
    days: dict[int, list[Event]] = defaultdict(list)
    for event in mine:
        if age := (as_of.date() - event["event_at"].date()).days:
            days[age].append(event)
    for measure in ("views", "units"):
        past = {age: float(sums(events)[measure]) for age, events in days.items()}
        for span in (7, 30):
            found[f"{measure}_sma_{span}d"] = sum(n for age, n in past.items() if age <= span) / span
        week, four_weeks = found[f"{measure}_sma_7d"], found[f"{measure}_sma_30d"]
        found[f"{measure}_trend_7d_30d"] = (week + 1 / 30) / (four_weeks + 1 / 30)
    for span in (1, 7, 30):
        weights = [0.5 ** (age / span) for age in range(1, 2000)]
        views = sum(len(of_type(events, "view_item")) * weights[age - 1] for age, events in days.items())
        found[f"views_ema_{span}d"] = views / sum(weights)
    for measure in ("views", "units"):
        by_day = sorted(float(sums(days.get(age, []))[measure]) for age in range(1, 31))
        found[f"{measure}_trimmed_mean_30d"] = sum(by_day[3:-3]) / 24
    recent = {
        day: (sum(prices, Decimal(0)) / len(prices)).quantize(Decimal("0.0001"), ROUND_HALF_UP)
        for day, prices in daily.items()
        if day >= as_of.date() - 30 * DAY
    }
    weights = {day: 0.5 ** ((as_of.date() - day).days / 7) for day in recent}
    weighted = sum(weights[day] * float(price) for day, price in recent.items())
    found["price_ema_7d"] = weighted / sum(weights.values()) if recent else None
    means = sorted(recent.values())
    cut = len(means) // 10
    middle = means[cut : len(means) - cut]
    found["price_trimmed_mean_30d"] = float(sum(middle) / len(middle)) if middle else None
    found["days_averaged_30d"] = min(max((as_of.date() - min(born).date()).days, 0), 30)
    return found


def prices_by_day(events: list[Event]) -> dict[date, list[Decimal]]:
    """The prices of views, cart additions and purchases."""
    daily: dict[date, list[Decimal]] = defaultdict(list)
    for event in events:
        if event["event_type"] in PRICED and event["price"] is not None:
            daily[event["event_at"].date()].append(event["price"])
    return daily


def category_and_price(mine: list[Event], version: dict[str, Any] | None) -> tuple[str | None, Decimal | None]:
    """A product's category and price: from the catalogue, or else from its events."""
    daily = prices_by_day(mine)
    seen_price = money(total(daily[max(daily)]) / len(daily[max(daily)])) if daily else None
    named: dict[str, list[datetime]] = defaultdict(list)
    for event in mine:
        if event["category"]:
            named[event["category"]].append(event["event_at"])
    most = max((len(moments) for moments in named.values()), default=0)
    latest = max((max(moments) for moments in named.values() if len(moments) == most), default=None)
    likely = [name for name, moments in named.items() if len(moments) == most and max(moments) == latest]
    return (
        (version and version["category"]) or min(likely, default=None),
        version["price"] if version and version["price"] is not None else seen_price,
    )
