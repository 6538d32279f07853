"""Runs the whole example: load, build, publish, training sets, models, measures, charts. `finegrain bench features` calls it.

python examples/propensity/bench.py [--quick] [--shop NAME] [--hits FILE] [--home FOLDER] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import catboost
import challenge
import charts
import imputation
import lightgbm
import sklearn
from rich.table import Table
from shops import Shop, known, publish, with_data
from training import MODELS, interval, measure
from variants import VARIANTS, Rows, rows_of_label

from orchestration import __version__
from orchestration.errors import FinegrainError, console


def run(
    names: Sequence[str] = (),
    *,
    hits: Path | None = None,
    home: Path | None = None,
    out: Path | None = None,
    quick: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run the shops `names` (by default the real ones that are there, or else the simulated one), each with a home below `home` (by default a scratch folder that
    is deleted afterwards). With `out`, write results.json and the charts there. Raises FinegrainError if a named shop has no data."""
    shops = known(hits)
    if unknown := sorted(set(names) - set(shops)):
        raise FinegrainError(f"--shop: there is no {unknown[0]}; there are {', '.join(shops)}")
    folder = home or Path(tempfile.mkdtemp(prefix="finegrain-features-"))
    results: dict[str, Any] = {"made": about(quick), "seconds": {}, "outcomes": [], "imputation": [], "challenge": []}
    try:
        for shop in chosen(shops, names, folder, quick):
            started = time.monotonic()
            console.say(f"{shop.title}: load, build, publish")
            publish(shop, folder / shop.name)
            results["seconds"][f"{shop.name}: load, build, publish"] = round(time.monotonic() - started, 1)
            started = time.monotonic()
            for label in shop.labels:
                console.say(f"{shop.title}: {label}")
                rows = rows_of_label(shop, folder / shop.name, label)
                results["outcomes"] += [{"shop": shop.name, "label": label, **each} for each in compared(rows)]
                by_choice = imputation.compared(rows, folder / shop.name)
                results["imputation"] += [{"shop": shop.name, "label": label, **each} for each in by_choice]
            if shop.name in challenge.MOMENTS:
                console.say(f"{shop.title}: tasks of the RecSys Challenge 2025")
                results["challenge"] += challenge.run(shop, folder / shop.name)
            results["seconds"][f"{shop.name}: training sets and models"] = round(time.monotonic() - started, 1)
    finally:
        if home is None:
            shutil.rmtree(folder, ignore_errors=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        charts.draw(results, {shop.name: shop.title for shop in shops.values()}, out)
    if not quiet:
        show(results)
    return results


def chosen(shops: dict[str, Shop], names: Sequence[str], folder: Path, quick: bool) -> list[Shop]:
    """The named shops with their data; without names, the real ones that are there, or else the simulated one."""
    if names:
        return [with_data(shops[name], folder / "data" / name, quick) for name in names]
    found = []
    for name in ("merchandise_store", "completejourney"):
        try:
            found.append(with_data(shops[name], folder / "data" / name, quick))
        except FinegrainError as error:
            console.say(f"left out: {error}")
    return found or [with_data(shops["simulated"], folder / "data" / "simulated", quick)]


def compared(rows: dict[str, Rows]) -> list[dict[str, Any]]:
    """Every model with every variant of the features, measured once on the test rows. A model that was trained on wrong features is also measured on those that
    there are when it serves."""
    train, valid, test = rows["train"], rows["valid"], rows["test"]
    label, customers = test.label.to_numpy(), test.keys.customer_id
    found = []
    for model_name, fit in MODELS.items():
        measured = {}
        for variant in VARIANTS:
            model = fit(train.features[variant], train.label, (valid.features[variant], valid.label))
            for served in [variant, "cleaned"] if variant == "wrong" else [variant]:
                name = variant if served == variant else f"{variant}, served {served}"
                measured[name] = got = measure(label, model.scores(test.features[served]), customers)
                found.append(
                    {
                        "model": model_name,
                        "variant": name,
                        "features": train.features[variant].shape[1],
                        "trees": model.trees,
                        "train_rows": len(train.keys),
                        "test_rows": len(test.keys),
                        "test_positives": int(label.sum()),
                        "base_rate": float(label.mean()),
                        "auc": got.auc,
                        "auc_interval": interval(got.aucs),
                        "auc_minus_raw_interval": interval(got.aucs - measured["raw"].aucs),
                        "pr_auc": got.ap,
                        "pr_auc_interval": interval(got.aps),
                        "pr_auc_minus_raw_interval": interval(got.aps - measured["raw"].aps),
                    }
                )
    return found


def about(quick: bool) -> dict[str, Any]:
    """When, on what and with what this ran."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "finegrain": __version__,
        "lightgbm": lightgbm.__version__,
        "catboost": catboost.__version__,
        "scikit-learn": sklearn.__version__,
    }


def show(results: dict[str, Any]) -> None:
    """Print the figures as tables."""
    out = console.out()
    if results["made"]["quick"]:
        out.print("--quick: of a sample; these figures say nothing")
    table = Table(
        "shop", "label", "model", "features", "AUC", "95 %", "PR-AUC", "95 %", "base rate", box=None, pad_edge=False
    )
    for each in results["outcomes"]:
        auc, pr_auc = (f"{each[name]:.3f}" for name in ("auc", "pr_auc"))
        names = (each[name] for name in ("shop", "label", "model", "variant"))
        table.add_row(
            *names,
            auc,
            spread(each["auc_interval"]),
            pr_auc,
            spread(each["pr_auc_interval"]),
            f"{each['base_rate']:.4f}",
        )
    out.print(table)
    table = Table(
        "shop", "label", "model", "gaps", "filled", "AUC", "95 %", "minus leave, 95 %", box=None, pad_edge=False
    )
    for each in results["imputation"]:
        names = (each[name] for name in ("shop", "label", "model", "choice"))
        more = "" if each["choice"] == "leave" else spread(each["auc_minus_leave_interval"])
        table.add_row(*names, f"{each['filled']:.2f}", f"{each['auc']:.3f}", spread(each["auc_interval"]), more)
    if results["imputation"]:
        out.print(table)
    table = Table(
        "shop", "task", "features", "AUROC", "95 %", "minus raw, 95 %", "labels", "positives", box=None, pad_edge=False
    )
    for each in results["challenge"]:
        more = "" if each["variant"] == "raw" else spread(each["auroc_minus_raw_interval"])
        names = (each[name] for name in ("shop", "task", "variant"))
        counts = (f"{each[name]:,}" for name in ("labels", "test_positives"))
        table.add_row(*names, f"{each['auroc']:.3f}", spread(each["auroc_interval"]), more, *counts)
    if results["challenge"]:
        out.print(table)
    out.print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in results["seconds"].items()))


def spread(bounds: Sequence[float]) -> str:
    """An interval as text."""
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shop", action="append", default=[], help="merchandise_store, completejourney or simulated; may be repeated"
    )
    parser.add_argument("--hits", type=Path, help="the Merchandise Store's Parquet file")
    parser.add_argument("--home", type=Path, help="keep what is built below this folder, and use it again")
    parser.add_argument("--out", type=Path, help="write results.json and the charts here")
    parser.add_argument("--quick", action="store_true", help="on a sample")
    asked = parser.parse_args()
    try:
        run(asked.shop, hits=asked.hits, home=asked.home, out=asked.out, quick=asked.quick)
    except FinegrainError as error:
        console.say(f"error: {error}")
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
