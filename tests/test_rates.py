"""`finegrain rates update`: the ECB's files, in all their forms, land once; corrected rates land again; and for any
other file one sentence explains the error, and nothing lands."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest
from small_shops import Homes, ShopMaker, differences, land

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError, Unavailable
from orchestration.ingest.rates import update
from orchestration.lake import lake
from orchestration.warehouse.warehouse import stale_rates

NOW = datetime(2025, 11, 28, 20)

#: eurofxref-hist.csv, newest day first. Each line ends with a comma.
HISTORY = """Date,USD,JPY,BGN,CYP,GBP,KRW,
2025-11-28,1.1566,180.74,1.9558,N/A,0.8764,1699.46,
2025-11-27,1.1590,180.95,1.9558,N/A,0.8747,1696.84,
1999-01-04,1.1789,133.73,N/A,0.58231,0.7111,N/A,
"""
#: eurofxref.csv, of the day.
OF_THE_DAY = "Date, USD, JPY, GBP, \n28 November 2025, 1.1566, 180.74, 0.8764, \n"
XML = """<?xml version="1.0" encoding="UTF-8"?>
<gesmes:Envelope xmlns:gesmes="http://www.gesmes.org/xml/2002-08-01" xmlns="http://www.ecb.int/vocabulary/2002-08-01/eurofxref">
	<gesmes:subject>Reference rates</gesmes:subject>
	<gesmes:Sender>
		<gesmes:name>European Central Bank</gesmes:name>
	</gesmes:Sender>
	<Cube>
		<Cube time='2025-11-28'>
			<Cube currency='USD' rate='1.1566'/>
			<Cube currency='KRW' rate='1699.46'/>
		</Cube>
		<Cube time='2025-11-27'>
			<Cube currency='USD' rate='1.1590'/>
		</Cube>
	</Cube>
</gesmes:Envelope>
"""


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings.below(tmp_path / "home")


def landed(home: Settings) -> list[tuple[Any, ...]]:
    with lake.connect(home) as con:
        return con.execute(
            "select cast(rate_date as varchar), currency, cast(per_euro as double) from lake.raw.exchange_rates order by all"
        ).fetchall()


def file(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def zipped(name: str, text: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return written.getvalue()


def test_the_history_lands_once_and_corrections_land_again(home: Settings, tmp_path: Path) -> None:
    first = update(file(tmp_path, "eurofxref-hist.csv", HISTORY), where=home, now=NOW)
    assert (first.new, first.changed, first.unchanged) == (14, 0, 0)
    assert (first.currencies, first.days, first.newest) == (6, 3, "2025-11-28")
    rows = landed(home)
    assert len(rows) == 14
    assert ("1999-01-04", "CYP", 0.58231) in rows and ("2025-11-28", "KRW", 1699.46) in rows
    again = update(file(tmp_path, "eurofxref-hist.csv", HISTORY), where=home, now=NOW)
    assert (again.new, again.changed, again.unchanged, again.snapshot) == (0, 0, 14, first.snapshot)
    corrected = HISTORY.replace("0.8747", "0.8748")
    third = update(file(tmp_path, "eurofxref-hist.csv", corrected), where=home, now=NOW)
    assert (third.new, third.changed, third.unchanged) == (0, 1, 13)
    assert len(landed(home)) == 15
    # New rates are compared with the newest ones: the correction is there, and the former rate would be a correction again.
    assert update(file(tmp_path, "x.csv", corrected), where=home, now=NOW).changed == 0
    assert update(file(tmp_path, "x.csv", HISTORY), where=home, now=NOW).changed == 1


#: Names and contents of files, and the rates in them.
FORMS: list[tuple[str, str | bytes, list[tuple[str, float]]]] = [
    ("eurofxref.csv", OF_THE_DAY, [("GBP", 0.8764), ("JPY", 180.74), ("USD", 1.1566)]),
    ("eurofxref.zip", zipped("eurofxref.csv", OF_THE_DAY), [("GBP", 0.8764), ("JPY", 180.74), ("USD", 1.1566)]),
    ("eurofxref-hist.xml", XML, [("USD", 1.159), ("KRW", 1699.46), ("USD", 1.1566)]),
    ("windows.csv", b"\xef\xbb\xbf" + b"Date,USD,\r\n2025-11-28,1.1566,\r\n", [("USD", 1.1566)]),
    ("without_last_comma.csv", "Date,USD,GBP\n2025-11-28,1.1566,N/A\n", [("USD", 1.1566)]),
]


def test_every_form_of_the_file_is_read(home: Settings, tmp_path: Path) -> None:
    for name, text, rows in FORMS:
        with lake.connect(home) as con:
            con.execute("delete from lake.raw.exchange_rates")
        done = update(file(tmp_path, name, text), where=home, now=NOW)
        assert done.new == len(rows), name
        assert [(currency, rate) for _, currency, rate in landed(home)] == rows, name


#: Contents of files, and what is wrong with them.
WRONG: list[tuple[str | bytes, str]] = [
    ("", "these are not rates of the ECB: it does not begin with Date and currencies"),
    ("order_id,price\n1,2\n", "these are not rates of the ECB: a column is called 'price'"),
    ("Date,USD,\n2025-11-28,abc,\n", "the rate of USD of 2025-11-28 is 'abc', which is not a number above zero"),
    ("Date,USD,\n2025-11-28,-1,\n", "the rate of USD of 2025-11-28 is '-1'"),
    ("Date,USD,\n2025-11-28,0,\n", "the rate of USD of 2025-11-28 is '0'"),
    ("Date,USD,\n2025-11-28,1e30,\n", "the rate of USD of 2025-11-28 is '1e30'"),
    ("Date,USD,\n2025-02-30,1.1,\n", "there is no day '2025-02-30'"),
    ("Date,USD,\n2025-12-24,1.1,\n", "a rate of 2025-12-24, which is still to come"),
    ("Date,USD,\n2025-11-28,1.1,\n2025-11-28,1.2,\n", "there are two rates of USD of 2025-11-28"),
    ("Date,USD,\n", "there is no rate in it"),
    ("<html><body>Not found</body></html>", "there is no rate in it"),
    ("<Cube", "this XML cannot be read"),
    ('<!DOCTYPE x [<!ENTITY a "b">]><x/>', "these are not rates of the ECB"),
    (b"\xff\xfe\x00", "this is neither text nor a ZIP archive"),
    (zipped("readme.txt", "x"), "this holds no CSV or XML files, not one"),
    (zipped("a.csv", HISTORY)[:-30], "this is neither text nor a ZIP archive"),
]


def test_another_file_is_one_error_and_nothing_lands(home: Settings, tmp_path: Path) -> None:
    for text, said in WRONG:
        given = file(tmp_path, "given.csv", text)
        with pytest.raises(FinegrainError) as caught:
            update(given, where=home, now=NOW)
        assert str(caught.value).startswith(f"{given}: {said}")
        assert "eurofxref-hist.csv" in str(caught.value)
    assert landed(home) == []


def test_a_missing_file_is_reported(home: Settings, tmp_path: Path) -> None:
    with pytest.raises(FinegrainError, match="the rates cannot be read: No such file or directory"):
        update(str(tmp_path / "none.csv"), where=home)


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """The address of a server on this machine, and its answers by path."""
    answers: dict[str, tuple[int, bytes]] = {}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = answers.get(self.path, (404, b""))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}", answers
    serving.shutdown()
    serving.server_close()


def test_rates_come_from_an_address(home: Settings, server: tuple[str, dict[str, tuple[int, bytes]]]) -> None:
    base, answers = server
    answers["/eurofxref-hist.zip"] = (200, zipped("eurofxref-hist.csv", HISTORY))
    assert update(f"{base}/eurofxref-hist.zip", where=home, now=NOW).new == 14
    with lake.connect(home) as con:
        assert con.execute("select distinct origin from lake.raw.exchange_rates").fetchall() == [
            ("eurofxref-hist.zip",)
        ]
    with pytest.raises(
        FinegrainError, match=r"/gone.zip answers 404 Not Found; download the file on a machine with network access"
    ):
        update(f"{base}/gone.zip", where=home, now=NOW)
    answers["/down.zip"] = (503, b"")
    with pytest.raises(Unavailable, match="answers 503"):
        update(f"{base}/down.zip", where=home, now=NOW)


def test_without_a_network_it_says_what_to_download(
    home: Settings, server: tuple[str, dict[str, tuple[int, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.ingest.rates.ADDRESS", "http://127.0.0.1:9/eurofxref-hist.zip")
    with pytest.raises(Unavailable) as caught:
        update(where=home)
    assert "cannot be reached: Connection refused; download http://127.0.0.1:9/eurofxref-hist.zip" in str(caught.value)
    assert "finegrain rates update --from eurofxref-hist.zip" in str(caught.value)


def rates_file(folder: Path, name: str, rows: dict[str, dict[str, float]]) -> str:
    """A file of the ECB's, of rates by day."""
    currencies = sorted({currency for rates in rows.values() for currency in rates})
    lines = [f"{day},{','.join(str(rates.get(each, 'N/A')) for each in currencies)}," for day, rates in rows.items()]
    return file(folder, name, "\n".join([f"Date,{','.join(currencies)},", *lines]) + "\n")


@pytest.mark.long
def test_new_and_corrected_rates_convert_affected_rows_again(homes: Homes, tmp_path: Path) -> None:
    """Several builds with new rates in between equal one full build: a currency that was unknown, a rate that was
    corrected, a day that used the rate of the day before, and rates that come before their events."""
    random = Random(11)
    rows = ShopMaker(random).shop_with_deletions()
    middle = sorted(row.available_at for row in rows)[len(rows) // 2]
    early, late = ([row for row in rows if (row.available_at < middle) is is_early] for is_early in (True, False))
    first = rates_file(
        tmp_path,
        "first.csv",
        {
            "2024-03-27": {"USD": 1.5, "GBP": 0.5, "XXX": 4},
            "2024-03-29": {"USD": 1.25, "GBP": 0.625, "XXX": 5},
        },
    )
    second = rates_file(
        tmp_path,
        "second.csv",
        {
            "2024-03-27": {"USD": 1.5, "GBP": 0.75},
            "2024-03-28": {"USD": 1.75, "XXX": 3},
            "2024-03-31": {"USD": 1.75, "GBP": 0.5, "XXX": 3},
        },
    )
    steps, once = homes.make("steps"), homes.make("once")
    # Downstream models process all rows that these wrote, whatever the reason (tests/test_order_free.py).
    wanted = ("--select", "+int_cleaning__events", "+dim_products")
    land(steps, early)
    homes.run(steps, *wanted)
    before = verdicts(steps)
    update(first, where=steps)
    homes.run(steps, *wanted)
    after = verdicts(steps)
    assert written_last(steps) == {row for row in after if after[row] != before[row]} != set()
    land(steps, late)
    update(second, where=steps)
    homes.run(steps, *wanted)
    homes.run(steps, *wanted)  # and nothing is left to do
    update(first, where=once)
    land(once, random.sample(rows, k=len(rows)))
    update(second, where=once)
    homes.run(once, "--full-refresh", *wanted)
    found = differences(steps, once)
    assert not found, "\n".join(found)


def verdicts(where: Settings) -> dict[int, tuple[Any, ...]]:
    """Every row with a verdict, by its number."""
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        found = con.execute(
            "select row_id, * exclude (row_id, built_in) from int_events__validated where event_day is not null"
        ).fetchall()
    return {row[0]: row[1:] for row in found}


def written_last(where: Settings) -> set[int]:
    """The rows that the newest build that wrote any rows has written. A row without a day counts as changed in every
    build."""
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        return {
            row
            for (row,) in con.execute(
                "select row_id from int_events__validated where built_in = (select max(built_in) from int_events__validated) "
                "and event_day is not null"
            ).fetchall()
        }


def test_old_rates_are_reported_in_a_sentence() -> None:
    with duckdb.connect() as con:
        con.execute(
            "create table events as from (values (date '2026-01-09', ['stale_exchange_rate']), (date '2026-01-12', "
            "['zero_price', 'stale_exchange_rate']), (date '2025-01-01', []::varchar[])) as t(event_day, warnings)"
        )
        assert stale_rates(con, "events") == (
            "2 rows since 2026-01-09 were converted by an exchange rate that was more than 7 days old: run finegrain rates update, "
            "then finegrain build"
        )
        assert stale_rates(con, "(from events where len(warnings) = 0)") is None
