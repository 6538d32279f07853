"""Forgetting people in the lake: which ids and rows are theirs, and how these rows leave the lake's files.

A person is given by login ids or visitor ids. To a login belong the visitors whose first login it is (as in the models), and the orders that no row
ascribes to somebody else. A row is theirs if it has their login; or no login, and their visitor or order. A visitor that others log in on,
too, is shared: their rows stay, so the visitor's id does.
"""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import duckdb

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest import personal
from orchestration.ingest.landing import clean_text
from orchestration.lake import forgotten, lake
from orchestration.lake.keyed_hash import keyed_hash
from orchestration.lake.locks import one_at_a_time
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.mapping.personal import Personal
from orchestration.sql.text import identifier, quote, text_of_bytes

#: The namespace of customers' UUIDs (macros/engine/functions.sql).
_NAMESPACE: Final = uuid.UUID("4eb3ae34-46e5-52a1-b4be-d109cfb28e73")
#: What may not stand beside an id for it to be a whole word.
WORD: Final = "0-9A-Za-z_-"


@dataclass
class Person:
    """The ids of people to forget. `shared` are visitors that others use, too; `ambiguous` are ids that are part of other ids, such as u1 of
    u12; `common` are ids that are also the id of something else, such as an event. `customers` are UUIDs, and `sessions` those that the
    warehouse knew."""

    logins: list[str] = field(default_factory=list)
    visitors: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    orders: list[str] = field(default_factory=list)
    customers: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    common: list[str] = field(default_factory=list)

    @property
    def listed(self) -> list[tuple[str, str]]:
        """Kind and id of all whose rows must not come back."""
        kinds = {"login": self.logins, "visitor": self.visitors, "order": self.orders}
        return [(kind, each) for kind, found in kinds.items() for each in found]

    @property
    def ids(self) -> list[tuple[str, str]]:
        """Those of them that nobody else uses, so that they must be nowhere."""
        return [(kind, each) for kind, each in self.listed if kind != "visitor" or each not in self.shared]

    @property
    def words(self) -> list[str]:
        """The ids that are specific enough to be searched for in any text."""
        return [each for _, each in self.ids if is_specific(each) and each not in self.common]

    @property
    def digests(self) -> list[str]:
        """Ids of ours, which are specific wherever they are."""
        return [*self.customers, *self.sessions]

    def merged(self, other: Person) -> Person:
        """Both together."""
        return Person(**{name: sorted({*mine, *getattr(other, name)}) for name, mine in asdict(self).items()})


def is_specific(text: str) -> bool:
    """Whether an id can be searched for in any text; 17 cannot."""
    return len(text) >= 8 or (len(text) >= 4 and re.search("[^0-9.]", text) is not None)


def pattern(person: Person) -> str | None:
    """A regular expression (for DuckDB and Python) that finds the ids of a person in a text, as whole words; None if there is nothing to search for."""
    parts = list(map(re.escape, person.digests))
    if person.words:
        words = "|".join(map(re.escape, person.words))
        parts.insert(0, f"(?:^|[^{WORD}])(?:{words})(?:$|[^{WORD}])")
    return "|".join(parts) or None


def customer_of(identity: str) -> str:
    """The UUID of an identity's customer."""
    return str(uuid.uuid5(_NAMESPACE, identity))


# --- finding -------------------------------------------------------------------------------------------------------


def find(
    con: duckdb.DuckDBPyConnection,
    built: duckdb.DuckDBPyConnection | None,
    logins: Sequence[str],
    visitors: Sequence[str],
) -> Person:
    """The people of these ids, from the lake and, if something is built, from the warehouse attached to `built`. Raises FinegrainError for an
    id that the lake neither has nor had."""
    person = Person(logins=as_landed(con, logins), visitors=as_landed(con, visitors))
    _list(con, "__logins", person.logins)
    _list(con, "__visitors", person.visitors)
    con.execute(f"create or replace temp table __seen as {_seen()}")
    known = {
        (str(kind), str(each))
        for kind, each in con.execute(
            "select distinct kind, id from (select 'login' as kind, login as id from __seen union all select 'visitor', visitor from __seen "
            f"union all select 'login', {clean_text('customer_id')} from lake.raw.customers "
            "union all select kind, id from (select 'login' as kind, id from __logins union all select 'visitor', id from __visitors) "
            f"where {keyed_hash('kind || chr(58) || id')} in (select hash from lake.raw.forgotten)) "
            "where id in (select id from __logins union all select id from __visitors)"
        ).fetchall()
    }
    for kind, each in [("login", each) for each in person.logins] + [("visitor", each) for each in person.visitors]:
        if (kind, each) not in known:
            raise FinegrainError(
                f"{each}: the lake has no such {kind} id, so nothing was changed; write it as the source does"
                + ("; a visitor's id is given with --visitor" if ("visitor", each) in known else "")
            )
    _link(con, built, person)
    return person


def as_landed(con: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> list[str]:
    """Ids as the lake has them: without spaces around them, and an e-mail address as its token. Raises FinegrainError for an empty one."""
    text = personal.text(clean_text("id"), Personal(), "", is_json=False)
    found = {
        con.execute(f"select {text} from (select $id::varchar as id)", {"id": each}).fetchall()[0][0] for each in ids
    }
    if None in found:
        raise FinegrainError("an id is empty; write it as the source does")
    return sorted(map(str, found))


def _list(con: duckdb.DuckDBPyConnection, name: str, ids: Iterable[str]) -> None:
    con.execute(f"create or replace temp table {name} as select unnest($ids::varchar[]) as id", {"ids": list(ids)})


def _seen() -> str:
    """SQL: which login, visitor and order each row names."""
    parts = []
    for table, ids in forgotten.IDS.items():
        if "login" in ids and "order" in ids:
            shown = ", ".join(
                f"{clean_text(ids[kind]) if kind in ids else 'null::varchar'} as {kind}"
                for kind in ("login", "visitor", "order")
            ).replace(" as order", ' as "order"')
            moment = {"events": "event_at", "ga4_events": "event_timestamp"}.get(table, "null::varchar")
            parts.append(
                f"select {quote(table)} as seen_in, {shown}, available_at, {moment} as moment, _position from lake.raw.{table}"
            )
    return " union all ".join(parts)


def _link(con: duckdb.DuckDBPyConnection, built: duckdb.DuckDBPyConnection | None, person: Person) -> None:
    """Find visitors, orders, customers and sessions."""
    firsts = dict(
        con.execute(
            "select visitor, arg_min(login, (available_at, moment, _position)) from __seen where visitor in "
            "(select visitor from __seen where login in (select id from __logins)) and login is not null group by 1"
        ).fetchall()
    )
    mine = {each for each, login in firsts.items() if login in person.logins}
    own = {customer_of(f"u:{each}") for each in person.logins}
    for identity, customer in _built(
        built,
        "select identity, customer_id from warehouse.main.int_identity__links where known_to is null "
        "and starts_with(identity, 'a:') and (list_contains($asked, identity) or list_contains($own, customer_id))",
        asked=[f"a:{each}" for each in firsts],
        own=sorted(own),
    ):  # a row that was quarantined made no link
        (mine.add if customer in own else mine.discard)(str(identity)[2:])
    person.visitors = sorted({*person.visitors, *mine})
    _list(con, "__visitors", person.visitors)
    person.shared = _column(
        con,
        "select distinct visitor from __seen where visitor in (select id from __visitors) and login not in (select id from __logins)",
    )
    is_theirs = "login in (select id from __logins) or (login is null and visitor in (select id from __visitors))"
    is_others = (
        "login not in (select id from __logins) or (login is null and visitor not in (select id from __visitors))"
    )
    person.orders = _column(
        con,
        f'select "order" from __seen where "order" in (select "order" from __seen where {is_theirs}) '
        f"group by 1 having count(*) filter ({is_others}) = 0",
    )
    identities = [f"u:{each}" for each in person.logins] + [f"a:{each}" for each in person.visitors]
    person.customers = sorted({customer_of(each) for each in identities})
    person.sessions = sorted(
        str(each)
        for (each,) in _built(
            built,
            "select distinct session_id from warehouse.marts.fct_sessions where session_id is not null "
            "and (list_contains($customers, customer_id) or list_contains($identities, identity))",
            customers=person.customers,
            identities=identities,
        )
    )
    _listed(con, person)
    _list(con, "__asked", [each for _, each in person.ids])
    others = " union all ".join(
        f"select unnest([{', '.join(names)}]) as id from lake.raw.{table} where not ({_is_theirs(table, None)})"
        for table, names in _OTHER_IDS.items()
    )
    person.common = _column(con, f"select distinct id from ({others}) where id in (select id from __asked)")
    person.ambiguous = _parts_of_words(con, person)


def _parts_of_words(con: duckdb.DuckDBPyConnection, person: Person) -> list[str]:
    """The ids that are part of a longer word in a payload of the lake."""
    if not person.words:
        return []
    words = "|".join(map(re.escape, person.words))
    texts = " union all ".join(
        [
            *(f"select payload as text from lake.raw.{table}" for table in RAW_TABLES),
            *(f"select {text} from lake.raw.dead_letters" for text in _LETTER_TEXTS),
        ]
    )
    con.execute(
        "create or replace temp table __longer as select distinct unnest(regexp_extract_all(text, $longer)) as word "
        f"from ({texts}) where regexp_matches(text, $longer)",
        {"longer": f"[{WORD}](?:{words})|(?:{words})[{WORD}]"},
    )
    return _column(
        con, "select a.id from __asked as a where exists (select 1 from __longer as l where contains(l.word, a.id))"
    )


#: Ids of other things than people and their orders, by table.
_OTHER_IDS: Final = {
    "events": ("event_id", "session_id", "product_id", "line_id"),
    "orders": ("session_id",),
    "order_items": ("line_id", "product_id"),
    "refunds": ("refund_id", "line_id", "product_id"),
    "products": ("product_id",),
}


def _built(built: duckdb.DuckDBPyConnection | None, query: str, **given: list[str]) -> list[tuple[Any, ...]]:
    """Rows of the warehouse; none if nothing is built, or a build failed early."""
    if built is None:
        return []
    try:
        return built.execute(query, given).fetchall()
    except duckdb.Error:
        return []


def _column(con: duckdb.DuckDBPyConnection, query: str) -> list[str]:
    return sorted(str(each) for (each,) in con.execute(query).fetchall())


def _listed(con: duckdb.DuckDBPyConnection, person: Person) -> None:
    for name, ids in (("__logins", person.logins), ("__visitors", person.visitors), ("__orders", person.orders)):
        _list(con, name, ids)


def _is_theirs(table: str, text: str | None) -> str:
    """SQL: whether a row of a raw table is the person's. A row that could not be read is theirs if its payload names them."""
    ids = {kind: clean_text(column) for kind, column in forgotten.IDS.get(table, {}).items()}
    anonymous = f"{ids['login']} is null and " if "login" in ids else ""
    tests = {
        "login": "{} in (select id from __logins)",
        "visitor": f"({anonymous}{{}} in (select id from __visitors))",
        "order": f"({anonymous}{{}} in (select id from __orders))",
    }
    parts = [f"coalesce({tests[kind].format(column)}, false)" for kind, column in ids.items()]
    if text is not None:
        parts.append("(_error is not null and regexp_matches(coalesce(payload, ''), $pattern))")
    return " or ".join(parts) or "false"


#: SQL: the texts of a dead letter.
_LETTER_TEXTS: Final = (text_of_bytes("payload"), text_of_bytes("key"), "headers", "error")
#: SQL: whether a dead letter names a person.
_LETTER: Final = " or ".join(f"regexp_matches(coalesce({text}, ''), $pattern)" for text in _LETTER_TEXTS)


def count(con: duckdb.DuckDBPyConnection, person: Person) -> dict[str, int]:
    """The person's rows by table of the lake."""
    _listed(con, person)
    found = {}
    for table, condition, given in _conditions(con, person):
        [(rows,)] = con.execute(f"select count(*) from lake.raw.{table} where {condition}", given).fetchall()
        found[table] = int(rows)
    return {table: rows for table, rows in found.items() if rows}


def _conditions(con: duckdb.DuckDBPyConnection, person: Person) -> list[tuple[str, str, dict[str, Any]]]:
    """Table, condition, and parameters."""
    text = pattern(replace(person, customers=[], sessions=[]))
    given = {} if text is None else {"pattern": text}
    found = [(table, _is_theirs(table, text), given) for table in forgotten.IDS]
    if text is not None:
        found.append(("dead_letters", _LETTER, given))
    return found


# --- removing ------------------------------------------------------------------------------------------------------


def remove(
    con: duckdb.DuckDBPyConnection, where: Settings, person: Person, now: datetime | None = None
) -> dict[str, int]:
    """In one transaction, delete the person's rows and put the ids on the list of forgotten ones. Returns the rows deleted by table. They are in the
    lake's files until `purge`. Raises FinegrainError."""
    moment = now or datetime.now(UTC).replace(tzinfo=None)
    removed = lake.retry(lambda: _remove(con, where, person, moment))
    if isinstance(where.lake_catalog, str):
        # Whoever had begun to write before did not know the list.
        lake.settle(where)
        for table, rows in lake.retry(lambda: _remove(con, where, person, moment)).items():
            removed[table] = removed.get(table, 0) + rows
    return removed


def _remove(con: duckdb.DuckDBPyConnection, where: Settings, person: Person, now: datetime) -> dict[str, int]:
    removed: dict[str, int] = {}
    with lake.writing(con, where):
        forgotten.remember(con, where, person.listed, now)
        _listed(con, person)
        con.execute("create or replace temp table __gone (raw_table varchar, _source varchar, _position varchar)")
        for table, condition, given in _conditions(con, person):
            con.execute(
                f"insert into __gone select {quote(table) if table in RAW_TABLES else 'raw_table'}, _source, _position "
                f"from lake.raw.{table} where {condition}",
                given,
            )
            [(rows,)] = con.execute(f"delete from lake.raw.{table} where {condition}", given).fetchall()
            removed[table] = int(rows)
        # Deletions by position, and by key, whose positions have a version at their end.
        for table, is_same in (
            (
                "deletions",
                "(d._position = g._position or (d.row_key is not null and left(d._position, -27) = left(g._position, -27)))",
            ),
            ("replayed", "d._position = g._position"),
        ):
            [(rows,)] = con.execute(
                f"delete from lake.raw.{table} as d where exists (select 1 from __gone as g where d._source = g._source "
                f"and d.raw_table = g.raw_table and {is_same})"
            ).fetchall()
            removed[table] = int(rows)
    return {table: rows for table, rows in removed.items() if rows}


def purge(where: Settings) -> int:
    """Rewrite the lake's files that have deleted rows, expire all snapshots but the newest, and remove what they alone used; also from the
    catalogue's own file. Returns the number of data files that were removed. Raises FinegrainError."""
    con = lake.connect(where)
    removed = 0
    try:
        _flush(con, where)
        for table in (*RAW_TABLES, *_WRITTEN):
            # Rows that are in the catalogue get into files, since only files have the statistics that _correct_statistics needs.
            _call(
                con, where, f"call ducklake_flush_inlined_data('lake', schema_name => 'raw', table_name => '{table}')"
            )
            _call(
                con,
                where,
                f"call ducklake_rewrite_data_files('lake', '{table}', schema => 'raw', delete_threshold => 0)",
            )
        old = [int(each) for (each,) in con.execute("select snapshot_id from lake.snapshots() order by 1").fetchall()][
            :-1
        ]
        if old:
            _call(con, where, f"call ducklake_expire_snapshots('lake', versions => {old})")
        lake.retry(lambda: lake.prune(con, where))
        while not lake.retry(lambda: _correct_statistics(con, where)):  # a loader has just committed a few rows
            _flush(con, where)
        removed += len(_call(con, where, "call ducklake_cleanup_old_files('lake', cleanup_all => true)"))
        if isinstance(where.lake_catalog, Path):  # nobody else is writing a file now
            removed += len(_call(con, where, "call ducklake_delete_orphaned_files('lake', cleanup_all => true)"))
    except duckdb.Error as error:
        raise lake.failure(error, "rows are deleted, but still in files; run this again") from None
    finally:
        con.close()
    _compact(where)
    return removed


#: The tables of bookkeeping that name rows, so that they may name people.
_WRITTEN: Final = ("dead_letters", "deletions", "replayed", "loads", "schemas")


def _flush(con: duckdb.DuckDBPyConnection, where: Settings) -> None:
    """Move rows that are in the catalogue into files."""
    for table in (*RAW_TABLES, *_WRITTEN):
        _call(con, where, f"call ducklake_flush_inlined_data('lake', schema_name => 'raw', table_name => '{table}')")


def _correct_statistics(con: duckdb.DuckDBPyConnection, where: Settings) -> bool:
    """Set the least and the greatest text of each column, which DuckLake never narrows, to those of the files there are. False if there are rows
    in the catalogue itself, of which there are no such statistics."""
    catalogue, tables = "__ducklake_metadata_lake", ", ".join(map(quote, (*RAW_TABLES, *_WRITTEN)))
    with lake.writing(con, where):
        inlined = con.execute(
            f"select i.table_name from {catalogue}.ducklake_inlined_data_tables as i inner join {catalogue}.ducklake_table as t "
            f"on i.table_id = t.table_id and t.end_snapshot is null and t.table_name in ({tables})"
        ).fetchall()
        for (name,) in inlined:
            if con.execute(
                f"select 1 from {catalogue}.{identifier(str(name))} where end_snapshot is null limit 1"
            ).fetchall():
                return False
        con.execute(
            "create or replace temp table __statistics as "
            "select c.table_id, c.column_id, min(f.min_value) as least, max(f.max_value) as greatest "
            f"from {catalogue}.ducklake_column as c inner join {catalogue}.ducklake_table as t "
            f"on c.table_id = t.table_id and t.end_snapshot is null and t.table_name in ({tables}) "
            f"left join (select s.* from {catalogue}.ducklake_file_column_stats as s inner join {catalogue}.ducklake_data_file as d "
            "on s.data_file_id = d.data_file_id and d.end_snapshot is null) as f on c.table_id = f.table_id and c.column_id = f.column_id "
            "where c.end_snapshot is null and c.column_type = 'varchar' group by all"
        )
        con.execute(
            f"update {catalogue}.ducklake_table_column_stats as s set min_value = w.least, max_value = w.greatest "
            "from __statistics as w where s.table_id = w.table_id and s.column_id = w.column_id"
        )
    return True


def _call(con: duckdb.DuckDBPyConnection, where: Settings, call: str) -> list[tuple[Any, ...]]:
    def work() -> list[tuple[Any, ...]]:
        with lake.reading(where, compacting=True), lake.writing(con, where):
            return con.execute(call).fetchall()

    return lake.retry(work)


#: Rewrites a SQLite file without what was deleted. It runs in a process of its own, because two SQLite libraries in one process break
#: each other's locks.
_VACUUM: Final = """
import sqlite3, sys
con = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
con.execute("vacuum")
con.execute("pragma wal_checkpoint(truncate)").fetchall()
con.close()
"""


def _compact(where: Settings) -> None:
    """Write the catalogue's file again: deleted rows are in its free pages."""
    if not isinstance(where.lake_catalog, Path):
        lake.vacuum(where)
        return
    with one_at_a_time(where.lake_catalog.with_name("write.lock")):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _VACUUM, str(where.lake_catalog)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was stopped"])[-1]
        raise FinegrainError(
            f"{where.lake_catalog}: cannot be compacted: {reason}; stop what reads it, and run this again"
        )
