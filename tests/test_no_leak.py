"""Nothing leaks: what is known as of a time is what a build has of the rows that had arrived by then, and nothing that arrives later moves it.

A shop is built once with all of its rows, and once for each of a few times with the rows that had arrived by then alone. The clean events of
the latter, with their sessions, are the versions that the former has as of that time; and so are all features. Then the other rows arrive
there, too, and nothing moves.

What arrives later are late and repeated events, logins that link visitors, orders that the database reports after the web, and later headers of
orders; but no header after which an order that the web has seen, too, breaks a rule (docs/decisions/0019-clean-events-have-a-validity.md).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plainly import Shop
from small_shops import BY_MODELS, FIRST_DAY, VARS, Homes, Row, ShopMaker, at, land
from test_as_of import LONG, MARTS, SPINES, clean_events, everything, rows_of, unequal

from orchestration.config.settings import Settings
from orchestration.warehouse.compiled import answers, compiled

#: What a version of an event knows of builds, or of itself.
OWN = ("row_id", "built_in", "known_from", "known_to", "is_last_version", "arrival_day", "until_day")
#: The models that `Answers` reads, without features and marts.
STATE = ("--exclude", "path:models/intermediate/features", "path:models/marts")


MINUTE = timedelta(minutes=1)


class Visits:
    """Visits of few people close in time, whose events arrive late, early or in order; some name no visitor, or a session of the source, and some end with
    an order that the web and the shop's database report, one after the other. The database's order changes: it is paid or cancelled, and another's or of another time."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.rows: list[Row] = []

    def visits(self, count: int) -> list[Row]:
        for number in range(count):
            self._visit(number)
        for number in range(count // 10):
            self._bot(number)
        return self.rows

    def _add(self, table: str, moment: datetime, fields: dict[str, Any], **more: Any) -> None:
        delays = (0, 0, 0, 0, 0, 3, 15, 40, 70, 1440, 4000)
        arrived = moment + self.random.choice(delays) * MINUTE + self.random.choice((0, 1)) * MINUTE / 60
        position = f"visits {table} {len(self.rows)}"
        self.rows.append(Row(table, more.pop("source", "web"), position, arrived, fields, **more))

    def _visit(self, number: int) -> None:
        random = self.random
        visitor, user = random.choice(("V1", "V2", "V3")), random.choice(("N1", "N2"))
        session = random.choice((None, None, f"visit {number}", f"visit {number % 3}"))
        moment = at(FIRST_DAY + timedelta(days=random.randrange(3)), 3600 * random.choice((9, 10, 23)))
        is_logged_in = random.random() < 0.3
        for _ in range(random.randrange(2, 9)):
            is_logged_in |= random.random() < 0.2
            names_visitor = not is_logged_in or random.random() < 0.8
            self._event(
                moment,
                visitor if names_visitor else None,
                user if is_logged_in else None,
                session,
                event_type=random.choice(("view_item", "view_item", "add_to_cart", "search")),
            )
            moment += random.choice((1, 5, 12, 20, 29, 31)) * MINUTE
        if random.random() < 0.6:
            self._order(f"N{number}", moment, visitor, user, session, is_logged_in)

    def _bot(self, number: int) -> None:
        """Views at even intervals, or of many products, some of which arrive late."""
        moment = at(FIRST_DAY + timedelta(days=self.random.randrange(3)), 3600 * self.random.choice((2, 20)))
        pauses = self.random.choice(((3,), (1, 9, 31)))
        for _ in range(10):
            self._event(moment, f"B{number}", None, None, event_type="view_item")
            moment += self.random.choice(pauses) * MINUTE

    def _event(
        self, moment: datetime, visitor: str | None, user: str | None, session: str | None, **more: str | None
    ) -> None:
        fields = {
            "event_at": moment.isoformat(),
            "anonymous_id": visitor,
            "user_id": user,
            "session_id": session,
            "product_id": self.random.choice(("P0", "P1", "P2")),
            "price": self.random.choice(("10", "12", "30", None)),
            **more,
        }
        self._add("events", moment, fields)

    def _order(
        self, order: str, moment: datetime, visitor: str, user: str, session: str | None, is_logged_in: bool
    ) -> None:
        product = self.random.choice(("P0", "P1", "P2"))
        is_on_the_web = self.random.random() < 0.8
        if is_on_the_web:
            buyer = user if is_logged_in else None
            hit = {"event_type": "purchase", "order_id": order, "quantity": "1", "product_id": product}
            self._event(moment, visitor, buyer, session, **hit)
        if self.random.random() < 0.8:
            header = {
                "order_id": order,
                "user_id": user,
                "anonymous_id": self.random.choice((None, None, visitor)),
                "session_id": self.random.choice((None, None, session)),
                "created_at": (moment + self.random.choice((0, 0, 1)) * MINUTE).isoformat(),
                "status": self.random.choice(("new", "new", "on hold")),
                "updated_at": moment.isoformat(),
            }
            line = {"order_id": order, "product_id": product, "quantity": "1", "price": "11", "line_id": "1"}
            self._add("orders", moment, header, source="shop", origin="database")
            self._add("order_items", moment, line, source="shop", origin="database")
            if self.random.random() < 0.3:
                self._add("order_items", moment, line, source="till", origin="database")
            if self.random.random() < 0.3:
                refund = {"order_id": order, "refund_id": order, "product_id": product, "amount": "11", "quantity": "1"}
                refunded_at = moment + self.random.choice((1, 70, 1440)) * MINUTE
                self._add(
                    "refunds",
                    refunded_at,
                    {**refund, "refunded_at": refunded_at.isoformat()},
                    source="shop",
                    origin="database",
                )
            while self.random.random() < 0.5:
                # It may arrive before a header that is older, and then says nothing.
                moment += self.random.choice((1, 10, 60, 1440, 2000)) * MINUTE
                header = {**header, **self._change(header, not is_on_the_web), "updated_at": moment.isoformat()}
                self._add("orders", moment, header, source="shop", origin="database")

    def _change(self, header: dict[str, Any], may_break_rules: bool) -> dict[str, Any]:
        created_at = datetime.fromisoformat(header["created_at"])
        changes: list[dict[str, Any]] = [
            *[{"status": status} for status in ("paid", "cancelled", "cancelled", "on hold", "teleported")],
            {"user_id": self.random.choice(("N1", "N2"))},
            {"user_id": None, "anonymous_id": self.random.choice(("V1", "V2", "V3"))},
            {"session_id": self.random.choice((None, "visit 0", "visit 1"))},
            {"created_at": (created_at + self.random.choice((-45, -5, 1)) * MINUTE).isoformat()},
            {"tax": self.random.choice(("none", "1"))},
        ]
        if may_break_rules:
            changes += 2 * [{"paid_at": self.random.choice((None, (created_at - MINUTE).isoformat()))}]
        return self.random.choice(changes)


def shop_of(random: Random, events: int, visits: int) -> list[Row]:
    """The rows of a shop. Of an order with several headers, of which one may break rules, the web has seen nothing."""
    rows = ShopMaker(random).shop(events, orders=10)
    headers = Counter(order_of(row) for row in rows if row.table == "orders")
    several = {order for order, count in headers.items() if order and count > 1}
    return [row for row in rows if row.table != "events" or order_of(row) not in several] + Visits(random).visits(
        visits
    )


def order_of(row: Row) -> str | None:
    order = row.fields.get("order_id")
    return order.strip() if order else None


def built(homes: Homes, name: str, rows: Iterable[Row], *selection: str) -> Settings:
    home = homes.make(name)
    with duckdb.connect(str(home.warehouse)) as con:
        con.execute(BY_MODELS)
    land(home, rows)
    homes.run(home, *selection)
    return home


def events_at(home: Settings, moment: datetime) -> set[tuple[str, ...]]:
    """The clean events that are known as of a time, by the versions that a warehouse has."""
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        query = f"""select * exclude ({", ".join(OWN)}) from int_cleaning__events
            where known_from <= $at and coalesce(known_to, '9999-12-31') > $at order by all"""
        return {tuple(map(repr, row)) for row in con.execute(query, {"at": moment}).fetchall()}


def features_at(home: Settings, moments: list[datetime], asked: dict[str, list[str]]) -> dict[Any, dict[str, Any]]:
    """The rows of all feature marts as of these times, by mart and key."""
    models = compiled(home, arguments=["--vars", json.dumps(VARS)])
    with answers(home, models) as opened:
        for spine, key in SPINES.items():
            asks = {
                key: pa.array([each for _ in moments for each in asked[spine]]),
                "as_of": pa.array([moment for moment in moments for _ in asked[spine]], pa.timestamp("us")),
            }
            opened.con.register(f"asked_{key}", pa.table(asks))
        tables = opened.ask([mart.name for mart in MARTS], {key: f"from asked_{key}" for key in SPINES.values()})
        found = {}
        for mart in MARTS:
            for row in rows_of(opened.con, tables[mart.name]):
                row.pop("built_from")
                found[(mart.name, row["as_of"], *(row[name] for name in mart.key))] = row
        return found


def apart(one: dict[Any, dict[str, Any]], other: dict[Any, dict[str, Any]]) -> list[str]:
    """The features that differ."""
    found = [f"{key}: only in one" for key in one.keys() ^ other.keys()]
    return found + [f"{key}: {line}" for key in one.keys() & other.keys() for line in unequal(one[key], other[key])]


def moments_of(random: Random, rows: list[Row], count: int) -> list[datetime]:
    """Times of arrival, after the first rows and before the last ones."""
    arrivals = sorted({row.available_at for row in rows if row.available_at.date() >= FIRST_DAY})
    return sorted(random.sample(arrivals[len(arrivals) // 10 : -len(arrivals) // 4], k=count))


def check_one_shop(homes: Homes, seed: int, count: int, events: int = 120, visits: int = 40) -> None:
    random = Random(seed)
    rows = shop_of(random, events, visits)
    full = built(homes, "all", random.sample(rows, k=len(rows)), *STATE)
    moments = moments_of(random, rows, count)
    with duckdb.connect(str(full.warehouse), read_only=True) as con:
        asked = everything(Shop(clean_events(con), rows_of(con, "int_reference__product_versions")))
    at_all = features_at(full, moments, asked)
    for moment in moments:
        known = built(homes, "known", [row for row in rows if row.available_at <= moment], *STATE)
        place = f"seed {seed}, {moment}"
        ours, theirs = events_at(full, moment), events_at(known, moment)
        assert ours == theirs, f"{place}: {sorted(ours - theirs)[:3]} but {sorted(theirs - ours)[:3]}"
        before = {key: row for key, row in at_all.items() if key[1] == moment}
        wrong = apart(before, features_at(known, [moment], asked))
        assert not wrong, f"{place}: {len(wrong)} values differ, such as\n" + "\n".join(wrong[:20])
    land(known, [row for row in rows if row.available_at > moment])
    homes.run(known, *STATE)
    wrong = apart(before, features_at(known, [moment], asked))
    assert not wrong, f"{place}: {len(wrong)} values moved, such as\n" + "\n".join(wrong[:20])


@settings(LONG, max_examples=1)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_arrives_later_moves_nothing(homes: Homes, seed: int) -> None:
    check_one_shop(homes, seed, 1)


@pytest.mark.soak
@settings(LONG, max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_arrives_later_moves_nothing_in_many_shops(homes: Homes, seed: int) -> None:
    check_one_shop(homes, seed, 4, events=200, visits=80)
