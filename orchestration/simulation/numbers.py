"""Helpers for columns of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[Any]
#: Columns of equal length by name.
Rows = dict[str, Array]


def mix(numbers: Array) -> NDArray[np.uint64]:
    """SplitMix64: maps numbers one to one to random-looking numbers."""
    z = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def coded(codes: Array, texts: Sequence[str]) -> pa.DictionaryArray:
    """Texts by index; null for negative indices."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=codes < 0), pa.array(list(texts)))


def times(t: Array, mask: Array | None = None) -> pa.Array:
    """Times in µs as Arrow timestamps without a time zone (UTC); null where the mask is true."""
    return pa.array(t, pa.timestamp("us"), mask=mask)


def take(rows: Rows, at: Array) -> Rows:
    """The rows at these indices."""
    return {name: column[at] for name, column in rows.items()}


def join(parts: list[Rows]) -> Rows:
    """Concatenate rows; the columns are those of the first part."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def size(rows: Rows) -> int:
    """The number of rows."""
    return len(next(iter(rows.values())))


def weighted(rng: np.random.Generator, cumulative: Array, low: Array, high: Array) -> Array:
    """For each pair, an index from [low, high), drawn with the weights whose running sum (from 0) is `cumulative`."""
    drawn = cumulative[low] + rng.random(len(low)) * (cumulative[high] - cumulative[low])
    place: Array = np.clip(np.searchsorted(cumulative, drawn, side="right") - 1, low, high - 1)
    return place


def running(weights: Array) -> Array:
    """The running sum, starting at 0: one element longer than the weights."""
    return np.concatenate([[0.0], np.cumsum(weights)])
