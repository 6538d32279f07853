"""Metrics of data quality, and anomalies in them: compared with Polars' and pandas' own computation from the rows themselves, on a simulated shop
with incidents. And the states that metrics are made of add up, however rows are divided."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from hashlib import md5
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shops import Homes, ShopMaker, land

from orchestration.config.project import seed, variable
from orchestration.config.settings import PACKAGE, Settings
from orchestration.ingest.load import load
from orchestration.quality.anomaly_score import Alarm, Found, Score, alarms, incidents
from orchestration.simulation.incidents import INCIDENTS, NEEDED_DAYS
from orchestration.simulation.simulate import simulate
from orchestration.warehouse.build import run_dbt

SERIES = ["metric", "table_name", "source", "segment", "segment_value", "column_name"]
REFERENCE_DAYS, WARM_UP_DAYS = variable("reference_days"), variable("metric_warm_up_days")
BOT_RULES = {"bot_user_agent", "bot_rate", "bot_behaviour"}
ON_LOG_SCALE = ("volume", "mean", "median")


@dataclass(frozen=True)
class Shop:
    """A built shop with incidents, and both marts as they were after each build, by the day of the build."""

    where: Settings
    history: dict[date, pd.DataFrame]
    anomalies: dict[date, pd.DataFrame]

    @property
    def last(self) -> date:
        return max(self.history)


def frame(warehouse: Path, query: str) -> pd.DataFrame:
    with duckdb.connect(str(warehouse), read_only=True) as con:
        con.execute("set timezone = 'UTC'")
        return con.execute(query).df()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, extensions: Path) -> Shop:
    where = Settings.below(tmp_path_factory.mktemp("metrics"), extensions)
    files = where.home / "shop"
    simulate(files, events=45_000, days=NEEDED_DAYS + 3, seed=11, incidents=True)
    load(PACKAGE / "examples" / "simulated_shop", data=files, where=where, quiet=True)
    history: dict[date, pd.DataFrame] = {}
    anomalies: dict[date, pd.DataFrame] = {}

    def build(*models: str, moment: date) -> None:
        done = run_dbt(
            ["build", "--exclude-resource-type", "test", "unit_test", "--select", *models],
            where=where,
            moment=f"{moment}T00:00:00",
        )
        assert not done.failed
        history[moment] = frame(where.warehouse, "select * exclude (as_of, built_from) from marts.metric_history")
        anomalies[moment] = frame(where.warehouse, "select * exclude (as_of, built_from) from marts.metric_anomalies")

    # The first build after the day of the third incident, and that after the last one.
    build("+metric_anomalies", moment=date(2025, 2, 16))
    build("int_identity__build", "metric_history", "metric_anomalies", moment=date(2025, 3, 4))
    return Shop(where, history, anomalies)


@pytest.fixture(scope="module")
def found(shop: Shop) -> list[Found]:
    """What the newest build has found. An earlier one had found it, too: what is said of a day does not change."""
    return incidents(shop.where.warehouse, shop.where.home / "shop", lambda _: None)


def test_every_incident_is_found_by_what_it_is(found: list[Found]) -> None:
    assert [each.incident for each in found if each.builds != 1] == []
    rules = {each.incident: set(each.rules) for each in found}
    assert list(rules) == [each.name for each in INCIDENTS]
    expected = {
        "source_stops": {"volume"}, "source_doubles": {"duplicates"}, "currency_flips": {"currency_drift"},
        "null_for_device": {"completeness_by_device", "completeness_by_type"}, "prices_in_cents": {"price_level"},
        "clock_shift": {"lateness_drift"}, "one_customer": {"top_id"},
    }  # fmt: skip
    assert [name for name, any_of in expected.items() if not rules[name] & any_of] == []


def test_what_is_said_of_a_day_does_not_change_when_the_next_days_come(shop: Shop) -> None:
    last_history, last_anomalies = shop.history[shop.last], shop.anomalies[shop.last]
    for day in shop.history:
        for then, now in ((shop.history[day], last_history), (shop.anomalies[day], last_anomalies)):
            # Of the build's own day only freshness is known yet.
            closed = [
                frame[frame["day"] < pd.Timestamp(day)].sort_values([*frame.columns]).reset_index(drop=True)
                for frame in (then, now)
            ]
            pd.testing.assert_frame_equal(*closed)
    first = min(shop.history)
    assert first < shop.last
    assert set(shop.anomalies[first]["day"]) >= {pd.Timestamp(2025, 2, 15)}


def test_other_days_have_few_alarms(shop: Shop, found: list[Found]) -> None:
    anomalous = shop.anomalies[shop.last]
    planted = {(pd.Timestamp(each.day), each.source) for each in found}
    others = {(day, source) for day, source in zip(anomalous["day"], anomalous["source"], strict=True)} - planted
    raised, tested_days = alarms(shop.where.warehouse, shop.where.home / "shop", WARM_UP_DAYS)
    assert {(pd.Timestamp(alarm.day), alarm.source) for alarm in raised} == others | planted
    assert tested_days == (shop.last - date(2025, 1, 6)).days - WARM_UP_DAYS
    assert sum(alarm.is_false for alarm in raised if (pd.Timestamp(alarm.day), alarm.source) in others) <= 1


def test_a_score_counts_false_alarms_by_month() -> None:
    day = date(2025, 1, 1)
    true, false = Alarm(day, "web", ["volume"], 0.1), Alarm(day, "app", ["volume"], 0.09)
    found = Found("source_stops", "web", day, "", ["volume"], 1)
    assert (Score([found], [true, false], 60).false_alarms_per_month, Score([found], [true, false], 60).fails) == (
        0.5,
        False,
    )
    assert Score([found], [true, false], 60).alarms_per_month == 1
    assert Score([found], [false, false], 59).fails
    assert Score([Found("source_stops", "web", day, "", ["volume"], 2)], [], 60).fails


# --- history, from the rows -----------------------------------------------------------------------------------------


def bucket(value: float) -> int:
    """Ten buckets of 2 % each, as macros/metrics.sql has them."""
    if value == 0:
        return 0
    return math.floor(math.copysign(100_000 + math.floor(math.log(abs(value)) / math.log(1.02)), value) / 10)


def rows_of(shop: Shop, with_bots: bool = False) -> pl.DataFrame:
    """Rows of events that arrived by the last closed day, with their verdict at the end of their day; those of bots only `with_bots`."""
    found = frame(
        shop.where.warehouse,
        "select * exclude (is_deleted), cast(raw_available_at as date) as day from ("
        "  select *, list_contains(reasons, 'deleted_at_source') as is_deleted from int_events__validated"
        ") where verdict <> 'superseded' and not is_deleted",
    )
    found = found[found["day"] < pd.Timestamp(shop.last)].reset_index(drop=True)
    day_ends = found["day"] + pd.Timedelta(days=1)
    waited = (found["user_known_at"] >= day_ends) | (
        (found["product_known_at"] >= day_ends) & found["expects"].str.contains("products", na=False)
    )
    still_kept = found["until_day"] > found["day"]
    is_bot = found["reasons"].map(lambda reasons: not BOT_RULES.isdisjoint(reasons)) & (
        found["verdict"] == "quarantined"
    )
    found["verdict_then"] = np.select(
        [is_bot, (found["verdict"] == "quarantined") | waited, (found["verdict"] == "duplicate") & ~still_kept],
        ["bot", "quarantined", "duplicate"],
        "kept",
    )
    found["lateness"] = np.trunc((found["raw_available_at"] - found["event_at"]) / pd.Timedelta(seconds=1))
    found["hour"] = found["event_at"].dt.hour
    found["event_type"] = (
        found["raw_table"].map({"order_items": "purchase", "refunds": "refund"}).fillna(found["event_type"])
    )
    for name in ("price", "price_reported", "quantity"):
        found[name] = found[name].astype(float)
    columns = [
        "raw_table", "source", "day", "verdict_then", "lateness", "hour", "event_type", "device", "country", "currency", "user_id",
        "anonymous_id", "product_id", "identity", "price", "price_reported", "quantity", "consent", "raw_available_at",
    ]  # fmt: skip
    rows = pl.from_pandas(found[columns], nan_to_null=True)
    return rows if with_bots else rows.filter(pl.col("verdict_then") != "bot")


def history_of(shop: Shop, **where: str) -> dict[tuple[Any, ...], float]:
    """Values of metric_history by table, source, segment value, column and day."""
    found = shop.history[shop.last]
    for name, value in where.items():
        found = found[found[name] == value]
    return {
        (row.table_name, row.source, row.segment_value, row.column_name, row.day.date()): row.value
        for row in found.itertuples()
    }


def keyed(found: pl.DataFrame, column: str, *by: str) -> dict[tuple[Any, ...], float]:
    return {
        (row["raw_table"], row["source"], *(row[name] or "unknown" for name in by), column, row["day"].date()): row[
            "value"
        ]
        for row in found.iter_rows(named=True)
    }


@pytest.mark.parametrize("metric", ["duplicate_share", "quarantined_share"])
def test_shares_of_verdicts(shop: Shop, metric: str) -> None:
    verdict = metric.removesuffix("_share").replace("duplicate", "duplicate")
    expected = (
        rows_of(shop)
        .group_by("raw_table", "source", "day", "device")
        .agg((pl.col("verdict_then") == verdict).mean().alias("value"))
    )
    assert history_of(shop, metric=metric, segment="device") == pytest.approx(keyed(expected, "row", "device"))


def test_shares_of_bots(shop: Shop) -> None:
    rows = rows_of(shop, with_bots=True)
    is_bot = pl.col("verdict_then") == "bot"
    shares = rows.group_by("raw_table", "source", "day", "event_type").agg(is_bot.mean().alias("value"))
    assert history_of(shop, metric="bot_share", segment="event_type") == pytest.approx(
        keyed(shares, "row", "event_type")
    )
    assert shares["value"].max() > 0
    identities = (
        rows.drop_nulls("identity")
        .group_by("raw_table", "source", "day", "identity")
        .agg(is_bot.any())
        .group_by("raw_table", "source", "day")
        .agg(pl.col("verdict_then").mean().alias("value"))
    )
    assert history_of(shop, metric="bot_identity_share") == pytest.approx(
        {(t, s, s, c, d): value for (t, s, c, d), value in keyed(identities, "row").items()}
    )


def test_volume_with_days_without_rows(shop: Shop) -> None:
    rows = rows_of(shop, with_bots=True)
    counts = rows.group_by("raw_table", "source", "day").len().rows()
    expected: dict[tuple[Any, ...], float] = {}
    for (table, source), _ in Counter((table, source) for table, source, *_ in counts).items():
        first = min(day for t, s, day, _ in counts if (t, s) == (table, source)).date()
        by_day = {day.date(): n for t, s, day, n in counts if (t, s) == (table, source)}
        for number in range((shop.last - first).days):
            day = first + timedelta(days=number)
            expected[table, source, source, "row", day] = by_day.get(day, 0)
    found = history_of(shop, metric="volume", segment="source")
    assert {key: value for key, value in found.items() if key[0] not in ("customers", "products", "orders")} == expected
    assert found["ga4_events", "shop_app", "shop_app", "row", date(2025, 2, 7)] == 0


@pytest.mark.parametrize("column", ["price", "user_id", "consent"])
def test_completeness_by_device(shop: Shop, column: str) -> None:
    rows = rows_of(shop)
    expected = rows.group_by("raw_table", "source", "day", "device").agg(
        pl.col(column).is_not_null().mean().alias("value")
    )
    # A column says nothing before it is first given.
    first = rows.drop_nulls(column).group_by("raw_table", "source", "device").agg(pl.col("day").min().alias("first"))
    expected = expected.join(first, on=["raw_table", "source", "device"], nulls_equal=True).filter(
        pl.col("day") >= pl.col("first")
    )
    assert history_of(shop, metric="completeness", segment="device", column_name=column) == pytest.approx(
        keyed(expected, column, "device")
    )


@pytest.mark.parametrize("column", ["user_id", "anonymous_id", "product_id"])
def test_distinct_ids_and_the_most_frequent_one(shop: Shop, column: str) -> None:
    values = rows_of(shop).drop_nulls(column)
    by = ["raw_table", "source", "day"]
    top = (
        values.group_by(*by, column).len().group_by(by).agg((pl.col("len").max() / pl.col("len").sum()).alias("value"))
    )
    assert history_of(shop, metric="top_share", column_name=column) == pytest.approx(
        {(t, s, s, c, d): value for (t, s, c, d), value in keyed(top, column).items()}
    )
    distinct = values.group_by(by).agg(
        (pl.col(column).n_unique() / pl.len()).alias("value"), pl.col(column).n_unique().alias("n")
    )
    found = history_of(shop, metric="distinctness", column_name=column, segment="source")
    assert len(found) == len(distinct)
    for row in distinct.iter_rows(named=True):
        value = found[row["raw_table"], row["source"], row["source"], column, row["day"].date()]
        # Below the size of a sketch the number is exact; above, three standard errors.
        assert value == pytest.approx(row["value"], rel=1e-9 if row["n"] < 256 else 0.19)
    assert history_of(shop, metric="distinctness", column_name=column, segment="all")


@pytest.mark.parametrize("column", ["price", "price_reported", "quantity", "lateness"])
def test_means_and_medians(shop: Shop, column: str) -> None:
    means, medians = (
        history_of(shop, metric="mean", column_name=column),
        history_of(shop, metric="median", column_name=column),
    )
    groups = rows_of(shop).drop_nulls(column).group_by("raw_table", "source", "day").agg(column)
    assert len(means) == len(medians) == len(groups)
    for table, source, day, values in groups.iter_rows():
        key = (table, source, source, column, day.date())
        assert means[key] == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
        middle = sorted(values)[(len(values) - 1) // 2]
        same_bucket = [value for value in values if bucket(value) == bucket(middle)]
        assert medians[key] == pytest.approx(np.mean(same_bucket), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("column", ["price", "lateness", "hour", "currency", "device"])
def test_drift_against_the_days_before(shop: Shop, column: str) -> None:
    psi, ks = history_of(shop, metric="psi", column_name=column), history_of(shop, metric="ks", column_name=column)
    is_number = column in ("price", "lateness", "hour")
    counts: dict[tuple[str, str], dict[date, Counter[Any]]] = {}
    for table, source, day, value in (
        rows_of(shop).drop_nulls(column).select("raw_table", "source", "day", column).iter_rows()
    ):
        place = bucket(value) if is_number and column != "hour" else value
        counts.setdefault((table, source), {}).setdefault(day.date(), Counter())[place] += 1
    checked = 0
    for (table, source), by_day in counts.items():
        for day, now in by_day.items():
            before: Counter[Any] = sum(
                (by_day.get(day - timedelta(days=back), Counter()) for back in range(1, REFERENCE_DAYS + 1)), Counter()
            )
            key = (table, source, source, column, day)
            if not before:
                assert key not in psi
                continue
            places = sorted(set(now) | set(before))
            n, reference = np.array([now[place] for place in places]), np.array([before[place] for place in places])
            p = (n + 0.5) / (n.sum() + 0.5 * len(places))
            q = (reference + 0.5) / (reference.sum() + 0.5 * len(places))
            assert psi[key] == pytest.approx(((p - q) * np.log(p / q)).sum(), abs=1e-7)
            if is_number:
                gaps = np.abs(np.cumsum(n) / n.sum() - np.cumsum(reference) / reference.sum())
                assert ks[key] == pytest.approx(gaps.max(), abs=1e-9)
            checked += 1
    assert checked == len(psi)
    assert bool(ks) == is_number


def test_freshness(shop: Shop) -> None:
    rows = rows_of(shop, with_bots=True).filter(pl.col("source") == "shop_app")
    arrivals = sorted(rows["raw_available_at"].to_list())
    found = history_of(shop, metric="freshness", segment="source", source="shop_app", table_name="ga4_events")
    for (*_, day), value in found.items():
        ends = datetime.combine(day + timedelta(days=1), datetime.min.time())
        if day < shop.last:
            last = max(moment for moment in arrivals if moment < ends)
            assert value == pytest.approx((ends - last.replace(microsecond=0)).total_seconds() / 3600)
    assert max(day for *_, day in found) == shop.last


# --- anomalies, from the history ------------------------------------------------------------------------------------


def rests_on_rule(rule: dict[str, str], row: Any) -> bool:
    def like(pattern: str, text: str) -> bool:
        return pattern == text or (pattern.startswith("%") and text.endswith(pattern[1:]))

    return (
        row.metric == rule["metric"]
        and row.segment == rule["segment"]
        and all(like(rule[name], getattr(row, name)) for name in ("table_name", "source", "column_name"))
    )


def sampling_variance(metric: str, forecast: float, n: int) -> float:
    if metric == "volume":
        return 10 * math.exp(-forecast)
    if metric == "bot_identity_share":
        share = (forecast * n + 1) / (n + 2)
        return share * (1 - share) / n
    if metric.endswith("_share") or metric in ("completeness", "distinctness"):
        share = (forecast * n + 1) / (n + 2)
        return 10 * share * (1 - share) / n
    return 0


def scaled(metric: str, value: float) -> float:
    return math.log(1 + max(value, 0)) if metric in ON_LOG_SCALE else value


def detected(series: pd.DataFrame, rule: dict[str, str]) -> set[date]:
    """The anomalous days of one series by one rule."""
    metric = series["metric"].iloc[0]
    days = [day.date() for day in series["day"]]
    values, counts = [scaled(metric, value) for value in series["value"]], list(series["n"])
    forecasts: list[float] = []
    found = set()
    for number, day in enumerate(days):
        weekdays = [at for at in range(number) if days[at].weekday() == day.weekday()][-5:]
        recent = list(range(max(number - 28, 0), number))
        past = weekdays if len(weekdays) >= 4 else recent
        forecasts.append(float(np.median([values[at] for at in past])) if past else math.nan)
        if (day - days[0]).days < WARM_UP_DAYS:
            continue
        if rule["method"] == "static":
            low, high = (float(rule[name]) if rule[name] else math.nan for name in ("at_least", "at_most"))
            is_out, rests_on = series["value"].iloc[number] < low or series["value"].iloc[number] > high, counts[number]
        else:
            error = 1.4826 * float(
                np.median(
                    [abs(values[at] - forecasts[at]) for at in recent if not math.isnan(forecasts[at])] or [math.nan]
                )
            )
            spread = math.sqrt(error**2 + sampling_variance(metric, forecasts[number], counts[number]))
            change = float(rule["min_change"])
            margin = max(float(rule["sensitivity"]) * spread, math.log(change) if metric in ON_LOG_SCALE else change)
            off = values[number] - forecasts[number]
            is_out = (off > margin and rule["direction"] != "down") or (off < -margin and rule["direction"] != "up")
            # An amount or count of less than nothing is not expected, so nothing is below it.
            is_out &= not (off < 0 and metric in ON_LOG_SCALE and forecasts[number] - margin <= 0)
        rests_on = max(counts[number], float(np.median([counts[at] for at in recent])))
        if is_out and rests_on >= float(rule["min_n"]):
            found.add(day)
    return found


def test_anomalies_are_what_the_rules_say(shop: Shop) -> None:
    history = shop.history[shop.last]
    history = history[history["day"] < pd.Timestamp(shop.last)].sort_values("day")
    rules = [rule for rule in seed("metric_rules") if rule["grain"] == "day"]
    expected = set()
    for key, series in history.groupby(SERIES):
        for rule in rules:
            if rests_on_rule(rule, series.iloc[0]):
                expected |= {(rule["rule_id"], *key, day) for day in detected(series, rule)}
    found = shop.anomalies[shop.last]
    assert {
        (row.rule_id, *(getattr(row, name) for name in SERIES), row.day.date()) for row in found.itertuples()
    } == expected
    assert len(expected) >= len(INCIDENTS)


# --- states ----------------------------------------------------------------------------------------------------------

COLUMNS = (
    "verdict varchar, reasons varchar[], raw_table varchar, source varchar, raw_available_at timestamp, event_at timestamp, event_type varchar, "
    "device varchar, user_id varchar, anonymous_id varchar, product_id varchar, currency varchar, country varchar, price decimal(18, 4), "
    "price_reported decimal(18, 4), quantity decimal(18, 3), category varchar, order_id varchar, source_session_id varchar, "
    "user_agent varchar, identity varchar, consent varchar, expects varchar, user_known_at timestamp, product_known_at timestamp, until_day date"
)


@pytest.fixture(scope="module")
def states(
    shop: Shop, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[dict[str, Any]]], list[tuple[Any, ...]]]:
    """int_metrics__daily's own SQL, of a full build, over any rows."""
    target = tmp_path_factory.mktemp("target")
    run_dbt(
        ["compile", "--full-refresh", "--target-path", str(target), "--select", "int_metrics__daily"], where=shop.where
    )
    [file] = (target / "compiled").rglob("int_metrics__daily.sql")
    sql = file.read_text("utf-8")

    def of(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        with duckdb.connect() as con:
            con.execute(
                f"attach ':memory:' as warehouse; create table warehouse.main.int_events__validated ({COLUMNS})"
            )
            table = pd.DataFrame(
                rows,
                columns=[
                    column.split()[0] for column in COLUMNS.split(", ") if not column[0].isdigit() and " " in column
                ],
            )
            con.register("rows", table.astype(object).where(table.notna(), None))
            con.execute(
                "insert into warehouse.main.int_events__validated by name select * replace (['x'] as reasons) from rows"
            )
            return con.execute(sql).fetchall()

    return of


moments = st.datetimes(datetime(2025, 1, 1), datetime(2025, 1, 2, 23, 59, 59))
rows_of_events = st.lists(
    st.fixed_dictionaries(
        {
            "verdict": st.sampled_from(["kept", "duplicate", "quarantined"]),
            "raw_table": st.just("events"),
            "source": st.sampled_from(["web", "app"]),
            "raw_available_at": moments,
            "event_at": st.one_of(st.none(), moments),
            "event_type": st.sampled_from(["view_item", "purchase", None]),
            "device": st.sampled_from(["mobile", None]),
            "user_id": st.one_of(st.none(), st.integers(0, 400).map("u{}".format)),
            "identity": st.sampled_from(["a:1", "a:2", None]),
            "currency": st.sampled_from(["EUR", "USD", None]),
            "price": st.one_of(st.none(), st.decimals(-5, 10**6, places=4)),
            "quantity": st.one_of(st.none(), st.integers(-1, 50)),
        }
    ),
    min_size=2,
    max_size=40,
)


def merged(parts: list[list[tuple[Any, ...]]]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """States of several sets of rows as one: sums, but the last second is the greatest; ids have the smallest hashes of all. How many distinct
    ones there are does not add up."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for *key, n, total, sketch in (row for part in parts for row in part):
        have = found.setdefault(tuple(key), [0, None, set()])
        have[0] = max(have[0], n) if key[6] == "last_second" else have[0] + n
        have[1] = total if have[1] is None else have[1] + (total or 0)
        have[2] |= set(sketch or ())
    return {
        key: (None if key[6] in ("ids", "identities") else n, total, sorted(numbers)[:256])
        for key, (n, total, numbers) in found.items()
    }


@settings(max_examples=15)
@given(rows=rows_of_events, data=st.data())
def test_states_of_parts_add_up_to_those_of_the_whole(
    states: Callable[[list[dict[str, Any]]], list[tuple[Any, ...]]], rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    cut = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    parts = [[row for row, is_here in zip(rows, cut, strict=True) if is_here is side] for side in (True, False)]
    assert merged([states(part) for part in parts if part]) == merged([states(rows)])


def test_a_sketch_keeps_the_smallest_hashes_of_all_ids(
    states: Callable[[list[dict[str, Any]]], list[tuple[Any, ...]]],
) -> None:
    ids = [f"u{number}" for number in range(1000)]
    row = {"verdict": "kept", "raw_table": "events", "source": "web", "raw_available_at": datetime(2025, 1, 1)}
    [sketched] = [each for each in states([row | {"user_id": each} for each in [*ids, "u7", "u7"]]) if each[6] == "ids"]
    assert sketched[8] == 3
    assert sketched[10] == sorted(int(md5(each.encode()).hexdigest()[:15], 16) for each in ids)[:256]


# --- what comes later ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_rows_of_later_days_do_not_change_a_day_of_a_dirty_shop(homes: Homes) -> None:
    """Customers, copies and orders that arrive later change verdicts on the rows of a day, but not what its metrics say."""
    random = Random(3)
    rows = [row for row in ShopMaker(random).shop() if row.table in ("events", "ga4_events", "customers", "products")]
    day = sorted(row.available_at for row in rows)[len(rows) // 2].date()
    where = homes.make("metrics")
    history = []
    for part in (
        [row for row in rows if row.available_at.date() < day],
        [row for row in rows if row.available_at.date() >= day],
    ):
        land(where, part)
        homes.run(where, "--select", "+metric_anomalies")
        found = frame(where.warehouse, "select * exclude (as_of, built_from) from marts.metric_history")
        found = found[(found["day"] < pd.Timestamp(day) - pd.Timedelta(days=1)) & (found["segment"] == "source")]
        history.append(found.sort_values([*found.columns]).reset_index(drop=True))
    assert len(history[0]) > 100
    apart = pd.concat(history).drop_duplicates(keep=False)
    assert apart.empty, apart.head(20).to_string()
    pd.testing.assert_frame_equal(*history)


@pytest.mark.soak
def test_half_a_year(tmp_path: Path, extensions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each incident is found by the first build after its day; and a quiet half-year has at most one false alarm a month."""
    from orchestration.cli.anomalies import bench

    monkeypatch.setenv("FINEGRAIN_HOME", str(tmp_path))
    monkeypatch.setenv("FINEGRAIN_EXTENSIONS", str(extensions))
    score = bench(events=200_000, days=180, seed=11, quiet=True)
    assert score.tested_days == 180 - WARM_UP_DAYS
    assert [each.incident for each in score.incidents if each.builds != 1] == []
    assert score.false_alarms_per_month <= 1
    assert not score.fails
