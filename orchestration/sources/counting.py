"""Counts the contents of a text file from its bytes: lines, CSV records, JSON values. The count is independent of the reader, and a load must
match it. It works on chunks of bytes, without a loop over lines."""

from __future__ import annotations

import csv as csv_module
import json
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from orchestration.mapping.mapping import Csv, Format

#: The layout of a JSON file: one value per line, one array, or objects that may span several lines.
Layout = Literal["lines", "array", "objects"]

DELIMITERS: Final = (",", ";", "\t", "|")
_LF, _CR, _QUOTE, _BACKSLASH, _COMMA = b'\n\r"\\,'
_OPENS, _CLOSES = b"[{", b"]}"


def _table(marks: bytes) -> NDArray[np.bool_]:
    """For each byte, whether it is one of `marks`."""
    table = np.zeros(256, bool)
    table[list(marks)] = True
    return table


def counter(form: Format, start: bytes, csv: Csv) -> Counter:
    """The counter for a file that begins with `start` (at least its first line, or a MB)."""
    if form == "csv":
        return Records(start, csv)
    return Values(start) if Values.can_count(start) else Counter()


class Counter:
    """Counts lines. `lines` are those that are not blank (empty, or a lone CR); `newlines` and `returns` count LF and CR; `longest` is the
    longest line in bytes."""

    delimiter = ","
    layout: Layout = "lines"
    records: int | None = None

    def __init__(self) -> None:
        self.lines = self.newlines = self.returns = self.longest = 0
        self._crlf = 0
        self._open = 0  # bytes since the last LF
        self._before = _LF  # the byte before the chunk

    @property
    def is_uniform(self) -> bool:
        """Whether all lines end in LF, or all in CR LF, and there is no other CR."""
        return self.returns == 0 or self.returns == self._crlf == self.newlines

    @property
    def has_lines(self) -> bool:
        """Whether the length of lines matters; an array may be a single line."""
        return True

    @property
    def is_cut_off(self) -> bool:
        """Whether an array has no end."""
        return False

    def take(self, chunk: bytes) -> None:
        """Count the next bytes."""
        if not chunk:
            return
        data = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(data == _LF)
        if len(ends):
            widths = np.diff(ends, prepend=-1 - self._open) - 1
            before = data[ends - 1]
            if ends[0] == 0:
                before[0] = self._before
            returned = before == _CR
            filled = widths > returned
            self.lines += int(np.count_nonzero(filled))
            self.newlines += len(ends)
            self._crlf += int(np.count_nonzero(returned))
            self.longest = max(self.longest, int(widths.max()))
            self._open = len(data) - int(ends[-1]) - 1
        else:
            filled = np.zeros(0, bool)
            self._open += len(data)
        self.longest = max(self.longest, self._open)
        if b"\r" in chunk:
            self.returns += chunk.count(b"\r")
        self._count_more(chunk, data, ends, filled)
        self._before = int(data[-1])

    def end(self) -> None:
        """Finish counting."""
        self.lines += self._rest()

    def _rest(self) -> int:
        """1 if the last line has no LF and is not blank."""
        return int(self._open > (self._before == _CR))

    def _count_more(
        self, chunk: bytes, data: NDArray[np.uint8], ends: NDArray[np.intp], filled: NDArray[np.bool_]
    ) -> None:
        """Count what a subclass needs. `ends` are the offsets of LF; `filled` says which of those lines are not blank."""


class Records(Counter):
    """Counts records of a CSV file by RFC 4180: after an odd number of quotation marks, a byte is inside quotes. This is only correct if each
    mark is at an end of its field or doubled inside it; otherwise, and for other dialects, `records` is None."""

    def __init__(self, start: bytes, csv: Csv) -> None:
        super().__init__()
        self.delimiter = csv.delimiter or _delimiter(start, csv)
        self._is_clean = csv.quote == '"' and csv.escape in (None, '"') and self.delimiter.isascii()
        around = self.delimiter.encode()[:1]
        self._may_precede, self._may_follow = _table(around + b'\n"'), _table(around + b'\n\r"')
        self._inside = self._has_closed = False
        self._records = 0

    def _count_more(
        self, chunk: bytes, data: NDArray[np.uint8], ends: NDArray[np.intp], filled: NDArray[np.bool_]
    ) -> None:
        if not self._is_clean:
            return
        if not self._inside and not self._has_closed and b'"' not in chunk:
            self._records += int(np.count_nonzero(filled))
            return
        marks = np.flatnonzero(data == _QUOTE)
        outside = (np.searchsorted(marks, ends) + self._inside) % 2 == 0
        self._records += int(np.count_nonzero(filled & outside))
        opened, closed = marks[int(self._inside) :: 2], marks[1 - int(self._inside) :: 2]
        before = data[opened - 1]
        if len(opened) and opened[0] == 0:
            before[0] = self._before
        has_closed = bool(len(closed)) and int(closed[-1]) == len(data) - 1
        after = data[(closed[:-1] if has_closed else closed) + 1]
        self._is_clean = bool(
            self._may_precede[before].all()
            and self._may_follow[after].all()
            and (not self._has_closed or self._may_follow[data[0]])
        )
        self._has_closed = has_closed
        self._inside = bool((len(marks) + self._inside) % 2)

    def end(self) -> None:
        super().end()
        if self._is_clean and not self._inside:
            self.records = self._records + self._rest()


def quoting(csv: Csv) -> dict[str, Any]:
    """The quoting arguments of Python's csv module."""
    return {"quotechar": csv.quote} if csv.quote else {"quoting": csv_module.QUOTE_NONE}


def _delimiter(start: bytes, csv: Csv) -> str:
    """The delimiter that splits the header into most fields. All candidates are ASCII, so the encoding does not matter."""
    text = start.decode("latin-1").partition("\n")[0][: 2**16].rstrip("\r")

    def width(delimiter: str) -> int:
        return len(next(csv_module.reader([text], delimiter=delimiter, **quoting(csv)), []))

    return max(DELIMITERS, key=width)


class Values(Counter):
    """Counts the values of JSON that is not one object per line, by the depth of brackets outside strings."""

    _SPACE: Final = _table(b" \t\r\n")
    _MARKS: Final = _table(b"[]{},")

    def __init__(self, start: bytes) -> None:
        super().__init__()
        self._is_array = start.lstrip().startswith(b"[")
        self._inside = False
        self._slashes = self._depth = self._lowest = self._filled = 0
        self._tops = self._elements = self._loose = 0

    @staticmethod
    def can_count(start: bytes) -> bool:
        """Whether a file with this start is an array, or has objects that span several lines."""
        text = start.lstrip()
        line, mark, _ = text.partition(b"\n")
        if text.startswith(b"[") or not (text.startswith(b"{") and mark):
            return text.startswith(b"[")
        try:
            json.loads(line)
        except ValueError:
            return True
        return False

    @property
    def has_lines(self) -> bool:
        return not self._is_array

    @property
    def is_cut_off(self) -> bool:
        return self._is_array and self._tops == 1 and self._lowest >= 0 and self._depth > 0

    def _count_more(
        self, chunk: bytes, data: NDArray[np.uint8], ends: NDArray[np.intp], filled: NDArray[np.bool_]
    ) -> None:
        self._filled += int(np.count_nonzero(~self._SPACE[data]))
        marks = np.flatnonzero(data == _QUOTE)
        if self._slashes or b"\\" in chunk:  # a quote after an odd number of backslashes is text
            others = np.flatnonzero(data != _BACKSLASH)
            place = np.searchsorted(others, marks)
            last = np.where(place > 0, others[place - 1], -1 - self._slashes)
            marks = marks[(marks - last - 1) % 2 == 0]
            self._slashes = len(data) - int(others[-1]) - 1 if len(others) else self._slashes + len(data)
        places = np.flatnonzero(self._MARKS[data])
        outside = (np.searchsorted(marks, places) + self._inside) % 2 == 0
        self._inside = bool((len(marks) + self._inside) % 2)
        found = data[places[outside]]
        is_comma, opens = found == _COMMA, _table(_OPENS)[found]
        steps = np.where(is_comma, 0, np.where(opens, 1, -1))
        depth = self._depth + np.cumsum(steps)
        if len(depth):
            self._depth, self._lowest = int(depth[-1]), min(self._lowest, int(depth.min()))
        self._tops += int(np.count_nonzero(opens & (depth == 1)))
        self._elements += int(np.count_nonzero(is_comma & (depth == 1)))
        self._loose += int(np.count_nonzero(is_comma & (depth == 0)))

    def end(self) -> None:
        super().end()
        whole = self._depth == 0 and self._lowest == 0 and not self._inside and not self._loose
        if whole and self._is_array and self._tops == 1:
            self.layout = "array"
            self.records = self._elements + (self._filled > 2)
        elif whole and not self._is_array and self._tops:
            self.layout, self.records = "objects", self._tops
