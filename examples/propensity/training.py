"""Trains LightGBM and CatBoost, and measures them: AUC and average precision (PR-AUC) on the test rows, with intervals from a bootstrap over customers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import catboost
import lightgbm
import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

SEED = 7
#: With several, sums are rounded in another order, and models differ in the last digits.
THREADS = 1
TREES, PATIENCE = 500, 50
RESAMPLES = 500

Scores = Callable[[pd.DataFrame], np.ndarray]


@dataclass(frozen=True)
class Model:
    """A trained model: `scores` gives a number for each row, the higher the more likely; `trees`, how many early stopping left (0 of a model without)."""

    scores: Scores
    trees: int


def lightgbm_model(
    features: pd.DataFrame,
    label: pd.Series,
    valid: tuple[pd.DataFrame, pd.Series],
    weight: np.ndarray | None = None,
    seeds: Sequence[int] = (SEED,),
) -> Model:
    """Gradient boosting that stops when the loss of the validation rows has not fallen for 50 trees. Nulls are left to it. Of several seeds, the scores are
    averaged."""
    settings = {
        "objective": "binary",
        "learning_rate": 0.05,
        "num_leaves": 15,
        "min_data_in_leaf": 50,
        "feature_fraction": 0.5,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": THREADS,
        "verbose": -1,
    }
    models = []
    for seed in seeds:
        train = lightgbm.Dataset(features, label, weight=weight)
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        stopped_by = [train.create_valid(*valid)]
        models.append(lightgbm.train(settings | {"seed": seed}, train, TREES, valid_sets=stopped_by, callbacks=[stop]))
    return Model(
        lambda rows: np.mean([model.predict(rows, num_iteration=model.best_iteration) for model in models], axis=0),
        sum(model.best_iteration for model in models),
    )


def catboost_model(features: pd.DataFrame, label: pd.Series, valid: tuple[pd.DataFrame, pd.Series]) -> Model:
    """The same with CatBoost, which takes no null in a category."""
    categories = list(features.select_dtypes("category"))

    def pool(rows: pd.DataFrame, labels: pd.Series | None = None) -> catboost.Pool:
        rows = rows.assign(**{name: rows[name].astype(object).fillna("unknown") for name in categories})
        return catboost.Pool(rows, labels, cat_features=categories)

    model = catboost.CatBoostClassifier(
        iterations=TREES,
        learning_rate=0.05,
        depth=6,
        od_type="Iter",
        od_wait=PATIENCE,
        random_seed=SEED,
        thread_count=THREADS,
        allow_writing_files=False,
        verbose=False,
    )
    model.fit(pool(features, label), eval_set=pool(*valid))
    return Model(lambda rows: model.predict_proba(pool(rows))[:, 1], int(model.tree_count_))


def logistic_model(features: pd.DataFrame, label: pd.Series, valid: tuple[pd.DataFrame, pd.Series]) -> Model:
    """Logistic regression over standardized numbers and categories, without the validation rows. It takes no nulls: a number gets the median of the training
    rows."""
    del valid
    numbers = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    columns = make_column_transformer(
        (numbers, make_column_selector(dtype_exclude="category")),
        (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_include="category")),
    )
    as_numbers = {name: "float64" for name in features if features[name].dtype != "category"}
    model = make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(features.astype(as_numbers), label)
    return Model(lambda rows: model.predict_proba(rows.astype(as_numbers))[:, 1], 0)


MODELS = {"LightGBM": lightgbm_model, "CatBoost": catboost_model}


@dataclass(frozen=True)
class Measured:
    """Of some scores: AUC and average precision, and the same of each resample (NaN where it has one class only)."""

    auc: float
    ap: float
    aucs: np.ndarray
    aps: np.ndarray


def measure(label: np.ndarray, scores: np.ndarray, customers: pd.Series, resamples: int = RESAMPLES) -> Measured:
    """Measure scores. A resample draws as many customers as there are, each with all its rows; of the same customers in the same order, the same are drawn,
    so that the resamples of two models can be subtracted."""
    ranked = Ranked(label, scores)
    found = np.array([ranked.metrics(weights) for weights in drawn(customers, resamples)])
    return Measured(
        float(roc_auc_score(label, scores)), float(average_precision_score(label, scores)), found[:, 0], found[:, 1]
    )


def drawn(customers: pd.Series, resamples: int) -> Iterator[np.ndarray]:
    """For each resample, how often each row is drawn: as often as its customer."""
    codes, known = pd.factorize(customers)
    generator = np.random.default_rng(SEED)
    for _ in range(resamples):
        yield np.bincount(generator.integers(len(known), size=len(known)), minlength=len(known))[codes]


class Ranked:
    """Labels in the order of their scores. It is sorted once for all resamples; scikit-learn sorts again for each."""

    def __init__(self, label: np.ndarray, scores: np.ndarray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        self._label = label[self._order].astype(float)
        falling = scores[self._order]
        self._starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])

    def metrics(self, weights: np.ndarray) -> tuple[float, float]:
        """AUC and average precision of rows that count as often as `weights` says, as scikit-learn defines them."""
        weight = weights[self._order].astype(float)
        positives = np.add.reduceat(weight * self._label, self._starts)
        negatives = np.add.reduceat(weight * (1 - self._label), self._starts)
        hits, misses = positives.cumsum(), negatives.cumsum()
        if not hits[-1] or not misses[-1]:
            return np.nan, np.nan
        auc = (positives * (misses[-1] - misses + negatives / 2)).sum() / (hits[-1] * misses[-1])
        precision = np.divide(hits, hits + misses, out=np.zeros_like(hits), where=hits + misses > 0)
        return float(auc), float((positives * precision).sum() / hits[-1])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resamples."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
