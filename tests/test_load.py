"""The rows in the lake are those of the file: every row once, as text, at its position, in one transaction."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest import landing
from orchestration.ingest.load import LoadReport, load, plan
from orchestration.lake import lake
from orchestration.mapping.contracts import columns
from orchestration.sources.files import look

NOW = datetime(2024, 6, 1, 12, 0)


def shop(folder: Path, entry: dict[str, Any], table: str = "events", **top: Any) -> Path:
    """A mapping file with one entry over the columns t, at, u, … ; `entry` overrides."""
    fields = {"event_type": "t", "event_at": "at", "user_id": "u"}
    base = {"available_at": "event_time", **({"fields": fields} if table == "events" else {})}
    path = folder / "shop.yml"
    path.write_text(yaml.safe_dump({"source": "shop", **top, "tables": {table: {**base, **entry}}}))
    return path


def rows(home: Settings, sql: str) -> list[tuple[Any, ...]]:
    con = lake.connect(home, read_only=True)
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


def write_parquet(path: Path, sql: str) -> Path:
    duckdb.connect().execute(f"copy ({sql}) to '{path}' (format parquet)")
    return path


def test_csv_rows_land_as_text_with_provenance(home: Settings, tmp_path: Path) -> None:
    data = tmp_path / "a.csv"
    data.write_text('t,at,u,price\nview_item,2024-01-01T10:00:00+02:00,u1,"1,5"\npurchase,2024-07-01 10:00:00,u2,\n')
    mapping = shop(
        tmp_path,
        {
            "files": str(data),
            "expects": ["products", "customers"],
            "fields": {"event_type": "t", "event_at": "at", "user_id": "u", "price": "price"},
        },
        time_zone="Europe/Berlin",
    )
    report = load(mapping, now=NOW)
    assert [(f.file, f.rows, f.malformed, f.skipped) for f in report.files] == [("a.csv", 2, 0, None)]
    got = rows(
        home,
        "select _source, _position, _origin, _time_zone, _expects, _error, _ingested_at, available_at, event_type, "
        "price, payload from lake.raw.events order by _position",
    )
    meta = ("shop", "a.csv#1", "web", "Europe/Berlin", "customers,products", None, NOW)
    assert got[0] == (*meta, datetime(2024, 1, 1, 8), "view_item", "1,5", got[0][-1])
    assert json.loads(got[0][-1]) == {"t": "view_item", "at": "2024-01-01T10:00:00+02:00", "u": "u1", "price": "1,5"}
    # A naive time is Berlin's; it is after the load, and the shop cannot have known a row later than the lake.
    assert got[1][1] == "a.csv#2" and got[1][7] == NOW and got[1][9] is None


def test_a_naive_time_is_read_in_the_zone(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "t,at,u\nlogin,2024-01-15 10:00:00,a\nlogin,2023-07-15 10:00:00,a\nlogin,rubbish,a\n"
    )
    load(shop(tmp_path, {"files": "a.csv"}, time_zone="Europe/London"), data=tmp_path, now=NOW)
    got = rows(home, "select available_at from lake.raw.events order by _position")
    assert got == [(datetime(2024, 1, 15, 10),), (datetime(2023, 7, 15, 9),), (NOW,)]


def test_typed_columns_keep_their_meaning_as_text(home: Settings, tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "a.parquet",
        """select 'purchase' t, timestamptz '2024-01-01 10:00:00+02' as at, 17850.0::double u, 2.55::double price,
           'nan'::double quantity, timestamp '2024-01-01 09:00:00.123456' as local, true as flag, {'a': [1, 2]} as props""",
    )
    fields = {"event_type": "t", "event_at": "at", "user_id": "u", "price": "price", "quantity": "quantity"}
    fields |= {"session_id": "local", "consent": "flag", "properties": "props"}
    load(shop(tmp_path, {"files": "a.parquet", "fields": fields}), data=tmp_path, now=NOW)
    [got] = rows(
        home,
        "select available_at, user_id, price, quantity, session_id, consent, properties, payload from lake.raw.events",
    )
    assert got[:6] == (datetime(2024, 1, 1, 8), "17850", "2.55", None, "2024-01-01 09:00:00.123456", "true")
    assert json.loads(got[6]) == {"a": [1, 2]}
    assert json.loads(got[7])["quantity"] is None


def test_typed_numbers_and_times_land_exactly_or_not_at_all(home: Settings, tmp_path: Path) -> None:
    """Whole numbers are exact up to 2^53 in a double, up to 2^24 in a float; larger ones are written so that they
    cannot be mistaken for an id."""
    many = {
        "double": ["17850", "9007199254740992", "9007199254740994", "12345678901234567890", "0.1", "'inf'", "'nan'"],
        "float": ["16777216", "123456789", "12.1", "'-inf'"],
        "decimal(38,2)": ["1234567890123456.10"],
        "hugeint": ["12345678901234567890"],
        "timestamp": ["'9999-12-31 23:59:59.5'", "'infinity'", "'-infinity'", "'10000-01-01'", "'0044-03-15 (BC)'"],
        "timestamptz": ["'2024-01-01 10:00:00+02'", "'infinity'", "'290000-01-01'"],
        "timestamp_s": ["'2024-01-01 10:00:00'"],
        "date": ["'0001-01-01'", "'infinity'", "'10000-01-01'"],
    }
    expected = {
        "double": ["17850", "9007199254740992", "9.0071992547409940e+15", "1.2345678901234567e+19", "0.1", None, None],
        "float": ["16777216", "1.23456792e+08", "12.1", None],
        "decimal(38,2)": ["1234567890123456.10"],
        "hugeint": ["1.2345678901234567e+19"],  # Parquet has no such type: DuckDB writes a double
        "timestamp": ["9999-12-31 23:59:59.5", None, None, None, None],
        "timestamptz": ["2024-01-01 08:00:00+00", None, None],
        "timestamp_s": ["2024-01-01 10:00:00"],
        "date": ["0001-01-01", None, None],
    }
    for number, (kind, values) in enumerate(many.items()):
        values_sql = " union all ".join(f"select {n} as n, {value}::{kind} as v" for n, value in enumerate(values))
        write_parquet(
            tmp_path / f"{number}.parquet",
            f"select 'purchase' t, '2024-01-01' as at, 'u' as u, v from ({values_sql}) order by n",
        )
        report = load(
            shop(
                tmp_path,
                {
                    "files": f"{number}.parquet",
                    "fields": {"event_type": "t", "event_at": "at", "user_id": "u", "order_id": "v"},
                },
            ),
            data=tmp_path,
            now=NOW,
        )
        found = rows(home, f"select order_id from lake.raw.events where _position like '{number}.%' order by _position")
        assert [text for (text,) in found] == expected[kind], kind
        lost = sum(text is None and value != "'nan'" for text, value in zip(expected[kind], values, strict=True))
        said = [note for note in report.files[0].notes if "column 'v'" in note]
        assert [note.split(": ")[1].split(" ")[0] for note in said] == ([str(lost)] if lost else [])


def test_numbers_of_json_lines_keep_their_digits(home: Settings, tmp_path: Path) -> None:
    line = '{"t": "purchase", "at": "2024-01-01", "u": 12345678901234567890, "p": 1234567890123456.10, "more": {"x": 12.5}, "s": "1234567890123456.10,"}'
    (tmp_path / "a.jsonl").write_text(line + "\n" + line.replace("890,", "891,") + "\n")
    fields = {"event_type": "t", "event_at": "at", "user_id": "u", "price": "p", "properties": "more", "order_id": "s"}
    load(shop(tmp_path, {"files": "a.jsonl", "fields": fields}), data=tmp_path, now=NOW)
    found = rows(home, "select user_id, price, properties, order_id, payload from lake.raw.events order by _position")
    assert found[0] == ("12345678901234567890", "1234567890123456.10", '{"x":12.5}', "1234567890123456.10,", line)
    assert found[1][0] == "12345678901234567891"


def test_json_lines_that_are_not_objects_are_kept(home: Settings, tmp_path: Path) -> None:
    good = '{"t": "search", "at": 1704067200, "u": "é", "p": {"k": [1]}, "x": null}'
    lines = [good, "not json", "[1, 2]", "", '{"t": ', "null", '"text"', good]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    fields = {"event_type": "t", "event_at": "at", "user_id": "u", "properties": "p"}
    report = load(shop(tmp_path, {"files": "a.jsonl", "fields": fields}), data=tmp_path, now=NOW)
    assert (report.rows, report.files[0].malformed) == (7, 5)
    got = rows(
        home,
        "select _position, _error, event_type, user_id, properties, payload from lake.raw.events order by _position",
    )
    assert [row[0] for row in got] == [f"a.jsonl#{n}" for n in (1, 2, 3, 5, 6, 7, 8)]
    assert [row[5] for row in got] == [line for line in lines if line]  # the raw line itself
    assert got[0][1:5] == (None, "search", "é", '{"k":[1]}')
    assert all(row[1] and row[2] is None for row in got[1:6])


def test_csv_rows_of_the_wrong_width_are_kept_with_their_line(home: Settings, tmp_path: Path) -> None:
    text = 't,at,u\r\nlogin,2024-01-01,a\r\nshort,2024-01-01\r\nlogin,2024-01-01,"b\r\nb"\r\na,b,c,d,e\r\na,b,c,d\r\nlogin,2024-01-02,c\r\nx\r\n'
    (tmp_path / "a.csv").write_bytes(text.encode())
    report = load(shop(tmp_path, {"files": "a.csv"}), data=tmp_path, now=NOW)
    assert (report.rows, report.files[0].malformed) == (7, 4)
    got = rows(home, "select _position, _error, user_id, payload from lake.raw.events order by _position")
    assert [(row[0], row[1]) for row in got] == [
        ("a.csv#1", None),
        ("a.csv#2", "2 columns instead of 3"),
        ("a.csv#3", None),
        ("a.csv#4", "5 columns instead of 3"),
        ("a.csv#5", "4 columns instead of 3"),
        ("a.csv#6", None),
        ("a.csv#7", "1 columns instead of 3"),
    ]
    assert [row[2] for row in got] == ["a", None, "b\r\nb", None, None, "c", None]
    assert got[1][3] == "short,2024-01-01" and got[3][3] == "a,b,c,d,e"


cell = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\x01", exclude_categories=["Cs"]), max_size=6)
many = examples(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def memory() -> Iterator[duckdb.DuckDBPyConnection]:
    """A raw table of events outside of any lake: generated files land in it while one lake is open."""
    with duckdb.connect() as con:
        con.execute("set timezone = 'UTC'")
        con.execute(f"create table events ({', '.join(f'{name} {kind}' for name, kind in columns('events').items())})")
        yield con


def land(con: duckdb.DuckDBPyConnection, mapping: Path, data: Path) -> None:
    """Replace the rows of `memory` with those of a mapping's single file, with the loader's SELECT."""
    [planned] = plan(mapping, data=data)
    [entry] = planned.entries
    [file] = entry.files
    bound = landing.bind(con, file, look(file), entry.table, entry.mapping, entry.zone, entry.where)
    landing.check_sample(con, bound, entry.where)
    con.execute("delete from events")
    con.execute(f"insert into events {landing.select(bound, planned.source, landing.in_file(file.name), NOW)}")


@many
@given(st.lists(st.tuples(cell, cell, cell), max_size=30), st.sampled_from([",", ";", "\t"]))
def test_any_csv_lands_unchanged(
    memory: duckdb.DuckDBPyConnection, tmp_path: Path, table: list[tuple[str, str, str]], mark: str
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=mark, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("t", "s", "u"), *table])
    (tmp_path / "any.csv").write_bytes(text.getvalue().encode())
    fields = {"event_type": "t", "event_at": {"value": "2024-01-01"}, "session_id": "s", "user_id": "u"}
    land(memory, shop(tmp_path, {"files": "any.csv", "fields": fields}), tmp_path)
    got = memory.execute(
        "select event_type, session_id, user_id, _error from events order by split_part(_position, '#', 2)::int"
    ).fetchall()
    assert got == [(*(value or None for value in row), None) for row in table]


@many
@given(st.lists(st.sampled_from(["x,2024-01-01,u", "x", "x,y,z,w", 'x,"a\nb",u']), min_size=1, max_size=40))
def test_positions_count_malformed_rows(memory: duckdb.DuckDBPyConnection, tmp_path: Path, records: list[str]) -> None:
    (tmp_path / "n.csv").write_text("t,at,u\n" + "\n".join(records) + "\n")
    land(memory, shop(tmp_path, {"files": "n.csv"}), tmp_path)
    got = memory.execute(
        "select split_part(_position, '#', 2)::int, _error is not null from events order by 1"
    ).fetchall()
    assert [row[0] for row in got] == list(range(1, len(records) + 1)), records
    assert [row[1] for row in got] == [record.count(",") != 2 for record in records]


def test_a_file_is_loaded_once_unless_forced(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,at,u\nlogin,2024-01-01,a\n")
    mapping = shop(tmp_path, {"files": "*.csv"})
    assert load(mapping, data=tmp_path).rows == 1
    second = load(mapping, data=tmp_path)
    assert (second.rows, [f.skipped for f in second.files]) == (0, ["already loaded"])
    assert load(mapping, data=tmp_path, remap=True).rows == 0
    assert rows(home, "select count(*), count(distinct _position) from lake.raw.events") == [(1, 1)]
    (tmp_path / "b.csv").write_text("t,at,u\nlogin,2024-01-02,a\n")
    third = load(mapping, data=tmp_path)
    assert [(f.file, f.rows, f.skipped) for f in third.files] == [("a.csv", 0, "already loaded"), ("b.csv", 1, None)]
    assert rows(home, "select file, row_count from lake.raw.loads order by loaded_at, file") == [
        ("a.csv", 1),
        ("b.csv", 1),
    ]


def test_a_file_that_came_again_with_other_bytes_has_positions_of_its_own(home: Settings, tmp_path: Path) -> None:
    mapping = shop(tmp_path, {"files": "a.csv"})
    for user in ("a", "b"):
        (tmp_path / "a.csv").write_text(f"t,at,u\nlogin,2024-01-01,{user}\n")
        load(mapping, data=tmp_path)
    assert rows(home, "select count(*), count(distinct _position) from lake.raw.events") == [(2, 2)]
    assert load(mapping, data=tmp_path).files[0].skipped == "already loaded"


def test_files_of_one_name_in_two_folders_have_positions_of_their_own(home: Settings, tmp_path: Path) -> None:
    for day in ("d=1", "d=2"):
        (tmp_path / "in" / day).mkdir(parents=True)
        write_parquet(tmp_path / "in" / day / "part.parquet", f"select 'login' t, '2024-01-01' as at, '{day}' u")
    mapping = shop(tmp_path, {"files": "in/*/part.parquet"})
    assert load(mapping, data=tmp_path).rows == 2
    assert rows(home, "select _position from lake.raw.events order by 1") == [
        ("d=1/part.parquet#1",),
        ("d=2/part.parquet#1",),
    ]
    assert load(mapping, paths=[str(tmp_path / "in")], remap=True).files[0].unchanged == 1
    assert rows(home, "select count(distinct _position) from lake.raw.events") == [(2,)]


def test_all_files_of_a_mapping_land_or_none(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,at,u\nlogin,2024-01-01,a\n")
    write_parquet(tmp_path / "b.parquet", "select 'login' t, 'x' || i as at, 'u' u from range(100000) t(i)")
    whole = (tmp_path / "b.parquet").read_bytes()
    # Broken in a data page: the footer can be read, the rows cannot.
    (tmp_path / "b.parquet").write_bytes(whole[:4] + b"\xff" * 4000 + whole[4004:])
    before = rows(home, "select count(*) from lake.snapshots()")
    with pytest.raises(FinegrainError, match=r"b\.parquet"):
        load(shop(tmp_path, {"files": ["a.csv", "b.parquet"]}), data=tmp_path)
    assert rows(home, "select (select count(*) from lake.raw.events), (select count(*) from lake.raw.loads)") == [
        (0, 0)
    ]
    assert rows(home, "select count(*) from lake.snapshots()") == before


def test_fields_from_values_maps_and_expressions(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,at,u,q\nC,2024-01-01,,3\nV,2024-01-02,x,-4\nZ,2024-01-03,y,oops\n")
    fields = {
        "event_type": {"column": "t", "map": {"C": "it's", "V": None}},
        "event_at": "at",
        "user_id": "u",
        "anonymous_id": {"sql": "case when u is null then 'guest-' || \"at\" end -- a remark"},
        "quantity": {"sql": "abs(cast(q as int))"},
        "currency": {"value": "GB'P"},
        "consent": {"value": True},
        "price": {"value": 3},
    }
    report = load(shop(tmp_path, {"files": "a.csv", "fields": fields}), data=tmp_path)
    got = rows(
        home,
        "select event_type, user_id, anonymous_id, quantity, currency, consent, price, _error from lake.raw.events order by _position",
    )
    assert got[0] == ("it's", None, "guest-2024-01-01", "3", "GB'P", "true", "3", None)
    assert got[1] == (None, "x", None, "4", "GB'P", "true", "3", None)
    assert got[2] == (None,) * 7 + ("the sql of quantity fails on this row",)
    assert report.files[0].malformed == 1


def test_values_from_files_never_become_sql(home: Settings, tmp_path: Path) -> None:
    nasty = "'); drop table lake.raw.events; --"
    name = "it's [odd] *.csv"
    (tmp_path / name).write_text(f'"t{nasty}",at,u\n"{nasty}",2024-01-01,"{nasty}"\n')
    fields = {"event_type": f"t{nasty}", "event_at": "at", "user_id": "u"}
    load(shop(tmp_path, {"files": name, "fields": fields}), data=tmp_path)
    assert rows(home, "select event_type, user_id, _position from lake.raw.events") == [(nasty, nasty, f"{name}#1")]


def test_where_leaves_rows_out_and_distinct_takes_the_first(home: Settings, tmp_path: Path) -> None:
    write_parquet(tmp_path / "f.parquet", "select 'h' || (i % 3) as h, i from range(20) t(i)")
    entry = {
        "files": "f.parquet",
        "available_at": "now",
        "where": "i >= 4",
        "distinct": True,
        "fields": {"customer_id": "h"},
    }
    load(shop(tmp_path, entry, "customers"), data=tmp_path)
    assert rows(home, "select customer_id, _position from lake.raw.customers order by 1") == [
        ("h0", "f.parquet#7"),
        ("h1", "f.parquet#5"),
        ("h2", "f.parquet#6"),
    ]


def test_two_entries_over_one_file_do_not_share_positions(home: Settings, tmp_path: Path) -> None:
    write_parquet(tmp_path / "o.parquet", "select 'o1' o, 'u' u, '2024-01-01' paid, '2024-01-05' refunded")
    entries = [
        {"files": "o.parquet", "available_at": "event_time",
         "fields": {"event_type": {"value": kind}, "event_at": column, "user_id": "u", "order_id": "o"}}
        for kind, column in (("purchase", "paid"), ("refund", "refunded"))
    ]  # fmt: skip
    path = tmp_path / "two.yml"
    path.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entries}}))
    assert load(path, data=tmp_path).rows == 2
    assert rows(home, "select _position, event_type from lake.raw.events order by 1") == [
        ("o.parquet#1", "purchase"),
        ("o.parquet#1.2", "refund"),
    ]
    assert load(path, data=tmp_path).rows == 0


def test_arrival_from_a_column(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "t,at,u,got\nlogin,2024-01-01,a,1704203045\nlogin,2024-01-01,a,2030-01-01\nlogin,2024-01-01,a,\n"
    )
    load(shop(tmp_path, {"files": "a.csv", "available_at": {"column": "got"}}), data=tmp_path, now=NOW)
    got = rows(home, "select available_at from lake.raw.events order by _position")
    assert got == [(datetime(2024, 1, 2, 13, 44, 5),), (NOW,), (NOW,)]


def test_arrival_from_an_expression(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        't,at,u,got\nlogin,2024-01-01,a,"{""day"": ""2024-01-02"", ""hour"": 14}"\nlogin,2024-01-01,a,"{""day"": ""soon""}"\n'
        "login,2024-01-01,a,no JSON\nlogin,2024-01-01,a,\n"
    )
    text = "(json(got)->>'day') || coalesce(' ' || (got->>'hour') || ':00', '')"
    entry = {"files": "a.csv", "available_at": {"sql": text}}
    load(shop(tmp_path, entry, time_zone="Europe/Berlin"), data=tmp_path, now=NOW)
    got = rows(home, "select available_at, _error, user_id from lake.raw.events order by _position")
    assert got == [
        (datetime(2024, 1, 2, 13, 0), None, "a"),  # 14:00 in Berlin
        (NOW, None, "a"),
        (NOW, "the sql of available_at fails on this row", None),
        (NOW, None, "a"),
    ]


def test_arrival_from_an_expression_over_ga4(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_text(
        '{"event_name": "login", "event_timestamp": 1704103200000000, "batch": "7:1704189600"}\n'
        '{"event_name": "login", "event_timestamp": 1704103200000000, "batch": "x"}\n'
    )
    entry = {"files": "g.jsonl", "available_at": {"sql": "cast(split_part(batch, ':', 2) as bigint)"}}
    load(shop(tmp_path, entry, table="ga4_events"), data=tmp_path, now=NOW)
    assert rows(home, "select available_at, _error, event_name from lake.raw.ga4_events order by _position") == [
        (datetime(2024, 1, 2, 10, 0), None, "login"),
        (NOW, "the sql of available_at fails on this row", None),
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sql": "select 1"}, "tables.events.available_at: 'select 1' is not a SQL expression"),
        ({"sql": "now()"}, "now() is not one of the functions that an expression may use"),
        ({"sql": "[t]"}, "available_at: the expression's value is nested"),
        ({"sql": "a = b"}, "has no column 'a'"),
        ({"sql": "got", "column": "got"}, "or {sql: an expression that gives it}"),
    ],
)
def test_arrival_from_an_invalid_expression(home: Settings, tmp_path: Path, given: dict[str, str], says: str) -> None:
    (tmp_path / "a.csv").write_text("t,at,u,got\nlogin,2024-01-01,a,2024-01-02\n")
    with pytest.raises(FinegrainError, match=re.escape(says)):
        load(shop(tmp_path, {"files": "a.csv", "available_at": given}), data=tmp_path, now=NOW)


def test_gzip_and_package_files(home: Settings, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write('{"t": "login", "at": "2024-01-01", "u": "a"}\n')
    assert load(shop(tmp_path, {"files": "a.jsonl.gz"}), data=tmp_path).rows == 1
    with pytest.raises(FinegrainError, match=r"no_such_package.*not installed"):
        load(shop(tmp_path, {"files": "package://no_such_package/a.csv"}))


def test_paths_replace_the_mappings_files(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("t,at,u\nlogin,2024-01-01,a\n")
    mapping = shop(tmp_path, {"files": "nowhere.csv"})
    assert load(mapping, paths=[str(tmp_path / "other.csv")]).rows == 1
    assert load(mapping, paths={"events": [str(tmp_path / "other.csv")]}, remap=True).files[0].unchanged == 1
    with pytest.raises(FinegrainError, match="'event'; did you mean 'events'"):
        load(mapping, paths={"event": ["x"]})


def test_a_folder_of_mappings(home: Settings, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    (tmp_path / "a.csv").write_text("t,at,u\nlogin,2024-01-01,a\n")
    for name in ("one", "two"):
        shop(maps, {"files": "a.csv"}, source=name).rename(maps / f"{name}.yml")
    assert load(maps, data=tmp_path).rows == 2
    assert rows(home, "select distinct source from lake.raw.loads order by 1") == [("one",), ("two",)]


def test_ga4_takes_the_property_s_currency_and_ids_from_the_mapping(home: Settings, tmp_path: Path) -> None:
    events = [
        {
            "event_name": "view_item",
            "event_timestamp": "1700000000000000",
            "user_id": uid,
            "user_pseudo_id": "Ab.1",
            "items": items,
        }
        for uid, items in (("0", [{"item_id": "sku-1", "price": 5.0}]), ("ann", []))
    ]
    (tmp_path / "events_20240101.json").write_text("".join(json.dumps(event) + "\n" for event in events))
    entry = {"files": "*.json", "currency": "EUR", "null_ids": ["0"], "ids": {"case_insensitive": ["product_id"]}}
    load(shop(tmp_path, entry, "ga4_events"), data=tmp_path, now=NOW)
    landed = (
        "select property_currency, user_id, user_pseudo_id, items[1].item_id, items[1].price from lake.raw.ga4_events"
    )
    assert rows(home, f"{landed} order by _position") == [
        ("EUR", None, "Ab.1", "SKU-1", 5.0),
        ("EUR", "ann", "Ab.1", None, None),
    ]


def test_ga4_keeps_its_shape_by_name(home: Settings, tmp_path: Path) -> None:
    """Two exports of one event, one with nested fields missing and in another order: both land in the contract's
    shape."""
    full = """select '20240101' event_date, 1704067200000000 event_timestamp, 'purchase' event_name, 'p1' user_pseudo_id,
        [{'value': {'double_value': 1.5, 'string_value': 'x', 'int_value': 7::bigint, 'extra': 1}, 'key': 'k'}] event_params,
        {'browser': 'b', 'category': 'mobile', 'web_info': {'browser': 'Chrome'}} device,
        [{'item_id': 'i1', 'quantity': 2, 'price': 9.5}] items"""
    write_parquet(tmp_path / "a.parquet", full)
    duckdb.connect().execute(f"copy ({full}) to '{tmp_path / 'b.json'}' (format json)")
    load(shop(tmp_path, {"files": ["a.parquet", "b.json"]}, "ga4_events"), data=tmp_path, now=NOW)
    got = rows(home, "select event_timestamp, event_params, device.category, device.web_info.browser, items[1].quantity, "
                     "items[1].item_name, geo, available_at, payload from lake.raw.ga4_events order by _position")  # fmt: skip
    assert got[0][:-1] == got[1][:-1]
    expected = [{"key": "k", "value": {"string_value": "x", "int_value": 7, "float_value": None, "double_value": 1.5}}]
    assert got[0][:8] == ("1704067200000000", expected, "mobile", "Chrome", 2, None, None, datetime(2024, 1, 1))
    # Fields that are not in the contract are kept here.
    assert json.loads(got[0][8])["event_params"][0]["value"]["extra"] == 1


def test_two_loads_at_once_land_a_file_once(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,at,u\nlogin,2024-01-01,a\n")
    mapping = shop(tmp_path, {"files": "a.csv"})
    reports: list[LoadReport] = []
    threads = [threading.Thread(target=lambda: reports.append(load(mapping, data=tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(report.rows for report in reports) == [0, 0, 1]


def test_a_big_file_lands_in_bounded_memory(home: Settings, tmp_path: Path) -> None:
    """Two million lines land under a limit that is less than their text."""
    table = pa.table(
        {"t": ["view_item"] * 500_000, "at": ["2024-01-01"] * 500_000, "u": [f"u{i:0100}" for i in range(500_000)]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    duckdb.connect().execute(f"copy (from '{tmp_path / 'a.parquet'}') to '{tmp_path / 'a.csv'}' (header)")
    assert load(shop(tmp_path, {"files": ["a.parquet", "a.csv"]}), data=tmp_path).rows == 1_000_000
    assert rows(home, "select count(distinct _position) from lake.raw.events") == [(1_000_000,)]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("merchandise_store", {"events": 913_203}),
        ("ga4_export", {"ga4_events": 24_219}),
        ("online_retail", {"events": 541_909}),
    ],
)
def test_real_shops_land_completely(
    home: Settings,
    shared_data: Path,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    expected: dict[str, int],
) -> None:
    monkeypatch.chdir(project)
    load(project / "examples" / f"{file}.yml")
    for table, count in expected.items():
        assert rows(home, f"select count(*), count(_error) from lake.raw.{table}") == [(count, 0)]


def test_a_stray_quote_costs_its_row_and_no_other(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(
        'id,title,price,updated\n1,"FRAME" big,10,2024-01-01\n2,plain,10,2024-01-01\n3,plain,10,2024-01-01\n'
    )
    fields = {"product_id": "id", "title": "title", "price": "price", "updated_at": "updated"}
    report = load(shop(tmp_path, {"files": "d.csv", "fields": fields}, "products"), data=tmp_path, now=NOW)
    assert (report.rows, report.files[0].malformed) == (3, 1)
    got = rows(home, "select _position, product_id, _error, payload from lake.raw.products order by _position")
    assert got[0] == ("d.csv#1", None, "a quotation mark inside a quoted field", '1,"FRAME" big,10,2024-01-01')
    assert [row[:3] for row in got[1:]] == [("d.csv#2", "2", None), ("d.csv#3", "3", None)]
    assert rows(home, "select row_count from lake.raw.loads") == [(3,)]
