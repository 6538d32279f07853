"""`finegrain forget`: remove people from the lake, the warehouse, what is published and the online store, and search everything for what is left.

The lake comes first: from then on, nothing of them can come back. All that follows is made from the lake again. Until the search finds nothing,
`forget.json` in the home says who is being forgotten, so that a process that was killed can be run again; then it is removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import duckdb

from orchestration.config.privacy_key import privacy_key
from orchestration.config.published import current
from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError, console
from orchestration.features import history
from orchestration.features.catalog import declared
from orchestration.ingest import forget as in_lake
from orchestration.ingest.forget import Person, is_specific, pattern
from orchestration.lake import forgotten, lake
from orchestration.lake.locks import unlocked
from orchestration.quality.file_search import Proof, Sought, search
from orchestration.store.backends import backend, location
from orchestration.store.materialize import is_wanted, materialize
from orchestration.warehouse import forget as in_warehouse
from orchestration.warehouse import warehouse
from orchestration.warehouse.build import build
from orchestration.warehouse.publish import publish

#: Who is being forgotten, until it is done.
PENDING: Final = "forget.json"
#: Folders in the home of which everything that no process uses is removed.
EMPTIED: Final = ("objects", "attempts", "tmp", "spill")


@dataclass
class Forgotten:
    """The result. `rows`: what was (with `dry_run`, would be) removed, by table of the lake; `elsewhere`: by other places; `proof` is None if
    nothing was removed. `person` has the ids."""

    person: Person
    rows: dict[str, int]
    elsewhere: dict[str, int] = field(default_factory=dict)
    proof: Proof | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left."""
        return self.proof is None or not self.proof.found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"complete": self.is_complete, **asdict(self)}


def forget(
    logins: Sequence[str] = (),
    visitors: Sequence[str] = (),
    *,
    dry_run: bool = False,
    where: Settings | None = None,
    quiet: bool = True,
    follow: Callable[[Forgotten], None] | None = None,
) -> Forgotten:
    """Forget people by their login ids and visitor ids, and those whom a process that was killed had begun with. `follow` is called with the summary
    before anything is changed. With `dry_run`, nothing is changed. Raises FinegrainError, also for an id that the lake does not know."""
    where = where or settings()
    started = time.monotonic()
    if not lake.exists(where):
        raise FinegrainError(f"{where.lake_catalog}: there is no lake here, so nobody can be forgotten")
    pending = where.home / PENDING
    with _alone(where):
        before = _read(pending)
        if not logins and not visitors and before is None:
            raise FinegrainError(
                "nobody is given, and nobody is being forgotten; name a login id, or a visitor with --visitor"
            )
        person = before or Person()
        con = lake.connect(where)
        try:
            with lake.reading(where):
                if logins or visitors:
                    person = person.merged(_find(con, where, logins, visitors))
                done = Forgotten(person, in_lake.count(con, person), notes=_notes(person))
            if follow:
                follow(done)
            if dry_run:
                return done
            privacy_key(where)  # raises before anything is changed
            _write(pending, person)
            in_lake.remove(con, where, person)
        finally:
            con.close()
        in_lake.purge(where)
        with console.progress("forget", 5, quiet=quiet) as advance:
            _rebuild(where, person, done, advance)
            advance(0, "search")
            done.proof = _search(where, person, pending)
            advance(1, "search")
        if done.is_complete:
            pending.unlink()
    done.seconds = time.monotonic() - started
    return done


def allow(logins: Sequence[str] = (), visitors: Sequence[str] = (), where: Settings | None = None) -> int:
    """Take ids off the list of forgotten people, so that rows of theirs that come from now on are loaded again. Returns how many were on it. The orders
    of then stay on it. Raises FinegrainError."""
    where = where or settings()
    if not lake.exists(where):
        raise FinegrainError(f"{where.lake_catalog}: there is no lake here, so nobody was forgotten")
    con = lake.connect(where)

    def work() -> int:
        ids = [
            (kind, each)
            for kind, given in (("login", logins), ("visitor", visitors))
            for each in in_lake.cleaned(con, given)
        ]
        with lake.writing(con, where):
            return forgotten.allow(con, where, ids, datetime.now(UTC).replace(tzinfo=None))

    try:
        return lake.retry(work)
    finally:
        con.close()


@contextmanager
def _alone(where: Settings) -> Iterator[None]:
    """Keep loads, ingests and maintenance out. Raises FinegrainError while `finegrain live` runs here."""
    for path in (where.home / "live").glob("*/"):
        if not unlocked(path):
            raise FinegrainError(
                f"{where.home / 'live'}: finegrain live is running, and keeps what it knows of customers; stop it first"
            )
    with ExitStack() as held:
        for work in ("forget", "load", "maintain"):
            held.enter_context(lake.exclusive(where, work))
        with lake.connect(where, read_only=True) as con:
            sources = [
                str(each)
                for (each,) in con.execute("select distinct source from lake.raw.schemas order by 1").fetchall()
            ]
        for source in sources:
            held.enter_context(lake.exclusive(where, f"ingest {source}"))
        yield


def _find(con: duckdb.DuckDBPyConnection, where: Settings, logins: Sequence[str], visitors: Sequence[str]) -> Person:
    if not where.warehouse.exists():
        return in_lake.find(con, None, logins, visitors)
    with duckdb.connect() as built:
        warehouse.attach(built, where.warehouse)
        return in_lake.find(con, built, logins, visitors)


def _notes(person: Person) -> list[str]:
    found = []
    if person.shared:
        found.append(
            f"visitor {', '.join(person.shared)} is used by other logins, too: their rows stay, so this id is still there; rows without a login are removed, also new ones"
        )
    short = [each for _, each in person.ids if not is_specific(each)]
    if person.common:
        found.append(
            f"{', '.join(person.common)}: also the id of something else, such as an event, so it is compared with columns of ids, and not searched "
            "for in any text"
        )
    if short:
        found.append(
            f"{', '.join(short)}: too short to be searched for in any text; it is compared with columns of ids, and dead letters and rows "
            "that could not be read are not searched for it"
        )
    if person.ambiguous:
        found.append(
            f"{', '.join(person.ambiguous)}: other ids contain it, so it is searched for as a whole word in bytes, too"
        )
    return found


# --- where people are ----------------------------------------------------------------------------------------------


def _rebuild(where: Settings, person: Person, done: Forgotten, advance: console.Advance) -> None:
    """Make everything that follows from the lake again, without the people."""
    ids = [*person.digests, *person.logins]
    is_published = current(where) is not None
    advance(0, "build")
    if where.warehouse.exists():
        done.elsewhere["snapshots"] = in_warehouse.renew(where, ids)
        built = build(where=where, full_refresh=True)
        if not built.passed:
            failed = ", ".join(node.name for node in built.failed)
            raise FinegrainError(
                f"the lake has forgotten them, but the build without them did not pass ({failed}), so what was published and the online store "
                "still have them; correct that, and run `finegrain forget` again"
            )
    advance(1, "publish")
    if is_published:
        publish(where, from_scratch=True)
    done.elsewhere["history"] = history.remove_rows(ids, where)
    advance(1, "online store")
    if is_wanted(where):
        with closing(backend(location(where))) as store:
            done.elsewhere["online store"] = sum(store.remove(mart.name, person.digests) for mart in declared())
        if is_published:
            materialize(where)
    advance(1, "temporary files")
    for name in (*EMPTIED, "live"):
        for path in (where.home / name).glob("*"):
            if path.is_dir() and unlocked(path):
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file() and name != "live":
                path.unlink(missing_ok=True)
    advance(1, "search")


def _search(where: Settings, person: Person, pending: Path) -> Proof:
    short: dict[str, list[str]] = {"login": [], "visitor": [], "order": []}
    for kind, each in person.ids:
        if each not in person.words:
            short[kind].append(each)
    identities = [f"{prefix}:{each}" for kind, prefix in (("login", "u"), ("visitor", "a")) for each in short[kind]]
    text = pattern(person)
    unique = [*person.customers, *(each for each in person.words if each not in person.ambiguous)]
    sought = Sought(
        text, [each.encode() for each in unique], [each.encode() for each in person.ambiguous], short, identities
    )
    proof = search(where, sought, left_out=[pending])
    if text is not None and is_wanted(where):
        with closing(backend(location(where))) as store:
            for mart in declared():
                proof.add(f"{store.name}: {mart.name}", store.search(mart.name, re.compile(text)))
    return proof


# --- who is being forgotten ----------------------------------------------------------------------------------------


def _read(pending: Path) -> Person | None:
    try:
        return Person(**json.loads(pending.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise FinegrainError(
            f"{pending}: cannot be read: {error}; remove it, and run this again with the ids"
        ) from None


def _write(pending: Path, person: Person) -> None:
    """In one step, readable by its owner alone."""
    draft = pending.with_name(f".{pending.name}")
    with suppress(FileNotFoundError):
        draft.unlink()
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(asdict(person), file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(pending)
