"""What the pages on mappings show is real: their mappings are read, their files are examined, their errors are what finegrain prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import commands_page
import contracts_page
import pytest
import settings_page
import yaml

from orchestration.config.settings import PROJECT, Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.load import load
from orchestration.mapping.mapping import Mapping, read_mapping

PAGES = {
    path.name: path.read_text("utf-8")
    for folder in ("how-to", "reference")
    for path in sorted((PROJECT / "docs" / folder).glob("*.md"))
    if path.name
    not in (
        "add-a-feature.md",
        "add-a-field.md",
        "bi.md",
        "features.md",
        "suggest-tests.md",
        "training-sets.md",
    )  # these have tests of their own
}
_NAMED = [block for page in PAGES.values() for block in re.findall(r"^```\w+ ([\w.]+)\n(.*?)^```", page, re.S | re.M)]
#: Fenced blocks by what follows the language: a file's name, or what the block is.
BLOCKS = dict(_NAMED)


@pytest.fixture
def folder(tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files and mappings, in which the test stands."""
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [name for name in BLOCKS if name.endswith(".yml")])
def test_the_mappings_of_the_pages_are_right(folder: Path, name: str) -> None:
    read_mapping(folder / name)


def test_the_fields_of_the_pages_are_right() -> None:
    fields = yaml.safe_load(BLOCKS["fields"])
    table = {"files": "x.csv", "available_at": "now", "fields": fields}
    mapping = Mapping.model_validate({"source": "s", "tables": {"events": table}})
    assert mapping.tables["events"][0].fields["consent"].map == {"yes": "granted", "no": "denied"}


def test_every_yaml_of_the_pages_is_tried() -> None:
    assert len(_NAMED) == len(BLOCKS), "two blocks have one name"
    yamls = sum(page.count("```yaml") for page in PAGES.values())
    assert yamls == sum(name.endswith(".yml") for name in BLOCKS) + 1 > 12


def test_the_doctor_says_what_the_page_says(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "doctor", "shop.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    def timeless(text: str) -> list[str]:
        return [re.sub(r"in [0-9.]+ s", "in … s", line.rstrip()) for line in text.strip().splitlines()]

    assert timeless(done.stdout) == timeless(BLOCKS["doctor"])


def test_the_errors_of_the_page_are_real(folder: Path) -> None:
    shop, visits = BLOCKS["shop.yml"], BLOCKS["visits.csv"]
    first = "product_id: sku\n      quantity"
    wrong: list[tuple[str, bytes]] = [
        (shop.replace("event_at: when", "event_at: wehn"), visits.encode()),
        (shop.replace(first, first.replace("product", "produkt")), visits.encode()),
        (shop, visits.replace("Safari", "Café").encode("latin1")),
    ]
    said = []
    for mapping, data in wrong:
        (folder / "shop.yml").write_text(mapping)
        (folder / "visits.csv").write_bytes(data)
        with pytest.raises(FinegrainError) as caught:
            load("shop.yml")
        said.append(f"error: {caught.value}".replace(f"{folder}/", "exports/"))
    assert said == BLOCKS["errors"].splitlines()


def test_a_changed_mapping_says_what_the_page_says(folder: Path) -> None:
    (folder / "shop.yml").write_text(BLOCKS["shop.yml"].replace("price: paid", "price: n"))
    load("shop.yml")
    (folder / "shop.yml").write_text(BLOCKS["shop.yml"])
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "load", "shop.yml"], capture_output=True, text=True, check=False
    )
    # On a slow machine there is a line of progress before it.
    assert done.returncode == 2 and done.stderr.endswith(BLOCKS["changed"]), done.stderr


def test_the_page_loads(folder: Path) -> None:
    report = load("shop.yml")
    assert [(file.file, file.rows, file.malformed) for file in report.files] == [
        ("visits.csv", 7, 1),
        ("catalogue.csv", 2, 0),
    ]


@pytest.mark.parametrize("script", [contracts_page, commands_page, settings_page])
def test_the_generated_pages_are_up_to_date(monkeypatch: pytest.MonkeyPatch, script: ModuleType) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--check"])
    assert script.main() == 0, f"run python scripts/{script.__name__}.py"


def test_every_field_has_a_meaning() -> None:
    assert not re.findall(r"\| `\w+` \|\s*\|", contracts_page.contracts())
