"""Follow docs/how-to/add-a-feature.md literally, in a shop's project made by `finegrain init`: write its files and run its commands."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

from orchestration.cli.init import init
from orchestration.config.settings import PROJECT, Settings
from orchestration.features.catalog import catalog
from orchestration.ingest.load import load

PAGE = (PROJECT / "docs" / "how-to" / "add-a-feature.md").read_text("utf-8")
#: (language, file or what the block is, text), in the order of the page.
BLOCKS = re.findall(r"^```(\w+) ([\w./-]+)\n(.*?)^```", PAGE, re.S | re.M)
TEST = "kitchen_views_are_a_share_of_views"


@dataclass(frozen=True)
class Shop:
    """A shop's project, with its sample loaded."""

    folder: Path
    where: Settings

    def follow(self) -> str:
        """Do what the page says. Returns what the commands printed."""
        printed = ""
        for language, name, text in BLOCKS:
            if language == "sh":
                for command in text.splitlines():
                    done = self.run(command)
                    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                    printed += done.stdout
            elif language == "diff":
                self.change(name, text)
            else:
                path = self.folder / name
                assert not path.exists()
                path.write_text(text, "utf-8")
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
            name: value
            for name, value in os.environ.items()
            if not name.startswith("FINEGRAIN_") or name == "FINEGRAIN_PRIVACY_KEY"
        }
        environment |= {
            **self.where.environment(),
            "FINEGRAIN_OFFLINE": "1",
            "PYTHONPATH": f"{PROJECT}{os.pathsep}{os.environ['PYTHONPATH']}",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "DBT_TARGET_PATH": str(self.folder / "target"),
        }
        return subprocess.run(
            command, shell=True, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def features(self) -> list[tuple[int, float]]:
        """Views of kitchen goods and their share, by customer, as built."""
        with duckdb.connect(str(self.where.warehouse), read_only=True) as con:
            rows = con.execute("select kitchen_views_30d, kitchen_view_share from marts.kitchen_features")
            return sorted(rows.fetchall())

    def expected(self) -> list[tuple[int, float]]:
        """The same, counted from the sample's files. Its events lie within a week."""
        rows = {}
        for name in ("events", "products"):
            with (self.folder / "data" / "sample" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
                rows[name] = list(csv.DictReader(file))
        kinds = {row["product"]: row["category"] for row in rows["products"]}
        logins = {row["cookie"]: row["login"] for row in rows["events"] if row["login"] != "guest"}
        views = [
            (logins.get(row["cookie"], row["cookie"]), kinds[row["product"]])
            for row in rows["events"]
            if row["event"] in ("book opened", "view_item")
        ]
        seen, kitchen = Counter(who for who, _ in views), Counter(who for who, kind in views if kind == "kitchen")
        return sorted((kitchen[who], kitchen[who] / seen[who]) for who in seen)


@pytest.fixture
def shop(tmp_path: Path, extensions: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("FINEGRAIN_OFFLINE", "1")
    init(tmp_path / "myshop")
    where = Settings.below(tmp_path / "home", extensions)
    load(tmp_path / "myshop" / "mappings", data=tmp_path / "myshop", where=where)
    return Shop(tmp_path / "myshop", where)


@pytest.mark.long
def test_the_page_does_what_it_says(shop: Shop) -> None:
    printed = shop.follow()
    assert re.search(rf"PASS .*{TEST}", printed), printed
    assert shop.features() == shop.expected()
    found = catalog(shop.where, like="kitchen_views_30d", of_warehouse=True, lineage=False, project=shop.folder)
    [feature] = [feature for mart in found.marts for feature in mart.features]
    assert feature.meaning == "Views of kitchen goods in the last 30 days." and feature.figures

    # What the unit test is for.
    mart = shop.folder / "models/marts/features/kitchen_features.sql"
    mart.write_text(mart.read_text("utf-8").replace("'s.views_lifetime'", "'s.kitchen_views_lifetime'"), "utf-8")
    done = shop.run(f"dbt test --select {TEST}")
    assert done.returncode == 1 and re.search(rf"FAIL 1 .*{TEST}", done.stdout), done.stdout


def test_every_block_of_the_page_is_followed() -> None:
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert {language for language, *_ in BLOCKS} == {"diff", "sql", "yaml", "sh"}
