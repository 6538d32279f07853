"""category_features: one row per category."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from features import MONEY, ORDERS, PRICE, SHARE, Feature, Measures, Project, moving_averages, step_rates, trends

KEYS: Final = {"category": "The category (seeds/category_map.csv)."}


def features(project: Project) -> Iterator[Feature]:
    users: Measures = {"users": ("bigint", "Distinct customers with an event about a product of it{}", "customers")}
    yield from project.by_window({**project.measures("category"), **ORDERS, **users})
    yield Feature("items_with_events_30d", "bigint", "Distinct products with an event{}", "products", "30d")
    yield Feature("products_in_catalogue", "bigint", "Products that the catalogue listed in it by then", "products")
    yield Feature("hours_since_event", "double", "Hours since the last event", "hours", "lifetime", "no event yet")
    yield Feature("hours_since_order", "double", "Hours since the last order", "hours", "lifetime", "no order yet")
    yield from step_rates("the rate of all categories together")
    yield Feature(
        "return_rate_lifetime",
        "double",
        "Units given back{} per unit bought, at most 1",
        "share",
        "lifetime",
        "nothing of it was bought yet",
        SHARE,
    )
    for measure, null in (("views", "nothing was viewed"), ("revenue", "its revenue is null, or nothing was bought")):
        yield Feature(
            f"share_of_{measure}_30d",
            "double",
            f"Share of the {measure} of all categories{{}}",
            "share",
            "30d",
            f"{null} in any category",
            SHARE,
        )
    yield from moving_averages()
    yield from trends()
    priced = "the catalogue's price by then or, without one, the mean price of the last day with a priced event"
    yield Feature("products_priced", "bigint", f"Products of it with a price: {priced}", "products")
    for name, which in (
        ("price_q25", "Lower quartile"),
        ("price_median", "Median"),
        ("price_q75", "Upper quartile"),
    ):
        meaning = f"{which} of its products' prices, interpolated between neighbours; a price is {priced}"
        yield Feature(name, PRICE, meaning, MONEY, null_means="no product of it has a price")
