"""docs/how-to/bi.md is correct: its queries agree with pandas, its blocks run, and Superset shows the dashboard in a browser.

With FINEGRAIN_BI_PICTURES=<a published folder>, the browser opens that folder and saves the page's pictures in docs/images.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
import yaml
from playwright.sync_api import Locator, Page, Request, Response, sync_playwright
from servers import HOST, free_ports
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from test_publish import another_build, scribble

from orchestration.config.settings import PROJECT, Settings
from orchestration.warehouse.publish import publish

BI = PROJECT / "bi"
PAGE = (PROJECT / "docs" / "how-to" / "bi.md").read_text("utf-8")
BLOCKS: dict[str, str] = dict(re.findall(r"^```\w+ (\w+)\n(.*?)^```", PAGE, re.S | re.M))
STEPS = {
    "viewed": "view_item",
    "added to cart": "add_to_cart",
    "began checkout": "begin_checkout",
    "purchased": "purchase",
}
#: Charts of the dashboard, and whether each of them is drawn.
CHARTS = 13
DRAWN = """count => {
    const charts = [...document.querySelectorAll("[data-test-chart-name]")];
    return charts.length == count && !document.querySelector(".loading")
        && charts.every(chart => chart.querySelector("canvas, table, .header-line"));
}"""


@pytest.fixture(scope="module")
def shop(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The small shop, published, with its own warehouse to publish again."""
    folder = tmp_path_factory.mktemp("bi")
    where = replace(built_shop, warehouse=folder / "warehouse.duckdb", published=folder / "published")
    shutil.copy(built_shop.warehouse, where.warehouse)
    # The shop is too small to have refunds.
    scribble(
        where,
        "update marts.fct_orders set refunds = round(revenue / 4, 4), net_revenue = revenue - round(revenue / 4, 4) "
        "where substr(order_key, -1) in ('1', '5')",
    )
    publish(where)
    return where


@dataclass(frozen=True)
class Marts:
    """The published marts of a folder, as pandas has them; money and counts are floats."""

    folder: Path

    def ask(self, sql: str) -> pd.DataFrame:
        with duckdb.connect(str(self.folder / "finegrain.duckdb"), read_only=True) as con:
            return con.execute(sql).df()

    def query(self, name: str) -> pd.DataFrame:
        """What a query of bi/queries gives."""
        return self.ask((BI / "queries" / f"{name}.sql").read_text("utf-8"))

    def funnel(self) -> pd.DataFrame:
        """Sessions by day, device and step, counted from single events."""
        events = self.ask("from fct_events")
        first = events[events.is_entry].set_index("session_id")
        sessions = pd.DataFrame({"day": first.event_at.dt.normalize(), "device": first.device.fillna("unknown")})
        # The entry is the first of a session; with a view and a purchase of the same moment, it is one of them.
        sessions["reached"] = 0
        came = pd.Series(True, index=sessions.index)
        for number, kind in enumerate(STEPS.values(), start=1):
            came &= sessions.index.isin(events.session_id[events.event_type == kind])
            sessions.loc[came, "reached"] = number
        rows = []
        for (day, device), group in sessions.groupby(["day", "device"]):
            for number, step in enumerate(STEPS, start=1):
                counts = (int((group.reached >= number).sum()), int((group.reached >= number - 1).sum()))
                rows.append((day, device, number, step, *counts))
        return pd.DataFrame(rows, columns=["day", "device", "step", "step_name", "sessions", "sessions_before"])

    def revenue(self) -> pd.DataFrame:
        """Money by day and status, from lines; what only orders know, from these."""
        lines = self.ask("from fct_order_items").astype({"gross": float, "discount": float, "quantity": float})
        sold = lines.is_sale.astype(float)
        lines.quantity = lines.quantity.fillna(1) * sold
        value = lines.gross.fillna(0) - lines.discount
        lines["revenue"], lines["unsold_value"] = value * sold, value * (1 - sold)
        known = self.ask("from fct_orders").set_index("order_key")
        bought = lines.groupby("order_key")
        orders = bought[["revenue", "quantity", "unsold_value"]].sum().rename(columns={"quantity": "units"})
        orders["orders"] = bought.is_sale.max().astype(int)
        orders["unsold_orders"] = 1 - orders.orders
        orders["day"] = bought.ordered_at.min().dt.normalize()
        orders["status"] = known.status.fillna("unknown")
        orders["refunds"] = known.refunds.astype(float)
        orders["net_revenue"] = orders.revenue - orders.refunds
        return orders.groupby(["day", "status"]).sum().reset_index().assign(currency="USD")


def same(found: pd.DataFrame, expected: pd.DataFrame, *key: str) -> None:
    """Check for the same rows in any order; numbers are compared with float precision."""
    assert set(found.columns) == set(expected.columns)
    found, expected = (
        frame.sort_values(list(key)).reset_index(drop=True)[list(found.columns)] for frame in (found, expected)
    )
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-9, atol=1e-6)


def test_the_funnel_is_what_pandas_counts(shop: Settings) -> None:
    marts = Marts(shop.published)
    found = marts.query("funnel")
    assert found.sessions[found.step_name == "purchased"].sum() > 0
    same(found, marts.funnel(), "day", "device", "step")


def test_the_revenue_is_what_pandas_adds_up(shop: Settings) -> None:
    marts = Marts(shop.published)
    found = marts.query("revenue")
    assert found.refunds.sum() > 0 and len(found) > 20
    same(found, marts.revenue(), "day", "status")


def test_orders_that_are_no_sale_are_in_no_revenue() -> None:
    day = date(2025, 1, 1)
    orders = pd.DataFrame(
        {
            "ordered_on": [day, day, day, day],
            "status": ["paid", "cancelled", "cancelled", None],
            "is_sale": [True, False, False, True],
            "units": [2, 0, 0, 1],
            "revenue": [20.0, 0.0, 0.0, 5.0],
            "refunds": [1.0, 0.0, 0.0, 0.0],
            "net_revenue": [19.0, 0.0, 0.0, 5.0],
            "gross": [22.0, 30.0, 40.0, 5.0],
            "discount": [2.0, 3.0, 0.0, 0.0],
        }
    )
    with duckdb.connect() as con:
        con.register("fct_orders", orders)
        con.register("dim_shop", pd.DataFrame({"reporting_currency": ["EUR"]}))
        found = con.execute((BI / "queries" / "revenue.sql").read_text("utf-8")).fetchall()
    assert found == [
        (day, "cancelled", "EUR", 0, 0.0, 0.0, 0.0, 0.0, 2, 67.0),
        (day, "paid", "EUR", 1, 2.0, 20.0, 1.0, 19.0, 0, 0.0),
        (day, "unknown", "EUR", 1, 1.0, 5.0, 0.0, 5.0, 0, 0.0),
    ]


def cohorts(orders: pd.DataFrame, as_of: pd.Timestamp) -> pd.DataFrame:
    """Cohort by cohort, customer by customer."""
    by_week = orders.ordered_at.max() - orders.ordered_at.min() < timedelta(days=180)

    def number(moment: pd.Timestamp) -> int:
        day: date = moment.date()
        return (day - date(2000, 1, 3)).days // 7 if by_week else day.year * 12 + day.month - 1

    def start(period: int) -> pd.Timestamp:
        day = date(2000, 1, 3) + timedelta(weeks=period) if by_week else date(period // 12, period % 12 + 1, 1)
        return pd.Timestamp(day)

    periods: dict[str, set[int]] = {}
    for customer, moment in zip(orders.customer_id, orders.ordered_at, strict=True):
        periods.setdefault(customer, set()).add(number(moment))
    rows = []
    for cohort in {min(of) for of in periods.values()}:
        members = [of for of in periods.values() if min(of) == cohort]
        for since in range(number(as_of) - cohort):
            again = sum(cohort + since in of for of in members)
            rows.append(
                ("week" if by_week else "month", start(cohort), since, len(members), again, again / len(members))
            )
    return pd.DataFrame(
        rows, columns=["period", "cohort", "periods_since", "customers", "customers_who_ordered", "retention"]
    )


def test_the_cohorts_are_what_pandas_finds(shop: Settings) -> None:
    marts = Marts(shop.published)
    as_of = marts.ask("select max(as_of) as as_of from dim_customers").as_of[0]
    expected = cohorts(marts.ask("select customer_id, ordered_at from fct_orders where is_sale"), as_of)
    assert len(expected) >= 3
    same(marts.query("cohort_retention"), expected, "cohort", "periods_since")


@pytest.mark.parametrize("days", [60, 179, 181, 500])
def test_cohorts_are_weeks_at_first_and_months_later(days: int) -> None:
    random = np.random.default_rng(days)
    first = pd.Timestamp("2024-11-20 07:00")
    seconds = np.sort(random.integers(0, days * 86400, 400))
    seconds[0], seconds[-1] = 0, days * 86400
    orders = pd.DataFrame(
        {
            "customer_id": [f"c{number}" for number in random.integers(0, 120, 400)],
            "ordered_at": first + pd.to_timedelta(seconds, unit="s"),
            "is_sale": True,
        }
    )
    orders["ordered_on"] = orders.ordered_at.dt.date
    as_of = orders.ordered_at.max() + timedelta(days=1)
    with duckdb.connect() as con:
        con.register("fct_orders", orders)
        con.register("dim_shop", pd.DataFrame({"as_of_date": [as_of.date()]}))
        found = con.execute((BI / "queries" / "cohort_retention.sql").read_text("utf-8")).df()
    assert (
        set(found.period) == {"week" if days < 180 else "month"} and found.retention[found.periods_since > 0].max() > 0
    )
    same(found, cohorts(orders, as_of), "cohort", "periods_since")


def test_the_feature_health_is_what_pandas_measures(shop: Settings) -> None:
    marts = Marts(shop.published)
    found = marts.query("feature_health")
    measured = {
        (mart, item, measure): value for mart, item, measure, value in found.iloc[:, :4].itertuples(index=False)
    }
    assert len(measured) == len(found)
    expected: dict[tuple[str, str, str], float] = {}
    names = marts.ask(
        "select table_name as name from duckdb_tables() where table_name like '%\\_features' escape '\\'"
    ).name
    for mart in names:  # all there are, so that a new one is not forgotten
        rows = marts.ask(f"from {mart}").drop(columns=["as_of", "built_from"])
        kinds = marts.ask(f"describe {mart}").set_index("column_name").column_type
        for column in rows:
            values = rows[column]
            expected[mart, column, "rows"] = len(rows)
            expected[mart, column, "null_share"] = values.isna().mean()
            if re.match("VARCHAR|TIMESTAMP|DATE", kinds[column]):
                continue
            numbers = values.dropna().astype(float)
            expected[mart, column, "zero_share"] = (numbers == 0).sum() / len(rows)
            if len(numbers):
                expected |= {
                    (mart, column, "mean"): numbers.mean(),
                    (mart, column, "min"): numbers.min(),
                    (mart, column, "max"): numbers.max(),
                }
    for source, rows in marts.ask("from event_ledger").groupby("source"):
        expected["event_ledger", source, "rows"] = rows.raw_rows.sum()
        expected["event_ledger", source, "duplicate_share"] = rows.duplicates.sum() / rows.raw_rows.sum()
        expected["event_ledger", source, "quarantined_share"] = rows.quarantined.sum() / rows.raw_rows.sum()
    for (record, column), rows in marts.ask("from missingness_audit").groupby(["record", "column_name"]):
        expected["missingness_audit", f"{record}.{column}", "rows"] = rows.all_rows.sum()
        expected["missingness_audit", f"{record}.{column}", "missing_share"] = (
            rows.missing_rows.sum() / rows.all_rows.sum()
        )
        expected["missingness_audit", f"{record}.{column}", "imputed_share"] = (
            rows.imputed_rows.sum() / rows.all_rows.sum()
        )
    assert measured.keys() == expected.keys()
    wrong = {
        key: (measured[key], value)
        for key, value in expected.items()
        if measured[key] != pytest.approx(value, 1e-9, 1e-9)
    }
    assert not wrong
    [as_of] = found.as_of.unique()
    assert as_of == marts.ask("select max(as_of) as as_of from user_features").as_of[0]
    age = (datetime.now(UTC).replace(tzinfo=None) - as_of).total_seconds() / 3600
    assert found.age_hours.between(age - 0.1, age + 0.1).all()


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "cli"])
def test_the_blocks_of_the_page_run(shop: Settings, tmp_path: Path, name: str) -> None:
    (tmp_path / "bi").symlink_to(BI)
    (tmp_path / "var" / "demo" / "simulated").mkdir(parents=True)
    (tmp_path / "var" / "demo" / "simulated" / "published").symlink_to(shop.published)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[name]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = Marts(shop.published).revenue()
    if name == "duckdb":
        wanted = [f"{money:.2f}".rstrip("0").rstrip(".") for money in expected.groupby("status").revenue.sum()]
    else:
        wanted = [str(expected.orders.sum()), f"{expected.revenue.sum():.2f}".rstrip("0").rstrip(".")]
    assert all(figure in done.stdout for figure in wanted), done.stdout


def test_the_page_runs_the_four_queries_that_there_are() -> None:
    assert {path.name for path in (BI / "queries").iterdir()} == set(
        re.findall(r"\(\.\./\.\./bi/queries/(\w+\.sql)\)", PAGE)
    )
    assert set(BLOCKS) == {"duckdb", "cli", "parquet", "sqlalchemy"}


def test_without_a_pool_a_connection_opens_the_newest_version(shop: Settings, tmp_path: Path) -> None:
    where = replace(shop, warehouse=tmp_path / "warehouse.duckdb", published=tmp_path / "published")
    shutil.copy(shop.warehouse, where.warehouse)
    publish(where)
    address = f"duckdb:///{where.published / 'finegrain.duckdb'}"
    engines = [
        create_engine(address, connect_args={"read_only": True}, **more) for more in ({"poolclass": NullPool}, {})
    ]

    def orders(engine: Any) -> int:
        with engine.connect() as con:
            return int(con.exec_driver_sql("select count(*) from fct_orders").scalar())

    before = [orders(engine) for engine in engines]
    another_build(where, "delete from marts.fct_orders where status = 'shipped'")
    publish(where)
    after = [orders(engine) for engine in engines]
    assert before[0] == before[1] == after[1] > after[0] > 0
    engines[1].dispose()


def test_superset_is_let_see_the_published_file_alone(shop: Settings, tmp_path: Path) -> None:
    asset = yaml.safe_load((BI / "assets" / "databases" / "finegrain.yaml").read_text("utf-8"))
    database = shop.published / "finegrain.duckdb"
    engine = create_engine(f"duckdb:///{database}", poolclass=NullPool, **asset["extra"]["engine_params"])
    with engine.connect() as con:
        assert con.exec_driver_sql("select count(*) from fct_events").scalar()
    for sql in (
        f"select * from read_text('{__file__}')",
        f"copy fct_orders to '{tmp_path / 'orders.csv'}'",
        f"attach '{shop.warehouse}' as warehouse (read_only)",
        "set enable_external_access = true",
        "create table of_mine as select 1 as one",
    ):
        with engine.connect() as con, pytest.raises(Exception, match=r"disabled|Cannot|read-only"):
            con.exec_driver_sql(sql)
    assert not list(tmp_path.iterdir())


def missing(what: str) -> None:
    """A program that is not installed skips the test; in CI it fails it."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def pictured(shop: Settings) -> Path:
    """The published folder that Superset shows."""
    folder_name = os.environ.get("FINEGRAIN_BI_PICTURES")
    return Path(folder_name).absolute() if folder_name else shop.published


@dataclass(frozen=True)
class Superset:
    """A running Superset."""

    address: str
    password: str


@pytest.fixture(scope="module")
def superset(pictured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Superset]:
    """Superset on the published marts, started as a person would, with a home of its own."""
    if not (PROJECT / "var" / "bi" / ".venv" / ".installed").exists():
        missing("Superset is not installed: scripts/bi setup")
    home = tmp_path_factory.mktemp("superset")
    [port] = free_ports(1)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("FINEGRAIN_", "SUPERSET_"))
    }
    environment |= {"FINEGRAIN_HOME": str(home), "FINEGRAIN_PUBLISHED": str(pictured)}
    terminal = home / "terminal"
    with terminal.open("w") as output:
        process = subprocess.Popen(
            [PROJECT / "scripts" / "bi", "--port", str(port)], env=environment, stdout=output, stderr=output
        )
    try:
        until = time.monotonic() + 180
        while "ready after" not in terminal.read_text("utf-8"):
            assert process.poll() is None and time.monotonic() < until, terminal.read_text("utf-8")
            time.sleep(0.2)
        kept = home / "bi" / "secrets"
        assert kept.stat().st_mode & 0o777 == 0o600
        password = dict(line.split("=", 1) for line in kept.read_text("utf-8").splitlines())["FINEGRAIN_BI_PASSWORD"]
        assert password not in terminal.read_text("utf-8")
        yield Superset(f"http://{HOST}:{port}", password)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def page(superset: Superset) -> Iterator[Page]:
    """A page of a real browser, logged in. At the end, it must have had requests to Superset only."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        missing("chromium is not installed; on Debian: apt-get install --no-install-recommends chromium")
    finished: list[str] = []

    def note(request: Request) -> None:
        finished.append(request.url)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 3200})
        page.set_default_timeout(60_000)
        page.on("requestfinished", note)
        page.goto(f"{superset.address}/login/")
        page.fill("#username", "admin")
        page.fill("#password", superset.password)
        page.keyboard.press("Enter")
        page.wait_for_url("**/superset/welcome/**")
        yield page
        browser.close()
    elsewhere = [url for url in finished if not url.startswith((superset.address, "data:", "blob:"))]
    assert finished and not elsewhere


def look(page: Page, superset: Superset) -> dict[str, list[dict[str, Any]]]:
    """Open the dashboard and wait until all of it is drawn; the rows that each query of a chart got, by its columns."""
    got: dict[str, list[dict[str, Any]]] = {}
    failed: list[str] = []

    def note(response: Response) -> None:
        if "/api/v1/chart/data" in response.url:
            if response.status != 200:
                failed.append(response.text())
                return
            for result in response.json()["result"]:
                got[" ".join(result["colnames"])] = result["data"]

    page.on("response", note)
    page.goto(f"{superset.address}/superset/dashboard/finegrain/")
    until = time.monotonic() + 90
    while not page.evaluate(DRAWN, CHARTS):  # wait_for_function would need a laxer page than Superset's
        assert not failed and time.monotonic() < until, (failed, page.inner_text("body"))
        page.wait_for_timeout(200)
    page.remove_listener("response", note)
    assert not failed
    assert page.locator(".ant-alert-error").count() == 0
    return got


def chart(page: Page, name: str) -> Locator:
    return page.locator(f"[data-test-chart-name='{name}']")


def figure(page: Page, name: str) -> float:
    """The number of a chart of one number."""
    return float(chart(page, name).locator(".header-line").first.inner_text().replace(",", ""))


def cells(page: Page, name: str, first: str) -> list[float]:
    """The numbers of a table's row, by the row's first cell; shares in percent."""
    text = chart(page, name).inner_text()
    found = re.search(rf"^{re.escape(first)}\s+(\S.*)$", text, re.M)
    assert found, f"{name} has no {first}:\n{text}"
    return [float(re.sub("[,%]", "", cell).replace("N/A", "nan")) for cell in found[1].split("\t")]


def shown(*values: float, digits: int = 2) -> Any:
    """Values as a page rounds them."""
    return pytest.approx(list(values), rel=0, abs=0.51 * 10**-digits, nan_ok=True)


def percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else float("nan")


def shows_the_revenue(page: Page, expected: pd.DataFrame) -> None:
    total = expected.sum(numeric_only=True)
    assert [figure(page, "Revenue"), figure(page, "Net of refunds")] == shown(total.revenue, total.net_revenue)
    assert figure(page, "Orders") == total.orders
    mean = total.revenue / total.orders
    assert [figure(page, "Average order value")] == shown(mean)
    for status, rows in expected.groupby("status"):
        sums = rows.sum(numeric_only=True)
        mean = sums.revenue / sums.orders
        of_sales = (sums.orders, sums.revenue, sums.refunds, mean)
        assert cells(page, "Orders by status", status) == shown(*of_sales, sums.unsold_orders, sums.unsold_value)


def test_superset_shows_the_dashboard(page: Page, superset: Superset, shop: Settings, pictured: Path) -> None:
    marts = Marts(pictured)
    got = look(page, superset)

    revenue = marts.revenue()
    shows_the_revenue(page, revenue)
    days = revenue.groupby("day")[["net_revenue", "refunds"]].sum()
    bars = {pd.Timestamp(row["day"], unit="ms"): row for row in got["day net_revenue refunds"]}
    assert list(bars) == list(days.index)
    for day, row in bars.items():
        assert [row["net_revenue"], row["refunds"]] == pytest.approx(list(days.loc[day]))

    funnel = marts.funnel()
    steps = funnel.groupby("step_name").sessions.sum()
    assert {row["step_name"]: row["sessions"] for row in got["step_name sessions"]} == steps.to_dict()
    for device, rows in itertools.chain([("Summary", funnel)], funnel.groupby("device")):
        viewed, added, began, bought = rows.groupby("step").sessions.sum()
        rates = [percent(added, viewed), percent(began, added), percent(bought, began), percent(bought, viewed)]
        assert cells(page, "Funnel by device", device) == shown(viewed, *rates, digits=1)

    as_of = marts.ask("select max(as_of) as as_of from dim_customers").as_of[0]
    expected = cohorts(marts.ask("select customer_id, ordered_at from fct_orders where is_sale"), as_of).query(
        "periods_since > 0"
    )
    [name] = [name for name in got if name.startswith("periods_since cohort_label retention")]
    assert {(row["cohort_label"], row["periods_since"]): row["retention"] for row in got[name]} == {
        (f"{row.cohort:%Y-%m-%d} ({row.customers})", row.periods_since): pytest.approx(row.retention)
        for row in expected.itertuples()
    }

    for mart in ("user_features", "item_pair_features"):
        rows = marts.ask(f"from {mart}").drop(columns=["as_of", "built_from"])
        found = chart(page, "Feature marts").get_by_role("row").filter(has_text=mart).first.inner_text().split("\t")
        assert found[1:3] == [f"{len(rows):,}", str(len(rows.columns))]
        assert [float(found[3].strip("%"))] == shown(100 * rows.isna().mean().mean(), digits=1)
    for source, rows in marts.ask("from event_ledger").groupby("source"):
        raw = rows.raw_rows.sum()
        shares = [percent(rows.duplicates.sum(), raw), percent(rows.quarantined.sum(), raw)]
        assert cells(page, "What came in", source) == shown(raw, *shares)
    assert "100.0%" in chart(page, "Features").inner_text()
    assert "customer.gender" in chart(page, "Missing and imputed").inner_text()

    if os.environ.get("FINEGRAIN_BI_PICTURES"):
        keep_pictures(page)
        return

    # A publish is seen by the next look, without a restart.
    another_build(
        shop, "delete from marts.fct_orders where order_key <= (select median(order_key) from marts.fct_orders)"
    )
    publish(shop)
    rest = marts.ask("from fct_orders")
    assert 0 < len(rest) < revenue.orders.sum()
    look(page, superset)
    assert figure(page, "Orders") == len(rest)
    assert [figure(page, "Revenue")] == shown(rest.revenue.astype(float).sum())


def keep_pictures(page: Page) -> None:
    """Store what docs/how-to/bi.md shows: the part of the page from one chart to another."""
    folder = PROJECT / "docs" / "images"
    folder.mkdir(exist_ok=True)
    for name, first, last in (
        ("sales", "Revenue", "Cohort retention"),
        ("features", "Feature marts", "Missing and imputed"),
    ):
        top, bottom = chart(page, first).bounding_box(), chart(page, last).bounding_box()
        assert top and bottom
        clip = {
            "x": top["x"] - 32,
            "y": top["y"] - 24,
            "width": bottom["x"] + bottom["width"] - top["x"] + 64,
            "height": bottom["y"] + bottom["height"] - top["y"] + 64,
        }
        page.screenshot(path=folder / f"bi-{name}.png", clip=clip)
