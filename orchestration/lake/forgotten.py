"""The list of forgotten people (`raw.forgotten`): keyed hashes of their ids, so that their rows do not come back.

The list does not show who is on it: a hash can only be compared. It has one more row, the hash of the word `key`, which tells whether this key is
the one with which the list was written. A connection keeps the hashes in the variable `forgotten` (null for an empty list); `lake.writing` brings it
up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import duckdb

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.lake.keyed_hash import give_key, keyed_hash
from orchestration.sql.text import quote, timestamp_literal

#: What a row's ids are in each raw table, as SQL: a login, a visitor or an order.
IDS: Final[dict[str, dict[str, str]]] = {
    "events": {"login": "user_id", "visitor": "anonymous_id", "order": "order_id"},
    "ga4_events": {"login": "user_id", "visitor": "user_pseudo_id", "order": "ecommerce.transaction_id"},
    "customers": {"login": "customer_id"},
    "orders": {"login": "user_id", "visitor": "anonymous_id", "order": "order_id"},
    "order_items": {"order": "order_id"},
    "refunds": {"login": "user_id", "order": "order_id"},
}
_KEY: Final = "key"


def hash_of(kind: str, text: str) -> str:
    """SQL of the hash of an id (SQL) of a kind; null for null."""
    return keyed_hash(f"{quote(kind + ':')} || {text}")


def refresh(con: duckdb.DuckDBPyConnection, where: Settings) -> None:
    """Bring the connection's variable up to date. It costs one look into the catalogue, unless the list has changed. Raises FinegrainError if
    this is not the key with which the list was written."""
    # The number of rows that were ever inserted. (A query of the table would take DuckLake many looks.)
    found = con.execute(
        "select next_row_id from __ducklake_metadata_lake.ducklake_table_stats where table_id = (select max(table_id) "
        "from __ducklake_metadata_lake.ducklake_table where table_name = 'forgotten' and end_snapshot is null) "
        "and next_row_id > coalesce(getvariable('forgotten_rows'), 0)"
    ).fetchall()
    if not found:
        return
    rows = con.execute("select kind, hash from lake.raw.forgotten").fetchall()
    _give_key(con, where, [digest for kind, digest in rows if kind == _KEY])
    con.execute(
        "set variable forgotten = $hashes", {"hashes": [digest for kind, digest in rows if kind != _KEY] or None}
    )
    con.execute("set variable forgotten_rows = $rows", {"rows": int(found[0][0])})


def remember(con: duckdb.DuckDBPyConnection, where: Settings, ids: Iterable[tuple[str, str]], now: datetime) -> None:
    """Within a writing transaction, put ids (kind, id) on the list."""
    _give_key(con, where)
    _insert(con, [(_KEY, ""), *ids], now)


def allow(con: duckdb.DuckDBPyConnection, where: Settings, ids: Iterable[tuple[str, str]], now: datetime) -> int:
    """Within a writing transaction, take ids (kind, id) off the list; returns how many were on it."""
    _give_key(con, where)
    removed = 0
    for kind, each in ids:
        [(count,)] = con.execute(
            f"delete from lake.raw.forgotten where hash = {hash_of(kind, '$id')}", {"id": each}
        ).fetchall()
        removed += int(count)
    if removed:  # a new row, by which others notice
        con.execute(f"delete from lake.raw.forgotten where kind = {quote(_KEY)}")
        _insert(con, [(_KEY, "")], now)
    return removed


def _insert(con: duckdb.DuckDBPyConnection, ids: Iterable[tuple[str, str]], now: datetime) -> None:
    for kind, each in ids:
        con.execute(
            f"insert into lake.raw.forgotten select {quote(kind)}, hash, {timestamp_literal(now)} from (select {hash_of(kind, '$id')} as hash) "
            "where hash not in (select hash from lake.raw.forgotten)",
            {"id": each},
        )


def _give_key(con: duckdb.DuckDBPyConnection, where: Settings, known: Sequence[str] = ()) -> None:
    """Give the connection the key; `known` is the key's row of the list."""
    give_key(con, where)
    [(own,)] = con.execute(f"select {hash_of(_KEY, quote(''))}").fetchall()
    if known and own not in known:
        raise FinegrainError(
            "the personal data in this lake was hashed with another key than this one, so the same person would become another: "
            "set FINEGRAIN_PRIVACY_KEY, or privacy.key in the home, to the one used then"
        )
