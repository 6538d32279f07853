"""docs/how-to/add-a-field.md is followed literally, in a copy of the project: its changes are made and its commands are run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from orchestration.config.settings import PROJECT, Settings

PAGE = (PROJECT / "docs" / "how-to" / "add-a-field.md").read_text("utf-8")
#: (language, file or what the block is, text), in the order of the page.
BLOCKS = re.findall(r"^```(\w+) ([\w./-]+)\n(.*?)^```", PAGE, re.S | re.M)
TABLE = PAGE.rpartition("|---|\n")[2].partition("\n\n")[0]
#: The shop's own files on the page.
OF_THE_SHOP = {"web.yml", "web.jsonl"}
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "var", "target", "logs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PROJECT, tmp_path / "project", ignore=LEFT_OUT, symlinks=True))


def run(folder: Path, where: Settings, command: str) -> subprocess.CompletedProcess[str]:
    """A command as a person would type it in the project's folder, its environment activated."""
    environment = {
        **os.environ,
        **where.environment(),
        "FINEGRAIN_HOME": str(where.home),
        "FINEGRAIN_PROJECT": str(folder),
        # The worker's own holds the parse of the project that was not changed.
        "DBT_TARGET_PATH": str(folder / "target"),
        "PYTHONPATH": f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    }
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def digests(folder: Path) -> dict[str, str]:
    """The files of the copy, with a digest of each."""
    files = {
        file
        for place in (
            "models",
            "macros",
            "orchestration",
            "scripts",
            "docs",
            "tests",
            "benchmarks",
            "seeds",
            "snapshots",
        )
        for file in (folder / place).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    files |= {file for file in folder.iterdir() if file.is_file()}
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.soak
def test_the_page_does_what_it_says(copy: Path, tmp_path: Path, extensions: Path) -> None:
    where = Settings.below(tmp_path / "home", extensions)
    before_changes = digests(copy)
    for language, name, text in BLOCKS:
        if language == "sh":
            for command in text.splitlines():
                done = run(copy, where, command)
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        elif language == "diff":
            lines = text.splitlines()
            before = "\n".join(line[1:] for line in lines if line[0] == " ") + "\n"
            after = "\n".join(line[1:] for line in lines) + "\n"
            path = copy / name
            assert path.read_text("utf-8").count(before) == 1, before
            path.write_text(path.read_text("utf-8").replace(before, after), "utf-8")
        elif language == "sql":
            with duckdb.connect(str(where.warehouse), read_only=True) as con:
                rows = con.execute(text).fetchall()
        else:
            (copy / name).write_text(text, "utf-8")

    shown = [["" if cell is None else str(cell) for cell in row] for row in rows]
    assert shown == [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines()]
    changed = {name for name, digest in digests(copy).items() if before_changes.get(name) != digest}
    assert changed - OF_THE_SHOP == {
        "models/staging/_sources.yml",
        "models/marts/core/fct_events.yml",
        "docs/reference/raw-tables.md",
        "docs/reference/mapping.schema.json",
    }

    sources = copy / "models" / "staging" / "_sources.yml"
    sources.write_text(sources.read_text("utf-8").replace("pass_through: double", "pass_through: duble"), "utf-8")
    done = run(copy, where, "dbt compile --select stg_events__events")
    assert done.returncode != 0
    wrong = (
        "models/staging/_sources.yml: the field scroll_depth of events has pass_through: duble; write varchar, double,"
    )
    assert wrong in " ".join(done.stdout.split()), done.stdout


def test_every_block_of_the_page_is_followed() -> None:
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert {language for language, *_ in BLOCKS} == {"diff", "yml", "json", "sh", "sql"}
