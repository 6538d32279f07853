"""scripts/describe_features.py: the YAML of the feature marts matches the declarations, and has everything that each
column needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from describe_features import END, START, declarations, main
from features import Project

FEATURES = Path("models") / "marts" / "features"
MARTS = declarations()


def written(root: Path, mart: str) -> dict[str, dict[str, object]]:
    """The columns of a mart's YAML, by name."""
    [model] = yaml.safe_load((root / FEATURES / f"{mart}.yml").read_text(encoding="utf-8"))["models"]
    names = [column["name"] for column in model["columns"]]
    assert len(set(names)) == len(names)
    return {column["name"]: column for column in model["columns"]}


@pytest.fixture
def copy(tmp_path: Path, project: Path) -> Path:
    """A copy of the files that the script reads and writes."""
    (tmp_path / FEATURES).mkdir(parents=True)
    shutil.copy(project / "dbt_project.yml", tmp_path)
    for mart in MARTS:
        shutil.copy(project / FEATURES / f"{mart}.yml", tmp_path / FEATURES)
    return tmp_path


def test_the_yaml_matches_the_declarations(project: Path) -> None:
    assert main(["--check"], project) == 0


@pytest.mark.parametrize("mart", MARTS)
def test_every_feature_has_everything_it_needs(project: Path, mart: str) -> None:
    for name, column in list(written(project, mart).items())[len(MARTS[mart].KEYS) + 2 :]:
        meta = column["config"]["meta"]  # type: ignore[index]
        assert column["data_type"] and str(column["description"]).endswith("."), name
        assert {"unit", "window", "null_means"} <= set(meta), name
        assert "{" not in str(column["description"]), name


def test_a_change_by_hand_is_reported_and_undone(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / FEATURES / "user_features.yml"
    before = path.read_text()
    path.write_text(before.replace("name: views_7d, data_type: bigint", "name: views_7d, data_type: double"))
    assert main(["--check"], copy) == 1
    assert "user_features.yml" in capsys.readouterr().out
    assert main([], copy) == 0
    assert path.read_text() == before


def test_everything_above_and_below_the_columns_is_kept(copy: Path) -> None:
    path = copy / FEATURES / "item_features.yml"
    text = path.read_text()
    by_hand = text.replace("one row per product and as_of", "mine") + "  # By hand.\n"
    assert "unit_tests:" in text and by_hand.count("mine") > text.count("mine")
    path.write_text(by_hand)
    assert main(["--check"], copy) == 0
    path.write_text(by_hand.replace("unit: events", "unit: clicks"))
    assert main([], copy) == 0
    assert path.read_text() == by_hand


@pytest.mark.parametrize("mark", [START, END])
def test_a_file_without_a_mark_is_not_written(copy: Path, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / FEATURES / "item_features.yml"
    path.write_text(text := path.read_text().replace(mark, ""))
    assert main([], copy) == 1
    assert f"{FEATURES / 'item_features.yml'}: the lines" in capsys.readouterr().out
    assert path.read_text() == text


def test_windows_and_half_lives_are_the_projects(copy: Path) -> None:
    path = copy / "dbt_project.yml"
    text = path.read_text()
    changed = text.replace("day_windows: [7, 14, 30, 90, 365]", "day_windows: [7, 10, 14, 30, 90, 365]")
    path.write_text(changed.replace("half_lives: [1, 7, 30]", "half_lives: [3]"))
    main([], copy)
    assert written(copy, "user_features")["views_10d"]["description"] == "Product views in the last 10 days."
    items = written(copy, "item_features")
    assert "views_ema_3d" in items and "views_ema_7d" not in items


def test_names_are_declared_once(project: Path) -> None:
    declared = Project(yaml.safe_load((project / "dbt_project.yml").read_text())["vars"])
    for mart in MARTS.values():
        names = [feature.name for feature in mart.features(declared)]
        assert len(set(names)) == len(names)
