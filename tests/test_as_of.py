"""Features as of a time equal those of an independent computation from clean events (tests/plainly).

They are compared at times when they change: at events and arrivals, an hour, a day and whole days after them, at midnight, and a
microsecond before and after.
"""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import dataclass
from datetime import datetime
from hashlib import md5
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from plainly import DAY, EVENTS, HOUR, MICROSECOND, Event, Shop, customer_of
from plainly.visits import ROWS, sessions
from small_shops import VARS, Homes, ShopMaker, land

from orchestration.config.settings import Settings
from orchestration.warehouse.compiled import answers, compiled


@dataclass(frozen=True)
class Mart:
    """A feature mart: the module that computes it in plain Python, its spine, and the columns of its grain."""

    module: str
    spine: str
    key: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.module}_features"


MARTS = (
    Mart("user", "int_features__customer_spine", ("customer_id",)),
    Mart("item", "int_features__product_spine", ("product_id",)),
    Mart("category", "int_features__category_spine", ("category",)),
    Mart("session", "int_features__session_spine", ("session_id",)),
    Mart("user_category", "int_features__customer_spine", ("customer_id", "category")),
    Mart("user_brand", "int_features__customer_spine", ("customer_id", "brand")),
    Mart("user_item", "int_features__customer_spine", ("customer_id", "product_id")),
    Mart("item_pair", "int_features__product_spine", ("product_id", "other_product_id")),
)
#: The one column of each spine beside as_of.
SPINES = {
    "int_features__customer_spine": "customer_id",
    "int_features__product_spine": "product_id",
    "int_features__category_spine": "category",
    "int_features__session_spine": "session_id",
}


def clean_events(con: duckdb.DuckDBPyConnection) -> list[Event]:
    rows = con.execute(
        f"select {', '.join(EVENTS)} from int_cleaning__events order by event_at, event_id, known_from"
    ).fetchall()
    return [dict(zip(EVENTS, row, strict=True)) for row in rows]


def rows_of(con: duckdb.DuckDBPyConnection, table: str) -> list[dict[str, Any]]:
    answer = con.execute(f"select * from {table}")
    names = [column[0] for column in answer.description or []]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def telling_moments(random: Random, events: list[Event], count: int) -> list[datetime]:
    """Times when features change: at events and arrivals, where windows begin and end, and a microsecond before and after."""
    found = []
    for _ in range(count):
        event = random.choice(events)
        moment = event[random.choice(("event_at", "available_at"))]
        midnight = datetime.combine(moment.date(), datetime.min.time())
        match random.randrange(4):
            case 1:
                moment += random.choice((HOUR, DAY, HOUR / 2))
            case 2:
                moment = midnight + random.choice((0, 1)) * DAY
            case 3:
                moment = midnight + random.choice((7, 8, 14, 15, 30, 31, 90, 91, 365, 366)) * DAY
                moment += random.choice((0, 1, 12)) * HOUR
        found.append(moment + random.choice((-1, 0, 0, 1)) * MICROSECOND)
    return sorted(set(found))


#: Rounded to six decimals, so that the order of summing does not matter: deviations and decayed weights (rounded once per tile).
KEPT_TO = {"price_std": 1e-6, "order_gap_days": 1e-6, "views_ema": 1e-5, "price_ema": 1e-5}


def agree(one: Any, other: Any, absolute: float) -> bool:
    """Counts and money exactly; floats to nine digits."""
    if isinstance(one, float) or isinstance(other, float):
        if one is None or other is None:
            return one is other
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=absolute)
    return bool(one == other)


def unequal(answer: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {answer[name]!r} but plainly {value!r}"
        for name, value in expected.items()
        if not agree(answer[name], value, KEPT_TO.get(name.rpartition("_")[0], 1e-9))
    ]


def built_shop(homes: Homes, random: Random) -> tuple[Settings, Shop]:
    shop_home = homes.make("as-of")
    land(shop_home, ShopMaker(random).shop(events=700, orders=60))
    homes.run(
        shop_home, "--exclude", "path:models/intermediate/features", "path:models/marts"
    )  # which `check_one_shop` asks
    with duckdb.connect(str(shop_home.warehouse), read_only=True) as con:
        return shop_home, Shop(clean_events(con), rows_of(con, "int_reference__product_versions"))


def wrong_sessions(shop_home: Settings) -> list[str]:
    """The kept events whose session differs from the one computed in plain Python."""
    with duckdb.connect(str(shop_home.warehouse), read_only=True) as con:
        rows = con.execute(f"select {', '.join(ROWS)} from int_events__validated").fetchall()
        found = con.execute("select row_id, visitor, chain, session_id from int_events__sessionized").fetchall()
    expected = {
        row: (visitor, chain, md5(f"{visitor}|,{first}".encode()).hexdigest())
        for row, (visitor, chain, first) in sessions([dict(zip(ROWS, row, strict=True)) for row in rows]).items()
    }
    assert expected.keys() == {row for row, *_ in found}
    return [f"row {row}: {place} but plainly {expected[row]}" for row, *place in found if tuple(place) != expected[row]]


def everything(shop: Shop) -> dict[str, list[str]]:
    """For each spine, all keys that the shop ever had, and one that it never had."""
    identities = {event["identity"] for event in shop.events}
    identities |= {"a:" + event["anonymous_id"] for event in shop.events if event["anonymous_id"]}
    products, categories = (
        {row[name] for rows in (shop.events, shop.versions) for row in rows} for name in ("product_id", "category")
    )
    return {
        "int_features__customer_spine": sorted({customer_of(each) for each in identities | {"u:nobody"}}),
        "int_features__product_spine": sorted({"NOTHING", *products} - {None}),
        "int_features__category_spine": sorted({"nothing", *categories} - {None}),
        "int_features__session_spine": sorted({"nothing", *(event["session_id"] for event in shop.events)} - {None}),
    }


def check(mart: Mart, rows: list[dict[str, Any]], shop: Shop, moments: list[datetime], asked: list[str]) -> list[str]:
    """The values of a mart that differ from plain Python."""
    plainly = importlib.import_module(f"plainly.{mart.module}").features
    by_moment: dict[datetime, dict[Any, dict[str, Any]]] = {moment: {} for moment in moments}
    for row in rows:
        key = tuple(row[name] for name in mart.key)
        by_moment[row["as_of"]][key if len(key) > 1 else key[0]] = row
    assert len(rows) == sum(map(len, by_moment.values())), f"{mart.name}: a key comes twice"
    wrong = []
    for moment in moments:
        expected = plainly(shop, moment, asked)
        found = by_moment[moment]
        wrong += [f"{mart.name} {key} at {moment}: no row" for key in expected.keys() - found.keys()]
        wrong += [f"{mart.name} {key} at {moment}: a row too many" for key in found.keys() - expected.keys()]
        for key in expected.keys() & found.keys():
            row, features = found[key], expected[key]
            assert set(features) == set(row) - {*mart.key, "as_of", "built_from"}, (mart.name, set(features) ^ set(row))
            wrong += [f"{mart.name} {key} at {moment}: {line}" for line in unequal(row, features)]
    return wrong


def check_one_shop(homes: Homes, seed: int, count: int) -> None:
    random = Random(seed)
    shop_home, shop = built_shop(homes, random)
    apart = wrong_sessions(shop_home)
    assert not apart, f"seed {seed}: {len(apart)} events in other sessions, such as\n" + "\n".join(apart[:20])
    moments, asked = telling_moments(random, shop.events, count), everything(shop)
    wrong = wrong_features(shop_home, shop, moments, asked)
    assert not wrong, f"seed {seed}: {len(wrong)} values differ, such as\n" + "\n".join(wrong[:20])
    at_once = Shop(
        [
            {**event, "available_at": event["event_at"], "known_from": event["event_at"]}
            for event in shop.events
            if event["known_to"] is None
        ],
        shop.versions,
    )
    wrong = wrong_features(shop_home, at_once, moments[::6], asked, trust_event_time=True)
    assert not wrong, f"seed {seed}, by event time: {len(wrong)} values differ, such as\n" + "\n".join(wrong[:20])


def wrong_features(
    shop_home: Settings,
    shop: Shop,
    moments: list[datetime],
    asked: dict[str, list[str]],
    *,
    trust_event_time: bool = False,
) -> list[str]:
    """The values of all marts that differ from plain Python."""
    models = compiled(shop_home, arguments=["--vars", json.dumps(VARS)])
    with answers(shop_home, models, trust_event_time=trust_event_time) as opened:
        for spine, key in SPINES.items():
            questions = {
                key: pa.array([each for _ in moments for each in asked[spine]]),
                "as_of": pa.array([moment for moment in moments for _ in asked[spine]], pa.timestamp("us")),
            }
            opened.con.register(f"asked_{key}", pa.table(questions))
        spines = {key: f"from asked_{key}" for key in SPINES.values()}
        tables = opened.ask([mart.name for mart in MARTS], spines)
        return [
            line
            for mart in MARTS
            for line in check(mart, rows_of(opened.con, tables[mart.name]), shop, moments, asked[mart.spine])
        ]


LONG = settings(phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)


@pytest.mark.long
@settings(LONG, max_examples=1)
@given(seed=st.integers(0, 2**32 - 1))
def test_features_are_what_the_clean_events_say(homes: Homes, seed: int) -> None:
    check_one_shop(homes, seed, 120)


@pytest.mark.soak
@settings(LONG, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_features_are_what_the_clean_events_say_in_many_shops(homes: Homes, seed: int) -> None:
    check_one_shop(homes, seed, 300)
