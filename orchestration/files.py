"""The files a mapping names: found, and looked through once before any of their rows is read."""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Final

from orchestration.errors import FinegrainError
from orchestration.mapping import Format, format_of

#: The longest line of a text file, in bytes. A longer one is no row but a broken file, and would fill the memory.
LONGEST_LINE: Final = 16 * 2**20
_CHUNK: Final = 2**20


@dataclass(frozen=True)
class DataFile:
    """One file to land. `name` is what its rows' positions begin with; `size` in bytes."""

    path: Path
    name: str
    format: Format
    size: int


@dataclass(frozen=True)
class Look:
    """What one pass over a file's bytes told: `fingerprint` (size and SHA-256) and whether it holds quotes."""

    fingerprint: str
    quoted: bool


def find(patterns: Sequence[str], form: Format | None, base: Path) -> list[DataFile]:
    """The files behind paths, globs, folders, `package://` and `s3://` addresses; relative ones start at `base`.

    A row's position must tell its file from its neighbours, so files of one base name in several folders keep as
    much of the path as differs. Raises FinegrainError when a pattern leads to nothing.
    """
    found: dict[Path, tuple[str, Format]] = {}
    for pattern in patterns:
        if pattern.startswith("s3://"):
            from orchestration import objects  # boto3 takes half a second to import

            for path, name in objects.fetch(pattern, form):
                found.setdefault(path, (name, _format(name, form)))
            continue
        for path, root in _expand(pattern, form, base):
            found.setdefault(path, (path.relative_to(root).as_posix(), _format(str(path), form)))
    names = Counter(name for name, _ in found.values())
    return [
        DataFile(path, name if names[name] == 1 else path.as_posix().lstrip("/"), told, path.stat().st_size)
        for path, (name, told) in found.items()
    ]


def _format(name: str, form: Format | None) -> Format:
    told = form or format_of(name)
    if told is None:
        raise FinegrainError(
            f"{name}: the name does not tell the format; add `format: parquet`, `csv` or `jsonl` to the mapping"
        )
    return told


def _expand(pattern: str, form: Format | None, base: Path) -> Iterator[tuple[Path, Path]]:
    """(file, folder its name is told from) for one pattern."""
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
            raise FinegrainError(f"{path}: this is a folder without {wanted} files")
        yield from ((file, path) for file in inside)
    elif path.is_file():
        yield path, path.parent
    elif glob.has_magic(pattern):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not matches:
            raise FinegrainError(f"{pattern}: no file matches this pattern (looked in {base.resolve()})")
        fixed = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        yield from ((match, fixed) for match in matches)
    elif path.exists():
        raise FinegrainError(f"{path}: this is neither a file nor a folder")
    else:
        raise FinegrainError(f"{pattern}: no such file (looked in {base.resolve()})")


def as_regex(pattern: str) -> str:
    """A glob as a regular expression: `*` stays within a folder, `**/` goes through any."""
    spelled = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(spelled.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))


def may_name(pattern: str, form: Format | None, name: str) -> bool:
    """Whether `find` may have found a file by this pattern that it called `name`, though the file is not there any more."""
    if pattern.startswith("s3://"):
        return re.fullmatch(as_regex(pattern) + (".*" if pattern.endswith("/") else ""), name) is not None
    if glob.has_magic(pattern) and not pattern.startswith("package://"):
        parts = Path(pattern).parts
        first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        return re.fullmatch(as_regex("/".join(parts[first:])), name) is not None
    if (form is None and format_of(pattern) is None) or (form and not Path(pattern).suffix):  # a folder
        return format_of(name) is not None and format_of(name) == (form or format_of(name))
    return Path(pattern).name == name


def _in_package(address: str) -> Path:
    package, _, inside = address.removeprefix("package://").partition("/")
    try:
        return Path(str(package_files(package))) / inside
    except (ModuleNotFoundError, ValueError, TypeError):
        raise FinegrainError(
            f"{address}: the package '{package}' is not installed here; try pip install {package.replace('_', '-')}"
        ) from None


def look(file: DataFile) -> Look:
    """Read a file once, in constant memory: fingerprint it, and refuse what is no text where text is due.

    For CSV and JSON lines: bytes that are not UTF-8, NUL bytes, and lines over LONGEST_LINE bytes raise
    FinegrainError with the line number.
    """
    if file.size == 0:
        raise FinegrainError(f"{file.path}: the file is empty (0 bytes)")
    text = file.format != "parquet"
    packed = text and file.path.suffix == ".gz"
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    quoted = ended = returned = False
    lines, run = 1, 0
    try:
        with gzip.open(file.path) if packed else file.path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                if not text:
                    continue
                first = chunk.find(b"\n")
                run += len(chunk) if first < 0 else first
                if run > LONGEST_LINE:
                    raise FinegrainError(
                        f"{file.path}: line {lines} is longer than {LONGEST_LINE // 2**20} MB; "
                        "is this a text file with one row a line?"
                    )
                _check_text(file, chunk, decoder, lines)
                quoted = quoted or b'"' in chunk
                returned = returned or b"\r" in chunk
                if first >= 0:
                    ended = True
                    run = len(chunk) - chunk.rfind(b"\n") - 1
                    lines += chunk.count(b"\n")
            if text:
                decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise FinegrainError(f"{file.path}: the file ends inside a UTF-8 character; it may be cut off") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise FinegrainError(f"{file.path}: this gzip file is broken or cut off; copy it again") from None
    except OSError as error:
        raise FinegrainError(f"{file.path}: the file cannot be read: {error.strerror}") from None
    if returned and not ended:
        raise FinegrainError(f"{file.path}: its lines end in CR alone; convert it to LF, say with tr '\\r' '\\n'")
    return Look(f"{file.size}-{digest.hexdigest()}", quoted)


def _check_text(file: DataFile, chunk: bytes, decoder: codecs.IncrementalDecoder, line: int) -> None:
    try:
        decoder.decode(chunk)
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise FinegrainError(
            f"{file.path}: line {line} is not UTF-8 text (byte 0x{error.object[error.start]:02x}); "
            f"convert the file, say with iconv -f latin1 -t utf-8"
        ) from None
    if b"\0" in chunk:
        line += chunk[: chunk.find(b"\0")].count(b"\n")
        raise FinegrainError(f"{file.path}: line {line} holds NUL bytes; this is no {file.format} text file")
