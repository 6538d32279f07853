"""Live features: after a stream is drained, every vector of the online store equals the same features of a build, value for value."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import signal
import sqlite3
import time
import urllib.request
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from live_shop import MARTS, Arrivals, LiveShop
from servers import free_ports

from orchestration.config.project import PROJECT
from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError, Unavailable
from orchestration.ingest.load import load
from orchestration.live.plan import Plan, plan
from orchestration.store.online import OnlineStore, Vector
from orchestration.warehouse.build import run_dbt
from orchestration.warehouse.compiled import Compiled, compiled


@pytest.fixture
def shop(built_shop: Settings, tmp_path: Path) -> LiveShop:
    return LiveShop.copy_of(built_shop, tmp_path / "home")


def assert_equal(shop: LiveShop, at_least: int, without: str | None = None) -> None:
    """Build, and compare each vector of the store. There are some of each mart but `without`."""
    shop.build()
    found = shop.parity()
    assert found.is_equal, [
        (name, each.extra, each.examples[:2]) for name, each in found.marts.items() if each.examples or each.extra
    ]
    assert found.marts.keys() == {*MARTS}
    assert not any(each.later for each in found.marts.values())
    assert all(each.compared >= at_least for name, each in found.marts.items() if name != without), found


def test_vectors_equal_a_build(shop: LiveShop) -> None:
    lines = shop.add(150)
    first = shop.live()
    # Started again, it goes on where it was.
    lines += shop.add(250)
    second = shop.live(batch=7)
    assert first["rows"] >= 150 and second["rows"] >= 250, (first, second)
    assert second["identities"] / second["batches"] <= 7
    # And on the state of a new build. What came before it is not computed again.
    shop.build()
    lines += shop.add(80)
    third = shop.live()
    assert 80 <= third["rows"] < 100, third
    assert_equal(shop, at_least=20)
    # Every customer of whom an event was kept has a vector that knows of it.
    rows = ask(
        shop,
        "select l.customer_id, max(e.event_at) from main.int_cleaning__events as e inner join main.int_identity__links as l "
        "on e.identity = l.identity and l.known_to is null where e.available_at >= $begin group by 1",
        begin=shop.begin,
    )
    assert len(rows) > 20
    with OnlineStore(shop.where) as store:
        for (_, newest), vector in zip(rows, store.read("user_features", [key for key, _ in rows]), strict=True):
            assert vector is not None and vector.as_of > newest
            assert vector.values["hours_since_session"] * 3600 <= (vector.as_of - newest).total_seconds() + 0.01
    assert len({line.get("user_id") for line in lines}) > 5


@pytest.mark.soak
def test_outliers_by_hour_of_the_week(shop: LiveShop) -> None:
    """Values are held against those of the same hour of the week alone, which no rule does as delivered."""
    with duckdb.connect(str(shop.where.warehouse)) as con:
        con.execute(
            """delete from outlier_rules where column_name in ('price', 'quantity');
            insert into outlier_rules values ('price', 'iqr', 'log', 'hour_of_week', 0.1, 2, 2, 1, 'cap'),
                ('quantity', 'iqr', 'log', 'hour_of_week', 0.1, 2, 2, 1, 'cap')"""
        )

    def run(*arguments: str) -> None:
        # Not a build, which would read the rules as delivered again.
        done = run_dbt(["run", *arguments], where=shop.where)
        assert not done.failed, [(node.name, node.message) for node in done.failed]

    run("--full-refresh", "--select", "int_cleaning__numeric_histogram+")
    # At an hour that people shop at: there are no bounds at night.
    shop.begin += timedelta(hours=10)
    shop.add(300)
    assert shop.live()["rows"] >= 300
    run()
    found = shop.parity()
    assert found.is_equal, [(name, each.examples[:2]) for name, each in found.marts.items() if each.examples]
    assert all(each.compared >= 10 for each in found.marts.values()), found
    [(by_hour, others, treated)] = ask(
        shop,
        """select count(*) filter (b.group_by = 'hour_of_week'), count(*) filter (b.group_by <> 'hour_of_week'),
            (select count(*) from main.int_cleaning__events as e where e.available_at >= $begin and e.price_is_outlier and e.price < e.price_raw)
        from main.int_cleaning__outlier_bounds as b where b.low is not null or b.high is not null""",
        begin=shop.begin,
    )
    assert by_hour > 0 == others and treated > 5, (by_hour, others, treated)


@pytest.mark.long
def test_orders_of_the_database(shop: LiveShop) -> None:
    """An order of the shop's database replaces its web hit; a later header changes what its lines count as; a refund comes after them."""

    def at(minutes: int) -> str:
        return f"{(shop.begin + timedelta(minutes=minutes)).isoformat()}Z"

    users = shop.users[:6]
    hits = [
        {
            "event_id": f"hit {number}",
            "event_type": "purchase",
            "event_at": at(30 + number),
            "received_at": at(30 + number),
            "user_id": user,
            "product_id": shop.products[number],
            "price": 10 + number,
            "quantity": 1,
            "currency": "EUR",
            "order_id": f"order {number}",
        }
        for number, user in enumerate(users)
    ]
    shop.stream(*hits)
    assert shop.live()["identities"] == len(users)

    def header(number: int, status: str, updated: int) -> dict[str, Any]:
        return {
            "order_id": f"order {number}",
            "user_id": users[number],
            "status": status,
            "currency": "EUR",
            "created_at": at(30 + number),
            "updated_at": at(updated),
        }

    def line(number: int, product: int) -> dict[str, Any]:
        return {
            "order_id": f"order {number}",
            "line_id": str(product),
            "product_id": shop.products[product],
            "quantity": 2,
            "price": 7.5,
            "currency": "EUR",
            "updated_at": at(60),
        }

    shop.load(
        orders=[header(number, "paid", 60) for number in range(4)],
        order_items=[line(number, product) for number in range(5) for product in (number, number + 7)],
    )
    assert shop.live()["rows"] >= 8
    # The header of an order that has lines already; another one is cancelled; and one has money given back.
    shop.load(
        orders=[header(4, "paid", 90), header(0, "cancelled", 90)],
        refunds=[
            {
                "refund_id": "r1",
                "order_id": "order 1",
                "user_id": users[1],
                "product_id": shop.products[1],
                "quantity": 1,
                "amount": 7.5,
                "currency": "EUR",
                "refunded_at": at(91),
                "updated_at": at(91),
            }
        ],
    )
    shop.live()
    assert_equal(shop, at_least=1)
    found = vectors_of(shop, users)
    units = [vector.values["units_24h"] if vector else None for vector in found]
    # Of a cancelled order nothing counts, not even its hit; two lines of two; and the hit, where the database knows no such order.
    assert units == [0, 4, 4, 4, 4, 1], units
    assert found[1] is not None and found[1].values["refunds_24h"] > 0  # in the reporting currency
    # What that build has as of today is superseded: the cancelled order is paid after all, one is cancelled, and one was another's.
    shop.load(
        orders=[header(0, "paid", 120), header(3, "cancelled", 120), header(2, "paid", 120) | {"user_id": users[3]}],
        order_items=[line(3, 9) | {"updated_at": at(120)}],
    )
    shop.live()
    assert_equal(shop, at_least=1)
    units = [vector.values["units_24h"] if vector else None for vector in vectors_of(shop, users)]
    assert units == [4, 4, 0, 4, 4, 1], units


def vectors_of(shop: LiveShop, users: list[str]) -> list[Vector | None]:
    """The vectors of the customers of these logins."""
    asked = ask(
        shop,
        "select distinct user_id, customer_id from main.int_cleaning__events as e inner join main.int_identity__links as l "
        "on e.identity = l.identity where user_id in (select unnest($users))",
        users=users,
    )
    customers = dict(asked)
    with OnlineStore(shop.where) as store:
        return store.read("user_features", [customers[user] for user in users])


@pytest.mark.long
def test_customers_and_products_that_come_later(shop: LiveShop) -> None:
    """Events that waited for their customer or product count once it is known, without a build; a new version of a product counts for what comes after it."""

    def at(minutes: int) -> str:
        return f"{(shop.begin + timedelta(minutes=minutes)).isoformat()}Z"

    def view(number: int, user: str, product: str, minutes: int) -> dict[str, Any]:
        return {
            "event_id": f"view {number}",
            "event_type": "view_item",
            "event_at": at(minutes),
            "received_at": at(minutes),
            "user_id": user,
            "product_id": product,
            "price": 10,
            "currency": "EUR",
        }

    def product(name: str, brand: str, minutes: int) -> dict[str, Any]:
        given = {"title": name, "brand": brand, "category": "Shoes", "price": 10, "currency": "EUR"}
        return {"product_id": name, **given, "updated_at": at(minutes)}

    def seen() -> dict[str, int]:
        [ann, user] = [
            vector.values["views_24h"] if vector else 0 for vector in store.read("user_features", [new, known])
        ]
        brands = store.read("user_brand_features", [[known, brand] for brand in ("old brand", "new brand")])
        return {
            "new user": ann,
            "user": user,
            **{name: vector.values["views_7d"] if vector else 0 for name, vector in zip("on", brands, strict=True)},
        }

    new = str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, "finegrain"), "u:new user"))
    [(known, user)] = ask(
        shop,
        "select customer_id, substr(identity, 3) from main.int_identity__links where identity like 'u:%' and known_to is null order by all limit 1",
    )
    shop.stream(
        view(0, user, shop.products[0], 30), view(1, user, "new product", 31), view(2, "new user", shop.products[0], 32)
    )
    shop.live()
    with OnlineStore(shop.where) as store:
        assert seen() == {"new user": 0, "user": 1, "o": 0, "n": 0}
        # They come, and are seen at the next event: until then, it is not their time yet.
        shop.load(
            customers=[{"customer_id": " new user", "country": "DE", "created_at": at(33), "updated_at": at(34)}],
            products=[product("new product", "old brand", 34)],
        )
        shop.live()
        assert seen() == {"new user": 0, "user": 1, "o": 0, "n": 0}
        shop.stream(view(3, shop.users[7], shop.products[0], 35))
        shop.live()
        assert seen() == {"new user": 1, "user": 2, "o": 1, "n": 0}
        shop.load(products=[product("new product", "new brand", 36)])
        shop.stream(view(4, user, "new product", 37))
        shop.live()
        assert seen() == {"new user": 1, "user": 3, "o": 1, "n": 1}
    assert_equal(shop, at_least=1)


@pytest.mark.long
def test_an_event_of_a_clock_that_is_ahead(shop: LiveShop) -> None:
    """It counts once its moment has come, also if the process was restarted meanwhile; and nothing else is computed again for it."""

    def come(number: int, happened: int, received: int) -> dict[str, Any]:
        at = {
            name: f"{(shop.begin + timedelta(minutes=minutes)).isoformat()}Z"
            for name, minutes in (("event_at", happened), ("received_at", received))
        }
        event = {
            "event_id": f"view {number}",
            "event_type": "view_item",
            "product_id": shop.products[0],
            "price": 10,
            "currency": "EUR",
        }
        shop.stream({**event, "user_id": users[number], **at})
        done = shop.live()
        written = json.loads((shop.where.home / "live" / "progress.json").read_text())
        assert written["snapshot"] == done["snapshot"]
        return done

    def views() -> list[int]:
        return [vector.values["views_24h"] if vector else 0 for vector in vectors_of(shop, users[:3])]

    quiet = "select user_id from main.int_cleaning__events where user_id is not null group by 1 having max(event_at) < $begin - interval 2 day order by 1"
    found = ask(shop, quiet, begin=shop.begin)
    users = [user for [user] in found]
    assert come(0, happened=34, received=30)["identities"] == 1
    assert views() == [0, 0, 0]
    # Its moment has not come.
    assert come(1, happened=31, received=31)["identities"] == 2
    assert views() == [0, 1, 0]
    assert come(2, happened=35, received=35)["identities"] == 2
    assert views() == [1, 1, 1]
    # By now it is answered.
    assert come(3, happened=36, received=36)["identities"] == 1
    assert_equal(shop, at_least=1)


@pytest.mark.long
def test_builds_while_it_runs(shop: LiveShop) -> None:
    """A running process goes on through builds, and takes over the state of each."""
    shop.add(60)
    [port] = free_ports(1)
    process = shop.start("--metrics-port", str(port))
    try:
        wait_for(lambda: vectors_since(shop) > 0, process)
        for _ in range(2):
            shop.build()
            shop.add(60)
            wait_for(lambda: vectors_since(shop) > 0, process)
            # By now it has seen the build; its state is the build's.
            [(built_from,)] = ask(shop, "select built_from from main.int_identity__build")
            wait_for(
                lambda built_from=built_from: f"finegrain_live_built_from {built_from:.1f}" in metrics(port), process
            )
            shop.add(30)
            wait_for(lambda: vectors_since(shop) > 0, process)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    shop.live()
    assert_equal(shop, at_least=10)


def kill_again_and_again(shop: LiveShop, kills: int) -> None:
    """Kill the process at random moments of its life while events come; what is left to do is done in the end, and every vector is right."""
    pick = random.Random(kills)
    for _ in range(kills):
        shop.add(pick.randrange(12))
        process = shop.start()
        deadline = time.monotonic() + pick.choice([0.5, 2, 4, 8]) * (0.5 + pick.random())
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.3)
            shop.add(pick.randrange(3))
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
    done = shop.live()
    assert done["waiting"] == 0
    assert_equal(shop, at_least=10)
    written = ask(
        shop,
        "select l.customer_id, max(e.event_at) from main.int_cleaning__events as e inner join main.int_identity__links as l "
        "on e.identity = l.identity and l.known_to is null where e.available_at >= $begin group by 1",
        begin=shop.begin,
    )
    with OnlineStore(shop.where) as store:
        for (_, newest), vector in zip(written, store.read("user_features", [key for key, _ in written]), strict=True):
            assert vector is not None and vector.as_of > newest


@pytest.mark.long
def test_kills(shop: LiveShop) -> None:
    kill_again_and_again(shop, 50)


@pytest.mark.soak
def test_many_kills(shop: LiveShop) -> None:
    kill_again_and_again(shop, 300)


def ask(shop: LiveShop, query: str, **given: Any) -> list[tuple[Any, ...]]:
    """Query the warehouse."""
    with duckdb.connect(str(shop.where.warehouse), read_only=True) as con:
        con.execute("set timezone = 'UTC'")
        return con.execute(query, given or None).fetchall()


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as found:
        return str(found.read().decode())


def wait_for(found: Any, process: Any, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found():
                return
        except Exception:  # the store is not there yet
            pass
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)


def vectors_since(shop: LiveShop) -> int:
    """How many vectors are as of the arrival of the last events, or later. (The very last may be one that does not count.)"""
    newest = shop.begin + timedelta(minutes=20, seconds=(shop.made - 10) * 7)
    with sqlite3.connect(shop.where.home / "store" / "online.sqlite") as con:
        [(count,)] = con.execute(
            "select count(*) from user_features where as_of >= ?", [int(newest.replace(tzinfo=UTC).timestamp() * 1e6)]
        ).fetchall()
    return int(count)


def test_a_store_that_is_away(
    shop: LiveShop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the store does not answer, identities wait; all vectors are written once it does."""
    shop.add(40)
    failures = iter([True] * 3)
    write = OnlineStore.write_from

    def failing(self: OnlineStore, *given: Any, **named: Any) -> int:
        if next(failures, False):
            raise Unavailable("the store does not answer")
        return write(self, *given, **named)

    monkeypatch.setattr(OnlineStore, "write_from", failing)
    done = shop.live()
    assert done["rows"] >= 40 and done["waiting"] == 0 and done["trouble"] is None
    with OnlineStore(shop.where) as store:
        vectors = store.read("user_features", [key for [key] in shop.keys("user_features")])
    assert len(vectors) >= 3 and all(vector and vector.as_of > shop.begin for vector in vectors)


@pytest.fixture(scope="module")
def models(built_shop: Settings) -> Compiled:
    return compiled(built_shop)


def marked(models: Compiled, **kinds: str | None) -> Plan:
    """The plan with other marks."""
    changed = {name: dataclasses.replace(models.models[name], live=kind) for name, kind in kinds.items()}
    return plan(dataclasses.replace(models, models={**models.models, **changed}))


def test_marks_are_checked(models: Compiled) -> None:
    assert set(plan(models).marts) == {*MARTS}
    # It reads tiles of all products.
    with pytest.raises(
        FinegrainError, match=r"^item_features: it is marked live: slice, and reads .*all customers; take the mark off"
    ):
        marked(models, item_features="slice")
    # Without its own mark, what was computed on the slice would be read as it was at the last build.
    with pytest.raises(
        FinegrainError, match="reads int_tiles__identity_day, which is computed from the events of all customers"
    ):
        marked(models, int_tiles__identity_day=None)
    with pytest.raises(FinegrainError, match="no feature mart is marked as live"):
        marked(models, **dict.fromkeys(MARTS))


def test_a_failed_build_is_refused(shop: LiveShop) -> None:
    with duckdb.connect(str(shop.where.warehouse)) as con:
        con.execute("update main.builds set status = 'failed'")
    with pytest.raises(FinegrainError, match=r"the last build of .* did not pass; run `finegrain build` first"):
        shop.live()


def test_it_waits_for_a_build(shop: LiveShop) -> None:
    """With --wait, it loads and answers to Prometheus until a build has passed, and then goes on."""
    passed = shop.where.warehouse.rename(shop.where.home / "passed.duckdb")
    failed = Path(shutil.copy(passed, shop.where.home / "failed.duckdb"))
    with duckdb.connect(str(failed)) as con:
        con.execute("update main.builds set status = 'failed'")
    shop.add(60)
    [port] = free_ports(1)
    process = shop.start("--wait", "--metrics-port", str(port))
    try:
        wait_for(lambda: re.search(r"finegrain_stream_rows_total(\{.*\})? [1-9]", metrics(port)), process)
        failed.rename(shop.where.warehouse)
        time.sleep(6)
        assert process.poll() is None and "finegrain_live_up 0.0" in metrics(port)
    finally:
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and time.monotonic() - began < 10
    assert err.count("live: waits for a build that has passed: ") == 1, err

    process = shop.start("--wait", "--metrics-port", str(port))
    try:
        wait_for(lambda: "finegrain_live_up 0.0" in metrics(port), process)
        passed.rename(shop.where.warehouse)
        wait_for(lambda: vectors_since(shop) > 0, process)
        assert "finegrain_live_up 1.0" in metrics(port)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.mark.soak
@pytest.mark.parametrize("events", [2_000_000])
def test_a_day(built_shop: Settings, tmp_path: Path, events: int) -> None:
    """A simulated shop of two days: a build of the first, and the second live in parts, of all sources, with a build in between."""
    arrivals = Arrivals(tmp_path, events, Settings.below(tmp_path / "home", built_shop.extensions))
    shop = arrivals.shop
    arrivals.load(shop.begin)
    shop.build()
    parts = 8
    for part in range(1, parts + 1):
        arrivals.load(shop.begin + timedelta(days=part / parts))
        assert shop.live_from_the_lake()["rows"] > 0
        if part == parts // 2:
            shop.build()
    assert_equal(shop, at_least=events // 200)


@pytest.mark.soak
def test_the_last_day_of_the_merchandise_store(built_shop: Settings, shared_data: Path, tmp_path: Path) -> None:
    hits = shared_data / "merchandise_store_2016-08_09.parquet"
    shop = LiveShop(
        Settings.below(tmp_path / "home", built_shop.extensions), [], [], [], datetime(2016, 9, 30), random.Random(1)
    )
    mapping = tmp_path / "store.yml"
    text = (PROJECT / "examples" / "merchandise_store.yml").read_text()
    mapping.write_text(text.replace(f"../shared/data/{hits.name}", "part_*.parquet"))
    ends = [datetime(2016, 9, 30), *(datetime(2016, 9, 30, hour) for hour in (6, 12, 15, 18, 21)), datetime(2017, 1, 1)]
    for number, (begin, end) in enumerate(zip([datetime(1, 1, 1), *ends], ends, strict=False)):
        duckdb.execute(
            f"copy (select * from '{hits}' where event_ts >= '{begin}+00' and event_ts < '{end}+00') to '{tmp_path}/part_{number}.parquet'"
        )
        load(mapping, data=tmp_path, where=shop.where)
        if number:
            assert shop.live_from_the_lake()["rows"] > 100
        else:  # a quarter of its events name no category: that of the product is imputed
            run_dbt(["seed"], where=shop.where)
            with duckdb.connect(str(shop.where.warehouse)) as con:
                con.execute("update imputation_rules set action = 'impute' where column_name = 'category'")
        if number in (0, 3):
            shop.build()
    assert_equal(shop, at_least=200, without="user_brand_features")  # it says no brand
