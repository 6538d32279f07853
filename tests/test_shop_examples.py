"""The examples of Segment and of Shopify, from their files to the marts, compared with the same files read in plain
Python."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import pytest
from small_shops import Homes

from orchestration.config.settings import Settings
from orchestration.ingest.load import load

#: The event types of the sample's names, and the devices of its browsers.
KINDS = {
    "page": "page_view", "screen": "page_view", "identify": "engagement", "Product List Viewed": "view_item_list",
    "Product Clicked": "select_item", "Product Viewed": "view_item", "product_viewed": "view_item", "Product Added": "add_to_cart",
    "productAdded": "add_to_cart", "Product Removed": "remove_from_cart", "Cart Viewed": "view_cart", "Signed In": "login",
    "Checkout Started": "begin_checkout", "Payment Info Entered": "add_payment_info", "Order Completed": "purchase",
    "Order Updated": "engagement", "Order Cancelled": "engagement", "Order Refunded": "refund", "Products Searched": "search",
    "Product Added to Wishlist": "add_to_wishlist", "Promotion Viewed": "engagement", "Coupon Denied": "engagement",
}  # fmt: skip
DEVICES = {"iPhone": "mobile", "Pixel": "mobile", "iPad": "tablet", "Windows": "desktop"}


@pytest.fixture(scope="module")
def shop(homes: Homes, project: Path) -> Settings:
    where = homes.make("examples")
    with duckdb.connect(str(where.warehouse)) as con:  # the thresholds of small shops take these visitors for bots
        con.execute("update validation_rules set severity = 'warn' where rule_id = 'bot_behaviour'")
    for name in ("segment", "shopify"):
        load(project / "examples" / f"{name}.yml", data=project, where=where)
    homes.run(where, "--select", "+path:models/marts/core")
    return where


@pytest.fixture
def con(shop: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(shop.warehouse), read_only=True) as con:
        con.execute("set search_path = 'main,marts'")
        yield con


@pytest.fixture(scope="module")
def calls(project: Path) -> list[dict[str, Any]]:
    """Segment's calls, each once."""
    text = (project / "examples" / "segment" / "events.jsonl").read_text("utf-8")
    return list(
        {
            call["messageId"]: call for call in (json.loads(line, parse_float=Decimal) for line in text.splitlines())
        }.values()
    )


def name_of(call: dict[str, Any]) -> str:
    return str(call["event"] if call["type"] == "track" else call["type"])


def products(call: dict[str, Any]) -> list[dict[str, Any]]:
    """The products of a call: those of its list, or the single one in its properties."""
    properties = call.get("properties") or {}
    found = [each for each in properties.get("products", []) if isinstance(each, dict)]
    return found or ([properties] if "product_id" in properties else [])


def test_segment_s_calls_are_events_of_each_product(
    con: duckdb.DuckDBPyConnection, calls: list[dict[str, Any]]
) -> None:
    expected: Counter[tuple[Any, ...]] = Counter()
    for call in calls:
        kind, of_order = KINDS[name_of(call)], "order_id" in (call.get("properties") or {})
        found = [each.get("product_id") for each in products(call)]
        # Two lines of an order may have the same product; any other list has each product once.
        for product in (found if of_order else set(found)) or [None]:
            expected[kind, call["anonymousId"], product] += 1
    kept = con.execute(
        "select event_type, anonymous_id, product_id from fct_events where source = 'segment'"
    ).fetchall()
    assert Counter(kept) == expected
    [(reasons, position)] = con.execute(
        "select reasons, position from int_events__validated where source = 'segment' and verdict = 'quarantined'"
    ).fetchall()
    assert reasons == ["malformed"] and position.endswith("[2]"), "the product that is a text"


def test_segment_s_orders_have_their_money(con: duckdb.DuckDBPyConnection, calls: list[dict[str, Any]]) -> None:
    sold: dict[str, Counter[tuple[Any, ...]]] = defaultdict(Counter)
    back: Counter[tuple[Any, ...]] = Counter()
    for call in calls:
        for each in products(call):
            line = (each["product_id"], each.get("quantity"), each["price"])
            if name_of(call) == "Order Completed":
                sold[call["properties"]["order_id"]][line] += 1
            elif name_of(call) == "Order Refunded":
                back[(call["properties"]["order_id"], *line)] += 1
    found = con.execute(
        "select order_id, product_id, quantity, price_in_currency from fct_order_items as i inner join fct_orders as o using (order_key) "
        "where i.source = 'segment'"
    ).fetchall()
    assert Counter(found) == Counter({(order, *line): n for order, lines in sold.items() for line, n in lines.items()})
    rate = con.execute(
        "select distinct price / price_in_currency from fct_order_items where source = 'segment'"
    ).fetchall()
    assert len({round(each, 3) for (each,) in rate}) == 1
    refunded = con.execute(
        "select order_id, product_id, quantity, price_in_currency from fct_events where source = 'segment' and event_type = 'refund'"
    ).fetchall()
    assert Counter(refunded) == back


def test_segment_s_visitors_are_customers_and_have_devices(
    con: duckdb.DuckDBPyConnection, calls: list[dict[str, Any]]
) -> None:
    logins = {call["anonymousId"]: call["userId"] for call in calls if call["userId"]}
    found = con.execute(
        "select anonymous_id, customer_id, user_id, device from fct_events where source = 'segment'"
    ).fetchall()
    visitors = {visitor: customer for visitor, customer, _, _ in found}
    assert len(set(visitors.values())) == len(visitors) == len({call["anonymousId"] for call in calls})
    assert len({(visitor, customer) for visitor, customer, _, _ in found}) == len(visitors), (
        "also what was seen before the login"
    )
    assert {(visitor, user) for visitor, _, user, _ in found if user} == set(logins.items())
    for call in calls:
        [device] = {device for word, device in DEVICES.items() if word in call["context"]["userAgent"]}
        assert {seen for visitor, *_, seen in found if visitor == call["anonymousId"]} == {device}


@pytest.fixture(scope="module")
def orders(project: Path) -> list[dict[str, Any]]:
    """Shopify's orders, each once."""
    text = (project / "examples" / "shopify" / "orders.json").read_text("utf-8")
    found: list[dict[str, Any]] = json.loads(text, parse_float=Decimal)
    assert {order["taxes_included"] for order in found} == {True, False}
    assert [order["financial_status"] for order in found if order["cancelled_at"]] == ["refunded"]
    assert any(order["discount_codes"] for order in found)
    return found


def test_shopify_s_orders_have_their_lines_and_buyers(
    con: duckdb.DuckDBPyConnection, orders: list[dict[str, Any]]
) -> None:
    expected = [
        (
            "cancelled_order" if order["cancelled_at"] else "purchase",
            str(order["id"]), str(line["id"]), None if line["product_id"] is None else str(line["product_id"]), Decimal(line["quantity"]),
            Decimal(line["price"]), None if order["customer"] is None else f"u:{order['customer']['id']}",
        )
        for order in orders
        for line in order["line_items"]
    ]  # fmt: skip
    found = con.execute(
        "select event_type, order_id, line_id, product_id, quantity, price_in_currency, case when identity like 'u:%' then identity end "
        "from fct_events where source = 'shopify' and event_type not like 'refund%'"
    ).fetchall()
    assert Counter(found) == Counter(expected)


def paid_back(order: dict[str, Any], refund: dict[str, Any]) -> list[tuple[dict[str, Any] | None, Decimal]]:
    """The amounts of a refund, each with its line, if any: lines, their tax where prices do not include it, and the
    rest."""
    found: list[tuple[dict[str, Any] | None, Decimal]] = [
        (line, line["subtotal"] + (0 if order["taxes_included"] else line["total_tax"]))
        for line in refund["refund_line_items"]
    ]
    [transaction] = refund["transactions"]
    rest = Decimal(transaction["amount"]) - sum((amount for _, amount in found), Decimal(0))
    return [*found, (None, rest)] if rest else found


def test_shopify_s_refunds_are_all_there(con: duckdb.DuckDBPyConnection, orders: list[dict[str, Any]]) -> None:
    """Up to the sums that were transferred, shipping and tax included."""
    expected: Counter[tuple[Any, ...]] = Counter()
    for order in orders:
        kind = "refund_of_no_sale" if order["cancelled_at"] else "refund"
        for refund in order["refunds"]:
            for line, amount in paid_back(order, refund):
                of_line = (str(line["line_item"]["product_id"]), str(line["line_item_id"])) if line else (None, None)
                expected[kind, str(order["id"]), *of_line, amount] += 1
    found = con.execute(
        "select event_type, order_id, product_id, case when product_id is not null then line_id end, "
        "price_in_currency * coalesce(quantity, 1) from fct_events where source = 'shopify' and event_type like 'refund%'"
    ).fetchall()
    assert Counter(found) == expected


def euro(project: Path, moment: str) -> Decimal:
    """US dollars for one euro, by the last rate up to the moment's day in UTC."""
    day = datetime.fromisoformat(moment).astimezone(UTC).date().isoformat()
    with (project / "seeds" / "fx_rates.csv").open(encoding="utf-8") as file:
        return Decimal(
            max((row for row in csv.DictReader(file) if row["rate_date"] <= day), key=itemgetter("rate_date"))["usd"]
        )


def agree(found: dict[Any, Any], expected: dict[Any, Any]) -> None:
    """Money to half a cent, because it was converted and rounded line by line; anything else exactly."""
    for key in found.keys() | expected.keys():
        for one, other in zip(found[key], expected[key], strict=True):
            if isinstance(other, Decimal):
                assert abs(one - other) <= Decimal("0.005"), (key, found[key], expected[key])
            else:
                assert one == other, (key, found[key], expected[key])


def off(line: dict[str, Any]) -> Decimal:
    return sum((Decimal(each["amount"]) for each in line["discount_allocations"]), Decimal(0))


def test_shopify_s_orders_have_their_money(
    con: duckdb.DuckDBPyConnection, orders: list[dict[str, Any]], project: Path
) -> None:
    expected = {}
    for order in orders:
        rate, is_sale = euro(project, order["created_at"]), order["cancelled_at"] is None
        gross = sum((Decimal(line["price"]) * line["quantity"] for line in order["line_items"]), Decimal(0))
        discount = sum((off(line) for line in order["line_items"]), Decimal(0))
        revenue = gross - discount if is_sale else Decimal(0)
        refunds = sum(
            (
                amount * euro(project, refund["created_at"])
                for refund in order["refunds"]
                for _, amount in paid_back(order, refund)
                if is_sale
            ),
            Decimal(0),
        )
        expected[str(order["id"])] = (
            is_sale, order["discount_codes"][0]["code"] if order["discount_codes"] else None, order["taxes_included"], False,
            gross * rate, discount * rate, revenue * rate, Decimal(order["total_tax"]) * rate,
            Decimal(order["total_shipping_price_set"]["shop_money"]["amount"]) * rate,
            Decimal(order["total_price"]) * rate if is_sale else Decimal(0), refunds, revenue * rate - refunds,
        )  # fmt: skip
    found = con.execute(
        "select order_id, is_sale, discount_code, is_tax_included, total_differs or is_refund_assumed, gross, discount, revenue, tax, shipping, "
        "total, refunds, net_revenue from fct_orders where source = 'shopify'"
    ).fetchall()
    agree({order: tuple(rest) for order, *rest in found}, expected)


def test_shopify_s_lines_have_their_discounts(
    con: duckdb.DuckDBPyConnection, orders: list[dict[str, Any]], project: Path
) -> None:
    expected = {}
    for order in orders:
        rate, is_sale = euro(project, order["created_at"]), order["cancelled_at"] is None
        for line in order["line_items"]:
            gross = Decimal(line["price"]) * line["quantity"]
            expected[str(line["id"])] = (off(line) * rate, (gross - off(line)) * rate if is_sale else Decimal(0))
    found = con.execute("select line_id, discount, revenue from fct_order_items where source = 'shopify'").fetchall()
    agree({line: tuple(rest) for line, *rest in found}, expected)


def test_shopify_s_products_and_customers(con: duckdb.DuckDBPyConnection, project: Path) -> None:
    folder = project / "examples" / "shopify"
    products = json.loads((folder / "products.json").read_text("utf-8"), parse_float=Decimal)
    customers = json.loads((folder / "customers.json").read_text("utf-8"))
    found = con.execute(
        "select product_id, title, brand from dim_products where product_id similar to '70.*'"
    ).fetchall()
    assert set(found) == {(str(each["id"]), each["title"], each["vendor"]) for each in products}
    bought = con.execute(
        "select distinct identity from fct_orders where source = 'shopify' and identity like 'u:%'"
    ).fetchall()
    assert {identity for (identity,) in bought} <= {f"u:{each['id']}" for each in customers}
