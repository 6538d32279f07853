"""The examples of Segment and of Shopify, from their files to the marts, against a reading of the same files in plain Python."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from small_shops import Houses

from orchestration.load import load
from orchestration.settings import Settings

#: What the sample's names mean, and its browsers are.
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
def shop(houses: Houses, project: Path) -> Settings:
    where = houses.make("examples")
    for name in ("segment", "shopify"):
        load(project / "examples" / f"{name}.yml", data=project, where=where)
    houses.run(where)
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
    """The products that a call is about: those of its list, or the one that it is itself about."""
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
        # Two lines of an order may be of one product; in any other list a product is there once.
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
    """Shopify's orders but for the cancelled one."""
    text = (project / "examples" / "shopify" / "orders.json").read_text("utf-8")
    return [order for order in json.loads(text, parse_float=Decimal) if order["cancelled_at"] is None]


def test_shopify_s_orders_have_their_lines_and_buyers(
    con: duckdb.DuckDBPyConnection, orders: list[dict[str, Any]]
) -> None:
    expected = [
        (
            str(order["id"]), str(line["id"]), None if line["product_id"] is None else str(line["product_id"]), Decimal(line["quantity"]),
            Decimal(line["price"]), None if order["customer"] is None else f"u:{order['customer']['id']}",
        )
        for order in orders
        for line in order["line_items"]
    ]  # fmt: skip
    found = con.execute(
        "select order_id, line_id, product_id, quantity, price_in_currency, case when identity like 'u:%' then identity end from fct_events "
        "where source = 'shopify' and event_type = 'purchase' and order_id in (select unnest(?))",
        [[str(order["id"]) for order in orders]],
    ).fetchall()
    assert Counter(found) == Counter(expected)


def test_shopify_s_refunds_are_all_there(con: duckdb.DuckDBPyConnection, orders: list[dict[str, Any]]) -> None:
    expected: Counter[tuple[Any, ...]] = Counter()
    for order in orders:
        for refund in order["refunds"]:
            for line in refund["refund_line_items"]:
                each = (str(line["line_item"]["product_id"]), str(line["line_item_id"]), Decimal(line["subtotal"]))
                expected[(str(order["id"]), *each)] += 1
            if not refund["refund_line_items"]:
                expected[str(order["id"]), None, None, Decimal(refund["transactions"][0]["amount"])] += 1
    found = con.execute(
        "select order_id, product_id, case when product_id is not null then line_id end, price_in_currency * coalesce(quantity, 1) from fct_events "
        "where source = 'shopify' and event_type = 'refund'"
    ).fetchall()
    assert Counter(found) == expected


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
