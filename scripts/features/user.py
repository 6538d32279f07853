"""user_features: one row per customer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from features import AMOUNT, COUNT_WINDOWS, MONEY, SHARE, SHARE_WINDOWS, UNPRICED, Feature, Project

KEYS: Final = {"customer_id": "The customer (dim_customers), as its identities were linked at as_of."}


def features(project: Project) -> Iterator[Feature]:
    yield from project.by_window({**project.measures("user"), **project.distinct_counts})
    for name, what in (
        ("view", "product view"),
        ("cart_add", "addition to the cart"),
        ("order", "order"),
        ("session", "event of any session"),
    ):
        yield Feature(
            f"hours_since_{name}", "double", f"Hours since the last {what}", "hours", "lifetime", f"no {what} yet"
        )
    yield Feature("tenure_days", "double", "Days since the first event", "days", "lifetime", "no event yet")

    none, one = "no order yet", "less than two orders yet"
    unpriced = "no order with a price yet"
    mean = "Mean revenue of an order, of those with a price"
    yield Feature("order_value_mean", "double", mean, MONEY, "lifetime", unpriced)
    yield Feature("order_value_max", AMOUNT, "Greatest revenue of an order", MONEY, "lifetime", unpriced)
    yield Feature("order_gap_days_mean", "double", "Mean time from one order to the next", "days", "lifetime", one)
    yield Feature(
        "order_gap_days_std",
        "double",
        "Sample standard deviation of the time from one order to the next",
        "days",
        "lifetime",
        "less than three orders yet",
    )
    yield Feature(
        "days_to_expected_order",
        "double",
        "Days until an order is due, by the mean gap since the last one; below 0 when it is overdue",
        "days",
        "none",
        one,
        None,
    )
    for window in SHARE_WINDOWS:
        yield Feature(
            f"discount_share_{window}",
            "double",
            "Share of the list price by which the paid price of one unit lay below it, over purchases{}; discounts that came as such are not in it",
            "share",
            window,
            "nothing bought of which a list price is known",
            SHARE,
        )
        yield Feature(
            f"return_rate_{window}",
            "double",
            "Units given back{} per unit bought, at most 1",
            "share",
            window,
            "nothing bought",
            SHARE,
        )
    for window in SHARE_WINDOWS:
        yield Feature(
            f"view_to_cart_rate_{window}",
            "double",
            "Additions to the cart per product view{}, smoothed towards the shop's rate of the same window, without what arrived today",
            "share",
            window,
            range=SHARE,
        )
        yield Feature(
            f"cart_to_unit_rate_{window}",
            "double",
            "Units bought per addition to the cart{}, smoothed towards the shop's rate of the same window, without what arrived today",
            "share",
            window,
            range=SHARE,
        )
    for window in COUNT_WINDOWS:
        yield Feature(
            f"abandoned_carts_{window}",
            "bigint",
            "Sessions{} that are over, with additions to the cart and no purchase",
            "sessions",
            window,
        )
        yield Feature(
            f"abandoned_cart_value_{window}",
            AMOUNT,
            "Money of what such sessions{} left in the cart",
            MONEY,
            window,
            UNPRICED,
        )
    for window in SHARE_WINDOWS:
        yield from _preferences(project, window)
    year = f"{project.rfm_days} days"
    for name, meaning, null in (
        ("recency", "Score of the days since the last order, 5 for the fewest", none),
        ("frequency", f"Score of the orders of {year}, 5 for the most", f"no order in {year}"),
        ("monetary", f"Score of the revenue of {year}, 5 for the most", f"no order with a price in {year}"),
    ):
        yield Feature(f"rfm_{name}_score", "integer", meaning, "score", f"{project.rfm_days}d", null, (1, 5))
    yield Feature(
        "rfm_segment",
        "varchar",
        "Segment by recency and frequency (seeds/rfm_segments.csv)",
        "label",
        f"{project.rfm_days}d",
        f"no order in {year}",
        None,
        categorical=True,
    )


def _preferences(project: Project, window: str) -> Iterator[Feature]:
    priced = "no product with a price viewed, put into the cart or bought"
    yield Feature(
        f"price_mean_{window}",
        "double",
        "Mean price of products viewed, put into the cart or bought{}",
        MONEY,
        window,
        priced,
    )
    yield Feature(
        f"price_std_{window}",
        "double",
        "Sample standard deviation of the prices of products viewed, put into the cart or bought{}",
        MONEY,
        window,
        "less than two such prices",
    )
    yield Feature(
        f"price_percentile_mean_{window}",
        "double",
        "Mean percentile within its category of the price of products viewed, put into the cart or bought{}",
        "percent",
        window,
        "no such price in a category with a fit",
        (0, 100),
    )
    yield Feature(
        f"category_entropy_{window}",
        "double",
        "Shannon entropy of events over categories{}",
        "nats",
        window,
        "no event about a product with a category",
    )
    habits = {
        **{name: f"from {first} to {end} o'clock" for name, (first, end) in project.day_parts.items()},
        "weekend": "on Saturday or Sunday,",
    }
    for name, when in habits.items():
        yield Feature(
            f"{name}_share_{window}",
            "double",
            f"Share of events{{}} {when} in the shop's time zone",
            "share",
            window,
            "no event",
            SHARE,
        )
    for device in project.devices:
        yield Feature(
            f"{device}_share_{window}",
            "double",
            f"Share of events{{}} by {device}, of those with a known device",
            "share",
            window,
            "no event with a known device",
            SHARE,
        )
    yield Feature(
        f"session_seconds_mean_{window}",
        "double",
        "Mean length of a session{}, from first to last event",
        "seconds",
        window,
        "no session",
    )
    yield Feature(
        f"session_seconds_mean_{window}_was_missing",
        "boolean",
        "True where there is no session{} to take the mean length of",
        "flag",
        window,
        range=None,
    )
