"""Computes feature vectors of the customers that new rows touch. All of it is SQL of the models, or moves rows.

    take(raw)     new raw rows become rows of events (models up to int_events__normalized), and their identities are pending
    answer()      the rows of some pending identities, and of all that bear upon theirs, become features (models from there to the marts)

An identity's rows bear upon another's if a login and a visitor were seen together, or both had one order. Features of an identity can change through
those one or two steps away (a session is a visitor's, and its visitor may have two logins), and rest on rows one or two steps further.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from orchestration.errors import FinegrainError
from orchestration.live.plan import CATEGORY_NAMES, NORMALIZED, RAW, REFERENCE_KEYS, ROWS, VALIDATED, Plan
from orchestration.live.state import State, neighbours_of, orders_of
from orchestration.sql.text import identifier, quote
from orchestration.warehouse import warehouse
from orchestration.warehouse.compiled import BUILD, EVENTS, SPINES, Model

#: Identities of which the new rows are answered at once.
BATCH: Final = 2_000
_STEPS: Final = 2
#: Rows of identities that were asked about last, kept in memory: finding an identity in the state costs a millisecond or two.
HOT_ROWS: Final = 500_000
LINKS: Final = "int_identity__links"
#: Models of raw rows that bring events.
_OF_EVENTS: Final = [name for name in RAW if name not in REFERENCE_KEYS]
#: Models of raw rows that have names of categories.
_NAMING: Final = (RAW[0], "base_shop__products")
#: By key of a reference: what events that wait for it `expects`.
_EXPECTED: Final = {"user_id": "customers", "product_id": "products"}
#: The model after which each question is asked: whatever reads the question waits for it.
_ASKED_BY: Final = {BUILD: VALIDATED, SPINES["customer_id"]: LINKS, SPINES["session_id"]: EVENTS}
#: Of the marts with a row for each customer and something else, those of which only the keys of the new rows are written, and all of a customer who has an
#: order among these. A customer has hundreds of them.
_OF_TOUCHED: Final = {"user_item_features": "product_id"}


@dataclass(frozen=True)
class Answered:
    """Vectors to write: by mart, the query that reads them. `as_of` of all; how many identities had new rows, and when the first of these rows came."""

    queries: Mapping[str, str]
    as_of: datetime
    identities: int
    rows: int
    since: datetime | None


class Engine:
    """Runs a `Plan` on a `State`. `con` is its connection; a thread at a time may use it."""

    def __init__(self, plan: Plan, state: State, shapes: Mapping[str, pa.Table], spill: Path, threads: int = 2) -> None:
        """`shapes`: an empty table of the columns of each model in `RAW`."""
        self.plan, self.state = plan, state
        self.snapshot, self.as_of = state.snapshot, state.as_of
        self.con = duckdb.connect(config={**warehouse.limits(spill), "threads": threads})
        self.con.execute("set timezone = 'UTC'")
        # For the expressions that read an event's texts, this one takes a tenth of a second. It saves work for many rows, and batches have few.
        self.con.execute("set disabled_optimizers = 'common_subexpressions'")
        self.con.execute("attach ':memory:' as warehouse; use warehouse")
        self.con.execute(f"attach {quote(str(state.file))} as state")
        for model in (*plan.normalize, *plan.slice):
            self.con.execute(f"create schema if not exists warehouse.{model.relation.split('.')[1]}")
        self._load_tables()
        #: Rows that features do not see yet: their customer or product, or they themselves, are of later than `as_of`.
        self.con.execute(
            "create table main.awaited (row_id bigint, identity varchar, anonymous_id varchar, product_id varchar, known_at timestamp)"
        )
        self.con.execute("create table main.newly_known (key varchar, id varchar, known_at timestamp)")
        self._shapes = shapes
        self._filled: set[str] = set()
        self._raw_of = self._raw_models()
        #: By key, the table that says since when a customer or product is known.
        self._references = {key: model.relation for model in plan.normalize if (key := plan.reference.get(model.name))}
        self._set_raw(shapes)
        for model in plan.normalize:
            if model.name not in self._raw_of:
                self.con.execute(f"create view {model.relation} as {model.sql}")
        kinds = {name: kind for name, kind, *_ in self.con.execute("describe state.live.rows").fetchall()}
        self._in_slice = {model.name for model in plan.slice}
        self._threads = ThreadPoolExecutor(threads)
        self._columns = [name for name in kinds if name != "bucket"]
        #: New rows whose identities wait for an answer, with the time at which they came.
        self.con.execute(
            "create table main.pending (row_id bigint, identity varchar, anonymous_id varchar, product_id varchar, came_at timestamp)"
        )
        self.con.execute("create table main.hot as from state.live.rows limit 0")
        #: Rows that came after the build. Not in the file: each write there waits for the disk. DuckDB spills them if there are too many.
        self.con.execute("create table main.since as from state.live.rows limit 0")
        # What new rows say of these is added, to copies in memory for the same reason.
        self.con.execute("create table main.orders as from state.live.orders")
        self.con.execute("create table main.neighbours as from state.live.neighbours")
        self.con.execute("create table main.hot_identities (identity varchar, used bigint)")
        self._round = 0
        #: Raw rows of the build that came again, with other rows of events: the lines of an order whose header changed.
        self.con.execute("create table main.replaced (raw_table varchar, raw_rowid bigint)")

    def close(self) -> None:
        """Close the connection and the threads."""
        self._threads.shutdown()
        self.con.close()

    def _load_tables(self) -> None:
        """Copy the small tables of the state into memory, under the names by which the models read them."""
        tables = self.con.execute(
            "select table_schema, table_name from information_schema.tables where table_catalog = 'state' and table_schema <> 'live'"
        ).fetchall()
        for schema, name in tables:
            place = f"{identifier(schema)}.{identifier(name)}"
            self.con.execute(f"create schema if not exists warehouse.{identifier(schema)}")
            self.con.execute(f"create table warehouse.{place} as from state.{place}")

    def take(self, raw: Mapping[str, pa.Table], snapshot: int, *, answered: datetime | None = None) -> None:
        """Take raw rows in (by the name of their model in `RAW`), up to a snapshot of the lake. Their identities wait for an answer, but for those that were
        answered as of a moment."""
        self.con.execute(f"set variable pinned = {snapshot}::bigint")
        emptied = {name: self._shapes[name] for name in self._filled if name not in raw}
        self._set_raw({**emptied, **raw})
        self._filled = {name for name, table in raw.items() if table.num_rows}
        columns = ", ".join(map(identifier, self._columns))
        self.con.execute(
            f"create or replace table main.taken as select hash(identity) as bucket, {columns} from main.{NORMALIZED} where identity is not null"
        )
        if any(name in raw for name in _OF_EVENTS[1:]):
            came_again = "select distinct raw_table, raw_rowid from main.taken"
            self.con.execute(f"delete from main.since where (raw_table, raw_rowid) in ({came_again})")
            self.con.execute(f"insert into main.replaced {came_again}")
        self.con.execute("insert into main.since by name from main.taken")
        self._connect_identities()
        waits = (
            "insert into main.pending select row_id, identity, anonymous_id, product_id, ingested_at from main.taken"
        )
        if answered is None:
            self.con.execute(waits)
        else:
            self.con.execute(f"{waits} where {self._is_later()}", {"answered": answered})
        self.snapshot = snapshot
        self._await_rows()
        self._end_waits()

    def _is_later(self) -> str:
        """SQL: whether an answer as of `$answered` may not have seen a row, since the row, its customer or its product was not known by then."""
        of_references = [
            f"coalesce({key} in (select {key} from {relation} where known_at > $answered::timestamp), false)"
            for key, relation in self._references.items()
        ]
        return " or ".join(["greatest(event_at, raw_available_at) > $answered::timestamp", *of_references])

    def _raw_models(self) -> dict[str, set[str]]:
        """By model that is kept as a table, the models of raw rows that it is made of: those that read raw rows, and tables of a build. They have some thousand
        lines, which would take half a second to plan for each batch; so each is only run if raw rows of its own came."""
        found: dict[str, set[str]] = {CATEGORY_NAMES: {*_NAMING}, **{name: {name} for name in RAW}}
        for model in self.plan.normalize:
            if not model.is_view or set(model.reads) & set(RAW):
                found[model.name] = set().union(*(found.get(name, set()) for name in model.reads))
        return found

    def _set_raw(self, raw: Mapping[str, pa.Table]) -> None:
        """Replace raw rows, and what is made of them."""
        for name, table in raw.items():
            self.con.register("given", table)
            self.con.execute(f"create or replace table main.{name} as from given")
            self.con.unregister("given")
        if raw.keys() & {*_NAMING}:
            names = " union ".join(f"select category as category_name from main.{name}" for name in _NAMING)
            self.con.execute(f"create or replace table main.{CATEGORY_NAMES} as {names}")
        for model in self.plan.normalize:
            came = self._raw_of.get(model.name, set()) & raw.keys()
            if model.name in self.plan.reference:
                if came & REFERENCE_KEYS.keys():
                    self._replace_rows(model, self.plan.reference[model.name])
            elif came:
                self.con.execute(f"create or replace table {model.relation} as {model.sql}")

    def _replace_rows(self, model: Model, key: str) -> None:
        """Replace the rows of the customers or products of whom raw rows came."""
        self.con.execute(f"create or replace temp table fresh as {model.sql}")
        self.con.execute(
            f"insert into main.newly_known select '{key}', {key}, min(known_at) from fresh "
            f"where {key} not in (select {key} from {model.relation}) group by {key}"
        )
        self.con.execute(f"delete from {model.relation} where {key} in (select {key} from fresh)")
        self.con.execute(f"insert into {model.relation} by name from fresh")

    def _await_rows(self) -> None:
        """Rows that waited for a customer or product that is known now."""
        if not self._any("main.newly_known"):
            return
        # Of a customer, rows are found without reading the others.
        [(buckets,)] = self.con.execute(
            "select coalesce(list(distinct hash('u:' || id)), []) from main.newly_known where key = 'user_id'"
        ).fetchall()
        among = {"user_id": f"bucket in ({', '.join(map(str, buckets)) or 'null'})", "product_id": "true"}
        for key, expected in _EXPECTED.items():
            for rows in ("state.live.rows", "main.since"):
                self.con.execute(
                    "insert into main.awaited select r.row_id, r.identity, r.anonymous_id, r.product_id, n.known_at "
                    f"from (select * from {rows} where {among[key]} and expects like '%{expected}%') as r "
                    f"inner join main.newly_known as n on n.key = '{key}' and r.{key} = n.id"
                )
        self.con.execute("delete from main.newly_known")

    def _end_waits(self) -> None:
        """Rows that features see by now wait for an answer."""
        if self._any("main.awaited"):
            now = {"as_of": self.as_of}
            self.con.execute(
                "insert into main.pending select distinct row_id, identity, anonymous_id, product_id, now() at time zone 'UTC' from main.awaited "
                "where known_at <= $as_of::timestamp and row_id not in (select row_id from main.pending)",
                now,
            )
            self.con.execute("delete from main.awaited where known_at <= $as_of::timestamp", now)

    def _any(self, table: str) -> bool:
        return bool(self.con.execute(f"select exists (from {table})").fetchall()[0][0])

    def _connect_identities(self) -> None:
        self.con.execute(f"insert into main.orders {orders_of('main.taken')}")
        self.con.execute(f"create or replace temp table fresh as {neighbours_of('main.taken', 'main.orders')}")
        self.con.execute(
            "insert into main.neighbours from fresh except from main.neighbours where bucket in (select bucket from fresh)"
        )

    def unanswered(self) -> pa.Table:
        """The new rows without an answer, and those that features do not see yet."""
        return self.con.execute("from main.pending union all from main.awaited").to_arrow_table()

    def ask_again(self, unanswered: pa.Table) -> None:
        """Add new rows that another engine has not answered."""
        self.con.register("given", unanswered)
        self.con.execute("insert into main.pending from given where row_id not in (select row_id from main.pending)")
        self.con.unregister("given")

    @property
    def waiting(self) -> int:
        """How many identities have new rows, or rows whose customer or product is known now, and no answer to them."""
        [(count,)] = self.con.execute("select count(distinct identity) from main.pending").fetchall()
        return int(count)

    def answer(self, limit: int = BATCH) -> Answered | None:
        """Compute the features of the identities that have waited longest; None if none waits. `done` must follow once they are written."""
        self.con.execute(
            "create or replace table main.touched as select p.* from main.pending as p inner join ("
            f"select identity from main.pending group by identity order by min(came_at), identity limit {limit}"
            ") as first using (identity)"
        )
        [(identities, rows, since)] = self.con.execute(
            "select count(distinct identity), count(*), min(came_at) from main.touched"
        ).fetchall()
        if not rows:
            return None
        self._gather()
        self._run_all()
        return Answered({name: self._query(name) for name in self.plan.marts}, self.as_of, identities, rows, since)

    def done(self) -> None:
        """The last answer is written. Rows of it that features do not see yet are answered again when they do."""
        self.con.execute(
            "insert into main.awaited select t.row_id, t.identity, t.anonymous_id, t.product_id, v.available_at from main.touched as t "
            f"inner join main.{VALIDATED} as v on t.row_id = v.row_id where v.verdict = 'kept' and v.available_at > $as_of::timestamp",
            {"as_of": self.as_of},
        )
        self.con.execute("delete from main.pending where row_id in (select row_id from main.touched)")
        self._end_waits()

    def _run_all(self) -> None:
        """Run the models of the slice, each once those that it reads are there, on several threads: planning takes longest, and DuckDB plans on one."""
        done: set[str] = set()
        waiting = list(self.plan.slice)
        running: dict[Future[None], Model] = {}
        while waiting or running:
            for model in [each for each in waiting if not self._reads(each) - done]:
                waiting.remove(model)
                running[self._threads.submit(self._run, model)] = model
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for each in finished:
                each.result()
                done.add(running.pop(each).name)

    def _reads(self, model: Model) -> set[str]:
        """The models of the slice, and the questions, that a model reads."""
        return {_ASKED_BY.get(name, name) for name in model.reads} & self._in_slice

    def _run(self, model: Model) -> None:
        con = self.con.cursor()
        con.execute(f"use warehouse; set timezone = 'UTC'; set variable pinned = {self.snapshot}::bigint")
        try:
            # Not prepared: DuckDB plans by what the tables hold, and a plan made for other rows gives wrong results (docs/decisions/0020).
            con.execute(f"create or replace table {model.relation} as {model.sql}")
            # What is asked depends on what was found so far.
            if model.name == VALIDATED:
                self._set_moment(con)
            elif model.name == LINKS:
                self._ask_customers(con)
            elif model.name == EVENTS:
                self._ask_sessions(con)
        finally:
            con.close()

    def _gather(self) -> None:
        """Table `asked`: the identities whose customers are asked about. `ROWS`: all rows of those and of identities that bear upon them."""
        self.con.execute(
            "create or replace table main.asked as select distinct identity from ("
            "select unnest([identity, 'a:' || anonymous_id]) as identity from main.touched) where identity is not null"
        )
        self._widen("asked")
        self.con.execute("create or replace table main.read as from main.asked")
        self._widen("read")
        self._warm()
        columns = ", ".join(map(identifier, self._columns))
        self.con.execute(
            f"create or replace table main.{ROWS} as select {columns} from main.hot where identity in (from main.read) and (raw_table, raw_rowid) not in (from main.replaced) "
            f"union all select {columns} from main.since where identity in (from main.read)"
        )

    def _warm(self) -> None:
        """Have the build's rows of the identities to read in memory; if there are too many, forget those of the identities that were read longest ago."""
        self._round += 1
        [(buckets,)] = self.con.execute(
            "select list(hash(identity)) from main.read where identity not in (select identity from main.hot_identities)"
        ).fetchall()
        if buckets:
            # A list of constants, so that DuckDB skips the row groups without them.
            self.con.execute(
                f"insert into main.hot from state.live.rows where bucket in ({', '.join(map(str, buckets))}) and identity in (from main.read)"
            )
        self.con.execute("delete from main.hot_identities where identity in (from main.read)")
        self.con.execute(f"insert into main.hot_identities select identity, {self._round} from main.read")
        [(rows,)] = self.con.execute("select count(*) from main.hot").fetchall()
        if rows > HOT_ROWS:
            self.con.execute(
                f"delete from main.hot_identities where used < {self._round} and used <= (select median(used) from main.hot_identities)"
            )
            # Created again, since DuckDB keeps the memory of deleted rows.
            self.con.execute(
                "create or replace table main.hot as from main.hot where identity in (select identity from main.hot_identities)"
            )

    def _widen(self, table: str) -> None:
        for _ in range(_STEPS):
            self.con.execute(
                f"insert into main.{table} select n.b from main.neighbours as n where n.bucket in (select hash(identity) from main.{table}) "
                f"and n.a in (from main.{table}) and n.b is not null except from main.{table}"
            )

    def _set_moment(self, con: duckdb.DuckDBPyConnection) -> None:
        """As a build's moment, just after all that has arrived (int_identity__build), and after all that ended: here, nothing is known of its sessions. But clocks that
        are ahead do not count, or what comes next would be of the past."""
        [(last,)] = con.execute(
            "select max(case when verdict = 'kept' then raw_available_at when kept_until <= now() at time zone 'UTC' then kept_until end) "
            f"from main.{VALIDATED}"
        ).fetchall()
        if last is not None:
            self.as_of = max(self.as_of, last + timedelta(microseconds=1))
        if self.as_of >= self.state.last_day:
            raise FinegrainError(
                f"the last build is of {self.state.as_of:%Y-%m-%d}, too old to compare with; run `finegrain build`"
            )
        con.execute(
            f"create or replace table main.{BUILD} as select $as_of::timestamp as as_of, $as_of::date as as_of_day, {self.snapshot}::bigint as built_from",
            {"as_of": self.as_of},
        )

    def _ask_customers(self, con: duckdb.DuckDBPyConnection) -> None:
        """Customers of the logins asked about, and of visitors without a login. (A visitor's login may be one whose rows are here in part.)"""
        con.execute(
            f"create or replace table main.{SPINES['customer_id']} as select distinct l.customer_id, b.as_of from main.{LINKS} as l "
            f"cross join main.{BUILD} as b where l.identity in (from main.asked) and l.known_from <= b.as_of "
            "and b.as_of < coalesce(l.known_to, timestamp '9999-12-31') "
            f"and (l.identity like 'u:%' or l.customer_id not in (select o.customer_id from main.{LINKS} as o where o.identity like 'u:%'))"
        )

    def _ask_sessions(self, con: duckdb.DuckDBPyConnection) -> None:
        """Sessions with a new event."""
        con.execute(
            f"create or replace table main.{SPINES['session_id']} as select distinct e.session_id, b.as_of from main.{EVENTS} as e "
            f"cross join main.{BUILD} as b where e.session_id is not null and e.row_id in (select row_id from main.touched)"
        )

    def _query(self, mart: str) -> str:
        """The rows of a mart to write."""
        relation = next(model.relation for model in self.plan.slice if model.name == mart)
        column = _OF_TOUCHED.get(mart)
        if column is None:
            return f"select * from {relation}"
        return (
            f"select * from {relation} as m where m.{column} in (select t.{column} from main.touched as t) or m.customer_id in ("
            f"select l.customer_id from main.{LINKS} as l inner join main.{EVENTS} as e on l.identity = e.identity "
            "where e.order_key is not null and e.row_id in (select t.row_id from main.touched as t))"
        )
