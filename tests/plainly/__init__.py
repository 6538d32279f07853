"""An independent computation of each feature from clean events, one event at a time in plain Python.

It shares nothing with the SQL: no tiles, windows or macros, and decimals are exact. It also links visitors to customers itself. There is
one module per mart, with `features(shop, as_of, asked)`, which returns the mart's rows as of a time, by key.
"""

from __future__ import annotations

import csv
import functools
import statistics
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

Event = dict[str, Any]
Events = dict[str, list[Event]]

EVENTS = (
    *("event_id", "identity", "user_id", "anonymous_id", "session_id", "event_type", "event_at", "available_at"),
    *("known_from", "known_to"),
    *("product_id", "category", "brand", "order_id", "list_price", "price", "price_percentile", "quantity"),
    *("amount", "gross_amount", "device", "country", "page", "referrer", "campaign", "client_class"),
)
COUNTS = {
    "views": "view_item",
    "list_views": "view_item_list",
    "searches": "search",
    "cart_adds": "add_to_cart",
    "cart_removes": "remove_from_cart",
    "checkouts": "begin_checkout",
    "wishlist_adds": "add_to_wishlist",
}
PRICED = ("view_item", "add_to_cart", "purchase")
HOUR, DAY, MICROSECOND = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "finegrain")
SMOOTHING = 20
#: The shop's time zone, for hours and weekends; a test may set another.
ZONE = "UTC"


@dataclass
class Shop:
    """A built shop: the versions of its clean events by time, and the versions of its catalogue."""

    events: list[Event]
    versions: list[dict[str, Any]]

    def visible(self, as_of: datetime) -> list[Event]:
        """The events that had happened and arrived by then, each with its `customer` at that time. Cached by as_of."""
        if as_of not in self._seen:
            owners = identities_at(self.events, as_of)
            self._seen[as_of] = [
                {**event, "customer": owners[event["identity"]]} for event in visible(self.events, as_of)
            ]
        return self._seen[as_of]

    def of_closed_days(self, as_of: datetime) -> list[Event]:
        """The events that had arrived before the day of as_of, as they were known when it began."""
        return [event for event in self.events if is_of_closed_day(event, as_of)]

    def __post_init__(self) -> None:
        self._seen: dict[datetime, list[Event]] = {}


def grouped(events: Iterable[Event], *names: str) -> dict[Any, list[Event]]:
    """Events by the values of these fields (a tuple, or the value itself if there is one field); without nulls."""
    found: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        key = tuple(event[name] for name in names)
        if None not in key:
            found[key if len(names) > 1 else key[0]].append(event)
    return found


def customer_of(identity: str) -> str:
    return str(uuid.uuid5(NAMESPACE, identity))


def identities_at(events: list[Event], as_of: datetime) -> dict[str, str]:
    """The customer of each identity seen by then: a visitor belongs to its first known login."""
    seen: dict[str, str] = {}
    logins: dict[str, tuple[Any, ...]] = {}
    for event in events:
        if event["available_at"] > as_of:
            continue
        visitor = event["anonymous_id"] and "a:" + event["anonymous_id"]
        for identity in filter(None, (event["identity"], visitor)):
            seen.setdefault(identity, customer_of(identity))
        if visitor and event["user_id"]:
            login = (event["available_at"], event["event_at"], event["event_id"], "u:" + event["user_id"])
            logins[visitor] = min(logins.get(visitor, login), login)
    return {**seen, **{visitor: customer_of(login[-1]) for visitor, login in logins.items()}}


def money(value: Decimal) -> Decimal:
    """Rounded to four decimals, half away from zero."""
    return value.quantize(Decimal("0.0001"), ROUND_HALF_UP)


def total(values: Iterable[Decimal | None]) -> Decimal:
    return sum((value for value in values if value is not None), Decimal(0))


def money_of(amounts: Iterable[Decimal | None]) -> Decimal | None:
    """The sum of amounts: 0 if there are none, and null if all of them are null."""
    amounts = list(amounts)
    return total(amounts) if not amounts or any(amount is not None for amount in amounts) else None


def ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole > 0 else None


def spread(values: list[Any]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def order_of(event: Event) -> Any:
    """The key of an order. A purchase without an order id is an order of one identity at one time."""
    if event["event_type"] != "purchase":
        return None
    return event["order_id"] or (event["identity"], event["event_at"])


def distinct(values: Iterable[Any]) -> int:
    return len({value for value in values if value is not None})


def of_type(events: list[Event], *kinds: str) -> list[Event]:
    return [event for event in events if event["event_type"] in kinds]


def whole_seconds(start: datetime, end: datetime) -> int:
    return (end - start) // timedelta(seconds=1)


def smoothed(successes: float, trials: float, prior: float) -> float:
    return min((successes + SMOOTHING * prior) / (max(trials, successes) + SMOOTHING), 1.0)


def step_rates(row: dict[str, Any], peers: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The funnel rates of one row, smoothed towards those of all its peers together."""
    peers, found = list(peers), {}
    for window in ("30d", "lifetime"):
        for rate, part, whole in (
            ("view_to_cart_rate", "cart_adds", "views"),
            ("cart_to_order_rate", "orders", "cart_adds"),
            ("view_to_order_rate", "orders", "views"),
        ):
            done, tried = (sum(peer[f"{name}_{window}"] for peer in peers) for name in (part, whole))
            prior = min(ratio(done, tried) or 0, 1)
            found[f"{rate}_{window}"] = smoothed(row[f"{part}_{window}"], row[f"{whole}_{window}"], prior)
    return found


def sums(events: list[Event]) -> dict[str, Any]:
    """The measures of every window."""
    bought, returned = of_type(events, "purchase"), of_type(events, "refund")
    return {
        **{measure: len(of_type(events, kind)) for measure, kind in COUNTS.items()},
        "orders": distinct(map(order_of, events)),
        "units": total(event["quantity"] for event in bought),
        "revenue": money_of(event["amount"] for event in bought),
        "gross_revenue": money_of(event["gross_amount"] for event in bought),
        "refunds": money_of(event["amount"] for event in returned),
        "sessions": distinct(event["session_id"] for event in events),
        "active_days": distinct(event["event_at"].date() for event in events),
        "distinct_products": distinct(event["product_id"] for event in events),
        "distinct_categories": distinct(event["category"] for event in events if event["product_id"]),
        "distinct_brands": distinct(event["brand"] for event in events if event["product_id"]),
    }


def local(moment: datetime) -> datetime:
    """A time in the shop's time zone."""
    return moment.replace(tzinfo=UTC).astimezone(ZoneInfo(ZONE)).replace(tzinfo=None)


def windows(events: list[Event], as_of: datetime) -> dict[str, list[Event]]:
    """The events of each window: windows of hours end at as_of, windows of days are whole days before the day of as_of."""
    inside = {"1h": as_of - HOUR, "24h": as_of - DAY}
    midnight = datetime.combine(as_of.date(), datetime.min.time())
    inside |= {f"{days}d": midnight - days * DAY for days in (7, 14, 30, 90, 365)}
    return {
        **{name: [event for event in events if event["event_at"] >= start] for name, start in inside.items()},
        "lifetime": events,
    }


def visible(events: list[Event], as_of: datetime) -> list[Event]:
    return [event for event in events if event["event_at"] < as_of and is_valid(event, as_of)]


def is_valid(event: Event, as_of: datetime) -> bool:
    """Whether this version of an event is what was known then."""
    return bool(event["known_from"] <= as_of and (event["known_to"] is None or as_of < event["known_to"]))


def is_of_closed_day(event: Event, as_of: datetime) -> bool:
    """Whether this version of an event was what was known when the day of as_of began."""
    ends = event["known_to"]
    return event["known_from"].date() < as_of.date() and (ends is None or as_of.date() <= ends.date())


def versions_at(versions: list[dict[str, Any]], as_of: datetime) -> dict[str, dict[str, Any]]:
    """The catalogue's version of each product at that time."""
    found: dict[str, dict[str, Any]] = {}
    for version in sorted(versions, key=lambda version: version["known_at"]):
        if version["known_at"] <= as_of:
            found[version["product_id"]] = version
    return found


@functools.cache
def seed(name: str) -> list[dict[str, str]]:
    """The rows of one of the project's seeds."""
    with (Path(__file__).parent.parent.parent / "seeds" / f"{name}.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
