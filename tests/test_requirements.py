"""The lock files: the same versions in all, hashes and no host; and finegrain without the extra `dagster`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

LOCKS = ("requirements.lock", "requirements-dagster.lock", "requirements-store.lock", "requirements-dev.lock")
DAGSTER = {"dagster", "dagster-dbt", "dagster-postgres", "dagster-webserver"}


def pinned(lock: Path) -> dict[str, str]:
    """The version of each package."""
    found = {}
    for line in lock.read_text("utf-8").splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line.removesuffix("\\"))
            found[requirement.name] = str(requirement.specifier)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_pinned_by_hashes_and_names_no_host(name: str, project: Path) -> None:
    text = (project / name).read_text("utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())
    assert [
        entry
        for entry in entries
        if not re.match(r"[^\s\[]+(\[[^\]]+\])?==\S+ ", entry) or "--hash=sha256:" not in entry
    ] == []
    assert not re.search(r"://|--(extra-)?index-url|--find-links|@ ", text)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_nothing_that_downloads_a_program(name: str, project: Path) -> None:
    assert "dbt-core" in pinned(project / name)
    assert "dbt-core-experimental-parser" not in pinned(project / name)


def test_locks_agree_and_each_adds_to_the_one_before(project: Path) -> None:
    runtime, dagster, store, dev = (pinned(project / name) for name in LOCKS)
    assert runtime.items() < dagster.items() < dev.items() and runtime.items() < store.items() < dev.items()
    assert dagster.keys() >= DAGSTER and store.keys() >= {"feast", "redis"}
    assert not [name for name in (*runtime, *store) if name.startswith("dagster")]
    assert not {"feast", "redis"} & (runtime.keys() | dagster.keys())


#: Put before a program, it makes it run as if the extra `dagster` were not installed.
WITHOUT_DAGSTER = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0].startswith("dagster") else super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if each is PathFinder else each for each in sys.meta_path]
"""

IMPORT_ALL = """
import importlib, pkgutil
import orchestration

for found in pkgutil.walk_packages(orchestration.__path__, "orchestration.", onerror=lambda name: None):
    if not found.name.startswith("orchestration.dagster") and not found.name.endswith(".__main__"):
        importlib.import_module(found.name)
        print(found.name)
"""

RUN = """
from orchestration.cli import main
main()
"""


def run_without_dagster(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_DAGSTER + program, *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_only_dagsters_modules_import_dagster() -> None:
    done = run_without_dagster(IMPORT_ALL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"orchestration.cli", "orchestration.warehouse.dbt_plugin"} <= set(done.stdout.split())


def test_without_the_extra_dagster_one_sentence_says_how_to_install_it(tmp_path: Path) -> None:
    done = run_without_dagster(RUN, "dagster", FINEGRAIN_HOME=str(tmp_path / "home"))
    assert done.returncode == 2
    assert "the extra 'dagster'" in done.stderr and "scripts/setup dagster" in done.stderr
    assert "pip install --no-deps --require-hashes -r requirements-dagster.lock" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home").exists()
