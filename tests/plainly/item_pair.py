"""item_pair_features in plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import permutations
from typing import Any

from small_shops import MAX_PRODUCTS_PAIRED, MIN_SUPPORT, PAIRS_PER_ITEM

from plainly import DAY, MICROSECOND, Event, Shop, grouped, order_of, ratio, versions_at

WEIGHTS = {"co_views": 1, "co_carts": 3, "co_orders": 10, "carts_to_orders": 5}
Days = list[date]


@dataclass
class Counts:
    """The days of touches and pairs, one entry per count."""

    single: dict[str, dict[str, Days]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    baskets: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    pairs: dict[tuple[str, str], dict[str, Days]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )


def features(shop: Shop, as_of: datetime, asked: list[str]) -> dict[Any, dict[str, Any]]:
    """For each item in `asked`, the items that most often co-occur with it."""
    counts = counts_of([event for event in shop.of_closed_days(as_of) if visible_at(event).date() < as_of.date()])
    categories = {product: version["category"] for product, version in versions_at(shop.versions, as_of).items()}
    found: dict[Any, dict[str, Any]] = {}
    for item in asked:
        pairs = {other: pair_features(counts, item, other, as_of.date()) for one, other in counts.pairs if one == item}
        undecayed = {
            other: sum(weight * pair[f"{name}_lifetime"] for name, weight in WEIGHTS.items())
            for other, pair in pairs.items()
        }
        best = sorted(pairs, key=lambda other: (-pairs[other]["pair_score"], -undecayed[other], other))
        for rank, other in enumerate(best[:PAIRS_PER_ITEM], start=1):
            both = categories.get(item), categories.get(other)
            pairs[other] |= {
                "pair_rank": rank,
                "pair_score": pairs[other]["pair_score"] / 1_000_000,
                "is_same_category": None if None in both else both[0] == both[1],
            }
            found[item, other] = pairs[other]
    return found


def visible_at(event: Event) -> datetime:
    moment: datetime = max(event["available_at"], event["event_at"] + MICROSECOND)
    return moment


def counts_of(events: list[Event]) -> Counts:
    counts = Counts()
    touches = {kind: daily_touches(events, kind) for kind in ("view_item", "add_to_cart", "purchase")}
    for name, kind, other_kind, earliest in (
        ("co_views", "view_item", "view_item", -DAY),
        ("co_carts", "add_to_cart", "add_to_cart", -DAY),
        ("carts_to_orders", "add_to_cart", "purchase", 0 * DAY),
    ):
        for identity, days in touches[kind].items():
            for day, products in days.items():
                counts.baskets[name] += 1
                for product, touched_at in products.items():
                    counts.single[name][product].append(day)
                    near = {
                        other
                        for others in touches[other_kind].get(identity, {}).values()
                        for other, other_at in others.items()
                        if other != product and earliest <= other_at - touched_at <= DAY
                    }
                    for other in near:
                        counts.pairs[product, other][name].append(day)
    for order in orders(events):
        counts.baskets["co_orders"] += 1
        for product, day in order.items():
            counts.single["co_orders"][product].append(day)
        for product, other in permutations(order, 2):
            counts.pairs[product, other]["co_orders"].append(order[product])
    return counts


def daily_touches(events: list[Event], kind: str) -> dict[str, dict[date, dict[str, datetime]]]:
    """When each identity first touched which products on each day, for the first products of the day only."""
    found: dict[str, dict[date, dict[str, datetime]]] = defaultdict(dict)
    of_kind = [{**event, "day": event["event_at"].date()} for event in events if event["event_type"] == kind]
    for (identity, day), basket in grouped(of_kind, "identity", "day").items():
        firsts = {
            product: min((visible_at(event), event["event_at"]) for event in touched)
            for product, touched in grouped(basket, "product_id").items()
        }
        first = sorted(firsts, key=lambda product: (firsts[product], product))[:MAX_PRODUCTS_PAIRED]
        if first:
            found[identity][day] = {product: firsts[product][1] for product in first}
    return found


def orders(events: list[Event]) -> Iterator[dict[str, date]]:
    """The products of each order, each with the day of its first line."""
    bought = [{**event, "order": order_of(event)} for event in events if event["event_type"] == "purchase"]
    for lines in grouped(bought, "identity", "order").values():
        firsts = {
            product: min((visible_at(event), event["event_at"]) for event in touched)
            for product, touched in grouped(lines, "product_id").items()
        }
        first = sorted(firsts, key=lambda product: (firsts[product][0], product))[:MAX_PRODUCTS_PAIRED]
        if first:
            yield {product: firsts[product][1].date() for product in first}


def pair_features(counts: Counts, item: str, other: str, today: date) -> dict[str, Any]:
    """The features of a pair of products; the score is exact, in millionths."""
    there, back = counts.pairs[item, other], counts.pairs.get((other, item), {})
    found: dict[str, Any] = {"pair_score": 0}
    for name, weight in WEIGHTS.items():
        days = there[name]
        found |= {
            f"{name}_30d": len(within(days, today, 30)),
            f"{name}_90d": len(within(days, today, 90)),
            f"{name}_lifetime": len(days),
        }
        for half_life in (7, 30):
            found[f"{name}_decayed_{half_life}d"] = decayed(days, today, half_life) / 1_000_000
        found["pair_score"] += weight * decayed(days, today, 30)

    for name, confidence, base in (
        ("co_views", "view", "co_views"),
        ("co_carts", "cart", "co_carts"),
        ("co_orders", "order", "co_orders"),
        ("carts_to_orders", "cart_to_order", "co_orders"),
    ):
        mine, together = counts.single[name][item], there[name]
        found[f"{confidence}_confidence_90d"] = ratio(len(within(together, today, 90)), len(within(mine, today, 90)))
        found[f"{confidence}_confidence_lifetime"] = given = ratio(len(together), len(mine))
        common = ratio(len(counts.single[base][other]), counts.baskets[base])
        is_supported = given and common and len(together) >= MIN_SUPPORT
        found[f"lift_{name}"] = lift = given / common if is_supported and given and common else None
        found[f"pmi_{name}"] = lift and math.log(lift)
        if name != "carts_to_orders":
            both_directions = len(together) * len(back.get(name, [])) if is_supported else 0
            both = len(mine) * len(counts.single[name][other])
            found[f"cosine_{name}"] = math.sqrt(both_directions / both) if is_supported else None
    return found


def decayed(days: Days, today: date, half_life: int) -> int:
    """In millionths. Halves are rounded up, as SQL does; Python's own `round` goes to the even one."""
    return sum(math.floor(0.5 ** ((today - day).days / half_life) * 1_000_000 + 0.5) for day in days)


def within(days: Days, today: date, window: int) -> Days:
    return [day for day in days if day >= today - window * DAY]
