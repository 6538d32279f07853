"""A mapping that was corrected after a load, and rows that are unloaded. The rows that should be live in the lake are
computed from the files in plain Python."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from streams import ask
from typer.testing import CliRunner

from orchestration.cli.commands import app
from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.load import FileReport, LoadReport, load
from orchestration.ingest.unload import unload
from orchestration.lake import lake
from orchestration.quality.doctor import examine
from orchestration.sources.patterns import may_name

NOW = datetime(2024, 6, 1, 12, 0)
LATER = datetime(2024, 6, 2, 12, 0)
FIELDS = {"event_type": {"value": "purchase"}, "event_at": "at", "user_id": "u", "price": "p"}
#: SQL of the rows of a table that are not deleted.
ALIVE = (
    "(select t.* from lake.raw.{table} as t where not exists (select 1 from lake.raw.deletions as d where d._source = t._source "
    "and d.raw_table = '{table}' and d.row_key is null and d._position = t._position and t._ingested_at < d._ingested_at))"
)


class Shop:
    """A folder with files and a mapping, and a home."""

    def __init__(self, folder: Path, home: Settings) -> None:
        self.folder, self.home, self.mapping = folder, home, folder / "shop.yml"

    def map(self, *entries: dict[str, Any], table: str = "events", **others: list[dict[str, Any]]) -> None:
        """Write the mapping: entries of `table` over what is left out of each."""
        base = {"files": "*.csv", "available_at": "event_time", "fields": FIELDS}
        tables = {table: [{**base, **entry} for entry in entries], **others}
        self.mapping.write_text(yaml.safe_dump({"source": "shop", "tables": tables}))

    def write(self, name: str, *rows: str, header: str = "at,u,p,q") -> None:
        (self.folder / name).write_text("".join(f"{row}\n" for row in (*([header] if header else []), *rows)))

    def load(self, now: datetime = NOW, **more: Any) -> LoadReport:
        return load(self.mapping, data=self.folder, where=self.home, now=now, **more)

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        return ask(self.home, sql)

    def alive(self, columns: str, table: str = "events") -> list[tuple[Any, ...]]:
        return self.ask(f"select {columns} from {ALIVE.format(table=table)} order by all")

    def books(self) -> tuple[Any, ...]:
        """The numbers of rows, deletions and loads in the lake, and its newest snapshot."""
        [found] = self.ask(
            "select (select count(*) from lake.raw.events), (select count(*) from lake.raw.deletions), "
            "(select count(*) from lake.raw.loads), (select max(snapshot_id) from lake.snapshots())"
        )
        return found


@pytest.fixture
def shop(home: Settings, tmp_path: Path) -> Shop:
    return Shop(tmp_path, home)


def counts_of(file: FileReport) -> tuple[int, int, int, int]:
    return file.rows, file.replaced, file.unchanged, file.gone


def test_rows_that_were_malformed_are_replaced(shop: Shop) -> None:
    """The first mapping cannot read two of three rows."""
    shop.write("a.csv", "2024-01-01,a,1,1", "2024-01-02,b,1,two", "2024-01-03,c,1,3x")
    shop.map({"fields": {**FIELDS, "quantity": {"sql": "cast(q as int)"}}})
    assert shop.load().files[0].malformed == 2
    shop.map({"fields": {**FIELDS, "quantity": {"sql": "try_cast(q as int)"}}})
    report = shop.load(remap=True, now=LATER)
    assert [counts_of(file) for file in report.files] == [(2, 2, 1, 0)] and report.files[0].malformed == 0
    assert shop.alive("_position, user_id, quantity, _error, available_at") == [
        ("a.csv#1", "a", "1", None, datetime(2024, 1, 1)),
        ("a.csv#2", "b", None, None, datetime(2024, 1, 2)),
        ("a.csv#3", "c", None, None, datetime(2024, 1, 3)),
    ]
    assert shop.books()[:3] == (5, 2, 2)
    before = shop.books()
    assert [counts_of(file) for file in shop.load(remap=True, now=LATER).files] == [(0, 0, 3, 0)]
    assert shop.load(now=LATER).files[0].skipped == "already loaded" and shop.books() == before


def test_a_changed_mapping_lands_nothing_until_the_user_decides(shop: Shop) -> None:
    """The price was read from another column."""
    shop.write("a.csv", "2024-01-01,a,10,1", "2024-01-02,b,20,20", "2024-01-03,c,30,0")
    shop.map({"fields": {**FIELDS, "price": "q"}})
    shop.load()
    shop.write("b.csv", "2024-01-04,d,40,4")
    shop.map({"where": "u <> 'c'"})
    before = shop.books()
    with pytest.raises(FinegrainError) as caught:
        shop.load()
    assert str(caught.value).splitlines() == [
        f"{shop.mapping}: the mapping has changed since these files were loaded; nothing has landed",
        "  events a.csv: 1 rows would be replaced, 1 deleted, 0 added, 1 unchanged",
        f"  finegrain load {shop.mapping} --remap replaces them",
        f"  finegrain load {shop.mapping} --keep leaves loaded rows as they are, and loads new files by the new mapping",
    ]
    assert shop.books() == before
    for command in ("load", "ingest"):
        said = CliRunner().invoke(app, [command, str(shop.mapping), "--data", str(shop.folder)])
        assert isinstance(said.exception, FinegrainError) and "1 rows would be replaced" in str(said.exception)
    assert shop.books() == before

    report = shop.load(remap=True, now=LATER)
    assert {file.file: counts_of(file) for file in report.files} == {"a.csv": (1, 1, 1, 1), "b.csv": (1, 0, 0, 0)}
    assert shop.alive("_position, price") == [("a.csv#1", "10"), ("a.csv#2", "20"), ("b.csv#1", "40")]
    assert [file.skipped for file in shop.load(now=LATER).files] == ["already loaded"] * 2


def test_keep_leaves_what_is_loaded_and_is_remembered(shop: Shop) -> None:
    shop.write("a.csv", "2024-01-01,a,10,1")
    shop.map({"fields": {**FIELDS, "price": "q"}})
    shop.load()
    shop.map({})
    shop.write("b.csv", "2024-01-02,b,20,2")
    report = shop.load(keep=True)
    assert {file.file: file.skipped for file in report.files} == {
        "a.csv": "already loaded; the mapping changed, and its rows are kept",
        "b.csv": None,
    }
    assert shop.alive("_position, price") == [("a.csv#1", "1"), ("b.csv#1", "20")]
    assert [file.skipped for file in shop.load().files] == ["already loaded"] * 2
    with pytest.raises(FinegrainError, match="give only one of them"):
        shop.load(keep=True, remap=True)
    # It can be replaced later all the same.
    shop.load(remap=True, now=LATER)
    assert shop.alive("_position, price") == [("a.csv#1", "10"), ("b.csv#1", "20")]


def test_a_mapping_that_changes_no_row_is_recorded(shop: Shop) -> None:
    shop.write("a.csv", "2024-01-01,a,10,1")
    shop.map({})
    shop.load()
    shop.map({"fields": {**FIELDS, "price": {"sql": "p"}}})
    assert shop.load().files[0].skipped == "already loaded; the mapping changed, but none of its rows"
    rows, deletions, loads, snapshot = shop.books()
    assert (rows, deletions, loads) == (1, 0, 1)
    assert shop.load().files[0].skipped == "already loaded" and shop.books()[3] == snapshot


def test_entries_come_and_go(shop: Shop) -> None:
    """Two entries over one file, then one more before them, then a single one."""
    shop.write("a.csv", "2024-01-01,a,1,1", "2024-01-02,b,2,0")
    refund = {"fields": {**FIELDS, "event_type": {"value": "refund"}}, "where": "q = '1'"}
    login = {"fields": {**FIELDS, "event_type": {"value": "login"}}}
    shop.map({}, refund)
    shop.load()
    kinds = "event_type, user_id"
    assert shop.alive(kinds) == [("purchase", "a"), ("purchase", "b"), ("refund", "a")]
    shop.map(login, {}, refund)
    shop.load(remap=True, now=LATER)
    everything = [("login", "a"), ("login", "b"), ("purchase", "a"), ("purchase", "b"), ("refund", "a")]
    assert shop.alive(kinds) == everything
    positions = shop.alive("_position")
    assert len(set(positions)) == len(positions)
    assert [counts_of(file)[:2] for file in shop.load(remap=True, now=LATER).files] == [(0, 0), (0, 0), (0, 0)]
    shop.map(refund)
    shop.load(remap=True, now=LATER)
    assert shop.alive(kinds) == [("refund", "a")]


def test_a_correction_keeps_the_time_of_arrival(shop: Shop) -> None:
    """Rows stay known since the same time; a time that the mapping now reads counts, but never one after the lake had
    the row."""
    shop.write("a.csv", "2024-01-01,a,1,", "2030-01-01,b,1,", "soon,c,1,")
    shop.map({"available_at": "now"})
    shop.load()
    for number, (entry, expected) in enumerate(
        [
            ({"available_at": "now", "fields": {**FIELDS, "price": {"value": 2}}}, [NOW, NOW, NOW]),
            ({}, [datetime(2024, 1, 1), NOW, NOW]),
            ({"fields": {**FIELDS, "price": {"value": 3}}}, [datetime(2024, 1, 1), NOW, NOW]),
            ({"available_at": "now"}, [NOW, NOW, NOW]),
        ]
    ):
        shop.map(entry)
        moment = LATER + timedelta(days=number)
        shop.load(remap=True, now=moment)
        assert [at for _, at in shop.alive("_position, available_at")] == expected
        before = shop.books()
        # By then a time in the future would have passed.
        assert counts_of(shop.load(remap=True, now=datetime(2031, 1, 1)).files[0]) == (0, 0, 3, 0)
        assert shop.books() == before


def test_files_that_are_not_here_are_mapped_from_the_lake(shop: Shop) -> None:
    shop.write("a.csv", '2024-01-01,"A, ""x""",10,1', "2024-01-02,b", "2024-01-03,c,,x")
    shop.write("b.jsonl", '{"at": "2024-01-04", "u": "d", "p": 1.5, "q": {"n": 7}}', "[]", header="")
    duckdb.connect().execute(
        f"copy (select '2024-01-05' as at, 'e' as u, '5' as p, '5' as q) to '{shop.folder / 'c.parquet'}' (format parquet)"
    )
    shop.map({"files": ["*.csv", "*.jsonl", "*.parquet"], "fields": {**FIELDS, "quantity": {"sql": "cast(q as int)"}}})
    shop.load()
    assert [row[0] for row in shop.alive("user_id, _error") if row[1] is None] == ['A, "x"', "e"]
    for name in ("a.csv", "b.jsonl", "c.parquet"):
        (shop.folder / name).unlink()
    shop.write("new.csv", "2024-01-06,f,6,6")
    with pytest.raises(FinegrainError, match="no file matches"):  # as always: a glob without matches
        shop.load(remap=True)
    shop.map({"files": ".", "fields": {**FIELDS, "quantity": {"sql": "coalesce(try_cast(q as json)->>'$.n', q)"}}})
    report = shop.load(remap=True, now=LATER)
    assert {file.file: counts_of(file) for file in report.files} == {
        "new.csv": (1, 0, 0, 0),
        "a.csv": (1, 1, 2, 0),
        "b.jsonl": (1, 1, 1, 0),
        "c.parquet": (0, 0, 1, 0),
    }
    assert shop.alive("_position, user_id, price, quantity, _error") == [
        ("a.csv#1", 'A, "x"', "10", "1", None),
        ("a.csv#2", None, None, None, "2 columns instead of 4"),
        ("a.csv#3", "c", None, "x", None),
        ("b.jsonl#1", "d", "1.5", "7", None),
        ("b.jsonl#2", None, None, None, "not a JSON object"),
        ("c.parquet#1", "e", "5", "5", None),
        ("new.csv#1", "f", "6", "6", None),
    ]
    assert (
        "its 1 rows stay as they are: rows of a Parquet file" in {f.file: f.notes for f in report.files}["c.parquet"][0]
    )
    before = shop.books()
    shop.load(remap=True, now=LATER)
    assert shop.books() == before


def test_rows_that_no_entry_reads_now_stay_and_are_reported(shop: Shop) -> None:
    shop.write("a.csv", "2024-01-01,a,1,1")
    shop.write("b.csv", "2024-01-02,b,2,2")
    shop.map({})
    shop.load()
    shop.map({"files": "a.csv", "fields": {**FIELDS, "price": "q"}})
    notes = {file.file: file.notes for file in shop.load(remap=True, now=LATER).files}
    assert notes["b.csv"] == [
        "the file is not here, so its 1 rows stay as they are: no entry reads it any more; "
        "`finegrain unload shop.events --file b.csv` removes them"
    ]
    assert shop.alive("_position, price") == [("a.csv#1", "1"), ("b.csv#1", "2")]


def test_a_name_with_other_bytes(shop: Shop) -> None:
    """The first file of the name is only in the lake, the second also on disk."""
    shop.map({"fields": {**FIELDS, "price": "q"}})
    for user in "ab":
        shop.write("a.csv", f"2024-01-01,{user},10,1")
        shop.load()
    shop.map({})
    assert [counts_of(file) for file in shop.load(remap=True, now=LATER).files] == [(1, 1, 0, 0)] * 2
    assert shop.alive("user_id, price") == [("a", "10"), ("b", "10")]
    before = shop.books()
    shop.load(remap=True, now=LATER)
    assert shop.books() == before


def test_a_delivery_that_comes_again_with_another_mapping(shop: Shop) -> None:
    """Rows that it still has are replaced where the mapping now reads them differently, and stay known since the same
    time."""
    days = {"replaces": r"day_(\d+)", "available_at": "now"}
    shop.map({**days, "fields": {**FIELDS, "price": "q"}})
    shop.write("day_1.csv", "2024-01-01,a,10,1", "2024-01-01,b,2,2", "2024-01-01,c,3,9")
    shop.write("day_2.csv", "2024-01-02,a,10,10")
    shop.load()
    shop.map(days)
    shop.write("day_1.csv", "2024-01-01,b,2,2", "2024-01-01,a,10,1", "2024-01-01,d,4,4")
    report = shop.load(now=LATER)
    assert {file.file: counts_of(file) for file in report.files} == {
        "day_1.csv": (2, 1, 1, 1),
        "day_2.csv": (0, 0, 0, 0),
    }
    assert shop.alive("user_id, price, available_at") == [
        ("a", "10", NOW),
        ("a", "10", NOW),
        ("b", "2", NOW),
        ("d", "4", LATER),
    ]
    # If a delivery is unchanged, a part that is not on disk does not count as missing from it.
    shop.write("day_3-a.csv", "2024-01-03,a,1,2")
    shop.write("day_3-b.csv", "2024-01-03,b,1,2")
    shop.load(now=LATER)
    (shop.folder / "day_3-b.csv").unlink()
    shop.map({**days, "fields": {**FIELDS, "price": "q"}})
    with pytest.raises(
        FinegrainError, match=r"(?s)day_3-a.csv: 1 rows would be replaced, 0 deleted.*day_3-b.csv: 1 rows"
    ):
        shop.load(now=LATER)
    shop.load(remap=True, now=LATER)
    assert [row for row in shop.alive("_position, price") if row[0].startswith("day_3")] == [
        ("day_3-a.csv#1", "2"),
        ("day_3-b.csv#1", "2"),
    ]


prices = st.sampled_from(["p", "q"])
kept = st.sampled_from([None, "u = 'a'", "p <> '1'"])
mappings = st.lists(st.tuples(st.sampled_from(["purchase", "refund"]), prices, kept), min_size=1, max_size=3)
rows = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("123"), st.sampled_from("12")), min_size=1, max_size=6)
KEEPS = {None: lambda row: True, "u = 'a'": lambda row: row[0] == "a", "p <> '1'": lambda row: row[1] != "1"}


@examples(max_examples=6, suppress_health_check=list(HealthCheck), deadline=None)
@given(files=st.lists(rows, min_size=1, max_size=2), history=st.lists(mappings, min_size=2, max_size=4))
def test_live_rows_are_those_of_the_last_mapping(
    tmp_path_factory: pytest.TempPathFactory,
    extensions: Path,
    files: list[list[tuple[str, str, str]]],
    history: list[list[tuple[str, str, str | None]]],
) -> None:
    folder = tmp_path_factory.mktemp("again")
    shop = Shop(folder, Settings.below(folder / "home", extensions))
    for number, content in enumerate(files):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("2024-01-01", *row) for row in content])
        shop.write(f"{number}.csv", *text.getvalue().splitlines())
    for entries in history:
        shop.map(
            *(
                {
                    "fields": {**FIELDS, "event_type": {"value": kind}, "price": price},
                    **({"where": where} if where else {}),
                }
                for kind, price, where in entries
            )
        )
        shop.load(remap=True)
        expected = Counter(
            (f"{number}.csv#{place}", kind, row[0], row[1 if price == "p" else 2])
            for number, content in enumerate(files)
            for place, row in enumerate(content, 1)
            for kind, price, where in entries
            if KEEPS[where](row)
        )
        alive = shop.alive("_position, regexp_replace(_position, '[.][0-9]$', ''), event_type, user_id, price")
        assert len({row[0] for row in alive}) == len(alive), "one place holds two rows"
        assert Counter(row[1:] for row in alive) == expected
        before = shop.books()
        shop.load(remap=True)
        assert shop.books() == before


def test_a_killed_reload_changes_nothing(shop: Shop) -> None:
    """Rows, deletions and records are in one transaction: the process is killed within it, while another holds the lock
    for commits."""
    shop.write("a.csv", *(f"2024-01-01,u{n},{n},0" for n in range(2000)))
    shop.map({"fields": {**FIELDS, "price": "q"}})
    shop.load()
    shop.map({})
    before = shop.books()
    stuck = (
        "import time, sys\nfrom orchestration.ingest import deliveries\nland = deliveries.land\n"
        "def slow(*given):\n    land(*given)\n    print('landed', flush=True)\n    time.sleep(600)\n"
        "deliveries.land = slow\nfrom orchestration.ingest.load import load\nload(sys.argv[1], data=sys.argv[2], remap=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", stuck, str(shop.mapping), str(shop.folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "landed\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert shop.books() == before
    assert counts_of(shop.load(remap=True, now=LATER).files[0]) == (1999, 1999, 1, 0)  # of u0 both are 0


def test_the_doctor_reports_that_a_mapping_changed(shop: Shop) -> None:
    shop.write("a.csv", "2024-01-01,a,10,1")
    shop.map({})
    shop.load()
    said = str(examine(str(shop.mapping), None, str(shop.folder)).as_dict())
    assert "in the lake already, so a load skips: a.csv" in said
    shop.map({"fields": {**FIELDS, "price": "q"}})
    said = str(examine(str(shop.mapping), None, str(shop.folder)).as_dict())
    assert "loaded by another mapping: a.csv" in said


def test_a_lake_that_kept_no_mappings_is_refused(shop: Shop) -> None:
    shop.write("a.csv", "2024-01-01,a,10,1")
    shop.map({})
    con = lake.connect(shop.home)
    con.execute("alter table lake.raw.loads drop column mapping")
    con.close()
    with pytest.raises(FinegrainError, match="created by an earlier version of finegrain"):
        shop.load()


@pytest.mark.parametrize(
    ("pattern", "form", "name", "expected"),
    [
        ("in/*.csv", None, "a.csv", True),
        ("in/*.csv", None, "a.jsonl", False),
        ("in/*.csv", None, "x/a.csv", False),
        ("in/**/*.csv", None, "x/y/a.csv", True),
        ("in/**/*.csv", None, "a.csv", True),
        ("in/d=*/p?rt.csv", None, "d=1/part.csv", True),
        ("in/d=*/p?rt.csv", None, "d=1/x/part.csv", False),
        ("in/a.csv", None, "a.csv", True),
        ("in/a.csv", None, "b.csv", False),
        ("in", None, "x/a.csv", True),
        ("in/", "csv", "x/a.csv", True),
        ("s3://bucket/in/*.csv", None, "s3://bucket/in/a.csv", True),
        ("s3://bucket/in/", None, "s3://bucket/in/x/a.csv", True),
        ("s3://bucket/in/*.csv", None, "s3://bucket/out/a.csv", False),
        ("package://shop/a.csv", None, "a.csv", True),
    ],
)
def test_which_files_a_pattern_may_have_found(pattern: str, form: Any, name: str, expected: bool) -> None:
    assert may_name(pattern, form, name) is expected


# --- unload ------------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(shop: Shop) -> Shop:
    shop.write("a.csv", "2024-01-01,a,1,1", "2024-01-02,b,2,2")
    shop.write("b.csv", "2024-01-03,c,3,3")
    customers = [{"files": "a.csv", "available_at": "now", "fields": {"customer_id": "u"}}]
    shop.map({}, customers=customers)
    shop.load()
    return shop


def test_a_file_is_unloaded_and_loaded_again(loaded: Shop) -> None:
    report = unload("shop.events", ["a.csv"], where=loaded.home, now=LATER)
    assert [(part.table, part.file, part.rows) for part in report.parts] == [("events", "a.csv", 2)]
    assert loaded.alive("user_id") == [("c",)] and loaded.alive("customer_id", "customers") == [("a",), ("b",)]
    assert loaded.ask("select distinct raw_table, row_key from lake.raw.deletions") == [("events", None)]
    # The clock was put back: the rows still land after the deletions.
    assert loaded.load(now=NOW).rows == 2
    assert loaded.alive("_position, user_id") == [("a.csv#1", "a"), ("a.csv#2", "b"), ("b.csv#1", "c")]
    assert [file.skipped for file in loaded.load().files] == ["already loaded"] * 3


def test_a_table_and_a_source_are_unloaded(loaded: Shop) -> None:
    assert unload("shop.customers", where=loaded.home).rows == 2
    assert loaded.alive("customer_id", "customers") == [] and len(loaded.alive("user_id")) == 3
    assert unload("shop", where=loaded.home).rows == 3
    assert loaded.alive("user_id") == [] and loaded.ask("select count(*) from lake.raw.loads") == [(0,)]
    before = loaded.books()[:3]
    assert unload("shop", where=loaded.home).rows == 0 and loaded.books()[:3] == before
    assert loaded.load(now=LATER).rows == 5 and len(loaded.alive("user_id")) == 3


def test_positions_stay_if_a_name_with_other_bytes_is_unloaded(loaded: Shop) -> None:
    """The first file of the name is unloaded together with the second; each can be loaded again without affecting the
    other's rows."""
    first = (loaded.folder / "a.csv").read_text()
    loaded.write("a.csv", "2024-01-04,z,4,4")
    loaded.load()
    assert unload("shop.events", ["a.csv"], where=loaded.home).rows == 3
    loaded.load()
    (loaded.folder / "a.csv").write_text(first)
    loaded.load()
    assert loaded.alive("user_id") == [("a",), ("b",), ("c",), ("z",)]
    before = loaded.books()
    assert all(counts_of(file)[:2] == (0, 0) for file in loaded.load(remap=True).files) and loaded.books() == before


@pytest.mark.parametrize(
    ("what", "files", "message"),
    [
        ("shpo", [], "shpo: the lake has no such source; did you mean 'shop'?"),
        ("shop.event", [], "shop.event: the lake has no such table of shop; did you mean 'events'?"),
        ("shop.refunds", [], "shop.refunds: the lake has no such table of shop; known are: events, customers"),
        ("shop", ["a.csc"], "--file a.csc: no such file of shop is loaded; did you mean 'a.csv'?"),
        (
            "shop.customers",
            ["b.csv"],
            "--file b.csv: no such file of shop.customers is loaded; did you mean 'a.csv'?",
        ),
    ],
)
def test_unknown_names_cannot_be_unloaded(loaded: Shop, what: str, files: list[str], message: str) -> None:
    before = loaded.books()
    with pytest.raises(FinegrainError) as caught:
        unload(what, files, where=loaded.home)
    assert str(caught.value) == message and loaded.books() == before


def test_unload_by_the_command(loaded: Shop) -> None:
    said = CliRunner().invoke(app, ["unload", "shop.events", "--file", "a.csv", "--file", "b.csv", "--json"])
    report = json.loads(said.stdout)
    assert report["rows"] == 3 and [part["file"] for part in report["parts"]] == ["a.csv", "b.csv"]
    said = CliRunner().invoke(app, ["unload", "shop"])
    assert "shop.customers a.csv: 2 rows removed" in said.stdout and "2 rows removed in" in said.stdout


def test_without_a_lake_there_is_nothing_to_unload(home: Settings) -> None:
    with pytest.raises(FinegrainError, match="there is no lake here"):
        unload("shop", where=home)
