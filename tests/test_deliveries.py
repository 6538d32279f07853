"""A delivery that comes again replaces its previous version: the live rows in the lake are those of the newest files,
as often as the files contain them, and nothing else in the lake changes. The expected rows are counted from the files,
in plain Python."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

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
from orchestration.lake import lake
from orchestration.mapping.mapping import read_mapping

NOW = datetime(2024, 6, 1, 12, 0)
MOMENT = 1_704_103_200_000_000  # 2024-01-01 10:00:00 UTC
#: How final a file of GA4's export is, by how its name begins.
FINALITY = {"events_intraday": 1, "events_fresh": 2, "events": 3}


def hit(number: int, kind: str = "view_item") -> str:
    """A row of GA4's export as a line of JSON."""
    return json.dumps({"event_name": kind, "event_timestamp": MOMENT + number, "user_pseudo_id": f"V{number}"})


class Export:
    """A folder of GA4 files, and the lake's rows of them."""

    def __init__(self, folder: Path, home: Settings, **entry: Any) -> None:
        self.folder, self.home, self.mapping = folder / "ga4", home, folder / "ga4.yml"
        self.folder.mkdir(exist_ok=True)
        keys = {"files": "ga4/*.jsonl", "available_at": "event_time", **entry}
        self.mapping.write_text(yaml.safe_dump({"source": "app", "tables": {"ga4_events": keys}}))

    def write(self, name: str, rows: Iterable[str]) -> None:
        (self.folder / f"{name}.jsonl").write_text("".join(row + "\n" for row in rows))

    def load(self, now: datetime = NOW, **more: Any) -> LoadReport:
        return load(self.mapping, data=self.folder.parent, where=self.home, now=now, **more)

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        return ask(self.home, sql)

    def alive(self) -> Counter[str]:
        """The payloads of the rows that no deletion refers to, computed from positions and times in Python."""
        found = self.ask(
            "select true, _position, _ingested_at, payload from lake.raw.ga4_events union all "
            "select false, _position, _ingested_at, null from lake.raw.deletions where row_key is null"
        )
        gone = {
            (position, landed)
            for is_row, position, landed, _ in found
            for is_other, where, at, _ in found
            if is_row and not is_other and position == where and landed < at
        }
        alive = [
            (position, payload) for is_row, position, at, payload in found if is_row and (position, at) not in gone
        ]
        assert len({position for position, _ in alive}) == len(alive), "one place holds two rows"
        return Counter(payload for _, payload in alive)

    def counts(self) -> tuple[int, int]:
        """How many rows and deletions the lake holds."""
        [counts] = self.ask(
            "select (select count(*) from lake.raw.ga4_events), (select count(*) from lake.raw.deletions)"
        )
        return counts[0], counts[1]


@pytest.fixture
def export(home: Settings, tmp_path: Path) -> Export:
    return Export(tmp_path, home)


def counts_of(file: FileReport) -> tuple[int, int, int, str | None]:
    return file.rows, file.unchanged, file.gone, file.skipped


def test_a_day_becomes_final(export: Export) -> None:
    """Intraday, then daily with rows that changed, came, went and are there twice; then the daily one again, corrected."""
    export.write("events_intraday_20240101", [hit(1), hit(2), hit(2), hit(3), hit(4)])
    assert [counts_of(file) for file in export.load().files] == [(5, 0, 0, None)]

    daily = [hit(1), hit(2), hit(3, "purchase"), hit(5), hit(5)]
    export.write("events_20240101", daily)
    report = export.load()
    assert {file.file: counts_of(file) for file in report.files} == {
        # Hit 2 occurs once less, 3 has changed, 4 is deleted, and 5 is there twice.
        "events_20240101.jsonl": (3, 2, 3, None),
        "events_intraday_20240101.jsonl": (0, 0, 0, "events_20240101.jsonl is loaded already, and is more final"),
    }
    assert report.rows == 3 and export.counts() == (8, 3) and export.alive() == Counter(daily)
    gone = export.ask("select raw_table, split_part(_position, '#', 1), row_key from lake.raw.deletions")
    assert gone == [("ga4_events", "events_intraday_20240101.jsonl", None)] * 3

    corrected = [hit(5), hit(1), hit(3, "purchase"), hit(3, "purchase")]
    export.write("events_20240101", corrected)
    assert counts_of(export.load().files[0]) == (1, 3, 2, None)
    assert export.counts() == (9, 5) and export.alive() == Counter(corrected)

    # As it was before: deleted rows come back at their positions and are live again.
    export.write("events_20240101", daily)
    assert counts_of(export.load().files[0]) == (2, 3, 1, None)
    assert export.counts() == (11, 6) and export.alive() == Counter(daily)


def test_what_comes_unchanged_or_too_late_does_nothing(export: Export) -> None:
    export.write("events_20240101", [hit(1)])
    export.write("events_intraday_20240101", [hit(1), hit(2)])
    assert {file.file: counts_of(file)[:3] for file in export.load().files} == {
        "events_20240101.jsonl": (1, 0, 0),
        "events_intraday_20240101.jsonl": (0, 0, 0),
    }
    before = export.ask("select max(snapshot_id) from lake.snapshots()")
    export.write("events_intraday_20240101", [hit(1), hit(2), hit(3)])
    export.write("events_fresh_20240101", [hit(1), hit(2)])
    late = "events_20240101.jsonl is loaded already, and is more final"
    assert {file.file: file.skipped for file in export.load().files} == {
        "events_20240101.jsonl": "already loaded",
        "events_fresh_20240101.jsonl": late,
        "events_intraday_20240101.jsonl": late,
    }
    assert export.ask("select max(snapshot_id) from lake.snapshots()") == before
    # Loaded again, it finds that every row is already there.
    assert counts_of(export.load(remap=True).files[0]) == (0, 1, 0, None) and export.counts() == (1, 0)


def test_a_day_may_be_many_files_and_other_days_stay(export: Export) -> None:
    export.write("events_20240101-000", [hit(1), hit(2)])
    export.write("events_20240101-001", [hit(3)])
    export.write("events_20240102", [hit(1), hit(9)])
    export.write("notes", [hit(7)])  # its name is not that of a delivery
    export.load()
    # A row moves to another file; the other day has a row of the same payload.
    export.write("events_20240101-000", [hit(2), hit(3)])
    export.write("events_20240101-001", [hit(4)])
    assert [counts_of(file) for file in export.load().files] == [
        (0, 2, 1, None),
        (1, 0, 0, None),
        (0, 0, 0, "already loaded"),
        (0, 0, 0, "already loaded"),
    ]
    assert export.alive() == Counter([hit(2), hit(3), hit(4), hit(1), hit(9), hit(7)])
    # One file instead of two: the rows of the other one are replaced, and the report says so.
    (export.folder / "events_20240101-001.jsonl").unlink()
    export.write("events_20240101-000", [hit(2)])
    first = export.load().files[0]
    assert counts_of(first) == (0, 1, 2, None) and "events_20240101-001.jsonl" in first.notes[-1]
    assert export.alive() == Counter([hit(2), hit(1), hit(9), hit(7)])


def test_a_clock_that_was_put_back_deletes_no_new_row(export: Export) -> None:
    for number, rows in enumerate(([hit(1)], [hit(2)], [hit(1)])):
        export.write("events_20240101", rows)
        export.load(now=NOW - timedelta(days=number))
        assert export.alive() == Counter(rows)


def test_rows_of_two_entries_are_kept_apart(home: Settings, tmp_path: Path) -> None:
    """One file fills a table twice; a row that only one of them reads is deleted only there."""
    fields = {"event_type": {"value": "purchase"}, "event_at": "at", "user_id": "u"}
    entry = {"files": "orders_*.csv", "available_at": "now", "replaces": r"orders_(\d+)", "fields": fields}
    refund = {**entry, "where": "back = 'yes'", "fields": {**fields, "event_type": {"value": "refund"}}}
    mapping = tmp_path / "shop.yml"
    mapping.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": [entry, refund]}}))
    data = tmp_path / "orders_1.csv"
    data.write_text("at,u,back\n2024-01-01,a,yes\n2024-01-01,b,no\n2024-01-01,a,yes\n")
    assert [file.rows for file in load(mapping, data=tmp_path, where=home, now=NOW).files] == [
        5,
        0,
    ]  # reported with the first
    data.write_text("at,u,back\n2024-01-01,b,no\n2024-01-01,a,yes\n")
    load(mapping, data=tmp_path, where=home, now=NOW)
    with lake.connect(home, read_only=True) as con:
        found = con.execute(
            "select event_type, user_id, count(*) from lake.raw.events anti join lake.raw.deletions using (_source, _position) "
            "group by all order by all"
        ).fetchall()
    assert found == [("purchase", "a", 1), ("purchase", "b", 1), ("refund", "a", 1)]


names = st.sampled_from(["events_20240101", "events_20240101-b", "events_fresh_20240101", "events_intraday_20240101"])
loads = st.lists(
    st.dictionaries(names, st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1), min_size=2, max_size=3
)


@examples(max_examples=6, suppress_health_check=list(HealthCheck), deadline=None)
@given(loads=loads)
def test_the_most_final_files_of_the_last_load_are_what_is_alive(
    tmp_path_factory: pytest.TempPathFactory, extensions: Path, loads: list[dict[str, list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("export")
    export = Export(folder, Settings.below(folder / "home", extensions))
    reached, current, alive = 0, dict[str, list[str]](), Counter[str]()
    for delivered in loads:
        for old in export.folder.iterdir():
            old.unlink()
        files = {name: [hit(number) for number in numbers] for name, numbers in delivered.items()}
        for name, rows in files.items():
            export.write(name, rows)
        report = export.load()

        level = {name: FINALITY[name.rpartition("_")[0]] for name in files}
        top = max([reached, *level.values()])
        final = {name: rows for name, rows in files.items() if level[name] == top}
        came = went = 0
        if final and not final.items() <= current.items():
            before, reached, current = alive, top, final
            alive = Counter(row for rows in final.values() for row in rows)
            came, went = (alive - before).total(), (before - alive).total()
        assert export.alive() == alive
        assert (report.rows, sum(file.gone for file in report.files)) == (came, went)


def test_the_report_counts_new_and_deleted_rows(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(export.folder.parent)
    export.write("events_20240101", [hit(1), hit(2)])
    export.load()
    export.write("events_20240101", [hit(2), hit(3), hit(4)])
    said = CliRunner().invoke(app, ["load", str(export.mapping)])
    assert "app.ga4_events events_20240101.jsonl: 2 rows, 1 unchanged, 1 deleted" in said.stdout
    export.write("events_20240101", [hit(2)])
    said = CliRunner().invoke(app, ["ingest", str(export.mapping), "--json"])
    [file] = json.loads(said.stdout)["files"]
    assert (file["rows"], file["unchanged"], file["gone"]) == (0, 1, 2)


@pytest.mark.parametrize(
    ("table", "entry", "message"),
    [
        ("events", {"replaces": "day_[0-9]+"}, "tables.events.replaces: 'day_[0-9]+' has no groups; write one, around"),
        ("events", {"replaces": "day_(["}, "tables.events.replaces: 'day_([' is not a regular expression"),
        ("events", {"replaces": 3}, "tables.events.replaces: write a regular expression, or a list of them"),
        ("customers", {"replaces": "(day)"}, "tables.customers.replaces: customers keep their history"),
        (
            "events",
            {"replaces": "(day)", "files": None, "stream": {"folder": "x"}},
            "replaces: this does not go with stream",
        ),
    ],
)
def test_a_mapping_that_cannot_replace_says_why(
    tmp_path: Path, table: str, entry: dict[str, Any], message: str
) -> None:
    fields = {"events": {"event_type": "t", "event_at": "at", "user_id": "u"}, "customers": {"customer_id": "u"}}
    said = {"files": "a.csv", "available_at": "now", "fields": fields[table], **entry}
    path = tmp_path / "shop.yml"
    path.write_text(yaml.safe_dump({"source": "shop", "tables": {table: {k: v for k, v in said.items() if v}}}))
    with pytest.raises(FinegrainError) as caught:
        read_mapping(path)
    assert message in str(caught.value)


def test_entries_of_a_table_agree_on_what_they_replace(tmp_path: Path) -> None:
    entry = {"files": "a.jsonl", "available_at": "event_time"}
    path = tmp_path / "ga4.yml"
    path.write_text(yaml.safe_dump({"source": "app", "tables": {"ga4_events": [entry, {**entry, "replaces": []}]}}))
    with pytest.raises(FinegrainError, match=r"tables.ga4_events: its entries differ in replaces; write the same"):
        read_mapping(path)
