"""Ctrl-C and SIGTERM, sent to real processes in the middle of their work: one line, the correct exit code, nothing half
done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
import pytest
import yaml

from orchestration.config.settings import Settings
from orchestration.lake import lake

#: Enough rows to take seconds to load, on any machine.
MANY = 2_000_000


def is_locked(home: Settings) -> bool:
    """Whether a load has begun."""
    return any((home.home / "lake").glob("load-*.lock"))


def hear_ctrl_c() -> None:
    """A child of a script's `&` ignores SIGINT, and so would its own children; after Dagster ran in this process, also
    SIGTERM."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def begin(*arguments: str, folder: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def wait(process: subprocess.Popen[str], holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(process: subprocess.Popen[str], number: signal.Signals, says: str) -> None:
    """The signal ends the process quickly, with its exit code and its one line; progress lines may come before it."""
    process.send_signal(number)
    sent = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, (out, err)
    *progress, last = err.splitlines()
    assert last.startswith("stopped; ") and says in last, err
    assert all(" % after " in line for line in progress), err
    assert out == ""
    assert time.monotonic() - sent < 12  # of PATIENCE, which is the last resort


def held(home: Settings) -> int:
    """Rows in the lake."""
    if not lake.exists(home):
        return 0
    with lake.connect(home, read_only=True) as con:
        [(rows,)] = con.execute(
            "select (select count(*) from lake.raw.events) + (select count(*) from lake.raw.loads)"
        ).fetchall()
        return int(rows)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a big file of events and a small one, and a mapping of each."""
    folder = tmp_path_factory.mktemp("big")
    for name, count in (("big", MANY), ("small", 10)):
        duckdb.connect().execute(
            f"copy (select 'login' as t, '2024-03-02 10:00:00' as at, 'u' || i % 5000 as u, i as e from range({count}) as r(i)) "
            f"to '{folder / name}.csv' (header)"
        )
        entry = {"files": f"{name}.csv", "available_at": "event_time"}
        entry["fields"] = {"event_type": "t", "event_at": "at", "user_id": "u", "event_id": "e"}  # type: ignore[assignment]
        (folder / f"{name}.yml").write_text(yaml.safe_dump({"source": name, "tables": {"events": entry}}))
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", ["the look", "the rows"])
def test_a_load_that_is_stopped_lands_nothing(home: Settings, big: Path, number: signal.Signals, at: str) -> None:
    process = begin("-m", "orchestration.cli", "load", "big.yml", folder=big)
    if at == "the look":
        wait(process, partial(is_locked, home))
    else:
        wait(process, lambda: any(home.home.rglob("*.parquet")))
    stop(process, number, "mappings that had not finished have not landed at all")
    assert held(home) == 0
    after = begin("-m", "orchestration.cli", "load", "small.yml", "--json", folder=big)  # no lock is left
    out, err = after.communicate(timeout=60)
    assert (after.returncode, err) == (0, "") and json.loads(out)["rows"] == 10


def test_a_doctor_that_is_stopped(home: Settings, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    process = begin("-m", "orchestration.cli", "doctor", "big.yml", folder=big)
    wait(process, lambda: any((tmp_path / "scratch").iterdir()))
    time.sleep(0.5)
    stop(process, signal.SIGINT, "nothing was changed")
    assert not any((tmp_path / "scratch").iterdir()) and not home.home.exists()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_stopped_can_be_built_again(
    built_shop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    shutil.copytree(built_shop.home, tmp_path / "home")
    monkeypatch.setenv("FINEGRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FINEGRAIN_EXTENSIONS", str(built_shop.extensions))
    log = tmp_path / "home" / "logs" / "dbt.log"
    log.unlink(missing_ok=True)
    process = begin("-m", "orchestration.cli", "build", "--full-refresh")
    wait(process, lambda: log.exists() and "OK created" in log.read_text("utf-8"))
    # "leaked semaphore objects", and dbt's stack trace, would be further lines.
    stop(process, number, "the warehouse is incomplete, and the published marts are unchanged")
    refused = begin("-m", "orchestration.cli", "publish")
    assert "did not end" in refused.communicate(timeout=60)[1] and refused.returncode == 2
    if number == signal.SIGINT:
        after = begin("-m", "orchestration.cli", "build", "--json")
        out, _ = after.communicate(timeout=900)
        assert after.returncode == 0 and json.loads(out)["passed"]


SCRIPT = """
import time
from orchestration.errors import stopping
stopping.PATIENCE = {patience}
with stopping.in_order(lambda: "as it was"):
    print("begun", flush=True)
    {body}
"""
#: A library that swallows one interrupt, and goes on; and one that swallows all.
SWALLOWS_ONE = "\n    ".join(
    ["try:", "    time.sleep(60)", "except BaseException:", "    pass", "while True:", "    time.sleep(0.01)"]
)
SWALLOWS_ALL = "\n    ".join(
    ["while True:", "    try:", "        time.sleep(60)", "    except BaseException:", "        pass"]
)
#: Cleaning up is not interrupted, even if it is slow.
SLOW = "\n    ".join(
    ["try:", "    time.sleep(60)", "finally:", "    time.sleep(2)", "    print('in order', flush=True)"]
)

#: Like the creation of dataclasses while modules are imported.
WITHIN_EXEC = "exec('time.sleep(60)')"


@pytest.mark.parametrize(
    ("body", "patience", "rest"),
    [(SWALLOWS_ONE, 30, ""), (SWALLOWS_ALL, 1, ""), (SLOW, 30, "in order\n"), (WITHIN_EXEC, 30, "")],
    ids=["swallows one", "swallows all", "slow", "within exec"],
)
def test_whatever_happens_to_the_interrupt(tmp_path: Path, body: str, patience: int, rest: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(body=body, patience=patience))
    process = begin("-m", "script", folder=tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(0.5)  # until it sleeps
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (143, rest, "stopped; as it was\n")


def test_a_second_signal_ends_at_once() -> None:
    process = begin("-c", SCRIPT.format(body=SLOW.replace("sleep(2)", "sleep(60)"), patience=300))
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    # Not a multiple of stopping.PAUSE: a signal at the time of a repeated interrupt would be taken for that interrupt.
    time.sleep(0.9)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "stopped; as it was\n")


def test_ignored_signals_stay_ignored(big: Path, home: Settings) -> None:
    """As by nohup, and in a script's `&`."""
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    process = begin("-c", code, "-m", "orchestration.cli", "load", "small.yml", "--json", folder=big)
    wait(process, partial(is_locked, home))
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "") and json.loads(out)["rows"] == 10
