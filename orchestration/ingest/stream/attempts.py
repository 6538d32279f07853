"""Tracks batches that crashed their process: for each partition, the position of a batch that was started but not finished, and how often.

This is stored as small files in the home, not in the lake, because such a batch crashes before anything is written. There is one file per
partition, since a partition has one reader at a time. Normally only the first batch after a claim is recorded, because a restarted process
begins there. After a crash, all batches are recorded for a while and processed one at a time, to find the one at fault. The files are only
hints: no data is lost without them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestration.lake.positions import Position

#: The number of batches processed one at a time after a crash.
CAREFUL: Final = 20


@dataclass(eq=False)
class Attempt:
    """An attempt to process a batch. `deaths` counts crashes in batches with the same start. `is_careful`: process no other batch at the same
    time. `notes` are the files to write, with their text."""

    deaths: int = 0
    is_careful: bool = False
    notes: dict[Path, str] = field(default_factory=dict)

    def begin(self) -> None:
        """Record that processing starts."""
        for path, text in self.notes.items():
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    def end(self) -> None:
        """Record that the process survived: the batch has landed or was given up."""
        for path in self.notes:
            with suppress(OSError):
                path.unlink()


class Attempts:
    """The attempts for one stream and the table it fills (together identified by `name`), kept in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._first: set[str] = set()
        self._careful = 0

    def claimed(self, partitions: Mapping[str, Position]) -> None:
        """Note that these partitions were just claimed."""
        self._first = set(partitions)

    def of(self, moves: Mapping[str, tuple[Position | None, Position]]) -> Attempt:
        """The attempt for the next batch, which moves these partitions."""
        attempt = Attempt()
        for partition, (before, _) in moves.items():
            if before is not None and (self._careful or partition in self._first):
                path = self.folder / f"{hashlib.sha256(f'{self.name}/{partition}'.encode()).hexdigest()[:32]}.json"
                deaths = _deaths(path, before.position)
                attempt.deaths = max(attempt.deaths, deaths)
                attempt.notes[path] = json.dumps({"at": before.position, "begun": deaths + 1})
        self._first -= moves.keys()
        self._careful = CAREFUL if attempt.deaths else max(self._careful - 1, 0)
        attempt.is_careful = self._careful > 0
        return attempt


def _deaths(path: Path, position: str) -> int:
    with suppress(OSError, ValueError, KeyError, TypeError):
        noted = json.loads(path.read_text())
        if noted["at"] == position:
            return int(noted["begun"])
    return 0
