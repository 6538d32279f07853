"""session_features, plainly."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any
from urllib.parse import unquote_plus

from plainly import (
    HOUR,
    Event,
    Shop,
    distinct,
    grouped,
    local,
    money_of,
    of_type,
    ratio,
    seed,
    sums,
    total,
    whole_seconds,
)

SECOND = HOUR / 3600
LAST = 5


def features(shop: Shop, as_of: datetime, asked: list[str]) -> dict[Any, dict[str, Any]]:
    """The sessions in `asked` with an event by then."""
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
        "customer_id": max(events, key=lambda event: event["identity"])["customer"],
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
        "entry_page": first["page"],
        "entry_referrer": first["referrer"],
        "entry_campaign": tag(first["page"], "utm_campaign") or first["campaign"],
        "entry_channel": channel(first["page"], first["referrer"], first["campaign"]),
        "visitor_class": first["client_class"]
        or ("assistant_referred" if came_from(first["page"], first["referrer"])[1] == "assistant" else "human"),
        "device": first["device"],
        "country": first["country"],
        "day_part": ("night", "morning", "afternoon", "evening")[local(first["event_at"]).hour // 6],
        "is_weekend": local(first["event_at"]).weekday() >= 5,
    }


def last_of(values: list[str | None]) -> list[str]:
    """The last few distinct values, newest first."""
    return list(dict.fromkeys(value for value in reversed(values) if value is not None))[:LAST]


def left_in_cart(events: list[Event], worth: Any) -> Decimal | None:
    put_in, taken_out = (
        [worth(event) for event in of_type(events, kind)] for kind in ("add_to_cart", "remove_from_cart")
    )
    if money_of(put_in + taken_out) is None:
        return None
    return max(Decimal(total(put_in) - total(taken_out)), Decimal(0))


NOTHING = ("direct", "(direct)", "none", "(none)", "(not set)", "(not provided)", "null", "undefined")
EMAIL = ("email", "e-mail", "e_mail", "e mail", "newsletter")
AFFILIATES = ("affiliate", "affiliates")
SOCIAL = ("social", "social-network", "social-media", "social network", "social media", "sm")
SPELLED_OUT = (
    *(
        "organic",
        "cpc",
        "ppc",
        "cpm",
        "paid",
        "paidsearch",
        "paid_search",
        "paidsocial",
        "paid_social",
        "display",
        "email",
    ),
    *("newsletter", "affiliate", "affiliates", "social", "referral"),
)


def tag(page: str | None, name: str) -> str | None:
    """The first query parameter of this name, decoded."""
    for part in re.split("[?&]", page or "")[1:]:
        key, equals, value = part.removeprefix("amp;").partition("=")
        if equals and key.lower() == name:
            try:
                value = unquote_plus(value.partition("#")[0], errors="strict")
            except UnicodeDecodeError:
                return None
            value = "".join(letter for letter in value if ord(letter) >= 32 and ord(letter) != 127).strip(" ")
            return None if value.lower() in ("", *NOTHING) else value
    return None


def has(page: str | None, *names: str) -> bool:
    return any(re.match(f"(amp;)?({'|'.join(names)})=[^#]", part.lower()) for part in re.split("[?&]", page or "")[1:])


def site(address: str | None) -> str | None:
    """The host of a URL without port and www.; None if it has none."""
    if not address:
        return None
    rest = re.sub(r"^[a-z][a-z0-9+.-]*://", "//", address.lower())
    host = re.sub(":[0-9]*$", "", re.split("[/?#]", rest.removeprefix("//"))[0]).removeprefix("www.")
    letters = host.replace(".", "").replace("-", "").replace("_", "")
    return host if host[:1] != "." and host and (letters == "" or letters.isalnum()) else None


def kind_of(place: str | None) -> str | None:
    """The seed's kind for the longest domain suffix of a host."""
    parts, found = (place or "").split("."), ["", ""]
    for row in seed("referrer_channels"):
        named = row["site"].split(".")
        if any(parts[at : at + len(named)] == named for at in range(len(parts))):
            found = max(found, [row["site"], row["channel"]], key=lambda each: len(each[0]))
    return found[1] or None


def clicked_on(page: str | None) -> str | None:
    """The site of a paid click."""
    return "google" if has(page, "gclid", "gbraid", "wbraid") else "bing" if has(page, "msclkid") else None


def came_from(page: str | None, referrer: str | None) -> tuple[str | None, str | None]:
    """The host or tag that led to a visit, and its kind."""
    source = (tag(page, "utm_source") or "").lower()
    ours, theirs = site(page), site(referrer)
    if ours and theirs and (ours == theirs or f".{ours}".endswith(f".{theirs}") or f".{theirs}".endswith(f".{ours}")):
        theirs = None
    shared = "facebook" if has(page, "fbclid") else None
    place = {"fb": "facebook", "ig": "instagram"}.get(source, source) or clicked_on(page) or theirs or shared
    return place, kind_of(place)


def channel(page: str | None, referrer: str | None, campaign: str | None) -> str:
    """The channel of a visit, from the tags of its page, its campaign and its referrer."""
    source, medium = ((tag(page, name) or "").lower() for name in ("utm_source", "utm_medium"))
    clicked = clicked_on(page)
    place, kind = came_from(page, referrer)
    word = (campaign or "").lower()
    medium = medium or ("cpc" if clicked else "") or (word if word in SPELLED_OUT else "")
    campaign = tag(page, "utm_campaign") or campaign
    paid = "cp" in medium or medium in ("ppc", "retargeting") or medium.startswith("paid")
    if paid and kind in ("search", "social"):
        return f"paid {kind}"
    if medium in ("display", "banner", "expandable", "interstitial", "cpm"):
        return "display"
    if paid:
        return "paid other"
    if medium in EMAIL or (source or clicked or "") in EMAIL:
        return "email"
    if medium in AFFILIATES:
        return "affiliates"
    if kind == "assistant":
        return "ai assistant"
    if campaign and not medium:
        return "campaign"
    if medium in SOCIAL:
        return "organic social"
    if medium == "organic":
        return "organic social" if kind == "social" else "organic search"
    if medium in ("referral", "app", "link"):
        return "referral"
    if kind in ("search", "social"):
        return f"organic {kind}"
    if source or medium:
        return "campaign"
    return "referral" if place else "direct"
