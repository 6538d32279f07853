"""Upkeep of the lake: small files are merged, old snapshots expire, files that nothing names any more are removed. Safe beside
loaders, connectors and builds: each step is a transaction of its own, and what a reader may still ask for is kept."""

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

#: How long a reader of an old snapshot may take, and a writer for one batch: younger files that nothing names are left.
PATIENCE: Final = timedelta(days=1)
#: Small files that one transaction merges, so that writers of a SQLite catalogue do not queue for long.
AT_ONCE: Final = 200
#: Seconds for which a step is tried again that meets other writers.
TRIED: Final = 3.0


@dataclass
class Upkeep:
    """What was done: data files before and after, snapshots that expired, files removed from the folder; `notes` say why less was
    done than could be."""

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
    """Merge, expire, remove. Snapshots younger than `keep` stay, and all since the one that this home's warehouse has read up to,
    so an incremental build goes on as before. Raises FinegrainError, also where there is no lake."""
    where = where or settings()
    if not lake.exists(where):
        raise FinegrainError(f"{where.lake_catalog}: there is no lake yet; finegrain load, ingest or stream makes it")
    started = time.monotonic()
    with lake.alone(where, "maintain"):  # two would only be in each other's way
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

        # One table at a time: the sooner it is done, the less likely it is to meet another writer.
        for table in (*RAW_TABLES, *lake.BOOKKEEPING):
            # From a SQLite catalogue DuckLake reads files and inlined rows in two looks, and whoever reads while rows go from here to
            # there misses them: a build for good. In PostgreSQL both are one look. Positions are a few rows that loaders replace all the time:
            # each flush would leave a file of dead rows, and merging them would not let loaders commit. They stay in the catalogue.
            if not isinstance(where.lake_catalog, Path) and table != "positions":
                step(f"call ducklake_flush_inlined_data('lake', schema_name => 'raw', table_name => '{table}')")
            if table != "positions":
                merge = f"ducklake_merge_adjacent_files('lake', '{table}', schema => 'raw', max_compacted_files => {AT_ONCE})"
                while merged := step(f"call {merge}"):
                    if sum(int(row[2]) for row in merged) <= sum(int(row[3]) for row in merged):
                        break  # nothing was made fewer
        read = _read_up_to(where, done.notes)
        if read is not None and (old := _old(con, keep, read)):
            done.snapshots_expired = len(step(f"call ducklake_expire_snapshots('lake', versions => {old})"))
        if _dead_files(con) > 1:
            step("call ducklake_rewrite_data_files('lake', 'positions', schema => 'raw')")
        lake.retry(lambda: _prune(con, where))
        before = f"older_than => now() - interval '{int(PATIENCE.total_seconds())} seconds'"
        done.files_removed += len(step(f"call ducklake_cleanup_old_files('lake', {before})"))
        done.files_removed += len(step(f"call ducklake_delete_orphaned_files('lake', {before})", _is_passing))
        done.files_after = _files(con)
    except duckdb.Error as error:
        raise FinegrainError(f"the lake cannot be kept up: {' '.join(str(error).split())}") from None
    finally:
        con.close()
    return done


def _is_passing(error: Exception) -> bool:
    """Whether writers came first, or took a file away, of a batch they gave up, that was listed and not yet looked at."""
    return lake.busy(error) or "No such file or directory" in str(error)


def _step(
    con: duckdb.DuckDBPyConnection,
    where: Settings,
    call: str,
    notes: list[str],
    is_passing: Callable[[Exception], bool],
) -> list[tuple[Any, ...]]:
    """One call in a transaction of its own. Where writers come first every time, it is left out: nothing hangs on it."""

    def work() -> list[tuple[Any, ...]]:
        with lake.unmoved(where, moving=True), lake.writing(con, where):
            return con.execute(call).fetchall()

    try:
        found: list[tuple[Any, ...]] = lake.retry(work, TRIED)
    except duckdb.Error as error:
        if not is_passing(error):
            raise
        notes.append(f"writers came first every time, so this was left to the next upkeep: {call}")
        return []
    return found


def _prune(con: duckdb.DuckDBPyConnection, where: Settings) -> None:
    """Remove rows in the catalogue (of positions, mostly) that no snapshot shows any more, which DuckLake does only as it flushes."""
    catalogue = "__ducklake_metadata_lake"
    tables = con.execute(f"select table_name from {catalogue}.ducklake_inlined_data_tables").fetchall()
    with lake.writing(con, where):
        for (table,) in tables:
            con.execute(
                f"delete from {catalogue}.{table} as r where r.end_snapshot is not null and not exists ("
                f"select 1 from {catalogue}.ducklake_snapshot as s "
                "where s.snapshot_id >= r.begin_snapshot and s.snapshot_id < r.end_snapshot)"
            )


def _dead_files(con: duckdb.DuckDBPyConnection) -> int:
    """Files of positions in which rows were deleted, as earlier versions of finegrain left one at each upkeep."""
    catalogue = "__ducklake_metadata_lake"
    [(count,)] = con.execute(
        f"select count(*) from {catalogue}.ducklake_delete_file as d inner join {catalogue}.ducklake_table as t using (table_id) "
        "where t.table_name = 'positions' and t.end_snapshot is null and d.end_snapshot is null"
    ).fetchall()
    return int(count)


def _files(con: duckdb.DuckDBPyConnection) -> int:
    [(count,)] = con.execute("select coalesce(sum(file_count), 0) from ducklake_table_info('lake')").fetchall()
    return int(count)


def _read_up_to(where: Settings, notes: list[str]) -> int | None:
    """The lake snapshot up to which every model of the warehouse has read; None, and a note, when that cannot be told now."""
    if not where.warehouse.exists():
        return 2**62
    with duckdb.connect() as con:
        try:
            warehouse.attach(con, where.warehouse)
            [(read,)] = con.execute("select min(snapshot) from warehouse.main.watermarks").fetchall()
        except FinegrainError:
            notes.append("the warehouse is being built, so no snapshot has expired; the next upkeep sees to it")
            return None
        except duckdb.CatalogException:
            return 2**62
    return 2**62 if read is None else int(read)


def _old(con: duckdb.DuckDBPyConnection, keep: timedelta, read: int) -> list[int]:
    """Snapshots that may expire. Those in which rows last came into a table stay: by them a build tells that nothing came since."""
    [(newest,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
    kept = {newest, *lake.arrivals(con, newest).values()}
    found = con.execute(
        "select snapshot_id from lake.snapshots() where snapshot_id < least(?, ?) "
        f"and snapshot_time < now() - interval '{int(keep.total_seconds())} seconds' order by 1",
        [read, newest],
    ).fetchall()
    return [int(number) for (number,) in found if number not in kept]
