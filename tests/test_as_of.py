"""A feature at a moment is what a plain reading of the clean events of that moment gives.

The plain reading is below: for each question, the events that had arrived by then are picked out of a list, one by one,
and counted in Python, with exact decimals. It shares nothing with the SQL: no tiles, no windows, no macros; who a
visitor belongs to is worked out again as well. Questions are asked where answers change: at the very moments of events
and arrivals, an hour, a day and whole days after them, at midnights, and a microsecond to either side.
"""

from __future__ import annotations

import csv
import math
import statistics
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_shops import Houses, ShopMaker, land

from orchestration.settings import Settings

Event = dict[str, Any]
Events = dict[str, list[Event]]

EVENTS = (
    *("event_id", "identity", "user_id", "anonymous_id", "session_id", "event_type", "event_at", "available_at"),
    *("product_id", "category", "brand", "order_id", "list_price", "price", "price_percentile", "quantity"),
    *("amount", "gross_amount", "device"),
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


# --- the plain reading ---------------------------------------------------------------------------------------------


def customer_of(identity: str) -> str:
    return str(uuid.uuid5(NAMESPACE, identity))


def identities_at(events: list[Event], as_of: datetime) -> dict[str, str]:
    """The customer of each identity that had been seen by then: a visitor belongs to the first login known on it."""
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
    """To four decimals, half away from zero."""
    return value.quantize(Decimal("0.0001"), ROUND_HALF_UP)


def total(values: Iterable[Decimal | None]) -> Decimal:
    return sum((value for value in values if value is not None), Decimal(0))


def ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole > 0 else None


def spread(values: list[Any]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def order_of(event: Event) -> Any:
    """A purchase without an order id is an order of its own, of one identity at one moment."""
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


def sums(events: list[Event]) -> dict[str, Any]:
    """Measures that every window has."""
    bought, returned = of_type(events, "purchase"), of_type(events, "refund")
    return {
        **{measure: len(of_type(events, kind)) for measure, kind in COUNTS.items()},
        "orders": distinct(map(order_of, events)),
        "units": total(event["quantity"] for event in bought),
        "revenue": total(event["amount"] for event in bought),
        "gross_revenue": total(event["gross_amount"] for event in bought),
        "refunds": total(event["amount"] for event in returned),
        "sessions": distinct(event["session_id"] for event in events),
        "active_days": distinct(event["event_at"].date() for event in events),
        "distinct_products": distinct(event["product_id"] for event in events),
        "distinct_categories": distinct(event["category"] for event in events if event["product_id"]),
        "distinct_brands": distinct(event["brand"] for event in events if event["product_id"]),
    }


def windows(events: list[Event], as_of: datetime) -> dict[str, list[Event]]:
    """The events of each window: hours end at the moment itself, days are whole days before the moment's day."""
    inside = {"1h": as_of - HOUR, "24h": as_of - DAY}
    midnight = datetime.combine(as_of.date(), datetime.min.time())
    inside |= {f"{days}d": midnight - days * DAY for days in (7, 30, 90, 365)}
    return {
        **{name: [event for event in events if event["event_at"] >= start] for name, start in inside.items()},
        "lifetime": events,
    }


def visible(events: list[Event], as_of: datetime) -> list[Event]:
    return [event for event in events if event["event_at"] < as_of and event["available_at"] <= as_of]


def taste(events: list[Event]) -> dict[str, Any]:
    """What the 90 days and the lifetime have beside sums."""
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
    hours = [event["event_at"].hour for event in events]
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
        "weekend": sum(event["event_at"].weekday() >= 5 for event in events),
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


def abandoned(events: list[Event], as_of: datetime, days: int | None) -> tuple[int, Decimal]:
    """Sessions over for half an hour, with something put in the cart and nothing bought; and what lay in the carts."""
    sessions: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event["session_id"]:
            sessions[event["session_id"]].append(event)
    values = []
    for session in sessions.values():
        last_at = max(event["event_at"] for event in session)
        if not of_type(session, "add_to_cart") or of_type(session, "purchase") or last_at >= as_of - HOUR / 2:
            continue
        if days is None or last_at.date() >= as_of.date() - days * DAY:
            put_in = total(event["amount"] for event in of_type(session, "add_to_cart"))
            values.append(max(put_in - total(event["amount"] for event in of_type(session, "remove_from_cart")), 0))
    return len(values), total(values)


def seed_rows(name: str) -> list[dict[str, str]]:
    with (Path(__file__).parent.parent / "seeds" / f"{name}.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def score(measure: str, value: float | None) -> int | None:
    if value is None:
        return None
    for row in seed_rows_once("rfm_bounds"):
        if row["measure"] == measure and float(row["at_least"]) <= value < float(row["below"] or "inf"):
            return int(row["score"])
    return None


_SEEDS: dict[str, list[dict[str, str]]] = {}


def seed_rows_once(name: str) -> list[dict[str, str]]:
    if name not in _SEEDS:
        _SEEDS[name] = seed_rows(name)
    return _SEEDS[name]


def user_features(mine: list[Event], arrived_before_today: list[Event], as_of: datetime) -> dict[str, Any]:
    """All features of one customer, of whom `mine` was visible, in a shop of which the rest had arrived."""
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
    values = [total(event["amount"] for event in lines) for lines in orders.values()]
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

    with_product = [event for event in arrived_before_today if event["product_id"]]
    views, adds = len(of_type(with_product, "view_item")), len(of_type(with_product, "add_to_cart"))
    units = float(total(event["quantity"] for event in of_type(with_product, "purchase")))
    for window in ("90d", "lifetime"):
        found |= {f"{name}_{window}": value for name, value in taste(inside[window]).items()}
        found[f"session_seconds_mean_{window}_was_missing"] = found[f"session_seconds_mean_{window}"] is None
        found[f"view_to_cart_rate_{window}"] = smoothed(
            found[f"cart_adds_{window}"], found[f"views_{window}"], min(ratio(adds, views) or 0, 1)
        )
        found[f"cart_to_order_rate_{window}"] = smoothed(
            float(found[f"units_{window}"]), found[f"cart_adds_{window}"], min(ratio(units, adds) or 0, 1)
        )
    for window, days in (("30d", 30), ("90d", 90), ("lifetime", None)):
        carts, value = abandoned(mine, as_of, days)
        found |= {f"abandoned_carts_{window}": carts, f"abandoned_cart_value_{window}": value}

    bought_this_year = found["orders_365d"] > 0
    found |= {
        "rfm_recency_score": score("recency_days", since_order and since_order / 24),
        "rfm_frequency_score": score("orders", found["orders_365d"] if bought_this_year else None),
        "rfm_monetary_score": score("revenue", float(found["revenue_365d"]) if bought_this_year else None),
    }
    found["rfm_segment"] = next(
        (
            row["segment"]
            for row in seed_rows_once("rfm_segments")
            if int(row["recency_score"]) == found["rfm_recency_score"]
            and int(row["frequency_score"]) == found["rfm_frequency_score"]
        ),
        None,
    )
    return found


def versions_at(versions: list[dict[str, Any]], as_of: datetime) -> dict[str, dict[str, Any]]:
    """What the catalogue said of each product by then."""
    found: dict[str, dict[str, Any]] = {}
    for version in sorted(versions, key=lambda version: version["known_at"]):
        if version["known_at"] <= as_of:
            found[version["product_id"]] = version
    return found


def item_features(events: list[Event], versions: list[dict[str, Any]], as_of: datetime) -> dict[str, dict[str, Any]]:
    """All features of all items that were known by then: ranks and rates compare each with all."""
    owners = identities_at(events, as_of)
    of_product: Events = defaultdict(list)
    for event in visible(events, as_of):
        if event["product_id"]:
            of_product[event["product_id"]].append({**event, "customer": owners[event["identity"]]})
    catalogue = versions_at(versions, as_of)
    found = {
        product: item_alone(of_product[product], catalogue.get(product), as_of)
        for product in of_product.keys() | catalogue.keys()
    }
    for item in found.values():
        peers = [other for other in found.values() if other["category"] == item["category"]]
        for window in ("30d", "lifetime"):
            for rate, part, whole in (
                ("view_to_cart_rate", "cart_adds", "views"),
                ("cart_to_order_rate", "orders", "cart_adds"),
                ("view_to_order_rate", "orders", "views"),
            ):
                done, tried = (sum(peer[f"{name}_{window}"] for peer in peers) for name in (part, whole))
                prior = min(ratio(done, tried) or 0, 1)
                item[f"{rate}_{window}"] = smoothed(item[f"{part}_{window}"], item[f"{whole}_{window}"], prior)
        for rank, measure in (
            ("popularity_rank_7d", "views_7d"),
            ("popularity_rank_30d", "views_30d"),
            ("revenue_rank_30d", "revenue_30d"),
        ):
            item[rank] = 1 + sum(other[measure] > item[measure] for other in found.values())
        priced = [peer["price_now"] for peer in peers if peer["price_now"] is not None]
        item["price_percentile_in_category"] = None
        if item["price_now"] is not None:
            cheaper = sum(price < item["price_now"] for price in priced)
            item["price_percentile_in_category"] = cheaper / max(len(priced) - 1, 1)
    return found


def item_alone(mine: list[Event], version: dict[str, Any] | None, as_of: datetime) -> dict[str, Any]:
    """What of an item's features needs no other item."""
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
    daily: dict[date, list[Decimal]] = defaultdict(list)
    for event in mine:
        if event["event_type"] == "purchase" and (event["quantity"] or 0) > 0:
            bought[event["customer"]].add(event["event_at"].date())
        if event["event_type"] in PRICED and event["price"] is not None:
            daily[event["event_at"].date()].append(event["price"])
    seen_price = ratio(total(daily[max(daily)]), len(daily[max(daily)])) if daily else None
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
        "category": (version and version["category"])
        or max((event["category"] for event in mine if event["category"]), default=None),
        "brand": version and version["brand"],
        "price_now": float(version["price"]) if version and version["price"] is not None else seen_price,
        "price_mean_30d": ratio(total(month), len(month)),
    }
    price, mean = found["price_now"], found["price_mean_30d"]
    found["price_to_mean_30d"] = None if price is None or mean is None else ratio(price, mean)

    # Of whole days alone, by how many days ago they were.
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
    for span in (7, 30):
        weights = [0.5 ** (age / span) for age in range(1, 2000)]
        views = sum(len(of_type(events, "view_item")) * weights[age - 1] for age, events in days.items())
        found[f"views_ema_{span}d"] = views / sum(weights)
    return found


# --- asking both ---------------------------------------------------------------------------------------------------


def clean_events(con: duckdb.DuckDBPyConnection) -> list[Event]:
    rows = con.execute(f"select {', '.join(EVENTS)} from int_events__cleaned order by event_at, event_id").fetchall()
    return [dict(zip(EVENTS, row, strict=True)) for row in rows]


def rows_of(con: duckdb.DuckDBPyConnection, table: str) -> list[dict[str, Any]]:
    answer = con.execute(f"select * from {table}")
    names = [column[0] for column in answer.description or []]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def telling_moments(random: Random, events: list[Event], count: int) -> list[datetime]:
    """Moments at which answers change: at events and arrivals, where windows open and close, and right beside."""
    found = []
    for _ in range(count):
        event = random.choice(events)
        moment = event[random.choice(("event_at", "available_at"))]
        midnight = datetime.combine(moment.date(), datetime.min.time())
        match random.randrange(4):
            case 1:
                moment += random.choice((HOUR, DAY, HOUR / 2))
            case 2:
                moment = midnight + random.choice((0, 1)) * DAY
            case 3:
                moment = midnight + random.choice((7, 8, 30, 31, 90, 91, 365, 366)) * DAY
                moment += random.choice((0, 1, 12)) * HOUR
        found.append(moment + random.choice((-1, 0, 0, 1)) * MICROSECOND)
    return sorted(set(found))


#: Kept to six decimals, so that no order of adding shows: deviations, and weights that decay (one rounding a tile).
KEPT_TO = {"price_std": 1e-6, "order_gap_days": 1e-6, "views_ema": 1e-5}


def agree(one: Any, other: Any, absolute: float) -> bool:
    """Counts and money exactly; floats to nine digits."""
    if isinstance(one, float) or isinstance(other, float):
        if one is None or other is None:
            return one is other
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=absolute)
    return bool(one == other)


def unequal(answer: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {answer[name]!r} but plainly {value!r}"
        for name, value in expected.items()
        if not agree(answer[name], value, KEPT_TO.get(name.rpartition("_")[0], 1e-9))
    ]


@dataclass
class Shop:
    """A built shop: its clean events, and what the catalogue said since when."""

    house: Settings
    events: list[Event]
    versions: list[dict[str, Any]]


def built_shop(houses: Houses, random: Random) -> Shop:
    house = houses.make("as-of")
    land(house, ShopMaker(random).shop(events=700, orders=60))
    houses.run(house)
    with duckdb.connect(str(house.warehouse), read_only=True) as con:
        return Shop(house, clean_events(con), rows_of(con, "int_identity__product_versions"))


def asked(
    houses: Houses,
    house: Settings,
    table: str,
    features: str,
    names: tuple[str, str],
    spine: list[tuple[str, datetime]],
) -> list[dict[str, Any]]:
    """Put these questions in the place of those that a build asks, and have the features built for them."""
    keys, moments = zip(*spine, strict=True)
    questions = pa.table({names[0]: pa.array(keys), names[1]: pa.array(moments, pa.timestamp("us"))})
    with duckdb.connect(str(house.warehouse)) as con:
        con.register("questions", questions)
        con.execute(f"create or replace table main.{table} as select * from questions")
        con.unregister("questions")
    houses.run(house, "--select", features)
    with duckdb.connect(str(house.warehouse), read_only=True) as con:
        return rows_of(con, f"marts.{features}")


def check_users(houses: Houses, random: Random, shop: Shop) -> None:
    identities = {event["identity"] for event in shop.events}
    identities |= {"a:" + event["anonymous_id"] for event in shop.events if event["anonymous_id"]}
    customers = sorted(customer_of(identity) for identity in identities)
    moments = telling_moments(random, shop.events, 300)
    spine = [(customer, moment) for moment in moments for customer in customers]
    spine.append((customer_of("u:nobody"), moments[-1]))
    answers = asked(houses, shop.house, "spine_customers", "user_features", ("customer_id", "as_of"), spine)
    assert sorted((row["customer_id"], row["as_of"]) for row in answers) == sorted(spine)
    seen: dict[datetime, tuple[Events, list[Event]]] = {}
    for as_of in moments:
        owners = identities_at(shop.events, as_of)
        by_customer: Events = defaultdict(list)
        for event in visible(shop.events, as_of):
            by_customer[owners[event["identity"]]].append(event)
        before_today = [event for event in shop.events if event["available_at"].date() < as_of.date()]
        seen[as_of] = (by_customer, before_today)
    wrong = []
    for row in answers:
        by_customer, before_today = seen[row["as_of"]]
        expected = user_features(by_customer.get(row["customer_id"], []), before_today, row["as_of"])
        assert set(expected) == set(row) - {"customer_id", "as_of", "built_from"}, set(expected) ^ set(row)
        wrong += [f"{row['customer_id']} at {row['as_of']}: {line}" for line in unequal(row, expected)]
    assert not wrong, f"{len(wrong)} values differ, such as\n" + "\n".join(wrong[:20])


def check_items(houses: Houses, random: Random, shop: Shop) -> None:
    products = {event["product_id"] for event in shop.events} | {row["product_id"] for row in shop.versions}
    moments = telling_moments(random, shop.events, 300)
    spine = [(product, moment) for moment in moments for product in sorted(products - {None})]
    spine.append(("NOTHING", moments[-1]))
    answers = asked(houses, shop.house, "spine_items", "item_features", ("product_id", "as_of"), spine)
    expected = {
        (product, as_of): features
        for as_of in moments
        for product, features in item_features(shop.events, shop.versions, as_of).items()
    }
    assert sorted((row["product_id"], row["as_of"]) for row in answers) == sorted(expected)
    wrong = []
    for row in answers:
        features = expected[row["product_id"], row["as_of"]]
        assert set(features) == set(row) - {"product_id", "as_of", "built_from"}, set(features) ^ set(row)
        wrong += [f"{row['product_id']} at {row['as_of']}: {line}" for line in unequal(row, features)]
    assert not wrong, f"{len(wrong)} values differ, such as\n" + "\n".join(wrong[:20])


def check_one_shop(houses: Houses, seed: int) -> None:
    random = Random(seed)
    shop = built_shop(houses, random)
    check_users(houses, random, shop)
    check_items(houses, random, shop)


LONG = settings(phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)


@settings(LONG, max_examples=1)
@given(seed=st.integers(0, 2**32 - 1))
def test_features_are_what_the_clean_events_say(houses: Houses, seed: int) -> None:
    check_one_shop(houses, seed)


@pytest.mark.soak
@settings(LONG, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_features_are_what_the_clean_events_say_in_many_shops(houses: Houses, seed: int) -> None:
    check_one_shop(houses, seed)
