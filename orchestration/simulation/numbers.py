"""Columns of numbers, and what is done with them everywhere."""

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
    """SplitMix64: numbers to numbers that look random, one to one."""
    z = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def coded(codes: Array, texts: Sequence[str]) -> pa.DictionaryArray:
    """Text by number; nothing where the number is negative."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=codes < 0), pa.array(list(texts)))


def times(t: Array, mask: Array | None = None) -> pa.Array:
    """Moments in µs as Arrow timestamps without a zone (UTC); null where the mask is true."""
    return pa.array(t, pa.timestamp("us"), mask=mask)


def take(rows: Rows, at: Array) -> Rows:
    """The rows at these places."""
    return {name: column[at] for name, column in rows.items()}


def join(parts: list[Rows]) -> Rows:
    """Rows below rows; the first part says which columns."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def size(rows: Rows) -> int:
    """The number of rows."""
    return len(next(iter(rows.values())))


def weighted(rng: np.random.Generator, cumulative: Array, low: Array, high: Array) -> Array:
    """For each pair of places, one place from [low, high) drawn by the weights whose running sum (from 0) is given."""
    drawn = cumulative[low] + rng.random(len(low)) * (cumulative[high] - cumulative[low])
    place: Array = np.clip(np.searchsorted(cumulative, drawn, side="right") - 1, low, high - 1)
    return place


def running(weights: Array) -> Array:
    """The running sum, from 0: one longer than the weights."""
    return np.concatenate([[0.0], np.cumsum(weights)])
