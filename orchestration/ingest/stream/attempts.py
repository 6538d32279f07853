"""Batches in which processes died: by partition, the position at which a batch was begun and not ended, and how often.

This is kept beside the home, not in the lake: a batch that kills its process does so before anything is written. There is one small file for
each partition, since a partition has one reader at a time. Only the first batch of a partition after a claim is noted, since the next process would begin
there, too. After a death all batches are, for a while, and they are processed one at a time, so that it is known which one is deadly.
Nothing is lost with the files: they only say where to look closely.
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

#: So many batches are processed one at a time after a death.
CAREFUL: Final = 20


@dataclass(eq=False)
class Attempt:
    """A batch to be processed, and how many `deaths` there were in one that began where it does. `is_careful`: no other batch is to be
    processed at the same time. `notes` are files, each with its text."""

    deaths: int = 0
    is_careful: bool = False
    notes: dict[Path, str] = field(default_factory=dict)

    def begin(self) -> None:
        """It is processed from now on."""
        for path, text in self.notes.items():
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    def end(self) -> None:
        """It has landed, or nobody tries any more; the process is alive."""
        for path in self.notes:
            with suppress(OSError):
                path.unlink()


class Attempts:
    """Of one stream and the table that it fills (together called `name`), in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._first: set[str] = set()
        self._careful = 0

    def claimed(self, partitions: Mapping[str, Position]) -> None:
        """These partitions are read from now on, each from where the lake says."""
        self._first = set(partitions)

    def of(self, moves: Mapping[str, tuple[Position | None, Position]]) -> Attempt:
        """For the next batch, of partitions that move so."""
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
