"""Three tasks in the form of the RecSys Challenge 2025 (github.com/Synerise/recsys2025): churn, category propensity, product propensity, by AUROC.

A target is what customers do in the 14 days from a moment on; features are of before it. Churn: of those who had bought, who buys nothing. A propensity: who buys
at least one product of each category (each product), of the 100 that were bought most in the training targets; its AUROC is the mean of the categories' (products').
What differs from the challenge is in README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import raw_counts
from shops import Shop, finegrain
from sklearn.metrics import roc_auc_score
from training import RESAMPLES, Model, Ranked, drawn, interval, lightgbm_model
from variants import connected, count_raw, raw_identities, read

#: Days of a target, and of the activity that makes a customer one of the task.
TARGET, ACTIVE = 14, 30
LABELS = 100
#: In training, one of so many pairs that were not bought counts, with this weight.
NEGATIVES = 10
#: Few customers buy, and where early stopping ends is chance: the scores of models of several seeds are averaged.
SEEDS = (7, 8, 9, 10, 11)


@dataclass(frozen=True)
class Moments:
    """The as_of of training, validation and test rows, midnights UTC. The targets of one kind do not overlap those of another."""

    train: Sequence[str]
    valid: str
    test: str


MOMENTS = {
    "merchandise_store": Moments(
        ["2016-08-08", "2016-08-11", "2016-08-14", "2016-08-17", "2016-08-20"], "2016-09-03", "2016-09-17"
    ),
    "simulated": Moments(["2025-02-10", "2025-02-17"], "2025-03-03", "2025-03-17"),
}

#: Who is asked about: customers, as known then, with an event of a product in the 30 days before.
CUSTOMERS = """
    select distinct b.customer_id, b.current_customer_id, m.as_of
    from moments as m
    join fct_events as e on e.event_at < m.as_of and e.available_at <= m.as_of and e.event_at >= m.as_of - interval {active} day
    join bridge_identities as b on b.identity = e.identity and b.known_from <= m.as_of and (b.known_to is null or b.known_to > m.as_of)
    where e.product_id is not null
"""

#: What was bought, by whom, and when. A category is the product's in the catalogue of today, as in the challenge.
BOUGHT = """
    select distinct e.customer_id as current_customer_id, e.event_at, e.available_at, e.order_key, e.product_id, p.category
    from fct_events as e
    left join dim_products as p using (product_id)
    where e.event_type = 'purchase' and e.product_id is not null
"""

#: Of those who had bought before, as far as it was known, whether they buy nothing.
CHURN = """
    select c.customer_id, c.as_of, count(b.event_at) filter (b.event_at >= c.as_of) = 0 as churned
    from customers as c
    join bought as b on b.current_customer_id = c.current_customer_id and b.event_at < c.as_of + interval {target} day
    group by c.customer_id, c.as_of
    having count(b.event_at) filter (b.event_at < c.as_of and b.available_at <= c.as_of) > 0
"""

#: The categories (products) that a propensity asks about: those in most orders of the training targets.
ASKED = """
    select b.{key} as label
    from bought as b
    join moments as m on b.event_at >= m.as_of and b.event_at < m.as_of + interval {target} day
    where m.split = 'train' and b.{key} is not null
    group by b.{key}
    order by count(distinct b.order_key) desc, b.{key}
    limit {labels}
"""

#: The pairs that are true.
PROPENSITY = """
    select distinct c.customer_id, c.as_of, b.{key} as label
    from customers as c
    join bought as b on b.current_customer_id = c.current_customer_id and b.event_at >= c.as_of and b.event_at < c.as_of + interval {target} day
    join asked on b.{key} = asked.label
"""


def tables(con: duckdb.DuckDBPyConnection, moments: Moments) -> None:
    """Create the tables `moments`, `customers`, `bought` and `churn` beside the published marts."""
    rows = [(moment, "train") for moment in moments.train] + [(moments.valid, "valid"), (moments.test, "test")]
    con.execute("create or replace temp table moments (as_of timestamp, split varchar)")
    con.executemany("insert into moments values (?, ?)", rows)
    for name, query in (("customers", CUSTOMERS), ("bought", BOUGHT), ("churn", CHURN)):
        con.execute(f"create or replace temp table {name} as {query.format(active=ACTIVE, target=TARGET)}")


def targets(con: duckdb.DuckDBPyConnection, key: str) -> None:
    """Create the tables `asked` and `propensity` of a propensity for `key`: product_id or category."""
    con.execute(f"create or replace temp table asked as {ASKED.format(key=key, target=TARGET, labels=LABELS)}")
    con.execute(f"create or replace temp table propensity as {PROPENSITY.format(key=key, target=TARGET)}")


def run(shop: Shop, home: Path) -> list[dict[str, Any]]:
    """Train and measure the three tasks, each with raw counts and with finegrain's features. The published marts are below `home`."""
    folder = home / "challenge"
    folder.mkdir(exist_ok=True)
    found = []
    with connected(home) as con:
        con.execute(f"create temp table raw as {shop.raw_rows()}")
        tables(con, MOMENTS[shop.name])
        users = _users(con, home, folder)
        found += _churn(con, users)
        for key in ("category", "product_id"):
            found += _propensity(con, users, home, folder, key)
    return [{"shop": shop.name, **each} for each in found]


def _training_set(home: Path, spine: Path, features: str) -> pd.DataFrame:
    """finegrain's features of the rows of a spine."""
    out = spine.with_suffix("")
    if not out.exists():
        finegrain(home, "training-set", str(spine), "--features", features, "--out", str(out))
    vocabulary = json.loads((out / "vocabulary.json").read_text("utf-8"))
    return read(out / "all.parquet", vocabulary)


def _users(con: duckdb.DuckDBPyConnection, home: Path, folder: Path) -> dict[str, pd.DataFrame]:
    """By variant, the features of the customers, indexed by customer_id and as_of."""
    con.sql("select customer_id, as_of from customers").write_parquet(str(folder / "users.parquet"))
    finegrains = _training_set(home, folder / "users.parquet", "user_features")
    raw = count_raw(con, "customers").df()
    return {"raw": _indexed(raw, ["customer_id", "as_of"]), "finegrain": _indexed(finegrains, ["customer_id", "as_of"])}


def _churn(con: duckdb.DuckDBPyConnection, users: dict[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    rows = con.sql(
        "select t.*, m.split from churn as t join moments as m using (as_of) order by as_of, customer_id"
    ).df()
    parts = {split: rows[rows.split == split] for split in ("train", "valid", "test")}
    test = parts["test"]
    resamples = {}
    for variant, features in users.items():
        x = {
            split: features.loc[pd.MultiIndex.from_frame(part[["customer_id", "as_of"]])]
            for split, part in parts.items()
        }
        y = {split: part.churned.astype(int) for split, part in parts.items()}
        model = lightgbm_model(x["train"], y["train"], (x["valid"], y["valid"]), seeds=SEEDS)
        scores = model.scores(x["test"])
        ranked = Ranked(y["test"].to_numpy(), scores)
        resamples[variant] = np.array([ranked.metrics(weights)[0] for weights in drawn(test.customer_id, RESAMPLES)])
        yield _result(
            "churn",
            variant,
            float(roc_auc_score(y["test"], scores)),
            resamples,
            model,
            len(test),
            int(y["test"].sum()),
            1,
        )


def _propensity(
    con: duckdb.DuckDBPyConnection, users: dict[str, pd.DataFrame], home: Path, folder: Path, key: str
) -> Iterator[dict[str, Any]]:
    """One model over pairs of a customer and a category (product): features of the customer, of the pair, and of the category (product)."""
    targets(con, key)
    labels = [label for (label,) in con.sql("from asked").fetchall()]
    true = con.sql("select *, 1 as bought from propensity").df()
    people = con.sql(
        "select customer_id, as_of, split from customers join moments using (as_of) order by as_of, customer_id"
    ).df()
    rows = {split: _sampled(part, labels, true) for split, part in people.groupby("split") if split != "test"}
    test = people[people.split == "test"]
    marts = {
        "category": ("user_category_features", "category_features"),
        "product_id": ("user_item_features", "item_features"),
    }[key]
    resamples: dict[str, np.ndarray] = {}
    for variant in users:
        pairs, things = (_raw_pairs if variant == "raw" else _pairs)(con, home, folder, key, marts)

        def joined(frame: pd.DataFrame, of: tuple[pd.DataFrame, ...] = (users[variant], pairs, things)) -> pd.DataFrame:
            keys = (["customer_id", "as_of"], ["customer_id", "as_of", "label"], ["as_of", "label"])
            for on, features in zip(keys, of, strict=True):
                frame = frame.join(features, on=on)
            return frame.drop(columns=["customer_id", "as_of", "label", "bought", "weight", "split"], errors="ignore")

        train, valid = rows["train"], rows["valid"]
        model = lightgbm_model(
            joined(train), train.bought, (joined(valid), valid.bought), train.weight.to_numpy(), SEEDS
        )
        aucs, draws, counted, positives = [], [], 0, 0
        weights = list(drawn(test.customer_id, RESAMPLES))
        for label in labels:
            asked = test.assign(label=label).merge(true, how="left", on=["customer_id", "as_of", "label"])
            y = asked.bought.fillna(0).to_numpy().astype(int)
            positives += y.sum()
            if not 0 < y.sum() < len(y):
                continue
            scores = model.scores(joined(asked))
            aucs.append(roc_auc_score(y, scores))
            ranked = Ranked(y, scores)
            draws.append([ranked.metrics(each)[0] for each in weights])
            counted += 1
        resamples[variant] = np.nanmean(np.array(draws), axis=0)
        task = {"category": "category propensity", "product_id": "product propensity"}[key]
        yield _result(task, variant, float(np.mean(aucs)), resamples, model, len(test), int(positives), counted)


def _sampled(people: pd.DataFrame, labels: Sequence[str], true: pd.DataFrame) -> pd.DataFrame:
    """Pairs of all customers and labels: those that were bought, and one of NEGATIVES of the others, weighted accordingly."""
    everything = people.merge(pd.DataFrame({"label": labels}), how="cross")
    everything = everything.merge(true, how="left", on=["customer_id", "as_of", "label"]).fillna({"bought": 0})
    everything["weight"] = np.where(everything.bought == 1, 1, NEGATIVES)
    drawn_ones = np.random.default_rng(SEEDS[0]).integers(NEGATIVES, size=len(everything)) == 0
    return everything[(everything.bought == 1) | drawn_ones]


def _raw_pairs(
    con: duckdb.DuckDBPyConnection, _home: Path, _folder: Path, key: str, _marts: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Raw counts of pairs and of labels. Of a category, the events of its products count."""
    con.execute(
        f"create or replace temp table raw_of_labels as select r.* replace ({'p.category' if key == 'category' else 'r.product_id'} as {key}) "
        f"from raw as r left join dim_products as p on upper(r.product_id) = p.product_id"
    )
    con.execute(
        f"create or replace temp table raw_asked as select r.* from raw_of_labels as r where r.{key} in (from asked)"
    )
    raw_identities(con, "customers")
    pairs = raw_counts.of_pairs(con, "raw_keys", "raw_asked", key)
    found = con.sql(
        f"select k.customer_id, v.* exclude (identity) from ({pairs.sql_query()}) as v join raw_keys as k using (identity, as_of)"
    ).df()
    things = raw_counts.of_things(
        con, f"(select label as {key}, as_of from asked cross join moments)", "raw_asked", key
    ).df()
    return (
        _indexed(found.rename(columns={key: "label"}), ["customer_id", "as_of", "label"], "pair "),
        _indexed(things.rename(columns={key: "label"}), ["as_of", "label"], "label "),
    )


def _pairs(
    con: duckdb.DuckDBPyConnection, home: Path, folder: Path, key: str, marts: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """finegrain's features of pairs that had an event before, and of labels. Of all others it has none: nothing had happened."""
    spine = folder / f"{key}.parquet"
    con.sql(
        f"select distinct c.customer_id, e.{key}, c.as_of from customers as c "
        f"join fct_events as e on e.customer_id = c.current_customer_id and e.event_at < c.as_of where e.{key} in (from asked)"
    ).write_parquet(str(spine))
    found = _training_set(home, spine, ",".join(marts)).rename(columns={key: "label"})
    things = [name for name in found if name.startswith(f"{marts[1]}__")]
    return (
        _indexed(found.drop(columns=things), ["customer_id", "as_of", "label"]),
        _indexed(found[["as_of", "label", *things]].drop_duplicates(["as_of", "label"]), ["as_of", "label"]),
    )


def _indexed(frame: pd.DataFrame, keys: list[str], prefix: str = "") -> pd.DataFrame:
    return frame.set_index(keys).add_prefix(prefix)


def _result(
    task: str,
    variant: str,
    auc: float,
    resamples: dict[str, np.ndarray],
    model: Model,
    rows: int,
    positives: int,
    labels: int,
) -> dict[str, Any]:
    low, high = interval(resamples[variant])
    more = interval(resamples[variant] - resamples["raw"])
    return {
        "task": task,
        "variant": variant,
        "auroc": auc,
        "auroc_interval": [low, high],
        "auroc_minus_raw_interval": list(more),
        "trees": model.trees,
        "test_rows": rows,
        "test_positives": positives,
        "labels": labels,
    }
