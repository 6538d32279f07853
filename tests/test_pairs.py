"""The number of pairs stays small: neither a machine that views everything nor a wholesale order creates the square of
its items."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import duckdb
import pytest
from small_shops import MAX_PRODUCTS_PAIRED, Homes, Row, at, land

MONDAY = date(2024, 4, 1)
PRODUCTS = 2000


def hit(kind: str, visitor: str, product: int, day: date, second: float, **more: str) -> Row:
    """An event. Those at the same time count as one hit, which keeps the machine below the rules against machines."""
    moment = at(day, second)
    fields = {
        "event_type": kind,
        "event_at": moment.isoformat(),
        "anonymous_id": visitor,
        "product_id": f"X{product:04}",
    }
    return Row("events", "web", f"{visitor} {kind} {day} {product}", moment, {**fields, **more})


@pytest.fixture(scope="module")
def warehouse(homes: Homes) -> Path:
    """A visitor that views all products on two days, one that orders them all at once, and one more day."""
    shop_home = homes.make("crowd")
    land(
        shop_home,
        [
            *(
                hit("view_item", "machine", number, MONDAY + day, number // 500)
                for day in (timedelta(0), timedelta(1))
                for number in range(PRODUCTS)
            ),
            *(hit("purchase", "dealer", number, MONDAY, 0, order_id="all", price="1") for number in range(PRODUCTS)),
            hit("login", "nobody", 0, MONDAY + timedelta(3), 0),
        ],
    )
    homes.run(shop_home, "--select", "+item_pair_features")
    return shop_home.warehouse


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("select count(*) from int_cleaning__events where event_type = 'view_item'", 2 * PRODUCTS),
        ("select count(*) from int_tiles__daily_product_touches where kind = 'viewed'", 2 * MAX_PRODUCTS_PAIRED),
        # The first ones that were visible remain.
        ("select max(product_id) from int_tiles__daily_product_touches", f"X{MAX_PRODUCTS_PAIRED - 1:04}"),
        ("select count(*) from int_tiles__order_products", MAX_PRODUCTS_PAIRED),
        (
            "select count(*) from int_tiles__product_pairs where co_views > 0",
            2 * MAX_PRODUCTS_PAIRED * (MAX_PRODUCTS_PAIRED - 1),
        ),
        (
            "select count(*) from int_tiles__product_pairs where co_orders > 0",
            MAX_PRODUCTS_PAIRED * (MAX_PRODUCTS_PAIRED - 1),
        ),
        ("select max(co_views_lifetime) from marts.item_pair_features", 2),
    ],
)
def test_a_visitor_of_everything_makes_few_pairs(warehouse: Path, query: str, expected: object) -> None:
    with duckdb.connect(str(warehouse), read_only=True) as con:
        assert con.execute(query).fetchall() == [(expected,)]
