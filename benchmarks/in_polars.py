"""The features in Polars, from clean events: lazy, in the streaming engine. Each function says which columns it leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
from measures import (
    COUNTS,
    DAYS,
    HALF_LIVES,
    HOURS,
    KNOWN,
    LONG,
    MONEY,
    OF_AFFINITY,
    OF_ITEM,
    OF_SESSION,
    OF_USER,
    OF_USER_ITEM,
    SMOOTHING,
    SUMS,
    WEIGHTS,
    campaign_tag,
)


@dataclass
class Shop:
    """Clean events with a column for each measure, the catalogue at `as_of`, and `as_of`."""

    events: pl.LazyFrame
    products: pl.LazyFrame
    as_of: datetime

    @classmethod
    def read(cls, folder: Path) -> Shop:
        """Read the files that dataframes.export writes."""
        kind = pl.col("event_type")
        events = pl.scan_parquet(folder / "events.parquet").with_columns(
            *(kind.eq(of).cast(pl.Int64).alias(name) for name, of in COUNTS.items()),
            *(
                pl.when(kind == of).then(value).otherwise(0.0).fill_null(0.0).alias(name)
                for name, (of, value) in SUMS.items()
            ),
            *(
                pl.when(kind == SUMS[name][0])
                .then(pl.when(pl.col(SUMS[name][1]).is_null()).then(1).otherwise(KNOWN))
                .otherwise(0)
                .cast(pl.Int64)
                .alias(f"known_{name}")
                for name in MONEY
            ),
            refunded_units=pl.when(kind == "refund").then("quantity").otherwise(0.0).fill_null(0.0),
            weight=kind.replace_strict(WEIGHTS, default=0, return_dtype=pl.Int64),
            is_priced=kind.is_in(list(WEIGHTS)) & pl.col("price").is_not_null() & pl.col("product_id").is_not_null(),
        )
        moment = pl.read_parquet(folder / "build.parquet").item(0, "as_of")
        return cls(events, pl.scan_parquet(folder / "products.parquet"), moment)

    @property
    def today(self) -> date:
        return self.as_of.date()

    def since(self, days: int | None, day: str = "event_day") -> pl.Expr:
        """Whether a day is in the window."""
        return pl.lit(True) if days is None else pl.col(day) >= self.today - timedelta(days=days)

    def sums(self, names: list[str], windows: dict[str, int | None] = DAYS) -> list[pl.Expr]:
        """Sums of columns by window of days."""
        return [
            pl.col(name).filter(self.since(days)).sum().alias(f"{name}_{suffix}")
            for suffix, days in windows.items()
            for name in names
        ]

    def counts(self, name: str, day: str = "last_day", windows: dict[str, int | None] = DAYS) -> list[pl.Expr]:
        """Row counts by window of days."""
        return [
            (pl.len() if days is None else self.since(days, day).sum()).cast(pl.Int64).alias(f"{name}_{suffix}")
            for suffix, days in windows.items()
        ]

    def recent(self, keys: list[str], names: list[str], distinct: dict[str, pl.Expr]) -> pl.LazyFrame:
        """Sums and distinct counts over the last hour and the last 24."""
        expressions = []
        for suffix, hours in HOURS.items():
            inside = pl.col("event_at") >= self.as_of - timedelta(hours=hours)
            expressions += [pl.col(name).filter(inside).sum().alias(f"{name}_{suffix}") for name in names]
            expressions += [
                of.filter(inside).drop_nulls().n_unique().cast(pl.Int64).alias(f"{name}_{suffix}")
                for name, of in distinct.items()
            ]
        last_day = self.events.filter(pl.col("event_at") >= self.as_of - timedelta(hours=24))
        return last_day.filter(pl.col(keys[-1]).is_not_null()).group_by(keys).agg(expressions)

    def hours_since(self, at: str) -> pl.Expr:
        return (pl.lit(self.as_of) - pl.col(at)).dt.total_microseconds() / 3_600_000_000

    def orders(self, keys: list[str]) -> pl.LazyFrame:
        """One row per key and order."""
        lines = self.events.filter(pl.all_horizontal(pl.col("order_key", *keys).is_not_null()))
        return lines.group_by(*keys, "order_key").agg(
            ordered_at=pl.col("event_at").min(), last_day=pl.col("event_day").max(), value=total(pl.col("amount"))
        )


def total(value: pl.Expr) -> pl.Expr:
    """A sum; null if all values are null."""
    return pl.when(value.count() > 0).then(value.sum())


def known(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Make money null if none of it is known, and drop the columns that count known amounts."""
    counters = [name for name in frame.collect_schema().names() if name.startswith("known_")]
    return frame.with_columns(
        pl.when(pl.col(name).is_between(1, KNOWN - 1)).then(None).otherwise(pl.col(of)).alias(of)
        for name in counters
        for of in [name.removeprefix("known_")]
    ).drop(counters)


def share(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """A ratio; null if the divisor is zero or null."""
    return pl.when(whole > 0).then(part / whole)


def rate(successes: pl.Expr, trials: pl.Expr, prior: pl.Expr | float) -> pl.Expr:
    """A rate, smoothed towards `prior`."""
    tried = pl.max_horizontal(successes, trials)
    return pl.min_horizontal((successes + SMOOTHING * prior) / (tried + SMOOTHING), pl.lit(1.0))


def joined(left: pl.LazyFrame, right: pl.LazyFrame, *keys: str, zero: bool = True) -> pl.LazyFrame:
    """A left join whose missing numbers are 0."""
    names = [name for name in right.collect_schema().names() if name not in keys]
    both = left.join(right, on=keys, how="left", nulls_equal=True)
    return both.with_columns(pl.col(names).fill_null(0)) if zero else both


def user_features(shop: Shop) -> pl.LazyFrame:
    """All but rfm_*."""
    events, key = shop.events, "customer_id"
    hour = pl.col("event_at").dt.hour()
    priced = pl.col("is_priced")
    bought = pl.col("event_type") == "purchase"
    parts = {
        "night": hour < 6,
        "morning": hour.is_between(6, 11),
        "afternoon": hour.is_between(12, 17),
        "evening": hour >= 18,
        "weekend": pl.col("event_at").dt.weekday() >= 6,
        **{device: pl.col("device") == device for device in ("desktop", "mobile", "tablet")},
    }
    quantity = pl.col("quantity")
    days = events.group_by(key, "event_day").agg(
        pl.col(*OF_USER, "refunded_units").sum(),
        *(of.sum().cast(pl.Int64).alias(name) for name, of in parts.items()),
        events=pl.len().cast(pl.Int64),
        device_events=pl.col("device").count().cast(pl.Int64),
        priced_events=priced.sum().cast(pl.Int64),
        price_total=pl.col("price").filter(priced).sum(),
        ranked_events=pl.col("price_percentile").filter(priced).count().cast(pl.Int64),
        percentile_total=pl.col("price_percentile").filter(priced).sum(),
        listed=(pl.max_horizontal("list_price", "price") * quantity)
        .filter(bought & pl.col("list_price").is_not_null())
        .sum(),
        discount=((pl.col("list_price") - pl.col("price")) * quantity)
        .filter(bought & (pl.col("list_price") > pl.col("price")))
        .sum(),
        first_at=pl.col("event_at").min(),
        last_at=pl.col("event_at").max(),
        last_view_at=pl.col("event_at").filter(pl.col("views") == 1).max(),
        last_cart_add_at=pl.col("event_at").filter(pl.col("cart_adds") == 1).max(),
    )
    beside = [*parts, "events", "device_events", "priced_events", "price_total", "ranked_events", "percentile_total"]
    beside += ["listed", "discount", "refunded_units"]
    by_day = days.group_by(key).agg(
        *shop.sums(OF_USER),
        *shop.counts("active_days", "event_day"),
        *shop.sums(beside, LONG),
        pl.col("first_at").min(),
        pl.col("last_at", "last_view_at", "last_cart_add_at").max(),
    )
    spread = (
        events.filter(priced)
        .group_by(key)
        .agg(
            pl.col("price").filter(shop.since(90)).std().alias("price_std_90d"),
            pl.col("price").std().alias("price_std_lifetime"),
        )
    )
    touches = (
        events.filter(pl.col("product_id").is_not_null())
        .group_by(key, "product_id", "category", "brand")
        .agg(*shop.counts("events", "event_day", LONG), last_day=pl.col("event_day").max())
    )
    result = by_day
    for name, column in (
        ("distinct_products", "product_id"),
        ("distinct_categories", "category"),
        ("distinct_brands", "brand"),
    ):
        last = touches.filter(pl.col(column).is_not_null()).group_by(key, column).agg(pl.col("last_day").max())
        result = joined(result, last.group_by(key).agg(shop.counts(name)), key)
    by_category = (
        touches.filter(pl.col("category").is_not_null()).group_by(key, "category").agg(pl.col("^events_.*$").sum())
    )
    entropies = []
    for suffix in LONG:
        count = pl.col(f"events_{suffix}")
        part = count / count.sum()
        entropies.append((-(part * part.log())).filter(count > 0).sum().alias(f"category_entropy_{suffix}"))
        entropies.append(count.sum().alias(f"categorized_{suffix}"))
    result = joined(result, by_category.group_by(key).agg(entropies), key, zero=False).with_columns(
        # The entropy of no events is null, not 0.
        pl.when(pl.col(f"categorized_{suffix}") > 0)
        .then(f"category_entropy_{suffix}")
        .alias(f"category_entropy_{suffix}")
        for suffix in LONG
    )
    sessions = (
        events.drop_nulls("session_id")
        .group_by(key, "session_id")
        .agg(
            started_at=pl.col("event_at").min(),
            started_at_90d=pl.col("event_at").filter(shop.since(90)).min(),
            ended_at=pl.col("event_at").max(),
            last_day=pl.col("event_day").max(),
            adds=pl.col("cart_adds").sum(),
            purchases=bought.sum(),
            value=total(
                (pl.col("amount") * (pl.col("cart_adds") - pl.col("cart_removes"))).filter(
                    (pl.col("cart_adds") + pl.col("cart_removes")) > 0
                )
            ),
        )
    )
    abandoned = (
        (pl.col("adds") > 0) & (pl.col("purchases") == 0) & (pl.col("ended_at") < shop.as_of - timedelta(minutes=30))
    )
    of_sessions = [*shop.counts("sessions")]
    for suffix, start in (("90d", "started_at_90d"), ("lifetime", "started_at")):
        of_sessions.append(
            (pl.col("ended_at") - pl.col(start)).dt.total_seconds().mean().alias(f"session_seconds_mean_{suffix}")
        )
    for suffix, count in (("30d", 30), *LONG.items()):
        inside = abandoned & shop.since(count, "last_day")
        of_sessions.append(inside.sum().cast(pl.Int64).alias(f"abandoned_carts_{suffix}"))
        value = pl.col("value").clip(0).filter(inside)
        of_sessions.append(
            pl.when(inside.sum() == 0).then(0.0).otherwise(total(value)).alias(f"abandoned_cart_value_{suffix}")
        )
    result = joined(result, sessions.group_by(key).agg(of_sessions), key, zero=False)
    orders = (
        shop.orders([key])
        .sort(key, "ordered_at", "order_key")
        .with_columns(gap=pl.col("ordered_at").diff().over(key).dt.total_seconds())
    )
    by_order = orders.group_by(key).agg(
        *shop.counts("orders"),
        last_order_at=pl.col("ordered_at").max(),
        order_value_mean=pl.col("value").mean(),
        order_value_max=pl.col("value").max(),
        order_gap_days_mean=pl.col("gap").mean() / 86400,
        order_gap_days_std=pl.col("gap").std() / 86400,
    )
    result = joined(result, by_order, key, zero=False).with_columns(pl.col("^orders_.*$").fill_null(0))
    result = joined(result, spread, key, zero=False)
    something = pl.col("product_id").is_not_null()
    distinct = {
        "orders": pl.col("order_key"),
        "sessions": pl.col("session_id"),
        "active_days": pl.col("event_day"),
        "distinct_products": pl.col("product_id"),
        "distinct_categories": pl.when(something).then("category"),
        "distinct_brands": pl.when(something).then("brand"),
    }
    result = joined(result, shop.recent([key], OF_USER, distinct), key)
    parts_of = {"cart": ("cart_adds", "views"), "order": ("units", "cart_adds")}
    closed = events.filter(pl.col("available_at").dt.date() < shop.today).select(
        share(pl.col(taken).filter(shop.since(days)).sum(), pl.col(tried).filter(shop.since(days)).sum())
        .fill_null(0)
        .clip(0, 1)
        .alias(f"{step}_prior_{suffix}")
        for suffix, days in LONG.items()
        for step, (taken, tried) in parts_of.items()
    )
    result = result.join(closed, how="cross").with_columns(
        hours_since_view=shop.hours_since("last_view_at"),
        hours_since_cart_add=shop.hours_since("last_cart_add_at"),
        hours_since_order=shop.hours_since("last_order_at"),
        hours_since_session=shop.hours_since("last_at"),
        tenure_days=shop.hours_since("first_at") / 24,
        days_to_expected_order=pl.col("order_gap_days_mean") - shop.hours_since("last_order_at") / 24,
    )
    final = []
    for suffix in LONG:

        def of(name: str, suffix: str = suffix) -> pl.Expr:
            return pl.col(f"{name}_{suffix}")

        columns = {
            "discount_share": share(of("discount"), of("listed")),
            "return_rate": share(of("refunded_units"), of("units")).clip(0, 1),
            "view_to_cart_rate": rate(of("cart_adds"), of("views"), of("cart_prior")),
            "cart_to_unit_rate": rate(of("units"), of("cart_adds"), of("order_prior")),
            "price_mean": share(of("price_total"), of("priced_events")),
            "price_percentile_mean": share(of("percentile_total"), of("ranked_events")),
            **{
                f"{part}_share": share(
                    of(part), of("device_events" if part in ("desktop", "mobile", "tablet") else "events")
                )
                for part in parts
            },
        }
        final += [expression.alias(f"{name}_{suffix}") for name, expression in columns.items()]
        final.append(of("session_seconds_mean").is_null().alias(f"session_seconds_mean_{suffix}_was_missing"))
    internal = [f"{name}_{suffix}" for suffix in LONG for name in (*beside, "categorized")]
    return known(result.with_columns(final)).drop(
        *internal,
        "first_at",
        "last_at",
        "last_view_at",
        "last_cart_add_at",
        "last_order_at",
        "^(cart|order)_prior_.*$",
    )


def item_days(shop: Shop) -> pl.LazyFrame:
    """The measures of each product and day."""
    events = shop.events.filter(pl.col("product_id").is_not_null())
    priced = pl.col("is_priced")
    return events.group_by(
        "product_id", "category", "brand", "event_day", closed=pl.col("available_at").dt.date() < shop.today
    ).agg(
        pl.col(*OF_ITEM, "refunded_units").sum(),
        events=pl.len().cast(pl.Int64),
        priced_events=priced.sum().cast(pl.Int64),
        price_total=pl.col("price").filter(priced).sum(),
        first_at=pl.col("event_at").min(),
        last_at=pl.col("event_at").max(),
        last_order_at=pl.col("event_at").filter(pl.col("event_type") == "purchase").max(),
    )


def moving_averages(shop: Shop) -> list[pl.Expr]:
    """Means per day of views and units, over whole days before today."""
    past = pl.col("event_day") < shop.today
    return [
        (pl.col(name).filter(past & shop.since(days)).sum() / days).alias(f"{name}_sma_{days}d")
        for days in (7, 30)
        for name in ("views", "units")
    ]


def with_rates(frame: pl.LazyFrame, peers: str | None) -> pl.LazyFrame:
    """Rates by step, smoothed towards those of all rows that share `peers`; trends and return rates."""
    steps = {
        "view_to_cart": ("cart_adds", "views"),
        "cart_to_order": ("orders", "cart_adds"),
        "view_to_order": ("orders", "views"),
    }
    columns = []
    for suffix in ("30d", "lifetime"):
        for step, (taken, tried) in steps.items():
            done, might = pl.col(f"{taken}_{suffix}"), pl.col(f"{tried}_{suffix}")
            of_all = (done.sum().over(peers), might.sum().over(peers)) if peers else (done.sum(), might.sum())
            prior = share(*of_all).fill_null(0).clip(0, 1)
            columns.append(rate(done, might, prior).alias(f"{step}_rate_{suffix}"))
    return frame.with_columns(
        *columns,
        *(
            ((pl.col(f"{name}_sma_7d") + 1 / 30) / (pl.col(f"{name}_sma_30d") + 1 / 30)).alias(f"{name}_trend_7d_30d")
            for name in ("views", "units")
        ),
        return_rate_lifetime=share(
            pl.min_horizontal("refunded_units_lifetime", "units_lifetime"), pl.col("units_lifetime")
        ),
    )


def to_money(value: pl.Expr) -> pl.Expr:
    """Rounded to four decimals, half up. A quartile of money has six, and a double is not exact in the last one."""
    return ((value * 1_000_000).round() / 100 + 0.5).floor() / 10_000


def offers(shop: Shop, days: pl.LazyFrame) -> pl.LazyFrame:
    """All products, from the catalogue or, if they are not in it, from their events, with the most frequent category."""
    named = shop.events.filter(pl.col("product_id").is_not_null() & pl.col("category").is_not_null())
    named = (
        named.group_by("product_id", "category")
        .agg(count=pl.len(), last_at=pl.col("event_at").max())
        .sort("count", "last_at", "category", descending=[True, True, False])
        .group_by("product_id", maintain_order=True)
        .agg(seen_category=pl.col("category").first())
    )
    daily = days.group_by("product_id", "event_day").agg(
        price=to_money(share(pl.col("price_total").sum(), pl.col("priced_events").sum()))
    )
    seen = daily.group_by("product_id").agg(
        seen_price=pl.col("price")
        .filter(pl.col("price").is_not_null())
        .sort_by(pl.col("event_day").filter(pl.col("price").is_not_null()))
        .last(),
    )
    seen = seen.join(named, on="product_id", how="left")
    listed = shop.products.with_columns(listed=pl.lit(True))
    return listed.join(seen, on="product_id", how="full", coalesce=True).select(
        "product_id",
        "brand",
        "created_at",
        "first_known_at",
        pl.col("listed").fill_null(False),
        category=pl.coalesce("category", "seen_category"),
        price_now=pl.coalesce("price", "seen_price"),
    )


def trimmed(shop: Shop, days: pl.LazyFrame) -> pl.LazyFrame:
    """Means of the last month's days without the highest and the lowest tenth, and the exponential average of their prices, by product."""
    first = pl.lit(shop.today) - pl.duration(days=30)
    is_past = pl.col("event_day") < shop.today
    daily = (
        days.filter(pl.col("event_day") >= first)
        .group_by("product_id", "event_day")
        .agg(pl.col("views", "units", "price_total", "priced_events").sum())
    )
    daily = daily.with_columns(
        price=pl.when(pl.col("priced_events") > 0).then(
            (pl.col("price_total").cast(pl.Float64) / pl.col("priced_events")).round(4)
        ),
        weight=pl.lit(0.5).pow((pl.lit(shop.today) - pl.col("event_day")).dt.total_days() / 7),
        **{
            f"{measure}_place": pl.col(measure).rank("ordinal", descending=True).over("product_id", is_past)
            for measure in ("views", "units")
        },
    )
    daily = daily.with_columns(
        place=pl.col("price").rank("ordinal").over("product_id"),
        count=pl.col("price").count().over("product_id"),
    )
    ends = pl.col("count") // 10
    is_middle = (pl.col("place") > ends) & (pl.col("place") <= pl.col("count") - ends)
    is_priced = pl.col("price").is_not_null()
    return daily.group_by("product_id").agg(
        *(
            (pl.col(measure).filter(is_past & pl.col(f"{measure}_place").is_between(4, 27)).sum() / 24).alias(
                f"{measure}_trimmed_mean_30d"
            )
            for measure in ("views", "units")
        ),
        price_trimmed_mean_30d=pl.col("price").filter(is_middle).mean(),
        price_ema_7d=share((pl.col("price") * pl.col("weight")).sum(), pl.col("weight").filter(is_priced).sum()),
    )


def item_features(shop: Shop) -> pl.LazyFrame:
    """All."""
    key, days = "product_id", item_days(shop)
    past = pl.col("event_day") < shop.today
    age = (pl.lit(shop.today) - pl.col("event_day")).dt.total_days()
    averages = []
    for half_life in HALF_LIVES:
        left = pl.lit(0.5).pow(age / half_life)
        averages.append(
            ((pl.col("views") * left).filter(past).sum() * (1 - 0.5 ** (1 / half_life)) / 0.5 ** (1 / half_life)).alias(
                f"views_ema_{half_life}d"
            )
        )
    month = {"30d": 30}
    by_day = days.group_by(key).agg(
        *shop.sums(OF_ITEM),
        *moving_averages(shop),
        *averages,
        *shop.sums(["price_total", "priced_events"], month),
        refunded_units_lifetime=pl.col("refunded_units").sum(),
        first_at=pl.col("first_at").min(),
        last_at=pl.col("last_at").max(),
        last_order_at=pl.col("last_order_at").max(),
    )
    touches = shop.events.filter(pl.col(key).is_not_null())
    bought = (pl.col("event_type") == "purchase") & (pl.col("quantity") > 0)
    users = touches.group_by(key, "customer_id").agg(
        last_day=pl.col("event_day").max(), days_bought=pl.col("event_day").filter(bought).n_unique()
    )
    by_user = users.group_by(key).agg(
        *shop.counts("users"),
        repeat_buy_rate=share((pl.col("days_bought") > 1).sum(), (pl.col("days_bought") > 0).sum()),
    )
    times = {name: by_day.collect_schema()[name] for name in ("first_at", "last_at", "last_order_at")}
    result = joined(offers(shop, days), by_day.drop(*times), key)
    result = joined(result, by_day.select(key, *times), key, zero=False)
    result = joined(result, shop.orders([key]).group_by(key).agg(shop.counts("orders")), key)
    result = with_rates(result, "category")
    result = joined(result, by_user.drop("repeat_buy_rate"), key)
    result = joined(result, by_user.select(key, "repeat_buy_rate"), key, zero=False)
    result = joined(
        result, shop.recent([key], OF_ITEM, {"orders": pl.col("order_key"), "users": pl.col("customer_id")}), key
    )
    result = known(result)
    means = trimmed(shop, days)
    result = joined(result, means.select("product_id", "views_trimmed_mean_30d", "units_trimmed_mean_30d"), key)
    result = joined(result, means.select("product_id", "price_trimmed_mean_30d", "price_ema_7d"), key, zero=False)
    among = pl.col("price_now").rank("min").over("category") - 1
    rivals = pl.col("price_now").count().over("category") - 1
    born = pl.min_horizontal("created_at", "first_known_at", "first_at")
    mean = share(pl.col("price_total_30d"), pl.col("priced_events_30d"))
    return result.with_columns(
        *(
            pl.col(f"{name}_{suffix}").rank("min", descending=True).cast(pl.Int64).alias(f"{rank}_rank_{suffix}")
            for rank, name, suffix in (
                ("popularity", "views", "7d"),
                ("popularity", "views", "30d"),
                ("revenue", "revenue", "30d"),
            )
        ),
        hours_since_event=shop.hours_since("last_at"),
        hours_since_order=shop.hours_since("last_order_at"),
        age_days=((pl.lit(shop.as_of) - born).dt.total_microseconds() / 86_400_000_000).clip(0),
        days_averaged_30d=(pl.lit(shop.today) - born.dt.date()).dt.total_days().clip(0, 30),
        price_mean_30d=mean,
        price_to_mean_30d=share(pl.col("price_now"), mean),
        price_percentile_in_category=pl.when(pl.col("price_now").is_not_null()).then(
            pl.when(rivals > 0).then(among / rivals).otherwise(0.0)
        ),
    ).drop(
        "price_total_30d",
        "priced_events_30d",
        "refunded_units_lifetime",
        "created_at",
        "first_known_at",
        "listed",
        *times,
    )


def category_features(shop: Shop) -> pl.LazyFrame:
    """All."""
    key, days = "category", item_days(shop)
    by_day = (
        days.filter(pl.col(key).is_not_null())
        .group_by(key)
        .agg(
            *shop.sums(OF_ITEM),
            *moving_averages(shop),
            refunded_units_lifetime=pl.col("refunded_units").sum(),
            items_with_events_30d=pl.col("product_id").filter(shop.since(30)).n_unique().cast(pl.Int64),
            last_at=pl.col("last_at").max(),
            last_order_at=pl.col("last_order_at").max(),
        )
    )
    price = pl.col("price_now")

    def quartile(part: float) -> pl.Expr:
        return to_money(price.quantile(part, "linear"))

    offered = (
        offers(shop, days)
        .filter(pl.col(key).is_not_null())
        .group_by(key)
        .agg(
            products_in_catalogue=pl.col("listed").sum().cast(pl.Int64),
            products_priced=price.count().cast(pl.Int64),
            price_q25=quartile(0.25),
            price_median=quartile(0.5),
            price_q75=quartile(0.75),
        )
    )
    touches = shop.events.filter(pl.col("product_id").is_not_null() & pl.col(key).is_not_null())
    users = touches.group_by(key, "customer_id").agg(last_day=pl.col("event_day").max())
    orders = shop.orders([key, "product_id"]).group_by(key, "order_key").agg(pl.col("last_day").max())
    result = joined(offered.select(key), by_day.drop("last_at", "last_order_at"), key)
    result = joined(result, by_day.select(key, "last_at", "last_order_at"), key, zero=False)
    result = joined(result, offered, key, zero=False)
    result = joined(result, orders.group_by(key).agg(shop.counts("orders")), key)
    result = with_rates(result, None)
    result = joined(result, users.group_by(key).agg(shop.counts("users")), key)
    about = Shop(touches, shop.products, shop.as_of)
    result = joined(
        result, about.recent([key], OF_ITEM, {"orders": pl.col("order_key"), "users": pl.col("customer_id")}), key
    )
    return (
        known(result)
        .with_columns(
            hours_since_event=shop.hours_since("last_at"),
            hours_since_order=shop.hours_since("last_order_at"),
            share_of_views_30d=share(pl.col("views_30d"), pl.col("views_30d").sum()),
            share_of_revenue_30d=share(pl.col("revenue_30d"), pl.col("revenue_30d").sum()),
        )
        .drop("refunded_units_lifetime", "last_at", "last_order_at")
    )


def left_of(shop: Shop, half: int, unit: int) -> pl.Expr:
    """The decayed weight of a day, in integer units: ranks depend on its sums, which must be exact."""
    age = (pl.lit(shop.today) - pl.col("event_day")).dt.total_days()
    return (pl.lit(0.5).pow(age / half) * unit).round(mode="half_away_from_zero").cast(pl.Int64)


def affinities(shop: Shop) -> list[pl.Expr]:
    """Affinities: weights of events, halved with age."""
    billion = 1_000_000_000
    return [
        ((pl.col("weight") * left_of(shop, half, billion)).sum() / billion).alias(f"affinity_{half}d")
        for half in HALF_LIVES
    ]


def _affinity(shop: Shop, kind: str) -> pl.LazyFrame:
    keys = ["customer_id", kind]
    touches = shop.events.filter(pl.col("product_id").is_not_null() & pl.col(kind).is_not_null())
    priced = pl.col("is_priced")
    mine = touches.group_by(keys).agg(
        *shop.sums(OF_AFFINITY),
        *affinities(shop),
        *shop.counts("events", "event_day", LONG),
        active_days_90d=pl.col("event_day").filter(shop.since(90)).n_unique().cast(pl.Int64),
        distinct_products_lifetime=pl.col("product_id").n_unique().cast(pl.Int64),
        price_mean_lifetime=share(pl.col("price").filter(priced).sum(), priced.sum()),
        last_at=pl.col("event_at").max(),
        last_view_at=pl.col("event_at").filter(pl.col("views") == 1).max(),
        last_cart_add_at=pl.col("event_at").filter(pl.col("cart_adds") == 1).max(),
    )
    orders = (
        shop.orders([*keys, "product_id"])
        .group_by(*keys, "order_key")
        .agg(pl.col("ordered_at").min(), pl.col("last_day").max())
    )
    by_order = orders.group_by(keys).agg(*shop.counts("orders"), last_order_at=pl.col("ordered_at").max())
    closed = touches.filter(pl.col("available_at").dt.date() < shop.today)
    of_shop = (
        closed.group_by(kind)
        .agg(
            *(each.alias(f"shop_{each.meta.output_name()}") for each in shop.counts("events", "event_day", LONG)),
            shop_price=share(pl.col("price").filter(priced).sum(), priced.sum()),
        )
        .with_columns(pl.col(f"shop_events_{suffix}").sum().alias(f"all_shop_events_{suffix}") for suffix in LONG)
    )
    result = joined(known(mine), by_order, *keys, zero=False).with_columns(pl.col("^orders_.*$").fill_null(0))
    result = joined(result, of_shop, kind, zero=False)
    columns = []
    for suffix in LONG:
        events, whole = pl.col(f"events_{suffix}"), pl.col(f"events_{suffix}").sum().over("customer_id")
        theirs, all_theirs = pl.col(f"shop_events_{suffix}"), pl.col(f"all_shop_events_{suffix}")
        lift = pl.when((events >= 5) & (theirs > 0)).then(events / whole / (theirs / all_theirs))
        spend = pl.col(f"revenue_{suffix}")
        columns += [
            share(events, whole).alias(f"share_of_events_{suffix}"),
            share(spend, spend.sum().over("customer_id")).alias(f"share_of_spend_{suffix}"),
            lift.alias(f"lift_{suffix}"),
            lift.log().alias(f"pmi_{suffix}"),
        ]
    affinity = pl.col("affinity_30d")
    return (
        result.with_columns(
            *columns,
            affinity_share_30d=share(affinity, affinity.sum().over("customer_id")),
            preference_rank=affinity.rank("min", descending=True).over("customer_id").cast(pl.Int64),
            price_ratio_lifetime=share(pl.col("price_mean_lifetime"), pl.col("shop_price")),
            hours_since_event=shop.hours_since("last_at"),
            hours_since_view=shop.hours_since("last_view_at"),
            hours_since_cart_add=shop.hours_since("last_cart_add_at"),
            hours_since_order=shop.hours_since("last_order_at"),
        )
        .rename({f"affinity_{half}d": f"{kind}_affinity_{half}d" for half in HALF_LIVES})
        .drop("^(events|shop|all_shop)_.*$", "last_at", "last_view_at", "last_cart_add_at", "last_order_at")
    )


def user_category_features(shop: Shop) -> pl.LazyFrame:
    """All."""
    return _affinity(shop, "category")


def user_brand_features(shop: Shop) -> pl.LazyFrame:
    """All."""
    return _affinity(shop, "brand")


def user_item_features(shop: Shop) -> pl.LazyFrame:
    """All."""
    keys = ["customer_id", "product_id"]
    touches = shop.events.filter(pl.col("product_id").is_not_null())
    at = pl.col("event_at")
    viewed = (pl.col("views") == 1) & pl.col("price").is_not_null()
    mine = touches.group_by(keys).agg(
        *shop.sums(OF_USER_ITEM),
        *(each.name.prefix("item_") for each in affinities(shop)),
        first_at=at.min(),
        last_view_at=at.filter(pl.col("views") == 1).max(),
        last_cart_add_at=at.filter(pl.col("cart_adds") == 1).max(),
        last_cart_remove_at=at.filter(pl.col("cart_removes") == 1).max(),
        last_bought_at=at.filter(pl.col("event_type") == "purchase").max(),
        price_at_last_view=pl.col("price").filter(viewed & (at == at.filter(viewed).max())).max(),
    )
    orders = shop.orders(keys)
    span = (pl.col("ordered_at").max() - pl.col("ordered_at").min()).dt.total_microseconds() / 86_400_000_000
    by_order = orders.group_by(keys).agg(
        *shop.counts("orders"),
        last_order_at=pl.col("ordered_at").max(),
        reorder_gap_days_mean=pl.when(pl.len() > 1).then(span / (pl.len() - 1)),
    )
    every = (
        shop.orders(["customer_id"])
        .group_by("customer_id", "ordered_at")
        .agg(count=pl.len().cast(pl.Int64))
        .sort("customer_id", "ordered_at")
        .with_columns(
            orders_since_last=pl.col("count").sum().over("customer_id") - pl.col("count").cum_sum().over("customer_id")
        )
        .sort("ordered_at")
    )
    by_order = by_order.sort("last_order_at").join_asof(
        every.select("customer_id", "ordered_at", "orders_since_last"),
        left_on="last_order_at",
        right_on="ordered_at",
        by="customer_id",
        check_sortedness=False,
    )
    result = joined(mine, by_order.drop("ordered_at"), *keys, zero=False)
    result = result.with_columns(pl.col(f"orders_{suffix}").fill_null(0) for suffix in DAYS)
    result = joined(result, shop.recent(keys, OF_USER_ITEM, {"orders": pl.col("order_key")}), *keys)
    listed = shop.products.select("product_id", "category", "brand", price_now="price")
    result = joined(result, listed, "product_id", zero=False)
    added = pl.col("last_cart_add_at")
    return (
        known(result)
        .with_columns(
            hours_since_view=shop.hours_since("last_view_at"),
            hours_since_cart_add=shop.hours_since("last_cart_add_at"),
            hours_since_order=shop.hours_since("last_order_at"),
            days_since_first_event=shop.hours_since("first_at") / 24,
            in_cart_now=added.is_not_null()
            & (added > pl.col("last_cart_remove_at")).fill_null(True)
            & (added > pl.col("last_bought_at")).fill_null(True),
            due_ratio=share(shop.hours_since("last_order_at") / 24, pl.col("reorder_gap_days_mean")),
            price_change_since_view=share(pl.col("price_now"), pl.col("price_at_last_view")) - 1,
        )
        .drop("first_at", "last_view_at", "last_cart_add_at", "last_cart_remove_at", "last_bought_at", "last_order_at")
    )


def session_features(shop: Shop) -> pl.LazyFrame:
    """All but entry_channel and visitor_class."""
    key = "session_id"
    lately = (
        shop.events.drop_nulls(key)
        .group_by(key)
        .agg(last_day=pl.col("event_day").max())
        .filter(shop.since(30, "last_day"))
    )
    visible = shop.events.join(lately.select(key), on=key, how="semi")
    placed = visible.sort("event_at", "event_id").with_columns(
        place=pl.int_range(pl.len()).over(key),
        dwell=(pl.col("event_at").shift(-1).over(key) - pl.col("event_at")).dt.total_microseconds() / 1_000_000,
        adds_before=pl.col("cart_adds").cum_sum().over(key) - pl.col("cart_adds"),
    )
    first = pl.col("place") == 0
    viewed, before = pl.col("views") == 1, pl.col("adds_before") == 0
    net = pl.col("cart_adds") - pl.col("cart_removes")
    at, dwell = pl.col("event_at"), pl.col("dwell").filter(viewed)
    result = placed.group_by(key).agg(
        pl.col(OF_SESSION).sum(),
        # The login, if there is one: 'u:' sorts after 'a:'.
        pl.col("customer_id").sort_by("identity").last(),
        *(
            pl.col(name).filter(first).first().alias(alias)
            for name, alias in (
                ("page", "entry_page"),
                ("referrer", "entry_referrer"),
                ("campaign", "entry_campaign"),
                ("device", "device"),
                ("country", "country"),
            )
        ),
        *(
            pl.col(column).drop_nulls().n_unique().cast(pl.Int64).alias(name)
            for name, column in (
                ("orders", "order_key"),
                ("distinct_products", "product_id"),
                ("distinct_categories", "category"),
                ("distinct_brands", "brand"),
            )
        ),
        started_at=at.min(),
        last_event_at=at.max(),
        events=pl.len().cast(pl.Int64),
        dwell_seconds_mean=dwell.mean(),
        dwell_seconds_max=dwell.max(),
        events_before_first_cart_add=(before & (pl.col("cart_adds") == 0)).sum().cast(pl.Int64),
        events_after_first_cart_add=before.not_().sum().cast(pl.Int64),
        views_before_first_cart_add=(before & viewed).sum().cast(pl.Int64),
        views_after_first_cart_add=(before.not_() & viewed).sum().cast(pl.Int64),
        first_cart_add_at=at.filter(pl.col("cart_adds") == 1).min(),
        cart_value=pl.when(net.abs().sum() == 0)
        .then(0.0)
        .otherwise(total((pl.col("amount") * net).filter(net != 0)).clip(0)),
        cart_units=(pl.col("quantity").fill_null(1) * net).sum().clip(0),
    )
    result = known(result)
    for name, column in (("last_products", "product_id"), ("last_categories", "category")):
        latest = placed.filter(pl.col(column).is_not_null()).group_by(key, column).agg(pl.col("place").max())
        lists = latest.group_by(key).agg(pl.col(column).sort_by("place", descending=True).head(5).alias(name))
        result = joined(result, lists, key, zero=False).with_columns(
            pl.col(name).fill_null(pl.lit([], pl.List(pl.String)))
        )
    hour = pl.col("started_at").dt.hour()
    tag = pl.col("entry_page").map_elements(campaign_tag, return_dtype=pl.String, skip_nulls=True)
    return result.with_columns(
        entry_campaign=pl.coalesce(tag, "entry_campaign"),
        length_seconds=(pl.col("last_event_at") - pl.col("started_at")).dt.total_seconds(),
        seconds_since_last_event=shop.hours_since("last_event_at") * 3600,
        is_over=pl.col("last_event_at") < shop.as_of - timedelta(minutes=30),
        has_order=pl.col("orders") > 0,
        is_bounced=pl.col("events") == 1,
        views_per_product=share(pl.col("views"), pl.col("distinct_products")),
        seconds_to_first_cart_add=(pl.col("first_cart_add_at") - pl.col("started_at")).dt.total_seconds(),
        day_part=pl.when(hour < 6)
        .then(pl.lit("night"))
        .when(hour < 12)
        .then(pl.lit("morning"))
        .when(hour < 18)
        .then(pl.lit("afternoon"))
        .otherwise(pl.lit("evening")),
        is_weekend=pl.col("started_at").dt.weekday() >= 6,
    ).drop("first_cart_add_at")


def item_pair_features(shop: Shop) -> pl.LazyFrame:
    """All."""
    kinds = {"view_item": "viewed", "add_to_cart": "carted", "purchase": "bought"}
    visible_at = pl.max_horizontal("available_at", pl.col("event_at") + timedelta(microseconds=1))
    seen = shop.events.filter(pl.col("product_id").is_not_null() & pl.col("event_type").is_in(list(kinds))).select(
        "identity",
        "product_id",
        "event_day",
        "event_at",
        "order_key",
        kind=pl.col("event_type").replace_strict(kinds),
        visible_at=visible_at,
    )

    def prefix(frame: pl.LazyFrame, basket: list[str], order: list[str]) -> pl.LazyFrame:
        """The first touch of each product in each basket, and of these the first 50; only closed days."""
        firsts = frame.sort("visible_at", "event_at").unique([*basket, "product_id"], keep="first", maintain_order=True)
        placed = firsts.sort(order).with_columns(place=pl.int_range(pl.len()).over(basket))
        return placed.filter((pl.col("place") < 50) & (pl.col("visible_at").dt.date() < shop.today))

    daily_touches = prefix(seen, ["identity", "kind", "event_day"], ["visible_at", "event_at", "product_id"])
    bought = seen.filter(pl.col("order_key").is_not_null())
    baskets = prefix(bought, ["identity", "order_key"], ["visible_at", "product_id"])
    touches = daily_touches.select("identity", "kind", "product_id", "event_day", "event_at")
    reach = pl.DataFrame({"step": [-1, 0, 1]}).lazy()
    others = touches.join(reach, how="cross").select(
        "identity",
        other_kind="kind",
        other_product_id="product_id",
        event_day=pl.col("event_day") + pl.duration(days=pl.col("step")),
        other_at="event_at",
    )
    same = (pl.col("kind") == pl.col("other_kind")) & (pl.col("kind") != "bought")
    leads = (pl.col("kind") == "carted") & (pl.col("other_kind") == "bought")
    apart = (pl.col("other_at") - pl.col("event_at")).dt.total_microseconds() / 3_600_000_000
    near = (
        touches.join(others, on=["identity", "event_day"])
        .filter(pl.col("product_id") != pl.col("other_product_id"))
        .filter((same & apart.is_between(-24, 24)) | (leads & apart.is_between(0, 24)))
        .select("identity", "kind", "other_kind", "product_id", "other_product_id", "event_day")
        .unique()
        .select("product_id", "other_product_id", "event_day", counted=pl.concat_str("kind", "other_kind"))
    )
    lines = baskets.select("identity", "order_key", "product_id", "event_day")
    together = lines.join(
        lines.rename({"product_id": "other_product_id"}).drop("event_day"), on=["identity", "order_key"]
    )
    ordered = together.filter(pl.col("product_id") != pl.col("other_product_id")).select(
        "product_id", "other_product_id", "event_day", counted=pl.lit("ordered")
    )
    counts = {
        "co_views": "viewedviewed",
        "co_carts": "cartedcarted",
        "co_orders": "ordered",
        "carts_to_orders": "cartedbought",
    }
    pair = ["product_id", "other_product_id"]
    days = (
        pl.concat([near, ordered])
        .group_by(*pair, "event_day")
        .agg(*((pl.col("counted") == of).sum().cast(pl.Int64).alias(name) for name, of in counts.items()))
    )

    def decayed(value: pl.Expr, half: int) -> pl.Expr:
        return (value * left_of(shop, half, 1_000_000)).sum() / 1_000_000

    weighted = pl.col("co_views") + 3 * pl.col("co_carts") + 10 * pl.col("co_orders") + 5 * pl.col("carts_to_orders")
    windows: dict[str, int | None] = {"30d": 30, **LONG}
    pairs = days.group_by(pair).agg(
        *shop.sums(list(counts), windows),
        *(decayed(pl.col(name), half).alias(f"{name}_decayed_{half}d") for name in counts for half in (7, 30)),
        pair_score=decayed(weighted, 30),
        undecayed=weighted.sum(),
    )
    # Used three times, so computed once.
    pairs = pairs.collect(engine="streaming").lazy()
    single_counts = {
        "view_days": daily_touches.filter(pl.col("kind") == "viewed"),
        "cart_days": daily_touches.filter(pl.col("kind") == "carted"),
        "orders": baskets,
    }
    firsts = {"view_days": "first_views", "cart_days": "first_carts", "orders": "first_orders"}
    result = (
        pairs.sort(["product_id", "pair_score", "undecayed", "other_product_id"], descending=[False, True, True, False])
        .with_columns(pair_rank=pl.int_range(1, pl.len() + 1).over("product_id"))
        .filter(pl.col("pair_rank") <= 50)
        .drop("undecayed")
    )
    back = pairs.select(
        product_id="other_product_id",
        other_product_id="product_id",
        back_co_views="co_views_lifetime",
        back_co_carts="co_carts_lifetime",
        back_co_orders="co_orders_lifetime",
    )
    result = joined(result, back, *pair, zero=False)
    for name, frame in single_counts.items():
        singles = frame.group_by("product_id").agg(shop.counts(name, "event_day", LONG))
        result = joined(result, singles, "product_id", zero=False)
        other = singles.select(
            pl.col("product_id").alias("other_product_id"), pl.col(f"{name}_lifetime").alias(f"other_{name}")
        )
        result = joined(result, other, "other_product_id", zero=False)
        first = frame.filter(pl.col("place") == 0).select(pl.len().alias(firsts[name]))
        result = result.join(first, how="cross")
    listed = shop.products.select("product_id", "category")
    result = joined(result, listed, "product_id", zero=False)
    result = joined(
        result,
        listed.rename({"product_id": "other_product_id", "category": "other_category"}),
        "other_product_id",
        zero=False,
    )
    columns = [(pl.col("category") == pl.col("other_category")).alias("is_same_category")]
    for name, together_of, whole, other_whole in (
        ("view", "co_views", "view_days", "view_days"),
        ("cart", "co_carts", "cart_days", "cart_days"),
        ("order", "co_orders", "orders", "orders"),
        ("cart_to_order", "carts_to_orders", "cart_days", "orders"),
    ):
        confidence = {suffix: share(pl.col(f"{together_of}_{suffix}"), pl.col(f"{whole}_{suffix}")) for suffix in LONG}
        columns += [each.alias(f"{name}_confidence_{suffix}") for suffix, each in confidence.items()]
        is_supported = pl.col(f"{together_of}_lifetime") >= 3
        lift = pl.when(is_supported).then(
            share(confidence["lifetime"], share(pl.col(f"other_{other_whole}"), pl.col(firsts[other_whole])))
        )
        columns += [lift.alias(f"lift_{together_of}"), lift.log().alias(f"pmi_{together_of}")]
        if name != "cart_to_order":
            backwards = share(pl.col(f"back_{together_of}"), pl.col(f"other_{whole}"))
            columns.append(
                pl.when(is_supported).then((confidence["lifetime"] * backwards).sqrt()).alias(f"cosine_{together_of}")
            )
    return result.with_columns(columns).drop(
        "^(back|other_view|other_cart|other_orders|first|view_days|cart_days|orders)_?.*$", "category", "other_category"
    )


MARTS = {
    function.__name__: function
    for function in (
        user_features,
        item_features,
        category_features,
        user_category_features,
        user_brand_features,
        user_item_features,
        session_features,
        item_pair_features,
    )
}


def compute(shop: Shop, mart: str) -> pl.DataFrame:
    """One mart."""
    return MARTS[mart](shop).collect(engine="streaming")
