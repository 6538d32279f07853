"""Limits on the size, nesting depth and number of keys of a message, checked on its bytes before it is parsed as JSON.

JSON parsers use time and memory by the number of keys, and stack by the depth. The bytes of a batch are scanned with numpy. A cheap count of
brackets and colons, including those in strings, clears most messages; only the others are examined exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

#: Bytes that are examined exactly at once.
_AT_ONCE: Final = 2**20
#: Bytes in which characters are searched at once.
_PIECE: Final = 2**17
#: The fewest bytes of a key with its value, as in `"":0,`.
_LEAST: Final = 5
_QUOTE, _BACKSLASH, _COLON = (ord(each) for each in '"\\:')
#: For each byte, whether it matters for depth or keys.
_MARKS: Final = np.isin(np.arange(256), [ord(each) for each in '"\\:{}[]'])


@dataclass(frozen=True)
class Bounds:
    """The limits of a message: its bytes, its top-level keys, and the nesting depth of objects and lists."""

    size: int = 2**20
    keys: int = 1_000
    depth: int = 100


def beyond(texts: pa.ChunkedArray, bounds: Bounds) -> pa.ChunkedArray:
    """For each text (or its bytes), the rule that it breaks with a sentence about it; null if it is within the bounds."""
    return pa.chunked_array([_beyond(chunk, bounds) for chunk in texts.chunks], pa.string())


def shallow(body: bytes, depth: int) -> bytes:
    """A JSON text in which objects and lists nested deeper than `depth` are replaced by null."""
    marks, kinds, _, depths = _structure(pa.array([body], pa.binary()))
    is_open = (kinds | 0x20) == ord("{")
    # A closing bracket has the depth outside it. If the text is cut off, the last one may be missing.
    starts = marks[is_open & (depths == depth + 1)]
    ends = marks[~is_open & (kinds != _COLON) & (depths == depth)] + 1
    parts, at = [], 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=False):
        parts += [body[at:start], b"null"]
        at = end
    return b"".join([*parts, body[at:]])


def _beyond(chunk: pa.Array, bounds: Bounds) -> pa.Array:
    text, offsets = _bytes(chunk)
    sizes = np.diff(offsets)
    is_large = sizes > bounds.size
    # { and [ differ in one bit.
    looks_bad = _counts(_places(text, "{", 0x20), offsets) > bounds.depth
    if (sizes > _LEAST * bounds.keys).any():
        looks_bad |= _counts(_places(text, ":"), offsets) > bounds.keys
    whys: dict[int, str] = {
        int(n): f"over_size: it has {sizes[n]} bytes, of at most {bounds.size}" for n in np.flatnonzero(is_large)
    }
    for some in _portions(np.flatnonzero(looks_bad & ~is_large), sizes):
        for n, depth, keys in zip(some.tolist(), *_measured(chunk.take(pa.array(some))), strict=True):
            if depth > bounds.depth:
                whys[n] = f"too_deep: its objects and lists are nested {depth} deep, of at most {bounds.depth}"
            elif keys > bounds.keys:
                whys[n] = f"too_many_keys: it has {keys} keys, of at most {bounds.keys}"
    if not whys:
        return pa.nulls(len(chunk), pa.string())
    return pa.array([whys.get(n) for n in range(len(chunk))], pa.string())


def _bytes(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all texts, concatenated, and the offsets of their ends."""
    is_wide = texts.type in (pa.large_string(), pa.large_binary())
    _, places, held = texts.buffers()
    if held is None or not len(texts):
        return np.empty(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    offsets = np.frombuffer(places, np.int64 if is_wide else np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(held, np.uint8)[offsets[0] : offsets[-1]], offsets.astype(np.int64) - offsets[0]


def _places(text: NDArray[np.uint8], character: str, ignored: int = 0) -> NDArray[Any]:
    """The offsets of a character, ignoring some bits. Works on pieces that fit into the CPU cache."""
    found = [
        np.flatnonzero((text[at : at + _PIECE] | np.uint8(ignored)) == ord(character)) + at
        for at in range(0, len(text), _PIECE)
    ]
    return np.concatenate(found) if found else np.empty(0, np.intp)


def _counts(places: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[Any]:
    """How many of the offsets are in each text."""
    return np.diff(np.searchsorted(places, offsets))


def _portions(which: NDArray[Any], sizes: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Split a list of texts into parts of few bytes, or of a single text."""
    if len(which):
        number = np.cumsum(sizes[which]) // _AT_ONCE
        yield from np.split(which, np.flatnonzero(np.diff(number)) + 1)


def _measured(texts: pa.Array) -> tuple[list[int], list[int]]:
    """The nesting depth of each text, and the number of keys of its outermost object. Only meaningful for JSON."""
    _, kinds, which, depths = _structure(texts)
    counts = np.bincount(which, minlength=len(texts))
    deepest = np.zeros(len(texts), np.int64)
    deepest[counts > 0] = np.maximum.reduceat(depths, (np.cumsum(counts) - counts)[counts > 0]) if len(depths) else 0
    keys = np.bincount(which[(kinds == _COLON) & (depths == 1)], minlength=len(texts))
    return deepest.tolist(), keys.tolist()


def _structure(texts: pa.Array) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
    """All brackets and colons outside of strings: their offset, character, text, and the depth after them."""
    text, offsets = _bytes(texts)
    marks = np.flatnonzero(_MARKS[text]).astype(np.int32)
    kinds = text[marks]
    starts = np.searchsorted(marks, offsets)
    which = np.repeat(np.arange(len(texts), dtype=np.int32), np.diff(starts))
    quotes = np.cumsum((kinds == _QUOTE) & ~_escaped(marks, kinds), dtype=np.int32)
    is_outside = (quotes - _before(quotes, starts)[which]) % 2 == 0
    is_outside &= (kinds != _QUOTE) & (kinds != _BACKSLASH)
    marks, kinds, which = marks[is_outside], kinds[is_outside], which[is_outside]
    is_open = (kinds | 0x20) == ord("{")
    depths = np.cumsum(is_open.astype(np.int32) - (~is_open & (kinds != _COLON)), dtype=np.int32)
    depths -= _before(depths, np.searchsorted(marks, offsets))[which]
    return marks, kinds, which, depths


def _before(sums: NDArray[Any], starts: NDArray[Any]) -> NDArray[Any]:
    """For each text, the running sum before its first mark."""
    before: NDArray[Any] = np.concatenate([np.zeros(1, sums.dtype), sums])[starts[:-1]]
    return before


def _escaped(marks: NDArray[Any], kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which marks follow an odd number of backslashes."""
    is_backslash = kinds == _BACKSLASH
    if not is_backslash.any():
        return np.zeros(len(marks), np.bool_)
    follows = np.zeros(len(marks), np.bool_)  # directly follows a backslash
    follows[1:] = is_backslash[:-1] & (np.diff(marks) == 1)
    number = np.arange(len(marks))
    first = np.maximum.accumulate(np.where(follows, 0, number))
    escaped: NDArray[np.bool_] = follows & ((number - first) % 2 == 1)
    return escaped
