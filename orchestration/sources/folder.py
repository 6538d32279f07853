"""The folder source: growing files of JSON lines, as a stream for shops without a broker."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from orchestration.errors import FinegrainError
from orchestration.sources.files import text_of
from orchestration.sources.streams import Chunk, PartitionOwner

#: File names, also after rotation: `web.jsonl`, `web.jsonl.1`, `web.jsonl-20250302`.
NAMES: Final = re.compile(r".*\.(jsonl|ndjson)([.-][0-9][0-9T:_-]*)?", re.DOTALL)
#: Bytes per read.
READ: Final = 8 * 2**20
#: Bytes before a position whose digest identifies the file.
TAIL: Final = 1024


@dataclass(frozen=True)
class FilePosition:
    """A position in a file: the offset of the next line, the inode, and a digest of the bytes before (at most `TAIL`)."""

    offset: int
    inode: str = ""
    tail: str = ""

    @classmethod
    def of(cls, position: str) -> FilePosition:
        offset, inode, tail = position.split(" ")
        return cls(int(offset), inode, tail)

    def __str__(self) -> str:
        return f"{self.offset} {self.inode} {self.tail}"

    def is_in(self, file: BinaryIO) -> bool:
        """Whether a file has the same bytes before this position: then it is the file that was read, whatever its name is now."""
        return self.offset == 0 or (
            os.fstat(file.fileno()).st_size >= self.offset and _tail(file, self.offset) == self.tail
        )


@dataclass
class File:
    """A file as last seen, its partition, and where reading resumes."""

    path: Path
    inode: str
    size: int
    partition: str
    at: FilePosition

    @property
    def rest(self) -> int:
        return max(self.size - self.at.offset, 0)


class Folder:
    """All files of a folder, each a partition (a `Source`). A line counts once it is complete.

    Files are append-only; they may be rotated by renaming, and new ones may appear at any time. As in log shippers, a file is identified by its
    inode and the bytes before the position, not by its name. A renamed file continues at its position; one that was replaced, or truncated and
    rewritten, is a new file and is read from its beginning. So a partition is named by the file's first name and a digest of inode and first
    line: `web.jsonl@1a2b3c4d`."""

    def __init__(self, folder: Path, stream_id: str, where: str) -> None:
        self.folder, self.stream_id, self.where = folder, stream_id, where
        self._owner: PartitionOwner | None = None
        self._files: dict[str, File] = {}
        self._notes: list[str] = []

    def open(self, owner: PartitionOwner) -> None:
        if not self.folder.is_dir():
            raise FinegrainError(
                f"{self.where}.stream.folder: {self.folder} is not a folder; create it, or correct the path"
            )
        self._owner, self._files = owner, {}
        self._look()

    def _look(self) -> None:
        """List the files, and claim new ones."""
        assert self._owner is not None
        seen = list(self._seen())
        of_inode = {file.inode: file for file in self._files.values()}
        if not of_inode.keys() <= {inode for _, inode, _ in seen}:
            seen = list(self._seen())  # a file renamed during the listing may be missing under both names
        strangers = []
        for path, inode, size in seen:
            file = of_inode.get(inode)
            if file is not None and size >= file.size:
                file.path, file.size = path, size
            else:
                strangers.append((path, inode, size))
        there = {inode: size for _, inode, size in seen}
        for partition, file in list(self._files.items()):
            if there.get(file.inode, -1) < file.size:
                if file.rest:
                    self._notes.append(
                        f"{file.path}: it was deleted or replaced before its last {file.rest:,} bytes were read"
                    )
                del self._files[partition]
        if strangers:
            self._claim(strangers)

    def _seen(self) -> Iterator[tuple[Path, str, int]]:
        """The existing files: path, inode and size. During a rename, both names may be listed."""
        inodes = set()
        for path in sorted(self.folder.iterdir()):
            if not NAMES.fullmatch(path.name):
                continue
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file() and (about.st_ino not in inodes or about.st_nlink > 1):
                inodes.add(about.st_ino)
                yield path, str(about.st_ino), about.st_size

    def _claim(self, strangers: list[tuple[Path, str, int]]) -> None:
        """Match files to known partitions, and claim all."""
        assert self._owner is not None
        known = {partition: FilePosition.of(at.position) for partition, at in self._owner.known().items()}
        files = dict(self._files)
        for rule in (_same_inode, _same_name, _long_enough):
            for path, inode, size in list(strangers):
                for partition in sorted(known.keys() - files.keys()):
                    if rule(partition, known[partition], path, inode) and _is_in(known[partition], path):
                        files[partition] = File(path, inode, size, partition, known[partition])
                        strangers.remove((path, inode, size))
                        break
        for path, inode, size in strangers:
            name = f"{text_of(Path(path.name))}@{_digest(inode.encode() + _first_line(path))[:8]}"
            several = (name if n == 1 else f"{name}.{n}" for n in itertools.count(1))
            partition = next(each for each in several if each not in known.keys() | files.keys())
            files[partition] = File(path, inode, size, partition, FilePosition(0, inode))
        beginnings = {partition: partial(str, FilePosition(0, file.inode)) for partition, file in files.items()}
        for partition, at in self._owner.claim(beginnings, None).items():
            files[partition].at = FilePosition.of(at.position)
        self._files = files

    def poll(self, rows: int, seconds: float) -> Chunk:
        deadline = time.monotonic() + seconds
        while True:
            self._look()
            notes, self._notes = self._notes, []
            for file in sorted(self._files.values(), key=lambda file: file.path):
                if file.rest and (chunk := self._read(file, rows)).ends:
                    chunk.notes = notes
                    return chunk
            left = deadline - time.monotonic()
            if left <= 0 or notes:
                return Chunk(notes=notes)
            time.sleep(min(left, 0.05))

    def _read(self, file: File, rows: int) -> Chunk:
        """Read whole lines from the current position; blank lines are not messages."""
        start, before = file.at.offset, str(file.at)
        try:
            handle = file.path.open("rb")
        except FileNotFoundError:
            return Chunk()
        with handle:
            if str(os.fstat(handle.fileno()).st_ino) != file.inode:
                return Chunk()  # renamed since the listing
            if not file.at.is_in(handle):
                file.inode = ""  # rewritten from its beginning: the next listing treats it as a new file
                return Chunk()
            handle.seek(start)
            text = handle.read(READ)
            while b"\n" not in text and (more := handle.read(READ)):
                text += more
            lines = text.split(b"\n")[:-1][:rows]
            sizes = [len(line) + 1 for line in lines]
            end = start + sum(sizes)
            if lines:
                file.at = FilePosition(end, file.inode, _tail(handle, end))
        starts = list(itertools.accumulate(sizes[:-1], initial=start)) if sizes else []
        found = [(str(at), line) for at, line in zip(starts, lines, strict=True) if line.strip()]
        count = len(found)
        nothing = [None] * count
        return Chunk.of(
            [
                [file.partition] * count,
                [at for at, _ in found],
                [line for _, line in found],
                [-1] * count,
                nothing,
                nothing,
            ],
            {file.partition: before},
            {file.partition: str(file.at)} if lines else {},
            end - start,
        )

    def landed(self, ends: dict[str, str]) -> None:
        pass

    def lag(self) -> dict[str, int]:
        return {partition: file.rest for partition, file in self._files.items()}

    def is_drained(self) -> bool:
        """An incomplete last line is not a message yet."""
        return not any(file.rest and self._has_line(file) for file in self._files.values())

    def _has_line(self, file: File) -> bool:
        try:
            with file.path.open("rb") as handle:
                handle.seek(file.at.offset)
                return any(b"\n" in block for block in iter(lambda: handle.read(READ), b""))
        except FileNotFoundError:
            return True  # renamed; the next listing finds it

    def close(self) -> None:
        self._files = {}


def _same_inode(partition: str, at: FilePosition, path: Path, inode: str) -> bool:
    return at.inode == inode


def _same_name(partition: str, at: FilePosition, path: Path, inode: str) -> bool:
    return partition.rpartition("@")[0] == text_of(Path(path.name))


def _long_enough(partition: str, at: FilePosition, path: Path, inode: str) -> bool:
    """For files copied to another disk, or rotated by copying: this many equal bytes are not a coincidence."""
    return at.offset >= TAIL


def _is_in(at: FilePosition, path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return at.is_in(file)
    except FileNotFoundError:
        return False


def _tail(file: BinaryIO, offset: int) -> str:
    length = min(offset, TAIL)
    file.seek(offset - length)
    return _digest(file.read(length))


def _first_line(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.readline(TAIL)
    except FileNotFoundError:
        return b""


def _digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()[:16]
