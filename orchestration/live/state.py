"""What live features know of the past: one build of the warehouse, in a file of its own, ordered so that the rows of some identities are found
without reading the others.

The tables of the file:

    rows          every row of an event that the build knew, sorted by `bucket`, a hash of its identity
    neighbours    identities whose rows bear upon each other: a login and a visitor seen together, two identities of one order
    orders        the identities of each order

These are in the schema `live`. Under their own names: reference data, fits, and the models of the whole shop, for the day of the build and `DAYS` after it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import duckdb

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError, stopping
from orchestration.live.plan import KEYS, ROWS, VALIDATED, Plan
from orchestration.sql.text import identifier, quote
from orchestration.warehouse import warehouse
from orchestration.warehouse.compiled import SPINES

#: For how many days after a build the models of the whole shop are computed. An older build cannot serve.
DAYS: Final = 7
#: Rows that DuckDB reads at once: few, since an identity has few.
ROW_GROUP: Final = 2048
#: How long to wait for a build that is writing the warehouse, in seconds.
PATIENCE: Final = 3600.0


@dataclass(frozen=True)
class State:
    """A state in `file`. `snapshot`: of the lake, up to which its build had read. `as_of`: the moment of the build (naive UTC)."""

    file: Path
    snapshot: int
    as_of: datetime

    @property
    def last_day(self) -> datetime:
        """The end of the last day for which it has the whole shop."""
        return datetime.combine(self.as_of.date(), datetime.min.time()) + timedelta(days=DAYS + 1)


def create(where: Settings, plan: Plan, file: Path, patience: float = PATIENCE) -> State:
    """Copy what live features need from the last build to `file`. Waits while a build is writing the warehouse, for `patience` seconds. Raises FinegrainError
    if it has not finished by then, or the last build did not pass."""
    con = duckdb.connect(config=warehouse.limits(file.parent / "spill"))
    stopping.interruptible(con)
    try:
        _attach(con, where, patience)
        snapshot = warehouse.last_build(con, where.warehouse)
        [(as_of,)] = con.execute("select as_of from warehouse.main.int_identity__build").fetchall()
        con.execute("set timezone = 'UTC'")
        con.execute(f"attach {quote(str(file))} as state (row_group_size {ROW_GROUP})")
        con.execute(f"set variable pinned = {snapshot}::bigint")
        _check_keys(con, plan)
        _copy_rows(con)
        _copy_tables(con, plan)
        con.execute("detach state")
        con.execute("detach warehouse")
        _compute_shop(con, where, plan, file, as_of)
    finally:
        con.close()
    return State(file, snapshot, as_of)


def _attach(con: duckdb.DuckDBPyConnection, where: Settings, patience: float) -> None:
    deadline = time.monotonic() + patience
    warehouse.must_exist(where.warehouse)
    while True:
        try:
            warehouse.attach(con, where.warehouse)
            return
        except FinegrainError as error:
            if "being written" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def last_build(where: Settings) -> int:
    """The snapshot of the last build. Raises FinegrainError if it did not pass, or one is running."""
    with duckdb.connect() as con:
        warehouse.attach(con, where.warehouse)
        return warehouse.last_build(con, where.warehouse)


def _check_keys(con: duckdb.DuckDBPyConnection, plan: Plan) -> None:
    """A model can only be run on a slice if its rows say of which customer they are."""
    for model in plan.slice:
        if model.live != "slice":
            continue
        try:
            columns = {name for name, *_ in con.execute(f"describe {model.relation}").fetchall()}
        except duckdb.CatalogException:
            raise FinegrainError(f"the warehouse has no {model.name}; run `finegrain build` first") from None
        if not KEYS & columns:
            raise FinegrainError(
                f"{model.name}: it is marked live: slice, and no column says of which customer a row is ({', '.join(sorted(KEYS))}); add one, or take "
                "the mark off (orchestration/live/plan.py)"
            )


def _copy_rows(con: duckdb.DuckDBPyConnection) -> None:
    validated = f"warehouse.main.{VALIDATED}"
    known = [name for name, *_ in con.execute(f"describe {validated}").fetchall()]
    asked = con.execute(f"describe warehouse.main.{ROWS}").fetchall()
    con.execute("create schema state.live")
    # What a row was before it was validated. Two columns are used up by then.
    columns = [identifier(name) if name in known else f"null::{kind} as {identifier(name)}" for name, kind, *_ in asked]
    con.execute(
        f"create table state.live.rows as select hash(identity) as bucket, {', '.join(columns)} from {validated} "
        "where identity is not null order by bucket, event_at"
    )
    con.execute(f"create table state.live.orders as {orders_of(validated)}")
    con.execute(f"create table state.live.neighbours as {neighbours_of(validated, 'state.live.orders')}")


def orders_of(rows: str) -> str:
    """SQL of the orders and identities of a table of events."""
    return f"select distinct purchase_order_id, identity from {rows} where purchase_order_id is not null and identity is not null"


def neighbours_of(rows: str, orders: str) -> str:
    """SQL of the identities that bear upon each other, by a table of events and a table of the known orders, which has those of the events. `bucket` is a hash
    of the first: numbers are found faster than texts."""
    return (
        "select distinct hash(a) as bucket, a, b from ("
        f"select unnest([identity, 'a:' || anonymous_id]) as a, unnest(['a:' || anonymous_id, identity]) as b from {rows} "
        "where user_id is not null and anonymous_id is not null and identity is not null "
        f"union all select unnest([x.identity, y.identity]) as a, unnest([y.identity, x.identity]) as b from ({orders_of(rows)}) as x "
        f"inner join {orders} as y on x.purchase_order_id = y.purchase_order_id) where a <> b"
    )


def _copy_tables(con: duckdb.DuckDBPyConnection, plan: Plan) -> None:
    for name, place in warehouse.places(con, "warehouse", plan.stored).items():
        con.execute(f"create schema if not exists state.{place.partition('.')[0]}")
        rows = " limit 0" if name in plan.past else ""
        con.execute(f"create table state.{place} as from warehouse.{place}{rows}")


def _compute_shop(con: duckdb.DuckDBPyConnection, where: Settings, plan: Plan, file: Path, as_of: datetime) -> None:
    """Run the models of the whole shop for the days to come."""
    con.execute(f"attach {quote(str(where.warehouse))} as built (read_only)")
    con.execute("attach ':memory:' as warehouse; use warehouse; create schema if not exists main")
    con.execute(f"attach {quote(str(file))} as state")
    for place in warehouse.places(con, "built", plan.whole).values():
        con.execute(f"create schema if not exists warehouse.{place.partition('.')[0]}")
        con.execute(f"create view warehouse.{place} as from built.{place}")
    day = quote(str(as_of.date()))
    for key, spine in SPINES.items():
        con.execute(
            f"create table main.{spine} as select null::varchar as {key}, day::timestamp as as_of "
            f"from range(timestamp {day}, timestamp {day} + interval {DAYS + 1} day, interval 1 day) as days (day)"
        )
    for model in plan.shop:
        _, schema, table = model.relation.split(".")
        con.execute(f"create schema if not exists state.{schema}")
        con.execute(f"create table state.{schema}.{table} as {model.sql}")
