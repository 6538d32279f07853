"""From the published marts to the online store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import duckdb

from orchestration.config.published import DATABASE, current
from orchestration.config.settings import Environment, Settings, settings
from orchestration.errors import FinegrainError, console, stopping
from orchestration.lake.locks import one_at_a_time, scratch
from orchestration.sql.text import identifier, quote
from orchestration.store.backends import FOLDER
from orchestration.store.online import OnlineStore, moment
from orchestration.warehouse import warehouse


@dataclass(frozen=True)
class Mart:
    """What became of a mart: its rows, how many were written (the others are newer in the store), and how many vectors were removed, whose keys it has no
    more."""

    rows: int
    written: int
    removed: int
    as_of: datetime | None


@dataclass(frozen=True)
class Materialized:
    """By mart what was written; `unchanged`: marts that are there as they were published."""

    online_store: str
    built_from: int
    marts: dict[str, Mart] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def is_wanted(where: Settings | None = None) -> bool:
    """Whether builds are to fill the online store: it is set, or there is one in the home."""
    where = where or settings()
    return Environment.read().online_store is not None or (where.home / FOLDER).is_dir()


def materialize(
    where: Settings | None = None, *, marts: Collection[str] = (), everything: bool = False, quiet: bool = True
) -> Materialized:
    """Write the published feature marts, or some of them, into the online store, and remove vectors that are older than the mart and not in it. Vectors that
    are newer stay. A mart is left out if the store has it as it was published, unless `everything`. Raises FinegrainError, and Unavailable if the
    store's server is away; what was written stays, and it can be run again."""
    where = where or settings()
    started = time.monotonic()
    folder = current(where)
    if folder is None:
        raise FinegrainError(
            f"nothing is published in {where.published}; run `finegrain build` and `finegrain publish`"
        )
    about = json.loads((folder / "about.json").read_text("utf-8"))
    done = Materialized("", about["built_from"])
    with (
        one_at_a_time(where.home / FOLDER / ".materialize.lock"),
        OnlineStore(where) as store,
        scratch(where.home / FOLDER, ".spill-") as spill,
        duckdb.connect(config=warehouse.limits(spill)) as con,
    ):
        stopping.interruptible(con)
        con.execute(f"attach {quote(str(folder / DATABASE))} as published (read_only)")
        names = [store.mart(name).name for name in marts] or [name for name in store.marts if name in about["marts"]]
        if absent := [name for name in names if name not in about["marts"]]:
            raise FinegrainError(f"{', '.join(absent)} is not published; run `finegrain build` and `finegrain publish`")
        marks = store.backend.marks()
        waiting = {name: json.dumps([about["marts"][name][each] for each in ("digests", "layout")]) for name in names}
        if not everything:
            done.unchanged.extend(name for name in names if marks.get(name) == waiting[name])
        waiting = {name: mark for name, mark in waiting.items() if name not in done.unchanged}
        rows = sum(about["marts"][name]["rows"] for name in waiting)
        with console.progress("materialize", max(rows, 1), quiet=quiet) as advance:
            for name, mark in waiting.items():
                done.marts[name] = _one(con, store, name, partial(_advance, advance, name))
                store.backend.mark(name, mark)
    return Materialized(store.backend.name, done.built_from, done.marts, done.unchanged, time.monotonic() - started)


def _advance(advance: console.Advance, mart: str, rows: int) -> None:
    advance(rows, mart)


def _one(con: duckdb.DuckDBPyConnection, store: OnlineStore, mart: str, follow: Callable[[int], None]) -> Mart:
    source = f"published.main.{identifier(mart)}"
    [(rows, first, last)] = con.execute(
        f"select count(*), epoch_us(min(as_of)), epoch_us(max(as_of)) from {source}"
    ).fetchall()
    if not rows:
        return Mart(0, 0, 0, None)
    written = store.write_from(con, mart, source, follow)
    return Mart(rows, written, store.backend.remove_before(mart, first), moment(last))
