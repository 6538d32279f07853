"""Events in the shape of GA4's export to BigQuery."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestration.simulation.numbers import Array, Rows, mix, running, size, take
from orchestration.simulation.words import (
    ADD,
    BRANDS,
    CATEGORIES,
    CHECKOUT,
    CURRENCIES,
    LOGIN,
    MARKETS,
    NO_QUANTITY,
    PAYMENT,
    PURCHASE,
    RATES,
    REMOVE,
    SEARCH,
    SECOND,
    TYPES,
    queries,
)
from orchestration.simulation.world import World

#: A GA4 pseudo id, as SQL over a 64-bit number `id`.
APP_VISITOR: Final = "concat(id >> 32, '.', id & 4294967295)"


def _lists(present: Array, fields: dict[str, Any]) -> pa.ListArray:
    """A list of structs per row: `present` has a row of flags for each list, and `fields` the values of the elements that are present."""
    offsets = running(present.sum(axis=1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(list(fields.values()), list(fields)))


def _nothing(n: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(n, kind)


def ga4_table(world: World, rows: Rows, first: Array, skus: pa.Array) -> pa.Table:
    """Events in the shape of GA4's BigQuery export, from item rows; `first` is the index of each event's first row."""
    items = np.diff(np.r_[first, size(rows)])
    event = take(rows, first)
    n = len(first)
    names, markets = list(TYPES), [m.country for m in MARKETS]
    text, whole, real = pa.string(), pa.int64(), pa.float64()

    def words(codes: Array, texts: list[str] | tuple[str, ...]) -> pa.Array:
        return pa.array(texts).take(pa.array(codes.astype(np.int32), mask=codes < 0))

    market, currency = event["market"].astype(int), rows["currency"]
    purchase = event["type"] == PURCHASE
    product = rows["product"] >= 0
    money = np.nan_to_num(rows["price"]) * np.where(rows["quantity"] == NO_QUANTITY, 1, rows["quantity"])
    value = np.round(np.add.reduceat(money, first), 2)
    units = np.add.reduceat(np.where(rows["quantity"] == NO_QUANTITY, 0, rows["quantity"]), first)

    # Parameters: session id, session number, engagement, place, currency, value, search term, method.
    code = event["type"].astype(int)
    has_value = np.isin(code, (ADD, REMOVE, CHECKOUT, PAYMENT, PURCHASE))
    always = np.ones(n, bool)
    present = np.column_stack(
        [always, always, always, always, event["currency"] >= 0, has_value, code == SEARCH, code == LOGIN]
    )
    keys = [
        "ga_session_id",
        "ga_session_number",
        "engagement_time_msec",
        "page_location",
        "currency",
        "value",
        "search_term",
        "method",
    ]
    who, which = np.nonzero(present)
    numbers = np.column_stack([event["began"] // SECOND, 1 + event["session"] % 9, 100 + event["uid"] % 29_900])
    integer = which < 3
    places = [f"app://shop/{name}" for name in names]
    spoken = places + list(CURRENCIES) + queries() + ["email"]
    said = np.select(
        [which == 3, which == 4, which == 6, which == 7],
        [
            code[who],
            len(places) + event["currency"][who],
            len(places) + len(CURRENCIES) + event["query"][who],
            len(spoken) - 1,
        ],
        -1,
    )
    values = pa.StructArray.from_arrays(
        [
            words(said, spoken),
            pa.array(numbers[who, np.minimum(which, 2)], mask=~integer),
            _nothing(len(who), real),
            pa.array(value[who], mask=which != 5),
        ],
        ["string_value", "int_value", "float_value", "double_value"],
    )
    parameters = _lists(present, {"key": words(which, keys), "value": values})

    at = np.flatnonzero(product)
    per_euro = np.array(RATES)[np.maximum(currency[at], 0)]
    price = rows["price"][at]
    gone = np.isnan(price)
    quantity = rows["quantity"][at]
    sku = pc.binary_join_element_wise("SKU-", pc.utf8_lpad(skus.take(pa.array(at)).cast(text), 6, "0"), "")
    known = np.minimum(rows["product"][at], world.products - 1)
    lists = [1 if name == "view_item_list" else 0 for name in names]
    item = {
        "item_id": sku,
        "item_name": words(world.category[known], [f"{c} item" for c in CATEGORIES]),
        "item_brand": words(known % len(BRANDS), BRANDS),
        "item_variant": pa.repeat(pa.scalar("(not set)"), len(at)),
        "item_category": words(rows["category"][at].astype(int), CATEGORIES),
        "item_category2": pa.repeat(pa.scalar("(not set)"), len(at)),
        "item_category3": pa.repeat(pa.scalar("(not set)"), len(at)),
        "price_in_usd": pa.array(np.round(price / per_euro * RATES[1], 2), mask=gone),
        "price": pa.array(price, mask=gone),
        "quantity": pa.array(quantity, mask=quantity == NO_QUANTITY),
        "item_revenue": pa.array(price * quantity, mask=gone | (rows["type"][at] != PURCHASE)),
        "coupon": pa.repeat(pa.scalar("(not set)"), len(at)),
        "item_list_name": words(np.array(lists)[rows["type"][at]] - 1, ["Category page"]),
    }
    counts = np.where(product[first], items, 0)
    offsets = pa.array(running(counts).astype(np.int32))
    item_lists = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(list(item.values()), list(item)))

    def struct(**fields: pa.Array) -> pa.StructArray:
        return pa.StructArray.from_arrays(list(fields.values()), list(fields))

    order = pc.binary_join_element_wise("W", pc.utf8_lpad(pa.array(event["order"]).cast(text), 9, "0"), "")
    buyer = pc.binary_join_element_wise(
        "C", pc.utf8_lpad(pa.array(event["user"], mask=event["user"] < 0).cast(text), 7, "0"), ""
    )
    device = mix(event["device"])
    low, high = device & np.uint64(0xFFFFFFFF), device >> np.uint64(32)
    visitor = pc.binary_join_element_wise(pa.array(high).cast(text), pa.array(low).cast(text), ".")
    android = event["agent"] % 2
    medium, source = (
        ["(none)", "organic", "cpc", "social", "email", "affiliate"],
        ["(direct)", "google", "google", "instagram", "newsletter", "deals"],
    )
    campaign = event["campaign"].astype(int)
    dates = pc.strftime(pa.array(event["t"], pa.timestamp("us")).cast(pa.timestamp("s"), safe=False), "%Y%m%d")
    return pa.table(
        {
            "event_date": dates,
            "event_timestamp": pa.array(event["t"]),
            "event_name": words(code, names),
            "event_params": parameters,
            "event_bundle_sequence_id": pa.array(event["event"] % 10_000),
            "user_id": buyer,
            "user_pseudo_id": visitor,
            "privacy_info": struct(
                analytics_storage=words((event["consent"] == 2).astype(int), ["Yes", "No"]),
                ads_storage=words((event["consent"] == 2).astype(int), ["Yes", "No"]),
            ),
            "device": struct(
                category=words(np.zeros(n), ["mobile"]),
                operating_system=words(android, ["iOS", "Android"]),
                language=words(market, ["de-de", "fr-fr", "es-es", "en-gb", "sv-se", "en-us", "en-us"]),
                web_info=struct(browser=_nothing(n, text), hostname=_nothing(n, text)),
            ),
            "geo": struct(country=words(market, markets), region=_nothing(n, text), city=_nothing(n, text)),
            "traffic_source": struct(
                name=words(
                    campaign, ["(direct)", "(organic)", "brand_search", "spring_looks", "newsletter", "promo_week"]
                ),
                medium=words(campaign, medium),
                source=words(campaign, source),
            ),
            "stream_id": pa.array(np.full(n, 2100450278)),
            "platform": words(android, ["IOS", "ANDROID"]),
            "ecommerce": struct(
                transaction_id=pc.if_else(pa.array(purchase), order, pa.scalar(None, text)),
                purchase_revenue=pa.array(value, mask=~purchase),
                total_item_quantity=pa.array(units, whole, mask=~has_value),
            ),
            "items": item_lists,
        }
    )
