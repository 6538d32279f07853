"""Write the columns of the feature marts' YAML from one declaration of measures x windows.

    python scripts/describe_features.py           # write
    python scripts/describe_features.py --check   # exit with 1 if a file is not what would be written

A feature mart has hundreds of columns that differ in measure and window alone. Here each measure is declared once: its
type, meaning, unit, range, and what null means. The YAML is what everything else reads: dbt's contract, which fails a build
whose SELECT has other columns or types, its documentation, the range tests, the catalogue and the feature store. What
stands above `columns:` in a YAML file is written by hand and kept.

Windows and half-lives come from the vars of dbt_project.yml, as they do in the SQL.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

ROOT: Final = Path(__file__).resolve().parent.parent
OWNER: Final = "personalization"
MONEY: Final = "reporting currency"
AMOUNT: Final = "decimal(38,4)"
NEVER: Final = "never null"

Range: TypeAlias = tuple[float | None, float | None] | None
AT_LEAST_0: Final[Range] = (0, None)
SHARE: Final[Range] = (0, 1)


@dataclass(frozen=True)
class Feature:
    """One column. The window is put in words at the {} of `meaning`; `range` holds for every value that is not null."""

    name: str
    data_type: str
    meaning: str
    unit: str
    window: str = "none"
    null_means: str = NEVER
    range: Range = AT_LEAST_0

    def line(self) -> str:
        meta: dict[str, Any] = {"unit": self.unit, "window": self.window, "null_means": self.null_means}
        if self.range:
            meta["range"] = list(self.range)
        meta["owner"] = OWNER
        described = json.dumps(self.meaning.format(_in_words(self.window)) + ".", ensure_ascii=False)
        return (
            f"      - {{name: {self.name}, data_type: {_scalar(self.data_type)}, description: {described},\n"
            f"         config: {{meta: {_flow(meta)}}}}}\n"
        )


def _in_words(window: str) -> str:
    words = {"none": "", "lifetime": " so far", "1h": " in the last hour", "24h": " in the last 24 hours"}
    return words.get(window) or f" in the last {window.removesuffix('d')} days"


def _scalar(value: Any) -> str:
    """A value in YAML's flow style; quoted where it would else be read as something else."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",[]{}:#'\"") else value
    return json.dumps(value)


def _flow(value: dict[str, Any]) -> str:
    parts = (f"{key}: {_scalar(each)}" for key, each in value.items())
    return "{" + ", ".join(parts) + "}"


#: Measures that both users and items have by window: type, meaning, unit.
EVENTS: Final = {
    "views": ("bigint", "Product views{}", "events"),
    "list_views": ("bigint", "Views of a product in a list{}", "events"),
    "searches": ("bigint", "Searches{}", "events"),
    "cart_adds": ("bigint", "Additions to the cart{}", "events"),
    "cart_removes": ("bigint", "Removals from the cart{}", "events"),
    "checkouts": ("bigint", "Checkouts begun{}", "events"),
    "wishlist_adds": ("bigint", "Additions to the wish list{}", "events"),
    "orders": ("bigint", "Distinct orders{}", "orders"),
}
SALES: Final = {
    "units": (AMOUNT, "Units bought{}, outliers treated", "units"),
    "revenue": (AMOUNT, "Money of purchases{}, outliers treated, refunds not taken off", MONEY),
    "gross_revenue": (AMOUNT, "Money of purchases{}, before the treatment of outliers, refunds not taken off", MONEY),
    "refunds": (AMOUNT, "Money given back{}", MONEY),
}
BREADTH: Final = {
    "sessions": ("bigint", "Sessions with an event{}", "sessions"),
    "active_days": ("bigint", "Distinct UTC days with an event{}", "days"),
    "distinct_products": ("bigint", "Distinct products met{}", "products"),
    "distinct_categories": ("bigint", "Distinct categories of products met{}", "categories"),
    "distinct_brands": ("bigint", "Distinct brands of products met{}", "brands"),
}
HABITS: Final = {
    "night": "from 0 to 6 o'clock UTC",
    "morning": "from 6 to 12 o'clock UTC",
    "afternoon": "from 12 to 18 o'clock UTC",
    "evening": "from 18 to 24 o'clock UTC",
    "weekend": "on Saturday or Sunday, UTC",
}


class Declaration:
    """The columns of each feature mart, for the windows of one project."""

    def __init__(self, variables: dict[str, Any]) -> None:
        self.windows = ["1h", "24h", *(f"{days}d" for days in variables["day_windows"]), "lifetime"]
        self.half_lives: list[int] = variables["half_lives"]

    def marts(self) -> dict[str, list[Feature]]:
        return {"user_features": list(self.user()), "item_features": list(self.item())}

    def by_window(self, measures: dict[str, tuple[str, str, str]]) -> Iterator[Feature]:
        for window in self.windows:
            for name, (data_type, meaning, unit) in measures.items():
                yield Feature(f"{name}_{window}", data_type, meaning, unit, window)

    def user(self) -> Iterator[Feature]:
        yield from self.by_window(EVENTS | SALES | BREADTH)
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
        yield Feature("order_value_mean", "double", "Mean revenue of an order", MONEY, "lifetime", none)
        yield Feature("order_value_max", AMOUNT, "Greatest revenue of an order", MONEY, "lifetime", none)
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
        for window in ("90d", "lifetime"):
            yield Feature(
                f"discount_share_{window}",
                "double",
                "Share of the list price that was taken off purchases{}",
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
        for window in ("90d", "lifetime"):
            yield Feature(
                f"view_to_cart_rate_{window}",
                "double",
                "Additions to the cart per product view{}, smoothed towards the shop's rate",
                "share",
                window,
                range=SHARE,
            )
            yield Feature(
                f"cart_to_order_rate_{window}",
                "double",
                "Units bought per addition to the cart{}, smoothed towards the shop's rate",
                "share",
                window,
                range=SHARE,
            )
        for window in ("30d", "90d", "lifetime"):
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
            )
        for window in ("90d", "lifetime"):
            yield from self.taste(window)
        for name, meaning, null in (
            ("recency", "Score of the days since the last order, 5 for the fewest", none),
            ("frequency", "Score of the orders of 365 days, 5 for the most", "no order in 365 days"),
            ("monetary", "Score of the revenue of 365 days, 5 for the most", "no order in 365 days"),
        ):
            yield Feature(f"rfm_{name}_score", "integer", meaning, "score", "365d", null, (1, 5))
        yield Feature(
            "rfm_segment",
            "varchar",
            "Segment by recency and frequency (seeds/rfm_segments.csv)",
            "label",
            "365d",
            "no order in 365 days",
            None,
        )

    def taste(self, window: str) -> Iterator[Feature]:
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
        for name, when in HABITS.items():
            yield Feature(
                f"{name}_share_{window}", "double", f"Share of events{{}} {when}", "share", window, "no event", SHARE
            )
        for device in ("desktop", "mobile", "tablet"):
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

    def item(self) -> Iterator[Feature]:
        measures = {name: EVENTS[name] for name in EVENTS if name not in ("searches", "checkouts")}
        yield from self.by_window(
            measures | SALES | {"users": ("bigint", "Distinct customers who met the product{}", "customers")}
        )
        yield Feature("hours_since_event", "double", "Hours since the last event", "hours", "lifetime", "no event yet")
        yield Feature("hours_since_order", "double", "Hours since the last order", "hours", "lifetime", "no order yet")
        yield Feature(
            "age_days",
            "double",
            "Days since the product was made, first known or first seen, by the earliest",
            "days",
            "lifetime",
        )
        for window in ("30d", "lifetime"):
            for name, meaning in (
                ("view_to_cart", "Additions to the cart per view"),
                ("cart_to_order", "Orders per addition to the cart"),
                ("view_to_order", "Orders per view"),
            ):
                smoothed = f"{meaning}{{}}, smoothed towards the category's rate"
                yield Feature(f"{name}_rate_{window}", "double", smoothed, "share", window, range=SHARE)
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
            yield Feature(name, "bigint", meaning, "rank", window, range=(1, None))
        for measure in ("views", "units"):
            for window in ("7d", "30d"):
                yield Feature(
                    f"{measure}_sma_{window}",
                    "double",
                    f"Simple moving average: {measure} a day{{}}, whole days before today alone",
                    f"{'events' if measure == 'views' else 'units'} per day",
                    window,
                )
        for half_life in self.half_lives:
            yield Feature(
                f"views_ema_{half_life}d",
                "double",
                f"Exponential moving average of views a day{{}}, whole days before today alone, with a half-life of {half_life} days",
                "events per day",
                "lifetime",
            )
        for measure in ("views", "units"):
            yield Feature(
                f"{measure}_trend_7d_30d",
                "double",
                f"Trend of {measure}: the mean day of 7 days over that of 30, one a month added to both",
                "ratio",
                "30d",
            )
        unknown = "unknown to the catalogue and to its events"
        yield Feature("category", "varchar", "The product's category by then", "label", "none", unknown, None)
        yield Feature(
            "brand", "varchar", "The product's brand by then", "label", "none", "unknown to the catalogue", None
        )
        yield Feature(
            "price_now",
            "double",
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


#: The keys, which are no features; the first is the entity's.
KEYS: Final = {
    "user_features": ("customer_id", "The customer (dim_customers), as its identities were linked at as_of."),
    "item_features": ("product_id", "The product (dim_products)."),
}


def columns(mart: str, features: list[Feature]) -> str:
    """The `columns:` of one mart, as YAML."""
    key, meaning = KEYS[mart]
    lines = [
        "    columns:  # Written by scripts/describe_features.py.\n",
        *(
            f"      - {{name: {name}, data_type: {data_type}, description: {json.dumps(what)}, "
            "constraints: [{type: not_null}]}\n"
            for name, data_type, what in (
                (key, "varchar", meaning),
                ("as_of", "timestamp", "The moment of which the features are true, UTC."),
                ("built_from", "bigint", "The lake snapshot that the build read."),
            )
        ),
        *(feature.line() for feature in features),
    ]
    return "".join(lines)


def main(arguments: list[str], root: Path = ROOT) -> int:
    variables = yaml.safe_load((root / "dbt_project.yml").read_text(encoding="utf-8"))["vars"]
    stale = []
    for mart, features in Declaration(variables).marts().items():
        path = root / "models" / "marts" / "features" / f"{mart}.yml"
        text = path.read_text(encoding="utf-8")
        head, _, _ = text.partition("    columns:")
        wanted = head + columns(mart, features)
        if text == wanted:
            continue
        stale.append(path.relative_to(root))
        if "--check" not in arguments:
            path.write_text(wanted, encoding="utf-8")
    if "--check" in arguments:
        for path in stale:
            print(f"{path}: its columns are not what is declared: run scripts/describe_features.py")
        return 1 if stale else 0
    print("\n".join(f"wrote {path}" for path in stale) or "all as declared")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
