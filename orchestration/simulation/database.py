"""The tables of the shop's database, with every version of each row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from orchestration.simulation.dirt import has_twin
from orchestration.simulation.ga4 import APP_VISITOR
from orchestration.simulation.numbers import Array, Rows, coded, join, mix, size, take, times, weighted
from orchestration.simulation.words import (
    APP,
    BRANDS,
    CATEGORIES,
    CURRENCIES,
    DAY,
    HOUR,
    MARKET_CURRENCY,
    MARKETS,
    MINUTE,
    MISSPELLINGS,
    SECOND,
    SPELLINGS,
)
from orchestration.simulation.world import World

_UNITS: Final = ("g", "kg", "lb", "oz", "KG", "lbs", "grams")
_GRAMS: Final = (1.0, 1000.0, 453.59237, 28.349523125, 1000.0, 453.59237, 1.0)

_DISORDER: Final = ("paid before created", "shipped before paid")

Delivery = tuple[str, pa.Table, list[pa.Table]]


def database(
    con: duckdb.DuckDBPyConnection, world: World, rng: np.random.Generator, bought: Rows
) -> Iterator[Delivery]:
    """The shop's tables, each as (name, rows, truth), with every version of a row in the order of `updated_at`."""
    yield _customers(con, world, rng)
    yield _products(con, world, rng)
    yield from _orders(con, world, rng, bought)


def _ask(con: duckdb.DuckDBPyConnection, query: str, **tables: pa.Table) -> pa.Table:
    for name, table in tables.items():
        con.register(name, table)
    answer = con.execute(query).to_arrow_table()
    for name in tables:
        con.unregister(name)
    return answer


def _customers(con: duckdb.DuckDBPyConnection, world: World, rng: np.random.Generator) -> Delivery:
    person = np.flatnonzero(world.customer >= 0)
    n = len(person)
    market = np.searchsorted(world.people_from, person, side="right") - 1
    income = np.round(rng.lognormal(np.log(38_000), 0.45, n), -2)
    facts = pa.table(
        {
            "number": world.customer[person],
            "registered": times(world.signup[person]),
            "changed": times(world.known[person]),
            # One in ten customers moves or changes the newsletter setting: a second version of the row.
            "changed_again": times(
                world.known[person] + (rng.random(n) * 60 * DAY).astype(np.int64) // SECOND * SECOND + DAY,
                rng.random(n) > 0.1,
            ),
            "born": pa.array(rng.integers(1940, 2007, n)),
            "born_missing": rng.random(n) < 0.15,
            "sex": coded(rng.integers(0, 3, n) - 1, ["f", "m"]),
            "land": coded(market, [m.code for m in MARKETS]),
            "household": pa.array(rng.choice([1, 2, 3, 4, 5], n, p=[0.35, 0.33, 0.15, 0.12, 0.05])),
            "household_missing": rng.random(n) < 0.2,
            "income": income,
            # High incomes are missing more often: not at random.
            "income_missing": rng.random(n) < np.where(income > 55_000, 0.7, 0.25),
            "channel": coded(rng.integers(0, 5, n), ["search", "social", "email", "affiliate", "store"]),
            "newsletter": rng.random(n) < 0.4,
        }
    )
    query = f"""
    with versions as (
        select * from facts
        union all
        select * replace (changed_again as changed, not newsletter as newsletter) from facts
            where changed_again is not null
    ),
    numbered as (
        select *, row_number() over (order by changed, number) as n from versions
            where changed < make_timestamp({world.export})
    )
    """
    table = _ask(
        con,
        query
        + """select printf('C%07d', number) as customer_no, registered, changed,
            case when not born_missing then born end as born, sex::varchar as sex, land::varchar as land,
            case when not household_missing then household end as household,
            case when not income_missing then income::bigint end as income, channel::varchar as channel, newsletter
            from numbered order by n""",
        facts=facts,
    )
    truth = _ask(
        con,
        query
        + """, gaps as (
            select n, number, 'income' as what, income as value from numbered where income_missing
            union all select n, number, 'birth_year', born from numbered where born_missing
            union all select n, number, 'household_size', household from numbered where household_missing
        )
        select 'missing_value' as kind, 'customers' as raw_table, 'shop_database' as source,
            'customers.csv#' || n as position, printf('C%07d', number) as key, what as detail,
                value::double as true_value, null::varchar as true_text
        from gaps order by n, what""",
        facts=facts,
    )
    return "customers", table, [truth]


def _products(con: duckdb.DuckDBPyConnection, world: World, rng: np.random.Generator) -> Delivery:
    n = world.products
    late = world.known_product
    changed = np.diff(world.price[:, : world.days + 1], axis=1) != 0
    # The first version of a row, then one for each later day with a price change.
    changed &= np.arange(1, world.days + 1) > late[:, None]
    product, day = np.nonzero(changed)
    product, day = np.r_[np.arange(n), product], np.r_[np.maximum(late, 0), day + 1]
    original = np.arange(len(product)) < n
    arrives = world.start + day * DAY
    arrives[original] = np.where(late >= 0, world.start + late * DAY + 9 * HOUR, world.start - 30 * DAY)
    created = np.where(late >= 0, world.start + late * DAY, world.start - (30 + rng.integers(0, 700, n)) * DAY)
    unit = rng.choice(len(_UNITS), n, p=[0.45, 0.2, 0.12, 0.12, 0.04, 0.04, 0.03])
    typical = rng.lognormal(np.log(500), 0.8, len(CATEGORIES))[world.category]
    grams = np.round(np.clip(typical * rng.lognormal(0, 0.35, n), 20, 60_000))
    misspelt = rng.random(n) < 0.02
    weight_missing = rng.random(n) < 0.02
    way = len(CATEGORIES) + world.category * MISSPELLINGS + rng.integers(0, MISSPELLINGS, n)
    versions = pa.table(
        {
            "number": world.sku[product],
            "category": coded(np.where(misspelt, way, world.category)[product], SPELLINGS),
            "right_category": coded(world.category[product], CATEGORIES),
            "misspelt": misspelt[product],
            "brand": coded(product % len(BRANDS), BRANDS),
            "price": world.price[product, day],
            "weight": np.round(grams / np.array(_GRAMS)[unit], 4)[product],
            "unit": coded(unit[product], _UNITS),
            "foreign": (unit > 0)[product],
            "grams": grams[product],
            "weight_missing": weight_missing[product],
            "created": times(created[product]),
            "changed": times(arrives),
        }
    )
    query = "with numbered as (select *, row_number() over (order by changed, number) as n from versions) "
    table = _ask(
        con,
        query
        + """select printf('SKU-%06d', number) as sku,
            brand || ' ' || trim(right_category::varchar) || ' ' || number as name,
            brand::varchar as brand, category::varchar as category, price as price_eur,
            case when not weight_missing then weight end as weight, unit::varchar as unit, created, changed
            from numbered order by n""",
        versions=versions,
    )
    truth = _ask(
        con,
        query
        + """, dirt as (
            select n, number, 'misspelt_category' as kind, null::varchar as detail, null::double as value,
                right_category::varchar as text
            from numbered where misspelt
            union all select n, number, 'wrong_unit', unit::varchar, grams, null from numbered
            where "foreign" and not weight_missing
            union all select n, number, 'missing_value', 'weight', grams, null from numbered where weight_missing
        )
        select kind, 'products' as raw_table, 'shop_database' as source, 'products.csv#' || n as position,
            printf('SKU-%06d', number) as key, detail, value as true_value, text as true_text
        from dirt order by n, kind""",
        versions=versions,
    )
    return "products", table, [truth]


def _orders(con: duckdb.DuckDBPyConnection, world: World, rng: np.random.Generator, bought: Rows) -> Iterator[Delivery]:
    line = {name: bought[name] for name in ("order", "product", "quantity", "price")}
    line = take(line, np.flatnonzero(has_twin(line["order"])))
    order, at = np.unique(bought["order"], return_index=True)
    header = take({**bought, "phone": np.zeros(size(bought), bool)}, at)
    header = take(header, np.flatnonzero(has_twin(order)))
    header, line = _with_phone_orders(world, rng, header, line)
    n = size(header)

    def minutes(low: float, high: float) -> Array:
        return (rng.uniform(low, high, n) * 60).astype(np.int64) * SECOND

    created = header["t"] // 1000 * 1000 + rng.integers(0, 2000, n) * 1000
    u = rng.random(n)
    paid = created + np.where(u < 0.9, minutes(0.5, 20), minutes(60, 2000))
    shipped = paid + minutes(8 * 60, 4 * 24 * 60)
    cancelled = rng.random(n) < 0.02
    # Times in an impossible order: only for orders without web events, so that nothing else depends on them.
    early = (created < world.end - DAY) & header["phone"]
    u = rng.random(n)
    paid_first, shipped_first = early & (u < 0.08), early & (u >= 0.08) & (u < 0.16)
    paid = np.where(paid_first, created - minutes(60, 2880), np.where(shipped_first, created + minutes(1, 20), paid))
    shipped = np.where(
        shipped_first, paid - minutes(60, 2880), np.where(paid_first, created + minutes(60, 600), shipped)
    )
    cancelled &= ~(paid_first | shipped_first)
    first = created + minutes(1, 60)
    second = np.maximum(first, paid) + minutes(1, 5)
    third = np.maximum(second, shipped) + minutes(1, 30)
    headers = pa.table(
        {
            "number": header["order"], "phone": header["phone"],
            "buyer": pa.array(header["user"], mask=header["user"] < 0),
            "channel": header["channel"], "id": mix(header["device"]), "id_of_session": mix(header["session"]),
            "began": header["began"] // SECOND,
            "currency": coded(MARKET_CURRENCY[header["market"]], CURRENCIES),
            "created": times(created), "paid": times(paid), "shipped": times(shipped, cancelled),
            "first": times(first), "second": times(second), "third": times(third),
            "disorder": coded(np.select([paid_first, shipped_first], [0, 1], default=-1), _DISORDER),
        }
    )  # fmt: skip
    lines = pa.table({**line, "sku": world.sku[line["product"]]})
    con.register("headers", headers)
    con.register("line_rows", lines)
    con.execute(
        f"""
        create temp table header as select *, printf('%s%09d', case when phone then 'P' else 'W' end,
            number) as order_id,
            printf('C%07d', buyer) as user_id,
            case when phone then null when channel = {APP} then {APP_VISITOR} else printf('%016x',
                id) end as anonymous_id,
            case when phone then null when channel = {APP} then began::varchar else printf('%016x',
                id_of_session) end as session_id
        from headers;
        create temp table line as select h.*, row_number() over (partition by order_id order by l.sku) as line_id,
            l.sku, l.quantity, l.price
        from line_rows as l inner join header as h on l."order" = h.number
        """
    )
    known = f"updated_at < make_timestamp({world.export})"
    yield (
        "orders",
        _ask(
            con,
            f"""
        with versions as (
            select order_id, 'created' as status, null::timestamp as paid_at, null::timestamp as shipped_at,
                "first" as updated_at from header
            union all select order_id, 'paid', paid, null, "second" from header
            union all select order_id, case when shipped is null then 'cancelled' else 'shipped' end, paid, shipped,
                third from header
        )
        select v.order_id, user_id, anonymous_id, session_id, v.status, currency::varchar as currency,
            created as created_at,
            paid_at, shipped_at, v.updated_at, case when phone then 'phone' when channel = {APP} then 'app'
                else 'web' end as channel
        from versions as v inner join header using (order_id) where {known} order by v.updated_at, v.order_id
        """,
        ),
        [],
    )
    items = _ask(
        con,
        f"""select order_id, line_id, printf('SKU-%06d', sku) as product_id, quantity, price,
            currency::varchar as currency,
            "first" as updated_at, disorder::varchar as disorder
        from line where {known.replace("updated_at", '"first"')} order by "first", order_id, line_id""",
    )
    yield (
        "order_items",
        items.drop_columns("disorder"),
        [
            _ask(
                con,
                """select 'disordered_times' as kind, 'order_items' as raw_table, 'shop_database' as source,
                'order_items.parquet#' || n as position, order_id as key, disorder as detail,
                    null::double as true_value,
                null::varchar as true_text
            from (select *, row_number() over () as n from items) where disorder is not null order by n""",
                items=items,
            )
        ],
    )
    yield _refunds(con, world, rng, known)


def _with_phone_orders(world: World, rng: np.random.Generator, header: Rows, line: Rows) -> tuple[Rows, Rows]:
    """Add phone orders, which have no web events."""
    buyers = np.flatnonzero((world.customer >= 0) & (world.signup < world.end - 2 * DAY))
    n = max(12, size(header) * 6 // 100)
    person = rng.choice(buyers, n)
    earliest = np.maximum(world.signup[person], world.start) + 10 * MINUTE
    t = earliest + (rng.random(n) * (world.end - HOUR - earliest)).astype(np.int64)
    market = np.searchsorted(world.people_from, person, side="right") - 1
    currency = MARKET_CURRENCY[market]
    base = int(header["order"].max(initial=0)) + 1
    lines = rng.integers(1, 4, n)
    of = np.repeat(np.arange(n), lines)
    product = weighted(rng, world.popularity, np.zeros(len(of), int), np.full(len(of), world.products))
    _, unique = np.unique(of * world.products + product, return_index=True)
    of, product = of[unique], product[unique]
    phone = {
        **{name: np.full(n, -1, column.dtype) for name, column in header.items()},
        "t": t, "order": base + np.arange(n), "user": world.customer[person], "market": market,
        "phone": np.ones(n, bool),
    }  # fmt: skip
    phone_line = {
        "order": base + of, "product": product, "quantity": rng.integers(1, 3, len(of)),
        "price": world.shown_price(product, t[of], currency[of]),
    }  # fmt: skip
    return join([header, phone]), join([line, phone_line])


def _refunds(con: duckdb.DuckDBPyConnection, world: World, rng: np.random.Generator, known: str) -> Delivery:
    count = con.execute("select count(*) from line").fetchall()[0][0]
    chances = pa.table(
        {
            "u": rng.random(count),
            "back": (rng.uniform(2, 20, count) * DAY).astype(np.int64),
            "noted": rng.integers(60, 3600, count) * SECOND,
            "part": rng.random(count),
        }
    )
    refunds = _ask(
        con,
        f"""
        with chance as (select *, row_number() over () as sold_line from chances),
        sold as (select *, row_number() over (order by order_id, line_id) as sold_line from line),
        back as (
            select sold.*, (1 + floor(part * quantity))::bigint as returned,
                shipped + to_microseconds(back) as refunded_at,
                shipped + to_microseconds(back + noted) as updated_at, u
            from sold inner join chance using (sold_line) where u < 0.05 and shipped is not null and disorder is null
        ),
        numbered as (select *, row_number() over (order by updated_at, order_id, line_id) as n from back where {known})
        select printf('R%07d', n) as refund_id, order_id, line_id::varchar as line_id, user_id, printf('SKU-%06d',
            sku) as product_id,
            returned as quantity, round(returned * price, 2) as amount, currency::varchar as currency, refunded_at,
                updated_at, n, u
        from numbered order by n
        """,
        chances=chances,
    )
    # A few refunds name an order that does not exist.
    refunds = _ask(
        con,
        """select * replace (
            case when u < 0.0005 or n = 1 then 'W9' || substr(order_id, 3) else order_id end as order_id
        ) from refunds order by n""",
        refunds=refunds,
    )
    truth = _ask(
        con,
        """select 'orphan_order' as kind, 'refunds' as raw_table, 'shop_database' as source,
            'refunds.parquet#' || n as position,
            order_id as key, null::varchar as detail, null::double as true_value, null::varchar as true_text
        from refunds where u < 0.0005 or n = 1 order by n""",
        refunds=refunds,
    )
    return "refunds", refunds.drop_columns(["n", "u"]), [truth]
