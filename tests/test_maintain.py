"""Upkeep of the lake changes no row and no change feed that a build may read, and does not disturb other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest
import streams
from small_shops import Homes, Row, ShopMaker, differences, land

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.lake import lake
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.warehouse.build import needs_full_refresh
from orchestration.warehouse.maintain import _is_passing, _step, maintain

NOW = timedelta(0)
#: Longer than any statement here takes: a reader of a snapshot that expires misses rows.
SOON = timedelta(seconds=5)
#: Upkeep again and again, more often than the command allows.
UPKEEP = """
import time
from datetime import timedelta
from orchestration.warehouse.maintain import maintain

while True:
    maintain(timedelta(seconds={seconds}))
    time.sleep(0.1)
"""
wait = partial(streams.wait, seconds=90)
TABLES = (*RAW_TABLES, *lake.BOOKKEEPING)


def rows_of(seed: int, events: int = 160) -> list[Row]:
    """A small shop, shuffled."""
    random = Random(seed)
    rows = ShopMaker(random).shop(events)
    return random.sample(rows, k=len(rows))


def land_in_commits(where: Settings, rows: list[Row], commits: int) -> None:
    """Several commits, of one row and of many: those of few rows are in the catalogue, the others in a file each."""
    for number in range(commits):
        land(where, rows[number::commits])
        land(where, [rows[number].again(position=f"alone {number}")])


def contents(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """All rows of every table of the lake, with their ids and the snapshots they came in."""
    return {
        table: sorted(
            map(str, con.execute(f"select rowid, snapshot_id, to_json(t) from lake.raw.{table} as t").fetchall())
        )
        for table in TABLES
    }


def feed(con: duckdb.DuckDBPyConnection, table: str, first: int, last: int) -> list[str]:
    """The rows that came into a table from one snapshot to another, both included."""
    found = con.execute(
        f"select rowid, snapshot_id, to_json(t) from ducklake_table_insertions('lake', 'raw', '{table}', {first}, {last}) as t"
    )
    return sorted(map(str, found.fetchall()))


def snapshots(where: Settings) -> list[int]:
    con = lake.connect(where, read_only=True)
    try:
        return [int(number) for (number,) in con.execute("select snapshot_id from lake.snapshots()").fetchall()]
    finally:
        con.close()


def parquet(where: Settings) -> list[Path]:
    assert isinstance(where.lake_data, Path)
    return list(where.lake_data.rglob("*.parquet"))


def test_fewer_files_and_the_same_rows(catalogue: Settings) -> None:
    rows = rows_of(1, 600)
    land_in_commits(catalogue, rows, 8)
    with lake.connect(catalogue, read_only=True) as con:
        before = contents(con)
        known = snapshots(catalogue)
        spans = [(a, b) for a in known[len(known) // 2 :: 4] for b in (a, known[-1])]
        feeds = {(table, *span): feed(con, table, *span) for table in ("events", "orders") for span in spans}
    done = maintain(where=catalogue)
    assert done.files_after < done.files_before
    assert (done.snapshots_expired, done.files_removed, done.notes) == (0, 0, [])  # all is younger than seven days
    with lake.connect(catalogue, read_only=True) as con:
        assert contents(con) == before
        assert {key: feed(con, *key) for key in feeds} == feeds
        # Compared with the landed rows, not with the lake's earlier answer.
        landed = [(row.table, row.source, row.landed()["payload"]) for row in [*rows, *rows[:8]]]
        found = [
            row
            for table in RAW_TABLES
            for row in con.execute(f"select '{table}', _source, payload from lake.raw.{table}").fetchall()
        ]
        assert sorted(found) == sorted(landed)
    assert set(known) <= set(snapshots(catalogue))
    again = maintain(where=catalogue)
    assert again.files_before == again.files_after == done.files_after


def test_it_ends_though_files_come_faster_than_they_are_merged(
    catalogue: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(3)
    land_in_commits(catalogue, rows, 4)
    merges = 0

    def step(con: duckdb.DuckDBPyConnection, where: Settings, call: str, *more: Any) -> list[tuple[Any, ...]]:
        nonlocal merges
        if "merge_adjacent" in call and "'events'" in call:
            merges += 1
            assert merges < 10, "upkeep does not end"
            land(where, [row.again(position=f"{row.position} again {merges}") for row in rows])
            land(where, [row.again(position=f"{row.position} once more {merges}") for row in rows])
        return _step(con, where, call, *more)

    monkeypatch.setattr("orchestration.warehouse.maintain._step", step)
    assert maintain(where=catalogue).notes == []
    assert merges > 1
    with lake.connect(catalogue, read_only=True) as con:
        [(found,)] = con.execute("select count(*) from lake.raw.events").fetchall()
    events = sum(row.table == "events" for row in rows)
    assert found == events * (1 + 2 * merges) + sum(row.table == "events" for row in rows[:4])


def test_old_files_that_no_snapshot_uses_are_removed(catalogue: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    land_in_commits(catalogue, rows_of(2), 6)
    kept = parquet(catalogue)
    # Like the file of a writer that was killed, or that is about to commit.
    young, old = kept[0].with_name("young.parquet"), kept[0].with_name("old.parquet")
    for orphan in (young, old):
        orphan.write_bytes(kept[0].read_bytes())
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    with lake.connect(catalogue, read_only=True) as con:
        before = contents(con)
        done = maintain(NOW, catalogue)
        assert done.snapshots_expired > 0 and done.files_removed == 1
        assert young.exists() and not old.exists()
        # A reader that began earlier may be slow.
        assert set(kept) <= set(parquet(catalogue))
        assert contents(con) == before
    monkeypatch.setattr("orchestration.warehouse.maintain.PATIENCE", NOW)
    assert maintain(NOW, catalogue).files_removed > len(kept) / 2
    assert not young.exists() and len(parquet(catalogue)) == done.files_after
    with lake.connect(catalogue, read_only=True) as con:
        assert contents(con) == before


@pytest.mark.soak
def test_builds_go_on_exactly(homes: Homes) -> None:
    """Loaded, maintained and built in turn, some builds left out: the result equals a build from scratch."""
    rows = rows_of(3)
    where = homes.make("kept_up")
    third = len(rows) // 3
    land_in_commits(where, rows[:third], 4)
    homes.run(where)
    land_in_commits(where, rows[third : 2 * third], 4)
    assert maintain(NOW, where).snapshots_expired > 0
    land_in_commits(where, rows[2 * third :], 4)
    maintain(NOW, where)  # twice since the last build
    stale = homes.beside(where)
    homes.run(where)
    maintain(NOW, where)
    assert not needs_full_refresh(where)
    rebuilt = homes.beside(where)
    homes.run(rebuilt, "--full-refresh")
    assert differences(where, rebuilt) == []
    # Upkeep only knows its own home's warehouse; another one that shares the lake, and was not built for long, stays correct.
    assert needs_full_refresh(stale)


def test_what_must_be_kept_is_kept(homes: Homes) -> None:
    where = homes.make("kept")
    before = snapshots(where)
    land_in_commits(where, rows_of(4, 40), 3)
    known = snapshots(where)
    with duckdb.connect(str(where.warehouse)) as con:
        read = before[-1] + 2  # as if the last build had read up to here
        con.execute(f"update main.watermarks set snapshot = {known[-1]}")
        con.execute(f"update main.watermarks set snapshot = {read} where model = 'int_tiles__product'")
    with lake.connect(where, read_only=True) as con:
        feeds = {table: feed(con, table, read + 1, known[-1]) for table in RAW_TABLES}
    assert maintain(timedelta(days=7), where).snapshots_expired == 0
    assert set(known) <= set(snapshots(where))
    assert maintain(NOW, where).snapshots_expired > 0
    left = set(snapshots(where))
    assert {number for number in known if number >= read} <= left
    with lake.connect(where, read_only=True) as con:
        assert {table: feed(con, table, read + 1, known[-1]) for table in RAW_TABLES} == feeds
        # The last arrival is known even for a table without new rows for a long time.
        arrivals = [con.execute(f"select max(snapshot_id) from lake.raw.{table}").fetchone() for table in RAW_TABLES]
    last = {number for (number,) in filter(None, arrivals) if number is not None}
    assert last <= left
    assert not {number for number in known if number < read} & left - {before[-1]} - last


#: Counts rows in the catalogue while rows land and upkeep runs; none may vanish.
READER = """
from orchestration.lake import lake

con = lake.connect(read_only=True)
before = looks = 0
while before < 50:
    [(count,)] = con.execute("select count(*) from lake.raw.loads").fetchall()
    assert count >= before, (count, before)
    before, looks = count, looks + 1
print(looks)
"""


def test_a_reader_meanwhile_misses_nothing(catalogue: Settings) -> None:
    con = lake.connect(catalogue)
    reader = subprocess.Popen([sys.executable, "-c", READER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        number = 0
        while reader.poll() is None:
            for _ in range(5):
                with lake.writing(con, catalogue):
                    con.execute(f"insert into lake.raw.loads (source) values ('{number}')")
                number += 1
            maintain(NOW, catalogue)
        out, err = reader.communicate()
    finally:
        reader.kill()
        con.close()
    assert reader.returncode == 0, err
    assert int(out) > 20


def test_a_reader_waits_while_rows_are_moved(home: Settings) -> None:
    """A statement on a SQLite catalogue; and upkeep waits for statements, even if others begin one after the other."""
    looks = list[float]()

    def look() -> None:
        while len(looks) < 3 or not moved.is_set():
            con_of_mine = lake.connect(home, read_only=True)
            for _ in range(3):
                assert con_of_mine.execute("select count(*) from lake.raw.events").fetchall() == [(0,)]
            looks.append(time.monotonic())

    def move_once() -> None:
        with lake.reading(home, compacting=True):
            pass

    lake.connect(home).close()
    con, moved = lake.connect(home, read_only=True), threading.Event()
    answered = threading.Event()
    reader = threading.Thread(target=lambda: (con.execute("select count(*) from lake.raw.events"), answered.set()))
    with lake.reading(home, compacting=True):
        reader.start()
        assert not answered.wait(0.5)
    assert answered.wait(30)
    reader.join()
    # Readers do not block each other, and a reader that holds the lock around several statements does not block itself, though upkeep waits.
    upkeep = threading.Thread(target=move_once)
    with lake.reading(home):
        upkeep.start()
        for _ in range(20):
            assert con.execute("select count(*) from lake.raw.events").fetchall() == [(0,)]
        assert upkeep.is_alive()
    upkeep.join()
    readers = [threading.Thread(target=look, daemon=True) for _ in range(3)]
    for each in readers:
        each.start()
    wait(lambda: len(looks) >= 3)
    for _ in range(10):
        move_once()
    moved.set()
    for each in readers:
        each.join()
    con.close()


#: Reads a table of files, like `finegrain report` and `doctor`, a thousand times; no read may show less than the one before.
LOOKER = """
from orchestration.lake import lake

seen = 0
for _ in range(10):
    with lake.connect(read_only=True) as con:
        for _ in range(100):
            [(count,)] = con.execute("select count(distinct _position) from lake.raw.events").fetchall()
            assert count >= seen, (count, seen)
            seen = count
"""


@pytest.mark.soak
def test_no_read_during_upkeep_shows_less_than_was_committed(home: Settings) -> None:
    """Thousands of reads, next to a loader and continuous upkeep, on a SQLite catalogue."""
    con, number = lake.connect(home), 0

    def land_some() -> None:
        nonlocal number
        for _ in range(4):
            with lake.writing(con, home):
                rows = f"select '{number}-' || i as _position from range(50) as t(i)"
                con.execute(f"insert into lake.raw.events by name {rows}")
            number += 1

    land_some()
    lookers = [subprocess.Popen([sys.executable, "-c", LOOKER], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        rounds = 0
        while any(each.poll() is None for each in lookers):
            land_some()
            assert maintain(where=home).notes == []
            rounds += 1
        outputs = [each.communicate() for each in lookers]
    finally:
        for each in lookers:
            each.kill()
    assert [err for _, err in outputs] == ["", ""]
    assert rounds > 10
    con.close()


def test_a_build_misses_no_rows_that_are_moved_while_it_reads(catalogue: Settings, tmp_path: Path) -> None:
    """On a SQLite catalogue, a transaction that has begun to read would not find the entry of a file that was merged
    since."""
    con, build = lake.connect(catalogue), lake._engine(catalogue)

    def land_events(number: int) -> None:
        rows = f"select '{number}-' || i as _position from range(50) as t(i)"
        with lake.writing(con, catalogue):
            con.execute(f"insert into lake.raw.events by name {rows}")

    for number in range(3):
        land_events(number)
    lake.attach_copy(build, catalogue, tmp_path)
    build.execute("begin")
    [(pinned,)] = build.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
    assert build.execute("select count(*) from lake.raw.customers").fetchall() == [(0,)]
    land_events(3)
    with lake.writing(con, catalogue):
        con.execute("insert into lake.raw.customers by name select 'c' || i as _position from range(50) as t(i)")
    done = maintain(where=catalogue)
    assert done.files_after < done.files_before
    for table in ("lake.raw.events", f"ducklake_table_insertions('lake', 'raw', 'events', 0, {pinned})"):
        assert build.execute(f"select sum(1), count(distinct _position) from {table}").fetchall() == [(150, 150)]
    build.execute("commit")
    build.close(), con.close()


def test_old_positions_do_not_accumulate(catalogue: Settings) -> None:
    """Whatever a catalogue keeps of deleted rows, it is deleted once no snapshot shows it."""
    con = lake.connect(catalogue)

    def inlined() -> int:
        """Rows of positions in the catalogue, live or deleted."""
        metadata = "__ducklake_metadata_lake"
        [(table,)] = con.execute(
            f"select i.table_name from {metadata}.ducklake_inlined_data_tables as i "
            f"inner join {metadata}.ducklake_table as t using (table_id) where t.table_name = 'positions'"
        ).fetchall()
        [(count,)] = con.execute(f"select count(*) from {metadata}.{table}").fetchall()
        return int(count)

    for number in range(20):
        with lake.writing(con, catalogue):
            con.execute("delete from lake.raw.positions")
            con.execute(f"insert into lake.raw.positions (source, position) values ('shop', '{number}')")
    assert inlined() == 20
    maintain(where=catalogue)
    assert con.execute("select position from lake.raw.positions at (version => 12)").fetchall() != []
    maintain(NOW, catalogue)
    assert inlined() <= 1
    assert con.execute("select source, position from lake.raw.positions").fetchall() == [("shop", "19")]
    con.close()


#: Moves a position again and again, like a loader, until it is stopped; then it prints how often.
MOVER = """
import sys, threading
from datetime import datetime
from orchestration.lake import lake
from orchestration.lake.positions import Position, Stream, move
from orchestration.config.settings import settings

where, con, at, count = settings(), lake.connect(), None, 0
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()

def work():
    with lake.writing(con, where):
        move(con, Stream("shop", "events", "kafka:t"), {"0": (at, to)}, datetime(2025, 3, 2))

while not stop.is_set():
    to = Position("0", str(count + 1), None, "me")
    lake.retry(work)
    at, count = to, count + 1
    if count == 1:
        print(flush=True)
print(count)
"""


@pytest.mark.long
def test_upkeep_leaves_no_files_of_positions(catalogue: Settings) -> None:
    """However often it runs next to a loader; files that earlier versions left are merged."""
    con = lake.connect(catalogue)

    def files() -> int:
        [(data, deletes)] = con.execute(
            "select file_count, delete_file_count from ducklake_table_info('lake') where table_name = 'positions'"
        ).fetchall()
        return int(data) + int(deletes)

    mover = subprocess.Popen([sys.executable, "-c", MOVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert mover.stdout and mover.stdin and mover.stdout.readline() == "\n"
        for _ in range(3):
            maintain(NOW, catalogue)
            assert files() == 0
        count = int(mover.communicate("", timeout=60)[0])
    finally:
        mover.kill()
    assert mover.returncode == 0
    assert con.execute("select part, position from lake.raw.positions").fetchall() == [("0", str(count))]
    for number in range(3):  # as earlier versions of upkeep did
        with lake.writing(con, catalogue):
            con.execute("delete from lake.raw.positions")
            con.execute(f"insert into lake.raw.positions (source, position) values ('shop', '{number}')")
            con.execute("delete from lake.raw.positions")
            con.execute(f"insert into lake.raw.positions (source, position) values ('shop', '{number}')")
        con.execute("call ducklake_flush_inlined_data('lake', schema_name => 'raw', table_name => 'positions')")
    with lake.writing(con, catalogue):
        con.execute("update lake.raw.positions set position = '3'")
    assert files() > 4
    assert maintain(NOW, catalogue).notes == [] and files() <= 2
    assert con.execute("select source, position from lake.raw.positions").fetchall() == [("shop", "3")]
    con.close()


def test_a_file_that_vanishes_during_the_check_is_left_to_the_next_upkeep(home: Settings) -> None:
    """A writer that gives up removes its files, which DuckLake may have listed. Files that a snapshot uses must
    exist."""
    con, notes = lake.connect(home), list[str]()
    call = "copy (select 1) to '/nowhere/file.parquet'"
    assert _step(con, home, call, notes, _is_passing) == []
    assert notes == [f"other writers kept committing first, so this step is left to the next run: {call}"]
    with pytest.raises(duckdb.IOException):
        _step(con, home, call, notes, lake.busy)
    con.close()


class Held:
    """Locks a warehouse like a build does, in a process of its own."""

    def __init__(self, where: Settings) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import duckdb; con = duckdb.connect({str(where.warehouse)!r}); print(1); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "1\n"

    def let_go(self) -> None:
        self.process.communicate("\n", timeout=60)


def test_a_warehouse_that_is_being_built_is_left_alone(homes: Homes) -> None:
    where = homes.make("held")
    land_in_commits(where, [row for row in rows_of(5) if row.table == "events"], 4)
    known = snapshots(where)
    held = Held(where)
    try:
        done = maintain(NOW, where)
    finally:
        held.let_go()
    assert done.files_after < done.files_before and done.snapshots_expired == 0
    [note] = done.notes
    assert "the warehouse is being built" in note
    assert set(known) <= set(snapshots(where))
    later = maintain(NOW, where)
    assert later.snapshots_expired > 0 and later.notes == []


class Lines(threading.Thread):
    """Numbered events into two files of a folder, until `stop`; `sent` of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.sent, self.stopping = folder, 0, threading.Event()
        folder.mkdir()

    def run(self) -> None:
        while not self.stopping.wait(0.02):
            for name in ("one.jsonl", "other.jsonl"):
                event = {"event_type": "login", "event_at": "2025-03-02T10:15:30Z", "user_id": "ann"}
                lines = [json.dumps({**event, "event_id": str(self.sent + n)}) for n in range(20)]
                with (self.folder / name).open("a") as file:
                    file.write("\n".join(lines) + "\n")
                self.sent += 20


def counted(where: Settings) -> tuple[int, int]:
    """Events in the lake, and the number of different ones; each stream numbers its own from 0."""
    con = lake.connect(where, read_only=True)
    try:
        [(rows, distinct)] = con.execute(
            "select count(*), count(distinct (_source, event_id)) from lake.raw.events"
        ).fetchall()
        return int(rows), int(distinct)
    finally:
        con.close()


@pytest.fixture
def begin(request: pytest.FixtureRequest) -> Callable[..., subprocess.Popen[str]]:
    """Starts Python, which ends with the test at the latest."""

    def begin(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        request.addfinalizer(process.kill)
        return process

    return begin


@pytest.mark.soak
def test_beside_loaders_and_another_upkeep(
    catalogue: Settings, tmp_path: Path, begin: Callable[..., subprocess.Popen[str]], request: pytest.FixtureRequest
) -> None:
    """Two loaders and two upkeeps run repeatedly; then every event is once in the lake, and no process had trouble. On
    a busy machine an upkeep says that it waits for the other."""
    lake.connect(catalogue).close()
    streams = {name: Lines(tmp_path / name) for name in ("north", "south")}
    loaders = []
    for name, lines in streams.items():
        entry = {"stream": {"folder": str(lines.folder)}, "available_at": "now"}
        mapping = tmp_path / f"{name}.yml"
        mapping.write_text(json.dumps({"source": name, "tables": {"events": entry}}))
        loaders.append(begin("-m", "orchestration.cli", "stream", str(mapping), "--age", "0.2", "--json"))
        request.addfinalizer(lines.stopping.set)
        lines.start()
    upkeep = begin("-c", UPKEEP.format(seconds=SOON.total_seconds()))
    done, seen = [], 0
    wait(lambda: counted(catalogue)[0] > 0)
    while len(done) < 3 or not any(each.snapshots_expired for each in done):
        done.append(maintain(SOON, catalogue))
        rows, distinct = counted(catalogue)
        assert rows == distinct and rows >= seen
        seen = rows
        wait(lambda so_far=rows: counted(catalogue)[0] > so_far)
    for lines in streams.values():
        lines.stopping.set()
        lines.join()
    sent = sum(each.sent for each in streams.values())
    wait(lambda: counted(catalogue)[0] == sent or any(each.poll() is not None for each in loaders))
    for process in (*loaders, upkeep):
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert {line for line in err.splitlines() if not line.startswith("waiting for another finegrain")} == set(), err
        assert process.returncode == (0 if process is not upkeep else -signal.SIGTERM), out
        if process is not upkeep:
            assert json.loads(out.splitlines()[-1])["trouble"] is None
    with lake.connect(catalogue, read_only=True) as con:
        found = con.execute(
            "select _source, count(*), count(distinct event_id) from lake.raw.events group by 1 order by 1"
        ).fetchall()
    assert found == [(name, each.sent, each.sent) for name, each in streams.items()]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "lake", "maintain", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command(home: Settings, tmp_path: Path) -> None:
    land_in_commits(home, rows_of(6, 40), 4)
    done = cli()
    assert done.returncode == 0 and done.stderr == ""
    assert "files became" in done.stdout and ", 0 snapshots expired, 0 files removed, in " in done.stdout
    as_json = json.loads(cli("--json", "--keep-days", "0.05").stdout)
    assert as_json["snapshots_expired"] == 0 and as_json["files_before"] == as_json["files_after"] > 0
    for option, value in (
        *(("--keep-days", value) for value in ("a week", "-1", "0", "0.04", "1e12", "inf", "nan")),
        *(("--every", value) for value in ("0", "nan", "inf")),
    ):
        wrong = cli(option, value)
        assert wrong.returncode == 2 and wrong.stdout == ""
        assert "Traceback" not in wrong.stderr and option in wrong.stderr.splitlines()[-1]
    assert isinstance(home.lake_catalog, Path)
    home.lake_catalog.write_text("no catalogue")
    broken = cli()
    assert broken.returncode == 2 and broken.stderr.startswith(f"error: {home.lake_catalog}: cannot open the lake: ")
    assert len(broken.stderr.splitlines()) == 1
    with pytest.raises(FinegrainError, match=r"cannot open the lake"):
        maintain(where=replace(home, lake_catalog=home.lake_catalog))
