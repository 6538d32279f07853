"""Each day of the feature history can be read at any time, even if a process is killed while the day is written
again."""

from __future__ import annotations

import itertools
import shutil
import time
from multiprocessing import get_context
from pathlib import Path
from random import Random

import duckdb

from orchestration.features.history import LOCK, _put, _tidy
from orchestration.lake.locks import one_at_a_time, scratch
from orchestration.warehouse.publish import DRAFT

DAYS = ["day=2025-03-30", "day=2025-03-31", "day=2025-04-01"]
MARTS = ("item_features", "user_features")


def write(published: Path, numbered: Path, first: int) -> None:
    """Write days over and over; all marts of a day have the same number."""
    with one_at_a_time(published / LOCK):
        _tidy(published)
    with scratch(published, DRAFT) as folder:
        for number, day in enumerate(itertools.cycle(DAYS), first):
            draft = folder / "day"
            draft.mkdir()
            for mart in MARTS:
                shutil.copyfile(numbered / f"{number % 100}.parquet", draft / f"{mart}.parquet")
            with one_at_a_time(published / LOCK):
                _put(draft, published, day)
            time.sleep(0.02)  # like one build: a reader must have found its files in the meantime


def names(folder: Path) -> list[str]:
    """What a reader finds in a folder."""
    return sorted(path.name for path in folder.iterdir())


def days_of(history: Path) -> list[str]:
    """What the link shows. A reader that two writes overtake looks again: the version it reads may be removed by then."""
    while True:
        version = history.readlink()
        found = names(history)
        if history.readlink() == version:
            return found


def put(published: Path, day: str, number: int) -> None:
    draft = published / ".draft"
    draft.mkdir(parents=True)
    with duckdb.connect() as con:
        for mart in MARTS:
            con.execute(f"copy (select {number} as n from range(9)) to '{draft}/{mart}.parquet' (format parquet)")
    _put(draft, published, day)


def look(con: duckdb.DuckDBPyConnection, published: Path, pattern: str = "day=*/*.parquet") -> dict[str, set[int]]:
    """By day the numbers in it, as a reader finds them by a glob; all rows must exist."""
    found = con.execute(
        f"select day::varchar, count(*), list(distinct n) from read_parquet('{published}/history/{pattern}', hive_partitioning = true) group by 1"
    ).fetchall()
    assert all(rows == 9 * len(MARTS) for _, rows, _ in found), found
    return {f"day={day}": set(numbers) for day, _, numbers in found}


def test_kills_lose_no_day_and_leave_nothing_behind(tmp_path: Path) -> None:
    published = tmp_path / "published"
    for day in DAYS:
        put(published, day, 0)
    numbered = tmp_path / "numbered"
    numbered.mkdir()
    random, con = Random(11), duckdb.connect()
    for number in range(100):
        con.execute(f"copy (select {number} as n from range(9)) to '{numbered}/{number}.parquet' (format parquet)")
    seen = set()
    for kill in range(30):
        process = get_context("fork").Process(target=write, args=(published, numbered, random.randrange(100)))
        process.start()
        until = time.monotonic() + random.uniform(0.02, 0.4)
        while time.monotonic() < until:
            assert days_of(published / "history") == DAYS, kill
        process.kill()
        process.join()
        found = look(con, published)
        assert sorted(found) == DAYS and all(len(numbers) == 1 for numbers in found.values()), kill
        assert look(con, published, "**/*.parquet") == found
        seen |= found[DAYS[0]]
    assert len(seen) > 10  # some writes were finished
    put(published, DAYS[1], 107)
    with one_at_a_time(published / LOCK), scratch(published, DRAFT):  # as at the start of the next build
        _tidy(published)
    assert names(published) == [".history", ".history.lock", "history"]
    assert len(names(published / ".history")) == 2
    assert look(con, published) == {**found, DAYS[1]: {107}}


def test_a_history_from_before_there_was_a_link(tmp_path: Path) -> None:
    """It becomes the version that the link points to, also after a kill in between."""
    put(tmp_path, DAYS[0], 1)
    (tmp_path / "history").resolve().rename(tmp_path / "old")
    (tmp_path / "history").unlink()
    (tmp_path / "old").rename(tmp_path / "history")
    (tmp_path / "history" / ".draft-7").mkdir()
    con = duckdb.connect()
    _tidy(tmp_path)
    assert (tmp_path / "history").is_symlink() and look(con, tmp_path) == {DAYS[0]: {1}}
    (tmp_path / "history").unlink()  # as if it was killed before the link was created
    _tidy(tmp_path)
    assert look(con, tmp_path) == {DAYS[0]: {1}}
    put(tmp_path, DAYS[1], 2)
    assert look(con, tmp_path) == {DAYS[0]: {1}, DAYS[1]: {2}}
    assert names(tmp_path / "history") == DAYS[:2]
    assert names(tmp_path / ".history") == ["0", "1"]
