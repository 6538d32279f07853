"""Vocabularies: ids as integers, the same ones whenever the same data is exported.

New values get the next codes in the order of the values, so that codes have no gaps. An earlier vocabulary keeps its codes, whatever has come since.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import duckdb

from orchestration.errors import FinegrainError
from orchestration.sql.text import identifier, quote

#: The folder in an export with one file for each column that is encoded: VARCHAR `value`, BIGINT `code`.
FOLDER: Final = "vocabulary"


def file_of(export: Path, column: str) -> Path:
    """The vocabulary of a column in the folder of an export."""
    return export / FOLDER / f"{column}.parquet"


def must_have_one(earlier: Path | None, columns: Collection[str]) -> None:
    """Raises FinegrainError where an earlier export has a vocabulary of none of the columns."""
    if earlier and not any(file_of(earlier, column).exists() for column in columns):
        raise FinegrainError(
            f"--vocabulary: {earlier} has no {FOLDER}/{next(iter(columns))}.parquet; name the folder of an earlier export"
        )


def encode(con: duckdb.DuckDBPyConnection, column: str, values: str, earlier: Path | None = None) -> str:
    """Create a temp table (`value`, `code`) of the values of a column, and return its quoted name. `values` is a query of VARCHAR `value` and INTEGER `place`,
    in any order and number; nulls have no code. Codes are 0 to n-1: first those of the export `earlier`, if it has a vocabulary of the column, then
    new values by their least place, then by themselves. Raises FinegrainError for a file that is no vocabulary."""
    table = identifier(f"codes of {column}")
    known = "select null::varchar as value, null::bigint as code where false"
    if earlier and file_of(earlier, column).exists():
        known = _checked(con, file_of(earlier, column))
    con.execute(f"create or replace temp table {table} as {known}")
    con.execute(
        f"insert into {table} select value, (select coalesce(max(code) + 1, 0) from {table}) + row_number() over (order by min(place), value) - 1 "
        f"from ({values}) where value is not null and value not in (select value from {table}) group by value"
    )
    return table


def write(con: duckdb.DuckDBPyConnection, column: str, table: str, export: Path) -> int:
    """Write a vocabulary into the folder of an export, by code; returns its size."""
    file = file_of(export, column)
    file.parent.mkdir(exist_ok=True)
    con.execute(f"copy (from {table} order by code) to {quote(str(file))} (format parquet, compression zstd)")
    [(size,)] = con.execute(f"select count(*) from {table}").fetchall()
    return int(size)


def _checked(con: duckdb.DuckDBPyConnection, file: Path) -> str:
    """The query that reads a vocabulary."""
    query = (
        f"select cast(value as varchar) as value, cast(code as bigint) as code from read_parquet({quote(str(file))})"
    )
    try:
        [(is_right,)] = con.execute(
            "select count(*) = count(distinct value) and count(*) = count(distinct code) and coalesce(min(code) = 0 and max(code) = count(*) - 1, true) "
            f"from ({query})"
        ).fetchall()
    except duckdb.Error as error:
        raise FinegrainError(f"--vocabulary: {file} cannot be read: {str(error).splitlines()[0]}") from None
    if not is_right:
        raise FinegrainError(
            f"--vocabulary: {file} is no vocabulary: it needs each value once, with the codes 0, 1, 2 and so on; name the folder of an earlier export"
        )
    return query
