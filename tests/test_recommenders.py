"""docs/how-to/train-recommenders.md, run as it stands: RecTools, implicit, RecBole and PyTorch train on what `finegrain export` writes.

implicit runs in this environment, the others in one of their own (scripts/recommenders setup).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from test_exports import ODD

from orchestration.config.settings import PROJECT, Settings
from orchestration.features.exports import READ_AS_MISSING, Wanted, recbole
from orchestration.warehouse.publish import publish

PAGE = (PROJECT / "docs" / "how-to" / "train-recommenders.md").read_text("utf-8")
COMMANDS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.S | re.M)
BLOCKS: dict[str, str] = dict(re.findall(r"^```python (\w+)\n(.*?)^```", PAGE, re.S | re.M))
PYTHON = PROJECT / "var" / "recommenders" / ".venv" / "bin" / "python"


def ours(*arguments: str, folder: Path, where: Settings) -> str:
    done = subprocess.run(
        arguments, cwd=folder, env={**os.environ, **where.environment()}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the page were run, one after the other."""
    folder = tmp_path_factory.mktemp("recommenders")
    home = folder / "home"
    shutil.copytree(built_shop.home, home, ignore=shutil.ignore_patterns("logs"))
    where = Settings.below(home, built_shop.extensions)
    publish(where)
    for command in COMMANDS:
        text = command.replace("finegrain ", f"{sys.executable} -m orchestration.cli ", 1)
        ours("bash", "-ec", text, folder=folder, where=where)
    assert len(COMMANDS) == 4
    return folder


def theirs(code: str, folder: Path) -> str:
    """The output of code in the environment of RecTools and RecBole. Without one, the test is skipped; in CI it fails."""
    if not PYTHON.with_name("..").joinpath(".installed").exists():
        what = "RecTools and RecBole are not installed: scripts/recommenders setup"
        if os.environ.get("CI"):
            pytest.fail(what)
        pytest.skip(what)
    # No path of this environment: its packages are for another numpy.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_implicit_fits_on_interactions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix has the sums of weights; what is recommended are products of the shop that the user does not have."""
    monkeypatch.chdir(folder)
    exec(BLOCKS["implicit"], names := {})
    train: pd.DataFrame = names["train"]
    expected = train.groupby(["user_id", "item_id"])["weight"].sum()
    matrix = names["matrix"].tocoo()
    found = pd.Series(matrix.data, index=pd.MultiIndex.from_arrays([matrix.row, matrix.col]))
    assert found.sort_index().tolist() == expected.tolist() and (expected > 1).any()
    with duckdb.connect(str(folder / "home" / "published" / "finegrain.duckdb"), read_only=True) as con:
        known = {product for (product,) in con.execute("select product_id from dim_products").fetchall()}
    assert set(names["products"]) <= known and len(set(names["products"])) == 10
    had = set(train.loc[train["user_id"] == 0, "item_id"])
    assert not had & set(names["best"]) and np.isfinite(names["scores"]).all()


def test_rectools_recommends_from_interactions(folder: Path) -> None:
    check = """
print(dataset.user_id_map.size, dataset.item_id_map.size, len(dataset.interactions.df))
print(recommended["user_id"].nunique(), len(recommended), recommended["item_id"].isin(train["item_id"]).all())
print(dataset.interactions.df["weight"].sum(), dataset.interactions.df["datetime"].max(), recall)
"""
    lines = [line.split() for line in theirs(BLOCKS["rectools"] + check, folder).splitlines()]
    train, test = (pd.read_parquet(folder / "interactions" / f"{name}.parquet") for name in ("train", "test"))
    assert [int(each) for each in lines[0]] == [train["user_id"].nunique(), train["item_id"].nunique(), len(train)]
    users = len(set(test["user_id"]) & set(train["user_id"]))
    assert lines[1] == [str(users), str(10 * users), "True"] and users > 10
    assert float(lines[2][0]) == train["weight"].sum() and " ".join(lines[2][1:3]) == str(train["datetime"].max())
    # Better than drawing ten of the products by chance.
    assert float(lines[2][3]) > 10 / train["item_id"].nunique()


def test_recbole_trains_on_its_files(folder: Path) -> None:
    check = """
print("FOUND", dataset.user_num, dataset.item_num, len(train.dataset), len(valid.dataset), len(test.dataset))
print("FOUND", *sorted(dataset.user_feat.columns), *sorted(dataset.item_feat.columns), *sorted(dataset.inter_feat.columns))
print("FOUND", result["recall@10"], dataset.inter_feat["timestamp"].max().item())
"""
    lines = [
        line.split()[1:] for line in theirs(BLOCKS["recbole"] + check, folder).splitlines() if line.startswith("FOUND")
    ]
    parts = [pd.read_csv(folder / "shop" / f"shop.{name}.inter", delimiter="\t") for name in ("train", "valid", "test")]
    every = pd.concat(parts)
    # RecBole counts its padding, too.
    assert [int(each) for each in lines[0]] == [
        every["user_id:token"].nunique() + 1, every["item_id:token"].nunique() + 1, *map(len, parts)
    ]  # fmt: skip
    assert lines[1] == [
        *("user_features__rfm_segment", "user_features__views_30d", "user_id"),
        *("item_features__category", "item_features__price_now", "item_id"),
        *("event_type", "item_id", "timestamp", "user_id", "weight"),
    ]
    assert 0 <= float(lines[2][0]) <= 1 and float(lines[2][1]) == pytest.approx(
        every["timestamp:float"].max(), rel=1e-6
    )


def test_recbole_has_the_ids_that_were_written(built_shop: Settings, tmp_path: Path) -> None:
    """Also ids with tabs, quotes and line breaks; those that it reads as missing are left out."""
    shutil.copytree(built_shop.home, tmp_path / "home", ignore=shutil.ignore_patterns("logs"))
    where = Settings.below(tmp_path / "home", built_shop.extensions)
    with duckdb.connect(str(where.warehouse)) as con:
        for number, name in enumerate(ODD, start=1):
            con.execute(
                "update int_cleaning__events set product_id = ? where product_id = ?", [name, f"SKU-{number:06}"]
            )
        expected = {
            product
            for (product,) in con.execute(
                "select distinct product_id from int_cleaning__events where event_type in ('view_item', 'add_to_cart', 'purchase') and product_id is not null"
            ).fetchall()
        }
    recbole(tmp_path / "odd", Wanted(as_of=datetime(2025, 4, 8)), where=where)
    code = """
from recbole.config import Config
from recbole.data import create_dataset
config = Config(model="BPR", dataset="odd", config_file_list=["odd/recbole.yaml"], config_dict={"data_path": "."})
print("FOUND" + ascii(list(create_dataset(config).field2id_token["item_id"])))
"""
    [line] = [line for line in theirs(code, tmp_path).splitlines() if line.startswith("FOUND")]
    found: list[Any] = eval(line.removeprefix("FOUND"), {})
    assert found[0] == "[PAD]" and set(ODD) - set(READ_AS_MISSING) <= set(found)
    assert set(found[1:]) <= expected - set(READ_AS_MISSING)


def test_pytorch_trains_on_sequences(folder: Path) -> None:
    check = """
print(*padded.shape, int(padded.max()), len(products), losses[0], losses[-1])
print(all(len(row.product_codes) == len(row.event_times) == len(row.seconds_since_previous) for row in rows.itertuples()))
"""
    lines = [line.split() for line in theirs(BLOCKS["sequences"] + check, folder).splitlines()]
    found = duckdb.sql(f"select count(*), max(len(product_ids)) from '{folder}/sequences/sequences.parquet'").fetchall()
    assert [tuple(map(int, lines[0][:2]))] == found and found[0][1] <= 20
    assert int(lines[0][2]) <= int(lines[0][3]) and float(lines[0][5]) < float(lines[0][4])
    assert lines[1] == ["True"]
