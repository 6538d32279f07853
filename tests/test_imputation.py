"""k nearest neighbours and naive Bayes give what scikit-learn and plain Python give, in whichever order the rows come, and are as good as the benchmark
says."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shops import Homes

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.quality.imputation_score import (
    Floats,
    by_naive_bayes,
    by_neighbours,
    hide,
    labels_sql,
    matrix,
    neighbours_sql,
    rmse,
    score,
)

COLUMNS = [f"c{number}" for number in range(6)]


@pytest.fixture(scope="module")
def home(homes: Homes) -> Settings:
    return homes.make("imputation")


@pytest.fixture(scope="module")
def euclidean(home: Settings) -> str:
    return neighbours_sql(home, COLUMNS)


@pytest.fixture(scope="module")
def cosine(home: Settings) -> str:
    return neighbours_sql(home, COLUMNS, knn_metric="cosine", knn_scaling="robust", knn_reference_rows=300)


@pytest.fixture(scope="module")
def bayes(home: Settings) -> str:
    return labels_sql(home)


def near(values: Floats, asked: int, k: int, column: int, distances: Floats) -> float:
    """The mean of the k nearest rows with this column, weighted by one over their squared `distances`."""
    donors = [row for row in np.argsort(distances, kind="stable") if row != asked and not np.isnan(values[row, column])]
    donors = [row for row in donors if np.isfinite(distances[row])][:k]
    weights = 1 / np.maximum(distances[donors], 0.01)
    return float((weights * values[donors, column]).sum() / weights.sum()) if donors else math.nan


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_are_those_of_scikit_learn(euclidean: str, seed: int) -> None:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    rng = np.random.default_rng(seed)
    values = np.round(matrix(rng, "factors", 400, len(COLUMNS)) * 10.0 ** np.arange(-1, 5), 4)
    given = hide(rng, values, at_random=seed > 0)
    spread, centre = np.nanstd(given, axis=0, ddof=1), np.nanmean(given, axis=0)
    scaled = (given - centre) / spread
    distances = pairwise.nan_euclidean_distances(scaled) ** 2 / len(COLUMNS)
    filled = by_neighbours(euclidean, given, k=5)
    for row, column in np.argwhere(np.isnan(given)):
        expected = near(scaled, row, 5, column, np.where(np.isnan(distances[row]), np.inf, distances[row]))
        assert (filled[row, column] - centre[column]) / spread[column] == pytest.approx(expected, abs=2e-3)
    kept = ~np.isnan(given)
    assert (filled[kept] == given[kept]).all()


def test_neighbours_by_cosine_of_chosen_rows(cosine: str) -> None:
    """Of 400 rows the 300 with the smallest hash of their key are looked at, scaled by the median and quartiles of all."""
    rng = np.random.default_rng(9)
    given = hide(rng, np.round(matrix(rng, "segments", 400, len(COLUMNS)), 4), at_random=True)
    low, middle, high = np.nanquantile(given, [0.25, 0.5, 0.75], axis=0)
    scaled = (given - middle) / (high - low)
    hashes = duckdb.execute("select md5(n::varchar || '') as hash from range(400) as r (n) order by n").fetchall()
    chosen = set(sorted(range(400), key=lambda row: hashes[row])[:300])
    filled = by_neighbours(cosine, given, k=4)
    for row, column in np.argwhere(np.isnan(given)):
        if np.isnan(given[row]).sum() > 1:  # in the few columns that rows share, many lie in just its direction
            continue
        distances = np.full(400, np.inf)
        for other in chosen:
            both = ~np.isnan(scaled[row]) & ~np.isnan(scaled[other])
            a, b = scaled[row, both], scaled[other, both]
            if both.any():
                distances[other] = 1 - a @ b / math.sqrt((a @ a) * (b @ b))
        expected = near(scaled, row, 4, column, distances)
        value = (filled[row, column] - middle[column]) / (high - low)[column]
        assert value == pytest.approx(expected, abs=2e-3)


def test_rows_are_filled_by_donors_but_not_by_themselves(euclidean: str) -> None:
    rng = np.random.default_rng(6)
    given = hide(rng, np.round(matrix(rng, "factors", 60, len(COLUMNS)), 4), at_random=True)
    donors = np.round(matrix(rng, "factors", 200, len(COLUMNS)), 4)
    keys, of_donors = [f"row {number}" for number in range(60)], [f"donor {number}" for number in range(200)]
    # One donor is the row itself at another time, with the gaps known: the nearest of all.
    donors[17], of_donors[17] = np.where(np.isnan(given[0]), 100, given[0]), keys[0]
    centre, spread = donors.mean(axis=0), donors.std(axis=0, ddof=1)
    filled = by_neighbours(euclidean, given, 5, (donors, of_donors), keys)
    for row, column in np.argwhere(np.isnan(given)):
        scaled = (np.vstack([given[row], donors]) - centre) / spread
        distances = np.nanmean((scaled[1:] - scaled[0]) ** 2, axis=1)
        if row == 0:
            distances[17] = np.inf
        expected = near(scaled, 0, 5, column, np.concatenate([[np.inf], distances]))
        assert (filled[row, column] - centre[column]) / spread[column] == pytest.approx(expected, abs=2e-3)


def test_many_rows_are_searched_by_cells_with_little_loss(euclidean: str) -> None:
    rng = np.random.default_rng(4)
    values = matrix(rng, "factors", 4_000, len(COLUMNS))
    given = hide(rng, values, at_random=True)
    median = np.where(np.isnan(given), np.nanmedian(given, axis=0), given)
    filled = by_neighbours(euclidean, given)
    sklearn = pytest.importorskip("sklearn.impute")
    theirs = sklearn.KNNImputer(n_neighbors=20).fit_transform(given)
    (ours, share), (error, _), (worst, _) = (rmse(each, values, given) for each in (filled, theirs, median))
    assert share == 1 and ours < 1.02 * error and error < 0.95 * worst
    # In another order, to the last bit.
    order = rng.permutation(len(given))
    keyed = {row: place for place, row in enumerate(order)}
    again = _in_order(euclidean, given, order)
    assert all((again[keyed[row]] == filled[row]).all() for row in range(0, 4_000, 7))


def _in_order(sql: str, values: Floats, order: np.ndarray[Any, Any]) -> Floats:
    """As by_neighbours, with the rows written in another order under the same keys."""
    names = {name: pa.array(values[order, number], from_pandas=True) for number, name in enumerate(COLUMNS)}
    row, column = np.nonzero(np.isnan(values[order]))
    with duckdb.connect(config={"threads": 3}) as con:
        con.register("given", pa.table({"key": pa.array(order).cast(pa.string()), **names}))
        con.register("missing", pa.table({"key": pa.array(order[row]).cast(pa.string()), "position": column + 1}))
        con.execute("create table asked as select key, 'all' as group_key, * exclude (key) from given")
        con.execute("create view reference as from asked")
        con.execute("create table gaps as select key, 'all' as group_key, position, 20 as k from missing")
        found = con.execute(f"select key::bigint as row, position - 1 as col, value from ({sql})").fetchall()
    place = {int(key): at for at, key in enumerate(order)}
    out = values[order].copy()
    for key, col, value in found:
        out[place[key], col] = value
    return out


def test_absurd_numbers_fail_nothing(euclidean: str) -> None:
    """Rows of one value each, of a column without spread, and of the greatest numbers that a row may have."""
    missing = math.nan
    rows = [
        [1e11, 1, 1, 0, 5, missing],
        [-1e11, 1, missing, 0.0001, 5, missing],
        [missing, 1, missing, missing, missing, missing],
        [missing, missing, 7, missing, missing, missing],
        [1e-4, missing, 7, 1e11, 5, missing],
    ]
    filled = by_neighbours(euclidean, np.array(rows), k=3)
    assert np.isnan(filled[:, 5]).all()  # nobody has it
    assert filled[4, 1] == 1 and filled[2, 4] == 5
    # Rows 2 and 3 share no column with each other.
    assert np.isnan(filled[3, 1]) or filled[3, 1] == 1


Evidence = list[tuple[int, str, str, str, int]]


@st.composite
def evidence(draw: st.DrawFn) -> tuple[Evidence, list[tuple[str, str]], int]:
    """Counts by day, tokens that are asked about, and the day of the fit."""
    labels, tokens = st.sampled_from(["mugs", "hats", "bags"]), st.sampled_from(["red", "blue", "xl", "é"])
    features = st.sampled_from(["word", "brand"])
    rows = draw(st.lists(st.tuples(st.integers(0, 4), features, tokens, labels, st.integers(1, 9)), max_size=25))
    counted = draw(st.lists(st.tuples(st.integers(0, 4), labels, st.integers(1, 9)), max_size=6))
    asked = draw(st.lists(st.tuples(features, tokens), unique=True, max_size=6))
    return [*rows, *((day, "label", "", label, n) for day, label, n in counted)], asked, draw(st.integers(0, 4))


def by_hand(rows: Evidence, asked: list[tuple[str, str]], fit_day: int) -> dict[str, float]:
    """The probability of each label; empty if nothing is known of any token, or of labels."""
    n: Counter[tuple[str, str, str]] = Counter()
    by_label: dict[str, Counter[str]] = defaultdict(Counter)
    for day, feature, token, label, count in rows:
        if day <= fit_day:
            n[feature, token, label] += count
            by_label[feature][label] += count
    known = [each for each in asked if any(n[(*each, label)] for label in by_label[each[0]])]
    if not known or not by_label["label"]:
        return {}
    logs = {}
    for label, count in by_label["label"].items():
        logs[label] = math.log(count)
        for feature, token in known:
            everywhere = sum(by_label[feature].values())
            share = sum(n[feature, token, each] for each in by_label[feature]) / everywhere
            logs[label] += math.log((n[feature, token, label] + share) / (by_label[feature][label] + 1))
    total = sum(math.exp(each) for each in logs.values())
    return {label: math.exp(each) / total for label, each in logs.items()}


@settings(deadline=None, max_examples=60)
@given(case=evidence(), random=st.randoms(use_true_random=False))
def test_naive_bayes_is_that_of_plain_python(
    bayes: str, case: tuple[Evidence, list[tuple[str, str]], int], random: Random
) -> None:
    rows, asked, fit_day = case
    expected = by_hand(rows, asked, fit_day)
    first = date(2025, 1, 1)
    shuffled = random.sample(rows, k=len(rows))
    with duckdb.connect(config={"threads": 1}) as con:
        con.execute("create table evidence (arrival_day date, feature varchar, token varchar, label varchar, n bigint)")
        con.execute("create table asked (key varchar, fit_day date, feature varchar, token varchar)")
        for day, *rest in shuffled:
            con.execute("insert into evidence values (?, ?, ?, ?, ?)", [first + timedelta(days=day), *rest])
        for each in asked:
            con.execute("insert into asked values ('p', ?, ?, ?)", [first + timedelta(days=fit_day), *each])
        found = con.execute(f"select label, confidence from ({bayes})").fetchall()
    if not expected:
        assert found == []
        return
    [(label, confidence)] = found
    assert expected[label] == pytest.approx(max(expected.values()), abs=1e-5)
    assert confidence == pytest.approx(expected[label], abs=2e-4)


def test_labels_come_from_tokens(bayes: str) -> None:
    tokens = [(f"p{n}", "word", "tee" if n % 2 else "mug") for n in range(20)]
    labels = [(f"p{n}", "shirts" if n % 2 else "cups") for n in range(18)]
    assert {key: label for key, (label, _) in by_naive_bayes(bayes, tokens, labels, ["p18", "p19"]).items()} == {
        "p18": "cups",
        "p19": "shirts",
    }


def test_the_benchmark_needs_the_file_that_is_named(home: Settings) -> None:
    with pytest.raises(FinegrainError, match=r"nowhere\.parquet: there is no such file"):
        score(home, hits=Path("nowhere.parquet"))
