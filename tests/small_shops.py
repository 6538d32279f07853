"""Small shops with every kind of error, loaded in the order that a test chooses, and the warehouses that dbt builds from them.

A shop is a list of raw rows. Each has the time when the shop could have known it (`available_at`); the test chooses in which order rows
are loaded. Rows are inserted into the lake as Arrow tables, one transaction per batch.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyarrow as pa

from orchestration.config.settings import Settings
from orchestration.lake import lake
from orchestration.lake.locks import one_at_a_time
from orchestration.mapping.contracts import columns
from orchestration.warehouse.build import Build, run_dbt

#: Low enough that customers of a small shop reach it; the project's own limit is for bots.
MAX_EVENTS_PER_IDENTITY_DAY = 12
#: Low enough that some of them seem to be bots, in each way.
BOT_BEHAVIOUR = {"moments": 5, "variation": 0.35, "hours": 3, "products": 3, "new_share": 0.6}
#: Low enough that baskets exceed it.
MAX_PRODUCTS_PAIRED, PAIRS_PER_ITEM, MIN_SUPPORT = 3, 4, 3
#: Short enough that values of a small shop leave it.
WINDOW_WEEKS = 1
VARS = {
    "hour_of_week_window_weeks": WINDOW_WEEKS,
    "max_events_per_identity_day": MAX_EVENTS_PER_IDENTITY_DAY,
    "bot_behaviour": BOT_BEHAVIOUR,
    "pair_basket_limit": MAX_PRODUCTS_PAIRED,
    "pairs_per_item": PAIRS_PER_ITEM,
    "pair_min_support": MIN_SUPPORT,
}

EVENT_TABLES = ("events", "ga4_events", "order_items", "refunds")
RECORD_TABLES = ("customers", "products", "orders")

#: Gaps are filled by neighbours and by models, where these can.
BY_MODELS = """
    update imputation_rules set
        action = 'impute', neighbours = 3, min_confidence = 0.3,
        method = case
            when column_name in ('category', 'gender') or (record = 'customer' and column_name = 'country') then 'model'
            when record = 'event' then method
            else 'knn'
        end
"""

#: Rules by hour of the week, which no rule is as delivered, beside the others. A small shop has too few values an hour to treat any by them: this
#: is about their fits.
BY_HOUR_OF_WEEK = """
    insert into outlier_rules by name
    select distinct column_name, 'iqr' as method, 'log' as scale, 'hour_of_week' as group_by, 1 as factor, 2 as min_count, 2 as min_ratio,
        1 as min_distance, 'cap' as action
    from outlier_rules where column_name in ('price', 'quantity')
"""

#: Columns in which two warehouses of the same rows may differ: the build or lake snapshot of a row, and numbers that depend on the
#: order of loading.
BOOKKEEPING = frozenset({"arrived_in", "built_from", "built_in", "changed_in", "priced_in", "raw_rowid", "row_id"})
#: Relations that describe builds, not the shop: new rows, changes, watermarks and builds; and outlier bounds, which may keep bounds of
#: events that moved. Cleaned values show if bounds are wrong.
UNCOMPARED = frozenset(
    {
        *(
            "build_failures",
            "build_times",
            "builds",
            "int_events__new_rows",
            "int_cleaning__outlier_bounds",
            "int_cleaning__product_categories",
        ),
        *("change_journal", "reads", "rules", "states", "watermarks"),
        *(
            "int_events__changed_days",
            "int_events__changed_rows",
            "int_events__changed_sessions",
            "int_events__changed_visitors",
            "int_cleaning__changed_rows",
        ),
        *(
            f"int_changes__{keys}"
            for keys in (
                "consent",
                "days",
                "events",
                "identities",
                "identity_days",
                "orders",
                "product_days",
                "sessions",
            )
        ),
        *("int_features__changed_customers", "int_features__changed_sessions"),
    }
)


@dataclass(frozen=True)
class Row:
    """One raw row: its table, source, arrival, and contract fields as text (GA4's as JSON)."""

    table: str
    source: str
    position: str
    available_at: datetime
    fields: dict[str, Any] = field(default_factory=dict)
    origin: str = "web"
    expects: str = ""
    time_zone: str = "UTC"
    error: str | None = None

    def again(self, **changes: Any) -> Row:
        """A copy of the row with these changes."""
        fields = {**self.fields, **changes.pop("fields", {})}
        return replace(self, fields=fields, **changes)

    def landed(self) -> dict[str, Any]:
        """The row as it is stored in the lake."""
        return {
            "_source": self.source,
            "_position": self.position,
            "_origin": self.origin,
            "_time_zone": self.time_zone,
            "_expects": self.expects,
            "_error": self.error,
            "_ingested_at": self.available_at,
            "available_at": self.available_at,
            **({} if self.error else self.fields),
            "payload": json.dumps(self.fields, sort_keys=True, default=str),
        }


def versioned(place: str, number: int, digest: str = "a") -> str:
    """The position of a version of a row with a key; the digest of a deletion is all zeros."""
    return f"{place}@{number:09}.{digest * 16}"


def deletion(row: Row, moment: datetime, position: str | None = None) -> Row:
    """The deletion of a row by its source: earlier rows at its position, or all versions of its key before `position`."""
    fields = {"raw_table": row.table, "row_key": None if position is None else "{}"}
    return Row("deletions", row.source, position or row.position, moment, fields)


def is_deleted(row: Row, deletions: Iterable[Row]) -> bool:
    """Whether any of these deletes the row."""
    return any(
        row.position[:-27] == deletion.position[:-27] and int(row.position[-26:-17]) < int(deletion.position[-26:-17])
        if deletion.fields["row_key"]
        else row.position == deletion.position and row.available_at < deletion.available_at
        for deletion in deletions
        if (deletion.source, deletion.fields["raw_table"]) == (row.source, row.table)
    )


def land(where: Settings, rows: Iterable[Row]) -> None:
    """Append rows to the lake in this order, in one transaction."""
    by_table: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_table.setdefault(row.table, []).append(row.landed())
    con = lake.connect(where)
    try:
        with lake.transaction(con):
            for table, landed in by_table.items():
                kinds = lake.table_columns(table)
                arrays = {
                    name: pa.array(
                        [each.get(name) for each in landed],
                        pa.timestamp("us") if kind == "TIMESTAMP" else pa.string(),
                    )
                    for name, kind in kinds.items()
                }
                con.register("landing", pa.table(arrays))
                shown = ", ".join(
                    f'"{name}"'
                    if kind in ("VARCHAR", "TIMESTAMP")
                    else f'cast(cast("{name}" as json) as {kind}) as "{name}"'
                    for name, kind in kinds.items()
                )
                names = ", ".join(f'"{name}"' for name in kinds)
                con.execute(f"insert into lake.raw.{table} ({names}) select {shown} from landing")
                con.unregister("landing")
    finally:
        con.close()


class Homes:
    """Creates homes of small shops and builds them; there is one instance per test worker. The first dbt run is slow, so its result is in
    `shared`, for all workers."""

    def __init__(self, root: Path, extensions: Path, shared: Path) -> None:
        self.root = root
        self.extensions = extensions
        self.shared = shared
        self._made = 0
        self._template: Path | None = None

    def make(self, name: str = "home") -> Settings:
        """A new home: an empty lake, and a warehouse that was built from it."""
        if self._template is None:
            with one_at_a_time(self.shared / "template.lock"):
                self._template = self._first()
        where = self._settings(name)
        lake.connect(where).close()
        shutil.copyfile(self._template, where.warehouse)
        return where

    def beside(self, where: Settings) -> Settings:
        """Another home with the same lake, and a copy of the warehouse."""
        other = replace(self._settings("beside"), lake_catalog=where.lake_catalog, lake_data=where.lake_data)
        shutil.copyfile(where.warehouse, other.warehouse)
        return other

    def run(self, where: Settings, *arguments: str, without: str | None = None) -> Build:
        """`dbt run` on the current lake; every model must succeed. Existing views are not built again. The model `without` and all that depend on
        it are skipped, as if it had failed."""
        skipped = ["config.materialized:view", *([f"{without}+"] if without else [])]
        return self._dbt(where, "run", "--exclude", *skipped, *arguments)

    def _settings(self, name: str) -> Settings:
        self._made += 1
        home = self.root / f"{name}-{self._made}"
        home.mkdir(parents=True)
        return Settings.below(home, self.extensions)

    def _first(self) -> Path:
        template, parsed = self.shared / "template.duckdb", self.shared / "partial_parse.msgpack"
        target = self.root / "target"
        if template.exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(parsed, target / parsed.name)
            return template
        where = self._settings("template")
        self._dbt(where, "seed")
        with duckdb.connect(str(where.warehouse)) as con:
            # Rules that a small shop has enough rows for.
            con.execute(
                "update outlier_rules set min_count = 4, factor = least(factor, 2), min_ratio = 2, min_distance = 1"
            )
        self._dbt(where, "run")
        shutil.copyfile(target / parsed.name, parsed)
        shutil.copyfile(where.warehouse, template)
        return template

    def _dbt(self, where: Settings, command: str, *arguments: str) -> Build:
        own = ["--vars", json.dumps(VARS), "--target-path", str(self.root / "target"), "--no-write-json"]
        build = run_dbt([command, *own, *arguments], where=where)
        broken = [f"{node.name}: {node.message}" for node in build.nodes if node.status != "success"]
        assert not broken, "\n".join(broken)
        return build


# --- comparing warehouses ------------------------------------------------------------------------------------------


def compared_columns(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """All tables of intermediate models and all marts, with the columns to compare."""
    found = con.execute(
        "select c.schema_name || '.' || c.table_name, list(c.column_name order by c.column_index) "
        "from duckdb_columns() as c left join duckdb_views() as v on c.table_oid = v.view_oid "
        "where c.schema_name in ('main', 'marts') and not c.internal and (v.view_oid is null or c.schema_name = 'marts') "
        "group by all order by all"
    ).fetchall()
    return {
        table: [name for name in names if name not in BOOKKEEPING]
        for table, names in found
        if table.split(".")[1] not in UNCOMPARED
    }


def differences(one: Settings, other: Settings) -> list[str]:
    """The differences between two warehouses, ignoring the order of rows; empty if they are equal."""
    found: list[str] = []
    with (
        duckdb.connect(str(one.warehouse), read_only=True) as ours,
        duckdb.connect(str(other.warehouse), read_only=True) as theirs,
        duckdb.connect() as con,
    ):
        tables, others = compared_columns(ours), compared_columns(theirs)
        for table in sorted(set(tables) | set(others)):
            if tables.get(table) != others.get(table):
                found.append(f"{table}: columns {tables.get(table)} and {others.get(table)}")
                continue
            names = [f'"{name}"' for name in tables[table]]
            query = f"select {', '.join(names)} from {table}"
            con.register("one", ours.execute(query).to_arrow_table())
            con.register("other", theirs.execute(query).to_arrow_table())
            found += _rows_apart(con, table, names)
    return found


def _rows_apart(con: duckdb.DuckDBPyConnection, table: str, names: list[str]) -> list[str]:
    found = []
    for these, those in (("one", "other"), ("other", "one")):
        apart = con.execute(f"select * from {these} except all select * from {those}").fetchall()
        if apart:
            found.append(f"{table}: {len(apart)} rows only in {these}, such as{_shown(names, apart)}")
    if found:
        unequal = [
            name
            for name in names
            if con.execute(f"select {name} from one except all select {name} from other limit 1").fetchall()
            or con.execute(f"select {name} from other except all select {name} from one limit 1").fetchall()
        ]
        found.append(f"    unequal columns: {', '.join(unequal)}")
    return found


def _shown(names: list[str], rows: list[tuple[Any, ...]]) -> str:
    return "".join(
        "\n    " + ", ".join(f"{name}={value}" for name, value in zip(names, row, strict=True) if value is not None)
        for row in sorted(rows, key=repr)[:3]
    )


# --- a shop --------------------------------------------------------------------------------------------------------

#: Clocks in Berlin go forward on the last of March: some naive times of that night do not exist.
FIRST_DAY = date(2024, 3, 26)
DAYS = 9
WINDOW_EDGES = (1, 7, 8, 14, 15, 30, 31, 90, 91, 365, 366)
CATEGORIES = ("books", "Books", "boks", "footwear", "Footwear/", "fotwear", "(not set)", "weird corner", None)
REFERRERS = (
    "https://www.Google.de/search?q=http://x",
    "https://mail.google.com/",
    "t.co",
    "https://chatgpt.com/",
    "https://shot.com/#t.co",
    None,
    None,
)
PAGES = (
    *("/", "/", "/p", "/p", None),
    "https://shot.com/p?a=1",
    "https://www.shop.example/?utm_source=Google&utm_medium=CPC&utm_campaign=Spring+Sale%202",
    "https://shop.example/?utm_source=%ff&utm_medium=email",
    "https://shop.example/?gclid=x1#top",
)
CURRENCIES = ("USD", "USD", "USD", "EUR", "EUR", "GBP", "JPY", None, None, None, "XXX")
GA4_ITEM = re.findall(r"(\w+) [A-Z]+", columns("ga4_events")["items"].partition("(")[2])
TYPES = (
    *("view_item",) * 6,
    *("add_to_cart",) * 4,
    *("purchase",) * 3,
    "remove_from_cart",
    "view_item_list",
    "search",
    "begin_checkout",
    "add_to_wishlist",
    "login",
    "page_view",
    "refund",
    "Pageview",
    "nonsense",
)


def at(day: date, seconds: float = 0, microseconds: int = 0) -> datetime:
    """A time on a UTC day."""
    return datetime.combine(day, time()) + timedelta(seconds=seconds, microseconds=microseconds)


class ShopMaker:
    """Generates a random shop. Times, ids and prices have few distinct values, so that rows interact."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.users = [f"U{n}" for n in range(6)]
        self.visitors = [f"V{n}" for n in range(5)]
        self.products = [f"P{n}" for n in range(6)]
        self.rows: list[Row] = []
        self._lines: dict[tuple[str, str], int] = {}

    def shop(self, events: int = 160, orders: int = 14) -> list[Row]:
        """All rows of a shop, in no particular order."""
        self._customers()
        self._products()
        for _ in range(events):
            self._event()
        for _ in range(events // 12):
            self._ga4_event()
        self._rush()
        for number in range(orders):
            self._order(f"O{number}")
        self._copies()
        return self.rows

    def shop_with_deletions(self) -> list[Row]:
        """All rows of a shop, some with keys and versions, and deletions of some rows, which may arrive before the rows they delete. Some customers
        withdraw their consent."""
        rows, versions = [], Counter[tuple[str, str]]()
        for row in self.shop():
            if row.table == "customers" and row.fields and self.chance(0.4):
                row = replace(
                    row, fields={**row.fields, "consent": self.random.choice(("granted", "withdrawn", "no", "so-so"))}
                )
            if (
                row.table in ("orders", "order_items", "refunds")
                and row.source == "shop"
                and row.fields.get("order_id")
            ):
                place = f"public.{row.table}/{row.fields['order_id'].strip()}"
                versions[row.table, place] += 1
                row = row.again(position=versioned(place, versions[row.table, place]))
            rows.append(row)
        deletions = []
        for row in self.random.sample(rows, k=len(rows) // 6):
            moment = row.available_at + timedelta(seconds=self.random.choice((0, 1, 1, 2 * 86400)))
            if "@" in row.position:
                place = row.position[:-27]
                number = self.random.randint(2, versions[row.table, place] + 1)
                deletions.append(deletion(row, moment, versioned(place, number, "0")))
            else:
                deletions.append(deletion(row, moment))
        return rows + deletions

    # ---------- random values

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def moment(self) -> datetime:
        """Mostly on a few days and minutes; sometimes at midnight, or long ago at the edge of a window."""
        day = FIRST_DAY + timedelta(days=self.random.randrange(DAYS))
        if self.chance(0.12):
            day -= timedelta(days=self.random.choice(WINDOW_EDGES))
        if self.chance(0.12):
            return at(day, 0, self.random.choice((-1, 0, 1)))
        return at(day, 3600 * self.random.randrange(24) + 60 * self.random.choice((0, 1, 12, 29, 30, 31, 59)))

    def arrival(self, happened: datetime) -> datetime:
        """The arrival of a row: at once, a little later, or days later."""
        delays = (0, 0, 0, 0.5, 7, 60, 3600, 86400, 2 * 86400, 5 * 86400)
        return happened + timedelta(seconds=self.random.choice(delays))

    def add(self, table: str, source: str, available_at: datetime, fields: dict[str, Any], **more: Any) -> Row:
        """Add a row. Different sources have files of the same names, so positions are only unique within a source."""
        number = self._lines[table, source] = self._lines.get((table, source), 0) + 1
        row = Row(table, source, f"{table}.csv#{number}", available_at, fields, **more)
        self.rows.append(row)
        return row

    def written(self, moment: datetime, zone: str) -> str:
        """A time as a source writes it: with an offset, as an epoch, or naive in the source's time zone."""
        if zone != "UTC":
            return (moment + timedelta(hours=1)).isoformat(sep=" ")
        spelled = self.random.randrange(4)
        if spelled == 0:
            return str(int(moment.replace(tzinfo=UTC).timestamp() * 1_000_000 + 0.5))
        if spelled == 1:
            return (moment + timedelta(hours=2)).isoformat() + "+02:00"
        return moment.isoformat() + ("Z" if spelled == 2 else "")

    # ---------- rows of the database

    def _customers(self) -> None:
        for user in self.users[:-1]:  # the last one has no row
            known_at = at(FIRST_DAY - timedelta(days=400))
            if self.chance(0.4):
                known_at = self.arrival(self.moment())
            for _ in range(self.random.choice((1, 1, 2, 3))):
                updated_at = known_at - timedelta(days=self.random.choice((0, 0, 1, 3)))
                fields = {
                    "customer_id": user,
                    "created_at": at(FIRST_DAY - timedelta(days=500)).isoformat(),
                    "updated_at": updated_at.isoformat() if self.chance(0.9) else None,
                    "birth_year": self.random.choice(("1970", "1985", "2001", "old", None)),
                    "gender": self.random.choice(("f", "M", "x", None)),
                    "country": self.random.choice(("DE", "FR", None)),
                    "household_size": self.random.choice(("1", "2", "4", None)),
                    "income": self.random.choice(("20000", "30000", "30500", "4000000", None)),
                    "marketing_consent": self.random.choice(("true", "no", None)),
                }
                self.add("customers", self.random.choice(("shop", "till")), known_at, fields, origin="database")
                known_at = self.arrival(self.moment()) if self.chance(0.7) else known_at
        self.add("customers", "shop", self.moment(), {"customer_id": None}, origin="database")
        self.add("customers", "shop", self.moment(), {}, origin="database", error="cut off")

    def _products(self) -> None:
        for product in self.products[:-1]:
            known_at = at(FIRST_DAY - timedelta(days=400))
            if self.chance(0.4):
                known_at = self.arrival(self.moment())
            for _ in range(self.random.choice((1, 2, 3, 4))):
                # Versions arrive in any order, and some have no updated_at.
                updated_at = known_at - timedelta(days=self.random.choice((0, 0, 1, 2, 5)))
                fields = {
                    "product_id": self.random.choice((product, product.lower())),
                    "title": f"title {self.random.randrange(100)}",
                    "brand": self.random.choice(("acme", "zenith", None)),
                    "category": self.random.choice(CATEGORIES),
                    "price": self.random.choice(("10", "12.50", "20", "999", None)),
                    "currency": self.random.choice(CURRENCIES),
                    "weight": self.random.choice(("100", "120", "0.1", "50000", None)),
                    "weight_unit": self.random.choice(("g", "kg", "lb", "stone", None)),
                    "created_at": at(FIRST_DAY - timedelta(days=500)).isoformat() if self.chance(0.5) else None,
                    "updated_at": updated_at.isoformat() if self.chance(0.8) else None,
                }
                self.add("products", self.random.choice(("shop", "till")), known_at, fields, origin="database")
                known_at = self.arrival(self.moment()) if self.chance(0.8) else known_at

    def _order(self, order_id: str) -> None:
        created_at = self.moment()
        user = self.random.choice((*self.users, None))
        visitor = self.random.choice((*self.visitors, None))
        session = self.random.choice((None, None, f"s{self.random.randrange(4)}"))
        header = {
            "order_id": order_id,
            "user_id": user,
            "anonymous_id": visitor,
            "session_id": session,
            "status": self.random.choice(("new", "new", "On Hold", None)),
            "currency": self.random.choice(CURRENCIES),
            "discount": self.random.choice((*(None,) * 4, "3", "0.01", "1000", "-1")),
            "shipping": self.random.choice((None, "4.95", "free")),
            "tax": self.random.choice((None, "1.99")),
            "tax_included": self.random.choice((None, "yes", "false")),
            "total": self.random.choice((None, "20")),
            "created_at": created_at.isoformat(),
            "updated_at": created_at.isoformat(),
        }
        arrived_at = self.arrival(created_at)
        versions = []
        if self.chance(0.92):
            versions.append(self.add("orders", "shop", arrived_at, header, origin="database"))
        while self.chance(0.45):  # paid, shipped or corrected: even the buyer and the time may change
            happened = created_at + timedelta(days=self.random.randrange(4), hours=1)
            change = {
                "status": self.random.choice((*("paid", "shipped") * 3, "refunded", "canceled", "teleported")),
                "paid_at": (happened - timedelta(days=self.random.choice((0, 0, 0, 9)))).isoformat(),
                "updated_at": happened.isoformat() if self.chance(0.9) else None,
            }
            if self.chance(0.35):
                change["created_at"] = self.moment().isoformat()
            if self.chance(0.35):
                change["user_id"] = self.random.choice((*self.users, None))
            header = {**header, **change}
            source = self.random.choice(("shop", "till"))
            versions.append(self.add("orders", source, self.arrival(happened), header, origin="database"))
        bought = []
        for number in range(self.random.choice((1, 1, 2, 3))):
            fields = {
                "order_id": self.random.choice((order_id, order_id, order_id + " ")),
                "line_id": self.random.choice((str(number + 1), str(number + 1), None)),
                "product_id": self.random.choice(self.products),
                "quantity": self.random.choice((*("1", "1", "2") * 4, "1.5", "40", "0", None)),
                "price": self.random.choice((*("10", "12.50", "20") * 4, "999", "-1", "ten", None)),
                "currency": self.random.choice((None, "EUR")),
                "discount": self.random.choice((*(None,) * 4, "1.5", "30")),
                "amount": self.random.choice((*(None,) * 4, "10", "7.77")),
            }
            if self.chance(0.9):
                bought.append(fields)
                self.add(
                    "order_items", self.random.choice(("shop", "till")), self.arrival(created_at), fields,
                    origin="database", expects=self.random.choice(("customers,products", "")),
                )  # fmt: skip
        while self.chance(0.6):  # web events of the same order: at its own time or another, once or more
            hit_at = self.random.choice((created_at, created_at, self.moment()))
            line = self.random.choice(bought) if bought and self.chance(0.7) else {}
            self._web(
                self.random.choice(("web", "app")), "purchase", hit_at, user if self.chance(0.8) else None, visitor,
                order_id=order_id, product_id=line.get("product_id", self.random.choice(self.products)),
                line_id=line.get("line_id"), price="15", quantity="1", currency="USD",
            )  # fmt: skip
        while self.chance(0.3):
            refunded_at = created_at + timedelta(days=self.random.randrange(6), hours=2)
            fields = {
                "refund_id": f"R{self.random.randrange(10)}",
                "order_id": self.random.choice((*(order_id,) * 6, "O99", None)),
                "line_id": self.random.choice(("1", None)),
                "user_id": self.random.choice((user, None)),
                "product_id": self.random.choice(self.products),
                "quantity": self.random.choice((*("1", "2") * 4, "0", None)),
                "amount": self.random.choice(("10", "25", None)),
                "currency": self.random.choice(("USD", "EUR", None)),
                "refunded_at": refunded_at.isoformat(),
            }
            self.add("refunds", "shop", self.arrival(refunded_at), fields, origin="database", expects="customers")

    # ---------- web events

    def _web(
        self, source: str, kind: str, moment: datetime, user: str | None, visitor: str | None, **fields: Any
    ) -> Row:
        zone = "Europe/Berlin" if source == "store" else "UTC"
        return self.add(
            "events", source, self.arrival(moment),
            {
                "event_type": kind,
                "event_at": self.written(moment, zone),
                "user_id": user,
                "anonymous_id": visitor,
                **fields,
            },
            time_zone=zone,
            expects={"web": "customers,products", "app": "products", "store": ""}[source],
        )  # fmt: skip

    def _event(self) -> None:
        source = self.random.choice(("web", "web", "app", "store"))
        kind = self.random.choice(TYPES)
        # A visitor sometimes logs in, and not always as the same customer.
        visitor = self.random.choice((*self.visitors, None))
        signed_in = kind == "login" or self.chance(0.35)
        user = self.random.choice(self.users) if signed_in or visitor is None else None
        moment = self.moment()
        row = self._web(
            source, kind, moment, user if self.chance(0.98) else None, visitor,
            event_id=f"E{self.random.randrange(60)}" if self.chance(0.4) else None,
            session_id=self.random.choice((None, None, f"s{self.random.randrange(4)}")),
            product_id=self.random.choice((*self.products, self.products[0].lower(), None)),
            category=self.random.choice(CATEGORIES),
            quantity=self.random.choice((*(None, "1", "2", "3") * 4, "50", "0", "many")),
            price=self.random.choice((*(None, "10", "10", "11", "12.50", "13", "20") * 3, "999", "999", "0", "-5", "ten")),
            currency=self.random.choice(CURRENCIES),
            order_id=f"W{self.random.randrange(6)}" if kind == "purchase" and self.chance(0.7) else None,
            device=self.random.choice(("desktop", "iOS", "tablet", "fridge", None)),
            client_class=self.random.choice(("crawler", *("agent",) * 4, *(None,) * 30)),
            page=self.random.choice(PAGES),
            referrer=self.random.choice(REFERRERS),
            campaign=self.random.choice(("mail", "Organic", None, None)),
            country=self.random.choice(("DE", "FR", None)),
            consent="denied" if self.chance(0.03) else None,
        )  # fmt: skip
        if self.chance(0.02):
            self.rows[-1] = replace(row, error="no JSON")
        elif self.chance(0.03):
            self.rows[-1] = row.again(fields={"event_at": self.random.choice((None, "soon", "2031-01-01T00:00:00Z"))})

    def _ga4_event(self) -> None:
        moment = self.moment()
        items = [
            {
                **dict.fromkeys(GA4_ITEM),
                "item_id": self.random.choice(self.products),
                "item_category": self.random.choice(CATEGORIES),
                "price": self.random.choice((10.0, 11.5, None)),
                "quantity": self.random.choice((1, 2, None)),
            }
            for _ in range(self.random.randrange(4))
        ]
        session = self.random.randrange(3)
        value = {"string_value": None, "int_value": session, "float_value": None, "double_value": None}
        parameters = [{"key": "ga_session_id", "value": value}] if session else []
        order = {
            "transaction_id": f"W{self.random.randrange(6)}",
            "purchase_revenue": None,
            "total_item_quantity": None,
        }
        kind = self.random.choice(("view_item", "add_to_cart", "purchase", "scroll"))
        fields = {
            "event_timestamp": str(int(moment.replace(tzinfo=UTC).timestamp() * 1_000_000 + 0.5)),
            "event_name": kind,
            "user_id": self.random.choice((None, None, *self.users[:2])),
            "user_pseudo_id": self.random.choice(self.visitors),
            "event_params": json.dumps(parameters),
            "ecommerce": json.dumps(order) if kind == "purchase" else None,
            "items": json.dumps(items),
            "device": json.dumps({"category": "mobile", "operating_system": None, "language": None, "web_info": None}),
        }
        self.add("ga4_events", "ga4", self.arrival(moment), fields)

    def _rush(self) -> None:
        """One identity with more events in a day than a person has, some late and some twice."""
        day = FIRST_DAY + timedelta(days=self.random.randrange(DAYS))
        visitor = self.random.choice((None, *self.visitors))
        for number in range(MAX_EVENTS_PER_IDENTITY_DAY + 5):
            self._web(
                self.random.choice(("web", "app")), "view_item", at(day, 1800 * (number // 2)),
                "U0" if visitor is None else None, visitor, product_id=self.random.choice(self.products[:3]),
            )  # fmt: skip

    def _copies(self) -> None:
        """Repeated rows: the same delivery, the same file under another name, or the event from another source."""
        for row in self.random.sample(self.rows, k=len(self.rows) // 8):
            kind = self.random.randrange(4)
            later = row.available_at + timedelta(seconds=self.random.choice((0, 0, 30, 90000)))
            if kind == 0:
                self.rows.append(row)
            elif kind == 1:
                self.rows.append(row.again(position="again-" + row.position, available_at=later))
            elif row.table == "events" and row.error is None:
                # Another source of the same kind, at the same position in a file of the same name.
                other = "app" if row.source == "web" else "web"
                changes = {"page": "/other", "price": self.random.choice(("10", "14"))} if kind == 2 else {}
                self.rows.append(row.again(source=other, available_at=later, fields=changes))
            else:
                self.rows.append(row.again(position=row.position + ".2", available_at=later))
