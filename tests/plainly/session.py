"""session_features, plainly."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from plainly import HOUR, Event, Shop, distinct, grouped, local, money_of, of_type, ratio, seed, sums, total, whole_seconds

SECOND = HOUR / 3600
LAST = 5


def features(shop: Shop, as_of: datetime, asked: list[str]) -> dict[Any, dict[str, Any]]:
    """Every session asked for that had an event by then."""
    sessions = grouped(shop.visible(as_of), "session_id")
    return {each: session(sessions[each], as_of) for each in asked if each in sessions}


def session(events: list[Event], as_of: datetime) -> dict[str, Any]:
    events = sorted(events, key=lambda event: (event["event_at"], event["event_id"]))
    first, last = events[0], events[-1]
    every = sums(events)
    measures = "views list_views searches cart_adds cart_removes checkouts wishlist_adds orders units revenue refunds"
    adds = [place for place, event in enumerate(events) if event["event_type"] == "add_to_cart"]
    before, after = (events[: adds[0]], events[adds[0] + 1 :]) if adds else (events, [])
    dwells = [
        (following["event_at"] - event["event_at"]) / SECOND
        for event, following in pairwise(events)
        if event["event_type"] == "view_item"
    ]
    products = distinct(event["product_id"] for event in events)
    return {
        "customer_id": first["customer"],
        "started_at": first["event_at"],
        "last_event_at": last["event_at"],
        "length_seconds": whole_seconds(first["event_at"], last["event_at"]),
        "seconds_since_last_event": (as_of - last["event_at"]) / SECOND,
        "is_over": as_of - last["event_at"] > HOUR / 2,
        "events": len(events),
        **{measure: every[measure] for measure in measures.split()},
        "has_order": every["orders"] > 0,
        "is_bounced": len(events) == 1,
        "dwell_seconds_mean": ratio(sum(dwells), len(dwells)),
        "dwell_seconds_max": max(dwells, default=None),
        "distinct_products": products,
        "distinct_categories": distinct(event["category"] for event in events),
        "distinct_brands": distinct(event["brand"] for event in events),
        "views_per_product": ratio(every["views"], products),
        "last_products": last_of([event["product_id"] for event in events]),
        "last_categories": last_of([event["category"] for event in events]),
        "events_before_first_cart_add": len(before),
        "events_after_first_cart_add": len(after),
        "views_before_first_cart_add": len(of_type(before, "view_item")),
        "views_after_first_cart_add": len(of_type(after, "view_item")),
        "seconds_to_first_cart_add": whole_seconds(first["event_at"], events[adds[0]]["event_at"]) if adds else None,
        "cart_value": left_in_cart(events, lambda event: event["amount"]),
        "cart_units": left_in_cart(events, lambda event: 1 if event["quantity"] is None else event["quantity"]),
        **{f"entry_{name}": first[name] for name in ("page", "referrer", "campaign")},
        "entry_channel": channel(first),
        "device": first["device"],
        "country": first["country"],
        "day_part": ("night", "morning", "afternoon", "evening")[local(first["event_at"]).hour // 6],
        "is_weekend": local(first["event_at"]).weekday() >= 5,
    }


def last_of(values: list[str | None]) -> list[str]:
    """The last few, each once, newest first."""
    return list(dict.fromkeys(value for value in reversed(values) if value is not None))[:LAST]


def left_in_cart(events: list[Event], worth: Any) -> Decimal | None:
    put_in, taken_out = (
        [worth(event) for event in of_type(events, kind)] for kind in ("add_to_cart", "remove_from_cart")
    )
    if money_of(put_in + taken_out) is None:
        return None
    return max(Decimal(total(put_in) - total(taken_out)), Decimal(0))


def channel(first: Event) -> str:
    if first["campaign"]:
        return "campaign"
    if not first["referrer"]:
        return "direct"
    referrer = first["referrer"]
    host = urlsplit(referrer if "//" in referrer else "//" + referrer).netloc.lower().split(".")
    found = ["", "referral"]
    for row in seed("referrer_channels"):
        site = row["site"].split(".")
        if any(host[place : place + len(site)] == site for place in range(len(host))):
            found = max(found, [row["site"], row["channel"]], key=lambda each: len(each[0]))
    return found[1]
