"""user_category_features and user_brand_features: one row per customer and category, or brand, with an event."""

from __future__ import annotations

from collections.abc import Iterator

from features import MONEY, ORDERS, SHARE, SHARE_WINDOWS, Feature, Project

CUSTOMER = "The customer (dim_customers), as its identities were linked at as_of."


def affinities(thing: str, project: Project) -> Iterator[Feature]:
    """The affinity of a customer to a category, brand or item, by half-life."""
    for half_life in project.half_lives:
        yield Feature(
            f"{thing}_affinity_{half_life}d",
            "double",
            f"Sum of events so far by weight (seeds/event_weights.csv), halved by every {half_life} days of age",
            "weighted events",
            "lifetime",
        )


def features(thing: str, project: Project) -> Iterator[Feature]:
    """The features of a customer and `thing`, which is category or brand."""
    yield from project.by_window({**project.measures("affinity"), **ORDERS}, [*project.day_windows, "lifetime"])
    yield from affinities(thing, project)
    longest = max(project.half_lives)
    yield Feature(
        f"affinity_share_{longest}d",
        "double",
        f"{thing}_affinity_{longest}d as a share of the customer's over all",
        "share",
        "lifetime",
        "no event of weight yet, or all too long ago to weigh",
        SHARE,
    )
    yield Feature(
        "preference_rank",
        "bigint",
        f"Rank by {thing}_affinity_{longest}d among the customer's, 1 for the greatest, equal for equals",
        "rank",
        "lifetime",
        range=(1, None),
    )
    for window in SHARE_WINDOWS:
        yield Feature(
            f"share_of_events_{window}",
            "double",
            f"Share of the customer's events about products with a {thing}{{}}",
            "share",
            window,
            f"no event about a product with a {thing}",
            SHARE,
        )
        yield Feature(
            f"share_of_spend_{window}",
            "double",
            f"Share of the customer's money for products with a {thing}{{}}",
            "share",
            window,
            f"no money spent on products with a {thing}, or none of the purchases has a price",
            SHARE,
        )
        few = f"fewer events of the customer with the {thing} than the var lift_min_support, or none of the shop"
        yield Feature(
            f"lift_{window}",
            "double",
            "Share of the customer's events{} over that of the shop's, which had arrived before today: (n_uc / n_u) / (n_c / n)",
            "ratio",
            window,
            few,
        )
        yield Feature(
            f"pmi_{window}",
            "double",
            f"Pointwise mutual information of customer and {thing}{{}}: the natural logarithm of lift_{window}",
            "nats",
            window,
            few,
            None,
        )
    for name, what in (
        ("event", "event"),
        ("view", "product view"),
        ("cart_add", "addition to the cart"),
        ("order", "order, which is as old as its first line"),
    ):
        null = "never null" if name == "event" else f"no {what.partition(',')[0]} yet"
        yield Feature(f"hours_since_{name}", "double", f"Hours since the last {what}", "hours", "lifetime", null)
    yield Feature("active_days_90d", "bigint", "Distinct UTC days with an event{}", "days", "90d")
    yield Feature(
        "distinct_products_lifetime",
        "bigint",
        "Distinct products with an event{}",
        "products",
        "lifetime",
        range=(1, None),
    )
    unpriced = "no product with a price viewed, put into the cart or bought"
    yield Feature(
        "price_mean_lifetime",
        "double",
        "Mean price of products viewed, put into the cart or bought{}",
        MONEY,
        "lifetime",
        unpriced,
    )
    yield Feature(
        "price_ratio_lifetime",
        "double",
        "price_mean_lifetime over that of all customers, as far as it had arrived before today",
        "ratio",
        "lifetime",
        "either is unknown, or that of all is 0",
    )
