"""A new user's shop, from its sources to the published marts: they match the events that really happened
(tests/trial_shop.py).

The sources are connected like a new user would: one mapping, `finegrain ingest`, `build` and `publish`. Each
expectation is a test of its own. The truth comes from the generator; its sums are computed here in plain Python."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from servers import HOST, Postgres
from services import new_database
from trial_shop import CHANNELS, DAY, END, MINUTE, Order, Person, TrialShop, Truth, Visit, day_of

from orchestration.config.settings import Settings

pytestmark = pytest.mark.long

REPORTING = "EUR"
# dbt reads every .yml below tests/ as its own.
MAPPING = Path(__file__).with_name("trial_shop_mapping.txt")
AS_OF = END.replace(tzinfo=None)
#: Sums consist of money that was converted and rounded line by line.
HALF_A_CENT = Decimal("0.005")

Marts = duckdb.DuckDBPyConnection


@dataclass(frozen=True)
class Trial:
    """The published marts, and the truth."""

    truth: Truth
    marts: Marts

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.marts.execute(sql).fetchall()

    def by_key(self, sql: str) -> dict[Any, Any]:
        """The second column by the first, which is unique."""
        rows = self.rows(sql)
        found = dict(rows)
        assert len(found) == len(rows), "a key comes twice"
        return found


def connect(shop: TrialShop, folder: Path, url: str) -> None:
    """The shop's systems: its files in a folder, its accounts in a database."""
    shop.write(folder)
    with psycopg.connect(url, autocommit=True) as con:
        con.execute(
            "create table customers (id bigint primary key, name text, country text, birth_year int, "
            "created_at timestamptz, updated_at timestamptz)"
        )
        con.cursor().executemany("insert into customers values (%s, %s, %s, %s, %s, %s)", shop.accounts())


def finegrain(*arguments: str, where: Settings, url: str) -> None:
    """Run a command as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *arguments],
        env={**os.environ, **where.environment(), "SHOP_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"finegrain {' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, extensions: Path, postgres: Postgres) -> Iterator[Trial]:
    access = postgres.environment()
    url = f"postgresql://{access['PGUSER']}:{access['PGPASSWORD']}@{HOST}:{postgres.port}/{new_database(postgres)}"
    shop, folder = TrialShop(), tmp_path_factory.mktemp("trial")
    connect(shop, folder, url)
    where = Settings.below(tmp_path_factory.mktemp("home"), extensions)
    mapping = shutil.copyfile(MAPPING, tmp_path_factory.mktemp("mapping") / "shop.yml")
    finegrain("ingest", str(mapping), "--data", str(folder), where=where, url=url)
    finegrain("build", "--as-of", AS_OF.isoformat() + "Z", where=where, url=url)
    finegrain("publish", where=where, url=url)
    with duckdb.connect(str(where.published / "finegrain.duckdb"), read_only=True) as marts:
        yield Trial(shop.truth, marts)


# --- money ---------------------------------------------------------------------------------------------------------


def rates() -> tuple[list[date], list[dict[str, Decimal]]]:
    """Days with rates, and units of each currency for one euro on these days."""
    with (Path(__file__).parent.parent / "seeds" / "fx_rates.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return (
        [date.fromisoformat(row.pop("rate_date")) for row in rows],
        [{name.upper(): Decimal(value) for name, value in row.items() if value} | {"EUR": Decimal(1)} for row in rows],
    )


RATE_DAYS, RATES = rates()


def worth(amount: Decimal, currency: str, moment: datetime) -> Decimal:
    """An amount in the reporting currency, by the last rate up to the day of its time in UTC."""
    rate = RATES[bisect_right(RATE_DAYS, moment.astimezone(UTC).date()) - 1]
    return amount * rate[REPORTING] / rate[currency]


def of_order(order: Order, amount: Decimal) -> Decimal:
    return worth(amount, order.currency, order.placed_at)


def revenue(order: Order) -> Decimal:
    return of_order(order, order.gross - order.discount) if order.is_sale else Decimal(0)


def refunds(order: Order) -> Decimal:
    """Refunds, at the rates of the days of the refunds. An order that is not a sale has no revenue to refund."""
    if not order.is_sale:
        return Decimal(0)
    return sum((worth(refund.amount, order.currency, refund.at) for refund in order.refunds), Decimal(0))


#: The columns of fct_orders, with their expected values.
OF_AN_ORDER: dict[str, Callable[[Order], Any]] = {
    "is_sale": lambda order: order.is_sale,
    "currency": lambda order: order.currency,
    "lines": lambda order: len(order.lines),
    "units": lambda order: order.units if order.is_sale else 0,
    "gross": lambda order: of_order(order, order.gross),
    "discount": lambda order: of_order(order, order.discount),
    "discount_code": lambda order: order.code,
    "revenue": revenue,
    "tax": lambda order: of_order(order, order.tax),
    "is_tax_included": lambda order: order.tax_included,
    "shipping": lambda order: of_order(order, order.shipping),
    "total": lambda order: of_order(order, order.total) if order.is_sale else Decimal(0),
    "refunds": refunds,
    "net_revenue": lambda order: revenue(order) - refunds(order),
    "ordered_on": lambda order: day_of(order.placed_at),
}


def unequal(found: dict[Any, Any], expected: dict[Any, Any], within: Decimal = HALF_A_CENT) -> list[str]:
    """Differences: of money by more than half a cent, of anything else at all."""

    def agree(one: Any, other: Any) -> bool:
        if isinstance(one, Decimal) and isinstance(other, Decimal | int):
            return abs(one - other) <= within
        return bool(one == other)

    return [
        f"{key}: {found.get(key)!r} but truly {expected.get(key)!r}"
        for key in sorted(found.keys() | expected.keys(), key=str)
        if key not in found or key not in expected or not agree(found[key], expected[key])
    ]


def sums(pairs: Iterable[tuple[Any, Decimal | int]]) -> dict[Any, Decimal]:
    found: dict[Any, Decimal] = defaultdict(Decimal)
    for key, value in pairs:
        found[key] += value
    return dict(found)


@pytest.mark.parametrize("column", OF_AN_ORDER)
def test_every_order_to_the_cent(trial: Trial, column: str) -> None:
    found = trial.by_key(f"select order_id, {column} from fct_orders")
    assert not unequal(found, {order.order_id: OF_AN_ORDER[column](order) for order in trial.truth.orders})


def test_totals_of_the_shop_equal_those_of_the_marts(trial: Trial) -> None:
    """The total is from the shop's own system; none of them differs."""
    assert trial.rows("select count(*) from fct_orders where total_differs or source_total is null") == [(0,)]


def test_every_line_of_an_order(trial: Trial) -> None:
    found = trial.by_key("select line_id, revenue from fct_order_items")
    assert not unequal(
        found,
        {
            line.line_id: of_order(order, line.gross - line.discount) if order.is_sale else Decimal(0)
            for order in trial.truth.orders
            for line in order.lines
        },
    )


def test_refunds_lie_on_the_lines_that_they_are_for(trial: Trial) -> None:
    """For an order that was refunded without naming its lines, on all lines together."""
    found = trial.by_key("select line_id, refunds from fct_order_items")
    expected = {line.line_id: Decimal(0) for order in trial.truth.orders for line in order.lines}
    as_a_whole = [
        order for order in trial.truth.sales if order.refunds and not any(refund.items for refund in order.refunds)
    ]
    for order in trial.truth.sales:
        for refund in order.refunds:
            for line, _, amount, tax in refund.items:
                paid_back = amount if order.tax_included else amount + tax
                expected[line.line_id] += worth(paid_back, order.currency, refund.at)
    for order in as_a_whole:
        [first, *others] = [line.line_id for line in order.lines]
        found[first] += sum((found.pop(other) for other in others), Decimal(0))
        expected[first] = refunds(order)
        for other in others:
            del expected[other]
    assert len(as_a_whole) > 10
    assert not unequal(found, expected)


#: Sums over a day or a month hold many roundings of a ten-thousandth.
CENT = Decimal("0.01")


@pytest.mark.parametrize("unit", ["day", "month"])
def test_revenue_of_days_and_months_in_the_shops_time_zone(trial: Trial, unit: str) -> None:
    found = trial.by_key(f"select date_trunc('{unit}', ordered_on)::date, sum(revenue) from fct_orders group by 1")
    assert not unequal(found, sums((start_of(unit, order), revenue(order)) for order in trial.truth.orders), CENT)


@pytest.mark.parametrize("unit", ["day", "month"])
def test_net_revenue_of_days_and_months(trial: Trial, unit: str) -> None:
    """A refund counts on the day of its order."""
    found = trial.by_key(f"select date_trunc('{unit}', ordered_on)::date, sum(net_revenue) from fct_orders group by 1")
    expected = sums((start_of(unit, order), revenue(order) - refunds(order)) for order in trial.truth.orders)
    assert not unequal(found, expected, CENT)


def test_units_of_days(trial: Trial) -> None:
    found = trial.by_key("select ordered_on, sum(units) from fct_orders group by 1")
    expected = sums((day_of(order.placed_at), order.units if order.is_sale else 0) for order in trial.truth.orders)
    assert not unequal(found, expected)


def start_of(unit: str, order: Order) -> date:
    day = day_of(order.placed_at)
    return day if unit == "day" else day.replace(day=1)


def test_units_bought_of_each_article(trial: Trial) -> None:
    found = trial.by_key("select product_id, sum(quantity) from fct_order_items where is_sale group by 1")
    expected = sums((line.article.sku, line.quantity) for order in trial.truth.sales for line in order.lines)
    assert not unequal(found, expected)


# --- what was set aside --------------------------------------------------------------------------------------------


def test_only_the_broken_rows_are_quarantined(trial: Trial) -> None:
    found = Counter(dict(trial.rows("select reasons[1], count(*) from quarantined_events group by 1")))
    assert found == trial.truth.planted


def test_nothing_is_lost_and_nothing_counts_twice(trial: Trial) -> None:
    """As many web events from Segment as happened; each second delivery is a duplicate."""
    web = sum(len(visit.moments) for visit in trial.truth.visits)
    purchases = sum(visit.has("purchase") for visit in trial.truth.visits)
    # A hit of an order in the shop's database is a duplicate.
    assert trial.rows(
        "select count(distinct (anonymous_id, event_at, event_type)) from fct_events where origin = 'web'"
    ) == [(web - purchases,)]


def test_no_ordinary_value_is_an_outlier(trial: Trial) -> None:
    assert trial.rows(
        "select count(*) filter (price_is_outlier), count(*) filter (quantity_is_outlier), "
        "count(*) filter (price is distinct from price_treated and not price_was_missing) from fct_events"
    ) == [(0, 0, 0)]


# --- visits --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sessions_of_visits(trial: Trial) -> dict[Visit, set[str]]:
    """The sessions of each visit's web events except the purchase, by visitor and time."""
    by_event: dict[tuple[str, datetime], set[str]] = defaultdict(set)
    for visitor, moment, session in trial.rows(
        "select anonymous_id, event_at, session_id from fct_events where origin = 'web' and anonymous_id is not null"
    ):
        by_event[visitor, moment].add(session)
    return {
        visit: {
            session
            for moment, kind in visit.moments
            if kind != "purchase"
            for session in by_event[visit.device.anonymous_id, plain(moment)]
        }
        for visit in trial.truth.visits
    }


def plain(moment: datetime) -> datetime:
    """In UTC without a time zone, like times in the marts."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def test_a_visit_is_one_session(sessions_of_visits: dict[Visit, set[str]]) -> None:
    """Also if the visitor logs in during the visit, and if one person is on two devices at once."""
    wrong = [
        (visit.device.anonymous_id, plain(visit.started_at))
        for visit, found in sessions_of_visits.items()
        if len(found) != 1
    ]
    assert not wrong, (len(wrong), wrong[:3])


def test_a_session_is_one_visit(sessions_of_visits: dict[Visit, set[str]]) -> None:
    visits = Counter(session for found in sessions_of_visits.values() for session in found)
    assert [session for session, count in visits.items() if count > 1] == []


SESSIONS_WITHOUT_WEB_EVENTS = (
    "select count(*) from (select bool_or(origin = 'web') as has_web, bool_or(event_type like 'refund%') as has_refund, "
    "bool_or(order_key is not null) as has_order from fct_events where session_id is not null group by session_id) where "
)


def test_number_of_sessions(trial: Trial) -> None:
    assert trial.rows(SESSIONS_WITHOUT_WEB_EVENTS + "has_web") == [(len(trial.truth.visits),)]


def test_a_refund_is_not_a_session(trial: Trial) -> None:
    """The shop pays money back; nobody visits its pages for that."""
    assert trial.rows(SESSIONS_WITHOUT_WEB_EVENTS + "not has_web and has_refund and not has_order") == [(0,)]


def test_only_orders_by_telephone_are_sessions_without_a_web_event(trial: Trial) -> None:
    by_telephone = sum(order.visit is None for order in trial.truth.sales)
    assert trial.rows(SESSIONS_WITHOUT_WEB_EVENTS + "not has_web and has_order") == [(by_telephone,)]


@pytest.mark.parametrize(
    "buyer",
    [
        "an account, with a web event",
        "an account, with a server's event",
        "an account, with neither",
        "a guest whom the order names",
        "a guest whom only the web event names",
    ],
)
def test_an_order_belongs_to_its_visit(trial: Trial, sessions_of_visits: dict[Visit, set[str]], buyer: str) -> None:
    """However it can be found: by the visitor, by the account and the time, or by the order's id in a web event."""
    found = trial.by_key("select order_id, session_id from fct_orders")
    orders = [order for order in trial.truth.orders if order.visit is not None and known_by(order) == buyer]
    wrong = [order.order_id for order in orders if {found[order.order_id]} != sessions_of_visits[order.visit]]
    assert len(orders) > 10
    assert not wrong, (len(wrong), len(orders), wrong[:3])


def known_by(order: Order) -> str:
    """How the visit of an order can be identified."""
    if not order.person.login:
        return "a guest whom the order names" if order.names_visitor else "a guest whom only the web event names"
    if order.has_server_event:
        return "an account, with a server's event"
    return "an account, with a web event" if order.has_web_event else "an account, with neither"


#: Steps of the funnel: the column of fct_sessions, and whether a visit reached the step.
STEPS: dict[str, Callable[[Visit], bool]] = {
    "views": lambda visit: visit.has("view_item"),
    "searches": lambda visit: visit.has("search"),
    "cart_adds": lambda visit: visit.has("add_to_cart"),
    "checkouts": lambda visit: visit.has("begin_checkout"),
    "orders": lambda visit: visit.order is not None and visit.order.is_sale,
}


@pytest.mark.parametrize("step", STEPS)
def test_funnel(trial: Trial, step: str) -> None:
    """Sessions that reached each step; orders by telephone have a session, too."""
    by_telephone = sum(order.visit is None for order in trial.truth.sales) if step == "orders" else 0
    expected = sum(STEPS[step](visit) for visit in trial.truth.visits) + by_telephone
    assert trial.rows(f"select count(*) from fct_sessions where {step} > 0") == [(expected,)]


def test_number_of_events_by_kind_of_each_visit(trial: Trial, sessions_of_visits: dict[Visit, set[str]]) -> None:
    found = {
        session: counts
        for session, *counts in trial.rows("select session_id, views, searches, cart_adds from fct_sessions")
    }
    for visit, [session] in sessions_of_visits.items():
        kinds = Counter(kind for _, kind in visit.moments)
        assert found[session] == [kinds["view_item"], kinds["search"], kinds["add_to_cart"]]


def of_each_session(trial: Trial, column: str, visits: dict[Visit, set[str]]) -> list[tuple[Any, Visit]]:
    """A column of the sessions of visits. Visits whose events are not in one session are left to another test."""
    found = trial.by_key(f"select session_id, {column} from fct_sessions")
    return [(found[next(iter(sessions))], visit) for visit, sessions in visits.items() if len(sessions) == 1]


def test_device_of_each_visit(trial: Trial, sessions_of_visits: dict[Visit, set[str]]) -> None:
    wrong = Counter(
        (visit.device.kind, said)
        for said, visit in of_each_session(trial, "device", sessions_of_visits)
        if said != visit.device.kind
    )
    assert not wrong


@pytest.mark.parametrize("changed_via", ["nothing", "referrer", "tags", "tags and campaign", "gclid"])
def test_channel_of_each_visit(trial: Trial, sessions_of_visits: dict[Visit, set[str]], changed_via: str) -> None:
    visits = {visit: sessions for visit, sessions in sessions_of_visits.items() if visit.changed_via == changed_via}
    wrong = Counter(
        (visit.channel, said)
        for said, visit in of_each_session(trial, "entry_channel", visits)
        if said != visit.channel
    )
    assert len(visits) > 100
    assert not wrong


def test_sessions_by_channel(trial: Trial) -> None:
    """Except direct ones: orders by telephone cannot be distinguished from them."""
    found = trial.by_key("select entry_channel, count(*) from fct_sessions where entry_channel <> 'direct' group by 1")
    visits = Counter(visit.channel for visit in trial.truth.visits)
    assert set(CHANNELS) == set(visits)
    assert not unequal(found, {channel: count for channel, count in visits.items() if channel != "direct"})


def test_day_of_each_visit(trial: Trial, sessions_of_visits: dict[Visit, set[str]]) -> None:
    wrong = [
        (said, plain(visit.started_at))
        for said, visit in of_each_session(trial, "started_on", sessions_of_visits)
        if said != day_of(visit.started_at)
    ]
    assert not wrong


# --- people --------------------------------------------------------------------------------------------------------


def customers(trial: Trial) -> dict[str, str]:
    """The customer of each login."""
    return trial.by_key("select user_id, customer_id from dim_customers where user_id is not null")


def test_every_account_is_a_customer(trial: Trial) -> None:
    assert set(customers(trial)) == {person.login for person in trial.truth.persons if person.login}
    countries = trial.by_key("select user_id, country from dim_customers where has_profile")
    assert not unequal(countries, {each.login: each.country for each in trial.truth.persons if each.login})


def test_events_of_a_device_are_those_of_its_first_login(trial: Trial) -> None:
    """Events before any login belong to the first login on the device, or to an unknown visitor."""
    of_login = customers(trial)
    found = trial.rows(
        "select anonymous_id, customer_id, identity from fct_events where identity like 'a:%' and origin = 'web' group by all"
    )
    wrong = [
        (device, customer)
        for device, customer, _ in found
        if device in trial.truth.owners and customer != of_login[trial.truth.owners[device]]
    ]
    assert not wrong
    unknown = {device: customer for device, customer, _ in found if device not in trial.truth.owners}
    assert len(set(unknown.values())) == len(unknown)
    assert not set(unknown.values()) & set(of_login.values())


def test_events_with_a_login_are_those_of_the_login(trial: Trial) -> None:
    """Also for the second person on a device."""
    of_login = customers(trial)
    found = trial.rows("select distinct user_id, customer_id from fct_events where user_id is not null")
    assert len(found) > 100
    assert [(login, customer) for login, customer in found if customer != of_login[login]] == []


def test_the_buyer_of_each_order(trial: Trial) -> None:
    of_login = customers(trial)
    found = trial.by_key("select order_id, customer_id from fct_orders")
    assert not unequal(
        {order.order_id: found[order.order_id] for order in trial.truth.orders if order.person.login},
        {order.order_id: of_login[order.person.login] for order in trial.truth.orders if order.person.login},
    )


# --- features ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """One person's visits and orders, as of the build."""

    person: Person
    visits: list[Visit]
    orders: list[Order]

    def recent(self, days: int) -> tuple[list[Visit], list[Order]]:
        """Those of the whole UTC days before the build's day, and of that day."""
        first = datetime(AS_OF.year, AS_OF.month, AS_OF.day, tzinfo=UTC) - days * DAY
        return (
            [visit for visit in self.visits if visit.ended_at >= first],
            [order for order in self.orders if order.placed_at >= first],
        )


@pytest.fixture(scope="module")
def histories(trial: Trial) -> dict[str, History]:
    """By login, of people who share no device."""
    visits: dict[str, list[Visit]] = defaultdict(list)
    orders: dict[str, list[Order]] = defaultdict(list)
    for visit in trial.truth.visits:
        # A device belongs to a person once there was a login on it.
        owner = trial.truth.owners.get(visit.device.anonymous_id)
        if owner:
            visits[owner].append(visit)
    for order in trial.truth.orders:
        if order.person.login:
            orders[order.person.login].append(order)
    return {
        person.login: History(person, visits[person.login], orders[person.login])
        for person in trial.truth.persons
        if person.login and not person.shares_device and (visits[person.login] or orders[person.login])
    }


def abandoned(history: History, days: int) -> list[Visit]:
    """Visits that put something in the cart and ended without an order, at least half an hour ago."""
    visits, _ = history.recent(days)
    return [
        visit
        for visit in visits
        if visit.has("add_to_cart") and visit.order is None and plain(visit.ended_at) < AS_OF - 30 * MINUTE
    ]


def has_only_clear_sessions(history: History) -> bool:
    """Orders by telephone are sessions of their own in some definitions; orders that are not sales do not count for the
    cart."""
    return all(order.visit is not None and order.is_sale for order in history.orders)


FEATURES: dict[str, Callable[[History], Any]] = {
    "orders_30d": lambda history: sum(order.is_sale for order in history.recent(30)[1]),
    "orders_lifetime": lambda history: sum(order.is_sale for order in history.orders),
    "units_30d": lambda history: sum(order.units for order in history.recent(30)[1] if order.is_sale),
    "revenue_90d": lambda history: sum((revenue(order) for order in history.recent(90)[1]), Decimal(0)),
    "sessions_30d": lambda history: len(history.recent(30)[0]),
    "views_30d": lambda history: sum(
        kind == "view_item" for visit in history.recent(30)[0] for _, kind in visit.moments
    ),
    "abandoned_carts_30d": lambda history: len(abandoned(history, 30)),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_features_of_customers(trial: Trial, histories: dict[str, History], feature: str) -> None:
    of_login = customers(trial)
    found = trial.by_key(f"select customer_id, {feature} from user_features")
    asked = {
        login: history
        for login, history in histories.items()
        if feature not in ("sessions_30d", "abandoned_carts_30d") or has_only_clear_sessions(history)
    }
    assert len(asked) > 300
    assert not unequal(
        {login: found.get(of_login[login]) for login in asked},
        {login: FEATURES[feature](history) for login, history in asked.items()},
    )


def test_value_of_abandoned_carts(trial: Trial, histories: dict[str, History]) -> None:
    of_login = customers(trial)
    found = trial.by_key("select customer_id, abandoned_cart_value_30d from user_features")
    asked = {login: each for login, each in histories.items() if has_only_clear_sessions(each)}
    expected = {
        login: sum(
            (worth(visit.put_in_cart, each.person.currency, visit.started_at) for visit in abandoned(each, 30)),
            Decimal(0),
        )
        for login, each in asked.items()
    }
    assert sum(value > 0 for value in expected.values()) > 50
    assert not unequal({login: found[of_login[login]] for login in asked}, expected)
