"""Maintenance of the lake: merges small files, expires old snapshots and removes unreferenced files. It is safe while loaders, connectors and
builds run: each step is a transaction of its own, and data that a reader may still need is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import duckdb

from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError
from orchestration.lake import lake
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.warehouse import warehouse

#: The longest time for a read of an old snapshot, or for writing one batch: younger unreferenced files are kept.
PATIENCE: Final = timedelta(days=1)
#: Small files merged per transaction, so that writers of a SQLite catalogue do not wait long.
AT_ONCE: Final = 200
#: Seconds for retrying a step that conflicts with other writers.
TRIED: Final = 3.0


@dataclass
class Upkeep:
    """The result: data files before and after, expired snapshots, and removed files; `notes` explain steps that were skipped."""

    files_before: int = 0
    files_after: int = 0
    snapshots_expired: int = 0
    files_removed: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def maintain(keep: timedelta = timedelta(days=7), where: Settings | None = None) -> Upkeep:
    """Merge, expire, remove. Keeps snapshots younger than `keep`, and all that this home's warehouse has not read, so that incremental builds
    still work. Raises FinegrainError, also if there is no lake."""
    where = where or settings()
    if not lake.exists(where):
        raise FinegrainError(f"{where.lake_catalog}: there is no lake yet; finegrain load, ingest or stream creates it")
    started = time.monotonic()
    with lake.exclusive(where, "maintain"):  # two at once would only conflict
        done = _maintain(keep, where)
    done.seconds = time.monotonic() - started
    return done


def _maintain(keep: timedelta, where: Settings) -> Upkeep:
    done = Upkeep()
    con = lake.connect(where)
    try:
        done.files_before = _files(con)

        def step(call: str, is_passing: Callable[[Exception], bool] = lake.busy) -> list[tuple[Any, ...]]:
            return _step(con, where, call, done.notes, is_passing)

        # One table at a time: a short transaction is less likely to conflict with other writers.
        for table in (*RAW_TABLES, *lake.BOOKKEEPING):
            # With a SQLite catalogue, DuckLake reads files and inlined rows in two steps. A reader would miss rows that move from one to the
            # other in between, and a build would miss them for good. With PostgreSQL it is one step. Positions are a few rows that loaders
            # replace all the time: each flush would leave a file of dead rows, and merging those would block loaders. They stay in the catalogue.
            if not isinstance(where.lake_catalog, Path) and table != "positions":
                step(f"call ducklake_flush_inlined_data('lake', schema_name => 'raw', table_name => '{table}')")
            if table != "positions":
                merge = f"ducklake_merge_adjacent_files('lake', '{table}', schema => 'raw', max_compacted_files => {AT_ONCE})"
                # As many calls as the files of now need: on a busy machine, loaders bring new ones faster than they are merged.
                for _ in range(2 + _files(con, table) // AT_ONCE):
                    merged = step(f"call {merge}")
                    if sum(int(row[2]) for row in merged) <= sum(int(row[3]) for row in merged):
                        break  # the number of files did not shrink
        read = _read_up_to(where, done.notes)
        if read is not None and (old := _old(con, keep, read)):
            done.snapshots_expired = len(step(f"call ducklake_expire_snapshots('lake', versions => {old})"))
        if _dead_files(con) > 1:
            step("call ducklake_rewrite_data_files('lake', 'positions', schema => 'raw')")
        lake.retry(lambda: lake.prune(con, where))
        before = f"older_than => now() - interval '{int(PATIENCE.total_seconds())} seconds'"
        done.files_removed += len(step(f"call ducklake_cleanup_old_files('lake', {before})"))
        done.files_removed += len(step(f"call ducklake_delete_orphaned_files('lake', {before})", _is_passing))
        done.files_after = _files(con)
    except duckdb.Error as error:
        raise FinegrainError(f"maintenance of the lake failed: {' '.join(str(error).split())}") from None
    finally:
        con.close()
    return done


def _is_passing(error: Exception) -> bool:
    """Whether other writers committed first, or removed a listed file of a batch they gave up."""
    return lake.busy(error) or "No such file or directory" in str(error)


def _step(
    con: duckdb.DuckDBPyConnection,
    where: Settings,
    call: str,
    notes: list[str],
    is_passing: Callable[[Exception], bool],
) -> list[tuple[Any, ...]]:
    """One call in a transaction of its own. It is skipped if other writers keep committing first: nothing depends on it."""

    def work() -> list[tuple[Any, ...]]:
        with lake.reading(where, compacting=True), lake.writing(con, where):
            return con.execute(call).fetchall()

    try:
        found: list[tuple[Any, ...]] = lake.retry(work, TRIED)
    except duckdb.Error as error:
        if not is_passing(error):
            raise
        notes.append(f"other writers kept committing first, so this step is left to the next run: {call}")
        return []
    return found


def _dead_files(con: duckdb.DuckDBPyConnection) -> int:
    """The number of position files with deleted rows, which maintenance of earlier versions of finegrain created."""
    catalogue = "__ducklake_metadata_lake"
    [(count,)] = con.execute(
        f"select count(*) from {catalogue}.ducklake_delete_file as d inner join {catalogue}.ducklake_table as t using (table_id) "
        "where t.table_name = 'positions' and t.end_snapshot is null and d.end_snapshot is null"
    ).fetchall()
    return int(count)


def _files(con: duckdb.DuckDBPyConnection, table: str | None = None) -> int:
    """The data files of a table, or of all."""
    [(count,)] = con.execute(
        "select coalesce(sum(file_count), 0) from ducklake_table_info('lake') where $table is null or table_name = $table",
        {"table": table},
    ).fetchall()
    return int(count)


def _read_up_to(where: Settings, notes: list[str]) -> int | None:
    """The lake snapshot that every model of the warehouse has read; None, and a note, if the warehouse is being built."""
    if not where.warehouse.exists():
        return 2**62
    with duckdb.connect() as con:
        try:
            warehouse.attach(con, where.warehouse)
            [(read,)] = con.execute("select min(snapshot) from warehouse.main.watermarks").fetchall()
        except FinegrainError:
            notes.append("the warehouse is being built, so no snapshots were expired; the next run does it")
            return None
        except duckdb.CatalogException:
            return 2**62
    return 2**62 if read is None else int(read)


def _old(con: duckdb.DuckDBPyConnection, keep: timedelta, read: int) -> list[int]:
    """Snapshots that may expire. The last one with rows for each table is kept: from it, a build knows that nothing has arrived since."""
    [(newest,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
    kept = {newest, *lake.arrivals(con, newest).values()}
    found = con.execute(
        "select snapshot_id from lake.snapshots() where snapshot_id < least(?, ?) "
        f"and snapshot_time < now() - interval '{int(keep.total_seconds())} seconds' order by 1",
        [read, newest],
    ).fetchall()
    return [int(number) for (number,) in found if number not in kept]
