"""Publishes the audited marts as one DuckDB file and as Parquet, put in place by an atomic rename.

    published/
      finegrain.duckdb -> current/finegrain.duckdb      what BI tools open
      parquet          -> current/parquet               one folder a mart, of one file or of one a period
      contracts        -> current/contracts             one Open Data Contract a mart
      report.html      -> current/report.html           the page of data quality, written when the marts are in place (orchestration/report)
      current          -> versions/<snapshot>-<build>   the link that a publish swaps
      versions/                                         it and the one before; an open reader keeps the file it opened

A version is complete before the link moves, so a reader sees either the old marts or the new ones. It reuses the version before: the rows of a
mart are split by period (day or month) and compared by a digest; unchanged periods are reused, Parquet files by hard links. So a publish reads
the marts once and writes only what changed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import duckdb
import yaml

from orchestration import __version__
from orchestration.config.project import roots
from orchestration.config.published import DATABASE, current
from orchestration.config.settings import Settings, settings
from orchestration.config.yaml_file import FAST
from orchestration.errors import FinegrainError, stopping
from orchestration.lake.locks import one_at_a_time, scratch
from orchestration.mapping.data_contracts import write
from orchestration.sql.text import identifier, quote
from orchestration.warehouse import warehouse
from orchestration.warehouse.data_contracts import of_marts

#: The schema of the warehouse whose every table and view is published.
SCHEMA: Final = "marts"
#: The folder of the marts' contracts in a version.
CONTRACTS: Final = "contracts"
#: What the names of folders begin with in which something is made that is not yet published.
DRAFT: Final = ".draft-"
#: The key of a Parquet file under which readers that know Arrow (pandas, Polars) look for the types of its columns.
ARROW_SCHEMA: Final = "ARROW:schema"
#: Rows a day above which a mart is kept by the day; by the month below, since small files cost more than they save.
ROWS_A_DAY: Final = 20_000
#: The slowest models of the build of which a version keeps the times.
SLOWEST: Final = 10


@dataclass(frozen=True)
class Publication:
    """One version: the marts (name to rows and columns), the lake snapshot of the build, the moment if one was asked for, and where they are. `renewed`: the
    marts that are of this build, if it was of some alone; the others are as they were. `is_new` is False when this very build was
    published before."""

    folder: Path
    marts: dict[str, tuple[int, int]]
    renewed: list[str]
    built_from: int
    as_of: datetime | None
    seconds: float
    is_new: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def marts_of(version: Path) -> dict[str, tuple[int, int]]:
    """Rows and columns of each mart of a published version, by name."""
    about = _about(version)
    return {mart: (size["rows"], size["columns"]) for mart, size in about["marts"].items()}


def published_at(where: Settings | None = None) -> datetime | None:
    """When the published version was put in place, in UTC; None when nothing is published."""
    folder = current(where)
    if folder is None:
        return None
    return datetime.fromisoformat(_about(folder)["published_at"]).astimezone(UTC).replace(tzinfo=None)


def publish(
    where: Settings | None = None,
    *,
    past: bool = False,
    renewed_within: float | None = None,
    from_scratch: bool = False,
) -> Publication:
    """Publish the warehouse's marts. Raises FinegrainError and changes nothing unless the last write to the warehouse was a complete `dbt build`
    with all tests passed. A build of an earlier time than the published one (`finegrain build --as-of`) is published only with `past`.

    After a complete build was published, builds of some marts with all their upstream models may be published, too, if their tests pass; only
    those marts are replaced.

    `renewed_within`: hours within which the marts are to be published again, for their contracts. `from_scratch`: nothing of the version
    before is reused or kept."""
    where = where or settings()
    started = time.monotonic()
    warehouse.must_exist(where.warehouse)
    with (
        one_at_a_time(where.published / ".lock"),
        scratch(where.published, DRAFT) as drafts,
        duckdb.connect(config=warehouse.limits(drafts / "spill")) as con,
    ):
        stopping.interruptible(con)
        # Attached, the warehouse cannot be written by anybody: what was audited is what is copied.
        warehouse.attach(con, where.warehouse)
        before = current(where)
        last = _audited(con, where.warehouse, is_first=before is None)
        if before is not None and not (past or from_scratch):
            _must_not_go_back(con, before, last)
        name = f"{last.built_from}-{last.invocation[:8]}"
        folder = where.published / "versions" / name
        is_new = from_scratch or before != folder.resolve() or not folder.exists()
        if from_scratch:
            before = None
        if is_new:
            draft = drafts / "version"
            marts = _write(con, draft, before, last)
            about = {
                "built_from": last.built_from,
                "as_of": last.as_of,
                "invocation_id": last.invocation,
                "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "previous": before.name if before else None,
                "finegrain": __version__,
                "duckdb": duckdb.__version__,
                "marts": marts,
                "slowest": _slowest(con, last.invocation),
                "renewed": sorted(marts) if last.marts is None else last.marts,
            }
            for mart, contract in of_marts(where, renewed_within).items():
                if mart in marts:
                    write(contract, draft / CONTRACTS)
            (draft / "about.json").write_text(json.dumps(about, indent=2, default=str) + "\n", "utf-8")
            for path in (draft, draft / DATABASE):
                _sync(path)
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(exist_ok=True)
            draft.rename(folder)
            point(where.published / "current", Path("versions") / name)
        # Each time, since a publish may have been killed on its way here.
        point(where.published / DATABASE, Path("current") / DATABASE)
        for part in ("parquet", CONTRACTS):
            if (folder / part).exists():  # an earlier version of finegrain published no contracts
                point(where.published / part, Path("current") / part)
        _forget(folder)
    renewed = list(_about(folder)["renewed"])
    return Publication(
        folder, marts_of(folder), renewed, last.built_from, last.as_of, time.monotonic() - started, is_new
    )


@dataclass(frozen=True)
class _Build:
    """A build that passed; `marts`: those that it was of, None for all."""

    invocation: str
    built_from: int
    as_of: datetime | None
    marts: list[str] | None


def _audited(con: duckdb.DuckDBPyConnection, path: Path, *, is_first: bool) -> _Build:
    """The last build, if it passed, and was whole or of whole marts after whole ones (macros/builds.sql keeps the record)."""
    try:
        found = con.execute(
            "select invocation_id, command, status, is_whole, built_from, as_of, marts from warehouse.main.builds "
            "order by number desc nulls last limit 1"
        ).fetchall()
    except duckdb.CatalogException:
        found = []
    except duckdb.BinderException:
        raise FinegrainError(f"{path} was built by an earlier version of finegrain; run `finegrain build`") from None
    if not found:
        raise FinegrainError(f"{path} has no build; run `finegrain build` first")
    invocation, command, status, is_whole, built_from, as_of, marts = found[0]
    kept = "nothing was published"
    if status == "open":
        raise FinegrainError(f"the last `dbt {command}` did not end; {kept}. Run `finegrain build` again")
    if status != "passed":
        failures = con.execute(
            "select node, failures, kept_in from warehouse.main.build_failures where invocation_id = ? order by node",
            [invocation],
        ).fetchall()
        named = "".join(
            f"\n  {node}" + (f": {count} rows, kept in {table}" if table else "") for node, count, table in failures
        )
        raise FinegrainError(f"the last build did not pass its audit; {kept}. What failed:{named}")
    if is_whole:
        return _Build(str(invocation), int(built_from), as_of, None)
    # Everything since the last complete build has passed, so what is recorded of the other marts still holds.
    [(well,)] = con.execute(
        "select coalesce(bool_and(status = 'passed' and command = 'build' and marts <> []), false) and bool_or(is_whole) "
        "from warehouse.main.builds where number >= "
        "(select max(number) from warehouse.main.builds where is_whole and command = 'build')"
    ).fetchall()
    if is_first or not marts or not well:
        raise FinegrainError(
            f"the last `dbt {command}` changed the warehouse without a whole audit; {kept}. Run `finegrain build`"
        )
    return _Build(str(invocation), int(built_from), as_of, sorted(marts))


def _slowest(con: duckdb.DuckDBPyConnection, invocation: str) -> list[tuple[str, float]]:
    """The slowest models of a build with their seconds, the slowest first; none if the build kept no times (macros/builds.sql)."""
    try:
        found = con.execute(
            "select node, round(seconds, 3) from warehouse.main.build_times where invocation_id = ? order by seconds desc, node limit ?",
            [invocation, SLOWEST],
        ).fetchall()
    except duckdb.CatalogException:
        return []
    return [(str(node), float(seconds)) for node, seconds in found]


def _must_not_go_back(con: duckdb.DuckDBPyConnection, before: Path, last: _Build) -> None:
    if last.as_of is None:  # nobody asked for a moment: it is of the one after all that it knows
        return
    published = _about(before)["as_of"]
    # The last arrival, of which a build is that nobody asked a moment of.
    newest = warehouse.last_arrival(con)
    if newest and last.as_of <= newest and (published is None or str(last.as_of) < published):
        raise FinegrainError(
            f"the last build is as of {last.as_of}, which is earlier than the published version; nothing was published. "
            "Run `finegrain publish --past` to publish it anyway, or `finegrain build` without --as-of"
        )


@dataclass
class _Mart:
    """A mart as it is to be published. `digests`: by period, a digest of its rows; `layout`: its columns with their types, which Parquet
    says to be categorical of some."""

    name: str
    comment: str | None
    layout: list[list[str]]
    period: str
    digests: dict[str, str]
    rows: int

    @property
    def source(self) -> str:
        return f"warehouse.{identifier(SCHEMA)}.{identifier(self.name)}"

    @property
    def table(self) -> str:
        return f"published.main.{identifier(self.name)}"

    @property
    def categorical(self) -> list[str]:
        """The columns that Parquet types as categories."""
        return [column for column, _, *marks in self.layout if marks]

    def about(self) -> dict[str, Any]:
        """What about.json says of it; the next publish compares with that."""
        return {
            "rows": self.rows,
            "columns": len(self.layout),
            "layout": self.layout,
            "period": self.period,
            "digests": self.digests,
        }

    def changed_since(self, before: dict[str, Any] | None) -> set[str] | None:
        """The periods whose rows are others than before; None when the mart has to be written whole."""
        if before is None or (before.get("layout"), before.get("period")) != (self.layout, self.period):
            return None
        theirs = before["digests"]
        return {period for period in self.digests.keys() | theirs if self.digests.get(period) != theirs.get(period)}


def _write(con: duckdb.DuckDBPyConnection, draft: Path, previous: Path | None, last: _Build) -> dict[str, Any]:
    """Write one version into `draft`, as a folder of Parquet files and as a database with descriptions. What about.json says of each
    mart."""
    (draft / "parquet").mkdir(parents=True)
    found = con.execute(
        "select table_name, comment from duckdb_tables() where database_name = 'warehouse' and schema_name = $schema "
        "union all select view_name, comment from duckdb_views() where database_name = 'warehouse' "
        "and schema_name = $schema order by 1",
        {"schema": SCHEMA},
    ).fetchall()
    before = _before(previous)
    left = {} if last.marts is None else {name: about for name, about in before.items() if name not in last.marts}
    if last.marts is not None and len(left) + len(last.marts) != len(before):
        raise FinegrainError("a build of some marts cannot be published over another version's; run `finegrain build`")
    categorical = categorical_columns()
    marts = [
        _inspect(con, str(name), comment, categorical.get(str(name), set()))
        for name, comment in found
        if name not in left
    ]
    changes = {mart.name: mart.changed_since(before.get(mart.name)) for mart in marts}
    if before and previous:
        shutil.copyfile(previous / DATABASE, draft / DATABASE)
    con.execute(f"attach {quote(str(draft / DATABASE))} as published")
    for name in before:
        if name not in left and changes.get(name) is None:
            con.execute(f"drop table published.main.{identifier(name)}")
    con.execute("checkpoint published")  # what was dropped makes room for what comes
    for mart in marts:
        _write_mart(con, mart, changes[mart.name], draft / "parquet" / mart.name, previous)
    for name in left:
        assert previous is not None
        shutil.copytree(previous / "parquet" / name, draft / "parquet" / name, copy_function=os.link)
    con.execute("detach published")
    return {**left, **{mart.name: mart.about() for mart in marts}}


def _about(version: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((version / "about.json").read_text("utf-8"))
    return about


def _before(previous: Path | None) -> dict[str, Any]:
    """What the version before says of each mart; nothing if it is not whole, or of another DuckDB, whose digests differ."""
    try:
        about = _about(previous or Path())
    except (OSError, ValueError):
        return {}
    is_whole = previous is not None and (previous / DATABASE).exists() and about.get("duckdb") == duckdb.__version__
    return dict(about["marts"]) if is_whole else {}


def _inspect(con: duckdb.DuckDBPyConnection, name: str, comment: str | None, categorical: set[str]) -> _Mart:
    """Look through a mart: its columns, of which some are `categorical`, and a digest of the rows of each period."""
    source = f"warehouse.{identifier(SCHEMA)}.{identifier(name)}"
    kinds = {str(column): str(kind) for column, kind, *_ in con.execute(f"describe {source}").fetchall()}
    moment = next(
        (column for column, kind in kinds.items() if kind in ("DATE", "TIMESTAMP") and column != "as_of"), None
    )
    if moment is None or "as_of" in kinds:  # of one moment: all of its rows change together
        period = "'all'"
    else:
        column = identifier(moment)
        [(rows, days)] = con.execute(
            f"select count(*), count(distinct coalesce(strftime({column}, '%Y-%m-%d'), 'none')) from {source}"
        ).fetchall()
        period = f"coalesce(strftime({column}, '{'%Y-%m' if rows < ROWS_A_DAY * days else '%Y-%m-%d'}'), 'none')"
    # A sum of hashes knows no order of rows.
    found = con.execute(
        f"select {period}, count(*), sum(hash(mart)) from {source} as mart group by 1 order by 1"
    ).fetchall()
    return _Mart(
        name,
        comment,
        [
            [*each, *(["categorical"] if each[0] in categorical and each[1] == "VARCHAR" else [])]
            for each in kinds.items()
        ],
        period,
        digests={str(key): f"{rows}:{digest}" for key, rows, digest in found},
        rows=sum(rows for _, rows, _ in found),
    )


def _write_mart(
    con: duckdb.DuckDBPyConnection, mart: _Mart, changed: set[str] | None, folder: Path, previous: Path | None
) -> None:
    """Bring one mart into the database and the Parquet folder: whole, or the periods that changed."""
    folder.mkdir()
    if changed is None:
        con.execute(f"create table {mart.table} as from {mart.source}")
        wanted = ""
    else:
        assert previous is not None
        # An empty mart has a file, too, so that it can be read.
        kept = mart.digests.keys() - changed if mart.digests else {"none"}
        for file in sorted((previous / "parquet" / mart.name).glob("*.parquet")):
            if file.stem in kept:
                os.link(file, folder / file.name)
        wanted = f"where {mart.period} in ({', '.join(map(quote, sorted(changed)))})" if changed else "where false"
        if changed:
            con.execute(f"delete from {mart.table} {wanted}")
            con.execute(f"insert into {mart.table} from {mart.source} {wanted}")
    # A description may change where no row did.
    _describe(con, mart.name, mart.table, mart.comment)
    periods = sorted(mart.digests.keys() if changed is None else changed & mart.digests.keys())
    options = (
        f"format parquet, compression zstd, {kinds_for_arrow(con, f'from {mart.table}', mart.categorical, folder)}"
    )
    if len(periods) > 1:
        scratch = folder / "periods"
        con.execute(
            f"copy (select *, {mart.period} as published_period from {mart.table} {wanted}) to {quote(str(scratch))} "
            f"({options}, partition_by (published_period))"
        )
        for written in scratch.glob("*/*.parquet"):
            written.rename(folder / f"{written.parent.name.partition('=')[2]}.parquet")
        shutil.rmtree(scratch)
    elif periods or not any(folder.iterdir()):
        name = periods[0] if periods else "none"
        path = quote(str(folder / f"{name}.parquet"))
        con.execute(f"copy (from {mart.table} {wanted}) to {path} ({options})")


def kinds_for_arrow(con: duckdb.DuckDBPyConnection, query: str, categorical: Collection[str], folder: Path) -> str:
    """The option of COPY that declares which columns of the query are categorical. Parquet itself has no such type; Arrow's readers take it from the file's
    metadata, and all others read text."""
    import pyarrow as pa  # a fifth of a second that other commands need not wait
    import pyarrow.parquet as pq

    # What a reader would make of the columns, from a file of no rows: only the categories are to differ.
    bare = folder / ".bare"
    con.execute(f"copy ({query} limit 0) to {quote(str(bare))} (format parquet)")
    schema = pq.read_schema(bare)
    bare.unlink()
    for column in categorical:
        place = schema.get_field_index(column)
        if place >= 0 and schema.field(place).type == pa.string():
            schema = schema.set(place, pa.field(column, pa.dictionary(pa.int32(), pa.string())))
    declared = base64.b64encode(schema.serialize().to_pybytes()).decode()
    return f"kv_metadata {{{quote(ARROW_SCHEMA)}: {quote(declared)}}}"


def categorical_columns() -> dict[str, set[str]]:
    """By mart, the columns whose YAML says `meta: {categorical: true}`: texts of few values."""
    found: dict[str, set[str]] = {}
    for path in (path for root in roots() for path in (root / "models" / SCHEMA).rglob("*.yml")):
        for model in yaml.load(path.read_text("utf-8"), Loader=FAST).get("models", []):
            found[model["name"]] = {
                column["name"]
                for column in model.get("columns", [])
                if column.get("config", {}).get("meta", {}).get("categorical")
            }
    return found


def _describe(con: duckdb.DuckDBPyConnection, mart: str, table: str, comment: str | None) -> None:
    """Carry the descriptions over, so that a BI tool shows them. Those that the version before had are there already."""
    columns = con.execute(
        "select w.column_name, w.comment from duckdb_columns() as w left join duckdb_columns() as p "
        "on p.database_name = 'published' and p.table_name = w.table_name and p.column_name = w.column_name "
        "where w.database_name = 'warehouse' and w.schema_name = ? and w.table_name = ? "
        "and w.comment is not null and w.comment is distinct from p.comment",
        [SCHEMA, mart],
    ).fetchall()
    # In one transaction: each of its own would wait for the disk.
    con.begin()
    if comment:
        con.execute(f"comment on table {table} is {quote(comment)}")
    for column, text in columns:
        con.execute(f"comment on column {table}.{identifier(column)} is {quote(text)}")
    con.commit()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, in one step. One process at a time."""
    draft = link.with_name(f".{link.name}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)


def _forget(newest: Path) -> None:
    """Remove all versions but the newest and the one before it, which readers may have open that go by the names of Parquet files. A file
    that somebody holds open lives on."""
    kept = {newest.name, _about(newest).get("previous")}
    for folder in newest.parent.iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)
