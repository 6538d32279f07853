"""The same rows and labels with different features: raw counts, finegrain's training set, and the newest mart joined to all of them (the leak)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas as pd
import raw_counts
from shops import Shop, finegrain, published

SPLITS = ("train", "valid", "test")
#: raw: counts from raw rows. same_counts: finegrain's features of the same names, so only the cleaning differs. cleaned: all user_features, as of each row.
#: wrong: the newest user_features for every row, whenever it is from.
VARIANTS = ("raw", "same_counts", "cleaned", "wrong")


@dataclass(frozen=True)
class Rows:
    """Rows of one split: `keys` (customer_id, as_of), the `label` (0 or 1), and by variant the `features`, all in the same order."""

    keys: pd.DataFrame
    label: pd.Series
    features: dict[str, pd.DataFrame]


def rows_of_task(shop: Shop, home: Path, label: str) -> dict[str, Rows]:
    """By split, the rows of a label of customer_outcomes. Makes the training set below `home` unless it is there."""
    folder = home / "training" / label
    if not folder.exists():
        options = ["--label", label, "--split", shop.split.option, "--features", "user_features", "--out", str(folder)]
        finegrain(home, "training-set", "customer_outcomes", *options)
    with duckdb.connect(str(published(home)), read_only=True) as con:
        con.execute(f"set timezone = 'UTC'; set temp_directory = '{home / 'spill'}'")
        con.execute(f"create temp table raw as {shop.raw_rows()}")
        return {split: _rows(con, folder, split, label) for split in SPLITS}


def _rows(con: duckdb.DuckDBPyConnection, folder: Path, split: str, label: str) -> Rows:
    vocabulary = json.loads((folder / "vocabulary.json").read_text("utf-8"))
    cleaned = read(folder / f"{split}.parquet", vocabulary)
    con.register("keys", cleaned[["customer_id", "as_of"]].reset_index(names="place"))
    raw, newest = raw_features(con, "keys"), newest_features(con, "keys")
    features = cleaned[[name for name in cleaned if name.startswith("user_features__")]]
    same = [f"user_features__{name}" for name in raw if f"user_features__{name}" in features]
    return Rows(
        cleaned[["customer_id", "as_of"]],
        cleaned[label].astype(int),
        {
            "raw": raw,
            "same_counts": features[same],
            "cleaned": features,
            "wrong": with_categories(newest.rename(columns=lambda name: f"user_features__{name}"), vocabulary)[
                list(features)
            ],
        },
    )


def raw_features(con: duckdb.DuckDBPyConnection, keys: str) -> pd.DataFrame:
    """Counts from the raw rows of each key (place, customer_id, as_of), in the order of place. Nobody linked raw identities: of a customer's, the login counts,
    or else the visitor."""
    con.execute(
        f"create or replace temp table asked as select k.place, k.as_of, max(b.identity) as identity from {keys} as k "
        "left join bridge_identities as b on k.customer_id = b.customer_id and b.known_from <= k.as_of and (b.known_to is null or b.known_to > k.as_of) "
        "group by k.place, k.as_of"
    )
    counts = raw_counts.of_customers(con, "(select distinct identity, as_of from asked)", "raw")
    frame = con.sql(
        "select c.* exclude (identity, as_of) from asked as a left join counts as c using (identity, as_of) order by a.place"
    ).df()
    return numbers(frame)


def newest_features(con: duckdb.DuckDBPyConnection, keys: str) -> pd.DataFrame:
    """The published user_features of each key's customer, whatever its as_of: the leak that this example shows. In the order of place."""
    return con.sql(
        f"select f.* exclude (customer_id, as_of, built_from) from {keys} as k "
        "left join (select distinct customer_id, current_customer_id from bridge_identities) as b using (customer_id) "
        "left join user_features as f on f.customer_id = b.current_customer_id order by k.place"
    ).df()


def read(file: Path, vocabulary: dict[str, list[str]]) -> pd.DataFrame:
    """A file of a training set, its categories those of the training rows."""
    return with_categories(pd.read_parquet(file), vocabulary)


def with_categories(frame: pd.DataFrame, vocabulary: dict[str, list[str]]) -> pd.DataFrame:
    """Texts as categories of the vocabulary, all else but keys as numbers that LightGBM and CatBoost take."""
    for name in frame.columns.intersection(list(vocabulary)):
        frame[name] = pd.Categorical(frame[name], categories=vocabulary[name])
    return frame


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """All columns as doubles, nulls as NaN."""
    return frame.astype("float64")


def same_rows(tasks: Iterable[Rows]) -> bool:
    """Whether every variant has a row for each key."""
    return all(len(features) == len(rows.keys) for rows in tasks for features in rows.features.values())
