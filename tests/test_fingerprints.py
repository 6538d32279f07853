"""Rules that change: which models a build then makes from scratch, and which it leaves unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest
from small_shops import VARS, Homes, ShopMaker, differences, land

from orchestration.config.settings import Settings
from orchestration.warehouse.build import Build, from_scratch, run_dbt
from orchestration.warehouse.fingerprints import ALL, _macros, code, of_project, parts_of

Change = tuple[str, str, str]


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    """A copy of the dbt project."""
    folder = tmp_path / "project"
    for name in ("models", "macros", "seeds", "snapshots", "dbt_packages", "tests/generic", "tests/singular"):
        shutil.copytree(project / name, folder / name)
    for name in ("dbt_project.yml", "profiles.yml", "packages.yml"):
        shutil.copy(project / name, folder)
    return folder


def change(folder: Path, file: str, old: str, new: str) -> None:
    path = folder / file
    text = path.read_text("utf-8")
    assert old in text, f"{file} does not hold {old!r}"
    path.write_text(text.replace(old, new, 1), "utf-8")


#: Changes of one file, with models whose fingerprint changes, and models whose fingerprint does not.
CHANGES: dict[str, tuple[Change, set[str], set[str]]] = {
    "a comment in a test macro": (
        ("tests/generic/every_row.sql", "#}", "; and so on. #}"),
        set(),
        {"test_every_row", "int_events__validated", "user_features"},
    ),
    "a field that passes through": (
        ("models/staging/_sources.yml", "meta: {pass_through: varchar}", "meta: {pass_through: integer}"),
        {"stg_events__events", "int_events__validated", "int_cleaning__events", "fct_events"},
        {"int_events__sessionized", "stg_shop__orders", "user_features"},
    ),
    "a comment in a macro": (
        ("macros/sessions.sql", "events without a gap", "events that follow without a gap"),
        set(),
        {"int_events__sessionized"},
    ),
    "a comment in a model": (
        (
            "models/intermediate/events/int_events__sessionized.sql",
            "-- Where a changed row stood before.",
            '-- It\'s "where" it stood.',
        ),
        set(),
        {"int_events__sessionized"},
    ),
    "what a test asks": (
        ("macros/tests.sql", "where broken_rules <> ''", "where broken_rules > ''"),
        {"test_every_row", "test_windows_grow"},
        {"int_events__validated", "user_features"},
    ),
    "a value of a string": (
        ("models/intermediate/events/int_events__sessionized.sql", "'database'", "'data  base'"),
        {"int_events__sessionized"},
        {"int_events__validated"},
    ),
    "a macro that a model's macro calls": (
        (
            "macros/engine/functions.sql",
            "macro default__id_hash(expressions) -%}",
            "macro default__id_hash(expressions) -%}'' ||",
        ),
        {"int_events__normalized", "int_events__sessionized"},
        {"int_tiles__identity_day"},
    ),
    "a var": (
        ("dbt_project.yml", "max_price: 100000", "max_price: 100001"),
        {"int_events__validated"},
        {"int_events__sessionized", "int_identity__links", "int_tiles__identity_day", "user_features"},
    ),
    "a var of sessions": (
        ("dbt_project.yml", "session_gap_minutes: 30", "session_gap_minutes: 31"),
        {"int_events__sessionized"},
        {"int_events__validated", "int_cleaning__events", "item_features"},
    ),
    "a measure": (
        ("dbt_project.yml", "where: event_type = 'search'", "where: event_type = 'searches'"),
        {"int_tiles__identity_day", "int_features__user"},
        {"int_events__validated", "int_cleaning__events", "int_identity__links"},
    ),
    "a record of builds": (
        ("macros/builds.sql", "'open', false", "'begun', false"),
        set(),
        {"int_events__validated", "dim_shop"},
    ),
}


@pytest.mark.parametrize(("edit", "other", "same"), CHANGES.values(), ids=CHANGES)
def test_what_a_fingerprint_sees(copy: Path, edit: Change, other: set[str], same: set[str]) -> None:
    before = of_project(copy)
    assert before == of_project(copy)
    change(copy, *edit)
    after = of_project(copy)
    changed = {name for name in before if before[name] != after[name]} - {ALL}
    assert other <= changed
    assert not changed & same
    assert changed == set() or other


def test_a_setting_of_the_shop_overrides_a_var(copy: Path) -> None:
    usd, eur = (of_project(copy, {"reporting_currency": currency}) for currency in ("USD", "EUR"))
    assert of_project(copy) == usd
    assert usd["int_events__normalized"] != eur["int_events__normalized"]
    assert usd["int_events__sessionized"] == eur["int_events__sessionized"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select a -- it's a comment\n\nfrom b", "select a from b"),
        ("select '--', \"{# a #}\" as b", "select '--', \" \" as b"),
        ("{# it's\n two lines #}\nselect 'a  b'", "select 'a  b'"),
        ("{{ config(hook=\"{{ x('y') }}\") }}", "{{ config(hook=\"{{ x('y') }}\") }}"),
    ],
)
def test_comments_and_whitespace_do_not_count(text: str, expected: str) -> None:
    assert code(text) == expected


def test_what_was_built_from_scratch_is_said_in_one_sentence() -> None:
    said = [
        "Built from scratch: sessions, since its rules changed",
        "something else",
        "Built from scratch: events, since names was",
        "Built from scratch: tiles, since sessions was",
        "Built from scratch: states, since sessions was",
        "Built from scratch: orders, since its rules changed",
    ]
    assert from_scratch(said) == [
        "built from scratch: sessions, orders, since their rules changed; 1 model that reads names; 2 models that read sessions"
    ]
    assert from_scratch(["something else"]) == []


def _run(where: Settings, project: Path, command: str, *arguments: str, variables: Mapping[str, Any] = VARS) -> Build:
    target = project.parent / "target"
    own = ["--vars", json.dumps(dict(variables)), "--target-path", str(target)]
    done = run_dbt([command, *own, *arguments], where=where, project=project)
    assert done.passed, [(node.name, node.message) for node in done.failed]
    return done


def _begun(where: Settings) -> set[str]:
    """What the last build recorded: the tables and views whose rules changed."""
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        found = con.execute("select model from states where begun_in = (select max(number) from builds)").fetchall()
    return {str(name) for (name,) in found}


class _Graph:
    """The dependencies, from dbt's manifest."""

    def __init__(self, project: Path) -> None:
        manifest = json.loads((project.parent / "target" / "manifest.json").read_text("utf-8"))
        self.children: dict[str, list[str]] = manifest["child_map"]
        self.names = {
            key: str(node["name"])
            for key, node in manifest["nodes"].items()
            if node["resource_type"] in ("model", "seed")
        }
        self.incremental = {
            str(node["name"])
            for node in manifest["nodes"].values()
            if node["config"].get("materialized") == "incremental"
        }

    def below(self, *names: str) -> set[str]:
        """These models and everything downstream."""
        waiting = [key for key, name in self.names.items() if name in names]
        found = set(waiting)
        while waiting:
            new = [key for key in self.children.get(waiting.pop(), []) if key in self.names and key not in found]
            found.update(new)
            waiting += new
        return {self.names[key] for key in found}


class _Shop:
    """A small shop whose rows arrive in three parts, built from a copy of the project; only the models in `selected`
    are built."""

    def __init__(self, homes: Homes, project: Path, *selected: str) -> None:
        random = Random(5)
        rows = ShopMaker(random).shop()
        random.shuffle(rows)
        self.homes, self.project, self.where, self.selected = homes, project, homes.make("rules"), selected
        self.parts = [rows[begin::3] for begin in range(3)]
        self.arrive()
        self.build()
        self.graph = _Graph(project)

    def arrive(self) -> None:
        land(self.where, self.parts.pop())

    def build(self, **variables: object) -> Build:
        return _run(self.where, self.project, "run", *self.selected, variables=VARS | variables)

    def change_seed(self, name: str, old: str, new: str) -> None:
        change(self.project, f"seeds/{name}.csv", old, new)
        _run(self.where, self.project, "seed", "--select", name)

    def begun(self) -> set[str]:
        """What the last build recorded."""
        return _begun(self.where)

    def equals_one_from_scratch(self, **variables: object) -> None:
        at_once = self.homes.beside(self.where)
        _run(at_once, self.project, "run", "--full-refresh", *self.selected, variables=VARS | variables)
        assert differences(self.where, at_once) == []


@pytest.mark.long
def test_a_label_or_a_comment_rebuilds_no_incremental_model(homes: Homes, copy: Path) -> None:
    shop = _Shop(homes, copy)
    change(copy, "tests/generic/every_row.sql", "#}", "; and so on. #}")
    change(copy, "macros/sessions.sql", "events without a gap", "events that follow without a gap")
    shop.change_seed("rfm_segments", "champion", "Best of all")
    done = shop.build()
    assert "user_features" in shop.begun() <= shop.graph.below("rfm_segments")
    assert not shop.begun() & shop.graph.incremental
    assert done.notes == []


@pytest.mark.soak
def test_rules_of_events_rebuild_what_follows_from_them(homes: Homes, copy: Path) -> None:
    """A rule of sessions, one of verdicts, and a seed that reaches the verdicts through tables and views."""
    events = {"int_events__validated", "int_events__sessionized"}
    shop = _Shop(homes, copy, "--select", "+int_events__sessionized")
    shop.arrive()
    done = shop.build(session_gap_minutes=3)
    assert shop.begun() & events == {"int_events__sessionized"}
    assert done.notes == ["built from scratch: int_events__sessionized, since its rules changed"]

    shop.arrive()
    shop.build(session_gap_minutes=3, max_price=50)
    assert events <= shop.begun()
    assert "int_events__new_rows" not in shop.begun()
    shop.equals_one_from_scratch(session_gap_minutes=3, max_price=50)

    shop.change_seed("category_map", "\nbooks,", "\nnever heard of,")
    shop.build(session_gap_minutes=3, max_price=50)
    assert events <= shop.begun() <= shop.graph.below("category_map")
    shop.equals_one_from_scratch(session_gap_minutes=3, max_price=50)


def _macros_of(keys: Iterable[str], macros: Mapping[str, Any]) -> set[str]:
    """The names of the project's macros that these call, according to dbt."""
    found: set[str] = set()
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key not in found and key in macros:
            found.add(key)
            waiting += macros[key]["depends_on"]["macros"]
    return {str(macros[key]["name"]) for key in found if macros[key]["package_name"] == "finegrain"}


def test_no_macro_of_a_model_is_overlooked(project: Path, homes: Homes) -> None:
    """Compared with what dbt itself found when it parsed. dbt includes the hooks of dbt_project.yml, too."""
    where, target = homes.make("parsed"), homes.root / "target"  # where dbt has parsed it already
    run_dbt(["parse", "--vars", json.dumps(VARS), "--target-path", str(target)], where=where)
    manifest = json.loads((target / "manifest.json").read_text("utf-8"))
    macros, known = _macros(project), manifest["macros"]
    bookkeeping = _macros_of(
        [f"macro.finegrain.{name}" for name in ("record_state", "hooks_read", "is_unchanged", "inputs_of")], known
    )
    looked_at = 0
    for node in manifest["nodes"].values():
        if node["resource_type"] in ("model", "snapshot") or (
            node["resource_type"] == "test" and not node.get("test_metadata")
        ):
            text = code((project / node["original_file_path"]).read_text("utf-8"))
            assert _macros_of(node["depends_on"]["macros"], known) - set(parts_of(text, macros, {})) <= bookkeeping, (
                node["name"]
            )
            looked_at += 1
    assert looked_at > 90
