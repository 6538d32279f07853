"""`finegrain forget`: nothing of a person is left anywhere, everything else is as if the person had never been, and nothing comes back.

What is left is searched for by code of this file, which shares nothing with the command's own search."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import HOST, Moto, Postgres
from services import new_database
from small_shops import Row, deletion, differences, land, versioned
from typer.testing import CliRunner

from orchestration.cli import app
from orchestration.config.privacy_key import privacy_key
from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.features.history import features_of
from orchestration.ingest.forget import Person, pattern
from orchestration.ingest.ingest import ingest
from orchestration.ingest.load import load
from orchestration.ingest.stream.run import stream
from orchestration.lake import lake
from orchestration.quality import file_search
from orchestration.store.forget import allow, forget
from orchestration.store.materialize import materialize
from orchestration.store.online import OnlineStore
from orchestration.warehouse.build import build
from orchestration.warehouse.maintain import maintain
from orchestration.warehouse.publish import publish

ANN, BEN = "buyer-0003", "buyer-0004"
NAMESPACE = uuid.UUID("4eb3ae34-46e5-52a1-b4be-d109cfb28e73")
FIRST = datetime(2025, 3, 1, 8)


# --- a shop ----------------------------------------------------------------------------------------------------------


@dataclass
class Shop:
    """Rows of a shop, and those of them that are Ann's; `letters` are dead letters, each with whether it is hers."""

    rows: list[tuple[Row, bool]]
    letters: list[tuple[bytes, bool]]
    ids: list[str]


def shop() -> Shop:
    """A shop of 12 people with all kinds of rows. Ann is the fourth: three visitors of hers (one of which Ben logs in on later, too), orders, refunds, GA4
    events, rows that could not be read, and dead letters."""
    random, rows = Random(5), []
    orders = iter(range(1000, 9000))

    def add(
        table: str, source: str, position: str, at: datetime, hers: bool, fields: dict[str, Any], **more: Any
    ) -> Row:
        row = Row(table, source, position, at, fields, **more)
        rows.append((row, hers))
        return row

    for n in range(6):
        fields = {
            "product_id": f"sku-{n}",
            "title": f"Thing {n}",
            "category": "Hats",
            "price": f"{5 + n}.00",
            "currency": "EUR",
        }
        add(
            "products",
            "db",
            versioned(f"products/sku-{n}", 1),
            FIRST - timedelta(days=9),
            False,
            fields,
            origin="database",
        )
    mine = [ANN]
    for n in range(12):
        login, hers, at = f"buyer-{n:04}", n == 3, FIRST + timedelta(hours=n)
        fields = {"customer_id": login, "country": "DE", "created_at": at.isoformat(), "updated_at": at.isoformat()}
        for version in (1, 2):
            profile = fields | {"birth_year": f"{1960 + n + version}"}
            place = versioned(f"customers/{login}", version, "ab"[version - 1])
            add("customers", "db", place, at - timedelta(days=3 - version), hers, profile, origin="database")
        visitors = [f"web-{hashlib.md5(f'{n}/{m}'.encode()).hexdigest()[:12]}" for m in range(3)]
        mine += visitors[:2] if hers else []
        for day in range(8):
            visitor, when = visitors[day % 2], at + timedelta(days=day)
            for step, kind in enumerate(("view_item", "view_item", "add_to_cart", "login", "view_item")):
                when += timedelta(minutes=random.randint(1, 4))
                event = {
                    "event_type": kind,
                    "event_at": when.isoformat(),
                    "anonymous_id": visitor,
                    "product_id": f"sku-{random.randrange(6)}",
                }
                event |= {"price": "7.50", "currency": "EUR", "quantity": "1", "properties": json.dumps({"n": step})}
                if day > 1 or step > 2:
                    event["user_id"] = login
                add("events", "web", f"visits.jsonl#{len(rows)}", when, hers, event)
            if day in (2, 5):
                order = f"ord-{next(orders)}"
                mine += [order] if hers else []
                head = {
                    "order_id": order,
                    "user_id": login,
                    "status": "paid",
                    "currency": "EUR",
                    "created_at": when.isoformat(),
                }
                head["updated_at"] = when.isoformat()
                add("orders", "db", versioned(f"orders/{order}", 1), when, hers, head, origin="database")
                for line in (1, 2):
                    fields = {
                        "order_id": order,
                        "line_id": str(line),
                        "product_id": f"sku-{line}",
                        "quantity": "2",
                        "price": "7.50",
                        "currency": "EUR",
                    }
                    item = add(
                        "order_items",
                        "db",
                        versioned(f"items/{order}-{line}", 1),
                        when,
                        hers,
                        fields,
                        origin="database",
                    )
                hit = {
                    "event_type": "purchase",
                    "event_at": when.isoformat(),
                    "anonymous_id": visitor,
                    "order_id": order,
                    "product_id": "sku-1",
                }
                add(
                    "events",
                    "web",
                    f"visits.jsonl#{len(rows)}",
                    when,
                    hers,
                    hit | {"price": "7.50", "currency": "EUR", "quantity": "2"},
                )
                if day == 5:
                    rows.append((deletion(item, when + timedelta(days=1), versioned(f"items/{order}-2", 2, "0")), hers))
                    fields = {
                        "refund_id": f"ref-{order}",
                        "order_id": order,
                        "product_id": "sku-1",
                        "quantity": "1",
                        "amount": "7.50",
                        "currency": "EUR",
                    }
                    fields["refunded_at"] = (when + timedelta(days=1)).isoformat()
                    add(
                        "refunds",
                        "db",
                        versioned(f"refunds/{order}", 1),
                        when + timedelta(days=1),
                        hers,
                        fields,
                        origin="database",
                    )
        when = at + timedelta(days=6, hours=5)
        pseudo = f"ga.{n}.{hashlib.md5(visitors[0].encode()).hexdigest()[:10]}"
        mine += [pseudo] if hers else []
        for user in (None, login, None):
            when += timedelta(minutes=2)
            fields = {
                "event_name": "page_view",
                "event_timestamp": str(int(when.replace(tzinfo=UTC).timestamp() * 1e6)),
                "user_id": user,
                "user_pseudo_id": pseudo,
            }
            add(
                "ga4_events",
                "ga4",
                f"export.jsonl#{len(rows)}",
                when,
                hers,
                {name: value for name, value in fields.items() if value},
            )
    # A device that Ann was the first to log in on.
    for m, (user, hers) in enumerate([(None, True), (ANN, True), (None, True), (BEN, False), (None, True)]):
        when = FIRST + timedelta(days=4, hours=9, minutes=m)
        event = {
            "event_type": "view_item",
            "event_at": when.isoformat(),
            "anonymous_id": "web-of-the-family",
            "product_id": "sku-0",
        }
        add("events", "web", f"visits.jsonl#{len(rows)}", when, hers, event | ({"user_id": user} if user else {}))
    for user, hers in ((ANN, True), (BEN, False), ("buyer-00031", False)):
        add(
            "events",
            "web",
            f"visits.jsonl#{len(rows)}",
            FIRST + timedelta(days=5),
            hers,
            {"user_id": user},
            error="not JSON",
        )
    letters = [
        (b'{"login": "buyer-0003", "x": \xff}', True),
        (b'{"login": "buyer-0004"}', False),
        (mine[1].encode(), True),
        (b"buyer-00031", False),
    ]
    return Shop(rows, letters, mine)


def fill(where: Settings, rows: Iterable[Row], letters: Iterable[tuple[int, bytes]]) -> None:
    by_time = sorted(rows, key=lambda row: row.available_at)
    half = len(by_time) // 2
    for some in (by_time[:half], by_time[half:]):  # in two snapshots
        land(where, some)
    with lake.connect(where) as con, lake.writing(con, where):
        for n, payload in letters:
            con.execute(
                "insert into lake.raw.dead_letters values ('web', $at, 'events', 'kafka:visits', '0', $n, $payload, null, null, 'not_json', 'it is not JSON', "
                "null, timestamp '2025-03-05 10:00:00')",
                {"at": f"visits/0/{n}", "n": str(n), "payload": payload},
            )


def uuids(ids: Iterable[str]) -> list[str]:
    return [
        str(uuid.uuid5(NAMESPACE, f"{'u' if each == ANN else 'a'}:{each}"))
        for each in ids
        if not each.startswith("ord-")
    ]


# --- an independent search -------------------------------------------------------------------------------------------


def texts_of(path: Path) -> Iterator[str]:
    """All that a file says: its bytes, and what they are when they are decompressed."""
    data = path.read_bytes()
    yield data.decode("latin-1")
    if data[:2] == b"\x1f\x8b":
        yield zlib.decompressobj(47).decompress(data).decode("latin-1")
    elif data[:4] == b"PAR1":
        yield str(pq.read_table(path).to_pylist())
    elif data[8:12] == b"DUCK":
        with duckdb.connect(str(path), read_only=True) as con:
            for schema, table in con.execute("select schema_name, table_name from duckdb_tables()").fetchall():
                yield str(con.execute(f'select * from "{schema}"."{table}"').fetchall())
    elif data[:15] == b"SQLite format 3":
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as con:
            for (table,) in con.execute("select name from sqlite_master where type = 'table'").fetchall():
                yield str(con.execute(f'select * from "{table}"').fetchall())


def left(folder: Path, ids: Iterable[str]) -> list[tuple[str, str]]:
    """Files below a folder in which one of the ids is, and the id."""
    wanted = [(each, re.compile(rf"(?<![0-9]){re.escape(each)}(?![0-9])")) for each in ids]
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "extensions" not in path.parts:
            for text in texts_of(path):
                found += [(str(path.relative_to(folder)), each) for each, pattern in wanted if pattern.search(text)]
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "extensions" not in path.parts and path.suffix != ".lock" and "spill" not in path.parts
    }


def ask(where: Settings, query: str) -> list[tuple[Any, ...]]:
    with lake.connect(where, read_only=True) as con:
        return con.execute(query).fetchall()


# --- everything ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_nothing_is_left_and_the_rest_is_as_if_the_person_had_never_been(home: Settings, tmp_path: Path) -> None:
    made = shop()
    fill(home, (row for row, _ in made.rows), ((n, text) for n, (text, _) in enumerate(made.letters)))
    first = build(where=home)
    assert first.passed, [(node.name, node.message) for node in first.failed]
    publish(home)
    (home.home / "store").mkdir()
    materialize(home)
    shutil.copytree(home.published / "parquet" / "user_features", home.published / "history" / "day=2025-03-04")
    (home.published / "history" / "day=2025-03-04" / "all.parquet").rename(
        home.published / "history" / "day=2025-03-04" / "user_features.parquet"
    )
    (home.home / "objects").mkdir()
    (home.home / "objects" / "copy.jsonl").write_text(f'{{"user": "{ANN}"}}')
    ids = [*made.ids, *uuids([*made.ids, "web-of-the-family"])]
    places = {place.partition("/")[0] for place, _ in left(home.home, ids)}
    assert {"lake", "warehouse.duckdb", "published", "store", "objects"} <= places  # the search finds what is there

    done = forget([ANN], where=home)
    assert done.is_complete, done.proof
    assert done.proof is not None and done.proof.files > 50
    assert sorted(done.person.visitors) == sorted(
        [each for each in made.ids if each.startswith(("web-", "ga."))] + ["web-of-the-family"]
    )
    assert sorted(done.person.orders) == sorted(each for each in made.ids if each.startswith("ord-"))
    assert done.person.shared == ["web-of-the-family"]
    assert sum(done.rows.values()) == sum(hers for row, hers in made.rows if row.table != "deletions") + sum(
        hers for _, hers in made.letters
    )
    assert done.elsewhere["history"] == 1 and done.elsewhere["online store"] > 0 and done.elsewhere["snapshots"] > 0
    assert left(home.home, ids) == []
    assert not (home.home / "forget.json").exists()

    # The lake has all other rows, under their numbers.
    kept = sorted((row.table, row.position) for row, hers in made.rows if not hers)
    tables = sorted({row.table for row, _ in made.rows})
    assert (
        sorted(ask(home, " union all ".join(f"select '{each}', _position from lake.raw.{each}" for each in tables)))
        == kept
    )
    assert sorted(ask(home, "select payload from lake.raw.dead_letters")) == sorted(
        (text,) for text, hers in made.letters if not hers
    )

    # The warehouse is that of a shop in which she never was; the next build has nothing to do.
    other = Settings.below(tmp_path / "other", home.extensions)
    fill(
        other,
        (row for row, hers in made.rows if not hers),
        ((n, text) for n, (text, hers) in enumerate(made.letters) if not hers),
    )
    assert build(where=other).passed
    assert differences(home, other) == []
    assert build(where=home).unchanged_since is not None

    # So are the published marts, the history and the online store.
    gone = set(uuids([*made.ids, "web-of-the-family"]))
    customers = set(pq.read_table(home.published / "parquet" / "user_features").column("customer_id").to_pylist())
    assert str(uuid.uuid5(NAMESPACE, f"u:{BEN}")) in customers and not customers & gone
    [_only] = (home.published / "versions").iterdir()
    then = (
        pq.read_table(home.published / "history" / "day=2025-03-04" / "user_features.parquet")
        .column("customer_id")
        .to_pylist()
    )
    assert len(then) == len(set(then)) > 5 and not set(then) & gone
    with OnlineStore(home) as store:
        ann, ben = store.read("user_features", [str(uuid.uuid5(NAMESPACE, f"u:{each}")) for each in (ANN, BEN)])
    assert ann is None and ben is not None

    # New rows of the others are built as ever.
    event = {"event_type": "view_item", "event_at": "2025-03-12T10:00:00", "user_id": BEN, "product_id": "sku-2"}
    new = [Row("events", "web", "more.jsonl#1", datetime(2025, 3, 12, 10, 1), event)]
    for each in (home, other):
        land(each, new)
        assert build(where=each).passed
    assert differences(home, other) == []


# --- without a build -------------------------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """A mapping of files with events of Ann and Ben."""
    (tmp_path / "in").mkdir()
    lines = [
        {
            "event_type": "view_item",
            "event_at": f"2025-03-02T10:{n:02}:00Z",
            "user_id": user,
            "anonymous_id": visitor,
            "order_id": order,
        }
        for n, (user, visitor, order) in enumerate(
            [
                (ANN, "v-ann-1", None),
                (None, "v-ann-1", None),
                (BEN, "v-ben-1", None),
                (None, None, "ord-77001"),
                (f" {ANN}", None, "ord-77001"),
            ]
        )
    ]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path / "web.yml"
    names = ("event_type", "event_at", "user_id", "anonymous_id", "order_id")
    entry = {
        "files": str(tmp_path / "in" / "*.jsonl"),
        "available_at": "event_time",
        "fields": {name: name for name in names},
    }
    path.write_text(json.dumps({"source": "web", "tables": {"events": entry}}))
    return path


def test_files_that_are_loaded_again_do_not_bring_a_person_back(home: Settings, web: Path) -> None:
    load(web)
    done = forget([ANN])
    assert done.is_complete and done.rows == {"events": 4} and left(home.home, [ANN, "v-ann-1", "ord-77001"]) == []
    assert load(web).rows == 0
    load(web, remap=True)  # reads the file again
    load(web, remap=True)
    text = (web.parent / "in" / "a.jsonl").read_text()
    (web.parent / "in" / "b.jsonl").write_text(text + "\n")
    assert load(web).rows == 5
    rows = ask(home, "select _position, user_id, event_type, payload, _error from lake.raw.events order by _position")
    assert [row[0] for row in rows] == [f"{file}.jsonl#{n}" for file in "ab" for n in range(1, 6)]
    for position, user, kind, payload, error in rows:
        if position.endswith("#3"):
            assert (user, kind, error) == (BEN, "view_item", None) and BEN in payload
        else:
            assert (user, kind, payload, error) == (None, None, "", "forgotten: this person was forgotten")
    assert left(home.home, [ANN, "v-ann-1", "ord-77001"]) == []
    # Somebody else may log in on that device.
    (web.parent / "in" / "c.jsonl").write_text(
        json.dumps({"event_type": "login", "event_at": "2025-03-03", "user_id": BEN, "anonymous_id": "v-ann-1"})
    )
    load(web)
    assert ask(home, "select user_id from lake.raw.events where _position like 'c%'") == [(BEN,)]
    # Ann may come back, if that is what she wants.
    assert allow([ANN]) == 1 and allow([ANN]) == 0
    (web.parent / "in" / "d.jsonl").write_text(
        json.dumps({"event_type": "login", "event_at": "2025-03-03", "user_id": ANN})
    )
    load(web)
    assert ask(home, "select user_id from lake.raw.events where _position like 'd%'") == [(ANN,)]


@pytest.mark.long
def test_messages_of_a_running_stream_do_not_bring_a_person_back(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path, messages = tmp_path / "web.yml", tmp_path / "in" / "a.jsonl"
    entry = {"stream": {"folder": str(tmp_path / "in")}, "available_at": "now"}
    path.write_text(json.dumps({"source": "web", "tables": {"events": entry}}))

    def send(*several: dict[str, Any]) -> None:
        with messages.open("a") as file:
            file.writelines(json.dumps(each) + "\n" for each in several)

    good = {"event_type": "view_item", "event_at": "2025-03-02T10:00:00Z"}
    send(*({**good, **more} for more in ({"user_id": ANN}, {"user_id": BEN}, {"user_id": ANN, "event_at": "never"})))
    stream(path, drain=True)
    assert ask(home, "select count(*) from lake.raw.dead_letters") == [(1,)]
    done = forget([ANN])
    assert done.is_complete and done.rows == {"events": 1, "dead_letters": 1}
    assert left(home.home, [ANN]) == []
    send(*({**good, **more} for more in ({"user_id": ANN}, {"user_id": BEN}, {"user_id": ANN, "event_at": "never"})))
    stream(path, drain=True)
    rows = ask(home, "select user_id, _error is not null from lake.raw.events order by all")
    assert rows == [(BEN, False), (BEN, False), (None, True)]
    assert ask(home, "select rule_id, payload, error from lake.raw.dead_letters") == [
        ("wrong_type", None, "forgotten: this person was forgotten")
    ]
    assert left(home.home, [ANN]) == []
    # From the beginning, each message once more, and no trace of her.
    stream(path, drain=True, from_beginning=True)
    assert left(home.home, [ANN]) == []


@pytest.mark.long
def test_the_next_ingest_does_not_bring_a_person_back(
    home: Settings, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access, name = postgres.environment(), new_database(postgres)
    monkeypatch.setenv(
        "SHOP_URL", f"postgresql://{access['PGUSER']}:{access['PGPASSWORD']}@{HOST}:{postgres.port}/{name}"
    )
    with psycopg.connect(
        host=HOST,
        port=postgres.port,
        user=access["PGUSER"],
        password=access["PGPASSWORD"],
        dbname=name,
        autocommit=True,
    ) as con:
        con.execute("create table customers (customer_id text primary key, country text, updated_at timestamptz)")
        con.execute("insert into customers values (%s, 'DE', '2025-03-01'), (%s, 'FR', '2025-03-02')", [ANN, BEN])
        entry = {
            "table": "customers",
            "key": ["customer_id"],
            "incremental": {"column": "updated_at"},
            "available_at": {"column": "updated_at"},
        }
        entry["fields"] = {each: each for each in ("customer_id", "country", "updated_at")}
        path = tmp_path / "shop.yml"
        path.write_text(json.dumps({"source": "db", "database": "${SHOP_URL}", "tables": {"customers": entry}}))
        ingest(path)
        assert ask(home, "select count(*) from lake.raw.customers") == [(2,)]
        assert forget([ANN]).is_complete
        con.execute("update customers set country = 'AT', updated_at = '2025-03-04'")
        ingest(path)
        ingest(path, from_beginning=True)
    assert ask(home, "select customer_id, country from lake.raw.customers order by _position") == [
        (BEN, "FR"),
        (BEN, "AT"),
    ]
    assert left(home.home, [ANN]) == []


def test_a_dry_run_and_an_unknown_id_change_nothing(home: Settings, web: Path) -> None:
    load(web)
    run = CliRunner()
    before = files(home.home)
    shown = run.invoke(app, ["forget", ANN, "--dry-run"])
    assert shown.exit_code == 0 and "lake events: 4 rows" in shown.output and "v-ann-1" in shown.output
    for arguments, said in (
        (["forget", "buyer-9"], "buyer-9: the lake has no such login id, so nothing was changed"),
        (["forget", "v-ann-1"], "a visitor's id is given with --visitor"),
        (["forget", ""], "an id is empty"),
        (["forget"], "nobody is given"),
    ):
        failed = run.invoke(app, arguments)
        assert failed.exit_code == 1 and said in str(failed.exception or failed.output)
    after = files(home.home)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {Path(name).name for name in changed} <= {"catalog.sqlite-wal", "catalog.sqlite-shm"}
    assert ask(home, "select count(*) from lake.raw.events") == [(5,)] and ask(
        home, "select kind from lake.raw.forgotten"
    ) == [("key",)]


def test_ids_that_are_short_or_part_of_others(home: Settings, tmp_path: Path) -> None:
    lines = [
        {"event_type": "view_item", "event_at": "2025-03-02T10:00:00Z", "user_id": user, "quantity": "17"}
        for user in ("17", "170", "user-1", "user-12")
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = {
        "files": str(tmp_path / "a.jsonl"),
        "available_at": "event_time",
        "fields": {name: name for name in lines[0]},
    }
    (tmp_path / "web.yml").write_text(json.dumps({"source": "web", "tables": {"events": entry}}))
    load(tmp_path / "web.yml")
    done = forget(["17", "user-1"])
    assert done.is_complete and done.person.ambiguous == ["user-1"]
    assert any("17: too short" in note for note in done.notes)
    assert ask(home, "select user_id, quantity from lake.raw.events order by 1") == [("170", "17"), ("user-12", "17")]


def test_the_list_holds_keyed_hashes_and_needs_its_key(
    home: Settings, web: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(web)
    forget([ANN])
    key = privacy_key(home)
    expected = {
        (kind, hmac.new(key, f"{kind}:{each}".encode(), "sha256").hexdigest())
        for kind, each in (("login", ANN), ("visitor", "v-ann-1"), ("order", "ord-77001"), ("key", ""))
    }
    assert set(ask(home, "select kind, hash from lake.raw.forgotten")) == expected
    (web.parent / "in" / "b.jsonl").write_text(
        json.dumps({"event_type": "login", "event_at": "2025-03-03", "user_id": ANN})
    )
    monkeypatch.setenv("FINEGRAIN_PRIVACY_KEY", "another key, of more than 32 characters")
    with pytest.raises(
        FinegrainError, match="the personal data in this lake was hashed with another key than this one"
    ):
        load(web)
    monkeypatch.setenv("FINEGRAIN_PRIVACY_KEY", key.decode())
    load(web)
    assert left(home.home, [ANN]) == []


def test_the_search_looks_into_every_kind_of_file(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_search, "CHUNK", 7)
    lake.connect(home).close()
    folder = home.home / "some" / "where"
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "other": ["x"] * 1000,
            "text": [f"to {ANN}, from n-{n}" for n in range(1000)],
            "bytes": [b"\xff" + ANN.encode()] * 1000,
        }
    )
    pq.write_table(table.select(["other", "text"]), folder / "text.parquet", compression="zstd")
    pq.write_table(table.select(["other", "bytes"]), folder / "bytes.parquet", compression="zstd")
    pq.write_table(table.select(["other"]), folder / "nobody.parquet")
    (folder / "log.gz").write_bytes(gzip.compress(f"ends with {ANN}".encode()))
    (folder / "bytes").write_bytes(b"\0" * 50 + f"x{ANN}".encode())
    (folder / "longer").write_bytes(f"{ANN}1".encode())
    with duckdb.connect(str(folder / "marts.duckdb")) as con:
        con.execute(
            "create schema s; create table s.t as select list_value({'a': $a || ' ' || i}) as v from range(5000) as r(i)",
            {"a": ANN},
        )
    person = Person(logins=[ANN])

    def found(strings: list[bytes], words: list[bytes]) -> dict[str, int]:
        proof = file_search.search(home, file_search.Sought(pattern(person), strings, words, {}, ()))
        return {Path(place.partition(": ")[0]).name: hits for place, hits in proof.found.items()}

    rows = {"text.parquet": 1000, "bytes.parquet": 1000, "marts.duckdb": 5000}
    anywhere = found([ANN.encode()], [])
    assert anywhere.keys() == {*rows, "log.gz", "bytes", "longer"}
    assert all(anywhere[name] >= count for name, count in rows.items())
    as_word = found([], [ANN.encode()])
    assert as_word.keys() == {*rows, "log.gz"}
    (folder / "text.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(FinegrainError, match=r"text.parquet: cannot be searched"):
        found([], [])


#: Kills its process when a function is called, or when it returns.
KILLED = """
import importlib, os, sys
where, name, when, *ids = sys.argv[1:]
module = importlib.import_module(where)
real = getattr(module, name)
def doomed(*given, **named):
    if when == "after":
        real(*given, **named)
    os.kill(os.getpid(), 9)
setattr(module, name, doomed)
from orchestration.store.forget import forget
forget(ids)
"""


def killed(where: str, name: str, when: str, *ids: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, where, name, when, *ids], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.long
def test_a_killed_run_goes_on(home: Settings, web: Path) -> None:
    load(web)
    lake_part = "orchestration.ingest.forget"
    killed(lake_part, "_remove", "before", ANN)
    assert ask(home, "select count(*) from lake.raw.events") == [(5,)]
    for name, when in (("_remove", "after"), ("_call", "after"), ("_compact", "before"), ("_compact", "after")):
        killed(lake_part, name, when)
        assert (home.home / "forget.json").stat().st_mode & 0o777 == 0o600
        assert ask(home, "select count(*) from lake.raw.events") == [(1,)]
    killed("orchestration.store.forget", "_rebuild", "before")
    killed("orchestration.store.forget", "_search", "after")
    done = forget()
    assert done.is_complete and left(home.home, [ANN, "v-ann-1", "ord-77001"]) == []
    with pytest.raises(FinegrainError, match="nobody is being forgotten"):
        forget()


@pytest.mark.soak
def test_a_run_killed_after_the_lake_goes_on(home: Settings) -> None:
    made = shop()
    fill(home, (row for row, _ in made.rows), [])
    assert build(where=home).passed
    publish(home)
    (home.home / "store").mkdir()
    materialize(home)
    features_of([datetime(2025, 3, 5).date()], home)
    this, ids = "orchestration.store.forget", [*made.ids, *uuids(made.ids)]
    killed("orchestration.warehouse.forget", "_copy", "before", ANN)
    killed("orchestration.warehouse.forget", "renew", "after")
    for name, when in (
        ("build", "after"),
        ("publish", "before"),
        ("publish", "after"),
        ("materialize", "before"),
        ("_search", "before"),
    ):
        killed(this, name, when)
        # Readers always find a whole version.
        assert pq.read_table(home.published / "parquet" / "user_features").num_rows > 5
    assert forget().is_complete
    assert left(home.home, ids) == []


def test_it_waits_for_a_load_and_a_load_waits_for_it(home: Settings, web: Path) -> None:
    load(web)
    program = "from orchestration.store.forget import forget; forget(['buyer-0003'])"
    for work in ("load", "maintain"):
        with lake.exclusive(home, work):
            running = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
            assert running.stderr is not None
            assert (
                f"waiting for another finegrain process that holds the lock on this lake: {work}"
                in running.stderr.readline()
            )
            assert ask(home, "select count(*) from lake.raw.events") == [(5,)]
            running.kill()
            running.wait()


@pytest.mark.long
def test_a_shared_lake(
    home: Settings,
    web: Path,
    postgres: Postgres,
    s3: Moto,
    bucket: str,
    in_postgres: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**s3.environment(), "FINEGRAIN_LAKE_DATA": f"s3://{bucket}/lake"}.items():
        monkeypatch.setenv(name, value)
    from orchestration.config.settings import settings

    shared = settings()
    monkeypatch.delenv("FINEGRAIN_PRIVACY_KEY")
    with pytest.raises(FinegrainError, match="FINEGRAIN_PRIVACY_KEY is not set"):
        load(web)
    monkeypatch.setenv("FINEGRAIN_PRIVACY_KEY", "0123456789abcdef" * 2)
    load(web)
    maintain(where=shared)  # a few rows stay in the catalogue until then
    # Another process has begun to write when the person is removed, so it does not know of it.
    begun, listed = threading.Event(), []

    def write() -> None:
        with lake.connect(shared) as con, lake.connect(shared) as other, lake.writing(con, shared):
            con.execute(
                "insert into lake.raw.customers by name select $who as customer_id, 'web' as _source, 'c/1' as _position, "
                "localtimestamp as available_at",
                {"who": ANN},
            )
            begun.set()
            while not listed:
                listed.extend(other.execute("from lake.raw.forgotten where kind <> 'key' limit 1").fetchall())
                time.sleep(0.2)

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(60)
    done = forget([ANN])
    writer.join()
    assert done.is_complete and listed
    assert ask(shared, "select count(*) from lake.raw.customers") == [(0,)]
    ids = [ANN, "v-ann-1", "ord-77001"]
    with lake.connect(shared) as con:
        stored = con.execute(f"select filename, content from read_blob('s3://{bucket}/**')").fetchall()
        assert stored
        for filename, content in stored:
            local = home.home / "fetched" / Path(filename).name
            local.parent.mkdir(exist_ok=True)
            local.write_bytes(content)
    assert left(home.home, ids) == []
    access = postgres.environment()
    catalogue = re.search(r"/([^/]+)$", str(shared.lake_catalog))
    assert catalogue is not None
    with psycopg.connect(
        host=HOST, port=postgres.port, user=access["PGUSER"], password=access["PGPASSWORD"], dbname=catalogue[1]
    ) as con:
        for (table,) in con.execute(
            "select table_name from information_schema.tables where table_schema = 'public'"
        ).fetchall():
            rows = str(con.execute(f'select * from "{table}"').fetchall())
            assert not [each for each in ids if each in rows], table
    (web.parent / "in" / "b.jsonl").write_text((web.parent / "in" / "a.jsonl").read_text() + "\n")
    load(web)
    assert ask(shared, "select user_id from lake.raw.events where user_id is not null") == [(BEN,), (BEN,)]


@pytest.mark.long
def test_another_home_of_the_same_lake_starts_from_scratch(home: Settings, web: Path, tmp_path: Path) -> None:
    load(web)
    other = replace(
        Settings.below(tmp_path / "two", home.extensions), lake_catalog=home.lake_catalog, lake_data=home.lake_data
    )
    [(before,)] = ask(home, "select max(snapshot_id) from lake.snapshots()")
    forget([ANN])
    [(first, last)] = ask(other, "select min(snapshot_id), max(snapshot_id) from lake.snapshots()")
    assert before < first == last
    assert {
        table: number for table, number in lake.arrivals(lake.connect(home), last).items() if table == "events"
    } == {"events": first}
