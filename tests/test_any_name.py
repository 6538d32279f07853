"""Names from outside: a column of any name is never confused with one of ours, and a file of any name is loaded, counted and
shown."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from orchestration.cli import commands
from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError, console
from orchestration.ingest.load import load
from orchestration.ingest.unload import unload
from orchestration.lake import lake
from orchestration.quality.doctor import examine
from orchestration.sql.text import identifier

#: Names that finegrain or DuckDB use internally.
OURS = (
    *("__n", "__bad", "__payload", "__available", "__row", "__kept", "__key", "__hash", "__is_deleted", "__deleted_at", "__read", "__new_rows", "__staged"),
    *("__last", "__deleted", "__matched", "__there", "__delivery", "__name", "__file", "__first", "__within", "__json", "__why", "__clear", "__none"),
    *("__try_where", "__try_query", "__try_properties", "__try_available_at", "__unreadable", "_position", "_error", "_source", "_ingested_at"),
    *("available_at", "payload", "event_id", "line_id", "position", "part", "delivery", "n", "why", "raw", "fields", "line", "text", "content"),
    *("is_rest", "filled", "validated", "parsed", "batch", "key", "value", "json", "r", "f", "v", "c", "first", "last", "size"),
    *("filename", "file_row_number", "file_index", "rowid", "snapshot_id", "row_number", "column0", "*", "select", "null", "", " "),
    *("'", '"', "\\", "a.b", "a\tb", "a\nb", "[/x]", "\x1b[31m", "%s", "{x}", "${HOME}", "$1", "?", ";--", "\U0001f600", "_" * 70, "______n"),
)  # fmt: skip
#: Fields of events that take any text.
TEXTS = ("query", "device", "user_agent", "page", "referrer", "campaign", "country", "session_id", "category")
GOOD = {"t": "view_item", "at": "2024-01-01T10:00:00Z", "u": "ann", "g": "g1"}


def names(form: str, spelled: str) -> list[str]:
    """The names that a format can have: a CSV header is trimmed, and only JSON has an empty key."""
    found = [name for name in OURS if (name.strip() == name and name) or form in ("json", "jsonl")]
    return [name.upper() if spelled == "upper" else name for name in found]


def entries(columns: list[str], **more: Any) -> list[dict[str, Any]]:
    """Entries of events: the names most similar to ours are read as fields, and all names by SQL."""
    sql = {"sql": f"to_json([{', '.join(identifier(name) for name in columns if name)}])"}
    required = {"event_type": "t", "event_at": "at", "user_id": "u", "properties": sql}
    return [
        {"available_at": "event_time", "fields": {**required, **dict(zip(TEXTS, some, strict=True))}, **more}
        for some in (columns[: len(TEXTS)], columns[len(TEXTS) : 2 * len(TEXTS)])
    ]


def write(path: Path, form: str, columns: list[str]) -> None:
    """Write two rows; each value is its column and its row."""
    rows = [{**GOOD, **{name: f"{name}={n}" for name in columns}} for n in (1, 2)]
    match form:
        case "csv" | "other csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), quotechar="'" if form == "other csv" else '"')
                writer.writeheader()
                writer.writerows(rows)
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "json":
            path.write_text(json.dumps(rows, indent=1))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("form", "spelled"),
    [
        ("csv", "lower"),
        ("other csv", "upper"),
        ("jsonl", "lower"),
        ("json", "upper"),
        ("parquet", "lower"),
        ("parquet", "upper"),
    ],
)
def test_a_column_of_any_name_is_a_column(home: Settings, tmp_path: Path, form: str, spelled: str) -> None:
    columns = names(form, spelled)
    suffix = form.removeprefix("other ")
    write(tmp_path / f"a.{suffix}", form, columns)
    own = {"csv": {"quote": "'"}} if form == "other csv" else {}
    entry_list = entries(columns, files=f"a.{suffix}", where="u is not null", distinct=True, **own)
    carry = next(name for name in columns if name.lower() == "__n")
    entry_list[0]["carry"] = {"columns": carry, "within": "g"}
    mapping = tmp_path / "shop.yml"
    mapping.write_text(
        yaml.safe_dump({"source": "shop", "personal": {"user_agent": "keep"}, "tables": {"events": entry_list}})
    )
    if spelled == "lower" and form == "parquet":
        seen = examine(mapping, data=tmp_path, where=home)
        assert [found for each in seen.entries for found in each.findings if found.level == "error"] == []
    report = load(mapping, data=tmp_path)
    assert report.rows == 4 and not any(file.malformed for file in report.files)
    con = lake.connect(home, read_only=True)
    found = con.execute(
        f"select _position, _error, payload, properties, {', '.join(TEXTS)} from lake.raw.events"
    ).fetchall()
    con.close()
    expected = {}
    for n in (1, 2):
        values = {name: f"{name}={n}" for name in columns}
        for start, behind in ((0, ""), (len(TEXTS), ".2")):
            texts = [values[name] for name in columns[start : start + len(TEXTS)]]
            said = [value for name, value in values.items() if name]
            expected[f"a.{suffix}#{n}{behind}"] = (None, {**GOOD, **values}, said, *texts)
    assert {row[0]: (row[1], json.loads(row[2]), json.loads(row[3]), *row[4:]) for row in found} == expected


#: Names of files that a file system allows.
FILES = (
    *(b"a\nb.csv", b"a\tb.csv", b"a\rb.csv", b"a\\b.csv", b"a\\*.csv", b"\\[x].csv", b"a'b.csv", b'a"b.csv', b"a*.csv", b"a?b=c.csv", b"[a-z].csv"),
    *(b"{a,b}.csv", b"50%.csv", b"%20.csv", b"-a.csv", b"--data.csv", b".a.csv", b"~a.csv", b"~.csv", b"a#1.csv", b"a#1.csv#2.csv", b"a@12345678.csv"),
    *(b"s3:.csv", b"table=a.csv", b"$HOME.csv", b" a .csv", b"\x1b[31mred.csv", b"[b][red].csv", "\U0001f600.csv".encode(), "e\u0301.csv".encode()),
    *("\u202eabc.csv".encode(), b"caf\xe9.csv", b"\xff\xfe.csv", b"a.csv\n.csv", b"a;b.csv", b"a" * 200 + b".csv"),
)  # fmt: skip


def test_a_file_of_any_name_lands_is_counted_and_shown(
    home: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file has as many rows as its index; the output has one line per file, and no terminal control characters."""
    folder = tmp_path / "data"
    folder.mkdir()
    for rows, name in enumerate(FILES, 1):
        lines = [f"view_item,2024-01-01T10:00:00Z,u{rows}"] * rows
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("\n".join(["t,at,u", *lines]) + "\n")
    named = {os.fsdecode(name) for name in FILES if name.startswith(b".")}
    mapping = tmp_path / "shop.yml"
    fields = {"event_type": "t", "event_at": "at", "user_id": "u"}
    entry = {"files": ["data", *(f"data/{name}" for name in named)], "available_at": "event_time", "fields": fields}
    mapping.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entry}}))
    report = load(mapping, data=tmp_path)
    assert sorted(file.rows for file in report.files) == list(range(1, len(FILES) + 1))
    expected = {name.decode("utf-8", "backslashreplace"): rows for rows, name in enumerate(FILES, 1)}
    assert {file.file: file.rows for file in report.files} == expected
    commands._show_files(console.out(), report.files)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(FILES) and all(line.isprintable() for line in out.splitlines())
    for name in ("a\nb.csv", "\x1b[31mred.csv", "\u202eabc.csv"):
        assert f"shop.events {ascii(name)[1:-1]}: {expected[name]} rows\n" in out
    assert all(file.skipped == "already loaded" for file in load(mapping, data=tmp_path).files)
    again = load(mapping, data=tmp_path, remap=True)
    assert {(file.rows, file.unchanged) for file in again.files} == {(0, rows) for rows in expected.values()}
    names = ["a\nb.csv", "a\\b.csv", "caf\\xe9.csv"]
    assert {part.file: part.rows for part in unload("shop", names).parts} == {name: expected[name] for name in names}
    assert {file.file for file in load(mapping, data=tmp_path).files if not file.skipped} == set(names)


def test_files_with_the_same_positions_are_rejected(home: Settings, tmp_path: Path) -> None:
    for name in (b"caf\xe9.csv", b"caf\\xe9.csv"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("t,at,u\nview_item,2024-01-01,u\n")
    mapping = tmp_path / "shop.yml"
    fields = {"event_type": "t", "event_at": "at", "user_id": "u"}
    entry = {"files": "*.csv", "available_at": "event_time", "fields": fields}
    mapping.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entry}}))
    with pytest.raises(
        FinegrainError, match=r"caf\\xe9.csv: its rows would have the same positions as those of .*; rename one"
    ):
        load(mapping, data=tmp_path)


def test_columns_that_differ_only_in_case(home: Settings, tmp_path: Path) -> None:
    """CSV reports them; JSON keys can be read one at a time; Parquet columns are numbered."""
    mapping = tmp_path / "shop.yml"

    def expect(file: str, **fields: Any) -> None:
        entry = {
            "files": file,
            "available_at": "event_time",
            "fields": {"event_type": "t", "event_at": "at", "user_id": "u", **fields},
        }
        mapping.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entry}}))

    row = {"t": "view_item", "at": "2024-01-01T10:00:00Z", "u": "ann", "q": "lower", "Q": "upper"}
    (tmp_path / "a.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    expect("a.csv", query="q")
    with pytest.raises(FinegrainError, match=r"a\.csv: the header names 'q' twice"):
        load(mapping, data=tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    expect("a.jsonl", query="q", page="Q")
    with pytest.raises(
        FinegrainError, match=r"a\.jsonl: 'Q' and 'q' differ only in case, so they cannot be read together"
    ):
        load(mapping, data=tmp_path)
    expect("a.jsonl", query="Q")
    load(mapping, data=tmp_path)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    expect("a.parquet", query="q", page="Q_1")
    [report] = load(mapping, data=tmp_path).files
    assert report.notes == ["a.parquet has columns that SQL cannot name or tell apart: read 'Q' as 'Q_1'"]
    con = lake.connect(home, read_only=True)
    assert con.execute("select _position, query, page from lake.raw.events order by 1").fetchall() == [
        ("a.jsonl#1", "upper", None), ("a.parquet#1", "lower", "upper"),
    ]  # fmt: skip
    con.close()


def test_a_column_of_parquet_without_a_name_or_with_nul(home: Settings, tmp_path: Path) -> None:
    """Which SQL cannot name."""
    row = {"t": "view_item", "at": "2024-01-01T10:00:00Z", "u": "ann"}
    pq.write_table(
        pa.table({**{name: [value] for name, value in row.items()}, "a\0b": ["x"], "": ["y"]}), tmp_path / "a.parquet"
    )
    mapping = tmp_path / "shop.yml"
    fields = {"event_type": "t", "event_at": "at", "user_id": "u"}
    entry = {"files": "a.parquet", "available_at": "event_time", "fields": fields}
    mapping.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entry}}))
    assert load(mapping, data=tmp_path).rows == 1
    con = lake.connect(home, read_only=True)
    [(payload,)] = con.execute("select payload from lake.raw.events").fetchall()
    con.close()
    assert json.loads(payload) == {**row, "a\\0b": "x", "C4": "y"}
