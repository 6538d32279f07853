"""The score of outlier rules by hour of the week, on copies of a small shop's warehouse."""

from __future__ import annotations

import duckdb
import pytest

from orchestration.config.settings import Settings
from orchestration.quality import seasonal_score
from orchestration.quality.cleaning_score import Score, score
from orchestration.quality.seasonal_score import COMPARED, Rules

#: So narrow that hours of a small shop have outliers.
NARROW = COMPARED[1].sql.replace("'hour_of_week', 8, 10, 10, 5", "'hour_of_week', 0.01, 2, 2, 1")


@pytest.mark.long
def test_a_copy_is_built_by_the_rules(built_shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMPARED[1].sql != NARROW
    monkeypatch.setattr(seasonal_score, "COMPARED", (Rules("narrow", NARROW, weeks=1),))
    before = built_shop.warehouse.stat().st_mtime_ns
    shop = built_shop.home / "shop"
    found = {(each.rules, each.kind): each for each in seasonal_score.score(built_shop, shop) if each.detail is None}
    kinds = ("price_outlier", "quantity_outlier", "seasonal_outlier")
    assert set(found) == {(rules, kind) for rules in ("as built", "narrow") for kind in kinds}
    usual = {each.kind: each for each in score(built_shop.warehouse, shop) if each.detail is None}
    assert all(found["as built", kind] == usual[kind] for kind in kinds)
    assert (found["narrow", kinds[0]].answered or 0) > 5 * (found["as built", kinds[0]].answered or 0) > 0
    assert all(found["narrow", kind].planted == usual[kind].planted for kind in kinds)
    # Neither the warehouse nor its folder shows anything of it.
    assert built_shop.warehouse.stat().st_mtime_ns == before
    assert not list((built_shop.home / "bench").glob("cleaning/*"))
    with duckdb.connect(str(built_shop.warehouse), read_only=True) as con:
        assert con.execute("select count(*) from outlier_rules where group_by = 'hour_of_week'").fetchall() == [(0,)]


def test_the_table_has_a_line_a_kind_and_rules() -> None:
    scores = [
        Score("quantity_outlier", None, 4, 2, 3, 2, rules="as built"),
        Score("seasonal_outlier", None, 4, 0, 0, 0, rules="as built"),
        Score("quantity_outlier", "times 100", 4, 2, None, None, rules="as built"),
        Score("quantity_outlier", None, 4, 4, 4, 4, rules="by hour"),
    ]
    table = seasonal_score.table(scores)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows == [
        ("quantity_outlier", "as built", "4", "3", "2", "0.666", "0.500"),
        ("quantity_outlier", "by hour", "4", "4", "4", "1.00", "1.00"),
        ("seasonal_outlier", "as built", "4", "0", "0", "", "0.000"),
    ]
