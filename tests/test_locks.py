"""Folders that are removed with their process, also if it is killed; never those of a running process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from random import Random

import duckdb
import pytest

from orchestration.config.settings import Settings
from orchestration.lake import lake
from orchestration.lake.locks import scratch

#: Creates folders again and again, and checks the content of each; prints a line when it has its first.
HOLDER = """
import sys, time
from pathlib import Path
from orchestration.lake.locks import scratch

while True:
    with scratch(Path(sys.argv[1]), ".draft-") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text("mine")
        print(folder, flush=True)
        time.sleep(float(sys.argv[2]))
        assert (folder / "inside" / "file").read_text() == "mine"
"""


def holder(parent: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(parent), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_leftovers_of_a_killed_process_are_removed_at_the_next_start(tmp_path: Path) -> None:
    process = holder(tmp_path, 600)
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    other = tmp_path / "of-somebody-else"
    other.mkdir()
    with scratch(tmp_path, ".draft-") as folder:
        assert set(tmp_path.iterdir()) == {left, folder, other} and (left / "inside" / "file").exists()
    process.kill()
    process.communicate()
    assert left.exists()
    with scratch(tmp_path, ".draft-") as folder:
        assert set(tmp_path.iterdir()) == {folder, other}
    assert list(tmp_path.iterdir()) == [other]


def test_many_processes_that_are_killed_do_not_affect_each_other(tmp_path: Path) -> None:
    random, killed = Random(7), 0
    processes = [holder(tmp_path, 0.003) for _ in range(4)]
    until = time.monotonic() + 8
    while time.monotonic() < until:
        time.sleep(random.uniform(0.1, 0.5))
        number = random.randrange(len(processes))
        assert processes[number].poll() is None, processes[number].communicate()[1]
        processes[number].kill()
        processes[number].communicate()
        processes[number] = holder(tmp_path, 0.003)
        killed += 1
    for process in processes:
        process.kill()
        process.communicate()
    assert killed > 5
    with scratch(tmp_path, ".draft-") as folder:
        assert list(tmp_path.iterdir()) == [folder]


#: Spills data to disk; two processes that do so in one folder overwrite each other's files.
SPILLER = """
from orchestration.lake import lake
from orchestration.config.settings import settings

con = lake._engine(settings())
con.execute("set memory_limit = '80MB'")
con.execute("set threads = 1")
con.execute("create temp table t as select md5(i::varchar) as b from range(2_000_000) as r(i)")
print(con.execute("select count(*), bit_xor(hash(b)) from t").fetchall())
"""


def test_two_processes_that_spill_use_different_folders(home: Settings) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", SPILLER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    with duckdb.connect() as con:
        wanted = con.execute("select count(*), bit_xor(hash(md5(i::varchar))) from range(2_000_000) as r(i)").fetchall()
    assert [out.splitlines()[-1] for out, _ in outputs] == [str(wanted)] * 2
    assert list((home.home / "spill").iterdir()) == []


@pytest.mark.parametrize("closes", [True, False])
def test_a_connection_removes_its_folder(home: Settings, closes: bool) -> None:
    con = lake.connect(home)
    assert len(list((home.home / "spill").iterdir())) == 1
    if closes:
        con.close()
    del con
    assert list((home.home / "spill").iterdir()) == []
