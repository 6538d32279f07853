"""The documentation is consistent: every link leads somewhere, every page is on the map, and lists of names in the code
are complete."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from orchestration.config.settings import PROJECT

DOCS = PROJECT / "docs"
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(PROJECT / folder / "README.md" for folder in ("deploy", "examples", "benchmarks")),
]


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub creates for a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "")).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_on_the_map() -> None:
    linked = {(DOCS / link).resolve() for link in re.findall(r"\]\(([\w./-]+\.md)\)", prose(DOCS / "index.md"))}
    wanted = {page for page in DOCS.rglob("*.md") if page.parent.name != "decisions" and page != DOCS / "index.md"}
    assert {name_of(page) for page in wanted - linked} == set()


def test_pages_that_code_names_exist() -> None:
    """Messages, comments and descriptions point at pages by their path."""
    done = subprocess.run(
        ["git", "grep", "-IhoE", r"docs/[a-z-]+(/[a-z0-9-]+)*\.md"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    named = set(done.stdout.split())
    assert len(named) > 10
    assert {name for name in named if not (PROJECT / name).exists()} == set()


def test_every_setting_is_listed() -> None:
    sources = list((PROJECT / "orchestration").rglob("*.py"))
    sources += [PROJECT / "profiles.yml", *(PROJECT / "scripts").iterdir()]
    read = set()
    for path in sources:
        if path.is_file():
            read |= set(re.findall(r"\bFINEGRAIN_[A-Z0-9]+(?:_[A-Z0-9]+)*\b", path.read_text("utf-8")))
    listed = set(re.findall(r"`(FINEGRAIN_\w+)`", (DOCS / "reference" / "settings.md").read_text("utf-8")))
    assert read - listed == set()


def test_the_graphs_of_dbt_docs_are_of_what_exists() -> None:
    """The overview links parts of the lineage graph: their models and folders are there, and they leave out tests by a tag that tests have."""
    links = re.findall(
        r"\]\(\?graph=\d+#!/overview\?g_v=1&g_i=([^&]+)&g_e=([^)]+)\)",
        (PROJECT / "models" / "overview.md").read_text("utf-8"),
    )
    assert len(links) >= 5
    models = {path.stem for path in (PROJECT / "models").rglob("*.sql")}
    for include, exclude in links:
        for part in unquote(include).split():
            method, _, value = part.rpartition(":")
            found = {"": value.strip("+") in models, "path": (PROJECT / value).is_dir(), "exposure": value == "*"}
            assert found[method], part
        assert unquote(exclude) == "config.tags:unit_test test_type:singular"
    assert yaml.safe_load((PROJECT / "dbt_project.yml").read_text("utf-8"))["unit_tests"]["+tags"] == ["unit_test"]


def column(seed: str, name: str) -> set[str]:
    with (PROJECT / "seeds" / seed).open(encoding="utf-8", newline="") as file:
        return {row[name] for row in csv.DictReader(file)}


def test_events_statuses_and_rules_are_listed() -> None:
    page = (DOCS / "reference" / "events.md").read_text("utf-8")
    types, statuses, rules = (
        set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| ([^|]*) \|", part, re.M))))
        for part in (
            page.partition("## Types of events")[2].partition("\n## ")[0],
            page.partition("## Statuses of an order")[2].partition("\n## ")[0],
            page.partition("Rules, from")[2],
        )
    )
    assert types == column("event_types.csv", "event_type") | column("order_statuses.csv", "event_type") | {
        "refund_of_no_sale"
    }
    assert statuses == column("order_statuses.csv", "status")
    assert rules == column("validation_rules.csv", "rule_id")


#: docs/contributing/words.md lists what to write instead.
UNWANTED = re.compile(
    r"\b(told|gone|astray|met|mend\w*|taste\w*|anew|afresh|takes up(?! to)|taken up|landers?|bur(?:y|ied)|judge\w*|incarnations?|lots of \d+)\b",
    re.IGNORECASE,
)
#: Generated from texts elsewhere, or records of their time.
OTHERS_WORDS = {
    "CHANGELOG.md",
    "docs/contributing/words.md",
    "docs/reference/commands.md",
    "docs/reference/features.md",
}
OTHERS_WORDS |= {"docs/reference/raw-tables.md", "deploy/README.md", "benchmarks/README.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in OTHERS_WORDS], ids=name_of)
def test_pages_use_plain_words(page: Path) -> None:
    assert UNWANTED.findall(re.sub(r"`[^`]*`", "", prose(page))) == []
