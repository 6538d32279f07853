"""Quarantined rows of a stream, read again after a mend of the mapping: what they become replaces what they were, once."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import duckdb
import pytest
from test_stream import GOOD, Shop, shop

from orchestration.account import account
from orchestration.build import build, run_dbt
from orchestration.errors import FinegrainError
from orchestration.publish import publish
from orchestration.stream.replay import replay

__all__ = ["shop"]

FIELDS: dict[str, Any] = {name: name for name in GOOD}


QUARANTINE = "select user_id, list_sort(reasons) from marts.quarantined_events order by all"


def asked(shop: Shop, *queries: str) -> list[list[tuple[Any, ...]]]:
    """What the warehouse says."""
    with duckdb.connect(str(shop.where.warehouse), read_only=True) as con:
        return [con.execute(query).fetchall() for query in queries]


def test_quarantined_rows_are_read_again_once(shop: Shop) -> None:
    shop.map(fields={**FIELDS, "consent": {"column": "cookies", "map": {"all": "denied"}}})
    with pytest.raises(FinegrainError, match=r"nothing is published .*; run `finegrain build`"):
        replay(shop.mapping, quarantined=True, where=shop.where)
    users = {"ann": "all", "bob": "none", "cat": "all", "dan": None}
    shop.add(*({**GOOD, "user_id": user, "cookies": cookies} for user, cookies in users.items()), b"no JSON")
    shop.add({**GOOD, "user_id": "eve", "cookies": "all", "event_at": "2999-01-01"})
    shop.drain()
    assert build(where=shop.where).passed
    publish(where=shop.where)
    assert asked(shop, QUARANTINE)[0] == [
        ("ann", ["consent_denied"]),
        ("cat", ["consent_denied"]),
        ("eve", ["consent_denied", "event_in_future", "unknown_currency"]),
    ]
    assert account(shop.where).dead_letters == {"not_json": 1}
    # Without a mend they would be as they are.
    told = replay(shop.mapping, quarantined=True, where=shop.where).as_dict()
    assert told == {"asked": 3, "rows": 0, "unchanged": 3, "still_dead": {}}
    shop.map(fields={**FIELDS, "consent": {"column": "cookies", "map": {"none": "denied"}}})
    with pytest.raises(FinegrainError, match=r"--rule bot_rate: no quarantined row .* consent_denied, event_in_future"):
        replay(shop.mapping, quarantined=True, rule="bot_rate", where=shop.where)
    assert replay(shop.mapping, quarantined=True, rule="event_in_future", where=shop.where).rows == 1
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "replay", str(shop.mapping), "--quarantined"],
        env={**os.environ, **shop.where.environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2 quarantined rows read again: 2 rows landed, 0 would be as they are\n"
    assert replay(shop.mapping, quarantined=True, where=shop.where).asked == 0
    assert shop.ask("select count(*), count(distinct _position) from lake.raw.events") == [(8, 5)]
    # The next build keeps what was mended, and the ledger knows what it was.
    assert run_dbt(["run", "--select", "+quarantined_events", "+event_ledger", "+fct_events"], where=shop.where).passed
    events, ledger, quarantine = asked(
        shop,
        "select user_id from marts.fct_events order by 1",
        "select sum(raw_rows), sum(kept), sum(quarantined) from marts.event_ledger",
        QUARANTINE,
    )
    assert events == [("ann",), ("bob",), ("cat",), ("dan",)]
    assert ledger == [(8, 4, 4)]
    assert quarantine == [
        ("ann", ["consent_denied", "deleted_at_source"]),
        ("cat", ["consent_denied", "deleted_at_source"]),
        ("eve", ["consent_denied", "deleted_at_source", "event_in_future", "unknown_currency"]),
        ("eve", ["event_in_future", "unknown_currency"]),
    ]
