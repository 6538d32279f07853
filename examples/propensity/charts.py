"""Draws the figures of results.json as SVG."""

from __future__ import annotations

from collections.abc import Sequence
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
    "wrong": ("wrong (newest mart), offline", "#e8a09a"),
    "wrong, served cleaned": ("wrong, when it serves", "#c0392b"),
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
        handles = [
            plt.Line2D([], [], marker=marker, linestyle="", color="#555555", label=model)
            for model, marker in MODELS.items()
        ]
        _chart(rows, "label", "auc", "AUC on the test rows, 95 % interval", titles, out / "outcomes.svg", handles)
    if rows := results["challenge"]:
        _chart(rows, "task", "auroc", "AUROC on the test rows, 95 % interval", titles, out / "challenge.svg")


def _chart(
    rows: list[dict[str, Any]],
    by: str,
    name: str,
    meaning: str,
    titles: dict[str, str],
    file: Path,
    handles: Sequence[Any] = (),
) -> None:
    """A panel for each shop and label (task), a line for each variant."""
    panels = list(dict.fromkeys((each["shop"], each[by]) for each in rows))
    variants = list(dict.fromkeys(each["variant"] for each in rows))
    lines, across = -(-len(panels) // 3), min(len(panels), 3)
    figure, axes = plt.subplots(
        lines,
        across,
        figsize=(10, (1.1 + 0.28 * len(variants)) * lines),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (shop, what) in zip(axes.flat, panels, strict=False):
        for each in rows:
            if (each["shop"], each[by]) != (shop, what):
                continue
            place = variants.index(each["variant"]) + {"LightGBM": -0.15, "CatBoost": 0.15}.get(
                each.get("model", ""), 0
            )
            colour = VARIANTS[each["variant"]][1]
            axis.plot(each[f"{name}_interval"], [place, place], color=colour, linewidth=2)
            axis.plot(each[name], place, MODELS.get(each.get("model", ""), "o"), color=colour, markersize=6)
        if axis.get_xlim()[0] < 0.6:  # what chance gives
            axis.axvline(0.5, color="#cccccc", linewidth=1, linestyle=":")
        axis.set_title(f"{titles[shop]}\n{what}", fontsize=9)
        axis.set_xlabel(meaning, fontsize=8)
        axis.set_yticks(range(len(variants)), [VARIANTS[each][0] for each in variants])
        axis.set_ylim(len(variants) - 0.5, -0.5)
    if handles:
        figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
