"""item_features: one row per product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from features import MONEY, NEVER, ORDERS, PRICE, SHARE, Feature, Measures, Project, moving_averages, step_rates, trends

KEYS: Final = {"product_id": "The product (dim_products)."}


def features(project: Project) -> Iterator[Feature]:
    users: Measures = {"users": ("bigint", "Distinct customers with an event about the product{}", "customers")}
    yield from project.by_window({**project.measures("item"), **ORDERS, **users})
    yield Feature("hours_since_event", "double", "Hours since the last event", "hours", "lifetime", "no event yet")
    yield Feature("hours_since_order", "double", "Hours since the last order", "hours", "lifetime", "no order yet")
    yield Feature(
        "age_days",
        "double",
        "Days since the product was created, first known or first seen, whichever is earliest",
        "days",
        "lifetime",
    )
    yield from step_rates("the category's rate")
    yield Feature(
        "repeat_buy_rate",
        "double",
        "Share of its buyers who bought it on a second day",
        "share",
        "lifetime",
        "nobody bought it yet",
        SHARE,
    )
    yield Feature(
        "return_rate_lifetime",
        "double",
        "Units given back{} per unit bought, at most 1",
        "share",
        "lifetime",
        "nobody bought it yet",
        SHARE,
    )
    for name, what, window in (
        ("popularity_rank_7d", "views", "7d"),
        ("popularity_rank_30d", "views", "30d"),
        ("revenue_rank_30d", "revenue", "30d"),
    ):
        meaning = f"Rank among all products by {what}{{}}, 1 for the most, equal for equals"
        null = "its revenue is null" if what == "revenue" else NEVER
        yield Feature(name, "bigint", meaning, "rank", window, null, (1, None))
    yield from moving_averages()
    for half_life in project.half_lives:
        yield Feature(
            f"views_ema_{half_life}d",
            "double",
            f"Exponential moving average of views a day{{}}, whole days before today alone, with a half-life of {half_life} days",
            "events per day",
            "lifetime",
        )
    for measure, unit in (("views", "events"), ("units", "units")):
        yield Feature(
            f"{measure}_trimmed_mean_30d",
            "double",
            f"Mean of {measure} a day{{}}, whole days before today alone, without the three days with the most and the three with the least",
            f"{unit} per day",
            "30d",
        )
    yield Feature(
        "days_averaged_30d",
        "bigint",
        "Whole days before today since the product was first known, at most 30. Moving averages of more days are still warming up: they "
        "count the days before as 0",
        "days",
        "30d",
        range=(0, 30),
    )
    yield from trends()
    unknown = "unknown to the catalogue and to its events"
    yield Feature(
        "category",
        "varchar",
        "The product's category by then: the catalogue's or, without one, the one that most of its events name",
        "label",
        "none",
        unknown,
        None,
        categorical=True,
    )
    yield Feature(
        "brand",
        "varchar",
        "The product's brand by then",
        "label",
        "none",
        "unknown to the catalogue",
        None,
        categorical=True,
    )
    yield Feature(
        "price_now",
        PRICE,
        "The catalogue's price by then or, without one, the mean price of the last day with a priced event",
        MONEY,
        "none",
        unknown,
    )
    yield Feature(
        "price_mean_30d",
        "double",
        "Mean price at which it was viewed, put into the cart or bought{}",
        MONEY,
        "30d",
        "no event with a price",
    )
    yield Feature(
        "price_trimmed_mean_30d",
        "double",
        "Mean of the days' mean prices{}, without the tenth of the days with the highest and the tenth with the lowest, rounded down",
        MONEY,
        "30d",
        "no event with a price",
    )
    yield Feature(
        "price_ema_7d",
        "double",
        "Exponential moving average of the days' mean prices{}, today's too, with a half-life of 7 days",
        MONEY,
        "30d",
        "no event with a price",
    )
    yield Feature(
        "price_to_mean_30d",
        "double",
        "price_now over price_mean_30d",
        "ratio",
        "30d",
        "either is unknown, or the mean is 0",
    )
    yield Feature(
        "price_percentile_in_category",
        "double",
        "Share of the category's other products that are cheaper",
        "share",
        "none",
        "price_now is unknown",
        SHARE,
    )
