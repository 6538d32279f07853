"""The features in pandas, from clean events. Each function says which columns it leaves out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
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

Windows = dict[str, int | None]


@dataclass
class Shop:
    """Clean events with a column for each measure, the catalogue at `as_of`, and `as_of`."""

    events: pd.DataFrame
    products: pd.DataFrame
    as_of: pd.Timestamp

    @classmethod
    def read(cls, folder: Path) -> Shop:
        """Read the files that dataframes.export writes."""
        events = pd.read_parquet(folder / "events.parquet")
        kind = events["event_type"]
        for name, of in COUNTS.items():
            events[name] = (kind == of).astype("int64")
        for name, (of, value) in {**SUMS, "refunded_units": ("refund", "quantity")}.items():
            events[name] = events[value].where(kind == of, 0.0).fillna(0.0)
        for name in MONEY:
            of, value = SUMS[name]
            events[f"known_{name}"] = np.where(kind == of, np.where(events[value].isna(), 1, KNOWN), 0)
        events["weight"] = kind.map(WEIGHTS).fillna(0).astype("int64")
        events["event_day"] = pd.to_datetime(events["event_day"])
        events["is_priced"] = kind.isin(WEIGHTS) & events["price"].notna() & events["product_id"].notna()
        moment = pd.read_parquet(folder / "build.parquet")["as_of"].iloc[0]
        return cls(events, pd.read_parquet(folder / "products.parquet"), pd.Timestamp(moment))

    @property
    def today(self) -> pd.Timestamp:
        return self.as_of.normalize()

    def within(self, frame: pd.DataFrame, days: int | None, day: str = "event_day") -> pd.DataFrame:
        """The rows in a window of days."""
        return frame if days is None else frame[frame[day] >= self.today - pd.Timedelta(days=days)]

    def sums(
        self, frame: pd.DataFrame, keys: list[str], names: list[str], windows: Windows = DAYS
    ) -> list[pd.DataFrame]:
        """Sums of columns by window of days."""
        return [
            grouped(self.within(frame, days), keys)[names].sum().add_suffix(f"_{suffix}")
            for suffix, days in windows.items()
        ]

    def counts(
        self, frame: pd.DataFrame, keys: list[str], name: str, day: str = "last_day", windows: Windows = DAYS
    ) -> list[pd.Series]:
        """Row counts by window of days."""
        return [
            grouped(self.within(frame, days, day), keys).size().rename(f"{name}_{suffix}")
            for suffix, days in windows.items()
        ]

    def recent(self, keys: list[str], names: list[str], distinct: list[tuple[str, str]]) -> list[pd.DataFrame]:
        """Sums and distinct counts, (name, column) each, over the last hour and the last 24."""
        found = []
        for suffix, hours in HOURS.items():
            events = self.events[self.events["event_at"] >= self.as_of - pd.Timedelta(hours=hours)]
            groups = grouped(events[events[keys[-1]].notna()], keys)
            found.append(groups[names].sum().add_suffix(f"_{suffix}"))
            found += [groups[column].nunique().rename(f"{name}_{suffix}") for name, column in distinct]
        return found

    def hours_since(self, at: pd.Series) -> pd.Series:
        return (self.as_of - at) / pd.Timedelta(hours=1)

    def orders(self, keys: list[str]) -> pd.DataFrame:
        """One row per key and order."""
        lines = self.events[self.events[[*keys, "order_key"]].notna().all(axis=1)]
        orders = grouped(lines, [*keys, "order_key"])
        found = orders.agg(ordered_at=("event_at", "min"), last_day=("event_day", "max"))
        return found.assign(value=orders["amount"].sum(min_count=1)).reset_index()

    def age(self, day: pd.Series) -> pd.Series:
        return (self.today - day).dt.days


def grouped(frame: pd.DataFrame, keys: list[str]) -> pd.core.groupby.DataFrameGroupBy:
    return frame.groupby(keys, sort=False, dropna=False)


def beside(frame: pd.DataFrame, others: Iterable[pd.DataFrame | pd.Series], zero: bool = True) -> pd.DataFrame:
    """Join the columns of others on the index; missing numbers are 0."""
    for other in others:
        found = other.reindex(frame.index)
        columns = found.to_frame() if isinstance(found, pd.Series) else found
        frame = frame.join(columns.fillna(0) if zero else columns)
    return frame


def known(frame: pd.DataFrame) -> pd.DataFrame:
    """Make money null if none of it is known, and drop the columns that count known amounts."""
    counters = [name for name in frame if name.startswith("known_")]
    for name in counters:
        of = name.removeprefix("known_")
        frame[of] = frame[of].mask(frame[name].between(1, KNOWN - 1))
    return frame.drop(columns=counters)


def share(part: pd.Series, whole: pd.Series) -> pd.Series:
    """A ratio; null if the divisor is zero or null."""
    return part / whole.where(whole > 0)


def rate(successes: pd.Series, trials: pd.Series, prior: pd.Series | float) -> pd.Series:
    """A rate, smoothed towards `prior`."""
    return ((successes + SMOOTHING * prior) / (np.maximum(successes, trials) + SMOOTHING)).clip(upper=1.0)


def rounded(values: pd.Series) -> pd.Series:
    """Rounded to integers, half away from zero as in SQL; values are not negative."""
    return np.floor(values + 0.5).astype("int64")


def user_features(shop: Shop) -> pd.DataFrame:
    """All but rfm_*."""
    events, key = shop.events, ["customer_id"]
    hour, weekday = events["event_at"].dt.hour, events["event_at"].dt.weekday
    bought = events["event_type"] == "purchase"
    priced = events["is_priced"]
    parts = {
        "night": hour < 6,
        "morning": hour.between(6, 11),
        "afternoon": hour.between(12, 17),
        "evening": hour >= 18,
        "weekend": weekday >= 5,
        **{device: events["device"] == device for device in ("desktop", "mobile", "tablet")},
    }
    below = events["list_price"] > events["price"]
    columns = {
        **{name: of.astype("int64") for name, of in parts.items()},
        "events": pd.Series(1, index=events.index),
        "device_events": events["device"].notna().astype("int64"),
        "priced_events": priced.astype("int64"),
        "price_total": events["price"].where(priced, 0.0),
        "ranked_events": (priced & events["price_percentile"].notna()).astype("int64"),
        "percentile_total": events["price_percentile"].where(priced, 0).fillna(0),
        "listed": (np.maximum(events["list_price"], events["price"]) * events["quantity"])
        .where(bought, 0.0)
        .fillna(0.0),
        "discount": ((events["list_price"] - events["price"]) * events["quantity"])
        .where(bought & below, 0.0)
        .fillna(0.0),
    }
    internal_columns = [*columns, "refunded_units"]
    wide = events.assign(**columns)
    days = grouped(wide, [*key, "event_day"])[[*OF_USER, *internal_columns]].sum().reset_index()
    result = pd.concat(shop.sums(days, key, OF_USER), axis=1).fillna(0)
    internal = pd.concat(shop.sums(days, key, internal_columns, LONG), axis=1).fillna(0)
    result = beside(result, shop.counts(days, key, "active_days", "event_day"))
    touches = events[events["product_id"].notna()]
    for name, column in (
        ("distinct_products", "product_id"),
        ("distinct_categories", "category"),
        ("distinct_brands", "brand"),
    ):
        last = (
            grouped(touches[touches[column].notna()], [*key, column]).agg(last_day=("event_day", "max")).reset_index()
        )
        result = beside(result, shop.counts(last, key, name))
    for suffix, count in LONG.items():
        found = shop.within(touches[touches["category"].notna()], count)
        sizes = grouped(found, [*key, "category"]).size()
        part = sizes / sizes.groupby("customer_id").transform("sum")
        entropy = -(part * np.log(part)).groupby("customer_id").sum()
        spread = grouped(shop.within(events[priced], count), key)["price"].std()
        result = beside(
            result, [entropy.rename(f"category_entropy_{suffix}"), spread.rename(f"price_std_{suffix}")], zero=False
        )
    net = events["cart_adds"] - events["cart_removes"]
    value = (events["amount"] * net).where(net != 0)
    of_sessions = grouped(
        events.assign(
            value=value,
            purchases=bought,
            lately=events["event_at"].where(events["event_day"] >= shop.today - pd.Timedelta(days=90)),
        ),
        [*key, "session_id"],
    )
    sessions = of_sessions.agg(
        started_at=("event_at", "min"),
        started_at_90d=("lately", "min"),
        ended_at=("event_at", "max"),
        last_day=("event_day", "max"),
        adds=("cart_adds", "sum"),
        purchases=("purchases", "sum"),
    )
    sessions = sessions.assign(value=of_sessions["value"].sum(min_count=1)).reset_index()
    result = beside(result, shop.counts(sessions, key, "sessions"))
    for suffix, start in (("90d", "started_at_90d"), ("lifetime", "started_at")):
        # Whole seconds, for sessions in the window.
        sessions["seconds"] = ((sessions["ended_at"] - sessions[start]) / pd.Timedelta(seconds=1)).apply(np.floor)
        result = beside(
            result, [grouped(sessions, key)["seconds"].mean().rename(f"session_seconds_mean_{suffix}")], zero=False
        )
        result[f"session_seconds_mean_{suffix}_was_missing"] = result[f"session_seconds_mean_{suffix}"].isna()
    left = sessions[
        (sessions["adds"] > 0)
        & (sessions["purchases"] == 0)
        & (sessions["ended_at"] < shop.as_of - pd.Timedelta(minutes=30))
    ]
    left = left.assign(abandoned_cart_value=left["value"].clip(lower=0))
    result = beside(result, shop.counts(left, key, "abandoned_carts", windows={"30d": 30, **LONG}))
    for suffix, count in (("30d", 30), *LONG.items()):
        values = grouped(shop.within(left, count, "last_day"), key)["abandoned_cart_value"].sum(min_count=1)
        result[f"abandoned_cart_value_{suffix}"] = values.reindex(result.index, fill_value=0.0)
    orders = shop.orders(key).sort_values([*key, "ordered_at", "order_key"])
    orders["gap"] = (orders.groupby("customer_id")["ordered_at"].diff() / pd.Timedelta(seconds=1)).apply(np.floor)
    result = beside(result, shop.counts(orders, key, "orders"))
    by_order = grouped(orders, key).agg(
        order_value_mean=("value", "mean"),
        order_value_max=("value", "max"),
        order_gap_days_mean=("gap", "mean"),
        order_gap_days_std=("gap", "std"),
        last_order_at=("ordered_at", "max"),
    )
    by_order[["order_gap_days_mean", "order_gap_days_std"]] /= 86400
    result = beside(result, [by_order], zero=False)
    moments = grouped(events, key).agg(first_at=("event_at", "min"), last_at=("event_at", "max"))
    for name, of in (("view", "views"), ("cart_add", "cart_adds")):
        moments[f"last_{name}_at"] = grouped(events[events[of] == 1], key)["event_at"].max()
    moments = moments.reindex(result.index)
    result["hours_since_view"] = shop.hours_since(moments["last_view_at"])
    result["hours_since_cart_add"] = shop.hours_since(moments["last_cart_add_at"])
    result["hours_since_order"] = shop.hours_since(result.pop("last_order_at"))
    result["hours_since_session"] = shop.hours_since(moments["last_at"])
    result["tenure_days"] = shop.hours_since(moments["first_at"]) / 24
    result["days_to_expected_order"] = result["order_gap_days_mean"] - result["hours_since_order"] / 24
    closed = events[events["available_at"] < shop.today]
    for suffix, days in LONG.items():
        shops = shop.within(closed, days)
        adds, views, units = (shops[name].sum() for name in ("cart_adds", "views", "units"))
        of = {name: internal[f"{name}_{suffix}"] for name in internal_columns}
        result[f"discount_share_{suffix}"] = share(of["discount"], of["listed"])
        result[f"return_rate_{suffix}"] = share(of["refunded_units"], result[f"units_{suffix}"]).clip(upper=1)
        result[f"view_to_cart_rate_{suffix}"] = rate(
            result[f"cart_adds_{suffix}"], result[f"views_{suffix}"], min(adds / views if views else 0, 1)
        )
        result[f"cart_to_unit_rate_{suffix}"] = rate(
            result[f"units_{suffix}"], result[f"cart_adds_{suffix}"], min(units / adds if adds else 0, 1)
        )
        result[f"price_mean_{suffix}"] = share(of["price_total"], of["priced_events"])
        result[f"price_percentile_mean_{suffix}"] = share(of["percentile_total"], of["ranked_events"])
        for part in parts:
            whole = "device_events" if part in ("desktop", "mobile", "tablet") else "events"
            result[f"{part}_share_{suffix}"] = share(of[part], of[whole])
    something = events["product_id"].notna()
    about = Shop(
        events.assign(met_category=events["category"].where(something), met_brand=events["brand"].where(something)),
        shop.products,
        shop.as_of,
    )
    distinct = [
        ("orders", "order_key"),
        ("sessions", "session_id"),
        ("active_days", "event_day"),
        ("distinct_products", "product_id"),
    ]
    distinct += [("distinct_categories", "met_category"), ("distinct_brands", "met_brand")]
    return known(beside(result, about.recent(key, OF_USER, distinct))).reset_index()


def item_days(shop: Shop) -> pd.DataFrame:
    """The measures of each product and day."""
    events = shop.events[shop.events["product_id"].notna()]
    bought = events["event_type"] == "purchase"
    events = events.assign(
        closed=events["available_at"] < shop.today,
        events=1,
        priced_events=events["is_priced"].astype("int64"),
        price_total=events["price"].where(events["is_priced"], 0.0),
        bought_at=events["event_at"].where(bought),
    )
    sums = {name: (name, "sum") for name in (*OF_ITEM, "refunded_units", "events", "priced_events", "price_total")}
    return (
        grouped(events, ["product_id", "category", "brand", "event_day", "closed"])
        .agg(**sums, first_at=("event_at", "min"), last_at=("event_at", "max"), last_order_at=("bought_at", "max"))
        .reset_index()
    )


def moving_averages(shop: Shop, days: pd.DataFrame, key: list[str]) -> list[pd.DataFrame]:
    """Means per day of views and units, over whole days before today."""
    past = days[days["event_day"] < shop.today]
    return [
        (grouped(shop.within(past, count), key)[["views", "units"]].sum() / count).add_suffix(f"_sma_{count}d")
        for count in (7, 30)
    ]


def with_rates(frame: pd.DataFrame, peers: str | None) -> pd.DataFrame:
    """Rates by step, smoothed towards those of all rows that share `peers`; trends and return rates."""
    steps = {
        "view_to_cart": ("cart_adds", "views"),
        "cart_to_order": ("orders", "cart_adds"),
        "view_to_order": ("orders", "views"),
    }
    for suffix in ("30d", "lifetime"):
        for step, (taken, tried) in steps.items():
            done, might = frame[f"{taken}_{suffix}"], frame[f"{tried}_{suffix}"]
            by = frame[peers] if peers else pd.Series(0, index=frame.index)
            all_done, all_might = (each.groupby(by, dropna=False).transform("sum") for each in (done, might))
            frame[f"{step}_rate_{suffix}"] = rate(done, might, share(all_done, all_might).fillna(0).clip(upper=1))
    for name in ("views", "units"):
        frame[f"{name}_trend_7d_30d"] = (frame[f"{name}_sma_7d"] + 1 / 30) / (frame[f"{name}_sma_30d"] + 1 / 30)
    units = frame["units_lifetime"]
    frame["return_rate_lifetime"] = share(np.minimum(frame.pop("refunded_units_lifetime"), units), units)
    return frame


def to_money(values: pd.Series) -> pd.Series:
    """Rounded to four decimals, half up. A quartile of money has six, and a double is not exact in the last one."""
    return np.floor((values * 1_000_000).round() / 100 + 0.5) / 10_000


def offers(shop: Shop, days: pd.DataFrame) -> pd.DataFrame:
    """All products, from the catalogue or, if they are not in it, from their events."""
    named = shop.events[shop.events["product_id"].notna() & shop.events["category"].notna()]
    named = grouped(named, ["product_id", "category"]).agg(count=("event_at", "size"), last_at=("event_at", "max"))
    named = named.reset_index().sort_values(["count", "last_at", "category"], ascending=[False, False, True])
    named = named.drop_duplicates("product_id").set_index("product_id")["category"]
    seen = grouped(days, ["product_id"])[[]].first()
    seen["seen_category"] = named
    daily = grouped(days[days["priced_events"] > 0], ["product_id", "event_day"])[
        ["price_total", "priced_events"]
    ].sum()
    daily = (
        daily.reset_index().sort_values("event_day").drop_duplicates("product_id", keep="last").set_index("product_id")
    )
    seen["seen_price"] = to_money(daily["price_total"] / daily["priced_events"])
    listed = shop.products.assign(listed=True).set_index("product_id")
    both = listed.join(seen, how="outer")
    both["listed"] = both["listed"].notna()
    both["category"] = both["category"].fillna(both.pop("seen_category"))
    both["price_now"] = both.pop("price").fillna(both.pop("seen_price"))
    return both


def trimmed(shop: Shop, days: pd.DataFrame, key: list[str], items: pd.Index) -> list[pd.Series]:
    """Means of the last month's days without the highest and the lowest tenth, and the exponential average of their prices."""
    daily = (
        grouped(shop.within(days, 30), [*key, "event_day"])[["views", "units", "price_total", "priced_events"]]
        .sum()
        .reset_index()
    )
    past = daily[daily["event_day"] < shop.today]
    found = []
    for measure in ("views", "units"):
        place = past.groupby(key)[measure].rank(method="first", ascending=False)
        middle = past[measure].where(place.between(4, 27), 0).groupby(past[key[0]]).sum() / 24
        found.append(middle.reindex(items).fillna(0.0).rename(f"{measure}_trimmed_mean_30d"))
    daily = daily[daily["priced_events"] > 0]
    price = (daily["price_total"].astype(float) / daily["priced_events"]).round(4)
    place, count = price.groupby(daily[key[0]]).rank(method="first"), price.groupby(daily[key[0]]).transform("size")
    kept = (place > count // 10) & (place <= count - count // 10)
    found.append(price[kept].groupby(daily[key[0]]).mean().rename("price_trimmed_mean_30d"))
    weight = 0.5 ** (shop.age(daily["event_day"]) / 7)
    weighted = (price * weight).groupby(daily[key[0]]).sum()
    return [*found, (weighted / weight.groupby(daily[key[0]]).sum()).rename("price_ema_7d")]


def item_features(shop: Shop) -> pd.DataFrame:
    """All."""
    key, days = ["product_id"], item_days(shop)
    touches = shop.events[shop.events["product_id"].notna()]
    result = beside(offers(shop, days), shop.sums(days, key, OF_ITEM))
    result = beside(result, moving_averages(shop, days, key))
    result = beside(result, [grouped(days, key)["refunded_units"].sum().rename("refunded_units_lifetime")])
    past = days[days["event_day"] < shop.today]
    for half in HALF_LIVES:
        left = past["views"] * 0.5 ** (shop.age(past["event_day"]) / half)
        average = left.groupby(past["product_id"]).sum() * (1 - 0.5 ** (1 / half)) / 0.5 ** (1 / half)
        result = beside(result, [average.rename(f"views_ema_{half}d")])
    result = beside(result, shop.counts(shop.orders(key), key, "orders"))
    result = with_rates(result, "category")
    bought = (touches["event_type"] == "purchase") & (touches["quantity"] > 0)
    users = grouped(touches.assign(bought_on=touches["event_day"].where(bought)), [*key, "customer_id"]).agg(
        last_day=("event_day", "max"), first_bought=("bought_on", "min"), last_bought=("bought_on", "max")
    )
    users = users.reset_index()
    result = beside(result, shop.counts(users, key, "users"))
    users["again"] = users["first_bought"] < users["last_bought"]
    buyers = grouped(users, key).agg(again=("again", "sum"), all=("first_bought", "count"))
    result = beside(result, [share(buyers["again"], buyers["all"]).rename("repeat_buy_rate")], zero=False)
    result = beside(result, shop.recent(key, OF_ITEM, [("orders", "order_key"), ("users", "customer_id")]))
    result = known(result)
    for rank, name, suffix in (
        ("popularity", "views", "7d"),
        ("popularity", "views", "30d"),
        ("revenue", "revenue", "30d"),
    ):
        result[f"{rank}_rank_{suffix}"] = result[f"{name}_{suffix}"].rank(method="min", ascending=False)
    prices = result.groupby("category", dropna=False)["price_now"]
    rivals = prices.transform("count") - 1
    result["price_percentile_in_category"] = ((prices.rank(method="min") - 1) / rivals.where(rivals > 0)).fillna(
        result["price_now"].where(result["price_now"].isna(), 0.0)
    )
    month = grouped(shop.within(days, 30), key)[["price_total", "priced_events"]].sum().reindex(result.index)
    result["price_mean_30d"] = share(month["price_total"], month["priced_events"])
    result["price_to_mean_30d"] = share(result["price_now"], result["price_mean_30d"])
    result = beside(result, trimmed(shop, days, key, result.index), zero=False)
    moments = grouped(days, key).agg(
        first_at=("first_at", "min"), last_at=("last_at", "max"), last_order_at=("last_order_at", "max")
    )
    moments = moments.reindex(result.index)
    result["hours_since_event"] = shop.hours_since(moments["last_at"])
    result["hours_since_order"] = shop.hours_since(moments["last_order_at"])
    born = pd.concat([result.pop("created_at"), result.pop("first_known_at"), moments["first_at"]], axis=1).min(axis=1)
    result["age_days"] = (shop.hours_since(born) / 24).clip(lower=0)
    result["days_averaged_30d"] = shop.age(born.dt.normalize()).clip(0, 30)
    return result.drop(columns="listed").rename_axis("product_id").reset_index()


def category_features(shop: Shop) -> pd.DataFrame:
    """All."""
    key, days = ["category"], item_days(shop)
    days = days[days["category"].notna()]
    on_offer = grouped(offers(shop, item_days(shop)).dropna(subset="category"), key)
    result = on_offer.agg(products_in_catalogue=("listed", "sum"), products_priced=("price_now", "count"))
    for name, step in (("price_q25", 0.25), ("price_median", 0.5), ("price_q75", 0.75)):
        result[name] = to_money(on_offer["price_now"].quantile(step))
    result = beside(result, shop.sums(days, key, OF_ITEM))
    result = beside(result, moving_averages(shop, days, key))
    result = beside(result, [grouped(days, key)["refunded_units"].sum().rename("refunded_units_lifetime")])
    result = beside(
        result, [grouped(shop.within(days, 30), key)["product_id"].nunique().rename("items_with_events_30d")]
    )
    touches = shop.events[shop.events["product_id"].notna() & shop.events["category"].notna()]
    orders = (
        grouped(shop.orders([*key, "product_id"]), [*key, "order_key"]).agg(last_day=("last_day", "max")).reset_index()
    )
    result = beside(result, shop.counts(orders, key, "orders"))
    result = with_rates(result, None)
    users = grouped(touches, [*key, "customer_id"]).agg(last_day=("event_day", "max")).reset_index()
    result = beside(result, shop.counts(users, key, "users"))
    about = Shop(touches, shop.products, shop.as_of)
    result = beside(result, about.recent(key, OF_ITEM, [("orders", "order_key"), ("users", "customer_id")]))
    result = known(result)
    for name in ("views", "revenue"):
        every = result[f"{name}_30d"].sum()
        result[f"share_of_{name}_30d"] = result[f"{name}_30d"] / every if every > 0 else np.nan
    moments = (
        grouped(days, key).agg(last_at=("last_at", "max"), last_order_at=("last_order_at", "max")).reindex(result.index)
    )
    result["hours_since_event"] = shop.hours_since(moments["last_at"])
    result["hours_since_order"] = shop.hours_since(moments["last_order_at"])
    return result.reset_index()


def affinities(shop: Shop, touches: pd.DataFrame, keys: list[str]) -> list[pd.Series]:
    """Weights of events, halved with age; exact, because ranks depend on the sums."""
    found = []
    for half in HALF_LIVES:
        left = touches["weight"] * rounded(0.5 ** (shop.age(touches["event_day"]) / half) * 1_000_000_000)
        sums = grouped(touches[keys].assign(left=left), keys)["left"].sum()
        found.append((sums / 1_000_000_000).rename(f"affinity_{half}d"))
    return found


def _affinity(shop: Shop, kind: str) -> pd.DataFrame:
    keys = ["customer_id", kind]
    touches = shop.events[shop.events["product_id"].notna() & shop.events[kind].notna()]
    result = known(pd.concat(shop.sums(touches, keys, OF_AFFINITY), axis=1).fillna(0))
    result = beside(result, affinities(shop, touches, keys))
    result = beside(result, shop.counts(touches, keys, "events", "event_day", LONG))
    result = beside(result, [grouped(shop.within(touches, 90), keys)["event_day"].nunique().rename("active_days_90d")])
    result["distinct_products_lifetime"] = grouped(touches, keys)["product_id"].nunique()
    priced = touches[touches["is_priced"]]
    result["price_mean_lifetime"] = grouped(priced, keys)["price"].mean()
    orders = grouped(shop.orders([*keys, "product_id"]), [*keys, "order_key"]).agg(
        ordered_at=("ordered_at", "min"), last_day=("last_day", "max")
    )
    orders = orders.reset_index()
    result = beside(result, shop.counts(orders, keys, "orders"))
    result["hours_since_event"] = shop.hours_since(grouped(touches, keys)["event_at"].max())
    result["hours_since_view"] = shop.hours_since(grouped(touches[touches["views"] == 1], keys)["event_at"].max())
    result["hours_since_cart_add"] = shop.hours_since(
        grouped(touches[touches["cart_adds"] == 1], keys)["event_at"].max()
    )
    result["hours_since_order"] = shop.hours_since(grouped(orders, keys)["ordered_at"].max())
    closed = touches[touches["available_at"] < shop.today]
    kinds = result.index.get_level_values(kind)
    for suffix, count in LONG.items():
        events = result.pop(f"events_{suffix}")
        result[f"share_of_events_{suffix}"] = share(events, events.groupby("customer_id").transform("sum"))
        spend = result[f"revenue_{suffix}"]
        result[f"share_of_spend_{suffix}"] = share(spend, spend.groupby("customer_id").transform("sum"))
        theirs = grouped(shop.within(closed, count), [kind]).size()
        lift = result[f"share_of_events_{suffix}"] / (theirs / theirs.sum()).reindex(kinds).to_numpy()
        result[f"lift_{suffix}"] = lift.where(events >= 5)
        result[f"pmi_{suffix}"] = np.log(result[f"lift_{suffix}"])
    affinity = result["affinity_30d"].groupby("customer_id")
    result["affinity_share_30d"] = share(result["affinity_30d"], affinity.transform("sum"))
    result["preference_rank"] = affinity.rank(method="min", ascending=False).astype("int64")
    shop_price = closed[closed["is_priced"]].groupby(kind)["price"].mean()
    result["price_ratio_lifetime"] = share(
        result["price_mean_lifetime"], pd.Series(shop_price.reindex(kinds).to_numpy(), index=result.index)
    )
    return result.rename(columns={f"affinity_{half}d": f"{kind}_affinity_{half}d" for half in HALF_LIVES}).reset_index()


def user_category_features(shop: Shop) -> pd.DataFrame:
    """All."""
    return _affinity(shop, "category")


def user_brand_features(shop: Shop) -> pd.DataFrame:
    """All."""
    return _affinity(shop, "brand")


def user_item_features(shop: Shop) -> pd.DataFrame:
    """All."""
    keys = ["customer_id", "product_id"]
    touches = shop.events[shop.events["product_id"].notna()]
    result = pd.concat(shop.sums(touches, keys, OF_USER_ITEM), axis=1).fillna(0)
    result = beside(result, (each.rename(f"item_{each.name}") for each in affinities(shop, touches, keys)))
    orders = shop.orders(keys)
    result = beside(result, shop.counts(orders, keys, "orders"))
    result = known(beside(result, shop.recent(keys, OF_USER_ITEM, [("orders", "order_key")])))
    by_order = (
        grouped(orders, keys)
        .agg(first=("ordered_at", "min"), last_order_at=("ordered_at", "max"), count=("order_key", "size"))
        .reset_index()
    )
    span = (by_order["last_order_at"] - by_order["first"]) / pd.Timedelta(days=1)
    by_order["reorder_gap_days_mean"] = span / (by_order["count"] - 1).where(by_order["count"] > 1)
    every = shop.orders(["customer_id"]).groupby(["customer_id", "ordered_at"]).size().rename("count").reset_index()
    of_customer = every.groupby("customer_id")["count"]
    every["orders_since_last"] = of_customer.transform("sum") - of_customer.cumsum()
    by_order = pd.merge_asof(
        by_order.sort_values("last_order_at"),
        every.drop(columns="count").sort_values("ordered_at"),
        left_on="last_order_at",
        right_on="ordered_at",
        by="customer_id",
    ).set_index(keys)
    result = beside(result, [by_order[["last_order_at", "reorder_gap_days_mean", "orders_since_last"]]], zero=False)
    moments = {
        name: grouped(touches[of], keys)["event_at"].max().reindex(result.index)
        for name, of in (
            ("view", touches["views"] == 1),
            ("add", touches["cart_adds"] == 1),
            ("remove", touches["cart_removes"] == 1),
            ("order", touches["event_type"] == "purchase"),
        )
    }
    result["hours_since_view"] = shop.hours_since(moments["view"])
    result["hours_since_cart_add"] = shop.hours_since(moments["add"])
    result["hours_since_order"] = shop.hours_since(result.pop("last_order_at"))
    result["days_since_first_event"] = shop.hours_since(grouped(touches, keys)["event_at"].min()) / 24
    added = moments["add"]
    result["in_cart_now"] = (
        added.notna()
        & (moments["remove"].isna() | (added > moments["remove"]))
        & (moments["order"].isna() | (added > moments["order"]))
    )
    result["due_ratio"] = share(result["hours_since_order"] / 24, result["reorder_gap_days_mean"])
    viewed = (
        touches[(touches["views"] == 1) & touches["price"].notna()]
        .sort_values(["event_at", "price"])
        .drop_duplicates(keys, keep="last")
    )
    result["price_at_last_view"] = viewed.set_index(keys)["price"]
    listed = shop.products.set_index("product_id")[["category", "brand", "price"]].rename(
        columns={"price": "price_now"}
    )
    result = result.join(listed, on="product_id")
    result["price_change_since_view"] = share(result["price_now"], result["price_at_last_view"]) - 1
    return result.reset_index()


def session_features(shop: Shop) -> pd.DataFrame:
    """All but entry_channel and visitor_class."""
    key = ["session_id"]
    last_day = shop.events.groupby("session_id")["event_day"].transform("max")
    placed = shop.events[last_day >= shop.today - pd.Timedelta(days=30)].sort_values([*key, "event_at", "event_id"])
    in_order = placed.groupby("session_id", sort=False)
    viewed = placed["views"] == 1
    net = placed["cart_adds"] - placed["cart_removes"]
    adds_before = in_order["cart_adds"].cumsum() - placed["cart_adds"]
    placed = placed.assign(
        place=in_order.cumcount(),
        dwell=((in_order["event_at"].shift(-1) - placed["event_at"]) / pd.Timedelta(seconds=1)).where(viewed),
        added_at=placed["event_at"].where(placed["cart_adds"] == 1),
        before=((adds_before == 0) & (placed["cart_adds"] == 0)).astype("int64"),
        after=(adds_before > 0).astype("int64"),
        viewed_before=((adds_before == 0) & viewed).astype("int64"),
        viewed_after=((adds_before > 0) & viewed).astype("int64"),
        value=(placed["amount"] * net).where(net != 0),
        put=placed["quantity"].fillna(1) * net,
        moved=net.abs(),
    )
    groups = placed.groupby("session_id", sort=False)
    result = groups.agg(
        **{name: (name, "sum") for name in OF_SESSION},
        started_at=("event_at", "min"),
        last_event_at=("event_at", "max"),
        events=("event_at", "size"),
        orders=("order_key", "nunique"),
        distinct_products=("product_id", "nunique"),
        distinct_categories=("category", "nunique"),
        distinct_brands=("brand", "nunique"),
        dwell_seconds_mean=("dwell", "mean"),
        dwell_seconds_max=("dwell", "max"),
        events_before_first_cart_add=("before", "sum"),
        events_after_first_cart_add=("after", "sum"),
        views_before_first_cart_add=("viewed_before", "sum"),
        views_after_first_cart_add=("viewed_after", "sum"),
        first_cart_add_at=("added_at", "min"),
        cart_units=("put", "sum"),
    )
    result = known(result)
    # The value of an empty cart is 0; the value of items without a known price is null.
    result["cart_value"] = groups["value"].sum(min_count=1).where(groups["moved"].sum() > 0, 0.0)
    result[["cart_value", "cart_units"]] = result[["cart_value", "cart_units"]].clip(lower=0)
    first = placed[placed["place"] == 0].set_index("session_id")
    for column, name in (
        ("page", "entry_page"),
        ("referrer", "entry_referrer"),
        ("campaign", "entry_campaign"),
        ("device", "device"),
        ("country", "country"),
    ):
        result[name] = first[column]
    tags = result["entry_page"].map(campaign_tag, na_action="ignore")
    result["entry_campaign"] = tags.where(tags.notna(), result["entry_campaign"])
    # The login, if there is one: 'u:' sorts after 'a:'.
    last = placed.sort_values("identity").drop_duplicates("session_id", keep="last").set_index("session_id")
    result["customer_id"] = last["customer_id"]
    for name, column in (("last_products", "product_id"), ("last_categories", "category")):
        latest = placed[placed[column].notna()].drop_duplicates([*key, column], keep="last")
        newest = latest[latest.groupby("session_id", sort=False).cumcount(ascending=False) < 5].iloc[::-1]
        lists = newest.groupby("session_id", sort=False)[column].agg(list).reindex(result.index)
        result[name] = [each if isinstance(each, list) else [] for each in lists]
    second = pd.Timedelta(seconds=1)
    result["length_seconds"] = (result["last_event_at"] - result["started_at"]) // second
    result["seconds_since_last_event"] = (shop.as_of - result["last_event_at"]) / second
    result["is_over"] = result["last_event_at"] < shop.as_of - pd.Timedelta(minutes=30)
    result["has_order"] = result["orders"] > 0
    result["is_bounced"] = result["events"] == 1
    result["views_per_product"] = share(result["views"], result["distinct_products"])
    result["seconds_to_first_cart_add"] = np.floor((result.pop("first_cart_add_at") - result["started_at"]) / second)
    result["day_part"] = pd.cut(
        result["started_at"].dt.hour, [-1, 5, 11, 17, 23], labels=["night", "morning", "afternoon", "evening"]
    ).astype(str)
    result["is_weekend"] = result["started_at"].dt.weekday >= 5
    return result.reset_index()


def item_pair_features(shop: Shop) -> pd.DataFrame:
    """All."""
    kinds = {"view_item": "viewed", "add_to_cart": "carted", "purchase": "bought"}
    seen = shop.events[shop.events["product_id"].notna() & shop.events["event_type"].isin(kinds)]
    seen = seen[["identity", "product_id", "event_day", "event_at", "available_at", "order_key", "event_type"]]
    seen = seen.assign(
        kind=seen.pop("event_type").map(kinds),
        visible_at=np.maximum(seen.pop("available_at"), seen["event_at"] + pd.Timedelta(microseconds=1)),
    ).sort_values(["visible_at", "event_at", "product_id"])

    def prefix(frame: pd.DataFrame, basket: list[str]) -> pd.DataFrame:
        """The first touch of each product in each basket, and of these the first 50; only closed days."""
        firsts = frame.drop_duplicates([*basket, "product_id"])
        place = firsts.groupby(basket, sort=False).cumcount()
        return firsts.assign(place=place)[(place < 50) & (firsts["visible_at"] < shop.today)]

    daily_touches = prefix(seen, ["identity", "kind", "event_day"])
    baskets = prefix(
        seen[seen["order_key"].notna()].sort_values(["visible_at", "product_id"], kind="stable"),
        ["identity", "order_key"],
    )
    touches = daily_touches[["identity", "kind", "product_id", "event_day", "event_at"]]
    other = touches.rename(columns={"kind": "other_kind", "product_id": "other_product_id", "event_at": "other_at"})
    found = []
    for step in (-1, 0, 1):
        both = touches.merge(
            other.assign(event_day=other["event_day"] + pd.Timedelta(days=step)), on=["identity", "event_day"]
        )
        both = both[both["product_id"] != both["other_product_id"]]
        apart = (both["other_at"] - both["event_at"]) / pd.Timedelta(hours=1)
        same = (both["kind"] == both["other_kind"]) & (both["kind"] != "bought") & apart.between(-24, 24)
        leads = (both["kind"] == "carted") & (both["other_kind"] == "bought") & apart.between(0, 24)
        found.append(both[same | leads].drop(columns=["event_at", "other_at"]))
    near = pd.concat(found).drop_duplicates()
    pair = ["product_id", "other_product_id"]
    near = near[[*pair, "event_day"]].assign(counted=near["kind"] + near["other_kind"])
    lines = baskets[["identity", "order_key", "product_id", "event_day"]]
    together = lines.merge(
        lines.drop(columns="event_day").rename(columns={"product_id": "other_product_id"}), on=["identity", "order_key"]
    )
    together = together[together["product_id"] != together["other_product_id"]]
    every = pd.concat([near, together[[*pair, "event_day"]].assign(counted="ordered")])
    counts = {
        "co_views": "viewedviewed",
        "co_carts": "cartedcarted",
        "co_orders": "ordered",
        "carts_to_orders": "cartedbought",
    }
    every = every.assign(**{name: (every["counted"] == of).astype("int64") for name, of in counts.items()})
    days = grouped(every, [*pair, "event_day"])[list(counts)].sum().reset_index()
    windows: Windows = {"30d": 30, **LONG}
    pairs = pd.concat(shop.sums(days, pair, list(counts), windows), axis=1).fillna(0)
    weighted = days["co_views"] + 3 * days["co_carts"] + 10 * days["co_orders"] + 5 * days["carts_to_orders"]
    for half in (7, 30):
        left = rounded(0.5 ** (shop.age(days["event_day"]) / half) * 1_000_000)
        scaled = days[pair].assign(
            **{f"{name}_decayed_{half}d": days[name] * left for name in counts}, score=weighted * left
        )
        sums = grouped(scaled, pair).sum() / 1_000_000
        pairs["pair_score"] = sums.pop("score")
        pairs = beside(pairs, [sums])
    pairs["undecayed"] = grouped(days[pair].assign(weighted=weighted), pair)["weighted"].sum()
    pairs = pairs.reset_index()
    back = pairs[[*pair, "co_views_lifetime", "co_carts_lifetime", "co_orders_lifetime"]].set_axis(
        ["other_product_id", "product_id", "back_co_views", "back_co_carts", "back_co_orders"], axis=1
    )
    result = pairs.sort_values(
        ["product_id", "pair_score", "undecayed", "other_product_id"], ascending=[True, False, False, True]
    )
    result["pair_rank"] = result.groupby("product_id").cumcount() + 1
    result = result[result["pair_rank"] <= 50].drop(columns="undecayed").merge(back, on=pair, how="left")
    single_counts = {
        "view_days": daily_touches[daily_touches["kind"] == "viewed"],
        "cart_days": daily_touches[daily_touches["kind"] == "carted"],
        "orders": baskets,
    }
    singles = {
        f"{name}_{suffix}": grouped(shop.within(frame, count), ["product_id"]).size()
        for name, frame in single_counts.items()
        for suffix, count in LONG.items()
    }
    firsts = {name: (frame["place"] == 0).sum() for name, frame in single_counts.items()}
    category = shop.products.set_index("product_id")["category"]
    mine, theirs = result["product_id"].map(category), result["other_product_id"].map(category)
    result["is_same_category"] = (mine == theirs).astype(object).where(mine.notna() & theirs.notna(), None)
    for name, together_of, whole, other_whole in (
        ("view", "co_views", "view_days", "view_days"),
        ("cart", "co_carts", "cart_days", "cart_days"),
        ("order", "co_orders", "orders", "orders"),
        ("cart_to_order", "carts_to_orders", "cart_days", "orders"),
    ):
        for suffix in LONG:
            size = result["product_id"].map(singles[f"{whole}_{suffix}"])
            result[f"{name}_confidence_{suffix}"] = share(result[f"{together_of}_{suffix}"], size)
        is_supported = result[f"{together_of}_lifetime"] >= 3
        base = result["other_product_id"].map(singles[f"{other_whole}_lifetime"]) / max(firsts[other_whole], 1)
        confidence = result[f"{name}_confidence_lifetime"]
        result[f"lift_{together_of}"] = share(confidence, base).where(is_supported)
        result[f"pmi_{together_of}"] = np.log(result[f"lift_{together_of}"])
        if name != "cart_to_order":
            backwards = share(
                result[f"back_{together_of}"], result["other_product_id"].map(singles[f"{whole}_lifetime"])
            )
            result[f"cosine_{together_of}"] = np.sqrt(confidence * backwards).where(is_supported)
    return result.drop(columns=["back_co_views", "back_co_carts", "back_co_orders"])


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


def compute(shop: Shop, mart: str) -> pd.DataFrame:
    """One mart."""
    return MARTS[mart](shop)
