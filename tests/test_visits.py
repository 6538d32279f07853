"""Sessions compared with the visits of the simulated shop, whose truth has the visitor, begin and end of each
(truth/visits.parquet).

Both must agree exactly: as many sessions as visits, with the same events, except for

- visits without kept events: their rows are cut short, denied, or wrong in another way that quarantines them;

- machines, which are not visitors: some of their rows cannot be distinguished from a person's;

- orders by telephone, and refunds: only the database has them. Each is a session of its own, unless its buyer was on
the web within the half hour before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import duckdb
import pytest

from orchestration.config.settings import Settings
from orchestration.warehouse.build import run_dbt

# A ticket of the store belongs to one visit; its clock may be an hour wrong. An order comes seconds after the page that sold it.
PLACED = """
create temp table visits as select row_number() over () as visit, * from read_parquet('{truth}');
create temp table placed as
    select s.session_id, s.event_at, v.anonymous_id, v.user_id, v.origin, v.source, v.event_type, x.visit
    from int_events__sessionized as s
    inner join int_events__validated as v using (row_id)
    left join visits as x
        on v.anonymous_id = x.anonymous_id
        and (x.source = 'shop_store' or s.event_at between x.first_at and x.last_at + interval 5 second);
create temp table of_people as
    select * from placed where anonymous_id in (select anonymous_id from visits) and event_type <> 'refund';
"""
#: Machines; and orders and refunds that only the database has.
OTHERS = """select count(*) from (
    select session_id from placed except select session_id from of_people
)"""


@pytest.fixture
def con(built_shop: Settings) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect(str(built_shop.warehouse), read_only=True)
    con.execute("set search_path = 'main,marts'")
    con.execute(PLACED.replace("{truth}", str(built_shop.home / "shop" / "truth" / "visits.parquet")))
    return con


def one(con: duckdb.DuckDBPyConnection, query: str) -> int:
    [(value,)] = con.execute(query).fetchall()
    return int(value)


def test_sessions_are_the_visits(con: duckdb.DuckDBPyConnection) -> None:
    # Every event of a person is in one visit, and in a session with all other events of the visit and no others.
    assert one(con, "select count(*) from of_people where visit is null") == 0
    assert one(con, "select count(*) from placed") == one(con, "select count(*) from int_events__sessionized")
    visits = one(con, "select count(distinct visit) from of_people")
    assert visits > 200
    assert one(con, "select count(distinct session_id) from of_people") == visits
    assert one(con, "select count(distinct (visit, session_id)) from of_people") == visits
    assert one(con, "select count(*) from fct_sessions") == visits + one(con, OTHERS)


def test_some_visits_log_in_during_the_visit(con: duckdb.DuckDBPyConnection) -> None:
    """They are one session, which belongs to the login; others belong to the visitor."""
    query = """
        with logins as (
            select
                session_id, any_value(anonymous_id) as visitor, max(user_id) as login,
                bool_or(user_id is null) and max(user_id) is not null as on_the_way
            from of_people group by session_id
        )
        select
            count(case when on_the_way then 1 end),
            count(case when s.identity <> coalesce('u:' || l.login, 'a:' || l.visitor) then 1 end),
            count(case when l.login <> v.user_id then 1 end)
        from logins as l
        inner join fct_sessions as s using (session_id)
        inner join (select distinct session_id, visit from of_people) using (session_id)
        inner join visits as v using (visit)
    """
    [(on_the_way, of_others, wrong)] = con.execute(query).fetchall()
    assert on_the_way > 10
    assert (of_others, wrong) == (0, 0)


def test_visits_without_events_are_those_whose_rows_were_not_kept(con: duckdb.DuckDBPyConnection) -> None:
    kept_rows = """
        select count(*) from visits as x
        where x.visit not in (select p.visit from of_people as p where p.visit is not null)
            and exists (
                select 1 from int_events__validated as v
                where v.anonymous_id = x.anonymous_id and v.source_session_id = x.session_id and v.verdict <> 'quarantined'
                    and v.origin <> 'database'
            )
    """
    assert one(con, kept_rows) == 0
    missing = one(con, "select count(*) from visits") - one(con, "select count(distinct visit) from of_people")
    assert 0 < missing < one(con, "select count(*) from visits") * 0.05


def test_gaps_and_logins_find_the_same_sessions(built_shop: Settings, tmp_path: Path) -> None:
    """Where no source has session ids and the database has no visitors, the events are split into the same sessions."""
    where = replace(built_shop, warehouse=tmp_path / "warehouse.duckdb")
    copyfile(built_shop.warehouse, where.warehouse)
    with duckdb.connect(str(where.warehouse)) as con:
        con.execute("update int_events__validated set source_session_id = null")
        con.execute(
            "update int_events__validated set anonymous_id = null where origin = 'database' and user_id is not null"
        )
    assert run_dbt(["run", "--full-refresh", "--select", "int_events__sessionized"], where=where).passed
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        con.execute(f"attach '{built_shop.warehouse}' as by_source (read_only)")
        query = """
            select count(*), count(distinct f.session_id), count(distinct t.session_id), count(distinct (f.session_id, t.session_id))
            from int_events__sessionized as f inner join by_source.int_events__sessionized as t using (row_id)
        """
        [(events, found, by_source, both)] = con.execute(query).fetchall()
        assert events == one(con, "select count(*) from by_source.int_events__sessionized")
        assert found == by_source == both
        assert one(con, "select count(chain) from int_events__sessionized") == 0
