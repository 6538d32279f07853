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

#: Bytes that are looked at exactly at once.
_AT_ONCE: Final = 2**20
#: Bytes in which characters are looked for at once.
_PIECE: Final = 2**17
#: Bytes that a key and its value take at least, as in `"":0,`.
_LEAST: Final = 5
_QUOTE, _BACKSLASH, _COLON = (ord(each) for each in '"\\:')
#: By byte, whether it says anything about depth and keys.
_MARKS: Final = np.isin(np.arange(256), [ord(each) for each in '"\\:{}[]'])


@dataclass(frozen=True)
class Bounds:
    """What a message may have at most: bytes, keys of its own (those of nested objects do not count), and objects and lists within each
    other."""

    size: int = 2**20
    keys: int = 1_000
    depth: int = 100


def beyond(texts: pa.ChunkedArray, bounds: Bounds) -> pa.ChunkedArray:
    """For each text (or its bytes) the rule that it breaks and a sentence on it, null where it is within the bounds."""
    return pa.chunked_array([_beyond(chunk, bounds) for chunk in texts.chunks], pa.string())


def shallow(body: bytes, depth: int) -> bytes:
    """A JSON text with null for every object and list that lies deeper than `depth`."""
    marks, kinds, _, depths = _structure(pa.array([body], pa.binary()))
    is_open = (kinds | 0x20) == ord("{")
    # A bracket that closes has the depth of what it lies in. Of a text that is cut off, the last one may be missing.
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
    # The brackets that open differ in one bit.
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
    """The bytes of all texts in a row, and where each begins and the last one ends."""
    is_wide = texts.type in (pa.large_string(), pa.large_binary())
    _, places, held = texts.buffers()
    if held is None or not len(texts):
        return np.empty(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    offsets = np.frombuffer(places, np.int64 if is_wide else np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(held, np.uint8)[offsets[0] : offsets[-1]], offsets.astype(np.int64) - offsets[0]


def _places(text: NDArray[np.uint8], character: str, ignored: int = 0) -> NDArray[Any]:
    """Where a character is in the bytes, but for the bits that are `ignored`. A piece that fits a processor's cache at a time."""
    found = [
        np.flatnonzero((text[at : at + _PIECE] | np.uint8(ignored)) == ord(character)) + at
        for at in range(0, len(text), _PIECE)
    ]
    return np.concatenate(found) if found else np.empty(0, np.intp)


def _counts(places: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[Any]:
    """How many of some places lie in each text."""
    return np.diff(np.searchsorted(places, offsets))


def _portions(which: NDArray[Any], sizes: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Cut a list of texts so that each part holds few bytes, or a single text."""
    if len(which):
        number = np.cumsum(sizes[which]) // _AT_ONCE
        yield from np.split(which, np.flatnonzero(np.diff(number)) + 1)


def _measured(texts: pa.Array) -> tuple[list[int], list[int]]:
    """How deep each text is nested, and how many keys its outermost object has. Right for JSON; of other texts it is a number."""
    _, kinds, which, depths = _structure(texts)
    counts = np.bincount(which, minlength=len(texts))
    deepest = np.zeros(len(texts), np.int64)
    deepest[counts > 0] = np.maximum.reduceat(depths, (np.cumsum(counts) - counts)[counts > 0]) if len(depths) else 0
    keys = np.bincount(which[(kinds == _COLON) & (depths == 1)], minlength=len(texts))
    return deepest.tolist(), keys.tolist()


def _structure(texts: pa.Array) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
    """Every bracket and colon outside of strings: where it is, which it is, of which text, and how deep nested behind it."""
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
    """By text, the running sum before its first mark."""
    before: NDArray[Any] = np.concatenate([np.zeros(1, sums.dtype), sums])[starts[:-1]]
    return before


def _escaped(marks: NDArray[Any], kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which marks stand behind an odd number of backslashes."""
    is_backslash = kinds == _BACKSLASH
    if not is_backslash.any():
        return np.zeros(len(marks), np.bool_)
    follows = np.zeros(len(marks), np.bool_)  # a backslash, at once
    follows[1:] = is_backslash[:-1] & (np.diff(marks) == 1)
    number = np.arange(len(marks))
    first = np.maximum.accumulate(np.where(follows, 0, number))
    escaped: NDArray[np.bool_] = follows & ((number - first) % 2 == 1)
    return escaped
