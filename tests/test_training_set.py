"""Training sets: features as of each row's moment, from files and queries, in splits and parts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from orchestration.config.settings import PROJECT, Settings
from orchestration.errors import FinegrainError
from orchestration.features.catalog import declared
from orchestration.features.training import chosen, keys_of, training_set
from orchestration.warehouse.compiled import answers, compiled
from orchestration.warehouse.publish import publish

SPINE = Callable[..., Path]


@pytest.fixture
def spine(built_shop: Settings, tmp_path: Path) -> SPINE:
    """Writes a query on the warehouse (`warehouse`) to a file."""

    def write(query: str, name: str = "spine.csv") -> Path:
        with duckdb.connect() as con:
            con.execute(f"attach '{built_shop.warehouse}' as warehouse (read_only)")
            kind = "csv, header" if name.endswith("csv") else "parquet"
            con.execute(f"copy ({query}) to '{tmp_path / name}' (format {kind})")
        return tmp_path / name

    return write


def rows(file: Path, order: str) -> list[tuple[Any, ...]]:
    return duckdb.sql(f"from '{file}' order by {order}").fetchall()


NOW = "(select as_of from warehouse.main.int_identity__build)"


def test_rows_as_of_the_build_are_those_of_the_marts(built_shop: Settings, spine: SPINE, tmp_path: Path) -> None:
    """With labels as they came. Of customers without a row for a product, features are null."""
    asked = spine(
        f"select i.customer_id, i.product_id, c.category, {NOW} as as_of, i.views_30d > 1 as label, 'x' as note "
        f"from warehouse.marts.user_item_features as i join warehouse.marts.user_category_features as c using (customer_id) "
        "qualify row_number() over (partition by i.customer_id, i.product_id order by c.category) = 1",
        "spine.parquet",
    )
    marts = ["user_features", "user_item_features", "user_category_features"]
    done = training_set(tmp_path / "out", spine=asked, features=marts, where=built_shop)
    assert done.unknown == dict.fromkeys(marts, 0)
    [(file, count)] = done.files.values()
    with duckdb.connect() as con:
        con.execute(f"attach '{built_shop.warehouse}' as warehouse (read_only)")
        con.execute(f"create view spine as from '{asked}'; create view made as from '{tmp_path / 'out' / file}'")
        assert con.execute("select count(*) from spine").fetchall() == [(count,)] and count > 100
        assert con.execute(
            "select count(*) from made join spine using (customer_id, product_id, category, as_of, label, note)"
        ).fetchall() == [(count,)]
        kinds = {name: kind for name, kind, *_ in con.execute("describe made").fetchall() if "__" in name}
        assert "BOOLEAN" not in kinds.values() and kinds["user_item_features__in_cart_now"] == "UTINYINT"
        for mart in [each for each in declared() if each.name in marts]:
            names = ", ".join(f'"{mart.name}__{each.name}"' for each in mart.features)
            theirs = ", ".join(f'"{each.name}"' for each in mart.features)
            keys = ", ".join(keys_of(mart))
            differ = con.execute(
                f"select count(*) from ((select distinct {keys}, {names} from made) except "
                f"(select {keys}, {theirs} from warehouse.marts.{mart.name}))"
            ).fetchall()
            assert differ == [(0,)], mart.name


def test_products_are_as_of_the_begin_of_a_period(built_shop: Settings, spine: SPINE, tmp_path: Path) -> None:
    asked = spine(f"select product_id, category, {NOW} - interval 30 hour as as_of from warehouse.marts.item_features")
    done = training_set(
        tmp_path / "out",
        spine=asked,
        features=["item_features", "category_features"],
        where=built_shop,
        period=timedelta(hours=6),
    )
    made = tmp_path / "out" / "all.parquet"
    with answers(built_shop, compiled(built_shop)) as opened:
        [(moment,)] = opened.con.execute(
            "select as_of - interval 30 hour from built.main.int_identity__build"
        ).fetchall()
        begin = moment.replace(hour=moment.hour // 6 * 6, minute=0, second=0, microsecond=0)
        assert begin < moment
        spines = {
            key: f"select distinct {key}, timestamp '{begin}' as as_of from '{made}'"
            for key in ("product_id", "category")
        }
        tables = opened.ask(["item_features", "category_features"], spines)
        for mart, key in (("item_features", "product_id"), ("category_features", "category")):
            wanted = f"select {key}, views_lifetime, views_trend_7d_30d, hours_since_event from {tables[mart]}"
            found = f"select distinct {key}, {mart}__views_lifetime, {mart}__views_trend_7d_30d, {mart}__hours_since_event from '{made}'"
            differ = f"select count(*) from (({found} where {mart}__views_lifetime is not null) except ({wanted}))"
            assert opened.con.execute(differ).fetchall() == [(0,)]
            [(known,)] = opened.con.execute(
                f"select count(*) from ({found} where {mart}__views_lifetime > 0)"
            ).fetchall()
            assert known > 3
    assert (
        done.unknown["item_features"]
        == duckdb.sql(f"select count(*) from '{made}' where item_features__views_lifetime is null").fetchall()[0][0]
    )


MANY = (
    "select customer_id, as_of - to_hours(h) as as_of, (hash(customer_id, h) % 2)::integer as label "
    "from warehouse.marts.user_features, generate_series(0, 400, 37) as g (h)"
)


def test_parts_give_the_same_rows(built_shop: Settings, spine: SPINE, tmp_path: Path) -> None:
    asked = spine(MANY)
    for name, part in (("whole", 1_000_000), ("parts", 100)):
        training_set(tmp_path / name, spine=asked, features=["user_features"], where=built_shop, part=part)
    whole, parts = (duckdb.sql(f"from '{tmp_path / name / 'all.parquet'}'").fetchall() for name in ("whole", "parts"))
    assert whole == parts and len(whole) > 500
    moments = [row[1] for row in whole]
    assert moments == sorted(moments)


def test_splits_leave_a_gap(built_shop: Settings, spine: SPINE, tmp_path: Path) -> None:
    asked = spine(MANY)
    first, second, gap = datetime(2025, 3, 30, 5), datetime(2025, 4, 4), timedelta(days=1.5)
    done = training_set(
        tmp_path / "out",
        spine=asked,
        features=["user_features.views_7d"],
        where=built_shop,
        splits=[first, second],
        gap=gap,
    )
    found = {
        name: [row[0] for row in duckdb.sql(f"select as_of from '{tmp_path / 'out' / file}'").fetchall()]
        for name, (file, _) in done.files.items()
    }
    moments = [row[0] for row in duckdb.sql(f"select as_of from '{asked}'").fetchall()]
    assert {name: sorted(each) for name, each in found.items()} == {
        "train": sorted(each for each in moments if each + gap <= first),
        "valid": sorted(each for each in moments if each >= first and each + gap <= second),
        "test": sorted(each for each in moments if each >= second),
    }
    assert all(found.values())
    assert done.left_out == len(moments) - sum(map(len, found.values())) > 0


def test_what_it_was_made_from_is_beside_it(built_shop: Settings, spine: SPINE, tmp_path: Path) -> None:
    asked = spine(MANY)
    abouts = []
    for name in ("one", "two"):
        training_set(
            tmp_path / name,
            spine=asked,
            features=["user_features.orders_7d", "user_features.views_*"],
            where=built_shop,
        )
        abouts.append(yaml.safe_load((tmp_path / name / "training_set.yml").read_text()))
    one, two = abouts
    assert {**one, "made_at": None} == {**two, "made_at": None}
    with duckdb.connect(str(built_shop.warehouse), read_only=True) as con:
        [(snapshot, count)] = con.execute(
            "select (select max(built_from) from builds), count(*) from marts.user_features"
        ).fetchall()
    assert one["lake_snapshot"] == snapshot and one["spine"]["rows"] == count * 11 == one["files"]["all"]["rows"]
    assert one["features"][0] == "user_features.orders_7d" and len(one["features"]) == 9


def test_features_are_named_by_pattern_and_set() -> None:
    marts = [each for each in declared() if each.name in ("user_features", "item_features")]
    sets = {
        "recent": ["user_features.views_7d", "item_features.price_now"],
        "more": ["recent", "user_features.orders_7d"],
    }
    assert chosen(["more", "user_features.views_7d"], marts, sets) == {
        "user_features": ["views_7d", "orders_7d"],
        "item_features": ["price_now"],
    }
    assert len(chosen(["user_features"], marts, {})["user_features"]) > 100
    for wrong, near in (
        ("user_feature", "user_features"),
        ("user_features.view_7d", "user_features.views_7d"),
        ("recnt", "recent"),
    ):
        with pytest.raises(FinegrainError, match=rf"there is no {wrong}; did you mean {near}\?"):
            chosen([wrong], marts, sets)


def test_the_feature_set_of_the_page_is_read(project: Path) -> None:
    page = (project / "docs" / "how-to" / "training-sets.md").read_text("utf-8")
    [block] = re.findall(r"^```yaml\n(.*?)^```", page, re.S | re.M)
    sets = yaml.safe_load(block)["vars"]["feature_sets"]
    assert len(chosen(list(sets), declared(), sets)["user_features"]) > 5


LATE = "as_of + interval 1 second"
BAD: dict[str, tuple[str, str]] = {
    "no key": ("select 'x' as person, now()::timestamp as as_of", "no column is a key; name at least one of them brand, category, customer_id"),
    "no as_of": ("select 'x' as customer_id", "there is no column as_of; add the time for which each row asks"),
    "empty": ("select customer_id, as_of from warehouse.marts.user_features where false", "it has no rows"),
    "null key": ("select case when i = 2 then null else i::varchar end as customer_id, timestamp '2025-04-01' as as_of from range(1, 5) as t (i)",
                 "there is 1 row without customer_id, the first is row 2; fill it in, or leave the row out"),
    "twice": ("select '1' as customer_id, timestamp '2025-04-01' as as_of from range(3)",
              "there are 3 rows of which customer_id and as_of come more than once, the first is row 1; keep one of each"),
    "mixed zones": ("select * from (values ('1', '2025-04-01T10:00:00+02:00'), ('2', '2025-04-01 10:00:00')) as t (customer_id, as_of)",
                    "as_of has an offset in 1 row and none in 1 row; write all with one"),
    "no time": ("select '1' as customer_id, 'yesterday' as as_of", "as_of of 1 row is no time, such as 'yesterday'"),
    "future": (f"select customer_id, {LATE} as as_of from warehouse.marts.user_features", "rows is later than the last event that is built"),
    "own column": ("select '1' as customer_id, timestamp '2025-04-01' as as_of, 1 as split",
                   "finegrain has a column split of its own; give that column another name"),
    "other key": ("select '1' as product_id, timestamp '2025-04-01' as as_of",
                  "user_features has a row for each customer_id, and the spine has no customer_id; add the column, or leave these features out"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_spine_gets_one_sentence(case: str, built_shop: Settings, spine: SPINE, tmp_path: Path) -> None:
    query, message = BAD[case]
    file = spine(query)
    with pytest.raises(FinegrainError) as error:
        training_set(tmp_path / "out", spine=file, features=["user_features"], where=built_shop)
    assert str(file) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_offsets_are_read(built_shop: Settings, spine: SPINE, tmp_path: Path) -> None:
    file = spine(
        "select * from (values ('1', '2025-04-01T10:00:00+02:00'), ('2', '2025-04-01T10:00:00Z')) as t (customer_id, as_of)"
    )
    training_set(tmp_path / "out", spine=file, features=["user_features.views_7d"], where=built_shop)
    assert [row[:2] for row in rows(tmp_path / "out" / "all.parquet", "1")] == [
        ("1", datetime(2025, 4, 1, 8)), ("2", datetime(2025, 4, 1, 10)),
    ]  # fmt: skip


def finegrain(where: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "training-set", *arguments],
        env={**os.environ, **where.environment()}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command(built_shop: Settings, spine: SPINE, tmp_path: Path) -> None:
    file, out = spine(MANY), tmp_path / "sets" / "out"
    done = finegrain(
        built_shop,
        *(str(file), "--out", str(out), "--features", "user_features.views_7d, user_features.orders_30d"),
        "--trust-event-time",
    )
    assert done.returncode == 0, done.stderr
    assert "events count from when they happened: what arrived late is seen before anybody knew it\n" in done.stdout
    assert yaml.safe_load((out / "training_set.yml").read_text("utf-8"))["trust_event_time"] is True
    made = duckdb.sql(f"from '{out}/all.parquet'")
    assert f"{out / 'all.parquet'}: {len(made):,} rows, 2 features\n" in done.stdout
    assert made.columns == ["customer_id", "as_of", "label", "user_features__views_7d", "user_features__orders_30d"]
    for arguments, message in (
        ([str(file), "--out", str(out)], f"{out} is not empty; name a new folder"),
        (
            [str(tmp_path / "no.csv")],
            f"{tmp_path / 'no.csv'} does not exist; name a CSV or Parquet file with the spine, or one of customer_outcomes, next_basket, next_in_session",
        ),
        ([], "name a file with the spine or a ready-made one, or give one as --query, and not both"),
        ([str(file), "--label", "lable"], f"{file}: there is no column lable; did you mean label?"),
        ([str(file), "--group", "custmer_id"], f"{file}: there is no column custmer_id; did you mean customer_id?"),
        (
            [str(file), "--group", "label"],
            "rows in groups of more than one as_of, the first is row 1; add as_of to --group",
        ),
        ([str(file), "--split", "2025-04-02"], "--split: give two times"),
        ([str(file), "--split", "soon,later"], "--split is 'soon', which is not an ISO 8601 time"),
        (
            ["--query", "select 1"],
            "nothing is published, so there are no marts to query; run `finegrain publish` first",
        ),
    ):
        wrong = finegrain(built_shop, *arguments)
        assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and message in wrong.stderr, wrong.stderr
        assert len(wrong.stderr.splitlines()) == 1 and wrong.stdout == ""


@pytest.fixture(scope="module")
def published(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("published") / "home"
    shutil.copytree(built_shop.home, home, ignore=shutil.ignore_patterns("logs"))
    where = Settings.below(home, built_shop.extensions)
    published_as = publish(where)
    # The shop is too short for three weeks of labels: give the last one some.
    with duckdb.connect(str(published_as.folder / "finegrain.duckdb")) as con:
        con.execute(
            "update customer_outcomes set bought_within_7d = true where as_of = '2025-04-07' and customer_id > '8'"
        )
    return where


def test_a_ready_made_spine_has_the_label_that_is_asked_for_and_its_gap(published: Settings, tmp_path: Path) -> None:
    """The gap before a split is the window of the label."""
    splits = [datetime(2025, 3, 31), datetime(2025, 4, 7)]
    label = "bought_within_7d"
    done = training_set(
        tmp_path / "out", spine=Path("customer_outcomes"), label=label, features=["user_features.views_30d"],
        splits=splits, where=published,
    )  # fmt: skip
    with duckdb.connect(str(published.published / "finegrain.duckdb"), read_only=True) as con:
        spine = con.execute(f"select customer_id, as_of, {label} from customer_outcomes").fetchall()
    labelled = [row for row in spine if row[2] is not None]
    week = timedelta(days=7)
    expected = {
        "train": {row for row in labelled if row[1] + week <= splits[0]},
        "valid": {row for row in labelled if splits[0] <= row[1] and row[1] + week <= splits[1]},
        "test": {row for row in labelled if row[1] >= splits[1]},
    }
    for split, (file, count) in done.files.items():
        assert duckdb.sql(f"from '{tmp_path / 'out' / file}'").columns == [
            "customer_id", "as_of", label, "user_features__views_30d"
        ]  # fmt: skip
        assert {row[:3] for row in rows(tmp_path / "out" / file, "1")} == expected[split]
        assert count == len(expected[split]) > 0
    assert done.left_out == 0 == len(labelled) - sum(map(len, expected.values()))
    about = yaml.safe_load((tmp_path / "out" / "training_set.yml").read_text("utf-8"))
    assert about["gap_seconds"] == week.total_seconds()
    assert about["spine"]["rows_without_label"] == len(spine) - len(labelled) > 0


@pytest.mark.parametrize(
    ("spine", "group", "chosen", "features"),
    [
        (
            "next_in_session",
            ["session_id", "as_of"],
            "is_next",
            ["session_features.*", "user_item_features.views_*", "item_features.views_7d"],
        ),
        ("next_basket", ["order_key"], "is_bought", ["user_features.orders_*", "user_item_features.orders_*"]),
    ],
)
def test_candidates_have_features_and_stand_in_groups(
    published: Settings, tmp_path: Path, spine: str, group: list[str], chosen: str, features: list[str]
) -> None:
    """Rows of a choice stand together, numbered in the order of time, as rankers take them; also where a part ends within a group."""
    with duckdb.connect(str(published.warehouse), read_only=True) as con:
        [(count,)] = con.execute(f"select count(*) from marts.{spine}").fetchall()
    done = training_set(
        tmp_path / "out", spine=Path(spine), label=chosen, features=features, where=published, part=count // 2 + 1
    )
    assert done.files == {"all": ("all.parquet", count)}
    assert done.unknown.get("session_features", 0) == 0 and done.unknown.get("user_features", 0) == 0
    table = duckdb.sql(f"from '{tmp_path / 'out' / 'all.parquet'}'").df()
    starts = (table[group] != table[group].shift()).any(axis=1)
    assert (starts.cumsum() - 1 == table["group_id"]).all() and table["as_of"].is_monotonic_increasing
    assert len(table[group].drop_duplicates()) == table["group_id"].max() + 1 > 3
    assert table.groupby("group_id")[chosen].any().all() and not table[chosen].all()


def test_the_libraries_of_the_page_train_on_it(
    published: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of docs/how-to/training-sets.md, as it stands there, with labels of our own: the shop is too short for those of the page. One says what a feature
    says, so that a model which reads the columns rightly is right."""
    page = (PROJECT / "docs" / "how-to" / "training-sets.md").read_text("utf-8")
    blocks = dict(re.findall(r"^```python (\w+)\n(.*?)^```", page, re.S | re.M))
    monkeypatch.chdir(tmp_path)
    labels = "select u.customer_id, as_of - interval 7 day * d as as_of, u.orders_30d > 0 as churned_within_14d from user_features as u, range(3) as t (d)"
    splits = [datetime(2025, 4, 1), datetime(2025, 4, 5)]
    training_set(Path("training"), query=labels, features=["user_features"], splits=splits, where=published)
    names: dict[str, Any] = {}
    exec(blocks["lightgbm"], names)
    vocabulary = yaml.safe_load(Path("training/vocabulary.json").read_text("utf-8"))
    train = duckdb.sql("from 'training/train.parquet'").df()
    assert {name: sorted(train[name].dropna().unique()) for name in vocabulary} == vocabulary
    features, _ = names["rows"]("train")
    assert "user_features__revenue_90d" in features and set(vocabulary) <= set(features)
    assert names["model"].best_score["valid_0"]["auc"] > 0.5
    exec(blocks["catboost"], names)
    assert set(names["model"].feature_names_) == set(features)

    training_set(Path("ranking"), spine=Path("next_in_session"), features=["user_item_features"], where=published)
    exec(blocks["ranking"], {**names, "folder": Path("ranking")}, found := {})
    assert (
        len(found["ranker"].predict(found["features"]))
        == len(found["table"])
        == len(found["other"].predict(found["features"]))
    )


def test_a_label_that_no_row_has_is_one_sentence(published: Settings, tmp_path: Path) -> None:
    with pytest.raises(FinegrainError, match="customer_outcomes: it has no rows; revenue_next_90d is null in all"):
        training_set(
            tmp_path / "out", spine=Path("customer_outcomes"), label="revenue_next_90d", features=["user_features"],
            where=published,
        )  # fmt: skip
