"""Withdrawn consent takes effect at the next build, and so does consent that is given again."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

import duckdb
import pytest
from small_shops import Homes, Row, differences, land

from orchestration.config.settings import Settings

START = datetime(2025, 3, 3, 10)
FEATURES = ("int_features__user", "int_features__user_item", "int_features__user_category", "int_features__session")


def customer(user: str) -> str:
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, "finegrain"), f"u:{user}"))


def said(user: str, consent: str | None, minutes: int, line: int) -> Row:
    at = START + timedelta(minutes=minutes)
    fields = {"customer_id": user, "updated_at": at.isoformat(), "consent": consent}
    return Row("customers", "shop", f"customers.csv#{line}", at, fields, origin="database")


def viewed(user: str | None, visitor: str, minutes: int, line: int) -> Row:
    at = START + timedelta(minutes=minutes)
    fields = {
        "event_type": "view_item", "event_at": at.isoformat(), "user_id": user, "anonymous_id": visitor, "product_id": "p1", "category": "Shoes",
    }  # fmt: skip
    return Row("events", "web", f"events.csv#{line}", at, fields)


def who(where: Settings) -> dict[str, set[str]]:
    """The customers of whom there are features, by model; of sessions their identities."""
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        return {
            name: {
                str(found)
                for (found,) in con.execute(
                    f"select distinct {'identity' if name.endswith('session') else 'customer_id'} from {name}"
                ).fetchall()
            }
            for name in FEATURES
        }


@pytest.mark.long
def test_it_takes_effect_at_the_next_build(homes: Homes) -> None:
    where, at_once = homes.make("consent"), homes.make("consent-once")
    parts = [
        [said("ann", None, 0, 1), said("bob", "granted", 0, 2), viewed(None, "v1", 1, 1), viewed("ann", "v1", 2, 2),
         viewed("bob", "v2", 90, 3), viewed(None, "v1", 91, 4)],
        [said("ann", "withdrawn", 100, 3)],
        [viewed("ann", "v1", 101, 5)],
        [said("ann", "granted", 103, 4)],
        [said("bob", "no", 104, 5)],
    ]  # fmt: skip
    ann, bob = customer("ann"), customer("bob")
    expectations = [
        ({ann, bob}, {"u:ann", "u:bob", "a:v1"}),
        ({bob}, {"u:bob"}),  # neither the visit before the login
        ({bob}, {"u:bob"}),
        ({ann, bob}, {"u:ann", "u:bob"}),  # the second visit has a login by now
        ({ann}, {"u:ann"}),
    ]
    for part, expected in zip(parts, expectations, strict=True):
        land(where, part)
        homes.run(where)
        found = who(where)
        assert found.pop("int_features__session") == expected[1]
        assert all(customers == expected[0] for customers in found.values()), found
    # What was sold and seen stays counted.
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        assert con.execute("select count(*) from marts.fct_events").fetchall() == [(5,)]
    land(at_once, [row for part in parts for row in part])
    homes.run(at_once, "--full-refresh")
    assert differences(where, at_once) == []
