"""Reads the spine of a training set: rows of keys and `as_of`, with any further columns (labels), from a file, a mart of models/marts/training, or a
query on the published marts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import duckdb
import yaml

from orchestration.config.project import PROJECT, roots
from orchestration.config.published import DATABASE, current
from orchestration.config.settings import Settings
from orchestration.config.yaml_file import FAST
from orchestration.errors import FinegrainError
from orchestration.sql.text import identifier, quote

AS_OF: Final = "as_of"
#: The column that numbers groups of candidates.
GROUP_ID: Final = "group_id"
#: Columns that are added to a spine while it is answered.
_ADDED: Final = frozenset({"spine_row", "split", "period_at", "place", GROUP_ID})
#: The folder of the ready-made spines, below models/.
READY_MADE: Final = "marts/training"
#: A time with an offset or Z at its end.
_OFFSET: Final = r"[T ]\d\d:?\d\d(:?\d\d([.,]\d+)?)?\s*([Zz]|[+-]\d\d(:?\d\d)?)$"


@dataclass(frozen=True)
class Spine:
    """The table `spine` of a connection: VARCHAR `keys`, TIMESTAMP `as_of` in UTC, the `labels` as they came, with a `group` BIGINT `group_id`, and
    `spine_row`, the number of the row. `first` and `last`: the earliest and latest as_of. `source` names where it is from, in messages. `without_label`: rows
    that were left out because they have none."""

    source: str
    keys: list[str]
    labels: list[str]
    rows: int
    first: datetime
    last: datetime
    without_label: int = 0
    group: Sequence[str] = ()


@dataclass(frozen=True)
class ReadyMade:
    """A ready-made spine: its columns, the days that its labels look ahead, and the columns that tell its groups of candidates apart."""

    columns: list[str]
    label_days: dict[str, int]
    group: list[str]


def ready_made(project: Path = PROJECT) -> dict[str, ReadyMade]:
    """The ready-made spines of a project, by name."""
    found = {}
    for root in roots(project):
        for path in sorted((root / "models" / READY_MADE).glob("*.yml")):
            for model in yaml.load(path.read_text("utf-8"), Loader=FAST).get("models", []):
                metas = {each["name"]: each.get("config", {}).get("meta", {}) for each in model.get("columns", [])}
                found[model["name"]] = ReadyMade(
                    list(metas),
                    {name: int(meta["label_days"]) for name, meta in metas.items() if "label_days" in meta},
                    model.get("config", {}).get("meta", {}).get("group", []),
                )
    return found


def read(
    con: duckdb.DuckDBPyConnection,
    source: str,
    query: str,
    keys: Sequence[str],
    label: str | None = None,
    group: Sequence[str] = (),
) -> Spine:
    """Create the table `spine` from a query. `keys` are the names that a key may have. With a `label`, the other labels are dropped, and rows where it is null
    are left out. Rows alike in the columns of `group` get the same number, in the order of as_of. A time without an offset is UTC. Raises FinegrainError for an
    empty spine, one without keys, `as_of`, the label or a column of the group, keys that are null, rows that come twice, times that cannot be read, and a
    group of several times."""
    kinds = {str(name): str(kind) for name, kind, *_ in con.execute(f"describe {query}").fetchall()}
    found = [name for name in kinds if name in keys]
    if not found:
        raise FinegrainError(f"{source}: no column is a key; name at least one of them {', '.join(keys)}")
    if AS_OF not in kinds:
        raise FinegrainError(f"{source}: there is no column as_of; add the time for which each row asks")
    labels = [name for name in kinds if name not in (*found, AS_OF)]
    if taken := _ADDED.intersection(labels):
        raise FinegrainError(f"{source}: finegrain has a column {min(taken)} of its own; give that column another name")
    without_label = 0
    if label is not None:
        _must_have(source, label, labels)
        labels = [name for name in labels if name == label or name in group]
        [(without_label,)] = con.execute(f"select count(*) from ({query}) where {identifier(label)} is null").fetchall()
        query = f"select * from ({query}) where {identifier(label)} is not null"
    for name in group:
        _must_have(source, name, list(kinds))
    columns = [f"cast({identifier(name)} as varchar) as {identifier(name)}" for name in found]
    con.execute(
        f"create or replace temp table spine as select row_number() over () as spine_row, {', '.join(columns)}, "
        f"{_as_of(con, source, query, kinds[AS_OF])} as as_of{''.join(', ' + identifier(name) for name in labels)} from ({query})"
    )
    [(rows, first, last)] = con.execute("select count(*), min(as_of), max(as_of) from spine").fetchall()
    if not rows:
        why = f"; {label} is null in all {without_label:,}" if without_label else ""
        raise FinegrainError(f"{source}: it has no rows{why}; a spine has one for each key and time")
    for name in (*found, AS_OF):
        _reject(con, source, f"{identifier(name)} is null", f"without {name}", "fill it in, or leave the row out")
    same = ", ".join(map(identifier, (*found, AS_OF)))
    _reject(
        con,
        source,
        f"({same}) in (select ({same}) from spine group by {same} having count(*) > 1)",
        f"of which {', '.join(found)} and as_of come more than once",
        "keep one of each",
    )
    if group:
        alike = ", ".join(map(identifier, group))
        wrong = f"({alike}) in (select ({alike}) from spine group by {alike} having count(distinct as_of) > 1)"
        _reject(con, source, wrong, "in groups of more than one as_of", "add as_of to --group")
        con.execute(
            f"create or replace temp table spine as select *, dense_rank() over (order by as_of, {alike}) - 1 as {GROUP_ID} from spine"
        )
    return Spine(source, found, labels, int(rows), first, last, int(without_label), tuple(group))


def _must_have(source: str, name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        near = get_close_matches(name, columns, n=1, cutoff=0.5) or columns
        hint = f"; did you mean {near[0]}?" if near else ""
        raise FinegrainError(f"{source}: there is no column {name}{hint}")


def _as_of(con: duckdb.DuckDBPyConnection, source: str, query: str, kind: str) -> str:
    """SQL of `as_of` as a naive UTC timestamp."""
    if kind.startswith("TIMESTAMP WITH TIME ZONE"):
        return "as_of at time zone 'UTC'"
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        return "cast(as_of as timestamp)"
    if kind != "VARCHAR":
        raise FinegrainError(f"{source}: as_of is of type {kind}; write times as 2025-03-01T12:00:00Z")
    has_offset = f"regexp_matches(trim(as_of), {quote(_OFFSET)})"
    read = f"case when {has_offset} then try_cast(as_of as timestamptz) at time zone 'UTC' else try_cast(as_of as timestamp) end"
    [(with_offset, without, unread, example)] = con.execute(
        f"select count(*) filter ({has_offset}), count(*) filter (not {has_offset}), "
        f"count(*) filter (as_of is not null and {read} is null), min(as_of) filter ({read} is null) from ({query})"
    ).fetchall()
    if unread:
        raise FinegrainError(
            f"{source}: as_of of {_rows(unread)} is no time, such as {example!r}; write 2025-03-01T12:00:00Z"
        )
    if with_offset and without:
        raise FinegrainError(
            f"{source}: as_of has an offset in {_rows(with_offset)} and none in {_rows(without)}; write all with one, as 2025-03-01T12:00:00Z"
        )
    return read


def _reject(con: duckdb.DuckDBPyConnection, source: str, wrong: str, what: str, remedy: str) -> None:
    [(count, first)] = con.execute(f"select count(*), min(spine_row) from spine where {wrong}").fetchall()
    if count:
        raise FinegrainError(
            f"{source}: there {'is' if count == 1 else 'are'} {_rows(count)} {what}, the first is row {first}; {remedy}"
        )


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def source_of(
    where: Settings, spine: Path | None, query: str | None, folder: Path, project: Path = PROJECT
) -> tuple[str, str]:
    """What to call a spine in messages, and the query that reads it: a file, the name of a ready-made one, or a `query` on the published marts, whose rows
    are put into `folder`. Raises FinegrainError."""
    if spine is None:
        return "--query", query_of_file(of_published(where, str(query), folder))
    if not spine.exists() and str(spine) in ready_made(project):
        return str(spine), query_of_file(of_published(where, f"from {identifier(str(spine))}", folder))
    return str(spine), query_of_file(spine)


def about(con: duckdb.DuckDBPyConnection, spine: Spine) -> dict[str, Any]:
    """What YAML beside a result says of a spine. The digest is the same for the same rows in any order."""
    names = ", ".join(map(identifier, (*spine.keys, AS_OF, *spine.labels)))
    [(digest,)] = con.execute(f"select sum(hash(row({names}))) from spine").fetchall()
    return {
        "source": spine.source,
        "rows": spine.rows,
        "keys": spine.keys,
        "labels": spine.labels,
        "rows_without_label": spine.without_label,
        "group": list(spine.group),
        "first_as_of": str(spine.first),
        "last_as_of": str(spine.last),
        "digest": hashlib.sha256(str(digest).encode()).hexdigest(),
    }


def query_of_file(path: Path) -> str:
    """The query that reads a CSV file (all columns as text) or Parquet. Raises FinegrainError."""
    if not path.exists():
        names = ", ".join(ready_made())
        raise FinegrainError(f"{path} does not exist; name a CSV or Parquet file with the spine, or one of {names}")
    if path.suffix in (".csv", ".tsv", ".gz"):
        return f"from read_csv({quote(str(path))}, all_varchar = true, header = true)"
    if path.suffix == ".parquet":
        return f"from read_parquet({quote(str(path))})"
    raise FinegrainError(f"{path}: a spine is a file that ends with .csv or .parquet")


def of_published(where: Settings, query: str, folder: Path) -> Path:
    """Run a query on the published marts; returns a Parquet file with its rows. Raises FinegrainError if nothing is published, or DuckDB cannot run it."""
    version = current(where)
    if version is None:
        raise FinegrainError("nothing is published, so there are no marts to query; run `finegrain publish` first")
    file = folder / "spine.parquet"
    with duckdb.connect(
        str(version / DATABASE), read_only=True, config={"temp_directory": str(folder / "spill")}
    ) as con:
        con.execute("set timezone = 'UTC'")
        try:
            rows: Any = con.sql(query)
            if rows is None:
                raise FinegrainError("--query: it gives no rows; write a select")
            rows.write_parquet(str(file))
        except duckdb.Error as error:
            raise FinegrainError(f"--query: {str(error).splitlines()[0]}") from None
    return file
