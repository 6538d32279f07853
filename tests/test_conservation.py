"""Nothing is lost and nothing counts twice: every raw row is exactly one of kept, duplicate and quarantined, and the counts add up by
source and day of arrival. The expected counts come from the loaded rows, not from SQL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import psycopg
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from servers import Postgres
from small_shops import EVENT_TABLES, RECORD_TABLES, Homes, Row, ShopMaker, differences, is_deleted, land
from test_stream import GOOD, Shop

from orchestration.config.published import DATABASE
from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.ingest import ingest
from orchestration.ingest.load import load
from orchestration.ingest.stream.replay import replay
from orchestration.ingest.unload import unload

#: Relations that list deleted rows, and the continuation lines about them in a comparison.
BOOKS = (
    "main.int_reference__category_names",
    "main.int_reference__deletions",
    "main.int_reference__orders",
    "main.int_events__validated",
    "main.int_reference__record_verdicts",
    "marts.event_ledger",
    "marts.quarantined_events",
    "    ",
)

#: The verdicts of a raw row, the strongest first.
ENDS = ("kept", "quarantined", "duplicate")


def validated_rows(row: Row) -> int:
    """The number of validated rows of a raw row: one per item for GA4."""
    items = json.loads(row.fields["items"]) if row.table == "ga4_events" and not row.error else []
    return max(len(items), 1)


def deleted_rows(rows: list[Row]) -> Counter[tuple[Any, ...]]:
    """The rows that are deleted, by themselves or with their order, which is deleted with the last version of its header."""
    deletions = [row for row in rows if row.table == "deletions"]

    def order_of(row: Row) -> str:
        return (row.fields.get("order_id") or "").strip() if row.table in ("orders", "order_items", "refunds") else ""

    headers = defaultdict[str, list[bool]](list)
    for row in rows:
        if row.table == "orders" and not row.error:
            headers[order_of(row)].append(is_deleted(row, deletions))
    return Counter(
        (row.table, row.source, row.position, row.available_at)
        for row in rows
        if row.table != "deletions"
        if is_deleted(row, deletions)
        or (row.table in ("order_items", "refunds") and order_of(row) in headers and all(headers[order_of(row)]))
        for _ in range(validated_rows(row))
    )


def check_conserved(where: Settings, rows: list[Row]) -> None:
    gone = deleted_rows(rows)
    rows = [row for row in rows if row.table != "deletions"]
    with duckdb.connect(str(where.warehouse), read_only=True) as con:

        def ask(query: str) -> list[tuple[Any, ...]]:
            return con.execute(query).fetchall()

        verdicts = ask(
            "select raw_table, source, position, raw_available_at, raw_rowid, verdict, reasons from int_events__validated where verdict <> 'superseded' "
            "union all select raw_table, source, position, raw_available_at, raw_rowid, verdict, [reason] "
            "from int_reference__record_verdicts"
        )
        ledger = ask(
            "select raw_table, source, arrival_day, raw_rows, kept, duplicates, quarantined, "
            "kept_items, duplicate_items, quarantined_items from marts.event_ledger"
        )
        kept = ask("select source, row_id from int_events__validated where verdict = 'kept' order by all")
        cleaned = ask("select source, row_id from int_cleaning__events where known_to is null order by all")
        facts = ask("select count(*), count(distinct event_id) from marts.fct_events")
        quarantined = ask("select count(*) from marts.quarantined_events")
        readable = ask(
            "select row_id, dedup_key, client_key, purchase_order_id, verdict from int_events__validated "
            "where verdict <> 'superseded' and raw_error is null and identity is not null and event_at is not null and event_type is not null"
        )

    # Each loaded row has one verdict.
    landed = Counter(
        (row.table, row.source, row.position, row.available_at) for row in rows for _ in range(validated_rows(row))
    )
    assert Counter(verdict[:4] for verdict in verdicts) == landed
    for *_, verdict, reasons in verdicts:
        assert verdict in ENDS
        assert bool([reason for reason in reasons if reason]) == (verdict != "kept")

    # Exactly the deleted rows are marked as deleted.
    assert gone == Counter(verdict[:4] for verdict in verdicts if "deleted_at_source" in verdict[6])

    # The ledger agrees, by source and day: a row with several items is kept if any item is.
    raw = Counter((row.table, row.source, row.available_at.date()) for row in rows)
    by_row: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for table, source, _, moment, rowid, verdict, _ in verdicts:
        by_row[table, source, moment.date(), rowid].append(verdict)
    ends = Counter((*key, next(end for end in ENDS if end in found)) for (*key, _), found in by_row.items())
    items = Counter((table, source, moment.date(), verdict) for table, source, _, moment, _, verdict, _ in verdicts)
    assert {line[:3]: line[3] for line in ledger} == dict(raw) and len(ledger) == len(raw)
    for *key, raw_rows, kept_rows, duplicates, spoilt, kept_items, duplicate_items, spoilt_items in ledger:
        assert raw_rows == kept_rows + duplicates + spoilt, key
        assert (kept_rows, spoilt, duplicates) == tuple(ends[(*key, end)] for end in ENDS), key
        assert (kept_items, spoilt_items, duplicate_items) == tuple(items[(*key, end)] for end in ENDS), key
    assert {line[0] for line in ledger} == {*EVENT_TABLES, *RECORD_TABLES}

    # The marts have each kept row once.
    assert cleaned == kept
    assert facts == [(len(kept), len(kept))]
    assert quarantined == [(sum(v[5] == "quarantined" and v[0] in EVENT_TABLES for v in verdicts),)]

    # Of rows that are copies by any key, at least one is not a duplicate.
    groups = Groups()
    for row_id, *keys, _ in readable:
        for name, key in zip(("dedup", "client", "order"), keys, strict=True):
            if key is not None:
                groups.join(row_id, (name, key))
    not_lost = {groups.of(row_id) for row_id, *_, verdict in readable if verdict != "duplicate"}
    lost = [row_id for row_id, *_, verdict in readable if verdict == "duplicate" and groups.of(row_id) not in not_lost]
    assert not lost, f"all copies of these were taken for duplicates: {lost}"


class Groups:
    """Connected components."""

    def __init__(self) -> None:
        self._parents: dict[Any, Any] = {}

    def of(self, thing: Any) -> Any:
        while (parent := self._parents.setdefault(thing, thing)) != thing:
            thing = parent
        return thing

    def join(self, one: Any, other: Any) -> None:
        self._parents[self.of(one)] = self.of(other)


def check_one_shop(homes: Homes, seed: int) -> None:
    random = Random(seed)
    rows = ShopMaker(random).shop_with_deletions()
    random.shuffle(rows)
    shop_home = homes.make("conserved")
    for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        land(shop_home, part)
        homes.run(shop_home)
    check_conserved(shop_home, rows)

    # Except for bookkeeping, the result is as if the deleted rows had never arrived.
    gone = deleted_rows(rows)
    never = homes.make("never")
    came = [row for row in rows if row.table != "deletions"]
    assert gone
    land(never, (row for row in came if (row.table, row.source, row.position, row.available_at) not in gone))
    homes.run(never, "--full-refresh")
    found = [line for line in differences(shop_home, never) if not line.startswith(BOOKS)]
    assert not found, "\n".join(found)


@pytest.mark.long
@settings(
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck), deadline=None, max_examples=1
)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_raw_row_has_one_verdict_and_the_counts_add_up(homes: Homes, seed: int) -> None:
    check_one_shop(homes, seed)


@pytest.mark.long
def test_what_a_database_deletes_leaves_the_marts(
    homes: Homes, postgres: Postgres, postgres_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `finegrain ingest`: a line by itself, an order with its lines; a line that returns is in the marts again."""
    where, access = homes.make("ingested"), postgres.environment()
    host, port, user, password = (access[name] for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD"))
    monkeypatch.setenv("SHOP_URL", f"postgresql://{user}:{password}@{host}:{port}/{postgres_database}")
    whole = {"key": ["id"], "deletes": "compare", "origin": "database", "available_at": "now"}
    lines = {"order_id": "of", "line_id": "id", "product_id": "sku", "quantity": "n", "price": {"value": 10}}
    tables = {
        "orders": {"table": "orders", "fields": {"order_id": "id", "user_id": "who", "created_at": "at"}, **whole},
        "order_items": {"table": "lines", "fields": lines, **whole},
    }
    mapping = tmp_path / "shop.yml"
    mapping.write_text(yaml.safe_dump({"source": "shop", "database": "${SHOP_URL}", "tables": tables}))

    def bought() -> list[tuple[Any, ...]]:
        ingest(mapping, where=where)
        homes.run(where, "--select", "+fct_order_items")
        with duckdb.connect(str(where.warehouse), read_only=True) as con:
            return con.execute(
                "select order_key, product_id, cast(quantity as integer) from marts.fct_order_items order by all"
            ).fetchall()

    with psycopg.connect(os.environ["SHOP_URL"], autocommit=True) as shop:
        shop.execute("create table orders (id varchar(9) primary key, who varchar(9), at timestamp)")
        shop.execute("create table lines (id int primary key, of varchar(9), sku varchar(9), n int)")
        shop.execute("insert into orders values ('o1', 'ann', '2024-01-01'), ('o2', 'bob', '2024-01-01')")
        shop.execute("insert into lines values (1, 'o1', 'A', 1), (2, 'o1', 'B', 2), (3, 'o2', 'A', 4)")
        assert bought() == [("o1", "A", 1), ("o1", "B", 2), ("o2", "A", 4)]
        shop.execute("delete from lines")
        shop.execute("delete from orders where id = 'o2'")
        ingest(mapping, where=where)
        shop.execute("insert into lines values (1, 'o1', 'A', 1), (3, 'o2', 'A', 4)")
        assert bought() == [("o1", "A", 1)]


STREAMED: dict[str, Any] = {name: name for name in GOOD}
QUARANTINE = "select user_id, list_sort(reasons) from marts.quarantined_events order by all"


def asked(where: Settings, *queries: str) -> list[list[tuple[Any, ...]]]:
    """Query the warehouse."""
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        return [con.execute(query).fetchall() for query in queries]


def test_quarantined_rows_of_a_stream_are_reprocessed_once(homes: Homes, tmp_path: Path) -> None:
    """After the mapping is corrected: the new rows replace the old ones."""
    shop = Shop(tmp_path, homes.extensions)
    shop.where = where = homes.make("replayed")
    shop.map(fields={**STREAMED, "consent": {"column": "cookies", "map": {"all": "denied", "none": "granted"}}})
    with pytest.raises(FinegrainError, match=r"nothing is published .*; run `finegrain build`"):
        replay(shop.mapping, quarantined=True, where=where)
    users = {"ann": "all", "bob": "none", "cat": "all", "dan": None}
    shop.add(*({**GOOD, "user_id": user, "cookies": cookies} for user, cookies in users.items()), b"no JSON")
    shop.add({**GOOD, "user_id": "eve", "cookies": "all", "event_at": "2099-01-01"})
    shop.drain()
    homes.run(where, "--select", "+quarantined_events")
    version = where.published / "current"
    version.mkdir(parents=True)
    with duckdb.connect(str(version / DATABASE)) as con:
        con.execute(f"attach '{where.warehouse}' as warehouse (read_only)")
        con.execute("create table quarantined_events as from warehouse.marts.quarantined_events")
    assert asked(where, QUARANTINE)[0] == [
        ("ann", ["consent_denied"]),
        ("cat", ["consent_denied"]),
        ("eve", ["consent_denied", "event_in_future", "unknown_currency"]),
    ]
    # Without a correction they are unchanged.
    result = replay(shop.mapping, quarantined=True, where=where).as_dict()
    assert result == {"asked": 3, "rows": 0, "unchanged": 3, "still_dead": {}}
    shop.map(fields={**STREAMED, "consent": {"column": "cookies", "map": {"none": "denied", "all": "granted"}}})
    with pytest.raises(FinegrainError, match=r"--rule bot_rate: no quarantined row .* consent_denied, event_in_future"):
        replay(shop.mapping, quarantined=True, rule="bot_rate", where=where)
    assert replay(shop.mapping, quarantined=True, rule="event_in_future", where=where).rows == 1
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "replay", str(shop.mapping), "--quarantined"],
        env={**os.environ, **where.environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2 quarantined rows reprocessed: 2 rows landed, 0 unchanged\n"
    assert replay(shop.mapping, quarantined=True, where=where).asked == 0
    assert shop.ask("select count(*), count(distinct _position) from lake.raw.events") == [(8, 5)]
    # The next build keeps the corrected rows, and the ledger has the old ones.
    homes.run(where, "--select", "+quarantined_events", "+event_ledger", "+fct_events")
    events, ledger, quarantine = asked(
        where,
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


VISITS = """kind,at,who,sku,n,paid,list
purchase,2024-03-01 10:00:00,ann,A1,1,12.50,20
purchase,2024-03-01 11:00:00,bob,B2,two,8.00,9
view_item,2024-03-02 10:00:00,ann,B2,,8.00,9
purchase,2024-03-02 11:00:00,eve,A1,1,12.50,20
"""
CATALOGUE = "sku,title,maker,price,at\nA1,Cup,Tilia,20,2024-01-01\nB2,Plate,Acer,9,2024-01-01\n"
PEOPLE = "id,land,at\nann,SE,2024-01-01\nbob,DE,2024-01-01\neve,FR,2024-01-01\n"
NOW, LATER = datetime(2024, 3, 5), datetime(2024, 3, 6)


def map_a_shop(mapping: Path, is_right: bool) -> None:
    """The wrong mapping reads the list price, cannot read every quantity, and uses the title as brand, and the country as customer id."""
    files = {"available_at": "event_time", "origin": "database"}
    visit = {
        "event_type": "kind",
        "event_at": "at",
        "user_id": "who",
        "product_id": "sku",
        "currency": {"value": "EUR"},
    }
    tables = {
        "events": {
            "files": "visits.csv",
            **files,
            "expects": ["customers", "products"],
            "where": "true" if is_right else "who <> 'eve'",
            "fields": {
                **visit,
                "price": "paid" if is_right else "list",
                "quantity": {
                    "sql": "case n when 'two' then 2 else cast(n as int) end" if is_right else "cast(n as int)"
                },
            },
        },
        "products": {
            "files": "catalogue.csv",
            **files,
            "fields": {
                "product_id": "sku",
                "brand": "maker" if is_right else "title",
                "price": "price",
                "currency": {"value": "EUR"},
                "updated_at": "at",
            },
        },
        "customers": {
            "files": "people.csv",
            **files,
            "fields": {"customer_id": "id" if is_right else "land", "country": "land", "updated_at": "at"},
        },
    }
    mapping.write_text(yaml.safe_dump({"source": "shop", "tables": tables}))


@pytest.mark.soak
def test_a_corrected_mapping_gives_what_the_right_one_would_have_given(homes: Homes, tmp_path: Path) -> None:
    """With `load --remap` and incremental builds, and the ledger has the former rows. The same holds for unloading everything and loading again."""
    for name, text in (("visits", VISITS), ("catalogue", CATALOGUE), ("people", PEOPLE)):
        (tmp_path / f"{name}.csv").write_text(text)
    mapping = tmp_path / "shop.yml"
    corrected, right = homes.make("corrected"), homes.make("right")
    map_a_shop(mapping, is_right=False)
    load(mapping, data=tmp_path, where=corrected, now=NOW)
    homes.run(corrected)
    kept = "select user_id, product_id, cast(quantity as integer), brand from int_cleaning__events order by all"
    assert asked(corrected, kept) == [[]]  # nobody in the catalogue of customers
    map_a_shop(mapping, is_right=True)
    load(mapping, data=tmp_path, where=right, now=NOW)
    homes.run(right, "--full-refresh")
    expected = [
        ("ann", "A1", 1, "Tilia"),
        ("ann", "B2", None, "Acer"),
        ("bob", "B2", 2, "Acer"),
        ("eve", "A1", 1, "Tilia"),
    ]
    assert asked(right, kept) == [expected]

    with pytest.raises(FinegrainError, match=r"events visits.csv: 3 rows would be replaced, 0 deleted, 1 added"):
        load(mapping, data=tmp_path, where=corrected, now=LATER)
    load(mapping, data=tmp_path, remap=True, where=corrected, now=LATER)
    homes.run(corrected)
    found = [line for line in differences(corrected, right) if not line.startswith(BOOKS)]
    assert not found, "\n".join(found)
    ledger = "select raw_table, sum(raw_rows), sum(kept), sum(quarantined) from marts.event_ledger where raw_rows > 0 group by 1 order by 1"
    assert asked(corrected, ledger) == [[("customers", 6, 3, 3), ("events", 7, 4, 3), ("products", 4, 2, 2)]]
    reasons = "select list_contains(reasons, 'deleted_at_source'), count(*) from marts.quarantined_events group by 1"
    assert asked(corrected, reasons) == [[(True, 3)]]

    # Without its product catalogue, the shop has no kept event; with it, the result is the same as before.
    unload("shop.products", where=corrected, now=LATER)
    homes.run(corrected)
    waiting = "select verdict, reasons from int_events__validated where not list_contains(reasons, 'deleted_at_source')"
    assert asked(corrected, kept, waiting) == [[], [("quarantined", ["unknown_product"])] * 4]
    load(mapping, data=tmp_path, where=corrected, now=LATER)
    homes.run(corrected)
    found = [line for line in differences(corrected, right) if not line.startswith(BOOKS)]
    assert not found, "\n".join(found)
