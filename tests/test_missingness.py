"""The audit of gaps is what pandas counts and scipy tests on the clean events of the same build."""

from __future__ import annotations

from random import Random

import duckdb
import pandas as pd
import pytest
from small_shops import Homes, ShopMaker, land

PLAIN = [
    "user_id",
    "anonymous_id",
    "product_id",
    "brand",
    "order_id",
    "currency",
    "query",
    "page",
    "referrer",
    "campaign",
    "list_price",
]
IMPUTED = ["price", "quantity", "device", "country", "category"]


def test_gaps_are_counted_and_tested_right(homes: Homes) -> None:
    stats = pytest.importorskip("scipy.stats")
    random = Random(20260)
    rows = ShopMaker(random).shop(events=200)
    home = homes.make("missingness")
    for part in (rows[::2], rows[1::2]):
        land(home, part)
        homes.run(home, "--select", "+missingness_advice")
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        events = con.execute("select * from int_cleaning__events where known_to is null").df()
        audit = con.execute("from marts.missingness_audit").df()
        tests = con.execute("from marts.missingness_tests where record = 'event'").df()
    gaps = pd.DataFrame({name: events[name].isna() for name in PLAIN})
    for name in IMPUTED:
        gaps[name] = events[f"{name}_was_missing"]
    bought = events[events.event_type == "purchase"][["session_id", "event_day"]].drop_duplicates()
    pairs = set(map(tuple, bought.dropna().itertuples(index=False)))
    label = [pair in pairs for pair in zip(events.session_id, events.event_day, strict=True)]
    values = {
        "event_type": events.event_type,
        "device": events.device.where(~events.device_was_missing),
        "in_buying_session": pd.Series(label),
    }

    counted = audit[audit.record == "event"].set_index(["source", "event_type", "column_name"])
    groups = gaps.groupby([events.source, events.event_type])
    expected = {(*key, name): int(group[name].sum()) for key, group in groups for name in gaps}
    assert len(expected) > 100 and {key: int(row.missing_rows) for key, row in counted.iterrows()} == expected

    found = {(row.source, row.column_name, row.kind, row.other): row for row in tests.itertuples()}
    seen = 0
    for source in events.source.unique():
        mine = events.source == source
        for name in gaps:
            others = [("value", other, column) for other, column in values.items()]
            others += [("gap", other, gaps[other]) for other in gaps if other != name]
            for kind, other, column in others:
                known = mine & column.notna()
                cells = pd.crosstab(column[known], gaps[name][known])
                key = (source, name, kind, other)
                if cells.shape[0] < 2 or cells.shape[1] < 2:
                    assert key not in found
                    continue
                result = stats.chi2_contingency(cells, correction=False)
                row = found[key]
                assert row.chi_squared == pytest.approx(result.statistic, abs=1e-5)
                assert row.degrees_of_freedom == result.dof and row.all_rows == known.sum()
                assert row.cramers_v == pytest.approx(stats.contingency.association(cells, method="cramer"), abs=1e-5)
                shares = gaps[name][known].groupby(column[known]).mean()
                assert (row.lowest_share, row.highest_share) == pytest.approx((shares.min(), shares.max()))
                seen += 1
    assert seen == len(found) > 50
