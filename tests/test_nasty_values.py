"""No raw text, however odd, fails a build or a data test: a value that cannot be read is null, or its row is
quarantined with the reason.

Every text column of every raw table has each of the nasty values once, in a row that is otherwise valid; so do the
members of GA4's nested columns. Half of the rows are there for the first build, the others come to an incremental
one."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from functools import cache
from itertools import product
from random import Random, randrange
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_shops import GA4_ITEM, VARS, Homes, Row, land

from orchestration.config.settings import Settings
from orchestration.ingest.landing import macros
from orchestration.lake import lake
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.warehouse.build import environment, run_dbt
from orchestration.warehouse.publish import publish

#: Texts that people and programs write in place of a number, a time, a currency, a unit, an id or JSON.
NASTY = (
    *("", " ", "\t", "\u00a0", "\u200b", "\ufeff", "\r\n", "\\N", "NULL", "null", "nan", "NaN", "inf", "-Infinity", "undefined", "(not set)"),
    *("0", "-0", "-1", "1", "00", "+5", "1.", ".5", "1.5", "-1.5", "1,5", "1.234,56", "1_000", "1e3", "1E400", "-1e-400", "0x1F", "1/2", "٣", "½"),
    *("99999999999999", "100000000000000", "106939999999998", "99999999999999999999", "-99999999999999999999", "9" * 38, "9" * 400, "1" + "0" * 27),
    *("2147483648", "-2147483649", "9223372036854775808", "1.7976931348623157e308", "0.0000000000000000000001", "1.23457E+12", "$5", "5 EUR", "12.50 "),
    *("infinity", "-infinity", "epoch", "now", "today", "0000-00-00", "2024-00-15", "2024-02-30", "2024-13-01", "290309-12-22 (BC) 00:00:00"),
    *("294247-01-10 04:00:54.775806", "294276-12-31", "9999-12-31T23:59:59Z", "0001-01-01", "12/1/10 8:26", "202403021015", "2024-03-02T25:00:00Z"),
    *("2024-03-02T10:00:00+25:00", "2024-03-02T10:00:60Z", "2024-03-02 10:00:00 Mars/Olympus", "999999999999999999999", "-1", "1e18", "17093700000000000"),
    *("GBp", "GBX", "eur", "€", "XXX", "US", "USDD", "kg", "KG ", "stone", "g/ml", "true", "f", "off", "DENY", "opt-out", "yes"),
    *("{}", "[]", "{", "[", "{\"analytics\":false}", "{\"a\":{\"b\":[1,2]}}", "[1,2", "\"", "'", "''", "';drop table x;--", "\\", "%", "_", "|", "|null", "#2"),
    *("a" * 5000, "\U0001f600", "e\u0301", "\u202eabc", "A\nB", "Ünïcödé", "<script>", "${HOME}", "{{ x }}", "{% y %}", "-- x", "/* x */"),
)  # fmt: skip
FIRST = datetime(2024, 3, 1, 12)
#: Columns that are filled by the engine, not by a sender.
TYPED = {"ga4_events": ("event_params", "privacy_info", "device", "geo", "traffic_source", "ecommerce", "items")}

#: Texts that need much memory or a deep stack: each has crashed some reader.
HUGE = (
    '{"a":' * 100_000 + "1" + "}" * 100_000,
    '{"analytics":' + "[" * 100_000 + "]" * 100_000 + "}",
    "[" * 100_000,
    '{"' + "k" * 200_000 + '": 1}',
    "9" * 100_000,
    "shirt " * 30_000,
    "a\0b",
)
#: Amounts around the limit of a row, the limit of a type, and beyond.
AMOUNTS = (
    *("", "-1", "0", "0.00004", "0.0001", "1", "9.99", "99999.9999", "100000", "100000.0001", "10000000000", "500000000000", "1e12"),
    *("99999999999999.9999", "100000000000000", "106939999999998", "-1e14", "1e26", "9" * 38, "1.7976931348623157e308", "inf", "nan", "1e-300"),
)  # fmt: skip
QUANTITIES = (
    *("", "-1", "0", "0.0004", "0.001", "1", "3", "10000", "10000.001", "999999999999999.999", "1e15", "1e26", "-0.001", "inf", "nan"),
)  # fmt: skip
UNITS = ("", "g", "kg", "lb", "oz", "mg", "stone")
MOMENTS = (
    *("", "1989-12-31T23:59:59Z", "1990-01-01T00:00:00Z", "2024-03-01T12:00:00Z", "2024-03-31 02:30:00 Europe/Berlin", "2100-12-31T23:59:59Z"),
    *("9999-12-31 23:59:59 Asia/Kathmandu", "0001-01-01 00:00:00 Europe/Berlin", "infinity", "290309-12-22 (BC) 00:00:00"),
)  # fmt: skip
#: Arrival times that a loader might have written, in microseconds since 1970: the infinities, before Christ, far in the future.
ARRIVALS = (2**63 - 1, -(2**63) + 1, -9_223_372_022_400_000_000, -62_135_596_800_000_000, 253_402_300_799_000_000)
#: Values for the numbers of GA4's nested columns, as JSON.
FLOATS = (None, "inf", "-inf", "nan", 1e14, 1e15, -1e20, 1e22, 1e30, 1.7e308, -0.0, 5e-324, 0.00004, 99999.99995, 1e5)
INTEGERS = (None, 0, -1, 1, 10**4, 10**4 + 1, 10**14, 10**15, 2**63 - 1, -(2**63))


def random_texts(random: Random, count: int) -> list[str]:
    """Texts made of the pieces that numbers, times and JSON consist of."""
    pieces = (
        "0",
        "9",
        "12",
        "-",
        "+",
        ".",
        ",",
        ":",
        "T",
        "Z",
        "e",
        "E+",
        "2024",
        "{",
        "}",
        "[",
        "]",
        '"',
        "a",
        " ",
        "/",
        "\u00e9",
    )
    return ["".join(random.choices(pieces, k=random.randrange(1, 12))) for _ in range(count)]


class NastyShop:
    """Rows with one or two nasty values each, and the valid rows that they refer to."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.number = 0

    def everything(self) -> list[Row]:
        """Each value in each column, and the cases of the methods below."""
        for value in (*NASTY, *AMOUNTS, *MOMENTS, *HUGE, *random_texts(Random(7), 60)):
            for table, columns in RAW_TABLES.items():
                for column in columns:
                    if column not in TYPED.get(table, ()):
                        self.add(table, {column: value})
        for value in (*NASTY, *HUGE):
            self.nested(value)
        self.pairs()
        self.of_the_loader()
        self.at_the_limits()
        return self.rows

    def at_random(self, random: Random, count: int) -> list[Row]:
        """Rows with any columns nasty, of a few people, products and orders, so that they meet."""
        values = (*NASTY, *AMOUNTS, *QUANTITIES, *UNITS, *MOMENTS, *random_texts(random, 60))
        for _ in range(count):
            table = random.choice(list(RAW_TABLES))
            columns = [column for column in RAW_TABLES[table] if column not in TYPED.get(table, ())]
            odd = {column: random.choice(values) for column in random.sample(columns, random.randrange(0, 7))}
            shared = {
                f"{name}_id": f"{name[0]}{random.randrange(4)}" for name in ("user", "order", "product", "customer")
            }
            met = {column: value for column, value in shared.items() if column in columns and random.random() < 0.8}
            if table == "ga4_events" and random.random() < 0.5:
                items = [
                    {
                        "item_id": random.choice(("P1", "p1", "")),
                        "price": random.choice(FLOATS),
                        "quantity": random.choice(INTEGERS),
                    }
                    for _ in range(random.randrange(4))
                ]
                device = {
                    "category": random.choice(values),
                    "operating_system": None,
                    "language": None,
                    "web_info": None,
                }
                self.ga4(items, device=device)
            else:
                self.add(table, {**met, **odd}, order=False)
        return self.rows

    def pairs(self) -> None:
        """Two nasty values in columns that are combined."""
        for amount, quantity in product(AMOUNTS, QUANTITIES):
            self.add("events", {"price": amount, "quantity": quantity, "currency": "GBP"})
            self.add("order_items", {"price": amount, "quantity": quantity, "currency": "GBP"})
            self.add("refunds", {"amount": amount, "quantity": quantity, "currency": "GBP"})
        for amount, discount in product(AMOUNTS, repeat=2):
            self.add("order_items", {"price": None, "amount": amount, "discount": discount, "currency": "GBP"})
            self.add("order_items", {"amount": amount, "discount": discount, "currency": "GBP"})
            money = {"discount": amount, "tax": discount, "shipping": discount, "total": amount, "tax_included": "no"}
            self.add("orders", money)
            self.add("order_items", {"order_id": f"o{self.number}", "price": discount}, order=False)
        for amount, unit in product(AMOUNTS, UNITS):
            self.add("products", {"weight": amount, "weight_unit": unit, "category": "books"})
        for amount, currency in product(AMOUNTS, ("", "GBP", "GBp", "JPY", "XXX")):
            self.add("products", {"price": amount, "currency": currency})
        for created, paid, shipped in product(MOMENTS, repeat=3):
            self.add("orders", {"created_at": created, "paid_at": paid, "shipped_at": shipped})
            order = f"o{self.number}"
            self.add("order_items", {"order_id": order}, order=False)
            self.add("refunds", {"order_id": order, "refunded_at": paid}, order=False)
        for created, updated in product(MOMENTS, repeat=2):
            for table in ("customers", "products"):
                self.add(table, {"created_at": created, "updated_at": updated})
        for price, quantity in product(FLOATS, INTEGERS):
            self.ga4([{"item_id": "P1", "price": price, "quantity": quantity}])
        for number in INTEGERS:
            value = {"string_value": None, "int_value": number, "float_value": 1e308, "double_value": "nan"}
            self.ga4([], event_params=[{"key": key, "value": value} for key in ("ga_session_id", "currency", None)])
        for params in (
            None,
            [],
            [None],
            [{"key": "currency", "value": None}],
            [{"key": "currency", "value": None}] * 2,
        ):
            self.ga4([{"item_id": "P1"}, {}], event_params=params)
        for count in (200, 511, 512, 1500):
            self.ga4([{"item_id": f"P{number}", "price": 1.0, "quantity": 1} for number in range(count)])

    def of_the_loader(self) -> None:
        """The columns that a loader adds to the fields."""
        for table in RAW_TABLES:
            for moment, value in product(ARRIVALS, ("available_at", "_ingested_at")):
                self.add(table, {value: moment})
            for text in ("", "\u202e", "a" * 5000, "x@000000001.aaaaaaaaaaaaaaaa", "|", "%", "line\nbreak"):
                for column in ("_position", "_error"):
                    self.add(table, {column: f"{text}{self.number}" if column == "_position" else text})
        for text in ("", "short", "x" * 5000):
            for key in (None, "", "{"):
                # In another source, so that it does not delete rows that the others need.
                self.rows.append(Row("deletions", "elsewhere", text, FIRST, {"raw_table": "orders", "row_key": key}))

    def at_the_limits(self) -> None:
        """Enough rows at the limits of believable values, and of types, to make their sums and squares as large as
        possible."""
        for _ in range(240):
            self.add("customers", {"income": "100000000000", "birth_year": "1850", "household_size": "100"})
            self.add(
                "customers", {"income": "99999999999999", "birth_year": "2147483647", "household_size": "2147483647"}
            )
            self.add("products", {"weight": "1000000", "weight_unit": "kg", "category": "books"})
            self.add("products", {"weight": "99999", "weight_unit": "kg", "category": "books", "price": "99999"})
            self.add("events", {"product_id": "P1", "price": "100000", "quantity": "10000", "currency": "GBP"})

    def add(self, table: str, odd: dict[str, Any], *, order: bool = True) -> None:
        """A row of a table, valid except for the odd values; an item or refund also adds its `order`."""
        self.number += 1
        key = str(self.number)
        moment = FIRST + timedelta(minutes=self.number)
        at = moment.isoformat() + "Z"
        person = {"user_id": f"u{key}", "anonymous_id": f"a{key}"}
        money = {"product_id": "P1", "quantity": "1", "price": "10", "currency": "EUR"}
        sound: dict[str, dict[str, Any]] = {
            "events": {**person, **money, "event_type": "purchase", "event_at": at, "order_id": f"o{key}", "country": "DE"},
            "ga4_events": {"event_name": "purchase", "event_timestamp": str(int(moment.timestamp() * 1e6)), "user_pseudo_id": f"g{key}"},
            "customers": {"customer_id": f"c{key}", "created_at": at, "updated_at": at, "income": "100", "birth_year": "1980", "household_size": "2"},
            "products": {"product_id": f"p{key}", "title": "x", "price": "10", "currency": "EUR", "weight": "5", "weight_unit": "g", "updated_at": at},
            "orders": {**person, "order_id": f"o{key}", "created_at": at, "updated_at": at, "currency": "EUR"},
            "order_items": {**money, "order_id": f"o{key}", "line_id": "1"},
            "refunds": {"refund_id": f"r{key}", "order_id": f"o{key}", "product_id": "P1", "quantity": "1", "amount": "5", "refunded_at": at},
        }  # fmt: skip
        origin = "web" if table in ("events", "ga4_events") else "database"
        arrived = moment + timedelta(minutes=1)
        if order and table in ("order_items", "refunds"):
            self.rows.append(Row("orders", "shop", f"orders#{key}", arrived, sound["orders"], origin=origin))
        fields = {**sound[table], **odd}
        self.rows.append(Row(table, "shop", f"{table}#{key}", arrived, fields, origin=origin))

    def ga4(self, items: list[dict[str, Any]], **parts: Any) -> None:
        """A GA4 event with these items."""
        whole = [{**dict.fromkeys(GA4_ITEM), **item} for item in items]
        self.add("ga4_events", {"items": json.dumps(whole), **{name: json.dumps(part) for name, part in parts.items()}})

    def nested(self, text: str) -> None:
        """A GA4 event in which every nested text is `text`."""
        value = {"string_value": text, "int_value": None, "float_value": None, "double_value": None}
        self.ga4(
            [{"item_id": text, "item_category": text, "price": 1.0, "quantity": 1}],
            event_params=[{"key": key, "value": value} for key in ("currency", "search_term", "page_location", "page_referrer")],
            privacy_info={"analytics_storage": text, "ads_storage": text},
            device={"category": text, "operating_system": text, "language": text, "web_info": None},
            geo={"country": text, "region": text, "city": text},
            ecommerce={"transaction_id": text, "purchase_revenue": None, "total_item_quantity": None},
        )  # fmt: skip


def build_and_publish(homes: Homes, where: Settings) -> None:
    """A complete build, with snapshots and every data test of all rows, like `finegrain build --full-audit`; then
    publish."""
    own = ["--vars", json.dumps(VARS), "--target-path", str(homes.root / "target"), "--no-write-json"]
    with environment(where, FINEGRAIN_FULL_AUDIT="1"):
        done = run_dbt(["build", "--exclude", "test_type:unit", *own], where=where)
    broken = [f"{node.name}: {node.rows or node.message}" for node in done.nodes if node.failed]
    assert broken == []
    assert done.count("test") > 240 and done.count("snapshot") == 3
    assert {node.status for node in done.nodes} <= {"success", "pass", "no-op"}
    publish(where)


def unaccounted(where: Settings) -> list[tuple[Any, ...]]:
    """By raw table: rows of the lake, and the sum of those kept, duplicate and quarantined, where the two differ."""
    con = lake.connect(where)
    try:
        raw = {table: con.execute(f"select count(*) from lake.raw.{table}").fetchall()[0][0] for table in RAW_TABLES}
    finally:
        con.close()
    with duckdb.connect(str(where.published / "finegrain.duckdb"), read_only=True) as con:
        judged = dict(
            con.execute(
                "select raw_table, sum(kept + duplicates + quarantined)::bigint from event_ledger group by all"
            ).fetchall()
        )
    return [(table, rows, judged.get(table, 0)) for table, rows in raw.items() if rows != judged.get(table, 0)]


@pytest.fixture(scope="module")
def built(homes: Homes) -> Settings:
    """The shop, built in two steps, and audited and published after each."""
    rows = NastyShop().everything()
    assert len(rows) > 20_000
    where = homes.make("nasty")
    for batch in (rows[::2], rows[1::2]):
        land(where, batch)
        build_and_publish(homes, where)
    return where


@pytest.mark.soak
def test_no_value_in_any_raw_column_fails_a_build_an_audit_or_a_publish(built: Settings) -> None:
    """And every row of every table has a verdict; each table has both kept rows, which go through all models, and
    others."""
    assert unaccounted(built) == []
    with duckdb.connect(str(built.published / "finegrain.duckdb"), read_only=True) as con:
        found = con.execute(
            "select raw_table from event_ledger group by raw_table having sum(kept) > 100 and sum(quarantined) > 10"
        ).fetchall()
    assert {table for (table,) in found} == set(RAW_TABLES)


@pytest.mark.soak
def test_no_combination_of_values_fails_a_build_an_audit_or_a_publish(homes: Homes) -> None:
    """Rows with nasty values in up to six columns at once, of a few people, products and orders; a full and an
    incremental build."""
    check_a_combination(homes, 1 if os.environ.get("CI") else randrange(2**32))


@pytest.mark.soak
@settings(
    max_examples=10, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_combination_of_many_does(homes: Homes, seed: int) -> None:
    check_a_combination(homes, seed)


def check_a_combination(homes: Homes, seed: int) -> None:
    rows = NastyShop().at_random(Random(seed), 2000)
    where = homes.make("random")
    for batch in (rows[::2], rows[1::2]):
        land(where, batch)
        build_and_publish(homes, where)
    assert unaccounted(where) == []


@cache
def reading_of_numbers() -> str:
    """SQL that reads a list of texts like the models do."""
    sql = macros("fields.sql")
    return (
        f"select bad, {sql.within('money', 0, sql.limit('max_income'))}, {sql.in_reporting_currency('money', '1.5::double')}, "
        f"{sql.amount_of('greatest(money, 0)', 'greatest(quantity, 0)')} from (select {sql.to_money('t')} as money, "
        f"{sql.to_quantity('t')} as quantity, {sql.not_a_number('t')} as bad from (select unnest($1::varchar[]) as t))"
    )


@settings(max_examples=50)
@given(
    st.lists(
        st.text() | st.sampled_from((*NASTY, *AMOUNTS, *QUANTITIES)) | st.floats().map(str) | st.integers().map(str)
    )
)
def test_no_text_that_is_read_as_a_number_raises(texts: list[str]) -> None:
    """And no amount or quantity is so large that its sums would overflow."""
    found = duckdb.execute(reading_of_numbers(), [texts]).fetchall()
    assert len(found) == len(texts)
    for bad, income, price, amount in found:
        assert bad is not None
        assert income is None or 0 <= income <= 10**11
        assert price is None or price <= 10**10
        assert 0 <= amount <= 10**10


@given(
    st.decimals(0, 99_999_999_999_999, places=4),
    st.decimals(0, 999_999_999_999_999, places=3),
)
def test_an_amount_is_exact_and_no_more_than_a_row_may_be_worth(price: Decimal, quantity: Decimal) -> None:
    """Also with decimals of any length; 10^11 x 10^4 with 7 decimals overflows DuckDB's product of the two types."""
    with localcontext() as context:
        context.prec = 60
        expected = min((price * quantity).quantize(Decimal("0.0001"), ROUND_HALF_UP), Decimal(10**10))
    amount = macros("fields.sql").amount_of(f"{price}::decimal(18, 4)", f"{quantity}::decimal(18, 3)")
    assert duckdb.sql(f"select {amount}").fetchall() == [(expected,)]


@pytest.mark.soak
def test_impossible_amounts_are_quarantined_and_never_reported(built: Settings) -> None:
    """Prices of 10^14 and more, in a currency that is converted, of events, lines, refunds and products."""
    with duckdb.connect(str(built.warehouse), read_only=True) as con:
        found = con.execute(
            "select raw_table, verdict, list_contains(reasons, 'price_out_of_range'), count(*) from int_events__validated "
            "where abs(price) > 1e10 group by all order by all"
        ).fetchall()
        assert {row[0] for row in found} == {"events", "ga4_events", "order_items", "refunds"}
        assert {row[1:3] for row in found} == {("quarantined", True)}
        [(dearest,)] = con.execute("select max(price) from marts.fct_events").fetchall()
        assert dearest < 200_000
        # A product with an impossible price does not exist; one whose price is not a number has no price.
        [(dear, negative)] = con.execute(
            "select count(*) filter (price_raw > 100000), count(*) filter (price_raw < 0) from marts.dim_products"
        ).fetchall()
        assert (dear, negative) == (0, 0)
        [(absurd,)] = con.execute(
            "select count(*) from int_reference__record_verdicts where reason = 'price_out_of_range'"
        ).fetchall()
        assert absurd > 8


@pytest.mark.soak
def test_impossible_values_of_customers_and_products_are_null(built: Settings) -> None:
    """The limits themselves are allowed: 10^11 of income, 10^9 grams, households of 100, births since 1850."""
    with duckdb.connect(str(built.published / "finegrain.duckdb"), read_only=True) as con:
        found = con.execute(
            "select min(income), max(income), min(birth_year), max(birth_year) <= 2100, min(household_size), max(household_size) "
            "from dim_customers"
        ).fetchall()
        assert found == [(0, 100_000_000_000, 1850, True, 1, 100)]
        assert con.execute("select min(weight_grams_raw) >= 0, max(weight_grams_raw) from dim_products").fetchall() == [
            (True, 1_000_000_000)
        ]
        [(most,)] = con.execute(
            "select count(*) from dim_customers where income = 100000000000 and household_size = 100 and birth_year = 1850"
        ).fetchall()
        assert most == 240


@pytest.mark.soak
def test_an_event_with_too_many_items_is_malformed_as_a_whole(built: Settings) -> None:
    """200 and 511 items are as many rows; 512 and 1,500 are one row each, quarantined."""
    with duckdb.connect(str(built.warehouse), read_only=True) as con:
        found = con.execute(
            "select count(*) as items from int_events__validated where raw_table = 'ga4_events' group by raw_rowid "
            "having count(*) > 100 order by all"
        ).fetchall()
        assert found == [(200,), (511,)]
