"""docs/connect.md tells what is: its mappings are read, its files are examined, its errors are the real ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import contracts_page
import pytest
import yaml

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.load import load
from orchestration.mapping.mapping import Mapping, read_mapping

PAGE = Path(contracts_page.PAGE).read_text("utf-8")
#: Fenced blocks by what follows the language: a file's name, or what the block is.
BLOCKS = dict(re.findall(r"^```\w+ ([\w.]+)\n(.*?)^```", PAGE, re.S | re.M))


@pytest.fixture
def folder(tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files and mappings, in which the test stands."""
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [name for name in BLOCKS if name.endswith(".yml")])
def test_the_mappings_of_the_page_are_right(folder: Path, name: str) -> None:
    read_mapping(folder / name)


def test_the_fields_of_the_page_are_right() -> None:
    fields = yaml.safe_load(BLOCKS["fields"])
    table = {"files": "x.csv", "available_at": "now", "fields": fields}
    mapping = Mapping.model_validate({"source": "s", "tables": {"events": table}})
    assert mapping.tables["events"][0].fields["consent"].map == {"yes": "granted", "no": "denied"}


def test_every_yaml_of_the_page_is_tried() -> None:
    assert PAGE.count("```yaml") == sum(name.endswith(".yml") for name in BLOCKS) + 1


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
    assert (done.returncode, done.stderr) == (2, BLOCKS["changed"])


def test_the_page_loads(folder: Path) -> None:
    report = load("shop.yml")
    assert [(file.file, file.rows, file.malformed) for file in report.files] == [
        ("visits.csv", 7, 1),
        ("catalogue.csv", 2, 0),
    ]


def test_the_contracts_are_told_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["contracts_page.py", "--check"])
    assert contracts_page.main() == 0, "run python scripts/contracts_page.py"


def test_every_field_has_a_meaning() -> None:
    assert not re.findall(r"\| `\w+` \|\s*\|", contracts_page.contracts())
