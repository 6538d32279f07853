"""The report as one page: its figures agree with pandas over the published Parquet files, nothing in it runs, and a browser shows it on any screen.

With FINEGRAIN_REPORT_PICTURES=<a page>, the browser opens that page and saves its pictures in docs/images.
"""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from playwright.sync_api import Browser, Page, sync_playwright
from test_publish import another_build, scribble
from typer.testing import CliRunner

from orchestration.cli.commands import app
from orchestration.config.published import REPORT, published_report
from orchestration.config.settings import PROJECT, Settings
from orchestration.dagster.watch import _report
from orchestration.errors import FinegrainError
from orchestration.features.catalog import catalog
from orchestration.report import charts, figures
from orchestration.report import page as report
from orchestration.report.page import page, publish_page
from orchestration.warehouse.publish import publish

#: The name of a source, and of a reason.
HOSTILE = "</script><img src=x onerror=alert(1)>\"'"
PICTURES = os.environ.get("FINEGRAIN_REPORT_PICTURES")


def copy_of(built_shop: Settings, folder: Path) -> Settings:
    where = replace(built_shop, warehouse=folder / "warehouse.duckdb", published=folder / "published")
    shutil.copy(built_shop.warehouse, where.warehouse)
    return where


@dataclass(frozen=True)
class Shop:
    """A published shop, its page, and the parts of the page."""

    where: Settings
    text: str

    def mart(self, name: str) -> pd.DataFrame:
        return pd.concat(pd.read_parquet(path) for path in (self.where.published / "parquet" / name).glob("*.parquet"))

    def part(self, name: str) -> str:
        """A section of the page."""
        [found] = re.findall(rf'<section id="{name}">(.*?)</section>', self.text, re.S)
        return str(found)

    def table(self, part: str, first: str) -> list[list[str]]:
        """The cells of the table of a part whose first heading is `first`; only the first line of a cell."""
        for table in re.findall("<table.*?</table>", self.part(part), re.S):
            if re.search(r"<th(?: [^>]*)?>(.*?)</th>", table)[1] == first:  # type: ignore[index]
                body = table.partition("<tbody>")[2]
                rows = re.findall("<tr>(.*?)</tr>", body, re.S)
                cells = [re.findall("<td[^>]*>(.*?)</td>", row, re.S) for row in rows]
                return [
                    [html.unescape(re.sub('<span class="about".*|<[^>]*>', "", cell)) for cell in row] for row in cells
                ]
        raise AssertionError(f"no table of {first} in {part}")


@pytest.fixture(scope="module")
def shop(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The small shop, with three anomalies, of which one is suppressed, and a source and a reason with hostile names."""
    where = copy_of(built_shop, tmp_path_factory.mktemp("report"))
    scribble(
        where,
        """
        insert into marts.metric_anomalies by name
        select
            'rule' as rule_id, metric, table_name, source, segment, segment_value, column_name, day, value, value * 3 + 1 as expected, value + 1 as low,
            9.0 as score, n, if(metric = 'volume', 'error', 'warn') as severity, 'data-engineering' as owner,
            metric = 'duplicate_share' as is_suppressed, as_of, built_from
        from marts.metric_history
        where segment = 'source' and source = 'shop_web' and table_name = 'events' and metric in ('volume', 'quarantined_share', 'duplicate_share')
            and day = cast(as_of as date) - 3
        """,
    )
    name = HOSTILE.replace("'", "''")
    for mart in ("event_ledger", "metric_history", "metric_anomalies", "missingness_advice"):
        scribble(where, f"update marts.{mart} set source = '{name}' where source = 'shop_app'")
    scribble(
        where,
        f"create or replace table marts.quarantined_events as select * replace (list_append(reasons, '{name}') as reasons) from marts.quarantined_events",
    )
    publish(where)
    return Shop(where, page(where))


def count(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_ledger_adds_up_as_pandas_does(shop: Shop) -> None:
    ledger = shop.mart("event_ledger")
    verdicts = ["raw_rows", "kept", "duplicates", "quarantined"]
    expected = ledger.groupby(["source", "raw_table"], observed=True)[verdicts].sum()
    found = {(row[0], row[1]): [count(cell) for cell in row[2:]] for row in shop.table("rows", "source")}
    assert found == {key: list(values) for key, values in zip(expected.index, expected.to_numpy(), strict=True)}
    assert f"<b>{ledger.raw_rows.sum():,}</b>raw rows" in shop.text
    assert f"<b>{ledger.quarantined.sum():,}</b>quarantined" in shop.text


def test_the_bands_of_the_flow_are_the_rows(shop: Shop) -> None:
    with duck(shop) as con:
        bands = pd.DataFrame(figures.ask(con, figures.FLOW))
    expected = shop.mart("event_ledger").groupby("source", observed=True)[["kept", "duplicates", "quarantined"]].sum()
    assert {(row.source, row.verdict): row.n for row in bands.itertuples()} == {
        (source, verdict): n for source, row in expected.iterrows() for verdict, n in row.items()
    }
    total = bands.n.sum()
    for side, group in (("left", "source"), ("right", "verdict")):
        low, high = bands[f"{side}_low"], bands[f"{side}_high"]
        assert ((high - low) * total).round(6).tolist() == bands.n.tolist()
        ordered = bands[high > low].sort_values(f"{side}_low")
        # One band begins where the one below ends, and those of a source or verdict are together.
        assert ordered[f"{side}_low"].iloc[0] == 0 and ordered[f"{side}_high"].iloc[-1] == 1
        assert (ordered[f"{side}_low"].iloc[1:].to_numpy() == ordered[f"{side}_high"].iloc[:-1].to_numpy()).all()
        assert (ordered[group] != ordered[group].shift()).sum() == ordered[group].nunique()


def test_reasons_and_what_they_cost(shop: Shop) -> None:
    rows = shop.mart("quarantined_events")
    rows["day"] = rows.raw_available_at.dt.normalize()
    events = shop.mart("fct_events")
    priced = events[(events.price_in_currency > 0) & (events.price > 0)]
    rates = (
        (priced.price.astype(float) / priced.price_in_currency.astype(float))
        .groupby(priced.currency, observed=True)
        .median()
    )
    bought = events[(events.event_type == "purchase") & events.order_id.notna()]
    kept = set(zip(bought.order_id, bought.product_id, strict=True))

    def worth(row: Any) -> float:
        if row.event_type != "purchase" or pd.isna(row.price) or set(row.reasons) & set(figures.WORTHLESS):
            return 0.0
        if (row.order_id, row.product_id) in kept:
            return 0.0
        quantity = 1.0 if pd.isna(row.quantity) else float(row.quantity)
        return float(row.price) * quantity * (1.0 if pd.isna(row.currency) else float(rates.get(row.currency, 0.0)))

    rows["worth"] = [worth(row) for row in rows.itertuples()]
    each = rows.explode("reasons")
    as_of = shop.mart("event_ledger").as_of.iloc[0].normalize()
    expected = {
        reason: [
            len(some),
            int((some.day >= as_of - pd.Timedelta(days=28)).sum()),
            str(some.day.min())[:10],
            str(some.day.max())[:10],
            ", ".join(sorted(some.source.unique())),
        ]
        for reason, some in each.groupby("reasons")
    }
    found = shop.table("rows", "reason")
    assert {row[0]: [count(row[1]), count(row[2]), *row[3:6]] for row in found} == expected
    assert HOSTILE in expected and len(expected) > 5
    with duck(shop) as con:
        reasons = {row["reason"]: row["worth"] for row in figures.ask(con, figures.REASONS)}
        [costs] = figures.ask(con, figures.COSTS)
    assert reasons == pytest.approx(each.groupby("reasons").worth.sum().to_dict())
    assert costs["quarantined"] == pytest.approx(rows.worth.sum()) and costs["purchases"] == (rows.worth > 0).sum()
    purchases = events[events.event_type == "purchase"]
    assert costs["revenue"] == pytest.approx(float(purchases.amount.sum()))
    assert costs["revenue_treated"] == pytest.approx(float(purchases.amount_treated.sum()))


def test_purchases_in_quarantine_have_a_worth(shop: Shop, built_shop: Settings, tmp_path: Path) -> None:
    """One of 2 × 10 EUR, at a rate of 1.5; not those that are bots', impossible, or kept from another source as well."""
    where = copy_of(built_shop, tmp_path)
    scribble(
        where,
        """
        create table one_event as
        select * replace (15 as price, 10 as price_in_currency, 'EUR' as currency, 'kept' as order_id, 'p' as product_id, 'purchase' as event_type)
        from (from marts.fct_events limit 1);
        drop view marts.fct_events;
        create table marts.fct_events as from one_event;
        create or replace table marts.quarantined_events as
        select q.* replace (
            v.reasons as reasons, v.order_id as order_id, 'p' as product_id, 'purchase' as event_type, 2 as quantity, 10 as price, v.currency as currency
        )
        from (from marts.quarantined_events limit 1) as q
        cross join (values
            (['unknown_user', 'consent_denied'], 'lost', 'EUR'), (['unknown_user', 'bot_rate'], 'bot', 'EUR'),
            (['price_out_of_range'], 'absurd', 'EUR'), (['unknown_user'], 'kept', 'EUR'), (['unknown_user'], 'own', null), (['unknown_user'], 'none', 'GBP')
        ) as v (reasons, order_id, currency)
        """,
    )
    publish(where)
    with duck(Shop(where, "")) as con:
        worth = {row["reason"]: row["worth"] for row in figures.ask(con, figures.REASONS)}
        [costs] = figures.ask(con, figures.COSTS)
    assert worth == {"unknown_user": 50, "consent_denied": 30, "bot_rate": 0, "price_out_of_range": 0}
    assert (costs["quarantined"], costs["purchases"]) == (50, 2)


def test_every_anomaly_of_a_drawn_series_is_marked_once(shop: Shop) -> None:
    anomalies = shop.mart("metric_anomalies")
    expected = anomalies[~anomalies.is_suppressed]
    titles = re.findall("<title>(.*?)</title>", shop.part("trends"))
    assert len(expected) == 2
    assert sorted(titles) == sorted(
        f"{row.day}: {charts.share(row.value) if row.metric == 'quarantined_share' else f'{row.value:,.0f}'}, "
        f"expected {charts.share(row.expected) if row.metric == 'quarantined_share' else f'{row.expected:,.0f}'}"
        for row in expected.itertuples()
    )
    assert "shop_web: 1 anomalous day in the last 28" in shop.part("trends")
    [incident] = [row for row in shop.table("to-do", "what") if row[3].startswith("anomalous")]
    assert incident[0].startswith("error ") and incident[1:4] == [
        "shop_web",
        str(expected.day.iloc[0]),
        "anomalous on 1 day",
    ]
    assert "The data needs attention." in shop.text


def test_gaps_and_drift_are_those_of_the_history(shop: Shop) -> None:
    history = shop.mart("metric_history")
    history = history[history.segment == "source"]
    history["day"] = pd.to_datetime(history.day)
    for metric, query, least in (("completeness", figures.GAPS, 0.005), ("psi", figures.DRIFT, 0.1)):
        some = history[(history.metric == metric) & (history.n > 0)]
        if metric == "psi":
            first, last = some.day.min(), some.day.max()
            some = some[some.n >= figures.MIN_ROWS]
        else:
            first, last = some.day.min(), some.day.max()
        days = -(-((last - first).days + 1) // figures.PERIODS)
        some = some.assign(period=first + pd.to_timedelta((some.day - first).dt.days // days * days, "D"))
        key = ["source", "table_name", "column_name"]
        if metric == "completeness":
            some = some.assign(gaps=(1 - some.value) * some.n)
            sums = some.groupby([*key, "period"], observed=True)[["gaps", "n"]].sum()
            value = sums.gaps / sums.n
        else:
            value = some.groupby([*key, "period"], observed=True).value.median()
        value = value[value.groupby(key, observed=True).transform("max") >= least]
        with duck(shop) as con:
            found = {
                (row["source"], row["table_name"], row["column_name"], pd.Timestamp(row["period"])): row["value"]
                for row in figures.ask(con, query)
            }
        assert found == pytest.approx(value.to_dict()) and found


def test_outliers_before_and_after(shop: Shop, built_shop: Settings, tmp_path: Path) -> None:
    events = shop.mart("fct_events")
    found = {row[0]: row for row in shop.table("outliers", "column")}
    for column in ("price", "quantity"):
        treated = events[events[f"{column}_is_outlier"].fillna(False).astype(bool)]
        assert count(found[column][1]) == events[column].notna().sum()
        assert count(found[column][2]) == len(treated)
        for place, values in ((4, treated[column]), (7, treated[f"{column}_treated"])):
            expected = [
                None if treated.empty else float(getattr(values.astype(float), each)())
                for each in ("min", "median", "max")
            ]
            assert found[column][place : place + 3] == [report.number(each) for each in expected]
    with duck(shop) as con:
        buckets = pd.DataFrame(
            figures.ask(con, figures.OUTLIER_BUCKETS), columns=["column_name", "stage", "low", "high", "n"]
        )
    prices = events[events.price_is_outlier.fillna(False).astype(bool)]
    for stage, values in (("before", prices.price), ("after", prices.price_treated)):
        counted = buckets[(buckets.column_name == "price") & (buckets.stage == stage)]
        assert counted.n.sum() == (values.astype(float) > 0).sum()
        for row in counted.itertuples():
            assert (
                row.n
                == (
                    (values.astype(float) >= row.low * (1 - 1e-9)) & (values.astype(float) < row.high * (1 - 1e-9))
                ).sum()
            )
    assert len(prices) > 0


def test_features_and_their_health(shop: Shop) -> None:
    part = shop.part("features")
    for mart in ("user_features", "item_features", "session_features"):
        rows = shop.mart(mart)
        [block] = re.findall(rf"<summary><h3>{mart}</h3>.*?</details>", part, re.S)
        found = dict(re.findall(r'<tr><td class="name">(\w+)</td><td class="flag">(.*?)</td>', block))
        assert f"{len(rows):,} rows, {len(found)} features" in block
        for name, flag in found.items():
            values = rows[name].dropna()
            if values.empty:
                assert flag == "always null", name
            elif pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
                assert (flag == "constant") == (len(values) == len(rows) and values.nunique() == 1), name
        ill = [bool(flag) for flag in found.values()]
        assert ill == sorted(ill, reverse=True) and any(ill)


def test_a_sample_is_enough_for_the_features(shop: Shop) -> None:
    whole = {
        each.name: each for each in catalog(shop.where, mart="user_item_features", lineage=False).marts[0].features
    }
    some = catalog(shop.where, mart="user_item_features", lineage=False, sample=200)
    again = catalog(shop.where, mart="user_item_features", lineage=False, sample=200)
    assert some == again
    [mart] = some.marts
    assert mart.rows is not None and mart.rows > 200
    assert mart.rows == len(shop.mart("user_item_features"))
    for each in mart.features:
        assert each.figures and whole[each.name].figures
        if each.figures.numbers and (all_of := whole[each.name].figures.numbers):  # type: ignore[union-attr]
            assert all_of["min"] <= each.figures.numbers["min"] <= each.figures.numbers["max"] <= all_of["max"]


def test_freshness_and_the_slowest_models(shop: Shop) -> None:
    history = shop.mart("metric_history")
    fresh = history[(history.metric == "freshness") & (history.segment == "source")].sort_values("day")
    expected = {
        (row.table_name, row.source): report.hours(row.value)
        for row in fresh.groupby(["table_name", "source"], observed=True).tail(1).itertuples()
    }
    assert {(row[0], row[1]): row[2] for row in shop.table("build", "table")} == expected
    slowest = [(row[0], float(row[1])) for row in shop.table("build", "model")]
    assert len(slowest) == 10 and [seconds for _, seconds in slowest] == sorted(
        (seconds for _, seconds in slowest), reverse=True
    )
    built = {path.stem for folder in ("models", "seeds") for path in (PROJECT / folder).rglob("*.*")}
    built |= {f"{path.stem}_history" for path in (PROJECT / "snapshots").glob("*.sql")}
    assert {name for name, _ in slowest} <= built


def test_text_from_data_is_text(shop: Shop) -> None:
    assert html.escape(HOSTILE.partition(">")[0], quote=False) in shop.text
    found = Elements()
    found.feed(shop.text)
    assert {name for name in found.names if name not in ALLOWED} == set()
    assert not [
        name for name, _ in found.attributes if name.startswith("on") or name in ("src", "srcdoc", "style", "action")
    ]
    assert all(value.startswith("#") for name, value in found.attributes if "href" in name)


#: The elements of the page: text, tables, and what Vega draws.
ALLOWED = frozenset(
    [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "nav",
        "section",
        "p",
        "div",
        "span",
        "h1",
        "h2",
        "h3",
        "b",
        "a",
        "code",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "figure",
        "figcaption",
        "details",
        "summary",
        "svg",
        "g",
        "path",
        "line",
        "text",
        "rect",
    ]
)


class Elements(HTMLParser):
    """The elements of a page, and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_no_person_is_on_the_page(shop: Shop) -> None:
    text = shop.text
    for mart, columns in (
        ("fct_events", ["customer_id", "user_id", "anonymous_id", "session_id", "order_id"]),
        ("dim_customers", ["customer_id", "user_id"]),
        ("quarantined_events", ["identity", "order_id"]),
    ):
        rows = shop.mart(mart)
        for column in columns:
            values = {str(value) for value in rows[column].dropna().unique() if len(str(value)) > 5}
            assert not [value for value in values if value in text], column


def test_a_shop_without_history_and_an_empty_one(built_shop: Settings, tmp_path: Path) -> None:
    where = copy_of(built_shop, tmp_path)
    scribble(
        where,
        "delete from marts.metric_history; delete from marts.metric_anomalies; delete from marts.missingness_advice",
    )
    publish(where)
    young = Shop(where, page(where))
    assert "The data is well." in young.text
    assert "No day has closed yet, so there are no trends." in young.part("trends")
    assert "No source has had enough rows" in young.part("drift")
    names = [
        "fct_events",
        "quarantined_events",
        "dim_customers",
        "dim_products",
        "missingness_audit",
        "user_features",
        "item_features",
    ]
    for name in names:
        scribble(where, f"create table emptied as from marts.{name} limit 0")
        try:
            scribble(where, f"drop view marts.{name}")
        except Exception:
            scribble(where, f"drop table marts.{name}")
        scribble(where, f"create table marts.{name} as from emptied; drop table emptied")
    another_build(where, "delete from marts.event_ledger")
    publish(where)
    empty = Shop(where, page(where))
    assert "No rows have arrived yet." in empty.text and "finegrain load" in empty.text
    assert "No event is quarantined." in empty.part("rows")
    assert "There are no numbers to look at yet." in empty.part("outliers")


def test_the_page_stays_small_and_says_what_it_leaves_out(shop: Shop, built_shop: Settings, tmp_path: Path) -> None:
    assert len(shop.text) < 1_000_000
    where = copy_of(built_shop, tmp_path)
    scribble(
        where,
        """
        insert into marts.metric_history by name
        select 'volume' as metric, 'events' as table_name, 'source ' || s as source, 'source' as segment, 'source ' || s as segment_value,
            'row' as column_name, cast(as_of as date) - cast(d as integer) as day, 1 as value, 1 as n, as_of, built_from
        from (select max(as_of) as as_of, max(built_from) as built_from from marts.metric_history), range(100) as a (s), range(1, 800) as b (d)
        """,
    )
    publish(where)
    many = Shop(where, page(where))
    assert len(many.text) < 3_000_000
    with duck(many) as con:
        points = pd.DataFrame(figures.ask(con, figures.POINTS))
    assert points.number.nunique() == figures.SERIES and points.groupby("number").day.count().max() <= figures.HISTORY
    left = int(re.search(r"(\d+) series with older or fewer anomalies are left out", many.part("trends"))[1])  # type: ignore[index]
    history = many.mart("metric_history")
    volumes = history[(history.metric == "volume") & (history.segment == "source")]
    assert left == len(volumes[["table_name", "source"]].drop_duplicates()) - figures.SERIES


def test_it_is_published_beside_the_marts(
    built_shop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = copy_of(built_shop, tmp_path)
    assert publish_page(where) is None and published_report(where) is None  # nothing is published
    first = publish(where).folder

    def fails(*_: Any) -> None:
        raise RuntimeError("ann@example.com cannot be drawn")

    with monkeypatch.context() as patched:
        patched.setattr(charts, "flow", fails)
        said = publish_page(where)
    assert (
        said is not None
        and said.startswith("the marts are published, but")
        and "RuntimeError" in said
        and "ann@" not in said
    )
    assert published_report(where) is None and not [*first.glob(".report*")]
    assert _report("rows", "event_ledger", where).endswith("/assets/published/event_ledger")

    os.umask(old := os.umask(0o022))
    assert publish_page(where) is None
    os.umask(old)
    written = where.published / REPORT
    assert written.resolve() == first.resolve() / REPORT and written.read_text("utf-8").startswith("<!doctype html>")
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert _report("rows", "event_ledger", where).endswith("/finegrain/report#rows")

    another_build(where, "select 1")
    assert publish(where).folder != first
    assert published_report(where) is None and not written.exists()  # that of the version before is not this one's
    assert publish_page(where) is None and written.exists() and (first / REPORT).exists()


def test_the_command(home: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["report", "--html"])
    assert isinstance(said.exception, FinegrainError) and "nothing is published" in str(said.exception)
    monkeypatch.setattr(report, "page", lambda where=None: "<!doctype html>")
    said = CliRunner().invoke(app, ["report", "--html"])
    assert (said.exit_code, said.output) == (0, "wrote report.html\n")
    assert Path("report.html").read_text("utf-8") == "<!doctype html>" and [*Path().iterdir()] == [Path("report.html")]
    said = CliRunner().invoke(app, ["report", "--html", "--out", "other.html", "--json"])
    assert json.loads(said.output) == {"report": "other.html"} and Path("other.html").exists()
    said = CliRunner().invoke(app, ["report", "--html", "--out", "no/page.html"])
    assert isinstance(said.exception, FinegrainError)
    assert str(said.exception) == "no/page.html: the report cannot be written: No such file or directory"


def test_every_rule_and_metric_has_a_remedy() -> None:
    remedies = yaml.safe_load((PROJECT / "orchestration" / "report" / "remedies.yml").read_text("utf-8"))
    with (PROJECT / "seeds" / "validation_rules.csv").open(encoding="utf-8") as file:
        errors = {row["rule_id"] for row in csv.DictReader(file) if row["severity"] == "error"}
    with (PROJECT / "seeds" / "metric_rules.csv").open(encoding="utf-8") as file:
        metrics = {row["metric"] for row in csv.DictReader(file)}
    assert remedies["rules"].keys() == errors
    assert remedies["metrics"].keys() >= metrics
    assert set(figures.WORTHLESS) <= errors


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.5, "50 %"),
        (0.0004, "0.04 %"),
        (0.9996, "99.96 %"),
        (0.000001, "< 0.001 %"),
        (0.9999999, "> 99.999 %"),
        (None, "–"),
        (0.125, "12.5 %"),
        (0.1, "10 %"),
    ],
)
def test_a_share_differs_from_nothing_and_from_everything(value: float | None, text: str) -> None:
    assert charts.share(value) == text


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        said = "no Chromium on this machine (Debian: apt-get install chromium)"
        pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


BOXES = "[...document.querySelectorAll('main svg')].filter(each => each.checkVisibility()).map(each => {const b = each.getBoundingClientRect(); return [b.width, b.height]})"
COLOURS = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor].map(each => each.match(/[\\d.]+/g).map(Number))"
#: Text that is drawn over other text of the same chart, of the flow alone.
OVERLAPS = """() => { const boxes = [...document.querySelectorAll('#rows figure text')].map(each => each.getBoundingClientRect());
    return boxes.filter((a, i) => boxes.some((b, j) => j > i && a.left < b.right && b.left < a.right && a.top < b.bottom - 3 && b.top < a.bottom - 3)).length }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_it_on_any_screen(
    shop: Shop, browser: Browser, tmp_path: Path, scheme: Any, width: int
) -> None:
    path = Path(PICTURES) if PICTURES else tmp_path / "page.html"
    if not PICTURES:
        path.write_text(shop.text, "utf-8")
    opened = browser.new_page(viewport={"width": width, "height": 844 if width < 600 else 1000}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(path.as_uri())
    assert said == [] and asked == [path.as_uri()]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    boxes = opened.evaluate(BOXES)
    assert len(boxes) >= 5 and all(80 < each[0] <= width and each[1] > 20 for each in boxes)
    assert opened.evaluate(OVERLAPS) == 0
    text, ground = (_luminance(colour) for colour in opened.evaluate(COLOURS))
    assert (text > ground) == (scheme == "dark") and contrast(text, ground) > 7
    for name in ("--soft", "--accent", "--kept", "--duplicates", "--quarantined"):
        colour = opened.evaluate(
            "name => { document.body.insertAdjacentHTML('beforeend', '<i id=probe></i>'); const probe = document.getElementById('probe');"
            "probe.style.color = `var(${name})`; const found = getComputedStyle(probe).color; probe.remove(); return found.match(/[\\d.]+/g).map(Number) }",
            name,
        )
        assert contrast(_luminance(colour), ground) > 3, name
    _save(opened, scheme, width)
    if width == 1200:
        printed = opened.pdf(path=tmp_path / "page.pdf", format="A4")
        assert printed.startswith(b"%PDF") and 20_000 < len(printed) < 2_000_000
    opened.close()


def test_what_is_folded_opens_by_keyboard(shop: Shop, browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(shop.text, "utf-8")
    opened = browser.new_page(java_script_enabled=False)  # it needs none
    opened.goto(path.as_uri())
    mart = opened.locator("details").filter(has=opened.locator("h3", has_text="user_features"))
    feature = mart.get_by_text("views_lifetime", exact=True)
    assert not feature.is_visible()
    mart.locator("summary").focus()
    opened.keyboard.press("Enter")
    feature.wait_for(state="visible")
    opened.close()


def _save(opened: Page, scheme: str, width: int) -> None:
    """The pictures of the docs: by day on a screen, by night on a phone."""
    if PICTURES and (scheme, width) in (("light", 1200), ("dark", 390)):
        name = "report-page.png" if width == 1200 else "report-phone.png"
        opened.screenshot(path=PROJECT / "docs" / "images" / name)


def _luminance(colour: list[float]) -> float:
    red, green, blue = (
        each / 255 / 12.92 if each / 255 <= 0.04045 else ((each / 255 + 0.055) / 1.055) ** 2.4 for each in colour[:3]
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: float, other: float) -> float:
    """The contrast of two luminances, as WCAG has it: 4.5 is enough for text, 3 for charts and large text."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def duck(shop: Shop) -> Any:
    import duckdb

    return duckdb.connect(str(shop.where.published / "finegrain.duckdb"), read_only=True)
