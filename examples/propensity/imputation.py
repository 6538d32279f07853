"""What each way of filling gaps does to a model: the same rows, labels and features, with the gaps left or filled by what the training rows say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from training import MODELS, interval, logistic_model, measure
from variants import Rows, connected

from orchestration.config.settings import Settings
from orchestration.quality.imputation_score import NEIGHBOURS, by_naive_bayes, by_neighbours, labels_sql, neighbours_sql

#: Of the attributes: nulls; the median of the training rows; the mean of the customers most alike; naive Bayes, where it is confident. The last: the median
#: of all numbers, also of those that are null for a reason, such as hours since an order that never was.
CHOICES = ("leave", "median", "knn", "model", "median of all")
#: Numbers of a customer's profile. Nobody has to give them, so what is missing is unknown.
ATTRIBUTES = ("birth_year", "household_size", "income")
#: Customers are alike in these, on a log scale, and in the attributes.
ALIKE = ("orders", "units", "revenue", "sessions", "active_days", "views", "distinct_products", "distinct_categories")
#: Below, a label of naive Bayes is not taken: the default of seeds/imputation_rules.csv.
CONFIDENCE = 0.8
#: A column that is known in fewer of the training rows is left as it is.
LEAST_KNOWN = 0.05

Frames = dict[str, pd.DataFrame]


def compared(rows: dict[str, Rows], home: Path) -> list[dict[str, Any]]:
    """Every model with every choice, measured once on the test rows. Where no customer has attributes, only the first and the last choice are there."""
    given = with_attributes(rows, home)
    attributes = [name for name in ATTRIBUTES if name in given["train"]]
    train, valid, test = (rows[split].label for split in ("train", "valid", "test"))
    customers = rows["test"].keys.customer_id
    keys = {split: each.keys for split, each in rows.items()}
    gaps = {choice: attributes for choice in CHOICES if attributes or choice == "leave"}
    gaps["median of all"] = columns_with_gaps(given["train"])
    choices = {choice: filled(choice, given, keys, gaps[choice], Settings.below(home)) for choice in gaps}
    found = []
    for model_name, fit in {**MODELS, "logistic regression": logistic_model}.items():
        measured = {}
        for choice, frames in choices.items():
            model = fit(frames["train"], train, (frames["valid"], valid))
            measured[choice] = got = measure(test.to_numpy(), model.scores(frames["test"]), customers)
            found.append(
                {
                    "model": model_name,
                    "choice": choice,
                    "columns": len(gaps[choice]),
                    "filled": share_filled(given["test"][gaps[choice]], frames["test"][gaps[choice]]),
                    "test_rows": len(test),
                    "test_positives": int(test.sum()),
                    "auc": got.auc,
                    "auc_interval": interval(got.aucs),
                    "auc_minus_leave_interval": interval(got.aucs - measured["leave"].aucs),
                    "pr_auc": got.ap,
                    "pr_auc_interval": interval(got.aps),
                }
            )
    return found


def with_attributes(rows: dict[str, Rows], home: Path) -> Frames:
    """By split, finegrain's features, and the attributes of the customers' profiles as delivered; none, if no customer has any."""
    known = ", ".join(
        f"case when not {name}_was_missing then cast({name} as double) end as {name}" for name in ATTRIBUTES
    )
    with connected(home) as con:
        profiles = con.sql(
            f"select b.customer_id, d.* exclude (customer_id) from (select distinct customer_id, current_customer_id from bridge_identities) as b "
            f"join (select customer_id, {known} from dim_customers) as d on b.current_customer_id = d.customer_id"
        ).df()
    profiles = profiles.set_index("customer_id").dropna(axis="columns", how="all")
    return {
        split: each.features["cleaned"].join(
            each.keys[["customer_id"]].join(profiles, on="customer_id")[list(profiles)]
        )
        for split, each in rows.items()
    }


def columns_with_gaps(train: pd.DataFrame) -> list[str]:
    """Numbers that some of the training rows lack, and not nearly all."""
    numbers = train.select_dtypes("number")
    known = numbers.notna().mean()
    return list(known[(known < 1) & (known >= LEAST_KNOWN)].index)


def filled(choice: str, given: Frames, keys: Frames, gaps: list[str], where: Settings) -> Frames:
    """`given` (rows × features, by split) with the gaps of some columns filled by a choice, and with a flag for each of these columns unless they are left.
    What is learned is learned from training rows. `keys` has customer_id and as_of of each row."""
    if choice == "leave":
        return given
    if choice.startswith("median"):
        values = {split: frame[gaps].fillna(given["train"][gaps].median()) for split, frame in given.items()}
    elif choice == "knn":
        values = _by_neighbours(given, keys, gaps, where)
    else:
        values = _by_model(given, keys, gaps, where)
    return {
        split: frame.assign(**values[split], **frame[gaps].isna().astype("float64").add_suffix("_was_missing"))
        for split, frame in given.items()
    }


def share_filled(before: pd.DataFrame, after: pd.DataFrame) -> float:
    """The share of the gaps that were filled."""
    gaps = before.isna().to_numpy()
    return float(1 - after.isna().to_numpy()[gaps].mean()) if gaps.any() else 0.0


def _newest(keys: Frames) -> pd.Series:
    """Which training rows are those of the last moment: of each customer one, so that none counts more than another."""
    moments = keys["train"].as_of
    return moments == moments.max()


def _alike(frame: pd.DataFrame, gaps: list[str]) -> pd.DataFrame:
    counts = [f"user_features__{name}_90d" for name in ALIKE]
    logs = np.log1p(frame[[name for name in counts if name in frame]].astype("float64").clip(lower=0))
    return pd.concat([frame[gaps], logs.round(4).add_suffix("_log")], axis="columns")


def _by_neighbours(given: Frames, keys: Frames, gaps: list[str], where: Settings) -> Frames:
    """Moment by moment, so that a customer is known by its id, and its gap is never filled from another moment of its own."""
    newest = _newest(keys)
    reference = _alike(given["train"], gaps)[newest]
    donors = (reference.to_numpy(), list(keys["train"].customer_id[newest]))
    sql = neighbours_sql(where, [f"c{number}" for number in range(reference.shape[1])])
    found = {}
    for split, frame in given.items():
        alike, parts = _alike(frame, gaps), []
        for places in keys[split].groupby("as_of").groups.values():
            customers = list(keys[split].customer_id[places])
            values = by_neighbours(sql, alike.loc[places].to_numpy(), NEIGHBOURS, donors, customers)
            parts.append(pd.DataFrame(values[:, : len(gaps)], index=places, columns=gaps))
        found[split] = pd.concat(parts).reindex(frame.index)
    return found


def _by_model(given: Frames, keys: Frames, gaps: list[str], where: Settings) -> Frames:
    """Attributes have few values, which are labels here; tokens are what a customer did, in powers of two."""
    newest = _newest(keys)
    sql = labels_sql(where)
    learned = _tokens(_alike(given["train"], [])[newest], "known")
    found = {split: frame[gaps].copy() for split, frame in given.items()}
    for split, frame in given.items():
        tokens = learned + _tokens(_alike(frame, []), split)
        for name in (each for each in ATTRIBUTES if each in gaps):
            known = given["train"][name][newest].dropna()
            labels = [(f"known {place}", str(value)) for place, value in known.items()]
            asked = [f"{split} {place}" for place in frame.index[frame[name].isna()]]
            for key, (label, confidence) in by_naive_bayes(sql, tokens, labels, asked).items():
                if confidence >= CONFIDENCE:
                    found[split].loc[int(key.split()[1]), name] = float(label)
    return found


def _tokens(alike: pd.DataFrame, name: str) -> list[tuple[str, str, str]]:
    steps = (alike / np.log(2)).fillna(0).astype(int)
    return [(f"{name} {place}", feature, str(step)) for feature in steps for place, step in steps[feature].items()]
