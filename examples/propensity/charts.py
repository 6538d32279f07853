"""Draws the figures of results.json as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

#: By variant: what the chart calls it, and its colour.
VARIANTS = {
    "raw": ("raw counts", "#9aa5b1"),
    "same_counts": ("the same counts, cleaned", "#7fb3d5"),
    "cleaned": ("finegrain, as of each row", "#1f6fb2"),
    "wrong": ("wrong: the newest mart, offline", "#e8a09a"),
    "wrong, served cleaned": ("wrong: the same model when it serves", "#c0392b"),
    "finegrain": ("finegrain", "#1f6fb2"),
}
MODELS = {"LightGBM": "o", "CatBoost": "s"}


def draw(results: dict[str, Any], titles: dict[str, str], out: Path) -> None:
    """Write outcomes.svg (AUC of each label and variant) and challenge.svg, as far as there are such results."""
    plt.rcParams.update(
        {
            "font.size": 9,
            "svg.hashsalt": "finegrain",
            "svg.fonttype": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    if rows := results["outcomes"]:
        panels = list(dict.fromkeys((each["shop"], each["label"]) for each in rows))
        figure, axes = _panels(len(panels))
        for axis, (shop, label) in zip(axes, panels, strict=False):
            here = [each for each in rows if (each["shop"], each["label"]) == (shop, label)]
            names = list(dict.fromkeys(each["variant"] for each in here))
            for model, marker in MODELS.items():
                of_model = [each for each in here if each["model"] == model]
                places = [names.index(each["variant"]) + (0.15 if model == "CatBoost" else -0.15) for each in of_model]
                _dots(axis, places, of_model, "auc", marker, model)
            _label(axis, f"{titles[shop]}\n{label}", names, "AUC on the test rows, 95 % interval")
        axes[0].legend(loc="lower left", frameon=False)
        _write(figure, out / "outcomes.svg")
    if rows := results["challenge"]:
        panels = list(dict.fromkeys((each["shop"], each["task"]) for each in rows))
        figure, axes = _panels(len(panels))
        for axis, (shop, task) in zip(axes, panels, strict=False):
            here = [each for each in rows if (each["shop"], each["task"]) == (shop, task)]
            _dots(axis, range(len(here)), here, "auroc", "o", None)
            _label(axis, f"{titles[shop]}\n{task}", [each["variant"] for each in here], "AUROC, 95 % interval")
        _write(figure, out / "challenge.svg")


def _panels(count: int) -> tuple[Any, list[Any]]:
    figure, axes = plt.subplots(
        (count + 2) // 3,
        min(count, 3),
        figsize=(10, 2.3 * ((count + 2) // 3) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat)


def _dots(axis: Any, places: Any, rows: list[dict[str, Any]], name: str, marker: str, model: str | None) -> None:
    for place, each in zip(places, rows, strict=True):
        low, high = each[f"{name}_interval"]
        colour = VARIANTS[each["variant"]][1]
        axis.plot([low, high], [place, place], color=colour, linewidth=2)
        axis.plot(each[name], place, marker, color=colour, markersize=6)
    if model:
        axis.plot([], [], marker, color="#555555", label=model)


def _label(axis: Any, title: str, names: list[str], meaning: str) -> None:
    axis.axvline(0.5, color="#cccccc", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(names)), [VARIANTS[name][0] for name in names])
    axis.invert_yaxis()
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(meaning, fontsize=8)


def _write(figure: Any, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
