"""The score of the cleaning, on a warehouse small enough to count by hand."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from rich.console import Console

from orchestration.errors import FinegrainError
from orchestration.quality.cleaning_score import DUPLICATES, EXACT, Score, score, table
from orchestration.simulation.words import KINDS

TRUTH = """
kind                | raw_table  | source        | position | key     | detail           | true_value       | true_text
exact_duplicate     | events     | shop_web      | e#1      |         |                  |                  |
near_duplicate      | events     | shop_web      | e#2      |         |                  |                  |
order_twin          | ga4_events | shop_app      | g#1      |         |                  |                  |
order_twin          | ga4_events | shop_app      | g#2      |         |                  |                  |
malformed_row       | events     | shop_web      | e#3      |         | plain text       |                  |
malformed_row       | events     | shop_web      | e#4      |         | a bad time       |                  |
orphan_user         | events     | shop_web      | e#5      |         |                  |                  |
orphan_user         | events     | shop_web      | e#6      |         |                  |                  |
bot                 | events     | shop_web      | e#7      |         | declared         |                  |
bot                 | events     | shop_web      | e#8      |         | stealthy         |                  |
agent               | events     | shop_web      | e#17     |         |                  |                  |
assistant_referral  | events     | shop_web      | e#18     |         |                  |                  |
assistant_referral  | events     | shop_web      | e#19     |         |                  |                  |
late_event          | events     | shop_web      | e#9      |         |                  | 1735732800000000 |
price_outlier       | events     | shop_web      | e#10     |         | times 100        | 5                |
price_outlier       | events     | shop_web      | e#11     |         | times 10         | 5                |
quantity_outlier    | events     | shop_web      | e#15     |         | times 100        | 1                |
quantity_outlier    | events     | shop_web      | e#16     |         | times 100        | 2                |
seasonal_outlier    | events     | shop_web      | e#23     |         | a box            | 1                |
seasonal_outlier    | events     | shop_web      | e#24     |         | a box            | 1                |
bad_price           | events     | shop_web      | e#12     |         |                  | 5                |
missing_value       | events     | shop_web      | e#13     |         | price, at random | 10               |
missing_value       | customers  | shop_database | c#1      | C1      | income           | 100              |
missing_value       | customers  | shop_database | c#2      | C1      | income           | 100              |
missing_value       | products   | shop_database | p#1      | P1      | weight           | 200              |
naive_local_time    | events     | shop_store    | s#1      |         | missing hour     | 1735732800000000 |
naive_local_time    | events     | shop_store    | s#2      |         | missing hour     | 1735732800000000 |
wrong_unit          | products   | shop_database | p#2      | P2      | kg               | 1000             |
wrong_unit          | products   | shop_database | p#3      | P3      | lb               | 1000             |
misspelt_category   | events     | shop_web      | e#14     |         |                  |                  | books
misspelt_category   | products   | shop_database | p#4      | P2      |                  |                  | books
"""

# raw_table, source, position, verdict, reasons, event_at, raw_available_at, category
NOON = "timestamp '2025-01-01 12:00'"
VERDICTS = [
    ("events", "shop_web", "e#1", "duplicate", "duplicate_key", NOON, NOON, None),
    ("events", "shop_web", "e#2", "kept", None, NOON, NOON, None),  # a copy that slipped through
    ("events", "shop_web", "e#3", "quarantined", "malformed", "null", NOON, None),
    ("events", "shop_web", "e#4", "quarantined", "missing_event_at", "null", NOON, None),
    ("events", "shop_web", "e#5", "quarantined", "unknown_user", NOON, NOON, None),
    ("events", "shop_web", "e#6", "kept", None, NOON, NOON, None),
    ("events", "shop_web", "e#7", "quarantined", "bot_user_agent", NOON, NOON, None),
    ("events", "shop_web", "e#8", "kept", None, NOON, NOON, None),
    ("events", "shop_web", "e#9", "kept", None, NOON, "timestamp '2025-01-02 12:00'", None),
    ("events", "shop_web", "e#10", "quarantined", "price_out_of_range", NOON, NOON, None),
    ("events", "shop_web", "e#11", "kept", None, NOON, NOON, None),
    ("events", "shop_web", "e#12", "quarantined", "price_out_of_range", NOON, NOON, None),
    ("events", "shop_web", "e#13", "kept", None, NOON, NOON, None),
    ("events", "shop_web", "e#14", "kept", None, NOON, NOON, "boks"),
    ("events", "shop_web", "e#15", "kept", None, NOON, NOON, None),
    ("events", "shop_web", "e#16", "kept", None, NOON, NOON, None),
    ("events", "shop_web", "e#17", "kept", None, NOON, NOON, None),
    ("events", "shop_web", "e#18", "kept", None, NOON, NOON, None),
    ("events", "shop_web", "e#19", "quarantined", "unknown_currency", NOON, NOON, None),
    ("events", "shop_web", "e#20", "quarantined", "unknown_user", NOON, NOON, None),  # nobody planted that
    ("events", "shop_web", "e#21", "duplicate", "duplicate_key", NOON, NOON, None),  # nor that
    ("events", "shop_web", "e#22", "kept", None, NOON, "timestamp '2025-01-01 12:40'", None),  # not late enough
    ("events", "shop_web", "e#23", "kept", None, NOON, NOON, None),
    ("events", "shop_web", "e#24", "kept", None, NOON, NOON, None),
    ("events", "shop_web", "e#25", "kept", None, NOON, NOON, None),  # flagged, and ordinary
    ("events", "other_shop", "x#1", "duplicate", "duplicate_key", NOON, NOON, None),  # not simulated
    ("events", "shop_store", "s#1", "kept", None, NOON, NOON, None),
    ("events", "shop_store", "s#2", "kept", None, "timestamp '2025-01-01 13:00'", NOON, None),
    ("ga4_events", "shop_app", "g#1", "duplicate", "repeated_order", NOON, NOON, None),
    ("ga4_events", "shop_app", "g#1", "duplicate", "repeated_order", NOON, NOON, None),
    ("ga4_events", "shop_app", "g#2", "duplicate", "repeated_order", NOON, NOON, None),
    ("ga4_events", "shop_app", "g#2", "kept", None, NOON, NOON, None),  # one of its two items slipped through
]


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, Path]:
    """A warehouse and a truth folder."""
    (tmp_path / "shop" / "truth").mkdir(parents=True)
    (tmp_path / "truth.txt").write_text(TRUTH.lstrip())
    with duckdb.connect(str(tmp_path / "warehouse.duckdb")) as con:
        con.execute(
            f"create temp table truth as from read_csv('{tmp_path}/truth.txt', delim = '|', all_varchar = true)"
        )
        names = [row[0] for row in con.execute("describe truth").fetchall()]
        fields = ", ".join(f"nullif(trim(\"{name}\"), '') as {name.strip()}" for name in names)
        con.execute(f"create or replace temp table truth as select {fields} from truth")
        for kind in KINDS[1:]:
            con.execute(
                f"""copy (select * replace (true_value::double as true_value) from truth where kind = '{kind}')
                to '{tmp_path}/shop/truth/{kind}.parquet'"""
            )
        con.execute(f"copy (select 'EUR' as currency, 1.0 as per_euro) to '{tmp_path}/shop/truth/rates.parquet'")
        con.execute(
            """create table int_events__validated (row_id bigint, raw_table varchar, source varchar, position varchar,
            verdict varchar, reasons varchar[], event_at timestamp, raw_available_at timestamp, category varchar,
                rate double)"""
        )
        for row_id, (raw_table, source, position, verdict, reason, event_at, arrived, category) in enumerate(VERDICTS):
            con.execute(
                f"insert into int_events__validated values (?, ?, ?, ?, ?, ?, {event_at}, {arrived}, ?, 2.0)",
                [row_id, raw_table, source, position, verdict, [reason] if reason else [], category],
            )
        con.execute(
            """create table int_cleaning__events as select row_id, case when position = 'e#13' then 30.0
                else 1.0 end as price,
                position in ('e#11', 'e#22') as price_is_outlier, position = 'e#13' as price_was_missing,
                    false as quantity_was_missing, position in ('e#15', 'e#23', 'e#25') as quantity_is_outlier,
                    case when position <> 'e#13' then 1.0 end as price_raw, 1.0 as quantity_raw,
                    'session of ' || position as session_id
            from int_events__validated where verdict = 'kept'"""
        )
        con.execute(
            """create schema marts; create table marts.fct_sessions as
            select session_id, case session_id when 'session of e#17' then 'agent' when 'session of e#16' then 'agent'
                when 'session of e#18' then 'assistant_referred' else 'human' end as visitor_class
            from int_cleaning__events;
            create table marts.dim_products as
            select *, weight_grams as weight_grams_raw, product_id = 'P3' as weight_is_outlier
            from (values ('P1', 'x', 250.0, true, true), ('P2', 'BOOKS', 1000.0,
                false, true),
                ('P3', 'x', 2.2, false, true), ('P4', 'x', null, true, true), ('P5', 'x', null, true, false))
                as t(product_id, category, weight_grams, weight_was_missing, is_in_catalogue)"""
        )
        con.execute(
            """create table marts.dim_customers as select *, 1.0 as income_raw, false as income_is_outlier from (values ('C1', true, true, false, false), ('C2', true, true, false,
                false),
                (null, false, true, true, true))
                as t(user_id, has_profile, income_was_missing, birth_year_was_missing, household_size_was_missing)"""
        )
    return tmp_path / "warehouse.duckdb", tmp_path / "shop"


def test_counts_by_hand(built: tuple[Path, Path]) -> None:
    scores = {(row.kind, row.detail): row for row in score(*built)}

    def shares(kind: str, detail: str | None = None) -> tuple[float | None, float | None]:
        return scores[kind, detail].precision, scores[kind, detail].recall

    # Four rows have a duplicate in them (e#1, e#21 and two of the app), three of which were planted.
    assert shares("exact_duplicate") == (pytest.approx(3 / 4), 1.0)
    assert shares("near_duplicate") == (pytest.approx(3 / 4), 0.0)
    assert shares("order_twin") == (pytest.approx(3 / 4), 0.5)
    assert shares("redelivered_event")[1] is None
    assert shares("malformed_row") == (1.0, 1.0)
    assert shares("orphan_user") == (0.5, 0.5)
    assert shares("bot") == (1.0, 0.5)
    assert shares("bot", "declared") == (None, 1.0)
    assert shares("bot", "stealthy") == (None, 0.0)
    assert shares("agent") == (0.5, 1.0)
    assert shares("assistant_referral") == (1.0, 0.5)
    assert shares("late_event") == (1.0, 1.0)
    # Found: e#10 by the hard limit, e#11 by its flag, and e#22, which is fine.
    assert shares("price_outlier") == (pytest.approx(2 / 3), 1.0)
    assert shares("bad_price") == (1.0, 1.0)
    assert shares("missing_value") == (1.0, 1.0)
    # 30 in the reporting currency, where 10 x 2 was right.
    assert "50%" in scores["missing_value", None].note
    assert shares("missing_value", "of customers") == (0.5, 1.0)
    assert shares("missing_value", "weight of products") == (0.5, 1.0)
    assert "25%" in scores["missing_value", "weight of products"].note
    assert shares("naive_local_time") == (0.5, 0.5)
    assert shares("wrong_unit") == (0.5, 0.5)
    assert shares("misspelt_category") == (0.5, 0.5)
    assert shares("misspelt_category", "in events") == (0.0, 0.0)
    assert shares("misspelt_category", "in the catalogue") == (1.0, 1.0)
    # Of quantities one of two was found, of both kinds; one of what else was flagged is of the other kind.
    assert shares("quantity_outlier") == (0.5, 0.5)
    assert shares("seasonal_outlier") == (0.5, 0.5)
    kept = sum(row[1] in ("shop_web", "shop_app", "shop_store") and row[3] == "kept" for row in VERDICTS)
    # One price is missing; two were planted.
    assert (scores["price_outlier", None].false_alarms, scores["price_outlier", None].ordinary) == (1, kept - 3)
    assert (scores["quantity_outlier", None].false_alarms, scores["quantity_outlier", None].ordinary) == (1, kept - 2)
    weights, incomes = scores["outlier", "weight, none planted"], scores["outlier", "income, none planted"]
    assert (weights.false_alarms, weights.ordinary, weights.fails) == (1, 3, True)
    assert (incomes.false_alarms, incomes.ordinary, incomes.fails) == (0, 3, False)
    assert {kind for kind, _ in scores} == {*KINDS[1:], "outlier"}
    assert {row.kind for row in scores.values() if row.fails} == {
        *DUPLICATES,
        "orphan_user",
        "price_outlier",
        "quantity_outlier",
        "outlier",
    }


def test_takes_either_folder(built: tuple[Path, Path]) -> None:
    warehouse, shop = built
    assert score(warehouse, shop) == score(warehouse, shop / "truth")


def test_says_what_is_missing(built: tuple[Path, Path], tmp_path: Path) -> None:
    warehouse, shop = built
    with pytest.raises(FinegrainError, match="finegrain simulate"):
        score(warehouse, tmp_path / "nowhere")
    with pytest.raises(FinegrainError, match="does not exist"):
        score(tmp_path / "none.duckdb", shop)
    with duckdb.connect(str(warehouse)) as con:
        con.execute("alter table marts.dim_products drop weight_grams")
    with pytest.raises(FinegrainError, match=r"no column dim_products\.weight_grams"):
        score(warehouse, shop)
    with duckdb.connect(str(warehouse)) as con:
        con.execute("drop table int_cleaning__events")
    with pytest.raises(FinegrainError, match="no table int_cleaning__events"):
        score(warehouse, shop)


def test_only_all_is_called_one() -> None:
    almost = Score("orphan_user", None, 100_000, 99_999, 99_999, 99_999)
    assert almost.fails
    console = Console(width=120, record=True)
    console.print(table([almost, Score("bot", "stealthy", 10, 0, None, None)]))
    text = console.export_text()
    assert "0.999" in text
    assert "must be 1.00" in text
    assert not Score("bot", None, 10, 1, 1, 1).fails
    assert set(EXACT) <= set(KINDS)
