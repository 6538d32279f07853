"""Searches every file of an installation for the ids of forgotten people.

Each file's bytes are read as they are. What hides text is opened: Parquet and DuckDB files and the lake's catalogue are searched row by row, and gzip
is decompressed. Rows are searched for whole words, so that u1 is not found in u12. In bytes, words have no certain ends: there, an id is a word
only if others contain it, and else is found wherever it is.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.forget import WORD
from orchestration.lake import lake
from orchestration.sql.text import identifier, path_literal, quote, text_of_bytes

#: Bytes read at a time.
CHUNK: Final = 16 * 2**20
#: Types of columns that may hold an id, also nested ones; and those that may hold one that is a number.
_TEXT: Final = re.compile("VARCHAR|BLOB|JSON|UUID|ENUM")
_NUMBER: Final = re.compile("INT|DECIMAL")
#: Columns that hold nothing but ids of a kind: ids too short to be found in a text are compared with these.
_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "login": ("user_id",),
    "visitor": ("anonymous_id", "user_pseudo_id"),
    "order": ("order_id", "purchase_order_id"),
}


@dataclass(frozen=True)
class Sought:
    """What is searched for: a regular expression for texts, byte strings, ids that are searched for in bytes as `words`, and ids (by kind) too short
    for all of these, which are compared with columns of ids. `identities` are ids with their prefix, `u:17`."""

    pattern: str | None
    strings: Sequence[bytes]
    words: Sequence[bytes]
    short: dict[str, list[str]]
    identities: Sequence[str]

    @property
    def has_numbers(self) -> bool:
        """Whether an id is a number, so that it may be in a column of numbers."""
        return any(each.isdigit() for each in (*self.strings, *self.words))


@dataclass
class Proof:
    """The result: files, bytes and rows searched, and `found`: where something is left, with how often."""

    files: int = 0
    bytes: int = 0
    rows: int = 0
    values: int = 0
    found: dict[str, int] = field(default_factory=dict)

    def add(self, where: str, hits: int) -> None:
        """Note hits at a place."""
        if hits:
            self.found[where] = self.found.get(where, 0) + hits

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def search(where: Settings, sought: Sought, left_out: Iterable[Path] = ()) -> Proof:
    """Search everything below the home, and the lake, the warehouse and the published marts where they are elsewhere. DuckDB's extensions and
    the files `left_out` are not searched. Raises FinegrainError."""
    short = sum(map(len, sought.short.values()))
    proof = Proof(values=len(sought.strings) + len(sought.words) + short)
    with duckdb.connect() as con:
        con.execute("set timezone = 'UTC'")
        for file in _files(where, {path.resolve() for path in left_out}):
            _search_file(con, file, sought, proof)
    _search_lake(where, sought, proof)
    return proof


def _files(where: Settings, left_out: set[Path]) -> Iterator[Path]:
    """Every file once, also if several links lead to it."""
    roots = [where.home, where.warehouse, where.published]
    roots += [each for each in (where.lake_catalog, where.lake_data) if isinstance(each, Path)]
    seen: set[tuple[int, int]] = set()
    for root in roots:
        for folder, names, files in os.walk(root) if root.is_dir() else [(str(root.parent), [], [root.name])]:
            names[:] = sorted(name for name in names if Path(folder, name) != where.extensions)
            for path in (Path(folder, name) for name in sorted(files)):
                with suppress(OSError):
                    about = path.stat()
                    if path.is_file() and path not in left_out and (about.st_dev, about.st_ino) not in seen:
                        seen.add((about.st_dev, about.st_ino))
                        yield path


def _search_file(con: duckdb.DuckDBPyConnection, file: Path, sought: Sought, proof: Proof) -> None:
    proof.files += 1
    try:
        with file.open("rb") as opened:
            begin = opened.read(16)
            opened.seek(0)
            proof.bytes += file.stat().st_size
            proof.add(str(file), _in_bytes(iter(lambda: opened.read(CHUNK), b""), sought))
        if begin.startswith(b"\x1f\x8b"):
            with gzip.open(file) as text, suppress(EOFError, zlib.error, gzip.BadGzipFile):  # up to where it is cut off
                proof.add(str(file), _in_bytes(iter(lambda: text.read(CHUNK), b""), sought))
        elif begin.startswith(b"PAR1"):
            _in_table(con, f"read_parquet({path_literal(file)}, hive_partitioning = false)", str(file), sought, proof)
        elif begin[8:12] == b"DUCK":
            _in_database(con, file, sought, proof)
    except FileNotFoundError:  # it was removed meanwhile
        return
    except (OSError, duckdb.Error) as error:
        raise FinegrainError(
            f"{file}: cannot be searched: {str(error).splitlines()[0]}; run this again when no other process uses it"
        ) from None


def _in_bytes(chunks: Iterator[bytes], sought: Sought) -> int:
    """How many of the ids occur in the chunks, with what spans two of them."""
    longest = max(map(len, (*sought.strings, *sought.words)), default=0) + 1
    edge = WORD.encode()
    words = {each: re.compile(b"(?<![%b])%b(?![%b])" % (edge, re.escape(each), edge)) for each in sought.words}
    rest, left = b"", {*sought.strings, *words}
    for chunk in chunks:
        text = rest + chunk
        left -= {each for each in left if each in text and (each not in words or words[each].search(text))}
        rest = text[-longest:]
    return len(sought.strings) + len(words) - len(left)


def _in_database(con: duckdb.DuckDBPyConnection, file: Path, sought: Sought, proof: Proof) -> None:
    con.execute(f"attach {quote(str(file))} as searched (read_only)")
    try:
        for schema, table in con.execute(
            "select schema_name, table_name from duckdb_tables() where database_name = 'searched' order by all"
        ).fetchall():
            name = f"{schema}.{table}"
            _in_table(con, f"searched.{identifier(schema)}.{identifier(table)}", f"{file}: {name}", sought, proof)
    finally:
        con.execute("detach searched")


def _in_table(con: duckdb.DuckDBPyConnection, table: str, where: str, sought: Sought, proof: Proof) -> None:
    """Search every row: the text of all columns that may hold an id."""
    kinds = {str(name): str(kind) for name, kind, *_ in con.execute(f"describe from {table}").fetchall()}
    tests = ["false"]
    given: dict[str, Any] = {}
    if sought.pattern is not None:
        searched = [
            text_of_bytes(f"t.{identifier(name)}") if kind == "BLOB" else f"t.{identifier(name)}::varchar"
            for name, kind in kinds.items()
            if _TEXT.search(kind) or (sought.has_numbers and _NUMBER.search(kind))
        ]
        if searched:
            given["pattern"] = sought.pattern
            tests.append(f"regexp_matches(concat_ws(chr(10), {', '.join(searched)}), $pattern)")
    texts = [f"t.{identifier(name)}::varchar" for name in kinds]
    if sought.identities:
        given["identities"] = list(sought.identities)
        tests += [f"list_contains($identities, {text})" for text in texts]
    for kind, ids in sought.short.items():
        columns = [f"t.{identifier(name)}::varchar" for name in kinds if name in _COLUMNS[kind]]
        if ids and columns:
            given[kind] = list(ids)
            tests += [f"list_contains(${kind}, {column})" for column in columns]
    [(rows, hits)] = con.execute(
        f"select count(*), count(*) filter ({' or '.join(tests)}) from {table} as t", given
    ).fetchall()
    proof.rows += int(rows)
    proof.add(where, int(hits))


def _search_lake(where: Settings, sought: Sought, proof: Proof) -> None:
    """The lake's tables as they are read, its catalogue and, in an object store, every file."""
    if not lake.exists(where):
        return
    con = lake.connect(where)
    try:
        with lake.reading(where):
            for schema, table in con.execute(
                "select schema_name, table_name from duckdb_tables() where database_name = 'lake' order by all"
            ).fetchall():
                _in_table(con, f"lake.{identifier(schema)}.{identifier(table)}", f"the lake: {table}", sought, proof)
            if isinstance(where.lake_data, str):
                _search_store(con, where.lake_data, sought, proof)
    except duckdb.Error as error:
        raise lake.failure(error, "the search was not completed; run this again") from None
    finally:
        con.close()
    with lake.catalogue(where) as (con, tables):
        for table in tables:
            _in_table(con, f"catalogue.{table}", f"{where.lake_catalog}: {table}", sought, proof)


def _search_store(con: duckdb.DuckDBPyConnection, data: str, sought: Sought, proof: Proof) -> None:
    for (file,) in con.execute(f"select file from glob({quote(data + '/**')}) order by 1").fetchall():
        [(content,)] = con.execute(f"select content from read_blob({quote(str(file))})").fetchall()
        proof.files += 1
        proof.bytes += len(content)
        proof.add(str(file), _in_bytes(iter([content]), sought))
        if content.startswith(b"PAR1"):
            _in_table(con, f"read_parquet({quote(str(file))})", str(file), sought, proof)
