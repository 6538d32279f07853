"""The history of customers, products and segments: a version begins and ends with builds, and building again adds
none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import duckdb
import pytest

from orchestration.config.settings import Settings
from orchestration.warehouse.build import run_dbt

FIRST, SECOND = datetime(2024, 1, 1, 12), datetime(2024, 1, 8, 12)

#: The marts that snapshots read, as after a build, with a customer and a visitor, a product, and a buyer.
MARTS = """
    create schema marts;
    create table marts.dim_customers as
        select * from (values ('c1', 'u1', false, 'se', {moment}), ('v1', null, true, null, {moment}))
            as t (customer_id, user_id, is_anonymous, country, as_of)
        cross join (select true as has_profile, 1 as identities, timestamp '2023-01-01' as created_at, 1980 as birth_year,
            'f' as gender, 2 as household_size, 10.5 as income, 'search' as acquisition_channel, null::boolean as marketing_consent);
    create table marts.dim_products as
        select 'P1' as product_id, 'a' as title, 'b' as brand, 'x' as category, 9.5 as price, 'USD' as currency,
            100.0 as weight_grams, true as is_in_catalogue, {moment} as as_of;
    create table marts.user_features as
        select * from (values ('c1', 5, 1, 1, 'new', {moment}), ('v1', null, null, null, null, {moment}))
            as t (customer_id, rfm_recency_score, rfm_frequency_score, rfm_monetary_score, rfm_segment, as_of);
"""


@pytest.fixture
def shop(home: Settings) -> Iterator[Settings]:
    home.home.mkdir(parents=True, exist_ok=True)
    change(home, MARTS.format(moment=f"timestamp '{FIRST}'"))
    yield home


def change(home: Settings, sql: str) -> None:
    with duckdb.connect(str(home.warehouse)) as con:
        con.execute(sql)


def moved(home: Settings, moment: datetime) -> None:
    """The marts as a build at another moment would leave them, if nothing had changed."""
    for mart in ("dim_customers", "dim_products", "user_features"):
        change(home, f"update marts.{mart} set as_of = timestamp '{moment}'")


def history(home: Settings, name: str, columns: str) -> list[tuple[Any, ...]]:
    """Take the snapshots; returns the rows of one of them."""
    build = run_dbt(["snapshot"], where=home)
    assert build.passed and build.count("snapshot") == 3
    return held(home, name, columns)


def held(home: Settings, name: str, columns: str) -> list[tuple[Any, ...]]:
    """What a history holds."""
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        return con.execute(
            f"select {columns}, dbt_valid_from, dbt_valid_to from snapshots.{name} order by 1, dbt_valid_from"
        ).fetchall()


@pytest.mark.long
def test_a_version_begins_and_ends_with_builds(shop: Settings) -> None:
    segments = ("customer_segments_history", "customer_id, rfm_segment")
    first = history(shop, *segments)
    assert first == [("c1", "new", FIRST, None)], "a visitor without orders has no segment"
    assert history(shop, *segments) == first, "the same build again"

    moved(shop, SECOND)
    assert history(shop, *segments) == first, "a later build in which nothing changed"

    change(
        shop, "update marts.user_features set rfm_recency_score = 4, rfm_segment = 'promising' where customer_id = 'c1'"
    )
    changed = [("c1", "new", FIRST, SECOND), ("c1", "promising", SECOND, None)]
    assert history(shop, *segments) == changed
    assert history(shop, *segments) == changed

    moved(shop, FIRST)
    change(shop, "update marts.user_features set rfm_segment = 'champion' where customer_id = 'c1'")
    assert history(shop, *segments) == changed, "a build for a moment of the past tells the history nothing"


def test_customers_and_products_have_versions_too(shop: Settings) -> None:
    assert history(shop, "customers_history", "customer_id, country") == [("c1", "se", FIRST, None)], "no visitors"
    moved(shop, SECOND)
    change(shop, "update marts.dim_customers set country = 'de'; update marts.dim_products set price = null")
    assert history(shop, "customers_history", "customer_id, country") == [
        ("c1", "se", FIRST, SECOND),
        ("c1", "de", SECOND, None),
    ]
    assert [(row[1], *row[2:]) for row in held(shop, "products_history", "product_id, cast(price as double)")] == [
        (9.5, FIRST, SECOND),
        (None, SECOND, None),
    ]


def test_late_rows_of_a_built_moment_replace_the_version_of_that_moment(shop: Settings) -> None:
    """Rows may land that were known before the last build's moment: the next build then has the same moment."""
    assert history(shop, "customers_history", "customer_id, country") == [("c1", "se", FIRST, None)]
    change(shop, "update marts.dim_customers set country = 'de'")
    mended = history(shop, "customers_history", "customer_id, country")
    assert sorted(mended, key=lambda row: row[3] is None) == [("c1", "se", FIRST, FIRST), ("c1", "de", FIRST, None)]
    rules = ["customers_history_does_not_end_before_it_begins", "customers_history_has_one_version_that_holds"]
    audit = run_dbt(["test", "--select", *rules], where=shop)
    assert audit.passed and audit.count("test") == 2
    moved(shop, SECOND)
    change(shop, "update marts.dim_customers set country = 'fi'")
    later = history(shop, "customers_history", "customer_id, country")
    assert sorted(row for row in later if row[2] != row[3])[:1] + later[-1:] == [
        ("c1", "de", FIRST, SECOND),
        ("c1", "fi", SECOND, None),
    ]
