"""`finegrain init`: a shop's dbt project, with finegrain as a package: what it writes, and that it builds, from the clone and from the wheel."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from orchestration.cli.init import TEMPLATE, init
from orchestration.config.project import check_seeds, package_of, roots, variables
from orchestration.config.settings import PROJECT
from orchestration.errors import FinegrainError
from orchestration.warehouse.fingerprints import of_project

#: What a person finds in the new folder, beside what dbt needs.
WRITTEN = {
    ".env.example",
    ".github/workflows/finegrain.yml",
    ".gitignore",
    "README.md",
    "alerts.yml",
    "data/sample/events.csv",
    "data/sample/products.csv",
    "dbt_project.yml",
    "macros/finegrain.sql",
    "mappings/sample.yml",
    "models/marts/features/book_features.sql",
    "models/marts/features/book_features.yml",
    "package-lock.yml",
    "packages.yml",
    "profiles.yml",
    "seeds/_seeds.yml",
    "seeds/shop_category_map.csv",
    "seeds/shop_event_types.csv",
    "seeds/shop_null_words.csv",
    "seeds/shop_order_statuses.csv",
}


@dataclass(frozen=True)
class Shop:
    """A project that `finegrain init` made, run with the code in `code`."""

    folder: Path
    code: Path = PROJECT

    def run(self, *command: str, cwd: Path | None = None, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """`finegrain …` or `dbt …` in the project's folder, in a process of its own."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("FINEGRAIN_", "DBT_"))}
        environment |= {
            # dbt is as it is where the wheel is installed, as for a newcomer.
            "PYTHONPATH": f"{PROJECT}{os.pathsep}{os.environ['PYTHONPATH']}"
            if self.code == PROJECT
            else str(self.code),
            "FINEGRAIN_OFFLINE": "1",
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        }
        program = {
            "finegrain": ["-m", "orchestration.cli"],
            "dbt": ["-c", "from dbt.cli.main import cli; cli()"],
            "python": ["-c"],
        }[command[0]]
        done = subprocess.run(
            [sys.executable, "-P", *program, *command[1:]],
            cwd=cwd or self.folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not ok or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(self.folder / "var" / "warehouse.duckdb"), read_only=True) as con:
            return con.execute(query).fetchall()

    def state(self, model: str) -> list[tuple[Any, ...]]:
        return self.sql(f"select state, invocation_id from main.states where model = '{model}'")


def files_of(folder: Path) -> set[str]:
    """The files of a project, without those that are in linked packages."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if path.parts[0] not in ("dbt_packages", "var", "target", "logs")}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEGRAIN_OFFLINE", "1")


# --- what it writes ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("offline")
def test_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "my-shop"
    init(folder)
    assert files_of(folder) == WRITTEN
    assert not [name for name in WRITTEN if re.search("__[A-Z]+__", (folder / name).read_text("utf-8"))]
    project = yaml.safe_load((folder / "dbt_project.yml").read_text("utf-8"))
    profiles = yaml.safe_load((folder / "profiles.yml").read_text("utf-8"))
    assert project["name"] == project["profile"] == "my_shop" and list(profiles) == ["my_shop"]
    assert profiles["my_shop"] == yaml.safe_load((PROJECT / "profiles.yml").read_text("utf-8"))["finegrain"]
    assert (folder / "dbt_packages" / "finegrain").resolve() == PROJECT
    assert (folder / "dbt_packages" / "dbt_expectations" / "dbt_project.yml").is_file()
    locked = yaml.safe_load((folder / "package-lock.yml").read_text("utf-8"))["packages"]
    assert {each["name"] for each in locked} == {path.name for path in (folder / "dbt_packages").iterdir()}


@pytest.mark.usefixtures("offline")
def test_of_a_git_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path / "shop", git="https://example.org/finegrain.git", revision="v0.1.0")
    listed = yaml.safe_load((tmp_path / "shop" / "packages.yml").read_text("utf-8"))["packages"]
    assert listed == [{"git": "https://example.org/finegrain.git", "revision": "v0.1.0"}]
    assert "run: dbt deps" in capsys.readouterr().err
    assert "finegrain @ git+https://example.org/finegrain.git@v0.1.0" in (
        tmp_path / "shop" / ".github/workflows/finegrain.yml"
    ).read_text("utf-8")


REFUSED: list[tuple[str, dict[str, str], str]] = [
    ("1shop", {}, "cannot be the name of a dbt project"),
    ("my shop", {}, "cannot be the name of a dbt project"),
    ("finegrain", {}, "is the name of a dbt package"),
    ("shop", {"name": "a-b"}, "cannot be the name of a dbt project"),
    ("shop", {"git": "https://example.org/x.git"}, "--git and --revision go together"),
    ("full", {}, "is not empty; choose a new folder"),
    ("file", {}, "is a file; choose another folder"),
    ("file/shop", {}, "is a file; choose another folder"),
]


@pytest.mark.parametrize(("name", "options", "says"), REFUSED)
def test_what_is_refused(tmp_path: Path, name: str, options: dict[str, str], says: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "file").touch()
    before = set(tmp_path.rglob("*"))
    with pytest.raises(FinegrainError, match=re.escape(says)):
        init(tmp_path / name, **options)
    assert set(tmp_path.rglob("*")) == before


def test_the_tests_of_its_seeds_are_those_of_finegrains() -> None:
    """A shop's rows and finegrain's must keep the same rules."""
    theirs = {each["name"]: each for each in yaml.safe_load((PROJECT / "seeds/_seeds.yml").read_text("utf-8"))["seeds"]}
    text = (TEMPLATE / "seeds/_seeds.yml").read_text("utf-8")
    for own in yaml.safe_load(text.replace("finegrain.", "").replace("shop_", ""))["seeds"]:
        wanted = yaml.safe_load(
            json.dumps(theirs[own["name"]]["data_tests"]).replace("that seeds/_seeds.yml lists", "that finegrain knows")
        )
        assert own["data_tests"] == wanted, own["name"]
        assert own["columns"] == theirs[own["name"]]["columns"]
        header = (TEMPLATE / f"seeds/shop_{own['name']}.csv").read_text("utf-8").splitlines()[0]
        assert header == (PROJECT / f"seeds/{own['name']}.csv").read_text("utf-8").splitlines()[0]


# --- the two folders ---------------------------------------------------------------------------------------------


def project_with(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dbt_project.yml").write_text(text, "utf-8")
    return folder


def test_vars_are_merged_as_dbt_merges_them(tmp_path: Path) -> None:
    shop = project_with(
        tmp_path / "shop",
        "name: shop\nvars:\n  max_price: 5\n  max_quantity: 6\n  own: 1\n  finegrain: {max_price: 7}\n  shop: {max_quantity: 8}\n",
    )
    found = variables(shop)
    assert (found["max_price"], found["max_quantity"], found["own"]) == (7, 6, 1)
    assert found["earliest_year"] == variables(PROJECT)["earliest_year"] == 1990
    assert package_of(shop) == PROJECT and roots(shop) == [PROJECT, shop] and roots(PROJECT) == [PROJECT]


def test_fingerprints_are_of_both_projects(tmp_path: Path) -> None:
    """A var of the shop changes the models that read it, and no others; its own models have fingerprints, too."""
    shop = project_with(tmp_path / "shop", "name: shop\n")
    (shop / "models").mkdir()
    (shop / "models" / "mine.sql").write_text("select {{ finegrain.smoothed_rate('a', 'b', 'c') }} as rate")
    before, own = of_project(shop), of_project(PROJECT)
    assert {name: before[name] for name in own if name != "*"} == {name: own[name] for name in own if name != "*"}
    project_with(shop, "name: shop\nvars: {smoothing_strength: 7}\n")
    changed = {name for name, digest in of_project(shop).items() if digest != before[name]}
    assert {"mine", "user_features"} <= changed
    assert not changed & {"int_events__validated", "fct_orders"}


SEEDS = [
    ("vars: {shop_seeds: [event_typos]}", [], "shop_seeds lists ['event_typos']; write a list of these: category_map,"),
    ("vars: {shop_seeds: event_types}", [], "shop_seeds lists event_types; write a list"),
    ("vars: {shop_seeds: [event_types]}", [], "shop_event_types.csv does not exist, but the var shop_seeds"),
    ("vars: {}", ["event_types"], "shop_event_types.csv has no effect: add event_types to the var shop_seeds"),
]


@pytest.mark.parametrize(("text", "files", "says"), SEEDS)
def test_seeds_that_would_have_no_effect_are_an_error(tmp_path: Path, text: str, files: list[str], says: str) -> None:
    shop = project_with(tmp_path / "shop", f"name: shop\n{text}\n")
    (shop / "seeds").mkdir()
    for name in files:
        (shop / "seeds" / f"shop_{name}.csv").write_text("raw_name,event_type\n")
    with pytest.raises(FinegrainError, match=re.escape(says)):
        check_seeds(shop)


def test_a_dbt_project_without_finegrain_is_an_error(tmp_path: Path) -> None:
    other = Shop(project_with(tmp_path / "other", "name: other\n"))
    done = other.run("finegrain", "doctor", ok=False)
    assert done.returncode == 2 and done.stderr.count("error:") == 1
    assert f"error: {other.folder} is a dbt project that does not use finegrain" in done.stderr
    assert "finegrain init" in done.stderr and "FINEGRAIN_PROJECT" in done.stderr


#: Macros that a shop's models and YAML may call, and what dbt calls in a shop's project through macros/finegrain.sql.
CALLED = [
    "share",
    "smoothed_rate",
    "window_sum",
    "window_share",
    "window_money",
    "decayed_sum",
    "distinct_by_days",
    "exact_std",
    "is_valid_at",
    "in_window",
    "in_hours",
    "by_window",
    "count_if",
    "count_distinct_if",
    "sum_if",
    "money_if",
    "hours_between",
    "days_between",
    "shop_day",
    "shop_time",
    "day_part",
    "is_weekend",
    "last_by",
    "seed",
    "test_every_row",
    "test_one_value_per_key",
    "test_ranges_as_declared",
    "test_windows_grow",
    "record_state",
    "should_full_refresh",
    "get_where_subquery",
    "generate_schema_name",
    "event_spelling",
    "category_spelling",
    "status_spelling",
    "is_unchanged",
    "leave_unchanged",
    "closed_days_stand",
    "reason_to_begin",
    "state_of",
    "rules_of",
    "states",
]


def test_macros_for_a_shop_name_what_they_call_with_its_package() -> None:
    """In a model of the shop, dbt looks for a macro without a package in the shop's project alone."""
    block = re.compile(r"{%-?\s*(macro|test)\s+(\w+)(.*?){%-?\s*end\1", re.DOTALL)
    texts = {}
    for folder in ("macros", "tests/generic"):
        for path in (PROJECT / folder).rglob("*.sql"):
            text = re.sub(r"{#.*?#}", "", path.read_text("utf-8"), flags=re.DOTALL)
            texts |= {("test_" if kind == "test" else "") + name: body for kind, name, body in block.findall(text)}
    wrong, seen, waiting = set(), set(), list(CALLED)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for jinja in re.findall(r"{{.*?}}|{%.*?%}", texts[name], re.DOTALL):
            dispatched = re.findall(r"dispatch\('(\w+)'", jinja)
            waiting += [f"duckdb__{each}" for each in dispatched]
            for package, called in re.findall(r"(?<![\w'])(?:(\w+)\.)?(\w+)\(", jinja):
                if called in texts and package in ("", "finegrain"):
                    waiting.append(called)
                    if not package:
                        wrong.add(f"{name}: {called}")
    assert wrong == set()


# --- a project that is built -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A new project, whose sample is loaded and built by the commands that init names."""
    base = tmp_path_factory.mktemp("init")
    made = Shop(base / "bookshop")
    said = made.run("finegrain", "init", "bookshop", cwd=base).stdout
    commands = re.findall(r"^  (.+)$", said, re.MULTILINE)
    assert commands == ["cd bookshop", "finegrain load mappings", "finegrain build"]
    for command in commands[1:]:
        made.run(*command.split())
    return made


def rows(shop: Shop, name: str) -> list[dict[str, str]]:
    with (shop.folder / "data" / "sample" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.soak
def test_its_measure_seeds_and_vars_take_effect(shop: Shop) -> None:
    kinds = {
        row["product"]: {"Novels": "books"}.get(row["category"], row["category"]) for row in rows(shop, "products")
    }
    views = [row for row in rows(shop, "events") if row["event"] in ("book opened", "view_item")]
    # Who is a guest at first, and logs in with the same cookie later, is that customer; others are their cookie.
    logins = {row["cookie"]: row["login"] for row in rows(shop, "events") if row["login"] != "guest"}
    viewers = [logins.get(row["cookie"], row["cookie"]) for row in views]
    seen = Counter(viewers)
    books = Counter(who for who, row in zip(viewers, views, strict=True) if kinds[row["product"]] == "books")
    found = shop.sql("select book_views_lifetime, book_view_share from marts.book_features")
    assert sorted(found) == sorted((books[who], books[who] / seen[who]) for who in seen)
    assert shop.sql("select reporting_currency, shop_time_zone from marts.dim_shop") == [("EUR", "Europe/Berlin")]
    assert shop.sql("select sum(revenue) from marts.fct_orders") == [(36,)]
    columns = {
        name for (name,) in shop.sql("select column_name from duckdb_columns() where table_name = 'user_features'")
    }
    assert not [name for name in columns if name.startswith("book_views")] and "views_30d" in columns


@pytest.mark.soak
def test_its_marts_are_published_catalogued_and_traced(shop: Shop) -> None:
    shop.run("finegrain", "publish")
    database = shop.folder / "var" / "published" / "finegrain.duckdb"
    with duckdb.connect(str(database), read_only=True) as con:
        assert con.execute("select count(*) from book_features").fetchall() == [(4,)]
    [mart] = json.loads(shop.run("finegrain", "catalog", "book_features", "--json").stdout)["marts"]
    features = {each["name"]: each for each in mart["features"]}
    assert features["book_view_share"]["null_means"] == "nothing viewed"
    assert features["book_view_share"]["owner"] == "personalization"
    origin = features["book_views_30d"]["lineage"]
    assert "events.event_type" in origin["conditions"] and "shop_category_map" in mart["lineage"]["seeds"]


@pytest.mark.soak
def test_what_did_not_change_is_left_and_what_changed_is_built(shop: Shop) -> None:
    """By bare dbt: nothing new; then a seed whose row goes before finegrain's, and a var."""
    before, cleaned = shop.state("book_features"), shop.state("int_cleaning__events")
    assert before and cleaned
    # Without tests that also read marts outside the selection, which are not built with the new rules.
    selected = ("--select", "+book_features", "shop_event_types", "--indirect-selection", "buildable")
    shop.run("dbt", "build", *selected)
    assert (shop.state("book_features"), shop.state("int_cleaning__events")) == (before, cleaned)

    seed, project = shop.folder / "seeds/shop_event_types.csv", shop.folder / "dbt_project.yml"
    texts = {path: path.read_text("utf-8") for path in (seed, project)}
    seed.write_text(texts[seed] + "view item,page_view\n", "utf-8")
    project.write_text(texts[project].replace("reporting_currency: EUR", "reporting_currency: USD"), "utf-8")
    try:
        shop.run("dbt", "build", *selected)
        kinds = dict(shop.sql("select event_type, count(*) from int_cleaning__events group by all"))
        assert kinds == {"page_view": 4, "view_item": 4, "add_to_cart": 2, "purchase": 2}
        assert shop.state("book_features") != before
        [(rate,)] = shop.sql("select sum(amount) / 36 from int_cleaning__events where event_type = 'purchase'")
        assert 1.0 < rate < 1.2
    finally:
        for path, text in texts.items():
            path.write_text(text, "utf-8")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("measure", "says"),
    [
        (
            {"name": "views", "where": "true", "unit": "events", "meaning": "x", "of": ["user"]},
            "views is declared twice",
        ),
        (
            {"name": "mine", "where": "true", "unit": "events", "meaning": "x", "of": ["item"]},
            "mine is of ['item']; write a list of user",
        ),
    ],
)
def test_a_measure_that_cannot_be_is_named(shop: Shop, measure: dict[str, Any], says: str) -> None:
    options = (
        "--no-partial-parse",
        "--target-path",
        "target/wrong",
        "--vars",
        json.dumps({"shop_measures": [measure]}),
    )
    done = shop.run("dbt", "--no-use-colors", "parse", *options, ok=False)
    assert done.returncode != 0 and f"shop_measures: {says}" in done.stdout


@pytest.mark.soak
def test_dagster_shows_it(shop: Shop) -> None:
    pytest.importorskip("dagster")
    found = shop.run(
        "python",
        "import os; os.environ.update(FINEGRAIN_SHOP='mappings', DAGSTER_HOME=os.path.abspath('var/dagster')); "
        "from orchestration.dagster.instance import write_settings; from orchestration.dagster.home import dagster_home; "
        "write_settings(dagster_home()); from orchestration.dagster.definitions import defs; "
        "print(*(key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()))",
    )
    assert {"marts/book_features", "published/book_features", "marts/user_features"} <= set(found.stdout.split())


@pytest.mark.long
def test_the_wheel_is_enough(tmp_path: Path) -> None:
    """Built of what is committed or would be, installed away from the clone: init, load, build and bare dbt, in an empty folder."""
    source, wheels, code = tmp_path / "source", tmp_path / "wheels", tmp_path / "code"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (PROJECT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((PROJECT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source], check=True)
    [wheel] = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", code, wheel], check=True)
    (tmp_path / "empty").mkdir()
    shop = Shop(tmp_path / "empty" / "shop", code)
    where = shop.run("python", "import orchestration; print(orchestration.__file__)", cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(code)
    written = {path: path.stat().st_mtime_ns for path in code.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    shop.run("finegrain", "init", "shop", cwd=tmp_path / "empty")
    assert (shop.folder / "dbt_packages" / "finegrain").resolve() == code / "orchestration" / "dbt"
    shop.run("finegrain", "load", "mappings")
    shop.run("finegrain", "build")
    assert shop.sql("select count(*) from marts.book_features") == [(4,)]
    shop.run("dbt", "build", "--select", "book_features")
    after = {path: path.stat().st_mtime_ns for path in code.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert after == written  # nothing is written where finegrain is installed
