"""The same rows and labels with different features: raw counts, finegrain's training set, and the newest mart joined to all of them (the leak)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas as pd
import raw_counts
from shops import Shop, finegrain, published

SPLITS = ("train", "valid", "test")
#: raw: counts from raw rows. same_counts: finegrain's features of those names (it has none of clicks and of all events). cleaned: all user_features, as of each row.
#: wrong: the newest user_features for every row, whenever it is from.
VARIANTS = ("raw", "same_counts", "cleaned", "wrong")


@dataclass(frozen=True)
class Rows:
    """Rows of one split: `keys` (customer_id, as_of), the `label` (0 or 1), and by variant the `features`, all in the same order."""

    keys: pd.DataFrame
    label: pd.Series
    features: dict[str, pd.DataFrame]


def rows_of_label(shop: Shop, home: Path, label: str) -> dict[str, Rows]:
    """By split, the rows of a label of customer_outcomes. Makes the training set below `home`, unless it is there."""
    folder = home / "training" / label
    if not folder.exists():
        options = ["--label", label, "--split", shop.split.option, "--features", "user_features", "--out", str(folder)]
        finegrain(home, "training-set", "customer_outcomes", *options)
    vocabulary = json.loads((folder / "vocabulary.json").read_text("utf-8"))
    counts = raw_counts_of_outcomes(shop, home)
    found = {}
    with connected(home) as con:
        for split in SPLITS:
            cleaned = read(folder / f"{split}.parquet", vocabulary)
            keys = cleaned[["customer_id", "as_of"]]
            con.register("keys", keys.reset_index(names="place"))
            features = cleaned[[name for name in cleaned if name.startswith("user_features__")]]
            raw = raw_features(con, "keys", counts)
            same = [f"user_features__{name}" for name in raw if f"user_features__{name}" in features]
            wrong = with_categories(newest_features(con, "keys"), vocabulary)[list(features)]
            by_variant = {"raw": raw, "same_counts": features[same], "cleaned": features, "wrong": wrong}
            found[split] = Rows(keys, cleaned[label].astype(int), by_variant)
    return found


def connected(home: Path) -> duckdb.DuckDBPyConnection:
    """The published marts, to read."""
    con = duckdb.connect(str(published(home)), read_only=True)
    con.execute(f"set timezone = 'UTC'; set temp_directory = '{home / 'spill'}'")
    return con


def raw_counts_of_outcomes(shop: Shop, home: Path) -> Path:
    """A file with the raw counts of all rows of customer_outcomes that have a label: customer_id, as_of, and the counts."""
    file = home / "training" / "raw_counts.parquet"
    if not file.exists():
        with connected(home) as con:
            con.execute(f"create temp table raw as {shop.raw_rows()}")
            labelled = " or ".join(f"{label} is not null" for label in shop.labels)
            con.execute(f"create temp table keys as select customer_id, as_of from customer_outcomes where {labelled}")
            count_raw(con, "keys").write_parquet(str(file))
    return file


def count_raw(con: duckdb.DuckDBPyConnection, keys: str) -> duckdb.DuckDBPyRelation:
    """Counts from the table `raw` for each of the keys (customer_id, as_of)."""
    raw_identities(con, keys)
    counts = raw_counts.of_customers(con, "(select distinct identity, as_of from raw_keys)", "raw")
    con.execute(f"create or replace temp table raw_values as {counts.sql_query()}")
    return con.sql(
        "select k.customer_id, v.* exclude (identity) from raw_keys as k join raw_values as v using (identity, as_of)"
    )


def raw_features(con: duckdb.DuckDBPyConnection, keys: str, counts: Path) -> pd.DataFrame:
    """The raw counts of a file for the keys (place, customer_id, as_of), in the order of place."""
    found = con.sql(
        f"select c.* exclude (customer_id, as_of) from {keys} as k left join '{counts}' as c using (customer_id, as_of) order by k.place"
    )
    return found.df().astype("float64")


def raw_identities(con: duckdb.DuckDBPyConnection, keys: str) -> None:
    """Create the table `raw_keys`: customer_id, as_of, and the identity by which raw rows know the customer. Nobody linked raw identities: of several, the login
    counts, or else one of the visitors."""
    con.execute(
        "create or replace temp table raw_keys as select k.customer_id, k.as_of, max(b.identity) as identity "
        f"from {keys} as k join bridge_identities as b "
        "on k.customer_id = b.customer_id and b.known_from <= k.as_of and (b.known_to is null or b.known_to > k.as_of) "
        "group by k.customer_id, k.as_of"
    )


def newest_features(con: duckdb.DuckDBPyConnection, keys: str) -> pd.DataFrame:
    """The published user_features of each key's customer, whatever its as_of: the leak that this example shows. In the order of place, with the names of a
    training set."""
    newest = con.sql(
        f"select f.* exclude (customer_id, as_of, built_from) from {keys} as k "
        "left join (select distinct customer_id, current_customer_id from bridge_identities) as b using (customer_id) "
        "left join user_features as f on f.customer_id = b.current_customer_id order by k.place"
    ).df()
    flags = newest.select_dtypes(["bool", "object"]).columns.difference(["rfm_segment"])
    newest[flags] = newest[flags].astype("float64")
    return newest.add_prefix("user_features__")


def read(file: Path, vocabulary: dict[str, list[str]]) -> pd.DataFrame:
    """A file of a training set, its categories those of the training rows."""
    return with_categories(pd.read_parquet(file), vocabulary)


def with_categories(frame: pd.DataFrame, vocabulary: dict[str, list[str]]) -> pd.DataFrame:
    """Texts as categories of the vocabulary."""
    for name in frame.columns.intersection(list(vocabulary)):
        frame[name] = pd.Categorical(frame[name], categories=vocabulary[name])
    return frame
