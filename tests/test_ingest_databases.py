"""A database's table is in the lake: every version of a row once, whatever changes meanwhile and whenever a process is
killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pymysql
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from streams import ask
from test_any_name import OURS

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.ingest import IngestReport, TableReport, ingest
from orchestration.ingest.unload import unload
from orchestration.quality.doctor import examine

CUSTOMERS = (
    "create table customers (id int primary key, name varchar(30), country varchar(30), "
    "updated_at timestamp(6) null, deleted_at timestamp(6) null)"
)
ENTRY: dict[str, Any] = {
    "table": "customers",
    "incremental": {"column": "updated_at", "overlap": "10 minutes"},
    "deletes": {"column": "deleted_at"},
    "key": ["id"],
    "origin": "database",
    "available_at": "now",
    "fields": {"customer_id": "id", "country": "country", "updated_at": "updated_at"},
}


@dataclass
class Shop:
    """A database of its own on a real server. `run` runs SQL there; `ingest` loads what is new."""

    url: str
    run: Callable[..., list[tuple[Any, ...]]]
    mapping: Path
    home: Settings

    def write(self, entry: dict[str, Any] | None = None, table: str = "customers", **top: Any) -> None:
        keys = {"source": "shop", "database": "${SHOP_URL}", **top, "tables": {table: {**ENTRY, **(entry or {})}}}
        self.mapping.write_text(yaml.safe_dump(keys))

    def whole(self, **changes: Any) -> None:
        """The entry without a cursor."""
        entry = {key: value for key, value in {**ENTRY, **changes}.items() if key not in ("incremental",)}
        self.mapping.write_text(
            yaml.safe_dump({"source": "shop", "database": "${SHOP_URL}", "tables": {"customers": entry}})
        )

    def ingest(self, **options: Any) -> IngestReport:
        return ingest(self.mapping, where=self.home, **options)

    def one(self, **options: Any) -> TableReport:
        [report] = self.ingest(**options).tables
        return report

    def lake(self, sql: str) -> list[tuple[Any, ...]]:
        return ask(self.home, sql)

    def versions(self) -> list[tuple[str, str]]:
        """(key, country) of every version, in order."""
        return [
            (str(key), str(country))
            for key, country in self.lake("select customer_id, country from lake.raw.customers order by _position")
        ]

    def living(self) -> dict[str, str]:
        """The newest payload of each key that is not deleted, computed from positions alone, in Python."""
        newest: dict[str, tuple[str, str | None]] = {}
        versions = self.lake("select _position, payload from lake.raw.customers") + self.lake(
            "select _position, null from lake.raw.deletions"
        )
        for position, payload in versions:
            key, _, version = str(position).removeprefix(self.label + "/").rpartition("@")
            if key not in newest or newest[key][0] < version:
                newest[key] = (version, payload)
        return {key: payload for key, (_, payload) in newest.items() if payload is not None}

    @property
    def label(self) -> str:
        return "public.customers" if self.url.startswith("postgresql") else self.url.rpartition("/")[2] + ".customers"


def _on_postgres(request: pytest.FixtureRequest) -> tuple[str, Callable[..., list[tuple[Any, ...]]]]:
    access = request.getfixturevalue("postgres").environment()
    name = request.getfixturevalue("postgres_database")
    parts = {
        "host": access["PGHOST"],
        "port": access["PGPORT"],
        "user": access["PGUSER"],
        "password": access["PGPASSWORD"],
    }
    con = psycopg.connect(**parts, dbname=name, autocommit=True)  # type: ignore[arg-type]
    request.addfinalizer(con.close)

    def run(sql: str, values: Any = None) -> list[tuple[Any, ...]]:
        cursor = con.execute(sql, values)
        return cursor.fetchall() if cursor.description else []

    return f"postgresql://{parts['user']}:{parts['password']}@{parts['host']}:{parts['port']}/{name}", run


def _on_mariadb(request: pytest.FixtureRequest) -> tuple[str, Callable[..., list[tuple[Any, ...]]]]:
    access = request.getfixturevalue("mariadb").environment()
    name = f"test_{uuid.uuid4().hex[:12]}"
    host, port, user, password = (access[key] for key in ("MYSQL_HOST", "MYSQL_TCP_PORT", "MYSQL_USER", "MYSQL_PWD"))
    con = pymysql.connect(host=host, port=int(port), user=user, password=password, autocommit=True)
    request.addfinalizer(con.close)

    def run(sql: str, values: Any = None) -> list[tuple[Any, ...]]:
        with con.cursor() as cursor:
            cursor.execute(sql, values)
            return list(cursor.fetchall())

    run(f"create database {name}")
    run(f"use {name}")
    run("set time_zone = '+05:00'")  # the session's zone must not matter
    return f"mysql://{user}:{password}@{host}:{port}/{name}", run


SERVERS = {"postgres": _on_postgres, "mariadb": _on_mariadb}


@pytest.fixture(params=SERVERS)
def shop(request: pytest.FixtureRequest, home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop on PostgreSQL, then on MariaDB."""
    return _shop(request, request.param, home, tmp_path, monkeypatch)


@pytest.fixture
def on_postgres(
    request: pytest.FixtureRequest, home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Shop:
    """For tests that do not depend on the server."""
    return _shop(request, "postgres", home, tmp_path, monkeypatch)


def _shop(request: Any, server: str, home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    url, run = SERVERS[server](request)
    monkeypatch.setenv("SHOP_URL", url)
    shop = Shop(url, run, tmp_path / "shop.yml", home)
    run(CUSTOMERS)
    shop.write()
    return shop


def fill(shop: Shop, rows: str) -> None:
    shop.run(f"insert into customers (id, country, updated_at) values {rows}")


def test_only_what_is_new_lands(shop: Shop) -> None:
    fill(shop, "(1, 'SE', '2024-01-01 10:00'), (2, 'DE', '2024-01-02 10:00'), (3, 'FI', '2024-01-02 10:00')")
    first = shop.one()
    assert (first.read, first.landed, first.unchanged, first.deleted) == (3, 3, 0, 0)
    again = shop.one()
    # Two rows share the cursor's last value: both are read again, neither lands again.
    assert (again.read, again.landed, again.unchanged) == (2, 0, 2)
    # One changes, one comes late within the overlap, one at exactly the time where the last run stopped.
    shop.run("update customers set country = 'NO', updated_at = '2024-01-03' where id = 1")
    fill(shop, "(4, 'DK', '2024-01-02 09:55'), (5, 'PL', '2024-01-02 10:00'), (6, 'FR', '2024-01-01 09:00')")
    third = shop.one()
    assert (third.landed, third.unchanged) == (3, 2)
    assert shop.versions() == [("1", "SE"), ("1", "NO"), ("2", "DE"), ("3", "FI"), ("4", "DK"), ("5", "PL")]
    # A row that came later than the overlap allows is found by a full run.
    assert shop.one(from_beginning=True).landed == 1
    [(position, payload)] = shop.lake("select _position, payload from lake.raw.customers where country = 'NO'")
    assert position.startswith(f"{shop.label}/1@000000002.")
    assert json.loads(payload) | {"updated_at": ""} == {
        "id": 1, "name": None, "country": "NO", "updated_at": "", "deleted_at": None
    }  # fmt: skip


def test_a_row_that_goes_back_lands_again(on_postgres: Shop) -> None:
    shop = on_postgres
    shop.whole()
    fill(shop, "(1, 'A', null)")
    for country in ("A", "B", "A", "A", "B"):
        shop.run("update customers set country = %s", (country,))
        shop.one()
    assert shop.versions() == [("1", "A"), ("1", "B"), ("1", "A"), ("1", "B")]


def test_deleted_rows_are_recorded(shop: Shop) -> None:
    fill(shop, "(1, 'A', '2024-01-01'), (2, 'B', '2024-01-01')")
    shop.run("insert into customers values (3, null, 'C', '2024-01-01', '2024-01-01')")
    assert (shop.one().landed, shop.lake("select * from lake.raw.deletions")) == (2, [])
    shop.run("update customers set deleted_at = '2024-01-02', updated_at = '2024-01-02' where id = 1")
    assert (shop.one().deleted, shop.one().deleted) == (1, 0)
    [(table, row, ids, position)] = shop.lake(
        "select raw_table, row_key, contract_key, _position from lake.raw.deletions"
    )
    assert (table, json.loads(row), json.loads(ids)) == ("customers", {"id": "1"}, {"customer_id": "1"})
    assert position == f"{shop.label}/1@000000002.0000000000000000"
    shop.run("update customers set deleted_at = null, updated_at = '2024-01-03' where id = 1")
    assert (shop.one().landed, set(shop.living())) == (1, {"1", "2"})


def test_vanished_rows_are_recorded(shop: Shop) -> None:
    shop.write({"deletes": "compare", "key": ["id", "country"]})
    fill(shop, "(1, 'A', '2024-01-01'), (2, 'it''s \\\\ \"B\"', '2024-01-01')")
    shop.one()
    shop.run("delete from customers where id = 2")
    assert (shop.one().deleted, shop.one().deleted) == (1, 0)
    [(row,)] = shop.lake("select row_key from lake.raw.deletions")
    assert json.loads(row)["id"] == "2" and "B" in json.loads(row)["country"]


def test_empty_future_and_falling_cursors_are_reported(on_postgres: Shop) -> None:
    shop = on_postgres
    fill(shop, "(1, 'A', null), (2, 'B', '2037-01-01'), (3, 'C', '2024-01-01')")
    first = shop.one()
    assert first.landed == 3
    assert [note.split(" ")[:4] for note in first.notes] == [
        ["updated_at", "is", "in", "the"],
        ["1", "rows", "have", "no"],
    ]
    # The row in the future does not hide rows that are written now.
    fill(shop, "(4, 'D', current_timestamp)")
    shop.run("update customers set country = 'AA' where id = 1")
    assert shop.one().landed == 2
    shop.run("delete from customers where id in (2, 4)")
    fill(shop, "(5, 'E', '2024-01-02')")
    report = shop.one()
    assert any("before" in note and "--from-beginning" in note for note in report.notes)
    assert ("5", "E") in shop.versions()


@pytest.mark.parametrize("overlap", ["10 minutes", "5 days"])
def test_cursors_without_a_usable_time_do_not_move_the_position(on_postgres: Shop, overlap: str) -> None:
    """Rows with an infinite, far-future or empty cursor are read each time; rows that are written late, with an earlier
    cursor, are not lost."""
    shop = on_postgres
    shop.write({"incremental": {"column": "updated_at", "overlap": overlap}})
    fill(
        shop,
        "(1, 'A', current_timestamp - interval '1 hour'), (2, 'B', 'infinity'), (3, 'C', '-infinity'), (4, 'D', null), "
        "(5, 'E', '2999-01-01'), (6, 'F', '294276-12-31'), (7, 'G', '0044-03-15 BC')",
    )
    report = shop.one()
    assert report.landed == 7
    assert any("updated_at is in the future, up to 2999-01-01 00:00:00, in 1 rows" in note for note in report.notes)
    assert any("5 rows have no updated_at that is a valid time" in note for note in report.notes)
    assert any(
        "column 'updated_at' of public.customers: 4 values are infinite or outside" in note for note in report.notes
    )
    [(position, newest)] = shop.lake(
        "select position, (select max(updated_at) from lake.raw.customers where customer_id = '1') from lake.raw.positions"
    )
    assert position == newest
    assert shop.lake("select customer_id, updated_at from lake.raw.customers where customer_id > '1' order by 1") == [
        ("2", None), ("3", None), ("4", None), ("5", "2999-01-01 00:00:00"), ("6", None), ("7", None),
    ]  # fmt: skip
    fill(shop, "(8, 'late', current_timestamp - interval '30 minutes')")
    shop.run("update customers set country = 'BB' where id = 2")
    assert shop.one().landed == 2
    fill(shop, "(9, 'later', current_timestamp - interval '35 minutes')")  # within the overlap of the last run
    assert shop.one().landed == 1
    assert {("8", "late"), ("9", "later"), ("2", "BB")} <= set(shop.versions())


def at(shop: Shop, minutes: int) -> str:
    """SQL of the time so many minutes from now."""
    return f"current_timestamp + interval '{minutes}' minute"


def test_a_row_of_a_far_year_hides_nothing(shop: Shop) -> None:
    """The position is the greatest cursor up to the time of reading, not that time itself."""
    far = "2099-01-01" if shop.url.startswith("postgres") else "2037-12-31"  # as far as MySQL's timestamp goes
    fill(shop, f"(1, 'A', {at(shop, -180)}), (2, 'B', {at(shop, -120)}), (3, 'far', '{far}')")
    assert shop.one().landed == 3
    assert shop.one().landed == 0
    fill(shop, f"(4, 'late', {at(shop, -110)})")
    report = shop.one()
    assert (report.landed, report.deleted) == (1, 0)
    assert any("is in the future" in note for note in report.notes)
    assert shop.versions() == [("1", "A"), ("2", "B"), ("3", "far"), ("4", "late")]


def test_a_position_in_the_future_hides_nothing(shop: Shop) -> None:
    """A clock that was an hour fast leaves one."""
    fill(shop, f"(1, 'A', {at(shop, -180)}), (2, 'B', {at(shop, 50)})")
    assert shop.one(now=datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)).landed == 2
    # The clock is right again. The newest of the rows since then is more than an overlap after the others.
    fill(shop, f"(3, 'C', {at(shop, -60)}), (4, 'D', {at(shop, -40)}), (5, 'E', {at(shop, -1)})")
    report = shop.one()
    assert (report.landed, report.unchanged) == (3, 2)
    assert any("the position" in note and "is in the future" in note for note in report.notes)
    assert shop.one().landed == 0


def test_a_clock_that_was_put_back_changes_no_order(on_postgres: Shop) -> None:
    """Neither the order of a row's versions nor that of mappings."""
    shop, noon = on_postgres, datetime(2024, 2, 1, 12)
    fill(shop, "(1, 'A', '2024-01-01')")
    shop.one(now=noon)
    shop.run("update customers set country = 'B'")
    assert shop.one(now=noon - timedelta(hours=1)).landed == 1
    first, second = shop.lake("select country, _ingested_at, available_at from lake.raw.customers order by _position")
    assert (first[0], second[0]) == ("A", "B") and first[1:] <= second[1:]
    shop.write({"fields": {"customer_id": "id", "updated_at": "updated_at"}})
    shop.one(keep=True, now=noon - timedelta(minutes=50))
    assert shop.one(now=noon - timedelta(minutes=40)).notes == []  # the report said that the mapping changed


def test_numbers_are_exact(on_postgres: Shop) -> None:
    """Numbers of any size keep every digit, also as a key; text that is not a number is null and counted."""
    shop = on_postgres
    shop.run("drop table customers")
    shop.run(
        "create table customers (id numeric primary key, amount numeric, price numeric(12,2), big numeric(60,10), round numeric(5,-2), "
        "paid money, ratio float8, many numeric[], updated_at timestamp)"
    )
    shop.run(
        "insert into customers values "
        "(12345678901234567890, 1234567890123456, 12.50, 1234567890123456789012.1234567890, 12345, '1,234.56', 0.5, '{1234567890123456.10}', '2024-01-01'), "
        "(12345678901234567891, 'NaN', 'NaN', 'NaN', null, null, 'NaN', null, '2024-01-01'), "
        "(3, 'Infinity', 1, null, null, null, '-Infinity', null, '2024-01-01')"
    )
    parts = ", ".join(f"'{name}', {name}" for name in ("amount", "price", "big", "round", "paid", "ratio"))
    fields = {"customer_id": "id", "income": "amount", "properties": {"sql": f"json_object({parts})"}}
    shop.write({"fields": fields, "deletes": "compare"})
    report = shop.one()
    assert shop.lake("select customer_id, income from lake.raw.customers order by customer_id") == [
        ("12345678901234567890", "1234567890123456"), ("12345678901234567891", None), ("3", None),
    ]  # fmt: skip
    first, nothing, _ = shop.lake("select properties, payload from lake.raw.customers order by customer_id")
    assert json.loads(first[0], parse_float=str) == {
        "amount": "1234567890123456", "price": "12.5", "big": "1234567890123456789012.1234567890", "round": "12300", "paid": "1234.56", "ratio": "0.5",
    }  # fmt: skip
    assert json.loads(nothing[0]) == dict.fromkeys(("amount", "price", "big", "round", "paid", "ratio"))
    assert (
        '"price":12.5,' in first[1]
        and '"id":"12345678901234567890"' in first[1]
        and '"many":["1234567890123456.10"]' in first[1]
    )
    counted = {
        note.split("'")[1]: note.split(": ")[1].split(" ")[0] for note in report.notes if "NaN or infinite" in note
    }
    assert counted == {"amount": "2", "price": "1", "big": "1", "ratio": "2"}
    assert (shop.one().landed, shop.one().deleted) == (0, 0)
    said = [finding.message for finding in examine(shop.mapping, where=shop.home).entries[0].findings]
    assert any("column 'price' of public.customers: 1 value is NaN or infinite" in message for message in said)


@pytest.fixture
def on_mariadb(request: pytest.FixtureRequest, home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """For tests of what only MySQL has."""
    return _shop(request, "mariadb", home, tmp_path, monkeypatch)


def test_impossible_dates_are_null(on_mariadb: Shop) -> None:
    """MySQL's zero and impossible dates, also in the cursor; such rows are read each time."""
    shop = on_mariadb
    shop.run("set sql_mode = 'ALLOW_INVALID_DATES'")
    shop.run("drop table customers")
    shop.run(
        "create table customers (id int primary key, born date, seen datetime not null, country varchar(9), updated_at datetime, index (updated_at))"
    )
    shop.run(
        "insert into customers values (1, '2024-00-15', '2024-02-31 10:00:00', 'A', '2024-01-01'), (2, '0000-00-00', '0000-00-00', 'B', '2024-00-01'), "
        "(3, '2024-02-29', '2024-01-01 10:00:00', 'C', '2024-01-02'), (4, null, '2024-12-00', 'D', '0000-00-00')"
    )
    fields = {
        "customer_id": "id",
        "country": "country",
        "created_at": "seen",
        "birth_year": {"sql": "year(born)"},
        "updated_at": "updated_at",
    }
    shop.write({"fields": fields, "deletes": "compare"})
    said = [finding.message for finding in examine(shop.mapping, where=shop.home).entries[0].findings]
    report = shop.one()
    for notes in (said, report.notes):
        counted = {
            note.split("'")[1]: note.split(": ")[1].split(" ")[0] for note in notes if "no day of the calendar" in note
        }
        assert counted == {"born": "2", "seen": "3", "updated_at": "2"}
    assert shop.lake("select customer_id, birth_year, created_at, updated_at from lake.raw.customers order by 1") == [
        ("1", None, None, "2024-01-01 00:00:00"), ("2", None, None, None),
        ("3", "2024", "2024-01-01 10:00:00", "2024-01-02 00:00:00"), ("4", None, None, None),
    ]  # fmt: skip
    shop.run("update customers set country = 'BB' where id = 2")
    assert shop.one().landed == 1


def test_small_and_large_numbers_of_mysql(on_mariadb: Shop) -> None:
    shop = on_mariadb
    shop.run("drop table customers")
    shop.run(
        "create table customers (id bigint unsigned primary key, level tinyint(1), bit1 bit(1), huge decimal(65,30), words varchar(20) collate utf8mb4_bin, "
        "j json, gone tinyint(1), updated_at datetime)"
    )
    shop.run(
        "insert into customers values (18446744073709551615, 5, b'1', 12345678901234567890123.123456789012345678901234567890, 'é', "
        "'{\"a\": 1}', 0, '2024-01-01'), (2, 0, b'0', 1, 'b', '{}', 2, '2024-01-01')"
    )
    shop.run("update customers set gone = 0")
    parts = ", ".join(f"'{name}', {name}" for name in ("bit1", "huge", "words", "j"))
    shop.write(
        {
            "fields": {"customer_id": "id", "household_size": "level", "properties": {"sql": f"json_object({parts})"}},
            "deletes": {"column": "gone"},
        }
    )
    shop.one()
    rows = shop.lake("select customer_id, household_size, properties from lake.raw.customers order by 1")
    assert [row[:2] for row in rows] == [("18446744073709551615", "5"), ("2", "0")]
    assert json.loads(rows[0][2]) == {
        "bit1": True, "huge": "12345678901234567890123.123456789012345678901234567890", "words": "é", "j": '{"a": 1}',
    }  # fmt: skip
    shop.run("update customers set gone = 2, updated_at = '2024-01-02' where id = 2")
    assert shop.one().deleted == 1


def test_a_value_that_cannot_be_read_names_its_column(on_postgres: Shop) -> None:
    """Text that is not UTF-8, which a database in SQL_ASCII may contain."""
    shop = on_postgres
    shop.run("create database bytes encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0")
    url = shop.url.rpartition("/")[0] + "/bytes"
    try:
        with psycopg.connect(url, autocommit=True) as con:
            con.execute(CUSTOMERS)
            con.execute(
                "insert into customers (id, country) values (1, convert_from(decode('e9', 'hex'), 'SQL_ASCII'))"
            )
        shop.write(database=url)
        with pytest.raises(
            FinegrainError, match=r"public.customers: column 'country' holds a value that cannot be read"
        ):
            shop.one()
    finally:
        shop.run("drop database bytes with (force)")


def test_text_that_holds_times_has_a_format(shop: Shop) -> None:
    shop.run("create table signups (id int primary key, at varchar(30), day date)")
    shop.run(
        "insert into signups values (1, '12/1/10 8:26', '2010-12-01'), (2, '2010-12-01 08:26:00', null), (3, '31/1/10', null)"
    )
    at = {"column": "at", "format": ["%m/%d/%y %H:%M"]}
    entry = {
        "table": "signups",
        "key": ["id"],
        "origin": "database",
        "available_at": {"column": "at", "format": at["format"]},
    }
    keys = {"source": "shop", "time_zone": "America/New_York", "database": "${SHOP_URL}"}
    fields = {"customer_id": "id", "created_at": at}
    shop.mapping.write_text(yaml.safe_dump({**keys, "tables": {"customers": {**entry, "fields": fields}}}))
    shop.ingest()
    found = shop.lake("select created_at, available_at, payload from lake.raw.customers order by customer_id")
    assert [row[0] for row in found] == ["2010-12-01T08:26:00.000000", "2010-12-01 08:26:00", "31/1/10"]
    assert [row[1] for row in found[:2]] == [datetime(2010, 12, 1, 13, 26)] * 2 and found[2][1] > datetime(2024, 1, 1)
    assert json.loads(found[0][2])["at"] == "12/1/10 8:26"
    fields = {"customer_id": "id", "created_at": {"column": "day", "format": "%Y-%m-%d"}}
    shop.mapping.write_text(yaml.safe_dump({**keys, "tables": {"customers": {**entry, "fields": fields}}}))
    with pytest.raises(FinegrainError, match=r"fields\.created_at: its values are date already"):
        shop.ingest()


def test_a_column_of_any_name_is_a_column(shop: Shop) -> None:
    """Also if it has the name of a column of ours."""
    mark = '"' if shop.url.startswith("postgresql") else "`"
    # Names that these servers do not allow, and names that they treat as equal.
    odd = [name[:60] for name in OURS if name.strip() and name.isascii() and name.isprintable()]
    names = [name for name in odd if mark not in name and "%" not in name]
    typed = ", ".join(f"{mark}{name}{mark} varchar(40)" for name in names)
    shop.run(f"create table odd (id int primary key, at timestamp(6) null, {typed})")
    for n in (1, 2):
        values = [f"{name[:30]}={n}" for name in names]
        shop.run(f"insert into odd values ({n}, '2024-01-0{n} 10:00:00', {', '.join(['%s'] * len(values))})", values)
    fields = {
        "customer_id": "id",
        "country": "__n",
        "gender": "__bad",
        "created_at": "at",
        "acquisition_channel": "__unreadable",
        "properties": "__payload",
    }
    shop.write(
        {
            "table": "odd",
            "key": ["id", "__key"],
            "incremental": {"column": "at"},
            "deletes": "compare",
            "fields": fields,
        }
    )
    assert shop.one().landed == 2 and shop.one(from_beginning=True).landed == 0
    found = shop.lake(
        "select _error, payload, country, gender, acquisition_channel, properties from lake.raw.customers order by customer_id"
    )
    for n, (error, payload, *texts) in enumerate(found, 1):
        assert error is None and texts == [f"{name}={n}" for name in ("__n", "__bad", "__unreadable", "__payload")]
        assert {name: json.loads(payload)[name] for name in names} == {name: f"{name[:30]}={n}" for name in names}
    [seen] = examine(shop.mapping, where=shop.home).entries
    assert [each for each in seen.findings if each.level == "error"] == []


def test_batches_never_split_rows_with_the_same_cursor(on_postgres: Shop) -> None:
    shop = on_postgres
    shop.write({"incremental": {"column": "id", "overlap": 0}})
    fill(shop, ", ".join(f"({n}, 'A', '2024-01-01')" for n in range(1, 26)))
    assert shop.one(batch_rows=10).landed == 25
    assert len(shop.lake("select distinct _ingested_at from lake.raw.customers")) == 3
    shop.write()
    report = shop.one(batch_rows=10)  # all rows have the same time, so they are one batch
    assert (report.read, report.landed) == (25, 0)
    assert any("the cursor was" in note for note in report.notes)


def test_changed_columns_are_reported_once(shop: Shop) -> None:
    fill(shop, "(1, 'A', '2024-01-01')")
    shop.one()
    shop.run("alter table customers add column vip int")
    if shop.url.startswith("mysql"):
        shop.run("alter table customers drop column name, modify id bigint")
    else:
        shop.run("alter table customers drop column name, alter id type bigint")
    report = shop.one()
    assert report.landed == 0 and sorted(note.partition(":")[0] for note in report.notes) == [
        "column 'id' is now bigint (it was integer)",
        "column 'name' was removed; the mapping does not read it",
        "new column 'vip' (integer)",
    ]
    assert shop.one().notes == []
    shop.run("alter table customers add column land varchar(3)")
    shop.run("alter table customers drop column country")
    with pytest.raises(
        FinegrainError, match=r"tables.customers.fields.country: .* has no column 'country'; known are: "
    ):
        shop.one()


def test_what_cannot_be_reached_is_one_sentence(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(shop, "(1, 'A', '2024-01-01'), (2, 'A', '2024-01-01')")
    scheme, _, rest = shop.url.partition("://")
    access, _, place = rest.partition("@")
    user, _, password = access.partition(":")
    server, _, name = place.partition("/")
    shop.run(
        "create user nobody identified by 'n0thing'" if scheme == "mysql" else "create user nobody password 'n0thing'"
    )
    wrong = {
        f"{scheme}://{user}:hunter2@{place}": f"the server rejects the user '{user}' or the password",
        f"{scheme}://{user}:hunter2@127.0.0.1:1/{name}": "no server answers there",
        f"{scheme}://{user}:hunter2@nowhere.invalid/{name}": "host",
        f"{scheme}://{user}:{password}@{server}/no_such_shop": "there is no database 'no_such_shop'",
        f"{scheme}://nobody:n0thing@{place}": "the user 'nobody' may not read",
        "oracle://u:hunter2@h/x": "'oracle' is not a supported database",
        f"{scheme}://u:hunter2@h": "the host or the database's name is missing",
        f"{scheme}://u:hunter2@h:port/x": "is the port a number",
    }
    for url, said in wrong.items():
        monkeypatch.setenv("SHOP_URL", url)
        with pytest.raises(FinegrainError) as caught:
            shop.one()
        message = str(caught.value)
        assert said in message and "\n" not in message and message.startswith(str(shop.mapping)), message
        assert "n0thing" not in message and (":hunter2" not in message), message
    shop.run("drop user nobody")
    monkeypatch.delenv("SHOP_URL")
    with pytest.raises(FinegrainError, match="the environment has no SHOP_URL"):
        shop.one()


def test_a_wrong_mapping_is_one_sentence(on_postgres: Shop) -> None:
    shop = on_postgres
    fill(shop, "(1, 'A', '2024-01-01'), (2, 'A', '2024-01-01')")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"table": "custommers"}, "has no table 'custommers' .*; did you mean 'customers'?"),
        ({"key": ["idd"]}, "customers.key: .* has no column 'idd'; did you mean 'id'?"),
        ({"key": ["country"]}, r"\[country\] is not unique in .*: several rows have 'A'"),
        ({"key": ["name"]}, r"2 rows of .* have no \[name\]"),
        ({"incremental": {"column": "name"}}, "'name' is varchar; it must be a time or a whole number"),
        ({"incremental": {"column": "updated_at", "overlap": 10}}, "write a span, as in 10 minutes"),
        ({"incremental": {"column": "updated_at", "overlap": "soon"}}, "write a number of seconds"),
        ({"files": "x.csv"}, "say where the rows come from, by one of"),
        ({"fields": {"customer_id": "id", "country": "contry"}}, "has no column 'contry'; did you mean 'country'?"),
    ]
    for change, said in wrong:
        shop.write(change)
        with pytest.raises(FinegrainError, match=said) as caught:
            shop.one()
        assert "\n" not in str(caught.value)
    assert shop.lake("select count(*) from lake.raw.customers") == [(0,)]


def test_values_are_what_the_server_holds(shop: Shop) -> None:
    """Especially times: with and without zone, whatever the zones of session, server and machine. MySQL's booleans are
    numbers."""
    moment = "timestamp(6) null" if shop.url.startswith("mysql") else "timestamptz"
    local = "datetime(6)" if shop.url.startswith("mysql") else "timestamp"
    shop.run("drop table customers")
    shop.run(
        f"create table customers (id varchar(20) primary key, moment {moment}, local {local}, price decimal(12,2), flag boolean, words text)"
    )
    shop.run(
        "insert into customers values (%s, %s, %s, 1.10, true, %s)",
        ("é'\\/@", "2024-07-01 12:00:00.123456+05:00" if moment == "timestamptz" else "2024-07-01 12:00:00.123456", "2024-07-01 12:00:00.5", "a\nb"),
    )  # fmt: skip
    fields = {"customer_id": "id", "created_at": "local", "updated_at": "moment", "income": "price", "marketing_consent": "flag", "properties": {"sql": "json_object('w', words)"}}  # fmt: skip
    shop.whole(fields=fields, available_at={"column": "moment"}, deletes="compare", time_zone="Europe/Berlin")
    shop.one()
    [got] = shop.lake(
        "select customer_id, created_at, updated_at, income, marketing_consent, properties, available_at::varchar from lake.raw.customers"
    )
    true = "1" if shop.url.startswith("mysql") else "true"
    assert got == (
        "é'\\/@", "2024-07-01 12:00:00.5", "2024-07-01 07:00:00.123456+00", "1.10", true, '{"w":"a\\nb"}', "2024-07-01 07:00:00.123456"
    )  # fmt: skip
    assert (shop.one().landed, shop.one().deleted) == (0, 0)


def test_a_killed_ingest_goes_on(on_postgres: Shop) -> None:
    """Killed between batches and within them: every row is there once, and every version has a position of its own."""
    shop = on_postgres
    shop.write({"incremental": {"column": "id", "overlap": 0}})
    shop.run("insert into customers (id, country) select n, 'A' from generate_series(1, 20000) n")
    command = [sys.executable, "-m", "orchestration.cli", "ingest", str(shop.mapping), "--batch-rows", "500", "--json"]

    def landed() -> int:
        try:
            return int(shop.lake("select count(*) from lake.raw.customers")[0][0])
        except (duckdb.Error, FinegrainError):  # the lake is just being created
            return 0

    kills = 0
    for patience in (0.1, 0.4, 0.7):
        before = landed()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None and landed() == before:
            time.sleep(0.1)
        time.sleep(patience)
        if process.poll() is None:
            process.kill()
            kills += landed() < 20000
        process.wait()
    assert kills, "nothing was killed in the middle"
    shop.one()
    counted = "select count(*), count(distinct customer_id), count(distinct _position) from lake.raw.customers"
    assert shop.lake(counted) == [(20000, 20000, 20000)]
    assert shop.one(from_beginning=True).landed == 0


KEYS = st.integers(1, 5)
#: (what happens, which row): time advances by a second with each.
CHANGES = st.lists(
    st.tuples(st.sampled_from(["insert", "update", "update", "back", "delete", "delete", "ingest", "full"]), KEYS),
    min_size=8,
    max_size=20,
)


@pytest.mark.parametrize("how", ["soft", "compare", "whole"])
def test_the_lake_follows_the_table(on_postgres: Shop, how: str) -> None:
    """After any changes with ingests in between, the newest versions in the lake equal the table, and no version is
    there twice in a row. The expected rows are computed in Python."""
    shop = on_postgres
    table: dict[int, tuple[str, int]] = {}
    tick = [0]
    if how == "soft":
        shop.write()
    elif how == "compare":
        shop.write({"deletes": "compare"})
    else:
        shop.whole(deletes="compare")

    @examples(max_examples=2, suppress_health_check=list(HealthCheck))
    @given(CHANGES)
    def play(changes: list[tuple[str, int]]) -> None:
        for what, key in [*changes, ("ingest", 0)]:
            tick[0] += 1
            moment = f"timestamp '2024-01-01' + {tick[0]} * interval '1 second'"
            country = str(tick[0]) if what != "back" else "A"
            if what in ("ingest", "full"):
                shop.one(from_beginning=what == "full")
            elif what == "delete" and key in table:
                del table[key]
                if how == "soft":
                    shop.run(f"update customers set deleted_at = {moment}, updated_at = {moment} where id = {key}")
                else:
                    shop.run(f"delete from customers where id = {key}")
            elif what != "delete":
                table[key] = (country, tick[0])
                shop.run(
                    f"insert into customers (id, country, updated_at) values ({key}, '{country}', {moment}) "
                    "on conflict (id) do update set country = excluded.country, updated_at = excluded.updated_at, deleted_at = null"
                )
        living = {int(key): json.loads(payload)["country"] for key, payload in shop.living().items()}
        assert living == {key: country for key, (country, _) in table.items()}
        last: dict[str, str] = {}
        for (position,) in shop.lake(
            "select _position from lake.raw.customers union all select _position from lake.raw.deletions order by 1"
        ):
            key, _, version = position.rpartition("@")
            assert last.get(key) != version[10:], "the same version twice in a row"
            last[key] = version[10:]

    play()


def test_both_sides_of_the_benchmark_do_the_same(on_postgres: Shop, tmp_path: Path) -> None:
    import ingest as measured

    measured.make(on_postgres.url, 1000)
    assert measured.by_finegrain(on_postgres.url, tmp_path) == measured.by_duckdb(on_postgres.url, tmp_path) == 1000
    if find_spec("dlt") is None:
        with pytest.raises(SystemExit, match=r"dlt is not installed here .*; try: pip install"):
            measured.by_dlt(on_postgres.url, tmp_path, "pyarrow")


# --- a mapping that changed, and rows that are taken back ---------------------------------------------------------

ALIVE = (
    "select {columns} from lake.raw.customers as t where not exists (select 1 from lake.raw.deletions as d "
    "where d.row_key is null and d._position = t._position and t._ingested_at < d._ingested_at) order by all"
)


def test_rows_are_mapped_again_from_their_payload(shop: Shop) -> None:
    kept = {"name": "keep"}  # of customers, a name is personal
    shop.write(personal=kept)
    fill(shop, "(1, 'SE', '2024-01-01 10:00'), (2, 'DE', '2024-01-02 10:00')")
    shop.run("update customers set name = concat(country, '!')")
    shop.one(now=datetime(2024, 2, 1))
    shop.run("update customers set country = 'NO', updated_at = '2024-01-03' where id = 1")
    shop.one(now=datetime(2024, 2, 2))
    corrected = {"fields": {**ENTRY["fields"], "country": "name"}, "where": "id < 2"}
    shop.write(corrected, personal=kept)
    before = shop.lake("select max(snapshot_id) from lake.snapshots()")
    with pytest.raises(FinegrainError) as caught:
        shop.one()
    said = str(caught.value)
    assert "2 rows would be replaced, 1 deleted, 0 unchanged" in said and "--remap replaces them" in said
    assert shop.lake("select max(snapshot_id) from lake.snapshots()") == before

    report = shop.one(remap=True, now=datetime(2024, 2, 3))
    assert (report.replaced, report.taken_back, report.landed) == (2, 1, 0)
    found = shop.lake(ALIVE.format(columns="customer_id, country, split_part(_position, '@', 2)[:9], available_at"))
    # Both versions of 1, at their positions, and known since the same time as before.
    assert found == [
        ("1", "SE!", "000000001", datetime(2024, 2, 1)),
        ("1", "SE!", "000000002", datetime(2024, 2, 2)),
    ]
    before = shop.lake("select count(*) from lake.raw.customers")
    report = shop.one(remap=True, now=datetime(2024, 2, 4))
    assert (report.replaced, report.taken_back) == (0, 0) and not report.notes
    assert shop.lake("select count(*) from lake.raw.customers") == before
    # Rows that the previous condition left out come with a full run, as versions of their own.
    shop.write({"fields": corrected["fields"]}, personal=kept)
    assert "come with --from-beginning" in shop.one().notes[0]
    assert shop.one(from_beginning=True).landed == 1
    assert [row[0] for row in shop.lake(ALIVE.format(columns="country"))] == ["DE!", "SE!", "SE!"]


def test_keep_leaves_the_rows_that_are_there(on_postgres: Shop) -> None:
    shop = on_postgres
    fill(shop, "(1, 'SE', '2024-01-01 10:00')")
    shop.one()
    shop.write({"fields": {**ENTRY["fields"], "country": {"value": "XX"}}})
    assert "are kept as they are" in shop.one(keep=True).notes[0]
    fill(shop, "(2, 'DE', '2024-01-02 10:00')")
    assert shop.one().landed == 1 and shop.versions() == [("1", "SE"), ("2", "XX")]


def test_values_of_every_type_come_back_from_the_payload(shop: Shop) -> None:
    """Mapped again with the same mapping, all values are the same."""
    real = "double precision" if shop.url.startswith("postgresql") else "double"
    shop.run(
        f"create table kinds (id bigint primary key, a numeric(20, 4), b {real}, c boolean, d date, e timestamp null, f text, g smallint)"
    )
    shop.run(
        "insert into kinds values (9007199254740993, 12.5000, 0.1, true, '2024-01-01', '2024-01-01 10:00:00.5', '\"x\" {}', -3)"
    )
    shop.run("insert into kinds values (2, 99999999999.1234, 1e300, false, '1999-12-31', null, '', null)")
    row = "json_object('a', a, 'b', b, 'c', c, 'd', d, 'e', e, 'f', f, 'g', g + 1)"
    entry = {
        "table": "kinds",
        "incremental": None,
        "deletes": None,
        "fields": {"customer_id": "id", "created_at": "e", "income": "a", "properties": {"sql": row}},
    }
    shop.mapping.write_text(
        yaml.safe_dump(
            {
                "source": "shop",
                "database": "${SHOP_URL}",
                "tables": {"customers": {key: value for key, value in {**ENTRY, **entry}.items() if value is not None}},
            }
        )
    )
    assert shop.one().landed == 2
    report = shop.one(remap=True)
    assert (report.replaced, report.taken_back, report.landed, report.unchanged) == (0, 0, 0, 2)


def test_unloaded_rows_come_again(shop: Shop) -> None:
    shop.whole(deletes="compare")
    fill(shop, "(1, 'SE', '2024-01-01'), (2, 'DE', '2024-01-01')")
    shop.one()
    shop.run("update customers set country = 'NO' where id = 1")
    shop.one()
    report = unload("shop.customers", where=shop.home)
    assert [(part.came_by, part.rows) for part in report.parts] == [
        ("ingest", 3)
    ] and "--from-beginning" in report.notes[0]
    assert shop.lake(ALIVE.format(columns="customer_id")) == []
    # Rows that are gone from the source are not deleted again; the others land, as their next versions.
    shop.run("delete from customers where id = 2")
    report_of = shop.one()
    assert (report_of.landed, report_of.deleted) == (1, 0)
    assert shop.lake(ALIVE.format(columns="customer_id, country, split_part(_position, '@', 2)[:9]")) == [
        ("1", "NO", "000000003")
    ]
    shop.run("delete from customers")
    assert shop.one().deleted == 1 and shop.one().deleted == 0


def test_columns_that_differ_in_case_alone(on_postgres: Shop) -> None:
    on_postgres.run('create table odd (id int primary key, "q" varchar(9), "Q" varchar(9))')
    on_postgres.run("insert into odd values (1, 'lower', 'upper')")
    on_postgres.whole(table="odd", deletes="compare", fields={"customer_id": "id", "country": "q"})
    with pytest.raises(
        FinegrainError, match=r"public\.odd: '[qQ]' and '[qQ]' differ only in case, so they .*; read a view that"
    ):
        on_postgres.ingest()
    on_postgres.run('create view named as select id, q, "Q" as other from odd')
    on_postgres.whole(table="named", deletes="compare", fields={"customer_id": "id", "country": "q", "gender": "other"})
    assert on_postgres.one().landed == 1
    assert on_postgres.lake("select country, gender from lake.raw.customers") == [("lower", "upper")]
