"""Finds the files of a mapping, and inspects each once (fingerprint, encoding, number of records) before its rows are read."""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import os
import re
import tempfile
import weakref
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import IO, Final, cast

from orchestration.errors import FinegrainError
from orchestration.errors.console import shown
from orchestration.lake.locks import scratch
from orchestration.mapping.mapping import Csv, Format, format_of
from orchestration.sources import counting

#: The longest line of a text file, in bytes. A longer line means a broken file, and would use up memory.
LONGEST_LINE: Final = 16 * 2**20
_CHUNK: Final = 2**20


@dataclass(frozen=True)
class DataFile:
    """One file to load. `name` is the prefix of its rows' positions, with invalid UTF-8 escaped; `size` is in bytes."""

    path: Path
    name: str
    format: Format
    size: int

    def __str__(self) -> str:
        """The path, for messages."""
        return shown(self.path)


@dataclass(frozen=True)
class Look:
    """The result of one pass over a file. `path` has its rows: the file itself, possibly gzipped, or a UTF-8 copy that lives as long as this
    object. `lines` counts lines that are not blank. `records` counts the records of a CSV file, including its header, or the values of a JSON
    array or of objects over several lines (`layout`); None if the quotes of a CSV file leave it open. `is_uniform`: all lines have the same line
    ending. `starts_object`: a JSON file begins with an object that spans several lines."""

    fingerprint: str
    path: Path
    is_gzipped: bool = False
    delimiter: str = ","
    lines: int = 0
    records: int | None = None
    is_uniform: bool = True
    layout: counting.Layout = "lines"
    starts_object: bool = False
    notes: tuple[str, ...] = field(default=())

    def open(self) -> IO[bytes]:
        """Open the rows as UTF-8 bytes."""
        return cast(IO[bytes], gzip.open(self.path)) if self.is_gzipped else self.path.open("rb")


class EmptyFile(FinegrainError):
    """A file of 0 bytes."""


def find(patterns: Sequence[str], form: Format | None, base: Path) -> list[DataFile]:
    """The files behind paths, globs, folders, `package://` and `s3://` addresses; relative ones start at `base`.

    Positions must be unique, so files with the same name in several folders keep their path. Raises FinegrainError if a pattern matches nothing.
    """
    found: dict[Path, tuple[str, Format]] = {}
    for pattern in patterns:
        if pattern.startswith("s3://"):
            from orchestration.sources import objects  # boto3 takes half a second to import

            for path, name in objects.fetch(pattern, form):
                found.setdefault(path, (name, _format(path, name, form)))
            continue
        try:
            for path, root in _expand(pattern, form, base):
                found.setdefault(path, (text_of(path.relative_to(root)), _format(path, str(path), form)))
        except (OSError, RuntimeError) as error:  # a name that is too long, or ~ of an unknown user
            raise FinegrainError(f"{shown(pattern)}: {getattr(error, 'strerror', None) or error}".rstrip(".")) from None
    names = Counter(name for name, _ in found.values())
    files = [
        DataFile(path, name if names[name] == 1 else text_of(path).lstrip("/"), kind, _size(path))
        for path, (name, kind) in found.items()
    ]
    named: dict[str, DataFile] = {}
    for file in files:
        other = named.setdefault(file.name, file)
        if other is not file:
            raise FinegrainError(
                f"{file}: its rows would have the same positions as those of {other}; rename one of the files"
            )
    return files


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise FinegrainError(f"{shown(path)}: the file cannot be read: {error.strerror}") from None


def text_of(path: Path) -> str:
    """A file's name as text; invalid UTF-8 is escaped."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _format(path: Path, name: str, form: Format | None) -> Format:
    kind = form or format_of(name)
    if kind is None and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            kind = format_of(_member(path, packed).filename)
    if kind is None:
        raise FinegrainError(
            f"{shown(name)}: the format is not clear from the name; add `format: parquet`, `csv` or `jsonl` to the mapping"
        )
    return kind


def _expand(pattern: str, form: Format | None, base: Path) -> Iterator[tuple[Path, Path]]:
    """(file, folder that its name is relative to) for one pattern."""
    path = _in_package(pattern) if pattern.startswith("package://") else base / Path(pattern).expanduser()
    if path.is_dir():
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.is_file() and format_of(file.name) == (form or format_of(file.name))
        )
        inside = [file for file in inside if format_of(file.name) and not file.name.startswith((".", "_"))]
        if not inside:
            wanted = form or "Parquet, CSV or JSON-lines"
            raise FinegrainError(f"{shown(path)}: this is a folder without {wanted} files")
        yield from ((file, path) for file in inside)
    elif path.is_file():
        yield path, path.parent
    elif glob.has_magic(pattern):
        # The name of the base folder may look like a pattern.
        relative = Path(pattern).expanduser()
        found = glob.glob(str(relative), root_dir=base, recursive=True)
        matches = sorted(base / match for match in found if (base / match).is_file())
        if not matches:
            raise FinegrainError(f"{shown(pattern)}: no file matches this pattern (looked in {shown(base.resolve())})")
        fixed = next(parent for parent in relative.parents if not glob.has_magic(str(parent)))
        yield from ((match, base / fixed) for match in matches)
    elif path.exists():
        raise FinegrainError(f"{shown(path)}: this is neither a file nor a folder")
    else:
        raise FinegrainError(f"{shown(pattern)}: no such file (looked in {shown(base.resolve())})")


def _in_package(address: str) -> Path:
    package, _, inside = address.removeprefix("package://").partition("/")
    try:
        return Path(str(package_files(package))) / inside
    except (ModuleNotFoundError, ValueError, TypeError):
        raise FinegrainError(
            f"{address}: the package '{package}' is not installed here; try pip install {package.replace('_', '-')}"
        ) from None


def look(file: DataFile, encoding: str | None = None, csv: Csv | None = None) -> Look:
    """Read a file once, in constant memory: fingerprint it, count its lines and records, and reject binary data where text is expected.

    `encoding` and `csv` are the mapping's. Text that is not UTF-8 is copied as UTF-8 (UTF-16 and UTF-32 are detected), and so is a single
    file in a zip file; gzip is detected by content. Raises EmptyFile, and FinegrainError with the line number for CSV and JSON lines with
    undecodable bytes, NUL bytes, or lines over LONGEST_LINE bytes.
    """
    if file.size == 0:
        raise EmptyFile(f"{file}: the file is empty (0 bytes)")
    try:
        with ExitStack() as stack:
            return _look(file, encoding, csv or Csv(), stack)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise FinegrainError(f"{file}: this gzip file is broken or cut off; copy it again") from None
    except zipfile.BadZipFile:
        raise FinegrainError(f"{file}: this zip file is broken or cut off; copy it again") from None
    except NotImplementedError:
        raise FinegrainError(f"{file}: this zip file is packed in a way that is not known here; unpack it") from None
    except OSError as error:
        raise FinegrainError(f"{file}: the file cannot be read: {error.strerror or error}") from None


def _look(file: DataFile, encoding: str | None, csv: Csv, stack: ExitStack) -> Look:
    raw: IO[bytes] = stack.enter_context(file.path.open("rb"))
    digest, notes = hashlib.sha256(), []
    first = _head(raw)
    is_zip, is_gzipped = first.startswith(b"PK\x03\x04"), first.startswith(b"\x1f\x8b") and file.format != "parquet"
    is_odd = _PLAIN.fullmatch(str(file.path)) is None
    if is_zip or first.startswith(b"PK\x05\x06"):
        packed = stack.enter_context(zipfile.ZipFile(raw))
        inside = _member(file.path, packed)
        raw = stack.enter_context(packed.open(inside))
        notes.append(f"{shown(file.name)}: read {shown(inside.filename)} inside it")
    elif is_gzipped:
        raw = stack.enter_context(closing(cast(IO[bytes], gzip.open(raw))))  # noqa: SIM115 (the stack closes it)
    if file.format == "parquet":
        folder = _scratch() if is_zip or is_odd else None
        copy = stack.enter_context((folder / "copy.parquet").open("wb")) if folder and is_zip else None
        while chunk := raw.read(_CHUNK):
            digest.update(chunk)
            if copy:
                copy.write(chunk)
        return _kept(
            Look(f"{file.size}-{digest.hexdigest()}", _rows_at(file, copy, folder), notes=tuple(notes)),
            folder,
        )
    chunk = raw.read(_CHUNK)
    if not chunk:
        raise EmptyFile(f"{file}: the file is empty (0 bytes)")
    _reject_known_formats(file, chunk)
    codec = encoding or _wide(chunk)
    if encoding is None and codec is not None:
        notes.append(f"{shown(file.name)}: read as {codec}")
    folder = _scratch() if is_zip or codec or is_odd else None
    copy = stack.enter_context((folder / "copy.txt").open("wb")) if folder and (is_zip or codec) else None
    text = _Text(file, codec or "utf-8", "encoding" if encoding else "")
    counter: counting.Counter | None = None
    while chunk:
        digest.update(chunk)
        line = counter.newlines + 1 if counter else 1
        plain = text.decoded(chunk, line)
        if copy:
            copy.write(plain)
        if counter is None:
            plain = plain.removeprefix(codecs.BOM_UTF8)
            counter = counting.counter(file.format, plain, csv)
        counter.take(plain)
        if counter.longest > LONGEST_LINE and counter.has_lines:
            raise FinegrainError(
                f"{file}: line {line} is longer than {LONGEST_LINE // 2**20} MB; is this a text file with one row a line?"
            )
        chunk = raw.read(_CHUNK)
    text.end()
    counter = counter or counting.counter(file.format, b"", csv)
    counter.end()
    if counter.returns and not counter.newlines:
        raise FinegrainError(f"{file}: its lines end in CR alone; convert it to LF, say with tr '\\r' '\\n'")
    if counter.is_cut_off:
        raise FinegrainError(f"{file}: this is a JSON array that is cut off, since it does not end in ]; copy it again")
    seen = Look(
        f"{file.size}-{digest.hexdigest()}",
        _rows_at(file, copy, folder),
        is_gzipped and copy is None,
        counter.delimiter,
        counter.lines,
        counter.records,
        counter.is_uniform,
        counter.layout,
        isinstance(counter, counting.Values),
        tuple(notes),
    )
    return _kept(seen, folder)


def _head(raw: IO[bytes]) -> bytes:
    first = raw.read(8)
    raw.seek(0)
    return first


#: Paths that DuckDB takes literally: without patterns, URLs or invalid text.
_PLAIN: Final = re.compile(r"[^~:\\*?\[\]{}\x00-\x1f\ud800-\udfff]+")


def _rows_at(file: DataFile, copy: IO[bytes] | None, folder: Path | None) -> Path:
    """The path for DuckDB: a copy, a link with a name that DuckDB takes literally, or the file itself."""
    if copy is not None:
        return Path(copy.name)
    if folder is None:
        return file.path
    link = folder / "link"
    link.symlink_to(file.path.absolute())
    return link


def _scratch() -> Path:
    held = ExitStack()
    folder = held.enter_context(scratch(Path(tempfile.gettempdir()), "finegrain-text-"))
    _copies[folder] = held
    return folder


#: The finalizers that remove folders with copies.
_copies: Final[dict[Path, ExitStack]] = {}


def _kept(seen: Look, folder: Path | None) -> Look:
    """The look; its copy is deleted together with it."""
    if folder is not None:
        weakref.finalize(seen, _copies.pop(folder).close)
    return seen


def _member(path: Path, packed: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The only file in a zip file. Otherwise raises FinegrainError that says what the zip file is."""
    names = packed.namelist()
    for mark, what in (("[Content_Types].xml", "an Excel workbook"), ("mimetype", "an OpenDocument spreadsheet")):
        if mark in names:
            raise FinegrainError(f"{shown(path)}: this is {what}; save its sheet as CSV (UTF-8) and load that")
    inside = [
        each
        for each in packed.infolist()
        if not each.is_dir()
        and not each.filename.startswith("__MACOSX/")
        and not Path(each.filename).name.startswith(".")
    ]
    if len(inside) != 1:
        listed = ", ".join(shown(each.filename) for each in inside[:3]) + (", …" if len(inside) > 3 else "")
        what = f"{len(inside)} files ({listed})" if inside else "no file"
        raise FinegrainError(
            f"{shown(path)}: this zip file has {what} inside; unpack it and name the files that are to be loaded"
        )
    if inside[0].flag_bits & 1:
        raise FinegrainError(f"{shown(path)}: this zip file asks for a password; unpack it")
    return inside[0]


#: The first bytes of other file formats, their names, and what to do.
_KNOWN: Final = (
    (b"PAR1", "a Parquet file", "add `format: parquet` to the mapping"),
    (b"PK\x03\x04", "a zip file inside another", "unpack it"),
    (b"\x1f\x8b", "a gzip file inside another", "unpack it"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook (.xls)", "save its sheet as CSV (UTF-8) and load that"),
    (b"%PDF-", "a PDF", "ask for the data as CSV"),
    (b"SQLite format 3\0", "a SQLite database", "export its table as CSV or Parquet"),
    (b"BZh", "a bzip2 file", "unpack it"),
    (b"\xfd7zXZ\0", "an xz file", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file", "unpack it"),
    (b"Rar!\x1a\x07", "a RAR file", "unpack it"),
    (b"Obj\x01", "an Avro file", "export it as Parquet or JSON lines"),
    (b"ORC", "an ORC file", "export it as Parquet"),
)


def _reject_known_formats(file: DataFile, chunk: bytes) -> None:
    """Reject known formats that are not text."""
    for mark, what, how in _KNOWN:
        # Some signatures are letters that a header may begin with, but binary files soon have bytes that are not text.
        if chunk.startswith(mark) and (not mark.isalpha() or b"\0" in chunk[:4096]):
            raise FinegrainError(f"{file}: this is {what}, not {file.format}; {how}")
    if chunk[:1024].removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise FinegrainError(f"{file}: this is a web page, not {file.format}; did the download ask for a login?")


def _wide(chunk: bytes) -> str | None:
    """The codec of UTF-16 or UTF-32 text, by its first bytes; None for other encodings."""
    for mark, codec in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if chunk.startswith(mark):
            return codec
    # Without a byte order mark: a header is mostly ASCII, so every other byte is NUL.
    start = chunk[:256]
    half = len(start) // 2
    if half >= 4 and start[1::2].count(0) > 0.7 * half and not start[::2].count(0):
        return "utf-16-le"
    if half >= 4 and start[::2].count(0) > 0.7 * half and not start[1::2].count(0):
        return "utf-16-be"
    return None


class _Text:
    """Decodes chunks of a text file to UTF-8, and checks them."""

    def __init__(self, file: DataFile, codec: str, said: str) -> None:
        self.file, self.codec, self.said = file, codec, said
        self.is_utf8 = codecs.lookup(codec).name == "utf-8"
        self._decoder = codecs.getincrementaldecoder(codec)()

    def decoded(self, chunk: bytes, line: int) -> bytes:
        """The chunk, which begins in `line`, as UTF-8. Raises FinegrainError with the line of the first invalid byte."""
        try:
            text = self._decoder.decode(chunk)
            plain = chunk if self.is_utf8 else text.encode()
        except UnicodeError as error:
            raise self._error(error, line) from None
        if b"\0" in plain:
            line += plain[: plain.find(b"\0")].count(b"\n")
            raise FinegrainError(
                f"{self.file}: line {line} contains NUL bytes; this is not a {self.file.format} text file"
            )
        return plain

    def end(self) -> None:
        """Reject a file that ends within a character."""
        try:
            self._decoder.decode(b"", final=True)
        except UnicodeError:
            name = "UTF-8" if self.is_utf8 else self.codec
            raise FinegrainError(f"{self.file}: the file ends inside a {name} character; it may be cut off") from None

    def _error(self, error: UnicodeError, line: int) -> FinegrainError:
        if not isinstance(error, UnicodeDecodeError):
            return FinegrainError(f"{self.file}: this is no {self.codec} text: {error}")
        before, byte = error.object[: error.start], error.object[error.start]
        if self.is_utf8 and not self.said:
            line += before.count(b"\n")
            return FinegrainError(
                f"{self.file}: line {line} is not UTF-8 text (byte 0x{byte:02x}); say what it is in the mapping, "
                "as in encoding: cp1252 (Windows) or encoding: latin-1"
            )
        line += before.decode(self.codec, "ignore").count("\n")
        return FinegrainError(
            f"{self.file}: line {line} is not {self.codec} text (byte 0x{byte:02x}); is encoding right?"
        )
