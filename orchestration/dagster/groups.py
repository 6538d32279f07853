"""Groups of assets, one within another, in the order of the data. Dagster sorts them by name, and opens with the outer ones folded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

#: The outer groups, from left to right. A number before each name makes Dagster's list follow the data.
LAYERS: Final = (
    "sources",
    "lake",
    "seeds",
    "staging",
    "intermediate",
    "marts",
    "snapshots",
    "published",
    "consumers",
)
#: The folders of a layer in the order in which data flows (scripts/check_layers.py). Bookkeeping is what builds keep about themselves.
FOLDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "sources": ("systems", "connectors", "loaders"),
    "intermediate": (
        "bookkeeping",
        "reference",
        "events",
        "cleaning",
        "metrics",
        "changes",
        "identity",
        "tiles",
        "features",
        "current",
    ),
    "marts": ("core", "features", "training", "quality"),
}


def group(layer: str, *folders: str) -> str:
    """The group of a layer, or of folders in it: `5_intermediate/08_tiles`."""
    inner = [_numbered(folder, FOLDERS.get(layer, ())) for folder in folders]
    return "/".join([_numbered(layer, LAYERS), *inner])


def group_of(node: Mapping[str, Any]) -> str:
    """The group of a dbt node: its folder's."""
    kind, (package, *folders) = str(node["resource_type"]), node["fqn"][:-1]
    if kind == "source":
        return group("lake") if node["source_name"] == "lake" else group("intermediate", str(node["source_name"]))
    if kind in ("seed", "snapshot"):
        return group(f"{kind}s")
    return group(*(folders or [package]))


def _numbered(name: str, order: tuple[str, ...]) -> str:
    """Dagster takes letters, digits and underscores; a folder may be called otherwise."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    return (
        f"{order.index(name) + 1:0{len(str(len(order)))}}_{text}" if name in order else text
    )  # as many digits, so that 10 sorts after 9
