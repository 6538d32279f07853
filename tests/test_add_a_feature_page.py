"""Follow docs/how-to/add-a-feature.md literally, in a copy of the project: make its changes and run its commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb
import pytest

from orchestration.config.settings import PROJECT, Settings
from orchestration.features.catalog import catalog
from orchestration.ingest.load import load
from orchestration.simulation.simulate import simulate

PAGE = (PROJECT / "docs" / "how-to" / "add-a-feature.md").read_text("utf-8")
#: (language, file or what the block is, text), in the order of the page.
BLOCKS = re.findall(r"^```(\w+) ([\w./-]+)\n(.*?)^```", PAGE, re.S | re.M)
TEST = "book_views_are_views_of_books"


@dataclass(frozen=True)
class Copy:
    """A copy of the project with a small shop of its own."""

    folder: Path
    where: Settings

    def follow(self, blocks: list[tuple[str, str, str]]) -> str:
        """Follow these blocks of the page. Returns what the commands printed."""
        printed = ""
        for language, name, text in blocks:
            if language == "sh":
                for command in text.splitlines():
                    done = self.run(command)
                    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                    printed += done.stdout
            elif language == "diff":
                self.change(name, text)
            else:
                path = self.folder / name
                path.write_text(path.read_text("utf-8") + text, "utf-8")
        return printed

    def change(self, name: str, diff: str) -> None:
        """Apply a diff without line numbers; its old lines must be in the file exactly once."""
        lines = diff.splitlines()
        before = "\n".join(line[1:] for line in lines if line[0] in " -") + "\n"
        after = "\n".join(line[1:] for line in lines if line[0] in " +") + "\n"
        path = self.folder / name
        text = path.read_text("utf-8")
        assert text.count(before) == 1, f"{name} does not have this once:\n{before}"
        path.write_text(text.replace(before, after), "utf-8")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder, with its environment activated."""
        environment = {
            **os.environ,
            **self.where.environment(),
            "FINEGRAIN_PROJECT": str(self.folder),
            "PYTHONPATH": str(self.folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        }
        return subprocess.run(
            command, shell=True, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def features(self) -> dict[str, tuple[int, float | None]]:
        """Views of books and their share of all views, by customer, as built."""
        with duckdb.connect(str(self.where.warehouse), read_only=True) as con:
            rows = con.execute("select customer_id, book_views_lifetime, book_view_share from marts.user_features")
            return {customer: (views, share) for customer, views, share in rows.fetchall()}

    def expected(self) -> dict[str, tuple[int, float | None]]:
        """The same, counted from the clean events by customer."""
        with duckdb.connect(str(self.where.warehouse), read_only=True) as con:
            customers = dict(
                con.execute("select identity, customer_id from int_identity__links where known_to is null").fetchall()
            )
            events = con.execute("select identity, event_type, category from int_cleaning__events").fetchall()
        views = Counter(customers[who] for who, what, _ in events if what == "view_item")
        books = Counter(customers[who] for who, what, kind in events if (what, kind) == ("view_item", "books"))
        return {each: (books[each], books[each] / views[each] if views[each] else None) for each in customers.values()}


@pytest.fixture
def copy(tmp_path: Path, extensions: Path) -> Copy:
    left_out = shutil.ignore_patterns(
        ".git", ".venv", "var", "target", "logs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
    )
    shutil.copytree(PROJECT, tmp_path / "project", ignore=left_out, symlinks=True)
    where = Settings.below(tmp_path / "home", extensions)
    simulate(tmp_path / "shop", events=1500, days=20, start=date(2025, 3, 20))
    load(PROJECT / "examples" / "simulated_shop", data=tmp_path / "shop", where=where)
    return Copy(tmp_path / "project", where)


@pytest.mark.long
def test_the_page_does_what_it_says(copy: Copy) -> None:
    first = 1 + next(number for number, (language, *_) in enumerate(BLOCKS) if language == "sh")
    printed = copy.follow(BLOCKS[:first])
    assert re.search(rf"PASS .*{TEST}", printed), printed
    found_features = catalog(copy.where, like="book_views_30d", of_warehouse=True, lineage=False, project=copy.folder)
    [feature] = [feature for mart in found_features.marts for feature in mart.features]
    assert feature.meaning == "Views of books in the last 30 days." and feature.figures
    copy.follow(BLOCKS[first:])
    expected = copy.expected()
    assert sum(views for views, _ in expected.values()) > 10
    assert copy.features() == expected

    # The test that belongs to the feature.
    declared = copy.folder / "dbt_project.yml"
    declared.write_text(declared.read_text("utf-8").replace(" and category = 'books'", ""), "utf-8")
    done = copy.run(f"dbt test --select {TEST}")
    assert done.returncode == 1 and re.search(rf"FAIL 1 .*{TEST}", done.stdout), done.stdout


def test_every_block_of_the_page_is_followed() -> None:
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert {language for language, *_ in BLOCKS} == {"diff", "yaml", "sh"}
