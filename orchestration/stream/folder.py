"""A folder of JSON lines that grow: the stream of a shop that has no broker, and the embedded default."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Final

from orchestration.errors import FinegrainError
from orchestration.stream.source import Chunk, Keeper

#: What a file's name ends with.
SUFFIXES: Final = (".jsonl", ".ndjson")
#: Bytes that are read at once.
READ: Final = 8 * 2**20


class Folder:
    """All files of a folder, each a part, its position the byte where the next line begins (a `Source`). A line counts when its end
    is there. A file is only ever added to; new files may come at any time."""

    def __init__(self, folder: Path, place: str, where: str) -> None:
        self.folder, self.place, self.where = folder, place, where
        self._keeper: Keeper | None = None
        self._at: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    def open(self, keeper: Keeper) -> None:
        if not self.folder.is_dir():
            raise FinegrainError(f"{self.where}.stream.folder: {self.folder} is no folder; make it, or mend the path")
        self._keeper, self._at = keeper, {}
        self._look()

    def _look(self) -> None:
        """Learn which files there are, and claim those that are new."""
        assert self._keeper is not None
        self._sizes = {
            path.name: path.stat().st_size for path in sorted(self.folder.iterdir()) if path.suffix in SUFFIXES
        }
        if self._sizes.keys() - self._at.keys():
            held = self._keeper.claim({name: lambda: "0" for name in self._sizes}, None)
            self._at = {name: int(at.position) for name, at in held.items()}
        for name, at in self._at.items():
            if self._sizes.get(name, at) < at:
                raise FinegrainError(
                    f"{self.folder / name}: it has {self._sizes[name]:,} bytes, and {at:,} have been read already; a file of a stream "
                    "is only added to. Put new events into a file of a new name"
                )

    def poll(self, rows: int, seconds: float) -> Chunk:
        deadline = time.monotonic() + seconds
        while True:
            self._look()
            for name, size in self._sizes.items():
                if self._at[name] < size and (chunk := self._read(name, rows)).ends:
                    return chunk
            left = deadline - time.monotonic()
            if left <= 0:
                return Chunk()
            time.sleep(min(left, 0.05))

    def _read(self, name: str, rows: int) -> Chunk:
        """Whole lines from where the file was left; blank ones are no messages."""
        start = self._at[name]
        with (self.folder / name).open("rb") as file:
            file.seek(start)
            text = file.read(READ)
            while b"\n" not in text and (more := file.read(READ)):
                text += more
        lines = text.split(b"\n")[:-1][:rows]
        sizes = [len(line) + 1 for line in lines]
        starts = list(itertools.accumulate(sizes[:-1], initial=start)) if sizes else []
        found = [(str(at), line) for at, line in zip(starts, lines, strict=True) if line.strip()]
        end = start + sum(sizes)
        self._at[name] = end
        count = len(found)
        nothing = [None] * count
        return Chunk.of(
            [[name] * count, [at for at, _ in found], [line for _, line in found], [-1] * count, nothing, nothing],
            {name: str(end)} if lines else {},
            end - start,
        )

    def landed(self, ends: dict[str, str]) -> None:
        pass

    def lag(self) -> dict[str, int]:
        return {name: size - self._at.get(name, 0) for name, size in self._sizes.items()}

    def is_drained(self) -> bool:
        """The rest of a file without the end of a line is no message yet."""
        return all(not self._has_line(name) for name, size in self._sizes.items() if self._at.get(name, 0) < size)

    def _has_line(self, name: str) -> bool:
        with (self.folder / name).open("rb") as file:
            file.seek(self._at[name])
            return any(b"\n" in block for block in iter(lambda: file.read(READ), b""))

    def close(self) -> None:
        self._at = {}
