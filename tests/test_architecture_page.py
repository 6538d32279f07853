"""docs/explanation/architecture.md: every model, column and file it names exists, and its example gives the results on the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import yaml

from orchestration.config.settings import PROJECT, Settings
from orchestration.lake import lake
from orchestration.mapping.contracts import META_COLUMNS, RAW_TABLES

PAGE = (PROJECT / "docs" / "explanation" / "architecture.md").read_text("utf-8")
MODELS = {path.stem: path for folder in ("models", "snapshots") for path in (PROJECT / folder).rglob("*.sql")}
#: Names of models begin with one of these, or are those of feature marts.
MODEL_NAME = re.compile(r"\b(?:(?:int|stg|base|fct|dim|bridge)_\w+|\w+_features)\b")
#: A query of the page, by where it runs, with the table that follows it.
QUERIES = re.findall(r"^```sql (\w+)\n(.*?)^```\n\n((?:\|[^\n]*\n)+)", PAGE, re.S | re.M)
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", PAGE, flags=re.S | re.M))


def columns_of(model: str) -> set[str]:
    """The columns that a model's YAML describes."""
    for path in MODELS[model].parent.glob("*.yml"):
        for each in yaml.safe_load(path.read_text("utf-8")).get("models", []):
            if each["name"] == model and "columns" in each:
                return {column["name"] for column in each["columns"]}
    return set()


def test_every_model_of_the_page_exists() -> None:
    named = set(MODEL_NAME.findall(PAGE))
    assert len(named) > 25
    assert named - MODELS.keys() == set()


def test_every_column_of_the_page_exists() -> None:
    dotted = re.findall(r"\b(\w+)\.(\w+)\b", "\n".join(code for code in CODE if "/" not in code))
    wrong = [f"{model}.{column}" for model, column in dotted if model in MODELS and column not in columns_of(model)]
    assert wrong == []
    assert ("user_features", "cart_adds_30d") in dotted


def test_every_file_of_the_page_exists() -> None:
    files = [code for code in CODE if re.fullmatch(r"[\w./-]+/[\w.-]+", code)]
    assert len(files) > 15
    assert [name for name in files if not (PROJECT / name).exists()] == []


def test_the_tables_of_the_lake_on_the_page_exist() -> None:
    fields = {*RAW_TABLES["events"], *META_COLUMNS}
    [(_, query, _)] = [query for query in QUERIES if query[0] == "lake"]
    selected = query.partition("select ")[2].partition("\nfrom")[0]
    assert {name.strip() for name in selected.split(",")} <= fields


def test_the_diagram_has_the_rooms_of_the_table() -> None:
    diagram = re.findall(r"^    subgraph (\w+)\[", PAGE, re.M)
    table = re.findall(r"^\| (\w+) \| ", PAGE.partition("| room | what it holds |")[2].partition("\n\n")[0], re.M)
    assert diagram == ["staging", *table, "marts"]


@pytest.mark.soak
def test_the_example_gives_what_the_page_shows(tmp_path: Path, extensions: Path) -> None:
    blocks = dict(re.findall(r"^```\w+ ([\w.]+)\n(.*?)^```", PAGE, re.S | re.M))
    (tmp_path / "clicks").mkdir()
    (tmp_path / "clicks" / "web.jsonl").write_text(blocks["web.jsonl"], "utf-8")
    (tmp_path / "clicks.yml").write_text(blocks["clicks.yml"], "utf-8")
    where = Settings.below(tmp_path / "home", extensions)
    environment = {**os.environ, **where.environment(), "FINEGRAIN_HOME": str(where.home)}
    for command in (["stream", "clicks.yml", "--drain"], ["build"]):
        subprocess.run(
            [sys.executable, "-m", "orchestration.cli", *command],
            cwd=tmp_path,
            env=environment,
            check=True,
            timeout=900,
        )
    with lake.connect(where, read_only=True) as in_lake, duckdb.connect(str(where.warehouse), read_only=True) as built:
        built.execute("set search_path = 'main,marts'")
        for place, query, table in QUERIES:
            answer = (in_lake if place == "lake" else built).execute(query)
            names = [column[0] for column in answer.description or []]
            rows = [["" if cell is None else _text(cell) for cell in row] for row in answer.fetchall()]
            head, _, *shown = [
                [cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()
            ]
            assert [head, *shown] == [names, *rows], query


def _text(cell: object) -> str:
    return str(cell).lower() if isinstance(cell, bool) else str(cell)
