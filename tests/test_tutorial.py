"""docs/tutorial/first-features.md is followed literally: its commands are run, its change is made, and its outputs are
the real ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.config.settings import PROJECT

PAGE = (PROJECT / "docs" / "tutorial" / "first-features.md").read_text("utf-8")
#: (language, file or kind of the block, text), in the order of the page.
BLOCKS = re.findall(r"^```(\w+) ([\w./-]+)\n(.*?)^```", PAGE, re.S | re.M)
HOME = "var/tutorial"


def plain(text: str) -> list[str]:
    """Lines without the parts that differ from run to run: durations, numbers of models, the home's path, and spaces at
    the end."""
    text = re.sub(r"\b\d+\.\d s\b", "… s", text)
    text = re.sub(r"\b\d+ models, seeds and snapshots and \d+ tests", "models and tests", text)
    text = re.sub(rf"\S*/{HOME}/", f"{HOME}/", text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def follow(folder: Path, environment: dict[str, str]) -> list[tuple[str, str]]:
    """Do what the page says, in `folder`: pairs of the output on the page and the actual output."""
    shown = []
    printed = ""
    for language, name, text in BLOCKS:
        if name == "output":
            shown.append((text, printed))
        elif language in ("sh", "python"):
            command = ["bash", "-ec", text] if language == "sh" else [sys.executable, "-c", text]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1500
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            printed = done.stdout
        elif language == "diff":
            before, after = (
                "".join(f"{line[1:]}\n" for line in text.splitlines() if line[0] in sign) for sign in (" -", " +")
            )
            file = folder / name
            assert file.read_text("utf-8").count(before) == 1
            file.write_text(file.read_text("utf-8").replace(before, after), "utf-8")
        elif language == "sql":
            (folder / HOME / name).write_text(text, "utf-8")
    return shown


def is_part(excerpt: list[str], lines: list[str]) -> bool:
    """Whether `lines` contains `excerpt` in this order, with nothing between its lines except where it has a line
    `…`."""
    position = 0
    free = True
    for line in excerpt:
        if line.strip() == "…":
            free = True
            continue
        found = next(
            (n for n in range(position, len(lines) if free else min(position + 1, len(lines))) if lines[n] == line),
            None,
        )
        if found is None:
            return False
        position, free = found + 1, False
    return True


@pytest.mark.long
def test_the_tutorial_does_what_it_says(tmp_path: Path, extensions: Path) -> None:
    (tmp_path / "examples").symlink_to(PROJECT / "examples")
    (tmp_path / HOME).mkdir(parents=True)
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith("FINEGRAIN_") or name == "FINEGRAIN_PRIVACY_KEY"
        },
        "FINEGRAIN_HOME": HOME,
        "FINEGRAIN_EXTENSIONS": str(extensions),
        "PYTHONPATH": f"{PROJECT}{os.pathsep}{os.environ['PYTHONPATH']}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "160",
    }
    shown = follow(tmp_path, environment)
    assert len(shown) == PAGE.count("```text output")
    for excerpt, printed in shown:
        assert is_part(plain(excerpt), plain(printed)), f"the page shows\n{excerpt}\nprinted was\n{printed}"


def test_the_mapping_of_the_tutorial_is_the_example() -> None:
    [excerpt] = [text for language, _, text in BLOCKS if language == "yaml"]
    assert excerpt in (PROJECT / "examples" / "bookshop.yml").read_text("utf-8")


def test_every_block_of_the_tutorial_is_followed() -> None:
    assert PAGE.count("```") == 2 * len(BLOCKS) + 2, "all but the set-up"
    assert {name for language, name, _ in BLOCKS if language in ("sh", "python")} == {"run"}


def test_an_excerpt_is_compared_line_by_line() -> None:
    assert is_part(["a", "c"], ["b", "a", "c"])
    assert is_part(["a", "…", "c"], ["a", "b", "c"])
    assert not is_part(["a", "c"], ["a", "b", "c"])
    assert not is_part(["c", "a"], ["a", "c"])
