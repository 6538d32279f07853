"""No raw text, however odd, fails a build or a data test: what cannot be read is null, or its row is quarantined with the reason.

Every text column of every raw table holds each of the nasty values once, on a row that is sound otherwise; so do the members of
GA4's nested columns. Half of the rows are there for the first build, the others come to an incremental one.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from random import Random
from typing import Any

import duckdb
import pytest
from small_shops import GA4_ITEM, VARS, Houses, Row, land

from orchestration.build import run_dbt
from orchestration.contracts import RAW_TABLES
from orchestration.settings import Settings

#: What people and programs write where a number, a time, a currency, a unit, an id or JSON is due.
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
pytestmark = pytest.mark.long
FIRST = datetime(2024, 3, 1, 12)
#: Columns of which it is the engine, and not a sender, that says what is in them.
TYPED = {"ga4_events": ("event_params", "privacy_info", "device", "geo", "traffic_source", "ecommerce", "items")}


def random_texts(random: Random, count: int) -> list[str]:
    """Texts put together from pieces that numbers, times and JSON are made of."""
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
    """Rows with one nasty value each, and the sound rows that they rest on."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.number = 0
        for value in (*NASTY, *random_texts(Random(7), 60)):
            for table, columns in RAW_TABLES.items():
                for column in columns:
                    if column not in TYPED.get(table, ()):
                        self.add(table, {column: value})
        for value in NASTY:
            self.nested(value)
        for number in (1e14, 1e15, -1e20, 1e30, 1e300, -0.0, 1e-300):
            self.ga4([{"item_id": "P1", "price": number, "quantity": 1}])
        for quantity in (10**4, 10**14, 10**15, 2**63 - 1, -(2**63), 0, -1):
            self.ga4([{"item_id": "P1", "price": 10.0, "quantity": quantity}])

    def add(self, table: str, odd: dict[str, Any], **rest: Any) -> None:
        """A sound row of a table, but for what is odd; an item or refund brings its order along."""
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
        if table in ("order_items", "refunds"):
            self.rows.append(Row("orders", "shop", f"orders#{key}", arrived, sound["orders"], origin=origin))
        fields = {**sound[table], **odd}
        self.rows.append(Row(table, "shop", f"{table}#{key}", arrived, fields, origin=origin, **rest))

    def ga4(self, items: list[dict[str, Any]], **parts: Any) -> None:
        """A GA4 event with these items."""
        whole = [{**dict.fromkeys(GA4_ITEM), **item} for item in items]
        self.add("ga4_events", {"items": json.dumps(whole), **{name: json.dumps(part) for name, part in parts.items()}})

    def nested(self, text: str) -> None:
        """A GA4 event of which every nested text is `text`."""
        value = {"string_value": text, "int_value": None, "float_value": None, "double_value": None}
        self.ga4(
            [{"item_id": text, "item_category": text, "price": 1.0, "quantity": 1}],
            event_params=[{"key": key, "value": value} for key in ("currency", "search_term", "page_location", "page_referrer")],
            privacy_info={"analytics_storage": text, "ads_storage": text},
            device={"category": text, "operating_system": text, "language": text, "web_info": None},
            geo={"country": text, "region": text, "city": text},
            ecommerce={"transaction_id": text, "purchase_revenue": None, "total_item_quantity": None},
        )  # fmt: skip


def audit(houses: Houses, where: Settings) -> list[str]:
    """The data tests that do not hold."""
    done = run_dbt(
        ["test", "--exclude", "test_type:unit", "resource_type:snapshot+", "--vars", json.dumps(VARS), "--target-path", str(houses.root / "target"), "--no-write-json"],
        where=where,
    )  # fmt: skip
    assert done.count("test") > 200
    return [f"{node.name}: {node.rows or node.message}" for node in done.nodes if node.failed]


@pytest.fixture(scope="module")
def built(houses: Houses) -> Settings:
    """The shop, built in two steps, and audited."""
    shop = NastyShop()
    assert len(shop.rows) > 9000
    where = houses.make("nasty")
    land(where, shop.rows[::2])
    houses.run(where)
    land(where, shop.rows[1::2])
    houses.run(where)
    assert audit(houses, where) == []
    return where


def test_no_text_in_any_raw_column_fails_a_build_or_an_audit(built: Settings) -> None:
    """And every row of every table has its verdict."""
    with duckdb.connect(str(built.warehouse), read_only=True) as con:
        [(raw, judged)] = con.execute(
            "select sum(raw_rows), sum(kept + duplicates + quarantined) from marts.event_ledger"
        ).fetchall()
    assert raw == judged == len(NastyShop().rows)


def test_money_that_cannot_be_is_quarantined_and_never_reported(built: Settings) -> None:
    """Prices of 10^14 and more, in a currency that is converted, of events, lines, refunds and products."""
    with duckdb.connect(str(built.warehouse), read_only=True) as con:
        found = con.execute(
            "select raw_table, verdict, list_contains(reasons, 'price_out_of_range'), count(*) from int_events__validated "
            "where abs(price) > 1e10 group by all order by all"
        ).fetchall()
        assert {row[0] for row in found} == {"events", "ga4_events", "order_items", "refunds"}
        assert {row[1:3] for row in found} == {("quarantined", True)}
        [(dearest,)] = con.execute("select max(price_raw) from marts.fct_events").fetchall()
        assert dearest < 200_000
        # A product whose price cannot be is not known; one whose price is no number has none.
        [(dear, negative)] = con.execute(
            "select count(*) filter (price_raw > 100000), count(*) filter (price_raw < 0) from marts.dim_products"
        ).fetchall()
        assert (dear, negative) == (0, 0)
        assert (
            con.execute("select count(*) from int_identity__records where reason = 'price_out_of_range'").fetchall()[0][
                0
            ]
            > 8
        )
