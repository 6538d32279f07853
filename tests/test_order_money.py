"""The money of an order: its status, discounts, tax, shipping and refunds, computed here again from the raw rows in
plain Python; and the ledger of money, which every build keeps, fails when a line of a model on the way to fct_orders is
changed."""

from __future__ import annotations

import csv
import shutil
from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import PROJECT
from small_shops import Homes, Row, land

from orchestration.config.settings import Settings
from orchestration.lake import lake
from orchestration.warehouse.build import run_dbt
from orchestration.warehouse.pin import snapshot

DAY = datetime(2024, 4, 3, 10)
LEDGER = "money_is_accounted_for"
ZERO = Decimal(0)


def order(order_id: str, status: str | None, minutes: int = 1, **more: str | None) -> Row:
    """A version of an order's header; later ones arrive later."""
    at = (DAY + timedelta(minutes=minutes)).isoformat()
    fields = {"order_id": order_id, "user_id": f"buyer of {order_id}", "status": status, "created_at": DAY.isoformat()}
    fields |= {"updated_at": at, "currency": "USD", **more}
    return Row("orders", "shop", f"{order_id}@{minutes}", DAY + timedelta(minutes=minutes), fields, origin="database")


def line(order_id: str, number: int, product: str, **more: str | None) -> Row:
    fields = {"order_id": order_id, "line_id": str(number), "product_id": product, "quantity": "1", **more}
    return Row("order_items", "shop", f"{order_id}/{number}", DAY + timedelta(minutes=1), fields, origin="database")


def refund(order_id: str, refund_id: str, amount: str | None, days: int = 2, **more: str | None) -> Row:
    at = DAY + timedelta(days=days)
    fields = {"refund_id": refund_id, "order_id": order_id, "amount": amount, "refunded_at": at.isoformat(), **more}
    return Row("refunds", "shop", refund_id, at, fields, origin="database")


def hit(order_id: str, product: str, **more: str | None) -> Row:
    """The web's hit of an order, half a minute before the database's."""
    at = DAY - timedelta(seconds=30)
    fields = {"event_type": "purchase", "event_at": at.isoformat(), "anonymous_id": f"visitor of {order_id}"}
    fields |= {"order_id": order_id, "product_id": product, "quantity": "1", "price": "7", "currency": "USD", **more}
    return Row("events", "web", f"{order_id} {product}", at, fields)


ROWS = [
    # Paid, shipped, and the shop's total equals ours: 2 x 10 - 1 + 5.5 - 3 (of which 1 is the line's) + 4 = 26.5.
    order("sold", "paid", discount="3", discount_code="SPRING", shipping="4", tax="4.3", tax_included="yes", total="26.5"),
    order("sold", "fulfilled", 5, discount="3", discount_code="SPRING", shipping="4", tax="4.3", tax_included="yes", total="26.5"),
    line("sold", 1, "A", price="10", quantity="2", discount="1"),
    line("sold", 2, "B", price="5.5"),
    hit("sold", "A", price="10", quantity="2"),
    # Euros: sums of whole lines, a discount that does not divide evenly, a tax that is added, and a different total.
    order("euro", "processing", currency="EUR", discount="1", shipping="4.90", tax="3.33", tax_included="0", total="40"),
    line("euro", 1, "A", quantity="3", amount="10.00"),
    line("euro", 2, "B", quantity="3", amount="10.00", price="4"),
    line("euro", 3, "C", quantity="7", amount="9.99", discount="0.5"),
    refund("euro", "R1", "10.00", quantity="3", line_id="1", currency="EUR"),
    refund("euro", "R2", "5.01", product_id="B", currency="EUR"),
    refund("euro", "R3", "4.90", currency="EUR"),
    # Cancelled after it was paid, and paid back: neither revenue nor a refund. The same for its web hit.
    order("off", "paid", shipping="5", total="25"),
    order("off", "Cancelled", 9, shipping="5", total="25"),
    line("off", 1, "A", price="20"),
    refund("off", "R4", "20"),
    hit("off", "A", price="20"),
    # Not paid yet.
    order("waits", "on-hold"),
    line("waits", 1, "A", price="30"),
    hit("waits", "A", price="30"),
    # Paid back, without an amount.
    order("back", "refunded", shipping="2"),
    line("back", 1, "A", price="8", quantity="2"),
    line("back", 2, "B", price="9"),
    # Paid back, with a smaller amount in the refund.
    order("less", "refunded"),
    line("less", 1, "A", price="8"),
    refund("less", "R5", "7.5"),
    # A line with impossible values, one that comes twice, one with too large a discount; a refund larger than its order.
    order("odd", "teleported", tax="much", shipping="-1"),
    line("odd", 1, "A", price="-1"),
    line("odd", 2, "B", price="6"),
    line("odd", 2, "B", price="6").again(position="again", available_at=DAY + timedelta(minutes=3)),
    line("odd", 3, "C", price="6", discount="6.01"),
    line("odd", 4, "C", price="99999999999999", quantity="999999999999999"),
    line("odd", 5, "D", price=None),
    refund("odd", "R6", "11"),
    refund("odd", "R6", "11").again(position="R6 again", available_at=DAY + timedelta(days=3)),
    refund("odd", "R7", "-3"),
    # Orders that only the web has, one of them delivered twice; and money that belongs to no order.
    hit("web", "A"),
    hit("web", "B", quantity="3", event_type="Order Completed"),
    hit("web", "A").again(source="app", available_at=DAY + timedelta(minutes=1)),
    refund("nowhere", "R8", "12"),
]  # fmt: skip


def rate_of(currency: str, day: datetime) -> Decimal:
    """US dollars for one unit, by the day's rates or the last before."""
    if currency == "USD":
        return Decimal(1)
    with (PROJECT / "seeds" / "fx_rates.csv").open(encoding="utf-8") as stream:
        last = max(
            (row for row in csv.DictReader(stream) if row["rate_date"] <= day.date().isoformat()),
            key=lambda row: row["rate_date"],
        )
    assert currency == "EUR"
    return Decimal(last["usd"])


def cents(value: Decimal) -> Decimal:
    return value.quantize(Decimal("0.0001"), ROUND_HALF_UP)


def number(row: Row, name: str, otherwise: str | None = None) -> Decimal | None:
    text = row.fields.get(name) or otherwise
    return None if text is None else Decimal(text)


#: The errors above: lines that are not kept, and impossible values of headers.
NOT_KEPT = {"odd/1", "again", "odd/3", "odd/4", "R6 again", "R7", "R8"}
STATUSES = {
    "paid": "paid",
    "fulfilled": "shipped",
    "processing": "paid",
    "Cancelled": "cancelled",
    "on-hold": "pending",
}
NO_SALES = {"cancelled", "pending"}


def worth(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """fct_orders of the orders in the database, order by order."""
    newest = {row.fields["order_id"]: row for row in rows if row.table == "orders"}
    found = {}
    for order_id, header in newest.items():
        currency = header.fields["currency"]
        rate = rate_of(currency, DAY)
        raw = header.fields["status"]
        status = STATUSES.get(raw, raw if raw == "refunded" else None)
        is_sale = status not in NO_SALES
        gross, own, units, lines = None, ZERO, ZERO, 0
        kept = [row for row in rows if row.position not in NOT_KEPT and row.fields.get("order_id") == order_id]
        for row in kept:
            if row.table != "order_items":
                continue
            price, quantity, amount = number(row, "price"), number(row, "quantity") or ZERO, number(row, "amount")
            discount = number(row, "discount")
            lines, units = lines + 1, units + quantity
            if amount is not None:
                if discount is None and price is not None:
                    discount = max(price * quantity - amount, ZERO)
                taken = cents((discount or ZERO) * rate)
                gross, own = (gross or ZERO) + cents(amount * rate) + taken, own + taken
            elif price is not None:
                gross, own = (
                    (gross or ZERO) + cents(cents(price * rate) * quantity),
                    own + cents((discount or ZERO) * rate),
                )

        def of_header(name: str, header: Row = header, rate: Decimal = rate) -> Decimal | None:
            text = header.fields.get(name)
            return None if text is None or not text.replace(".", "").isdigit() else cents(Decimal(text) * rate)

        assert gross is not None
        discount = own + min(max((of_header("discount") or ZERO) - own, ZERO), gross - own)
        revenue = gross - discount if is_sale else ZERO
        tax, shipping = of_header("tax"), of_header("shipping")
        included = header.fields.get("tax_included") != "0"
        total = revenue + (shipping or ZERO) + (ZERO if included else tax or ZERO) if is_sale else ZERO
        given = [
            cents((number(row, "amount") or ZERO) * rate_of(row.fields.get("currency") or currency, row.available_at))
            for row in kept
            if row.table == "refunds"
        ]
        is_assumed = is_sale and status == "refunded" and not given
        refunds = revenue if is_assumed else sum(given, ZERO) if is_sale else ZERO
        source_total = of_header("total")
        found[order_id] = {
            "status": status,
            "is_sale": is_sale,
            "lines": lines,
            "units": units if is_sale else ZERO,
            "gross": gross,
            "discount": discount,
            "discount_code": header.fields.get("discount_code"),
            "revenue": revenue,
            "shipping": shipping,
            "tax": tax,
            "is_tax_included": included if tax is not None else None,
            "total": total,
            "source_total": source_total,
            "total_differs": is_sale
            and source_total is not None
            and abs(source_total - total) > Decimal("0.01") * lines * max(rate, Decimal(1)),
            "refunds": refunds,
            "is_refund_assumed": is_assumed,
            "net_revenue": revenue - refunds,
        }
    return found


@pytest.fixture(scope="module")
def shop(homes: Homes) -> Settings:
    shop_home = homes.make("money")
    land(shop_home, ROWS)
    homes.run(shop_home, "--select", "+path:models/marts/core", "+quarantined_events", "+user_features")
    return shop_home


def ask(where: Settings, sql: str) -> list[dict[str, Any]]:
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        answer = con.execute(sql)
        names = [column[0] for column in answer.description or []]
        return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def test_orders_have_the_expected_money(shop: Settings) -> None:
    expected = worth(ROWS)
    assert {row["total_differs"] for row in expected.values()} == {True, False}
    columns = ", ".join(next(iter(expected.values())))
    found = {row.pop("order_key"): row for row in ask(shop, f"select order_key, {columns} from marts.fct_orders")}
    [web] = [found.pop(key) for key in ("web",)]
    assert (web["lines"], web["revenue"], web["status"], web["is_sale"]) == (2, 28, None, True)
    assert found == expected


def test_lines_add_up_to_their_orders_exactly(shop: Settings) -> None:
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in ask(shop, "select * from marts.fct_order_items"):
        lines[row["order_key"]].append(row)
    for row in ask(shop, "select * from marts.fct_orders"):
        for column in ("gross", "discount", "revenue", "refunds"):
            assert row[column] == sum((each[column] or ZERO for each in lines[row["order_key"]]), ZERO), column
    # A refund of a line belongs to that line, one of a product to its lines, and the rest is split over all lines of the order.
    day = DAY + timedelta(days=2)
    [first, second, third] = [row["refunds"] for row in sorted(lines["euro"], key=lambda row: str(row["line_id"]))]
    of_all = cents(Decimal("4.90") * rate_of("EUR", day))
    assert first + second + third == sum(
        (cents(Decimal(text) * rate_of("EUR", day)) for text in ("10.00", "5.01", "4.90")), ZERO
    )
    assert ZERO < third < of_all / 2 and first - cents(Decimal(10) * rate_of("EUR", day)) in (third, *near(of_all / 3))


def near(value: Decimal) -> list[Decimal]:
    return [cents(value) + Decimal(step) / 10000 for step in range(-25, 26)]


def test_no_feature_counts_orders_that_are_not_sales(shop: Settings) -> None:
    events = ask(shop, "select distinct order_id, event_type from marts.fct_events where order_id in ('off', 'waits')")
    assert {(row["order_id"], row["event_type"]) for row in events} == {
        ("off", "cancelled_order"),
        ("off", "refund_of_no_sale"),
        ("waits", "pending_order"),
    }
    for order_id, orders in (("off", 0), ("waits", 0), ("sold", 1)):
        [found] = ask(
            shop,
            "select orders_lifetime, units_lifetime, gross_revenue_lifetime, refunds_lifetime from marts.user_features "
            f"inner join (select distinct customer_id from marts.fct_events where user_id = 'buyer of {order_id}') using (customer_id)",
        )
        assert found["orders_lifetime"] == orders and found["refunds_lifetime"] == 0
        assert (found["units_lifetime"] > 0) == (found["gross_revenue_lifetime"] > 0) == bool(orders)
    [sessions] = ask(shop, "select sum(orders) as orders, sum(revenue) as revenue from marts.fct_sessions")
    [sales] = ask(shop, "select count(*) as orders from marts.fct_orders where is_sale")
    assert sessions["orders"] == sales["orders"]


def test_a_refund_is_the_amount_that_was_paid_back(shop: Settings) -> None:
    [found] = ask(shop, "select amount, price_in_currency from marts.fct_events where order_id = 'euro' and line_id = '1' and event_type = 'refund'")  # fmt: skip
    assert found["price_in_currency"] == Decimal("3.3333")
    assert found["amount"] == cents(10 * rate_of("EUR", DAY + timedelta(days=2)))


def test_unreadable_values_are_marked(shop: Settings) -> None:
    kept = ask(shop, "select warnings from marts.fct_events where order_id = 'odd' and event_type = 'purchase'")
    assert kept and all({"unknown_order_status", "unreadable_order_money"} <= set(row["warnings"]) for row in kept)
    reasons = {row["position"]: row["reasons"] for row in ask(shop, "select * from marts.quarantined_events")}
    assert reasons["odd/3"] == ["discount_out_of_range"]
    assert {position for position in reasons if position in NOT_KEPT} == NOT_KEPT - {"again", "R6 again"}


# --- the ledger of money ---------------------------------------------------------------------------------------------


def audit(where: Settings, project: Path = PROJECT) -> set[str]:
    """The accounts of the ledger that do not add up."""
    done = run_dbt(
        ["test", "--select", LEDGER, "--target-path", str(where.home / "target")], where=where, project=project
    )
    [test] = [node for node in done.nodes if node.name == LEDGER]
    assert test.status in ("pass", "fail"), test.message
    if test.status == "pass":
        return set()
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        return {row[0].partition(":")[0] for row in con.execute(f"select account from audit.{LEDGER}").fetchall()}


RAW, FACTS = "raw rows and verdicts", "kept rows and fct_events"
PAID, REFUNDED = "payments and revenue of fct_orders", "refunds and refunds of fct_orders"

#: Errors in the warehouse, and the accounts that must notice.
WRONG = {
    "a line is lost": ("delete from int_events__validated where position = 'sold/2'", {RAW, FACTS, PAID}),
    "a duplicate is lost": ("delete from int_events__validated where position = 'again'", {RAW}),
    "a quarantined row is lost": ("delete from int_events__validated where position = 'odd/3'", {RAW}),
    "a web hit is lost": ("delete from int_events__validated where position = 'web B'", {RAW, FACTS, PAID}),
    "a verdict is none": ("update int_events__validated set verdict = 'lost' where position = 'again'", {RAW}),
    "a refund is rounded": (
        "update int_events__validated set given_amount = 9.9999 where position = 'R1'",
        {RAW, FACTS, REFUNDED},
    ),
    "an event costs more": (
        "update int_cleaning__events set gross_amount = gross_amount + 0.0001 where order_id = 'euro' and line_id = '2' and event_type = 'purchase'",
        {FACTS},
    ),
    "an event counts twice": (
        "insert into int_cleaning__events from int_cleaning__events where order_id = 'sold'",
        {FACTS},
    ),
    "an order costs less": ("update marts.fct_orders set revenue = revenue - 0.0001 where order_key = 'euro'", {PAID}),
    "a cancelled order counts": ("update marts.fct_orders set revenue = 20 where order_key = 'off'", {PAID}),
    "a refund counts twice": ("update marts.fct_orders set refunds = 2 * refunds where order_key = 'less'", {REFUNDED}),
    "an order is lost": ("delete from marts.fct_orders where order_key = 'web'", {PAID}),
}


def test_the_ledger_of_money_adds_up_and_notices_when_it_does_not(shop: Settings, tmp_path: Path) -> None:
    """Runs dbt's test, compiled once; each change is undone."""
    where = replace(shop, warehouse=tmp_path / "warehouse.duckdb")
    shutil.copyfile(shop.warehouse, where.warehouse)
    assert audit(where) == set()
    [compiled] = (where.home / "target" / "compiled").rglob(f"{LEDGER}.sql")
    found = {}
    con = lake.connect(where, read_only=True)
    try:
        con.execute(f"set variable pinned = {snapshot(con)}::bigint")
        con.execute(f"attach '{where.warehouse}' as warehouse")
        con.execute("use warehouse.main")
        for what, (change, _) in WRONG.items():
            con.execute("begin")
            assert con.execute(change).fetchall()[0][0] > 0, what
            rows = con.execute(f"select distinct account from ({compiled.read_text('utf-8')})").fetchall()
            found[what] = {row[0].partition(":")[0] for row in rows}
            con.execute("rollback")
    finally:
        con.close()
    assert found == {what: accounts for what, (_, accounts) in WRONG.items()}


#: A line of a model, its replacement, and the accounts that must notice.
STEPS, EVENTS, CORE = "models/intermediate/", "models/intermediate/events/int_events__", "models/marts/core/"
CHANGED = [
    (f"{EVENTS}unified.sql", "r.amount as given_amount", "cast(null as decimal(18, 4)) as given_amount", {RAW}),
    (f"{EVENTS}unified.sql", "coalesce(i.discount, {{", "coalesce(0 * i.discount, {{", {RAW}),
    (f"{EVENTS}normalized.sql", "in_reporting_currency('t.given_amount', 'r.rate')", "in_reporting_currency('t.given_amount', '1')", {FACTS, PAID, REFUNDED}),
    (f"{STEPS}reference/int_reference__orders.sql", "coalesce(k.event_type, 'purchase') as event_type", "'purchase' as event_type", {PAID, REFUNDED}),
    (f"{STEPS}cleaning/int_cleaning__events.sql", "'discount_reported') }}) as gross_amount", "'0') }}) as gross_amount", {FACTS, PAID}),
    (f"{CORE}fct_order_items.sql", "'l.line_id = r.line_id',", "'l.line_id = r.product_id',", {REFUNDED}),
    (f"{CORE}fct_order_items.sql", "as h on l.key_of_order = h.order_key", "as h on 'x' || l.key_of_order = h.order_key", {PAID}),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("file", "line_of_it", "changed", "accounts"), CHANGED)
def test_the_ledger_notices_a_changed_line_of_a_model(
    shop: Settings, tmp_path: Path, file: str, line_of_it: str, changed: str, accounts: set[str]
) -> None:
    copy = tmp_path / "project"
    for name in (
        "models",
        "seeds",
        "macros",
        "snapshots",
        "dbt_packages",
        "fallback_packages",
        "tests/singular",
        "tests/generic",
    ):
        if (PROJECT / name).exists():
            shutil.copytree(PROJECT / name, copy / name, symlinks=True)
    for name in ("dbt_project.yml", "profiles.yml", "packages.yml"):
        shutil.copy(PROJECT / name, copy / name)
    text = (copy / file).read_text("utf-8")
    assert text.count(line_of_it) == 1
    (copy / file).write_text(text.replace(line_of_it, changed), "utf-8")
    where = replace(shop, warehouse=tmp_path / "warehouse.duckdb")
    shutil.copyfile(shop.warehouse, where.warehouse)
    done = run_dbt(
        ["run", "--full-refresh", "--select", "int_reference__orders", "int_events__unified", "int_events__normalized", "int_events__new_rows", "int_events__validated", "int_events__sessionized",
         "int_cleaning__events", "int_current__orders", "fct_events", "fct_order_items", "fct_orders", "--target-path", str(tmp_path / "target")],
        where=where, project=copy,
    )  # fmt: skip
    assert done.passed, [(node.name, node.message) for node in done.nodes if node.status != "success"]
    assert audit(where, copy) == accounts
