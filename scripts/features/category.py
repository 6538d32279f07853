"""category_features: one row a category."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from features import MONEY, ORDERS, SHARE, Feature, Measures, Project

KEYS: Final = {"category": "The category (seeds/category_map.csv)."}


def features(project: Project) -> Iterator[Feature]:
    users: Measures = {"users": ("bigint", "Distinct customers who met a product of it{}", "customers")}
    yield from project.by_window({**project.measures("category"), **ORDERS, **users})
    yield Feature("items_with_events_30d", "bigint", "Distinct products with an event{}", "products", "30d")
    yield Feature("products_in_catalogue", "bigint", "Products that the catalogue listed in it by then", "products")
    yield Feature("hours_since_event", "double", "Hours since the last event", "hours", "lifetime", "no event yet")
    yield Feature("hours_since_order", "double", "Hours since the last order", "hours", "lifetime", "no order yet")
    for window in ("30d", "lifetime"):
        for name, meaning in (
            ("view_to_cart", "Additions to the cart per view"),
            ("cart_to_order", "Orders per addition to the cart"),
            ("view_to_order", "Orders per view"),
        ):
            smoothed = f"{meaning}{{}}, smoothed towards the rate of all categories together"
            yield Feature(f"{name}_rate_{window}", "double", smoothed, "share", window, range=SHARE)
    yield Feature(
        "return_rate_lifetime",
        "double",
        "Units given back{} per unit bought, at most 1",
        "share",
        "lifetime",
        "nothing of it was bought yet",
        SHARE,
    )
    for measure, null in (("views", "nothing was viewed"), ("revenue", "nothing was bought")):
        yield Feature(
            f"share_of_{measure}_30d",
            "double",
            f"Share of the {measure} of all categories{{}}",
            "share",
            "30d",
            f"{null} in any category",
            SHARE,
        )
    for measure in ("views", "units"):
        for window in ("7d", "30d"):
            yield Feature(
                f"{measure}_sma_{window}",
                "double",
                f"Simple moving average: {measure} a day{{}}, whole days before today alone",
                f"{'events' if measure == 'views' else 'units'} per day",
                window,
            )
    for measure in ("views", "units"):
        yield Feature(
            f"{measure}_trend_7d_30d",
            "double",
            f"Trend of {measure}: the mean day of 7 days over that of 30, one a month added to both",
            "ratio",
            "30d",
        )
    priced = "the catalogue's price by then or, without one, the mean price of the last day with a priced event"
    yield Feature("products_priced", "bigint", f"Products of it with a price: {priced}", "products")
    for name, which in (
        ("price_q25", "Lower quartile"),
        ("price_median", "Median"),
        ("price_q75", "Upper quartile"),
    ):
        meaning = f"{which} of its products' prices, interpolated between neighbours; a price is {priced}"
        yield Feature(name, "double", meaning, MONEY, null_means="no product of it has a price")
