"""item_pair_features: one row per product and another that co-occurs with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from features import COUNT_WINDOWS, SHARE, SHARE_WINDOWS, Feature, Measures, Project

KEYS: Final = {
    "product_id": "The product that was asked for, a (dim_products).",
    "other_product_id": "The product that co-occurs with it, b (dim_products).",
}
VIEWS: Final = (
    "Days on which somebody viewed a and, within 24 hours before or after, b, counted once a visitor and day{}"
)
CARTS: Final = "Days on which somebody put a into the cart and, within 24 hours before or after, b, counted once a visitor and day{}"
ORDERS: Final = "Orders that hold both a and b{}"
CARTS_TO_ORDERS: Final = "Days on which somebody put a into the cart and within 24 hours from then bought b, counted once a visitor and day{}"
COUNTS: Final[Measures] = {
    "co_views": ("bigint", VIEWS, "visitor days"),
    "co_carts": ("bigint", CARTS, "visitor days"),
    "co_orders": ("bigint", ORDERS, "orders"),
    "carts_to_orders": ("bigint", CARTS_TO_ORDERS, "visitor days"),
}
#: By the count it is made of: its name, what of a it is a share of, and what of b it is compared with.
CONFIDENCES: Final = {
    "co_views": ("view", "the visitor days that viewed a", "the share of visitor days with a view that viewed b"),
    "co_carts": (
        "cart",
        "the visitor days that put a into the cart",
        "the share of visitor days with a cart that put b in",
    ),
    "co_orders": ("order", "the orders of a", "the share of orders that hold b"),
    "carts_to_orders": (
        "cart_to_order",
        "the visitor days that put a into the cart",
        "the share of orders that hold b",
    ),
}


def features(project: Project) -> Iterator[Feature]:
    yield Feature(
        "pair_rank",
        "bigint",
        "Rank of b among all products that co-occur with a: by pair_score, then by the counts without their age, then by other_product_id",
        "rank",
        "lifetime",
        range=(1, None),
    )
    yield Feature(
        "pair_score",
        "double",
        "The four counts weighted by pair_weights, halved with every 30 days of age",
        "score",
        "lifetime",
    )
    half_lives = [days for days in project.half_lives if days >= 7]
    for count, (data_type, meaning, unit) in COUNTS.items():
        yield from project.by_window({count: (data_type, meaning, unit)}, COUNT_WINDOWS)
        for half_life in half_lives:
            halved = f"{meaning}, halved with every {half_life} days of age"
            yield Feature(f"{count}_decayed_{half_life}d", "double", halved, unit, "lifetime")
    for count, (name, whole, _) in CONFIDENCES.items():
        for window in SHARE_WINDOWS:
            yield Feature(
                f"{name}_confidence_{window}",
                "double",
                f"P(b | a): {count} as a share of {whole}{{}}",
                "share",
                window,
                f"{whole} are none",
                SHARE,
            )
    too_few = "fewer than pair_min_support of them, or none of what it is compared with"
    for count, (name, _, base) in CONFIDENCES.items():
        yield Feature(
            f"lift_{count}",
            "double",
            f"Lift P(b | a) / P(b): {name}_confidence_lifetime over {base} (Brin et al. 1997); 1 is chance",
            "ratio",
            "lifetime",
            too_few,
        )
        yield Feature(
            f"pmi_{count}",
            "double",
            f"Pointwise mutual information, ln of lift_{count} (Church and Hanks 1990); 0 is chance",
            "nats",
            "lifetime",
            too_few,
            None,
        )
    for count in ("co_views", "co_carts", "co_orders"):
        yield Feature(
            f"cosine_{count}",
            "double",
            f"Cosine sqrt(P(b | a) P(a | b)) of {count} (Sarwar et al. 2001)",
            "cosine",
            "lifetime",
            too_few,
            SHARE,
        )
    yield Feature(
        "is_same_category",
        "boolean",
        "Whether the catalogue had a and b in one category by then",
        "flag",
        "none",
        "the catalogue knew no category of a or of b",
        None,
    )
