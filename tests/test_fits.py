"""Fits use only the past: what arrives on day D is in no fit before D and cleans no event before D + 2. And a fit
follows from the values that had arrived; the expected one is computed here from the sorted values."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import duckdb
import numpy as np
import pytest
from small_shops import BOOKKEEPING, DAYS, FIRST_DAY, WINDOW_WEEKS, Homes, Row, ShopMaker, at, land

from orchestration.config.settings import Settings

DAY = timedelta(days=1)
#: The width of a histogram's bucket, as a ratio.
BUCKET = 1.02
#: By measure, the groups of its fits: name of the group to column of the verdicts.
GROUPS = {
    "price": {"product_id": "product_id", "category": "product_category", "all": None},
    "quantity": {
        "event_type": "event_type",
        "category": "product_category",
        "hour_of_week": "hour_of_week",
        "all": None,
    },
}

#: Quantities are held against those of the same hour of the week, which no rule does as delivered.
BY_HOUR_OF_WEEK = (
    "update outlier_rules set group_by = 'hour_of_week', min_count = 2, factor = 1 where column_name = 'quantity'"
)

Fits = dict[tuple[str, str, str], dict[date, dict[str, Any]]]


def rows_of(con: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    answer = con.execute(query)
    names = [column[0] for column in answer.description or []]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def group_key(row: dict[str, Any], column: str | None) -> str | None:
    if column == "hour_of_week":
        return str(24 * row["event_at"].weekday() + row["event_at"].hour)
    return "all" if column is None else row[column]


#: What is read here, and all that it is made of.
CLEANING = ("+int_cleaning__events", "+int_cleaning__profile_statistics", "+int_cleaning__profile_modes")


@pytest.fixture(scope="module")
def built(homes: Homes) -> tuple[Settings, list[dict[str, Any]], Fits]:
    """A shop built in two steps, its verdicts on rows that are kept or were so for a time, and its fits of numbers."""
    random = Random(20240401)
    rows = ShopMaker(random).shop(events=260)
    # At noon of one day one piece each, and at noon a week later a hundred.
    for day, quantity, count in ((FIRST_DAY, 1, 4), (FIRST_DAY + 7 * DAY, 100, 1)):
        for number in range(count):
            row = planted(day, number, at(day, 43300 + number))
            fields = {
                **row.fields,
                "event_at": at(day, 43200 + number).isoformat(),
                "quantity": str(quantity),
                "price": "20",
            }
            rows.append(replace(row, position=f"noon of {day}#{number}", fields=fields))
    shop_home = homes.make("fits")
    with duckdb.connect(str(shop_home.warehouse)) as con:
        con.execute(BY_HOUR_OF_WEEK)
    random.shuffle(rows)
    for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        land(shop_home, part)
        homes.run(shop_home, "--select", *CLEANING)
    with duckdb.connect(str(shop_home.warehouse), read_only=True) as con:
        kept = rows_of(con, "select * from int_events__validated where verdict = 'kept' or kept_until is not null")
        fits: Fits = defaultdict(dict)
        for fit in rows_of(con, "select * from int_cleaning__numeric_statistics"):
            days = fits[fit["measure"], fit["group_by"], fit["group_key"]]
            assert fit["valid_on"] not in days
            days[fit["valid_on"]] = fit
    return shop_home, kept, fits


def days_of(row: dict[str, Any]) -> list[tuple[date, int]]:
    """The days at whose end a row is added to what had arrived (1), and taken away, since the shop's database had reported it by then (-1)."""
    begin, end = row["arrival_day"], row["kept_until"] and row["kept_until"].date()
    return [(begin, 1)] if end is None else [(begin, 1), (end, -1)] if begin < end else []


def test_fits_follow_from_the_values_that_had_arrived(built: tuple[Settings, list[dict[str, Any]], Fits]) -> None:
    _, kept, fits = built
    # By group, each value with the days of its arrival and end.
    arrived: dict[tuple[str, str, str], list[tuple[float, date, date]]] = defaultdict(list)
    for row in kept:
        for measure, value in (("price", row["price_reported"]), ("quantity", row["quantity"])):
            if value is None or (measure == "price" and row["product_id"] is None):
                continue
            for group_by, column in GROUPS[measure].items():
                key = group_key(row, column)
                if key is not None and (changes := days_of(row)):
                    end = changes[1][0] if len(changes) > 1 else date.max
                    arrived[measure, group_by, key].append((float(value), row["arrival_day"], end))

    left = 0
    days = {group: {day for _, *both in values for day in both} - {date.max} for group, values in arrived.items()}
    assert days == {group: set(days) for group, days in fits.items()}
    for group, found in arrived.items():
        for day in sorted(days[group]):
            so_far = sorted(value for value, begin, end in found if begin <= day < end)
            if group[1] == "hour_of_week":
                window = sorted(
                    value for value, begin, end in found if day - 7 * WINDOW_WEEKS * DAY < begin <= day < end
                )
                left += len(so_far) - len(window)
                so_far = window
            fit = fits[group][day]
            values = np.array(so_far)
            assert fit["n"] == len(values)
            if not so_far:
                assert fit["mean"] is fit["q50"] is fit["most_frequent"] is None
                continue
            assert fit["mean"] == pytest.approx(values.mean())
            assert fit["std"] == (pytest.approx(values.std(ddof=1), abs=1e-6) if len(values) > 1 else None)
            logs = np.log(values[values > 0])
            assert fit["log_mean"] == (pytest.approx(logs.mean(), abs=1e-6) if len(logs) else None)
            assert fit["log_std"] == (pytest.approx(logs.std(ddof=1), abs=2e-3) if len(logs) > 1 else None)
            for step in range(5, 100, 5):
                exact = so_far[
                    -(-len(so_far) * step // 100) - 1
                ]  # the smallest value that `step` percent do not exceed
                assert exact / BUCKET - 1e-4 <= fit[f"q{step:02d}"] <= exact * BUCKET + 1e-4, (group, day, step)
            # The number of values near the mode is at least the count of any single value.
            usual = float(fit["most_frequent"])
            near = sum(usual / BUCKET - 1e-4 <= value <= usual * BUCKET + 1e-4 for value in so_far)
            assert near >= max(Counter(so_far).values()), (group, day)
    assert left, "no value left the window"


def test_modes_are_what_had_arrived_most(built: tuple[Settings, list[dict[str, Any]], Fits]) -> None:
    shop_home, kept, _ = built
    with duckdb.connect(str(shop_home.warehouse), read_only=True) as con:
        modes = {(row["measure"], row["valid_on"]): row for row in rows_of(con, "select * from int_cleaning__modes")}
    expected: dict[tuple[str, date], tuple[str, int, int]] = {}
    for label in ("device", "country"):
        seen = [row for row in kept if row[label] is not None and row["origin"] != "database"]
        for day in {day for row in seen for day, _ in days_of(row)}:
            counts: Counter[str] = Counter()
            for row in seen:
                counts[row[label]] += sum(counted for changed, counted in days_of(row) if changed <= day)
            name, n = min(counts.items(), key=lambda item: (-item[1], item[0]))
            expected[label, day] = (name, n, counts.total())
    assert {key: (row["most_frequent"], row["n"], row["all_n"]) for key, row in modes.items()} == expected


def latest(fits: Fits, measure: str, group_by: str, key: str | None, day: date) -> dict[str, Any] | None:
    """The fit that was valid on a day."""
    days = fits.get((measure, group_by, key or ""), {})
    known = sorted(days)
    place = bisect_right(known, day)
    return days[known[place - 1]] if place else None


def bounds(rule: dict[str, Any], fit: dict[str, Any]) -> tuple[float, float] | None:
    """The limits that an outlier rule computes from a fit."""
    if fit["n"] < rule["min_count"]:
        return None
    factor, usual = rule["factor"], float(fit["q50"])
    match rule["method"], rule["scale"]:
        case "iqr", "log":
            if fit["q25"] <= 0:
                return None
            low, high = float(fit["q25"]), float(fit["q75"])
            low, high = low * (low / high) ** factor, high * (high / low) ** factor
        case "zscore", "log":
            if fit["log_mean"] is None:
                return None
            spread = factor * (fit["log_std"] or 0)
            low, high = math.exp(fit["log_mean"] - spread), math.exp(fit["log_mean"] + spread)
        case _:
            raise AssertionError(f"no rule of this shop is {rule}")
    return (
        min(low, usual / rule["min_ratio"], usual - rule["min_distance"]),
        max(high, usual * rule["min_ratio"], usual + rule["min_distance"]),
    )


def test_values_are_cleaned_with_the_fit_of_two_days_before(built: tuple[Settings, list[dict[str, Any]], Fits]) -> None:
    shop_home, kept, fits = built
    with duckdb.connect(str(shop_home.warehouse), read_only=True) as con:
        cleaned = {row["row_id"]: row for row in rows_of(con, "select * from int_cleaning__events")}
        rules = rows_of(con, "select * from outlier_rules")
        imputing = {
            row["column_name"]: row for row in rows_of(con, "select * from imputation_rules where record = 'event'")
        }
    assert set(cleaned) == {row["row_id"] for row in kept}
    happened: Counter[str] = Counter()
    for row in kept:
        clean, fit_day = cleaned[row["row_id"]], row["event_day"] - 2 * DAY
        for measure, raw in (("price", row["price_reported"]), ("quantity", row["quantity"])):
            known = {
                group_by: latest(fits, measure, group_by, group_key(row, column), fit_day)
                for group_by, column in GROUPS[measure].items()
            }
            drawn = [
                (bounds(rule, fit), rule["action"], rule["scale"], group_by)
                for group_by, fit in known.items()
                for rule in rules
                if fit and rule["column_name"] == measure and rule["group_by"] == group_by
            ]
            limits, action, scale, by = next((each for each in drawn if each[0]), (None, None, None, None))
            value = None if raw is None else float(raw)
            is_outlier = bool(value is not None and limits and not limits[0] <= value <= limits[1])
            is_outlier &= scale != "log" or (value or 0) > 0  # zero has no logarithm
            if is_outlier and action == "cap":
                value = min(max(value, limits[0]), limits[1])
                happened[f"{measure} capped"] += 1
                happened[f"{measure} capped by {by}"] += 1
            was_missing = raw is None and row["product_id"] is not None
            if measure == "quantity":
                was_missing &= row["event_type"] in ("add_to_cart", "remove_from_cart", "purchase", "refund")
            if was_missing and imputing[measure]["action"] == "impute":
                names = list(GROUPS[measure])
                wider = names[names.index(imputing[measure]["group_by"]) :]
                value = next(
                    (known[name]["q50"] for name in wider if known[name]), 1.0 if measure == "quantity" else None
                )
                if measure == "quantity" and row["event_type"] == "refund":
                    value = 1.0  # its price is the whole amount of the refund
                happened[f"{measure} imputed"] += value is not None
            where = f"{measure} of {row['source']} {row['position']}, {row['event_at']}, raw {raw}, limits {limits}"
            assert clean[f"{measure}_is_outlier"] == is_outlier, where
            assert clean[f"{measure}_was_missing"] == was_missing, where
            assert clean[measure] == (
                None if value is None else pytest.approx(Decimal(value), abs=Decimal("0.0006"))
            ), where
    # The test only means something if all of this occurs.
    cases = ("price capped", "price imputed", "quantity capped", "quantity imputed", "quantity capped by hour_of_week")
    assert all(happened[case] for case in cases), happened


def planted(day: date, number: int, arrived: datetime) -> Row:
    """An unknown visitor puts something in a cart at a price that never occurred, with a device and a country that
    never occurred."""
    fields = {
        "event_type": "add_to_cart",
        "event_at": at(day, 36000 + number).isoformat(),
        "anonymous_id": f"stranger {number}",
        "product_id": f"P{number % 5}",
        "category": "books",
        "quantity": "9000",
        "price": "90000",
        "currency": "USD",
        "device": "tablet",
        "country": "XX",
    }
    return Row("events", "store", f"planted#{number}", arrived, fields)


def test_what_arrives_on_a_day_changes_nothing_before_it(
    built: tuple[Settings, list[dict[str, Any]], Fits], homes: Homes
) -> None:
    """Some of these visitors' events arrive on time, some days late."""
    shop_home, _, _ = built
    day = FIRST_DAY + (DAYS - 4) * DAY
    then = homes.beside(shop_home)
    strangers = [planted(day - number % 2 * 5 * DAY, number, at(day, 40000)) for number in range(40)]
    customers = [
        Row("customers", "shop", f"planted#{n}", at(day, 40000), {"customer_id": f"planted {n}", "income": "77000000",
            "birth_year": "1901", "household_size": "90", "gender": "x", "country": "XX"}, origin="database")
        for n in range(40)
    ]  # fmt: skip
    products = [
        Row("products", "shop", f"planted#{n}", at(day, 40000), {"product_id": f"planted {n}", "category": "books",
            "weight": "900", "weight_unit": "kg"}, origin="database")
        for n in range(40)
    ]  # fmt: skip
    land(then, [*strangers, *customers, *products])
    homes.run(then, "--select", *CLEANING)

    for table, when, since in (
        ("int_cleaning__numeric_statistics", "valid_on", day),
        ("int_cleaning__modes", "valid_on", day),
        ("int_cleaning__profile_statistics", "valid_on", day),
        ("int_cleaning__profile_modes", "valid_on", day),
        ("int_cleaning__events", "event_day", day + 2 * DAY),
    ):
        before, after = values_of(shop_home, table), values_of(then, table)
        changed = {
            row[when] for row in before.keys() ^ after.keys() if not str(row["anonymous_id"]).startswith("stranger")
        }
        assert changed, f"{table}: what was planted changed nothing at all"
        assert min(changed) >= since, f"{table}: changed on {sorted(changed)}"


class Values(dict[str, Any]):
    """A row that can be in a set."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(map(repr, self.values())))

    def __missing__(self, name: str) -> None:
        return None


def values_of(where: Settings, table: str) -> Counter[Values]:
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        rows = rows_of(con, f"select * from {table}")
    return Counter(Values({name: value for name, value in row.items() if name not in BOOKKEEPING}) for row in rows)
