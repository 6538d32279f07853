"""The simulated shop, checked from its files alone: the errors that DuckDB finds in them must be those that the truth
lists as planted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.errors import FinegrainError
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.simulation.files import duplicate_numbers
from orchestration.simulation.incidents import INCIDENTS, NEEDED_DAYS
from orchestration.simulation.simulate import Summary, simulate
from orchestration.simulation.words import ASSISTANT_AGENTS, CATEGORIES, KIND

#: Two weeks around 30 March 2025, when German clocks go forward.
SPRING = {"events": 60_000, "seed": 11, "days": 14, "start": date(2025, 3, 20)}
DUPLICATES = ("exact_duplicate", "near_duplicate", "redelivered_event", "repeated_purchase", "order_twin")
NO_COPY = f"position not in (select position from truth where kind in {DUPLICATES})"


class Shop:
    """A simulated shop's files as DuckDB tables: web, app (item rows), store, the database's, and truth."""

    def __init__(self, folder: Path, summary: Summary) -> None:
        self.folder, self.summary = folder, summary
        self.con = duckdb.connect()
        self.con.execute("set timezone = 'UTC'")
        truth = [str(folder / "truth" / f"{kind}.parquet") for kind in summary.truth]
        self.con.execute(_LOAD.replace("{folder}", str(folder)).replace("{truth}", str(truth)))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.con.execute(query).fetchall()

    def one(self, query: str) -> Any:
        return self.rows(query)[0][0]


# Every line of the stream is read as text first: the lines that do not parse must be those that were planted.
_LOAD = """
create table lines as
    select row_number() over () as n, line
    from read_csv('{folder}/stream/events.jsonl', columns = {line: 'varchar'}, header = false, delim = '\x01',
        quote = '', escape = '', auto_detect = false, parallel = false);
create table web as
    select *, case when unit = 'ms' then make_timestamp(try_cast(raw_time as bigint) * 1000)
        else try_cast(try_cast(raw_time as timestamptz) as timestamp) end as t
    from (
        select 'events.jsonl#' || n as position, line, json ->> 'event_id' as event_id, json ->> 'type' as type,
            json ->> 'ts' as raw_time,
            case when json_type(json, '$.ts') in ('UBIGINT', 'BIGINT') then 'ms' end as unit,
            (json ->> 'received_at')::timestamptz::timestamp as received, json ->> 'user' as user_id,
            json ->> 'visitor' as visitor, json ->> 'session' as session, json ->> 'sku' as sku,
                json ->> 'category' as category,
            (json ->> 'qty')::bigint as quantity, (json ->> 'price')::double as price, json ->> 'currency' as currency,
            json ->> 'order' as order_id, json ->> 'ua' as ua, json ->> 'country' as country,
                json ->> 'consent' as consent
        from (select n, line, case when json_valid(line) then line::json end as json from lines)
        where json_type(json) = 'OBJECT'
    );
create table app_events as
    select *, make_timestamp(event_timestamp) as t
    from (
        select parse_filename(filename) || '#' || (1 + file_row_number) as position, *
        from read_parquet('{folder}/ga4/*.parquet', filename = true, file_row_number = true)
    );
create table app as
    select position, event_name as type, t, user_id, user_pseudo_id as visitor, ecommerce.transaction_id as order_id,
        list_filter(event_params, lambda p: p.key = 'currency')[1].value.string_value as currency,
        list_filter(event_params, lambda p: p.key = 'ga_session_id')[1].value.int_value as session,
        item.item_id as sku, item.price as price, item.quantity as quantity, item.item_category as category
    from app_events, (select unnest(case when len(items) = 0 then [null] else items end) as item);
create table store as
    select 'visits.csv#' || row_number() over () as position, *, try_cast(local_time as timestamp) as local
    from read_csv('{folder}/store/visits.csv', all_varchar = true, parallel = false);
create table customers as select 'customers.csv#' || row_number() over () as position, *
    from '{folder}/database/customers.csv';
create table products as
    select 'products.csv#' || row_number() over () as position, *
    from read_csv('{folder}/database/products.csv', types = {'category': 'varchar'}, parallel = false);
create table orders as select * from '{folder}/database/orders.parquet';
create table order_items as select 'order_items.parquet#' || row_number() over () as position, *
    from '{folder}/database/order_items.parquet';
create table refunds as select 'refunds.parquet#' || row_number() over () as position, *
    from '{folder}/database/refunds.parquet';
create table truth as select * from read_parquet({truth});
create table rates as select * from '{folder}/truth/rates.parquet';
create table promotions as select * from '{folder}/truth/promotions.parquet';
create table identity_links as select * from '{folder}/truth/identity_links.parquet';
create table visits as select * from '{folder}/truth/visits.parquet';
create macro planted(what) as table select * from truth where kind = what;
create table newest as select * from orders qualify row_number() over (partition by order_id
    order by updated_at desc) = 1;
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("spring")
    return Shop(folder, simulate(folder, **SPRING))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------------------------------------------- the whole


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        simulate(tmp_path / name, events=8_000, seed=seed, days=20)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    differing = {name for name in a if a[name] != c.get(name)}
    assert {"stream/events.jsonl", "store/visits.csv", "database/orders.parquet", "truth/bot.parquet"} <= differing


def test_blocks_do_not_show_in_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A block per hour.
    monkeypatch.setattr("orchestration.simulation.simulate.BLOCK", 1)
    shop = Shop(tmp_path, simulate(tmp_path, events=15_000, seed=5, days=9, start=date(2025, 3, 25)))
    assert shop.one("select count(*) from (select received < lag(received) over (order by n) as back from web "
                    "join lines using (line)) where back") == 0  # fmt: skip
    _check_sessions(shop)
    _check_keys(shop)


def test_writes_over_its_own_files_only(tmp_path: Path) -> None:
    simulate(tmp_path / "shop", events=1000, days=10)
    simulate(tmp_path / "shop", events=1000, days=3)
    assert len(list((tmp_path / "shop" / "ga4").iterdir())) <= 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FinegrainError, match="not from a simulation"):
        simulate(tmp_path / "other", events=1000)


def test_incidents_change_what_their_source_delivers_on_their_day_alone(tmp_path: Path) -> None:
    for name, incidents in (("plain", False), ("ill", True)):
        simulate(tmp_path / name, events=20_000, seed=3, days=NEEDED_DAYS, incidents=incidents)
    plain, ill = digests(tmp_path / "plain"), digests(tmp_path / "ill")
    assert set(ill) - set(plain) == {"truth/incidents.parquet"}
    con = duckdb.connect()
    con.execute("set timezone = 'UTC'")
    planted = {
        incident: (source, day)
        for incident, source, day in con.execute(
            f"select incident, source, day from '{tmp_path}/ill/truth/incidents.parquet'"
        ).fetchall()
    }
    assert list(planted) == [incident.name for incident in INCIDENTS]
    # The app's files are one a day.
    days = {day: f"ga4/events_{day:%Y%m%d}.parquet" for source, day in planted.values() if source == "shop_app"}
    assert {
        name for name in plain if name.startswith(("ga4", "store", "database")) and ill.get(name) != plain[name]
    } == set(days.values())
    assert days[planted["source_stops"][1]] not in ill
    # Lines of the web shop that could be read, by the day they arrived.
    for name in ("plain", "ill"):
        con.execute(
            f"""create table {name} as
            select line, cast(line ->> 'received_at' as timestamp)::date as day, line ->> 'type' as type, line ->> 'price' as price,
                line ->> 'currency' as currency, line ->> 'device' as device, line ->> 'user' as buyer,
                case when try_cast(line ->> 'ts' as bigint) is null then try_cast(line ->> 'ts' as timestamptz)::timestamp end as t
            from read_csv('{tmp_path}/{name}/stream/events.jsonl', columns = {{line: 'varchar'}}, header = false, delim = '\x01',
                quote = '', escape = '', auto_detect = false) where json_valid(line) and line like '{{%'"""
        )
    con.execute("create view apart as (from ill except all from plain) union all (from plain except all from ill)")
    web = {incident: day for incident, (source, day) in planted.items() if source == "shop_web"}
    assert {day for (day,) in con.execute("select distinct day from apart").fetchall()} == set(web.values())

    def both(query: str, incident: str) -> list[Any]:
        return [
            con.execute(f"select {query} from {name} where day = ?", [web[incident]]).fetchall()[0]
            for name in ("plain", "ill")
        ]

    (before,), (after,) = both("count(*)", "source_doubles")
    assert after == 2 * before
    (before, _), (after, sek) = both(
        "count(*) filter (currency = 'EUR'), count(*) filter (currency = 'SEK')", "currency_flips"
    )
    assert after == 0 < before < sek
    (before, others), (after, still) = both(
        "count(price) filter (device = 'mobile'), count(price) filter (device <> 'mobile')", "null_for_device"
    )
    assert after == 0 < before and others == still
    (before,), (after,) = both("max(epoch(t))", "clock_shift")
    assert before - after == 3600
    (before,), (after,) = both("count(distinct buyer)", "one_customer")
    assert after == 1 < before
    cents = f"select sum(i.price) from (select unnest(items) as i from '{tmp_path}/{{}}/{days[planted['prices_in_cents'][1]]}')"
    [(before,)], [(after,)] = (con.execute(cents.format(name)).fetchall() for name in ("plain", "ill"))
    assert after == pytest.approx(100 * before)


def test_incidents_need_a_history(tmp_path: Path) -> None:
    with pytest.raises(FinegrainError, match=f"days is {NEEDED_DAYS - 1}.*--days {NEEDED_DAYS}"):
        simulate(tmp_path, events=1000, days=NEEDED_DAYS - 1, incidents=True)


def test_wholesale_changes_quantities_alone(tmp_path: Path) -> None:
    shops = []
    for name, wholesale in (("plain", False), ("boxes", True)):
        folder = tmp_path / name
        shops.append(Shop(folder, simulate(folder, events=40_000, seed=3, days=28, wholesale=wholesale)))
    plain, boxes = shops
    before, after = digests(plain.folder), digests(boxes.folder)
    assert before.keys() == after.keys()
    of_quantities = ("bad_quantity", "missing_value", "quantity_outlier", "seasonal_outlier")
    assert {name for name in before if name.startswith("truth") and before[name] != after[name]} <= {
        f"truth/{kind}.parquet" for kind in of_quantities
    }
    assert not plain.rows("from planted('seasonal_outlier')")
    columns = "position, event_id, type, t, user_id, sku, price, order_id"
    boxes.con.register("other_web", plain.con.execute("from web").to_arrow_table())
    for one, other in (("web", "other_web"), ("other_web", "web")):
        assert not boxes.rows(f"select {columns} from {one} except all select {columns} from {other}")
    # Quantities of boxes in the hours of resellers and, as planted, at others; nowhere else.
    in_hours = "isodow(w.t) <= 5 and hour(w.t) between 6 and 9"
    rows = boxes.rows(
        f"""select {in_hours}, p.position is not null, count(*), count(*) filter (w.quantity >= 24 and w.quantity % 24 = 0), bool_and(p.true_value * 24 = w.quantity)
        from web as w left join planted('seasonal_outlier') as p using (position)
        where w.t is not null and w.type = 'cart_add' and w.quantity > 0
            and w.position not in (select position from truth where kind in ('quantity_outlier', 'bad_quantity', 'future_event'))
        group by all"""
    )
    counts = {(within, planted): (n, whole, right) for within, planted, n, whole, right in rows}
    assert (True, True) not in counts
    n, whole, right = counts[False, True]
    assert n == whole > 5 and right
    n, whole, _ = counts[True, False]
    assert 0.6 * n < whole < 0.9 * n
    n, whole, _ = counts[False, False]
    # Visits that began in these hours go on after them.
    assert whole < 0.02 * n


@pytest.mark.parametrize("wrong", [{"events": 10}, {"days": 1}, {"days": 5000}, {"seed": -1}])
def test_impossible_requests_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(FinegrainError, match=next(iter(wrong))):
        simulate(tmp_path, **{"events": 1000, **wrong})


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = simulate(tmp_path, events=2000, days=5, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (summary.events, summary.events)


def test_size_and_mix(shop: Shop) -> None:
    rows = shop.summary.rows
    assert shop.summary.events == pytest.approx(SPRING["events"], rel=0.06)
    assert rows["stream"] / shop.summary.events == pytest.approx(0.65, abs=0.04)
    assert rows["ga4_items"] / shop.summary.events == pytest.approx(0.30, abs=0.04)
    assert rows["store"] / shop.summary.events == pytest.approx(0.05, abs=0.02)
    assert rows["stream"] == shop.one("select count(*) from lines")
    assert rows["ga4_items"] == shop.one("select count(*) from app")
    assert rows["ga4_events"] == shop.one("select count(*) from app_events")
    assert rows["store"] == shop.one("select count(*) from store")
    for table in ("customers", "products", "orders", "order_items", "refunds"):
        assert rows[table] == shop.one(f"select count(*) from {table}")
    assert json.loads((shop.folder / "simulation.json").read_text())["rows"] == rows
    assert {kind: n for kind, n in shop.summary.truth.items() if n} == dict(
        shop.rows("select kind, count(*) from truth group by kind")
    )


def test_every_kind_is_planted(shop: Shop) -> None:
    # Assistants come to larger shops only, and seasonal outliers to those with wholesale hours.
    absent = {"agent", "assistant_referral", "seasonal_outlier"}
    assert {kind for kind, count in shop.summary.truth.items() if count == 0} == absent


# -------------------------------------------------------------------------------------------------- the truth


def test_positions_exist_and_kinds_do_not_meet(shop: Shop) -> None:
    shop.con.execute(
        """create or replace temp table there as
        select 'events' as raw_table, 'shop_web' as source, 'events.jsonl#' || n as position from lines
        union all select 'events', 'shop_store', position from store
        union all select 'ga4_events', 'shop_app', position from app_events
        union all select 'customers', 'shop_database', position from customers
        union all select 'products', 'shop_database', position from products
        union all select 'order_items', 'shop_database', position from order_items
        union all select 'refunds', 'shop_database', position from refunds"""
    )
    assert shop.one("select count(*) from truth anti join there using (raw_table, source, position)") == 0
    # Gaps in the catalogue or the customer list are per column; otherwise a row has at most one fault.
    assert (
        shop.rows(
            """select raw_table, position, list(distinct kind) from truth where raw_table not in ('products',
                'customers')
        group by all having count(distinct kind) > 1"""
        )
        == []
    )


def test_exact_duplicates_have_an_earlier_twin(shop: Shop) -> None:
    bare = r"regexp_replace(line, '\"received_at\":\"[^\"]*\"', '')"
    assert (
        shop.one(
            f"""select count(*) from planted('exact_duplicate') join web using (position)
        where not exists (select 1 from web as w
            where {bare.replace("line", "w.line")} = {bare.replace("line", "web.line")}
            and w.received < web.received)"""
        )
        == 0
    )
    # In the app and the store both copies arrive at one moment; the one whose position is the smaller text survives.
    for table, key in (("store", "visit_id"), ("app_events", "(event_timestamp, user_pseudo_id, event_name)")):
        assert shop.rows(
            f"""select count(*) filter (planted <> (position <> survivor)), count(*) filter (planted) > 0,
                max(copies) from (
                select position, min(position) over same as survivor, count(*) over same as copies,
                    position in (select position from planted('exact_duplicate')) as planted
                from {table} window same as (partition by {key}))"""
        ) == [(0, True, 2)]


def test_of_two_rows_that_arrive_at_once_the_smaller_text_survives() -> None:
    number = np.array([8, 9, 10, 11, 99, 100, 101])
    copy = np.array([False, True, True, False, False, True, True])
    rows = {"kind": np.where(copy, KIND["exact_duplicate"], 0)}
    # 'x#10' sorts before 'x#9' and 'x#100' before 'x#99': there it is the first of the two that is left out.
    assert duplicate_numbers(rows, number).tolist() == [8, 9, 9, 11, 99, 99, 101]


def test_near_duplicates_and_redeliveries_have_an_earlier_twin(shop: Shop) -> None:
    near = shop.one(
        """select count(*) from planted('near_duplicate') join web as b using (position) where exists (
            select 1 from web as a where a.visitor = b.visitor and a.t = b.t and a.type = b.type
                and a.sku is not distinct from b.sku
                and a.user_id is not distinct from b.user_id and a.event_id <> b.event_id and a.ua <> b.ua
                    and a.received < b.received)"""
    )
    again = shop.one(
        """select count(*) from planted('redelivered_event') join web as b using (position) where exists (
            select 1 from web as a where a.event_id = b.event_id and b.t - a.t between interval 1 millisecond
                and interval 40 milliseconds
                and a.received < b.received)"""
    )
    assert (near, again) == (shop.summary.truth["near_duplicate"], shop.summary.truth["redelivered_event"])


def test_orders_agree_between_web_and_database(shop: Shop) -> None:
    shop.con.execute(
        """create or replace temp table hits as
        select position, order_id, sku, quantity, price, user_id, visitor, session::varchar as session, currency,
            t from web where type = 'buy'
        union all select position, order_id, sku, quantity, price, user_id, visitor, session::varchar, currency,
            t from app
        where type = 'purchase'"""
    )
    twins = shop.rows(
        """select count(*), count(*) filter (i.quantity = h.quantity and i.price = h.price and i.currency = h.currency
                and o.user_id is not distinct from h.user_id and o.anonymous_id = h.visitor and o.session_id = h.session
                and o.created_at - date_trunc('millisecond', h.t) between interval 0 second and interval 2 second
                and i.updated_at - o.created_at between interval 1 minute and interval 60 minutes)
        from planted('order_twin') join hits as h using (position)
        join order_items as i on i.order_id = h.order_id and i.product_id = h.sku
            join newest as o on o.order_id = h.order_id"""
    )
    items = shop.one("select count(*) from planted('order_twin') join hits using (position)")
    assert twins == [(items, items)]
    # The first hit of an order is either a twin of the database's, or the database lacks the order.
    first = "(select * from hits qualify dense_rank() over (partition by order_id order by t) = 1)"
    assert (
        shop.one(
            f"select count(*) from {first} where (order_id in (select order_id from orders)) "
            "<> (position in (select position from planted('order_twin')))"
        )
        == 0
    )
    later = "(select * from hits qualify dense_rank() over (partition by order_id order by t) > 1)"
    assert shop.one(f"select count(distinct position) from {later}") == shop.summary.truth["repeated_purchase"]
    assert (
        shop.one(
            f"select count(*) from {later} where position not in (select position from planted('repeated_purchase'))"
        )
        == 0
    )
    assert shop.one("select count(distinct order_id) from hits where order_id not in (select order_id from orders)") > 3
    assert shop.one("select count(*) from orders where order_id like 'P%'") > 10


def _check_keys(shop: Shop) -> None:
    """No two rows are the same event, unless that was planted."""
    key = """select coalesce(user_id, visitor), t, sku, type, order_id from {table}
        where {when} position not in (select position from truth
            where kind in {kinds}) group by all having count(*) > 1"""
    assert shop.rows(key.format(table="web", when="t is not null and", kinds=DUPLICATES)) == []
    assert shop.rows(key.format(table="app", when="", kinds=DUPLICATES)) == []
    assert (
        shop.rows(
            f"""select coalesce(loyalty_id, ticket), local, sku, action from store where local is not null
        and position not in (select position from truth where kind in {DUPLICATES}) group by all having count(*) > 1"""
        )
        == []
    )
    assert shop.rows("select order_id, line_id from order_items group by all having count(*) > 1") == []
    assert shop.rows("select order_id, product_id from order_items group by all having count(*) > 1") == []


def test_nothing_else_is_a_duplicate(shop: Shop) -> None:
    _check_keys(shop)
    assert (
        shop.rows(
            f"""select event_id from web where t is not null
        and position not in (select position from truth where kind in {DUPLICATES}) group by all having count(*) > 1"""
        )
        == []
    )


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("orphan_user", "user_id is not null and user_id not in (select customer_no from customers)"),
        ("orphan_product", "sku is not null and sku not in (select sku from products)"),
        ("denied_consent", "consent = 'denied'"),
        ("bad_price", "price < 0"),
        ("bad_quantity", "quantity not between 1 and 100"),
        ("unknown_currency", "currency not in (select currency from rates)"),
        ("misspelt_category", f"category not in {CATEGORIES}"),
        ("late_event", f"received - t > interval 50 minutes and {NO_COPY}"),
        ("future_event", "t > received"),
        ("malformed_row", "t is null"),
    ],
)  # fmt: skip
def test_all_errors_were_planted(shop: Shop, kind: str, where: str) -> None:
    columns = "position, t, user_id, sku, category, price, quantity, currency"
    everything = f"""(select {columns}, received, consent from web
        union all select {columns}, t, case when position in (select position from app_events
            where privacy_info.analytics_storage = 'No') then 'denied' end from app
        union all select position, local, loyalty_id, sku, null, price::double, quantity::bigint, 'EUR', local,
            null from store
        union all select position, null, null, null, null, null, null, null, null, null from
            (select 'events.jsonl#' || n as position from lines) anti join web using (position))"""
    wrong = shop.rows(f"select distinct position from {everything} where {where}")
    planted = shop.rows(f"select distinct position from planted('{kind}') where raw_table <> 'products'")
    assert sorted(wrong) == sorted(planted)


def test_shown_prices_follow_catalogue_rates_and_promotions(shop: Shop) -> None:
    shop.con.execute(
        """create or replace temp table shown as
        with seen as (
            select 'web' as source, position, sku, t, price, currency from web where t is not null
            union all select 'app', position, sku, t, price, currency from app
            union all select 'store', position, sku, local - interval 1 hour, price::double, 'EUR' from store
            where local < timestamp '2025-03-30'
        ),
        versions as (select sku, price_eur, changed, row_number() over (partition by sku
            order by changed) as version from products),
        right_category as (
            select p.sku, any_value(coalesce(d.true_text, p.category)) as category from products as p
            left join planted('misspelt_category') as d on d.position = p.position
                and d.raw_table = 'products' group by p.sku
        )
        select s.*, round(v.price_eur * r.per_euro * coalesce(p.factor, 1), 2) as expected, d.kind, d.detail,
            d.true_value
        from seen as s
        asof join versions as v on s.sku = v.sku and s.t >= v.changed
        join right_category as c on s.sku = c.sku
        join rates as r using (currency)
        left join promotions as p on p.category = c.category and p.day = s.t::date
        left join truth as d on d.position = s.position
            and d.kind in ('price_outlier', 'missing_value', 'bad_price', 'future_event')"""
    )
    assert shop.one("select count(*) from shown where kind is null") > 20_000
    assert (
        shop.one("select count(*) from shown where kind is null and (price is null or abs(price - expected) > 0.011)")
        == 0
    )
    # The truth has the original value of a price that was changed or left out.
    spoilt = "kind in ('price_outlier', 'bad_price') or (kind = 'missing_value' and detail like 'price%')"
    assert (
        shop.one(
            f"""select count(*) from shown where ({spoilt})
                and (true_value is null or abs(true_value - expected) > 0.011)"""
        )
        == 0
    )
    assert (
        shop.one(
            "select count(*) from shown where kind = 'missing_value' and detail like 'price%' and price is not null"
        )
        == 0
    )
    assert shop.rows(
        """select detail, count(*) > 0, bool_and(abs(price / expected - factor) < 0.3 * factor) from shown join
        (values ('times 100', 100), ('divided by 100', 0.01), ('times 10', 10)) as f(detail, factor) using (detail)
        where kind = 'price_outlier' and expected > 3 group by all order by 1"""
    ) == [("divided by 100", True, True), ("times 10", True, True), ("times 100", True, True)]
    # Missing not at random: more expensive items lack their price more often.
    assert shop.one(
        """select avg((price is null)::int) filter (expected > 150)
            > 3 * avg((price is null)::int) filter (expected < 50) from shown
        where currency = 'EUR'"""
    )


def test_local_times_and_the_hour_that_never_was(shop: Shop) -> None:
    odd = shop.rows(
        """select count(*), count(*) filter (local - interval 1 hour = make_timestamp(true_value::bigint))
        from planted('naive_local_time') join store using (position) where detail = 'missing hour'"""
    )
    assert odd[0][0] > 3
    assert odd[0][0] == odd[0][1]
    assert (
        shop.one(
            """select count(*) from store where local >= timestamp '2025-03-30 02:00:00'
                and local < timestamp '2025-03-30 03:00:00'
        and position not in (select position from planted('naive_local_time') where detail = 'missing hour')"""
        )
        == 0
    )
    assert (
        shop.one(
            """select count(*) from planted('naive_local_time') join store using (position)
        where detail <> 'missing hour'
            and (local at time zone 'Europe/Berlin')::timestamp <> make_timestamp(true_value::bigint)"""
        )
        == 0
    )


def test_the_hour_that_comes_twice(tmp_path: Path) -> None:
    shop = Shop(tmp_path, simulate(tmp_path, events=60_000, seed=2, days=3, start=date(2025, 10, 25)))
    local, true = "local", "make_timestamp(true_value::bigint)"
    assert shop.rows(
        f"""select distinct {local}::date, hour({local}), (epoch({local}) - epoch({true}))::int // 3600
        from planted('naive_local_time') join store using (position) where detail = 'doubled hour' order by 3"""
    ) == [(date(2025, 10, 26), 2, 1), (date(2025, 10, 26), 2, 2)]


def test_impossible_orders_of_times(shop: Shop) -> None:
    wrong = shop.rows(
        """select distinct i.position from order_items as i join newest using (order_id)
        where created_at > paid_at or paid_at > shipped_at or created_at > shipped_at"""
    )
    assert sorted(wrong) == sorted(shop.rows("select position from planted('disordered_times')"))
    assert shop.one("select count(distinct detail) from planted('disordered_times')") == 2
    assert (
        shop.one(
            """select count(*) from refunds join newest using (order_id)
            where paid_at < created_at or shipped_at < paid_at"""
        )
        == 0
    )
    # An order grows: created, then paid, then shipped or cancelled.
    histories = shop.rows("select distinct string_agg(status, ' ' order by updated_at) from orders group by order_id")
    assert {row[0] for row in histories} <= {
        "created",
        "created paid",
        "created paid shipped",
        "created paid cancelled",
    }


def test_refunds_give_back_what_was_bought(shop: Shop) -> None:
    assert shop.one("select count(*) from refunds") > 5
    assert sorted(
        shop.rows("select position from refunds where order_id not in (select order_id from orders)")
    ) == sorted(shop.rows("select position from planted('orphan_order')"))
    assert (
        shop.one(
            """select count(*) from refunds as r join order_items as i on i.order_id = r.order_id
                and i.line_id = r.line_id::bigint
        join newest as o on o.order_id = r.order_id
        where i.product_id <> r.product_id or r.quantity > i.quantity or abs(r.amount - r.quantity * i.price) > 0.011
            or r.refunded_at <= o.shipped_at or r.user_id is distinct from o.user_id"""
        )
        == 0
    )


def test_units_and_categories_can_be_normalized(shop: Shop) -> None:
    grams = """case when lower(unit) = 'kg' then 1000 when lower(unit) in ('lb', 'lbs') then 453.59237
        when unit = 'oz' then 28.349523125 else 1 end"""
    assert (
        shop.one(
            f"""select count(*) from planted('wrong_unit') join products using (position)
            where abs(weight * {grams} / true_value - 1) > 0.001"""
        )
        == 0
    )
    assert (
        shop.one("select count(*) from products where unit <> 'g' and weight is not null")
        == shop.summary.truth["wrong_unit"]
    )
    spelt = """select true_text, category from planted('misspelt_category') join products using (position)
        union all select true_text, web.category from planted('misspelt_category') join web using (position)"""
    assert (
        shop.rows(
            f"""select * from ({spelt})
            where category = true_text or damerau_levenshtein(lower(trim(category)), true_text) > 1"""
        )
        == []
    )


def test_machines(shop: Shop) -> None:
    by_day = """select visitor, t::date as day, count(*) as n, any_value(ua) as ua,
        bool_and(position in (select position from planted('bot'))) as planted from web
            where t is not null group by all"""
    assert shop.one(f"select max(n) from ({by_day}) where not planted") < 150
    assert shop.one(f"select max(n) from ({by_day}) where planted") >= 1500
    people, machines = (
        {
            row[0]
            for row in shop.rows(
                f"""select distinct ua from web where position {how}
                (select position from planted('bot') where detail = 'declared')"""
            )
        }
        for how in ("not in", "in")
    )
    assert len(people) > 10
    assert not people & machines
    slow = shop.rows(
        """select n, quantile_cont(gap, 0.99) from (
            select count(*) over (partition by visitor) as n, epoch(t - lag(t) over (partition by visitor
                order by t)) as gap
            from planted('bot') join web using (position) where detail = 'stealthy') group by n"""
    )
    assert all(n >= 400 and gap < 600 for n, gap in slow)


def test_stealthy_machines_and_assistants(tmp_path: Path) -> None:
    """What larger shops have in addition: bots that each show in one way alone, AI agents by name, and people whom they sent."""
    shop = Shop(tmp_path, simulate(tmp_path, events=100_000, seed=11, days=14, start=date(2025, 3, 20)))
    found = {
        detail: (even, hours, revisits, rows)
        for detail, even, hours, revisits, rows in shop.rows(
            """select detail, max(variation), avg(hours), avg(1 - products / views), max(n) from (
                select detail, visitor, count(*) as n, stddev_pop(gap) / avg(gap) as variation,
                    count(distinct hour(t)) as hours, count(distinct sku) as products, count(sku) as views
                from (
                    select detail, visitor, t, sku, epoch(t - lag(t) over (partition by visitor order by t)) as gap
                    from planted('bot') join web using (position)
                ) group by all
            ) group by detail"""
        )
    }
    assert set(found) == {"declared", "fast", "stealthy", "regular", "broad", "night", "residential"}
    # The coefficient of variation of the gaps: small for regular ones alone, also of those that there were before.
    assert found["regular"][0] < 0.1 < 0.35 < min(found[kind][0] for kind in ("broad", "night", "residential"))
    assert found["night"][1] > 20 > 12 > max(found[kind][1] for kind in ("regular", "broad", "residential"))
    assert found["broad"][2] < 0.05 and found["residential"][2] < 0.05
    assert found["residential"][3] < 60 and max(found[kind][3] for kind in ("regular", "broad", "night")) <= 300
    agents = shop.rows("select distinct ua from planted('agent') join web using (position)")
    assert {agent for (agent,) in agents} == set(ASSISTANT_AGENTS)
    assert (
        shop.one(
            "select count(*) from planted('assistant_referral') join web using (position) where line not like '%\"ref\"%'"
        )
        == 0
    )
    # Of the others, each has a person's user agent.
    people = "(select ua from web where position not in (select position from truth where kind in ('bot', 'agent')))"
    hidden = "planted('bot') join web using (position) where detail <> 'declared'"
    assert shop.one(f"select count(*) from {hidden} and ua not in {people}") == 0


# ----------------------------------------------------------------------------------------------- the behaviour


def _check_sessions(shop: Shop) -> None:
    """Within a visit less than 20 minutes pass between events; between visits of one identity more than 45 do."""
    unlike = "('bot', 'future_event', 'repeated_purchase')"
    clean = f"t is not null and position not in (select position from truth where kind in {unlike})"
    seen = f"""(select visitor, user_id, session, t from web where {clean}
        union all select visitor, user_id, visitor || session, t from app where {clean})"""
    for identity in ("visitor", "user_id"):
        gaps = f"""select session = lag(session) over w as same, t - lag(t) over w as gap from {seen}
            where {identity} is not null window w as (partition by {identity} order by t)"""
        # An orphan's id occurs in one row of a visit only.
        wrong = "(same and gap >= interval 20 minutes) or (not same and gap <= interval 45 minutes)"
        assert shop.one(f"select count(*) from ({gaps}) where {wrong}") == 0


def test_sessions_are_apart(shop: Shop) -> None:
    _check_sessions(shop)


def test_visits_are_those_of_the_files(shop: Shop) -> None:
    """By the sources' own session ids: who, and from when until when. Rows that cannot be read, or have a wrong date,
    do not count."""
    unlike = "('bot', 'future_event', 'repeated_purchase', 'redelivered_event')"
    rows = f"""(select 'shop_web' as source, visitor, session, user_id, t, position from web where t is not null
        union all select 'shop_app', visitor, session::varchar, user_id, t, position from app)
        where position not in (select position from truth where kind in {unlike})"""
    seen = f"""select source, visitor, session, max(case when user_id < 'C9' then user_id end) as user_id, min(t) as first, max(t) as last
        from {rows} group by all"""
    assert shop.one(f"select count(*) from ({seen})") > 1000
    joined = "visits on visits.source = s.source and anonymous_id = visitor and session_id = session"
    wrong = "session_id is null or s.first < first_at or s.last > last_at or s.user_id <> visits.user_id"
    assert shop.one(f"select count(*) from ({seen}) as s left join {joined} where {wrong}") == 0
    exact = "s.first = first_at and s.last = last_at and s.user_id is not distinct from visits.user_id"
    assert shop.one(f"select count(case when {exact} then 1 end) / count(*) from ({seen}) as s join {joined}") > 0.98
    # No two visits of one device overlap, and every visit is one.
    assert shop.one("select count(*) - count(distinct (source, anonymous_id, session_id)) from visits") == 0
    apart = (
        "select first_at - lag(last_at) over (partition by source, anonymous_id order by first_at) as gap from visits"
    )
    assert shop.one(f"select min(gap) > interval 45 minute from ({apart})")


def test_funnel_goes_down(shop: Shop) -> None:
    counts = dict(shop.rows("select type, count(*) from web group by type"))
    assert counts["view"] > counts["cart_add"] > counts["checkout"] > counts["payment"] > 0
    assert set(counts) == {
        "page",
        "login",
        "search",
        "list",
        "click",
        "view",
        "wish",
        "cart_add",
        "cart_remove",
        "cart",
        "checkout",
        "payment",
        "buy",
    }
    assert (
        shop.one("select count(distinct session) filter (type = 'buy') / count(distinct session)::double from web")
        > 0.02
    )
    # A few products get most of the views.
    share = shop.one(
        """select sum(n) filter (place <= 0.1 * total) / sum(n) from (
            select count(*) as n, row_number() over (order by count(*) desc) as place, count(*) over () as total
                from web
            where type = 'view' group by sku)"""
    )
    assert share > 0.3


def test_logins_link_devices_to_people(shop: Shop) -> None:
    logged_in = shop.one(
        "select count(distinct session) filter (user_id is not null) / count(distinct session)::double from web"
    )
    assert 0.3 < logged_in < 0.5
    assert shop.one("select count(*) from web where type = 'login' and (user_id is null or visitor is null)") == 0
    half_way = shop.one(
        """select count(*) from (select session from web where t is not null group by session
        having count(*) filter (user_id is null) > 0 and count(distinct user_id) = 1
            and max(t) filter (user_id is null) < min(t) filter (user_id is not null))"""
    )
    assert half_way > 50
    # Once logged in, a visit stays logged in.
    assert (
        shop.one(
            """select count(*) from (
                select user_id, lag(user_id) over (partition by session order by t) as before from web
                where t is not null and position not in (select position from truth where kind <> 'order_twin'))
            where before is not null and user_id is distinct from before"""
        )
        == 0
    )
    assert (
        shop.one(
            """select max(n) from (
                select count(distinct visitor) as n from web where user_id is not null group by user_id)"""
        )
        > 1
    )
    # The truth's links are the first occurrences, except for rows that a fault hides or moves.
    assert (
        shop.rows(
            """select l.* from identity_links as l join (select visitor, min(t) as first from web
                where user_id is not null
            and position not in (select position from truth) group by visitor) as w on l.anonymous_id = w.visitor
        where l.since > w.first"""
        )
        == []
    )
    assert shop.one("select count(*) from identity_links where user_id not in (select customer_no from customers)") == 0


def test_customers_and_products_are_known_before_they_are_seen_but_for_a_few(shop: Shop) -> None:
    late = shop.rows(
        """with seen as (
            select user_id, min(received) as first from web where user_id is not null group by user_id
            union all select user_id, min(t) from app where user_id is not null group by user_id)
        select count(*) filter (first < known), count(*) from seen join
            (select customer_no, min(changed) as known from customers group by 1) on customer_no = user_id"""
    )
    assert 0 < late[0][0] < 0.05 * late[0][1]
    late = shop.rows(
        """with seen as (select sku, min(received) as first from web where sku is not null group by sku)
        select count(*) filter (first < known), count(*) from seen join
            (select sku, min(changed) as known from products group by 1) using (sku)"""
    )
    assert 0 < late[0][0] < 0.05 * late[0][1]


def test_several_currencies_time_zones_and_ways_to_write_a_time(shop: Shop) -> None:
    assert {row[0] for row in shop.rows("select distinct currency from orders")} == {"EUR", "USD", "GBP", "SEK"}
    offsets = Counter(
        row[0] for row in shop.rows("select right(raw_time, 6) from web where unit is null and t is not null")
    )
    assert {"+00:00", "+01:00", "+02:00", "-04:00", "-07:00"} <= set(offsets)
    assert 0.1 < shop.one("select avg((unit = 'ms')::int) from (select coalesce(unit, '') as unit from web)") < 0.3


def test_stream_is_in_order_of_arrival(shop: Shop) -> None:
    assert shop.one("select count(*) from web where received is null") == 0
    arrived = "select received, lag(received) over (order by split_part(position, '#', 2)::bigint) as before from web"
    assert shop.one(f"select count(*) from ({arrived}) where received < before") == 0
    # Out of order in event time, though.
    assert (
        shop.one(
            """select count(*) from (
                select t, lag(t) over (order by split_part(position, '#', 2)::bigint) as before from web)
            where t < before"""
        )
        > 500
    )


# ------------------------------------------------------------------------------------------------ the mappings


def test_mappings_name_what_the_files_have(shop: Shop, project: Path) -> None:
    mapped: set[str] = set()
    for file in sorted((project / "examples" / "simulated_shop").glob("*.yml")):
        mapping = yaml.safe_load(file.read_text())
        for table, entry in mapping["tables"].items():
            mapped.add(f"{mapping['source']}.{table}")
            paths = sorted(shop.folder.glob(entry["files"]))
            assert paths, entry["files"]
            if paths[0].suffix == ".jsonl":
                keys = "unnest(json_keys(case when json_valid(line) and json_type(line) = 'OBJECT' then line end))"
                columns = {row[0] for row in shop.rows(f"select distinct {keys} from lines")}
            else:
                columns = {row[0] for row in shop.rows(f"describe select * from '{paths[0]}'")}
            for name, source in entry.get("fields", {}).items():
                assert name in RAW_TABLES[table]
                if isinstance(source, str):
                    assert source in columns
                elif "column" in source:
                    assert source["column"] in columns
            if isinstance(entry["available_at"], dict):
                assert entry["available_at"]["column"] in columns
    assert mapped == {
        "shop_web.events", "shop_app.ga4_events", "shop_store.events", "shop_database.customers",
        "shop_database.products",
        "shop_database.orders", "shop_database.order_items", "shop_database.refunds",
    }  # fmt: skip


def test_ga4_has_the_fields_of_the_contract(shop: Shop) -> None:
    wanted = RAW_TABLES["ga4_events"]
    # The property's currency comes from the mapping, and GA4 itself knows no class of clients.
    delivered = {name: kind for name, kind in wanted.items() if name not in ("property_currency", "client_class")}
    fields = ", ".join(f'"{name}"::{kind}' for name, kind in delivered.items())
    shop.con.execute(f"select {fields} from app_events limit 1")
    assert shop.one("select count(*) from app_events where event_date <> strftime(t, '%Y%m%d')") == 0
    assert shop.one("select count(*) from app_events where position not like 'events_' || event_date || '%'") == 0


@settings(max_examples=6)
@given(
    events=st.integers(1000, 4000),
    seed=st.integers(0, 2**31),
    days=st.integers(2, 40),
    start=st.dates(date(2023, 1, 1), date(2026, 6, 30)),
)
def test_any_shop_is_consistent(
    tmp_path_factory: pytest.TempPathFactory, events: int, seed: int, days: int, start: date
) -> None:
    folder = tmp_path_factory.mktemp("any")
    shop = Shop(folder, simulate(folder, events=events, seed=seed, days=days, start=start))
    assert shop.summary.rows["stream"] == shop.one("select count(*) from lines")
    _check_keys(shop)
    _check_sessions(shop)
    assert shop.one("select count(*) from web where user_id not in (select customer_no from customers) "
                    "and position not in (select position from planted('orphan_user'))") == 0  # fmt: skip
