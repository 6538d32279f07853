"""The spines with labels (models/marts/training), each against plain Python on the same events and orders."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import pytest
import yaml

from orchestration.config.settings import PROJECT, Settings

VARS = yaml.safe_load((PROJECT / "dbt_project.yml").read_text("utf-8"))["vars"]
DAY = timedelta(days=1)

Row = dict[str, Any]


@pytest.fixture(scope="module")
def built(built_shop: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(built_shop.warehouse), read_only=True) as con:
        yield con


def rows(con: duckdb.DuckDBPyConnection, query: str) -> list[Row]:
    found = con.execute(query)
    names = [name for name, *_ in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def customer(links: list[Row], identity: str | None, moment: datetime) -> str | None:
    """To whom an identity belonged, as far as was known at a moment."""
    for link in links:
        ends = link["known_to"] or datetime.max
        if link["identity"] == identity and link["known_from"] <= moment < ends:
            return str(link["customer_id"])
    return None


def seeded_number(*texts: object, size: int) -> int:
    text = "|,".join([str(VARS["training_seed"]), *(str(each).replace("|", "||") for each in texts)])
    return int(hashlib.md5(text.encode()).hexdigest()[:15], 16) % size


def drawn(events: list[Row], example: str, as_of: datetime) -> set[str]:
    """The products that are drawn for an example, of those of which an event had arrived on the days before."""
    firsts: dict[str, date] = {}
    for event in events:
        if event["product_id"]:
            firsts[event["product_id"]] = min(event["available_at"].date(), firsts.get(event["product_id"], date.max))
    known = [(day, product) for product, day in firsts.items() if day < as_of.date()]
    places = [
        seeded_number(example, draw, size=len(known)) for draw in range(VARS["training_negatives"] if known else 0)
    ]
    return {sorted(known)[place][1] for place in places}


def test_outcomes_are_what_customers_did(built: duckdb.DuckDBPyConnection) -> None:
    links, orders = rows(built, "from int_identity__links"), rows(built, "from marts.fct_orders where is_sale")
    [(now,)] = built.execute("select as_of from int_identity__build").fetchall()
    current = {link["identity"]: link["customer_id"] for link in links if link["known_to"] is None}
    identities = defaultdict(set)
    for link in links:
        identities[link["customer_id"]].add(link["identity"])

    active = set()
    for event in rows(built, "select distinct identity, event_day, arrival_day from int_cleaning__events"):
        monday = max(event["event_day"], event["arrival_day"])
        monday += (7 - monday.weekday()) * DAY
        while monday - event["event_day"] <= VARS["training_active_days"] * DAY and monday <= now.date():
            moment = datetime.combine(monday, datetime.min.time())
            active.add((customer(links, event["identity"], moment), moment))
            monday += 7 * DAY
    active = {each for each in active if each[0]}

    def expected(customer_id: str, as_of: datetime) -> tuple[Any, ...]:
        [later] = {current[identity] for identity in identities[customer_id]}
        mine = [order for order in orders if order["customer_id"] == later]

        def within(days: int) -> list[Row] | None:
            end = as_of + days * DAY
            return None if end > now else [order for order in mine if as_of <= order["ordered_at"] < end]

        had_bought = any(as_of - VARS["training_churn_days"] * DAY <= order["ordered_at"] < as_of for order in mine)
        bought = [None if (found := within(days)) is None else bool(found) for days in (7, 14)]
        churned = [None if (found := within(days)) is None or not had_bought else not found for days in (14, 30)]
        paid = within(90)
        revenue = None if paid is None else sum((order["revenue"] or Decimal(0) for order in paid), Decimal(0))
        return (*bought, *churned, revenue)

    found = built.execute("from marts.customer_outcomes").fetchall()
    assert {(each[0], each[1]): each[2:] for each in found} == {each: expected(*each) for each in active}
    assert len(found) == len(active) > 100
    assert {value for _, _, within, *_ in found for value in [within]} == {True, False, None}
    assert {each[4] for each in found} == {True, False, None}


def test_what_came_next_in_a_session(built: duckdb.DuckDBPyConnection) -> None:
    links = rows(built, "from int_identity__links")
    events = rows(built, "from marts.fct_events order by event_at, event_id")
    sessions = defaultdict(list)
    for event in events:
        if event["product_id"] and event["event_type"] in ("view_item", "add_to_cart") and event["session_id"]:
            touched = sessions[event["session_id"]]
            if not touched or touched[-1]["event_at"] < event["event_at"]:
                touched.append(event)
    expected = set()
    for session, touched in sessions.items():
        if seeded_number(session, size=100) >= VARS["training_sample_percent"]:
            continue
        for last, event in itertools.pairwise(touched):
            as_of, product = event["event_at"], event["product_id"]
            known = customer(links, last["identity"], as_of)
            if known and product != last["product_id"]:
                for candidate in {product} | drawn(events, event["event_id"], as_of):
                    expected.add((session, known, candidate, as_of, candidate == product, event["category"]))
    found = built.execute("from marts.next_in_session").fetchall()
    assert len(found) == len(expected) > 100
    assert set(found) == expected


def test_what_was_in_the_next_basket(built: duckdb.DuckDBPyConnection) -> None:
    links = rows(built, "from int_identity__links")
    events = rows(built, "select product_id, available_at from int_cleaning__events")
    orders = rows(built, "from marts.fct_orders where is_sale order by ordered_at")
    products = defaultdict(set)
    for item in rows(built, "from marts.fct_order_items where product_id is not null"):
        products[item["order_key"]].add(item["product_id"])
    expected = set()
    for order in orders:
        key, as_of = order["order_key"], order["ordered_at"]
        known = customer(links, order["identity"], as_of)
        if seeded_number(key, size=100) >= VARS["training_sample_percent"] or not known or not products[key]:
            continue
        last: dict[str, datetime] = {}
        for earlier in orders:
            if earlier["customer_id"] == order["customer_id"] and earlier["ordered_at"] < as_of:
                last |= dict.fromkeys(products[earlier["order_key"]], earlier["ordered_at"])
        before = sorted(sorted(last), key=lambda product: last[product], reverse=True)
        candidates = products[key] | set(before[: VARS["training_bought_before"]]) | drawn(events, key, as_of)
        expected |= {(known, product, as_of, key, product in products[key]) for product in candidates}
    found = built.execute("from marts.next_basket").fetchall()
    assert len(found) == len(expected) > 20
    assert set(found) == expected
