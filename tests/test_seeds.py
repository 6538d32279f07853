"""What a shop may write into a seed, and what the seeds' data tests refuse: each refused value by a rule whose name
says what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest

from orchestration.config.settings import Settings
from orchestration.warehouse.build import Build, run_dbt

#: A valid row of each seed, in which the values below are replaced.
RIGHT: dict[str, dict[str, Any]] = {
    "event_types": {"raw_name": "looked at", "event_type": "view_item"},
    "order_statuses": {"raw_status": "quite_new", "status": "placed", "event_type": "purchase"},
    "category_map": {"raw_category": "novels", "category": "books"},
    "unit_conversions": {"unit": "stone", "base_unit": "g", "factor": 6350.29},
    "outlier_rules": {
        "column_name": "price",
        "method": "iqr",
        "scale": "raw",
        "group_by": "all",
        "factor": 3,
        "min_count": 30,
        "min_ratio": 2,
        "min_distance": 1,
        "action": "cap",
    },
    "imputation_rules": {
        "record": "event",
        "column_name": "price",
        "method": "median",
        "group_by": "all",
        "neighbours": None,
        "min_confidence": None,
        "action": "impute",
    },
    "metric_rules": {
        "rule_id": "rows",
        "grain": "day",
        "metric": "volume",
        "table_name": "%",
        "source": "%",
        "segment": "source",
        "column_name": "row",
        "method": "forecast",
        "direction": "both",
        "sensitivity": 6,
        "min_change": 1.5,
        "at_least": None,
        "at_most": None,
        "min_n": 100,
        "severity": "error",
        "owner": "data-engineering",
        "suppressed_from": None,
        "suppressed_until": None,
        "suppression_reason": None,
    },
    "null_words": {"word": "nothing at all", "said_by": "nobody"},
    "consent_words": {"word": "by all means", "meaning": "granted"},
    "minor_currencies": {"minor_currency": "XXC", "currency": "XXX", "per_unit": 100},
    "validation_rules": {"rule_id": "zero_price", "severity": "warn", "description": "a price of zero"},
    "rfm_bounds": {"measure": "orders", "score": 3, "at_least": 4, "below": 5},
    "rfm_segments": {"recency_score": 3, "frequency_score": 3, "segment": "usual"},
    "referrer_channels": {"site": "example.org", "channel": "search"},
    "event_weights": {"measure": "views", "weight": 2, "meaning": "a view"},
}

EVENT = {"record": "event"}
PRODUCT = {"record": "product", "column_name": "weight", "group_by": "category"}
CUSTOMER = {"record": "customer", "column_name": "income"}
GENDER = {"record": "customer", "column_name": "gender", "method": "mode"}
CATEGORY = {"record": "event", "column_name": "category", "method": "model"}
MONEY = "method of price and quantity is median or mode"
NUMBER = "method of other numbers is median, mode or knn"
EVENT_LABEL = "method of device and country of events is mode"
LABEL = "method of gender, category and country of customers is mode or model"
K = "neighbours is a whole number from 1 to 32 or empty"
CONFIDENCE = "min_confidence is above 0 and up to 1 or empty"
OF_NUMBERS = "group_by of price and quantity is product_id, category, event_type, hour_of_week or all"
OF_IMPUTED_NUMBERS = "group_by of price and quantity is product_id, category, event_type or all"
OF_LABELS = "group_by of device and country of events is event_type or all"
OF_WEIGHT = "group_by of weight is category or all"
OF_INCOME = "group_by of income is country, gender or all"
OF_CUSTOMERS = "group_by of customers is country, gender or all and not the column itself"
EVENT_COLUMN = "column_name of an event is price, quantity, device, country or category"
CUSTOMER_COLUMN = "column_name of a customer is birth_year, household_size, income, gender or country"
STATUS = "status is placed, pending, paid, shipped, completed, cancelled, failed, refunded or partially_refunded"
EVENT_TYPE = "event_type is one of the events that seeds/_seeds.yml lists"
DRIFT = {"metric": "psi", "column_name": "price"}
STATIC = {"method": "static", "direction": "up", "sensitivity": None, "min_change": None, "at_most": 5}
MOVE = {
    "suppressed_from": date(2025, 1, 1),
    "suppressed_until": date(2025, 1, 2),
    "suppression_reason": "the shop moves",
}
OF_A_MINUTE = (
    "of a minute there are completeness by source, type_share by event_type, and dead_letter_share by source or rule"
)
SUPPRESSED = "a suppression has two days, in order, and a reason"
GRAVE = "severity of a rule that everything else rests on is error"
LOWER = "is in lower case without spaces around it"

#: Seed, replacements of the valid values, and the rule that refuses them.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("event_types", {"raw_name": "Looked at"}, f"raw_name {LOWER}"),
    ("event_types", {"raw_name": "r1", "event_type": "glance"}, EVENT_TYPE),
    ("event_types", {"raw_name": "r2", "event_type": None}, EVENT_TYPE),
    ("event_types", {"raw_name": "r3", "event_type": "pending_order"}, EVENT_TYPE),
    ("order_statuses", {"raw_status": "Quite new"}, "raw_status is in lower case with underscores"),
    ("order_statuses", {"raw_status": "s1", "status": "lost"}, STATUS),
    ("order_statuses", {"raw_status": "s2", "status": None}, STATUS),
    ("order_statuses", {"raw_status": "s3", "event_type": "refund"}, "event_type is purchase, pending_order or cancelled_order"),
    ("category_map", {"raw_category": " /"}, "raw_category holds letters"),
    ("category_map", {"raw_category": "n1", "category": " "}, "category holds letters or is empty"),
    ("unit_conversions", {"unit": "Stone"}, f"unit {LOWER}"),
    ("unit_conversions", {"unit": "u1", "base_unit": "kg"}, "base_unit is g"),
    ("unit_conversions", {"unit": "u2", "factor": 0}, "factor is above zero"),
    ("unit_conversions", {"unit": "u3", "factor": None}, "factor is above zero"),
    ("outlier_rules", {"column_name": "birth_year"}, "column_name is price, quantity, weight or income"),
    ("outlier_rules", {"method": "knn"}, "method is iqr or zscore"),
    ("outlier_rules", {"method": None}, "method is iqr or zscore"),
    ("outlier_rules", {"scale": "sqrt"}, "scale is raw or log"),
    ("outlier_rules", {"group_by": None}, "group_by is not empty"),
    ("outlier_rules", {"group_by": "country"}, OF_NUMBERS),
    ("outlier_rules", {"column_name": "quantity", "group_by": "brand"}, OF_NUMBERS),
    ("outlier_rules", {"column_name": "weight", "group_by": "product_id"}, OF_WEIGHT),
    ("outlier_rules", {"column_name": "weight", "group_by": "event_type"}, OF_WEIGHT),
    ("outlier_rules", {"column_name": "income", "group_by": "category"}, OF_INCOME),
    ("outlier_rules", {"action": "delete"}, "action is cap, remove or flag"),
    ("outlier_rules", {"factor": 0}, "factor is above zero"),
    ("outlier_rules", {"factor": float("inf")}, "factor is above zero"),
    ("outlier_rules", {"min_count": 1}, "min_count is a whole number of 2 or more"),
    ("outlier_rules", {"min_count": 9.5}, "min_count is a whole number of 2 or more"),
    ("outlier_rules", {"min_ratio": 1.5}, "min_ratio is 2 or more"),
    ("outlier_rules", {"min_distance": 0}, "min_distance is above zero"),
    ("metric_rules", {"grain": "hour"}, "grain is day or minute"),
    ("metric_rules", {"grain": "minute"}, OF_A_MINUTE),
    ("metric_rules", {"grain": "minute", "metric": None}, OF_A_MINUTE),
    ("metric_rules", {"grain": "minute", "metric": "completeness", "segment": "device"}, OF_A_MINUTE),
    ("metric_rules", {"grain": "minute", "metric": "type_share", "segment": "event_type", "column_name": "price"}, "column_name of shares is row"),
    ("metric_rules", {"metric": "type_share", "segment": "event_type"}, "metric is one of metric_history"),
    ("metric_rules", {"metric": "rows"}, "metric is one of metric_history"),
    ("metric_rules", {"source": None}, "table_name, source and column_name are not empty (% for any)"),
    ("metric_rules", {"segment": "country"}, "segment is all, source, event_type or device"),
    ("metric_rules", DRIFT | {"segment": "device"}, "segment of top_share, bot_identity_share, mean, median, psi and ks is source"),
    ("metric_rules", DRIFT | {"metric": "freshness", "column_name": "row", "segment": "event_type"}, "segment of freshness and distinctness is all or source"),
    ("metric_rules", {"column_name": "price"}, "column_name of volume, freshness and shares of verdicts is row"),
    ("metric_rules", {"method": "model"}, "method is forecast or static"),
    ("metric_rules", {"direction": "sideways"}, "direction is up, down or both"),
    ("metric_rules", {"sensitivity": 0}, "sensitivity of a forecast is above zero"),
    ("metric_rules", {"sensitivity": None}, "sensitivity of a forecast is above zero"),
    ("metric_rules", {"min_change": None}, "min_change of a forecast is zero or more"),
    ("metric_rules", DRIFT | {"min_change": -0.1}, "min_change of a forecast is zero or more"),
    ("metric_rules", {"min_change": 0.5}, "min_change of volume, mean and median is a factor of 1 or more"),
    ("metric_rules", STATIC | {"at_most": None}, "a static rule has the limits of its direction"),
    ("metric_rules", STATIC | {"at_least": 3, "at_most": 2, "direction": "both"}, "at_least is not above at_most"),
    ("metric_rules", {"at_most": 3}, "a forecast has no limits, and a static rule no sensitivity or min_change"),
    ("metric_rules", STATIC | {"sensitivity": 3}, "a forecast has no limits, and a static rule no sensitivity or min_change"),
    ("metric_rules", {"min_n": 0}, "min_n is 1 or more"),
    ("metric_rules", {"severity": "fatal"}, "severity is error or warn"),
    ("metric_rules", {"owner": None}, "owner is not empty"),
    ("metric_rules", {"suppressed_from": date(2025, 1, 1)}, SUPPRESSED),
    ("metric_rules", MOVE | {"suppressed_until": date(2024, 12, 31)}, SUPPRESSED),
    ("metric_rules", MOVE | {"suppression_reason": None}, SUPPRESSED),
    ("imputation_rules", {"record": "session"}, "record is event, product or customer"),
    ("imputation_rules", EVENT | {"column_name": "page", "method": "mode"}, EVENT_COLUMN),
    ("imputation_rules", EVENT | {"column_name": None}, "column_name is not empty"),
    ("imputation_rules", PRODUCT | {"column_name": "price"}, "column_name of a product is weight"),
    ("imputation_rules", CUSTOMER | {"column_name": "acquisition_channel"}, CUSTOMER_COLUMN),
    ("imputation_rules", EVENT | {"method": "knn"}, MONEY),
    ("imputation_rules", EVENT | {"method": "model"}, MONEY),
    ("imputation_rules", EVENT | {"method": "mean"}, MONEY),
    ("imputation_rules", EVENT | {"method": None}, "method is not empty"),
    ("imputation_rules", PRODUCT | {"method": "model", "group_by": "all"}, NUMBER),
    ("imputation_rules", CUSTOMER | {"method": "model"}, NUMBER),
    ("imputation_rules", EVENT | {"column_name": "device"}, EVENT_LABEL),
    ("imputation_rules", EVENT | {"column_name": "country", "method": "model"}, EVENT_LABEL),
    ("imputation_rules", GENDER | {"method": "knn"}, LABEL),
    ("imputation_rules", CATEGORY | {"method": "median"}, LABEL),
    ("imputation_rules", CATEGORY | {"method": "mode", "group_by": "all"}, "group_by of the mode of a category is product_id"),
    ("imputation_rules", GENDER | {"method": "model", "group_by": "country"}, "group_by of a model is all"),
    ("imputation_rules", CUSTOMER | {"neighbours": 0}, K),
    ("imputation_rules", CUSTOMER | {"neighbours": 33}, K),
    ("imputation_rules", CUSTOMER | {"neighbours": 2.5}, K),
    ("imputation_rules", CATEGORY | {"min_confidence": 0}, CONFIDENCE),
    ("imputation_rules", CATEGORY | {"min_confidence": 1.01}, CONFIDENCE),
    ("imputation_rules", EVENT | {"group_by": "brand"}, OF_IMPUTED_NUMBERS),
    ("imputation_rules", EVENT | {"group_by": None}, "group_by is not empty"),
    ("imputation_rules", EVENT | {"column_name": "device", "method": "mode", "group_by": "category"}, OF_LABELS),
    ("imputation_rules", EVENT | {"column_name": "country", "method": "mode", "group_by": "product_id"}, OF_LABELS),
    ("imputation_rules", PRODUCT | {"group_by": "product_id"}, OF_WEIGHT),
    ("imputation_rules", CUSTOMER | {"group_by": "category"}, OF_CUSTOMERS),
    ("imputation_rules", GENDER | {"group_by": "gender"}, OF_CUSTOMERS),
    ("imputation_rules", GENDER | {"column_name": "country", "group_by": "country"}, OF_CUSTOMERS),
    ("imputation_rules", EVENT | {"action": "drop"}, "action is impute or null"),
    ("null_words", {"word": "NULL"}, f"word {LOWER}"),
    ("consent_words", {"word": " yes"}, f"word {LOWER}"),
    ("consent_words", {"word": "w1", "meaning": "perhaps"}, "meaning is granted, denied or not said"),
    ("minor_currencies", {"minor_currency": "xxc"}, "codes are in upper case without spaces around them"),
    ("minor_currencies", {"minor_currency": "SEK"}, "minor_currency is no currency with a rate of its own"),
    ("minor_currencies", {"minor_currency": "EUR"}, "minor_currency is no currency with a rate of its own"),
    ("minor_currencies", {"minor_currency": "XXD", "per_unit": 0}, "per_unit is above zero"),
    ("validation_rules", {"severity": "fatal"}, "severity is error or warn"),
    *(
        ("validation_rules", {"rule_id": rule}, GRAVE)
        for rule in (
            *("malformed", "deleted_at_source", "missing_identity", "missing_event_at", "unknown_event_type"),
            *("order_missing", "price_out_of_range", "quantity_out_of_range", "discount_out_of_range"),
        )
    ),
    ("rfm_bounds", {"measure": "visits"}, "measure is recency_days, orders or revenue"),
    ("rfm_bounds", {"score": 6}, "score is 1, 2, 3, 4 or 5"),
    ("rfm_bounds", {"score": 2.5}, "score is 1, 2, 3, 4 or 5"),
    ("rfm_bounds", {"at_least": None}, "at_least is not empty"),
    ("rfm_segments", {"recency_score": 0}, "recency_score is 1, 2, 3, 4 or 5"),
    ("rfm_segments", {"frequency_score": 6}, "frequency_score is 1, 2, 3, 4 or 5"),
    ("referrer_channels", {"site": "Example.org"}, "site is part of a host name in lower case"),
    ("referrer_channels", {"site": "example.org/shop"}, "site is part of a host name in lower case"),
    ("referrer_channels", {"site": ".org"}, "site is part of a host name in lower case"),
    ("referrer_channels", {"site": "b.org", "channel": "mail"}, "channel is search, social, assistant or referral"),
    ("event_weights", {"measure": "refunds"}, "measure is views, cart_adds or purchases"),
    ("event_weights", {"weight": 0.5}, "weight is a whole number of 0 or more"),
    ("event_weights", {"weight": -1}, "weight is a whole number of 0 or more"),
]  # fmt: skip

#: Allowed values, besides those in the seeds as delivered.
ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    *(
        ("outlier_rules", {"column_name": column, "group_by": group, "method": method, "scale": scale, "action": action})
        for column, groups in (
            ("price", ("product_id", "category", "event_type", "all")),
            ("quantity", ("product_id", "category", "event_type", "all")),
            ("weight", ("category", "all")),
            ("income", ("country", "gender", "all")),
        )
        for group in groups
        for method, scale, action in (("iqr", "raw", "cap"), ("zscore", "log", "remove"), ("iqr", "log", "flag"))
    ),
    *(
        ("imputation_rules", {"record": record, "column_name": column, "method": method, "group_by": group, "action": action})
        for record, columns, methods, groups in (
            ("event", ("price", "quantity"), ("median", "mode"), ("product_id", "category", "event_type", "all")),
            ("event", ("device", "country"), ("mode",), ("event_type", "all")),
            ("event", ("category",), ("mode",), ("product_id",)),
            ("event", ("category",), ("model",), ("all",)),
            ("product", ("weight",), ("median", "mode", "knn"), ("category", "all")),
            ("customer", ("birth_year", "household_size", "income"), ("median", "mode", "knn"), ("country", "gender", "all")),
            ("customer", ("gender",), ("mode",), ("country", "all")),
            ("customer", ("gender", "country"), ("model",), ("all",)),
            ("customer", ("country",), ("mode",), ("gender", "all")),
        )
        for column in columns
        for method in methods
        for group in groups
        for action in ("impute", "null")
    ),
    *(
        ("validation_rules", {"rule_id": rule, "severity": severity})
        for rule in ("unusable_id", "event_in_future", "unknown_user", "unknown_product", "order_times_disordered",
            "unknown_currency", "consent_denied", "unknown_consent", "bot_user_agent", "bot_rate", "bot_behaviour", "agent_visit",
            "odd_local_time")
        for severity in ("error", "warn")
    ),
    *(
        ("metric_rules", {"metric": metric, "segment": segment, "column_name": column})
        for metric, segments, column in (
            ("volume", ("all", "source", "event_type", "device"), "row"),
            ("freshness", ("all", "source"), "row"),
            ("completeness", ("all", "source", "event_type", "device"), "price"),
            ("distinctness", ("all", "source"), "%_id"),
            ("median", ("source",), "%"),
        )
        for segment in segments
    ),
    ("metric_rules", STATIC),
    ("metric_rules", STATIC | {"at_least": 1, "direction": "both"}),
    ("metric_rules", MOVE),
    ("imputation_rules", CUSTOMER | {"neighbours": 32}),
    ("imputation_rules", CATEGORY | {"min_confidence": 1}),
    ("category_map", {"raw_category": "no books", "category": None}),
    ("event_weights", {"weight": 0}),
    ("minor_currencies", {"per_unit": 12.5}),
]  # fmt: skip


@dataclass
class Asked:
    """The seeds with all of the rows above in them, and the results of their tests."""

    where: Settings
    done: Build
    kept: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def rows(self, test: str, row: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """The rows that a test kept; only those that match."""
        if test not in self.kept:
            [node] = [node for node in self.done.nodes if node.name == test]
            if node.status == "pass":
                return []
            assert node.status == "fail", node.message
            with duckdb.connect(str(self.where.warehouse), read_only=True) as con:
                answer = con.execute(f"select * from {node.kept_in}")
                names = [column[0] for column in answer.description or []]
                self.kept[test] = [dict(zip(names, each, strict=True)) for each in answer.fetchall()]
        found = self.kept[test]
        return [each for each in found if row is None or all(each[name] == value for name, value in row.items())]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, extensions: Path) -> Iterator[Asked]:
    where = Settings.below(tmp_path_factory.mktemp("seeds"), extensions)
    assert run_dbt(["seed"], where=where).passed
    with duckdb.connect(str(where.warehouse)) as con:
        for seed, change in [(seed, change) for seed, change, _ in REFUSED] + ACCEPTED:
            row = RIGHT[seed] | change
            con.execute(
                f"insert into main.{seed} by name select {', '.join(f'? as {name}' for name in row)}", [*row.values()]
            )
        con.execute(
            "insert into main.category_map values ('books', 'literature'), ('tales', 'Books'), ('novels', 'books'), ('cups', 'novels')"
        )
        con.execute("insert into main.rfm_segments values (5, 5, 'again')")
        con.execute("delete from main.rfm_bounds where measure = 'revenue'")
        con.execute("alter table main.fx_rates add column nok double")
    singular = ["categories_stand_for_themselves", "currencies_are_those_listed", "rfm_scores_leave_no_gap"]
    select = ["--select", "resource_type:seed", *singular, "--exclude", "test_type:unit"]
    yield Asked(where, run_dbt(["test", *select], where=where))


@pytest.mark.parametrize(("seed", "change", "rule"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_value_without_effect_is_refused_by_a_rule_that_says_what_is_allowed(
    asked: Asked, seed: str, change: dict[str, Any], rule: str
) -> None:
    found = asked.rows(f"{seed}_rows", RIGHT[seed] | change)
    assert [row["broken_rules"] for row in found] == [rule]


def test_allowed_values_are_not_refused(asked: Asked) -> None:
    for seed, change in ACCEPTED:
        assert not asked.rows(f"{seed}_rows", RIGHT[seed] | change), (seed, change)
    for seed, row in RIGHT.items():
        assert not asked.rows(f"{seed}_rows", row)


def test_a_category_has_one_spelling_and_maps_to_itself(asked: Asked) -> None:
    found = {(row["raw_category"], row["category"]) for row in asked.rows("categories_stand_for_themselves")}
    # Two spellings of books, which is itself mapped to something else; and novels, which cups is mapped to, is mapped to books.
    assert found == {("Books", "books"), ("books", "literature"), ("books", "books"), ("novels", "books")}


def test_currencies_without_rates_and_rates_without_a_currency_are_named(asked: Asked) -> None:
    assert asked.rows("currencies_are_those_listed") == [
        {"currency": "nok", "what_to_do": "add it to fx_currencies in dbt_project.yml"}
    ]


def test_a_measure_without_scores_is_named(asked: Asked) -> None:
    assert "revenue" in {row["measure"] for row in asked.rows("rfm_scores_leave_no_gap")}


def test_every_pair_of_scores_has_one_segment(asked: Asked) -> None:
    assert asked.rows("rfm_segments_one_by_pair") and asked.rows("rfm_segments_of_every_pair")


def test_counts_are_read_as_they_are_written(asked: Asked) -> None:
    """DuckDB reads 0.5 into an integer as 1: nobody would notice that the weight of views is different."""
    with duckdb.connect(str(asked.where.warehouse), read_only=True) as con:
        types = con.execute(
            "select table_name || '.' || column_name, data_type from duckdb_columns() where schema_name = 'main' and table_name || '.' || column_name in "
            "('event_weights.weight', 'outlier_rules.min_count', 'rfm_bounds.score', 'minor_currencies.per_unit')"
        ).fetchall()
    assert len(types) == 4 and {kind for _, kind in types} == {"DOUBLE"}
