"""Nothing leaks: what is known as of a time is what a build has of the rows that had arrived by then, and nothing that arrives later moves it.

A shop is built once with all of its rows, and once for each of a few times with the rows that had arrived by then alone. The clean events of
the latter, with their sessions, are the versions that the former has as of that time; and so are all features. The rows that are left out
have late and repeated events, logins that link visitors, orders that the database reports after the web, and later versions of their headers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_shops import VARS, Homes, Row, ShopMaker, land
from test_as_of import LONG, MARTS, SPINES, clean_events, everything, rows_of, unequal
from plainly import Shop

from orchestration.config.settings import Settings
from orchestration.warehouse.compiled import answers, compiled

#: What a version of an event knows of builds, or of itself.
OWN = ("row_id", "built_in", "known_from", "known_to", "arrival_day", "until_day")
#: The models that `Answers` reads, without features and marts.
STATE = ("--exclude", "path:models/intermediate/features", "path:models/marts")


def built(homes: Homes, name: str, rows: Iterable[Row], *selection: str) -> Settings:
    home = homes.make(name)
    land(home, rows)
    homes.run(home, *selection)
    return home


def events_at(home: Settings, moment: datetime) -> set[tuple[str, ...]]:
    """The clean events that are known as of a time, by the versions that a warehouse has."""
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        query = f"""select * exclude ({", ".join(OWN)}) from int_cleaning__events
            where known_from <= $at and coalesce(known_to, '9999-12-31') > $at order by all"""
        return {tuple(map(repr, row)) for row in con.execute(query, {"at": moment}).fetchall()}


def features_at(home: Settings, moments: list[datetime], asked: dict[str, list[str]]) -> dict[Any, dict[str, Any]]:
    """The rows of all feature marts as of these times, by mart and key."""
    models = compiled(home, arguments=["--vars", json.dumps(VARS)])
    with answers(home, models) as opened:
        for spine, key in SPINES.items():
            asks = {
                key: pa.array([each for _ in moments for each in asked[spine]]),
                "as_of": pa.array([moment for moment in moments for _ in asked[spine]], pa.timestamp("us")),
            }
            opened.con.register(f"asked_{key}", pa.table(asks))
        tables = opened.ask([mart.name for mart in MARTS], {key: f"from asked_{key}" for key in SPINES.values()})
        found = {}
        for mart in MARTS:
            for row in rows_of(opened.con, tables[mart.name]):
                row.pop("built_from")
                found[(mart.name, row["as_of"], *(row[name] for name in mart.key))] = row
        return found


def apart(one: dict[Any, dict[str, Any]], other: dict[Any, dict[str, Any]]) -> list[str]:
    """The features that differ."""
    found = [f"{key}: only in one" for key in one.keys() ^ other.keys()]
    return found + [f"{key}: {line}" for key in one.keys() & other.keys() for line in unequal(one[key], other[key])]


def moments_of(random: Random, rows: list[Row], count: int) -> list[datetime]:
    """Times of arrival, after the first rows and before the last ones."""
    arrivals = sorted({row.available_at for row in rows})
    return sorted(random.sample(arrivals[len(arrivals) // 3 :], k=count))


def check_one_shop(homes: Homes, seed: int, count: int, events: int = 160) -> None:
    random = Random(seed)
    rows = ShopMaker(random).shop(events=events)
    full = built(homes, "all", random.sample(rows, k=len(rows)), *STATE)
    moments = moments_of(random, rows, count)
    with duckdb.connect(str(full.warehouse), read_only=True) as con:
        asked = everything(Shop(clean_events(con), rows_of(con, "int_reference__product_versions")))
    at_all = features_at(full, moments, asked)
    for moment in moments:
        known = built(homes, "known", [row for row in rows if row.available_at <= moment], *STATE)
        ours, theirs = events_at(full, moment), events_at(known, moment)
        assert ours == theirs, f"seed {seed}, {moment}: {sorted(ours - theirs)[:3]} but {sorted(theirs - ours)[:3]}"
        expected = features_at(known, [moment], asked)
        wrong = apart({key: row for key, row in at_all.items() if key[1] == moment}, expected)
        assert not wrong, f"seed {seed}, {moment}: {len(wrong)} values differ, such as\n" + "\n".join(wrong[:20])


@pytest.mark.long
@given(seed=st.integers(0, 2**32 - 1))
@LONG
def test_what_arrives_later_moves_nothing(homes: Homes, seed: int) -> None:
    check_one_shop(homes, seed, 2)
