"""Text as it occurs: other encodings, compressed files, JSON that is not lines, names with brackets; and a load that
counts its rows."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
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
from rich.table import Table

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError, console
from orchestration.ingest import landing
from orchestration.ingest.load import LoadReport, load
from orchestration.lake import lake
from orchestration.mapping.mapping import read_mapping
from orchestration.quality.doctor import EntryLook, examine
from orchestration.sources.files import DataFile, look

NOW = datetime(2024, 6, 1, 12, 0)
TEXT = "t,at,u\nlogin,2024-01-01,Zoë €\nlogin,2024-01-02,b\n"
FIELDS = {"event_type": "t", "event_at": "at", "user_id": "u"}
ENTRY: dict[str, Any] = {"available_at": "event_time", "fields": FIELDS}


def mapping(folder: Path, *entries: dict[str, Any], **tables: Any) -> Path:
    path = folder / "shop.yml"
    found = {"events": [{**ENTRY, **entry} for entry in entries]} if entries else {}
    path.write_text(yaml.safe_dump({"source": "shop", "tables": {**found, **tables}}))
    return path


def rows(home: Settings, sql: str) -> list[tuple[Any, ...]]:
    con = lake.connect(home, read_only=True)
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


def users(home: Settings) -> list[str]:
    return [row[0] for row in rows(home, "select user_id from lake.raw.events order by _position")]


def doctor(path: Path, home: Settings) -> EntryLook:
    [seen, *_] = examine(path, data=path.parent, where=home, now=NOW).entries
    return seen


def zipped(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name.replace("__", "."), data)


# --- encodings and packing -------------------------------------------------------------------------------------------

WRITE: dict[str, tuple[str, Callable[[Path], object], str | None]] = {
    "utf-16 with a mark": ("a.csv", lambda p: p.write_bytes(TEXT.encode("utf-16")), None),
    "utf-16 big-endian with a mark": ("a.csv", lambda p: p.write_bytes(b"\xfe\xff" + TEXT.encode("utf-16-be")), None),
    "utf-16 without a mark": ("a.csv", lambda p: p.write_bytes(TEXT.encode("utf-16-le")), None),
    "utf-16 big-endian without a mark": ("a.csv", lambda p: p.write_bytes(TEXT.encode("utf-16-be")), None),
    "utf-32": ("a.csv", lambda p: p.write_bytes(TEXT.encode("utf-32")), None),
    "utf-8 with a mark": ("a.csv", lambda p: p.write_bytes(TEXT.encode("utf-8-sig")), None),
    "cp1252": ("a.csv", lambda p: p.write_bytes(TEXT.encode("cp1252")), "cp1252"),
    "latin-9": ("a.csv", lambda p: p.write_bytes(TEXT.encode("iso-8859-15")), "iso-8859-15"),
    "utf-16 that the mapping names": ("a.csv", lambda p: p.write_bytes(TEXT.encode("utf-16")), "utf-16"),
    "utf-16 in gzip": ("a.csv.gz", lambda p: p.write_bytes(gzip.compress(TEXT.encode("utf-16"))), None),
    "gzip under the name of csv": ("a.csv", lambda p: p.write_bytes(gzip.compress(TEXT.encode())), None),
    "csv under the name of gzip": ("a.csv.gz", lambda p: p.write_text(TEXT, "utf-8"), None),
    "zip": ("a.csv.zip", lambda p: zipped(p, export__csv=TEXT.encode()), None),
    "zip with the format inside": ("a.zip", lambda p: zipped(p, export__csv=TEXT.encode()), None),
    "zip under the name of csv": ("a.csv", lambda p: zipped(p, export__csv=TEXT.encode("utf-16")), None),
    "zip of a Mac": ("a.zip", lambda p: zipped(p, e__csv=TEXT.encode(), **{"__MACOSX/__e__csv": b"\0"}), None),
}


@pytest.mark.parametrize("case", WRITE)
def test_text_of_any_encoding_and_packing_is_read(tmp_path: Path, case: str) -> None:
    name, write, encoding = WRITE[case]
    path = tmp_path / name
    write(path)
    entry = read_mapping(mapping(tmp_path, {"files": name} | ({"encoding": encoding} if encoding else {})))
    file = DataFile(path, name, "csv", path.stat().st_size)
    seen = look(file, encoding)
    with duckdb.connect() as con:
        opened = landing.open_file(con, file, seen, "events", entry.tables["events"][0], "m")
        assert con.execute(f"select u, __bad from {opened.relation} order by __n").fetchall() == [
            ("Zoë €", None),
            ("b", None),
        ]
    copy = seen.path
    del seen
    assert copy == path or not copy.exists()  # the copy is deleted after the check


def test_such_files_land_and_the_doctor_says_how_they_are_read(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(TEXT.encode("utf-16"))
    zipped(tmp_path / "b.zip", inside__csv=TEXT.encode())
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as packed:
        duckdb.connect().execute(f"copy (select 'login' t, '2024-01-01' as at, 'p' u) to '{tmp_path}/p.parquet'")
        packed.write(tmp_path / "p.parquet", "p.parquet")
    path = mapping(tmp_path, {"files": ["a.csv", "b.zip", "c.zip"]})
    notes = [finding.message for finding in doctor(path, home).findings if finding.level == "note"]
    assert "a.csv: read as utf-16" in notes and "b.zip: read inside.csv inside it" in notes
    report = load(path, data=tmp_path, now=NOW)
    assert [(f.file, f.rows) for f in report.files] == [("a.csv", 2), ("b.zip", 2), ("c.zip", 1)]
    assert users(home) == ["Zoë €", "b", "Zoë €", "b", "p"]
    assert load(path, data=tmp_path).rows == 0  # identified by their bytes, like any file


def _workbook() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as packed:
        packed.writestr("[Content_Types].xml", "<Types/>")
        packed.writestr("xl/workbook.xml", "<workbook/>")
    return held.getvalue()


def _several() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as packed:
        packed.writestr("a.csv", TEXT)
        packed.writestr("b.csv", TEXT)
    return held.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_workbook(), r"a\.csv: this is an Excel workbook; save its sheet as CSV \(UTF-8\)"),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
            r"a\.csv: this is an Excel workbook \(\.xls\), not csv; save",
        ),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", r"a\.csv: this is a PDF, not csv"),
        (b"PAR1\x15\x04\x15" + bytes(30) + b"PAR1", r"this is a Parquet file, not csv; add `format: parquet`"),
        (_several(), r"this zip file has 2 files \(a\.csv, b\.csv\) inside; unpack it and name the files"),
        (_several()[:-30], r"this zip file is broken or cut off"),
        (gzip.compress(_workbook()), r"a zip file inside another"),
        (b"<!DOCTYPE html><html><body>Log in", r"this is a web page, not csv; did the download ask for a login\?"),
        (b"BZh91AY&SY\0\0", r"this is a bzip2 file, not csv; unpack it"),
        (
            b"t,at,u\nlogin,2024-01-01,Zo\xeb\n",
            r"line 2 is not UTF-8 text \(byte 0xeb\).*encoding: cp1252.*encoding: latin-1",
        ),
    ],
)
def test_what_cannot_be_read_is_named(home: Settings, tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(FinegrainError, match=words):
        load(mapping(tmp_path, {"files": "a.csv"}), data=tmp_path)


def test_a_header_may_begin_as_other_files_do(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("ORC,t\n1,2\n")
    assert look(DataFile(path, "a.csv", "csv", 10)).records == 2


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"encoding": "latin-one"}, "encoding: 'latin-one' is not a text encoding"),
        ({"encoding": "base64"}, "encoding: 'base64' is not a text encoding"),
        ({"csv": {"delimiter": "||"}}, "csv.delimiter: write one character"),
        ({"csv": {"delimiter": '"'}}, "csv: delimiter, quote and escape must differ"),
        ({"csv": {"escap": "\\"}}, "csv.escap: no such key; did you mean 'escape'"),
        ({"csv": {"columns": ["a", "A"]}}, "csv.columns: 'a' is there twice"),
        ({"csv": {}, "format": "jsonl"}, "csv: this does not go with jsonl files"),
        ({"encoding": "utf-16", "format": "parquet"}, "encoding: this does not go with parquet files"),
    ],
)
def test_keys_that_make_no_sense_are_named(tmp_path: Path, entry: dict[str, Any], words: str) -> None:
    with pytest.raises(FinegrainError) as caught:
        read_mapping(mapping(tmp_path, {"files": "a.csv", **entry}))
    assert words in str(caught.value)


def test_csv_options_are_only_for_files(tmp_path: Path) -> None:
    entry = {"stream": {"folder": "x"}, "csv": {"escape": "\\"}, "encoding": "cp1252"}
    with pytest.raises(FinegrainError, match=r"encoding: this does not go with stream.*\n.*csv: this does not go with"):
        read_mapping(mapping(tmp_path, entry))


def test_null_need_not_be_in_quotes(tmp_path: Path) -> None:
    path = tmp_path / "m.yml"
    text = "source: s\ntables: {products: {files: a.csv, available_at: now, csv: {escape: \"\\\\\", null: '\\N'}, fields: {product_id: id}}}"
    path.write_text(text)
    how = read_mapping(path).tables["products"][0].csv
    assert how is not None and (how.escape, how.null) == ("\\", "\\N")


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_a_json_array_is_read_as_its_elements(home: Settings, tmp_path: Path) -> None:
    elements = [
        '{"t": "login",  "at": "2024-01-01", "u": "a, [b]"}',
        '[1, {"u": 2}]',
        "7",
        '{"t":"login","at":"2024-01-02","u":"\\"}"}',
    ]
    (tmp_path / "a.json").write_text("\ufeff [\n" + ",\n  ".join(elements) + "\n]\n", "utf-8")
    (tmp_path / "b.json").write_text("[]")
    report = load(mapping(tmp_path, {"files": ["a.json", "b.json"]}), data=tmp_path, now=NOW)
    assert [(f.file, f.rows, f.malformed) for f in report.files] == [("a.json", 4, 2), ("b.json", 0, 0)]
    got = rows(home, "select _position, user_id, _error, payload from lake.raw.events order by _position")
    assert [row[0] for row in got] == [f"a.json#{n}" for n in (1, 2, 3, 4)]
    assert [row[1] for row in got] == ["a, [b]", None, None, '"}']
    assert [row[2] for row in got] == [None, "not a JSON object", "not a JSON object", None]
    assert [row[3] for row in got] == elements  # untouched


@pytest.mark.parametrize("cut", [3, 60, 100, -2])
def test_an_array_that_is_cut_off_lands_nothing(home: Settings, tmp_path: Path, cut: int) -> None:
    """One element per line, so that the last of them looks like a JSON line."""
    lines = [json.dumps({"t": "login", "at": "2024-01-01", "u": f"u{n}"}) for n in range(4)]
    whole = "[\n" + ",\n".join(lines) + "\n]"
    (tmp_path / "a.json").write_text(whole[:cut])
    path = mapping(tmp_path, {"files": "a.json"})
    with pytest.raises(FinegrainError, match=r"a\.json: this is a JSON array that is cut off"):
        load(path, data=tmp_path)
    assert any("cut off" in finding.message for finding in doctor(path, home).findings if finding.level == "error")
    assert rows(home, "select count(*) from lake.raw.events") == [(0,)]


def test_an_array_may_be_on_one_line_of_any_length(home: Settings, tmp_path: Path) -> None:
    element = json.dumps({"t": "login", "at": "2024-01-01", "u": "x" * 1000})
    (tmp_path / "a.json").write_text("[" + ",".join([element] * 20_000) + "]")
    assert load(mapping(tmp_path, {"files": "a.json"}), data=tmp_path).rows == 20_000


def test_objects_over_several_lines(home: Settings, tmp_path: Path) -> None:
    objects = [{"t": "login", "at": "2024-01-01", "u": f"u{n}", "x": {"y": ["}", "{"]}} for n in range(3)]
    (tmp_path / "a.json").write_text("\n".join(json.dumps(each, indent=2) for each in objects))
    assert load(mapping(tmp_path, {"files": "a.json"}), data=tmp_path, now=NOW).files[0].malformed == 0
    assert users(home) == ["u0", "u1", "u2"]
    (tmp_path / "b.json").write_text("\n".join(json.dumps(each, indent=2) for each in objects)[:-9])
    with pytest.raises(
        FinegrainError, match=r"b\.json: no line is a JSON object, and its objects over several lines are cut"
    ):
        load(mapping(tmp_path, {"files": "b.json"}), data=tmp_path)


def test_json_lines_of_which_the_first_is_malformed_are_lines(home: Settings, tmp_path: Path) -> None:
    good = json.dumps({"t": "login", "at": "2024-01-01", "u": "a"})
    for number, first in enumerate(('{"t": "lo', "[1, 2]", '{"t": 1}}', "x")):
        (tmp_path / f"{number}.jsonl").write_bytes(f"{first}\r\n{good}\n\r\n{good}\r\n".encode())
    report = load(mapping(tmp_path, {"files": "*.jsonl"}), data=tmp_path, now=NOW)
    assert [(f.rows, f.malformed) for f in report.files] == [(3, 1)] * 4
    assert rows(home, "select distinct split_part(_position, '#', 2) from lake.raw.events order by 1") == [
        ("1",),
        ("2",),
        ("4",),
    ]


values = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(st.sampled_from(list('a"\\[]{},\n é'))), st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(st.sampled_from(list('a"\\}'))), inner, max_size=3)
    ),
    max_leaves=6,
)


@examples(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(values, max_size=5), st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 9))
def test_values_of_json_are_counted_from_its_bytes(
    tmp_path: Path, elements: list[Any], indent: int | None, ascii_only: bool, chunk: int
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(elements, indent=indent, ensure_ascii=ascii_only), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestration.sources.files._CHUNK", max(chunk, 5))  # quotes at the edges of chunks
        seen = look(DataFile(path, "a.json", "jsonl", path.stat().st_size))
    assert (seen.layout, seen.records) == ("array", len(elements))


# --- nested values (item 16) -----------------------------------------------------------------------------------------


def test_an_object_as_an_id_is_refused_with_a_hint(home: Settings, tmp_path: Path) -> None:
    line = json.dumps({"t": "login", "at": "2024-01-01", "u": {"id": 7}, "l": [1]})
    (tmp_path / "a.jsonl").write_text(f"{line}\n{line}\n")
    path = mapping(tmp_path, {"files": "a.jsonl"})
    with pytest.raises(FinegrainError) as caught:
        load(path, data=tmp_path)
    assert f"{path}: tables.events.fields.user_id: column 'u' of {tmp_path}/a.jsonl is an object" in str(caught.value)
    assert str(caught.value).endswith("""extract a value from it, as in {sql: "u->>'$.id'"}""")
    [said] = [f for f in doctor(path, home).findings if f.level == "error" and f.field == "user_id"]
    assert "is an object; extract a value from it" in said.message
    with pytest.raises(
        FinegrainError, match=r"""fields.session_id: column 'l' .* is a list; .* \{sql: "l->>'\$\[0\]'"\}"""
    ):
        load(
            mapping(
                tmp_path,
                {"files": "a.jsonl", "fields": {**FIELDS, "user_id": {"sql": "u->>'$.id'"}, "session_id": "l"}},
            ),
            data=tmp_path,
        )
    load(
        mapping(
            tmp_path, {"files": "a.jsonl", "fields": {**FIELDS, "user_id": {"sql": "u->>'$.id'"}, "properties": "l"}}
        ),
        data=tmp_path,
    )
    assert rows(home, "select user_id, properties from lake.raw.events") == [("7", "[1]")] * 2


def test_single_rows_with_an_object_as_an_id_are_malformed(home: Settings, tmp_path: Path) -> None:
    ids: list[Any] = ["{3F2504E0-4F89}", {"id": 1}, '{"id": 1}', "[x", [1], None, 5]
    lines = [json.dumps({"t": "login", "at": "2024-01-01", "u/~": each}) for each in ids]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    path = mapping(tmp_path, {"files": "a.jsonl", "fields": {**FIELDS, "user_id": "u/~"}})
    assert doctor(path, home).malformed == 2
    assert load(path, data=tmp_path).files[0].malformed == 2
    why = "u/~ holds an object or a list"
    assert rows(home, "select user_id, _error from lake.raw.events order by _position") == [
        ("{3F2504E0-4F89}", None),
        (None, why),
        ('{"id": 1}', None),
        ("[x", None),
        (None, why),
        (None, None),
        ("5", None),
    ]


# --- counts ----------------------------------------------------------------------------------------------------------


def _write(path: Path) -> None:
    lines = [("login", "2024-01-01", f"u{n}") for n in range(5)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(dict(zip(["t", "at", "u"], zip(*lines, strict=True), strict=True))), path)
    elif path.suffix == ".csv":
        stray = '"a"b,1,2\n' if path.stem == "slow" else ""
        path.write_text("t,at,u\n" + "".join(",".join(line) + "\n" for line in lines) + stray)
    else:
        objects = [json.dumps(dict(zip(["t", "at", "u"], line, strict=True))) for line in lines]
        path.write_text("[" + ",".join(objects) + "]" if path.suffix == ".json" else "\n".join(objects))


@pytest.mark.parametrize("name", ["fast.csv", "slow.csv", "a.jsonl", "a.json", "a.parquet"])
@pytest.mark.parametrize("how", [{}, {"where": "u <> 'u1'"}, {"distinct": True}], ids=["all", "where", "distinct"])
def test_a_reader_that_drops_a_row_fails_the_load(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: dict[str, Any]
) -> None:
    _write(tmp_path / name)
    path = mapping(tmp_path, {"files": name, **how})
    real = landing.open_file

    def drops(*given: Any) -> landing.Opened:
        opened = real(*given)
        return replace(opened, relation=f"(select * from {opened.relation} where __n <> 3)")

    held = 5 + (name == "slow.csv")
    left_out = 1 if "where" in how else 0
    with monkeypatch.context() as patch:
        patch.setattr(landing, "open_file", drops)
        said = f"{name}: {held - 1 - left_out} rows were read, but {held - left_out} were counted in the file"
        with pytest.raises(FinegrainError) as caught:
            load(path, data=tmp_path)
        assert said in str(caught.value) and "nothing has landed" in str(caught.value)
    assert rows(home, "select (select count(*) from lake.raw.events), (select count(*) from lake.raw.loads)") == [
        (0, 0)
    ]
    assert load(path, data=tmp_path).rows == held - left_out


def test_a_delivery_that_comes_again_is_counted_too(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mapping(tmp_path, {"files": "day_*.csv", "replaces": [r"day_(\d+)"]})
    (tmp_path / "day_1.csv").write_text("t,at,u\nlogin,2024-01-01,a\n")
    load(path, data=tmp_path)
    (tmp_path / "day_1.csv").write_text("t,at,u\nlogin,2024-01-01,a\nlogin,2024-01-01,b\n")
    real = landing.open_file
    with monkeypatch.context() as patch:
        patch.setattr(
            landing,
            "open_file",
            lambda *given: replace(o := real(*given), relation=f"(select * from {o.relation} where __n <> 2)"),
        )
        with pytest.raises(FinegrainError, match=r"day_1\.csv: 1 rows were read, but 2 were counted"):
            load(path, data=tmp_path)
    assert load(path, data=tmp_path).rows == 1


# --- several entries, empty files, names -----------------------------------------------------------------------------


def test_a_malformed_row_is_one_row_in_however_many_entries(home: Settings, tmp_path: Path) -> None:
    """An export of a spreadsheet: 29 lines, none of which can be read, and ten entries; they once counted as 290."""
    (tmp_path / "a.csv").write_text("t,at,u\n" + "x\n" * 28 + "login,2024-01-01,a\n")
    entries = [{"files": "a.csv", "where": f"u <> '{n}'"} for n in range(10)]
    refund = {
        "refunds": {"files": "a.csv", "available_at": "now", "fields": {"order_id": "u", "amount": {"sql": "u::int"}}}
    }
    path = mapping(tmp_path, *entries, **refund)
    looks = examine(path, data=tmp_path, where=home, now=NOW).entries
    assert [seen.malformed for seen in looks] == [28] + [0] * 9 + [1]  # the last one by its own expression
    report: LoadReport = load(path, data=tmp_path)
    assert report.rows == 28 + 10 + 1
    assert rows(home, "select count(_error), count(*), count(distinct _position) from lake.raw.events") == [
        (28, 38, 38)
    ]
    assert rows(home, "select _error from lake.raw.refunds") == [("the sql of amount fails on this row",)]
    # And if only the mapping of a later entry is corrected.
    refund["refunds"]["fields"]["amount"] = {"value": 1}
    again = load(mapping(tmp_path, *entries, **refund), data=tmp_path, remap=True)
    assert [(f.rows, f.replaced, f.gone) for f in again.files if f.table == "refunds"] == [(1, 1, 0)]
    assert rows(home, "select count(_error), count(*) from lake.raw.events") == [(28, 38)]


def test_an_empty_file_among_others_is_a_note(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "part-0.csv").write_text("t,at,u\nlogin,2024-01-01,a\n")
    (tmp_path / "part-1.csv").write_text("")
    (tmp_path / "part-2.csv.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "part-3.parquet").write_text("")
    report = load(mapping(tmp_path, {"files": "part-*"}), data=tmp_path)
    assert [(f.file, f.rows, f.skipped) for f in report.files] == [
        ("part-0.csv", 1, None),
        ("part-1.csv", 0, "the file is empty (0 bytes)"),
        ("part-2.csv.gz", 0, "the file is empty (0 bytes)"),
        ("part-3.parquet", 0, "the file is empty (0 bytes)"),
    ]
    assert rows(home, "select file from lake.raw.loads") == [("part-0.csv",)]


def test_names_with_brackets_are_printed_as_they_are(home: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "ex[1]ports"
    (folder / "[").mkdir(parents=True)
    names = ["[/red].csv", "a[bold]:cat:.csv", "in[side].csv"]
    for name in names:
        (folder / name).write_text(f"t,at,u\nlogin,2024-01-01,{len(name)}\nx\n")
    path = mapping(folder, {"files": "**/*.csv"})

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "orchestration.cli", *command, "--data", str(folder)],
            env={**os.environ, "FINEGRAIN_HOME": str(home.home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    seen = run("doctor", str(path))
    assert seen.returncode == 0 and "first [/red].csv#2" in seen.stdout and str(path) in seen.stdout
    landed = run("load", str(path))
    assert [line for line in landed.stdout.splitlines() if "malformed" in line] == [
        f"shop.events {name}: 2 rows, 1 of them malformed" for name in names
    ]
    assert "shop.events [/red].csv: already loaded" in run("load", str(path)).stdout
    assert "shop.events [/red].csv: already loaded" in run("ingest", str(path)).stdout
    (folder / "[" / "red].csv").write_text("nothing\n")
    wrong = run("load", str(path))
    assert wrong.returncode == 2 and f"{folder}/[/red].csv has no column" in wrong.stderr


def test_a_bar_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with console.progress("load", 2) as advance:
        advance(1, "[/red].csv")
        advance(1, "a[bold]:cat:.csv")
    assert "load a[bold]:cat:.csv" in shown.getvalue()


def test_tables_show_text_as_it_is() -> None:
    page = console.plain(io.StringIO(), width=80)
    table = Table("[b]", title="[/x]")
    table.add_row("[red]:cat:")
    page.print(table)
    said = page.file.getvalue()  # type: ignore[attr-defined] # it is the StringIO from above
    assert all(text in said for text in ("[b]", "[/x]", "[red]:cat:"))
