"""Row versions of tables with a key: which of the rows read are new to the lake, and which rows of the lake were deleted.

A row's position is `label/key@number.hash`. `number` counts the versions of a key from 1. `hash` is the first 16 digits of the row's md5, or
all zeros for a deletion. A row lands if its hash differs from that of the key's newest version. So an unchanged row does not land twice, and
a row that returns to an earlier state lands again. If each element of a list becomes a row (`explode`), elements have positions
`label/key[element]@number.hash`, and elements missing from a new version are recorded as deleted (`vanished`). Everything is bulk SQL over one
staged batch:

    __read      the rows read: their columns, and ours (`free_prefix`): payload, bad, row (number), key, hash, is_deleted, deleted_at
    __staged    a view of our columns, as __row, __bad, __key, __hash, __is_deleted and __deleted_at
    __new_rows  the rows to land: __row and __n, the end of their position
    __deleted   the keys to record as deleted: __key, __last (their newest version) and __deleted_at
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import duckdb

from orchestration.ingest import personal
from orchestration.ingest.deliveries import is_deleted
from orchestration.ingest.landing import as_text, packed, parse_time
from orchestration.mapping.contracts import IDENTITY, IN_RECORD
from orchestration.mapping.mapping import Table
from orchestration.sql.text import free_prefix, identifier, quote, timestamp_literal

#: The hash that marks a deleted row.
DELETED: Final = "0" * 16
#: The end of the position of an element that is missing from a newer version of its row. It sorts after every hash.
VANISHED: Final = "g" * 16
#: Length of `@number.hash`, and the digits of its number.
_TAIL: Final = 27
_DIGITS: Final = 9

#: Our columns that `__staged` shows.
_SHOWN: Final = ("row", "bad", "key", "hash", "is_deleted", "deleted_at")


def new_rows(columns: Iterable[str]) -> str:
    """The new rows of the staged batch, as a relation for `landing`."""
    ours = free_prefix(columns)
    return f"(select r.*, n.__n as {ours}n from __read r join __new_rows n on r.{ours}row = n.__row)"


def key_of(columns: dict[str, str], entry: Table, table: str) -> str:
    """SQL of a row's key as text, without personal data: the value of a single column, or a JSON list of several."""
    key, texts = entry.key, []
    for name in key:
        text, found = as_text(identifier(name), columns[name]), entry.policy.of(table, name)
        texts.append(
            personal.whole(text, found[0], "hash") if found else personal.text(text, entry.policy, table, is_json=False)
        )
    return texts[0] if len(texts) == 1 else f"to_json([{', '.join(texts)}])::varchar"


def fingerprint(columns: dict[str, str]) -> str:
    """SQL of a row's content, independent of column order. Nulls are ignored, so a new column alone is not a change."""
    parts = [f"{quote(name + chr(30))} || {identifier(name)}::varchar" for name in sorted(columns)]
    return f"concat_ws(chr(31), {', '.join(parts)})"


def stage(
    con: duckdb.DuckDBPyConnection,
    select: str,
    columns: dict[str, str],
    entry: Table,
    table: str,
    deleted: str | None,
    zone: str,
    *,
    has_payload: bool = False,
) -> None:
    """Read a batch of rows of an entry into `__read`. `select` gives `columns`; `deleted` is the column that marks deleted rows. Rows with their own payload
    and bad columns (`has_payload`) are hashed by their payload."""
    ours = free_prefix(columns)
    is_deleted_row, deleted_at = "false", "null::timestamp"
    if deleted is not None:
        column, kind = identifier(deleted), columns[deleted]
        if kind == "BOOLEAN":
            is_deleted_row = f"coalesce({column}, false)"
        elif kind == "VARCHAR":
            is_deleted_row = f"lower(trim(coalesce({column}, ''))) not in ('', 'false', 'f', 'no', '0') and try_cast({column} as double) is distinct from 0"
        elif kind.startswith(("DATE", "TIMESTAMP")):
            is_deleted_row = f"{column} is not null"
        else:
            is_deleted_row = f"coalesce({column} <> 0, false)"
        if kind == "VARCHAR" or kind.startswith(("DATE", "TIMESTAMP")):
            deleted_at = parse_time(as_text(column, kind), quote(zone))
    named = key_of(columns, entry, table)
    brought, content = "", f"{ours}payload"
    if has_payload:  # a row that could not be read has no key
        named = f"coalesce({named}, case when {ours}bad is not null then md5({ours}payload) end)"
    else:
        brought, content = f"null::varchar as {ours}bad, {packed(columns)} as {ours}payload, ", fingerprint(columns)
    con.execute(
        f"create or replace temp table __read as select *, row_number() over () as {ours}row, {brought}{named} as {ours}key, "
        f"left(md5({content}), 16) as {ours}hash, {is_deleted_row} as {ours}is_deleted, {deleted_at} as {ours}deleted_at from ({select})"
    )
    shown = ", ".join(f"{ours}{name} as __{name}" for name in _SHOWN)
    con.execute(f"create or replace temp view __staged as select {shown} from __read")


def find_new(con: duckdb.DuckDBPyConnection, source: str, table: str, label: str, exploded: bool = False) -> None:
    """Compare the staged batch with the lake: fill `__new_rows` and `__deleted`."""
    last = newest(source, table, label, exploded, among=f"select {quote(label + '/')} || __key from __staged")
    con.execute(
        "create or replace temp table __matched as "
        f"select r.__row, r.__key, r.__hash, r.__is_deleted, r.__deleted_at, l.__last from __staged r left join ({last}) l using (__key)"
    )
    con.execute(
        f"create or replace temp table __new_rows as select __row, {_tail('__key', '__last', '__hash')} as __n from __matched "
        "where not __is_deleted and right(__last, 16) is distinct from __hash"
    )
    con.execute(
        "create or replace temp table __deleted as select __key, __last, __deleted_at from __matched "
        f"where __is_deleted and right(__last, 16) <> {quote(DELETED)}"
    )


def find_deleted(con: duckdb.DuckDBPyConnection, source: str, table: str, label: str, exploded: bool = False) -> None:
    """Compare all keys of the source (`__there`) with those of the lake: fill `__deleted`, and empty `__new_rows`."""
    con.execute("create or replace temp table __new_rows (__row bigint, __n varchar)")
    con.execute(
        f"create or replace temp table __deleted as select __key, __last, null::timestamp as __deleted_at from ({newest(source, table, label, exploded)}) "
        f"where right(__last, 16) <> {quote(DELETED)} and __key not in (select __key from __there where __key is not null)"
    )


def place_of(position: str, exploded: bool) -> str:
    """SQL that extracts `label/key` from the position of a row or of one of its elements."""
    place = f"left({position}, -{_TAIL})"
    return f"regexp_replace({place}, '{IN_RECORD}$', '')" if exploded else place


def newest(source: str, table: str, label: str, exploded: bool = False, among: str | None = None) -> str:
    """A SELECT of `__key` and `__last` (`number.hash`): the newest version of each key in the lake, restricted to those in `among`."""
    first = label + "/"
    # The prefix `label/` as a range, so that the lake can skip files.
    of = _of(source, label)
    place = place_of("_position", exploded)
    # An unloaded version counts as deleted, and its number stays taken.
    position = f"case when {is_deleted(table, 't')} then left(_position, -16) || {quote(DELETED)} else _position end as _position"
    found = (
        f"select {position} from lake.raw.{table} as t where {of} union all "
        f"select _position from lake.raw.deletions where {of} and raw_table = {quote(table)} and row_key is not null"
    )
    return (
        f"select substr({place}, {len(first) + 1}) as __key, max(right(_position, {_TAIL - 1})) as __last from ({found})"
        + (f" where {place} in ({among})" if among else "")
        + " group by all"
    )


def _of(source: str, label: str) -> str:
    """SQL: whether a row was loaded by this entry."""
    return f"_source = {quote(source)} and _position >= {quote(label + '/')} and _position < {quote(label + '0')}"


def _tail(key: str, last: str, digest: str) -> str:
    number = f"coalesce(left({last}, {_DIGITS})::int, 0) + 1"
    return f"{key} || '@' || printf('%0{_DIGITS}d', {number}) || '.' || {digest}"


def _named(key: Sequence[str]) -> str:
    """SQL of a row's key as a JSON object by column name, made from `__key`."""
    parts = [
        f"{quote(name)}: " + ("__key" if len(key) == 1 else f"(__key::json)->>{at}") for at, name in enumerate(key)
    ]
    return f"to_json({{{', '.join(parts)}}})::varchar"


def deletions(
    source: str, table: str, label: str, key: Sequence[str], known: str | None, now: datetime, exploded: bool = False
) -> str:
    """The SELECT that lands `__deleted` in raw.deletions, each with the ids of its version in the lake. `known` is SQL of when the shop knew of the
    deletion; the default is now."""
    moment = timestamp_literal(now)
    prefix = quote(label + "/")
    available = f"least(coalesce({known}, {moment}), {moment})" if known else moment
    if exploded:  # every element of any version
        return (
            f"select {quote(source)}, {_tail(f'left(_position, -{_TAIL})', '__last', quote(DELETED))}, {quote(table)}, {_named(key)}, "
            f"{packed(IDENTITY[table])}, __deleted_at, {moment}, {available} from __deleted join (select *, "
            f"substr({place_of('_position', True)}, {len(label) + 2}) as __of from lake.raw.{table} as t where {_of(source, label)} "
            f"and not {is_deleted(table, 't')} qualify row_number() over (partition by left(_position, -{_TAIL}) order by _position desc) = 1) "
            "on __of = __key"
        )
    return (
        f"select {quote(source)}, {prefix} || {_tail('__key', '__last', quote(DELETED))}, {quote(table)}, "
        f"{_named(key)}, {packed(IDENTITY[table])}, __deleted_at, {moment}, {available} "
        f"from __deleted join lake.raw.{table} as t on _source = {quote(source)} and _position = {prefix} || __key || '@' || __last "
        f"and not {is_deleted(table, 't')}"
    )


def vanished(source: str, table: str, label: str, key: Sequence[str], now: datetime) -> str:
    """The SELECT that, after `__new_rows` have landed, records the elements of earlier versions that are missing from the new ones in
    raw.deletions, by their ids. A version that could not be read deletes nothing."""
    moment = timestamp_literal(now)
    ids = ", ".join(f'"{name}"' for name in dict.fromkeys((*IDENTITY[table], "product_id")))
    return (
        f"with __new as (select left(__n, -{_TAIL}) as __key, right(__n, {_TAIL - 1}) as __tail from __new_rows), "
        f"__rows as (select t.*, __key, right(_position, {_TAIL - 1}) = __tail as __is_new from (select *, "
        f"substr({place_of('_position', True)}, {len(label) + 2}) as __key from lake.raw.{table} where {_of(source, label)}) as t "
        f"join __new using (__key) where not {is_deleted(table, 't')}), "
        "__now as (select * from __rows where __is_new) "
        f"select {quote(source)}, left(_position, -16) || {quote(VANISHED)} as __place, {quote(table)}, {_named(key)}, "
        f"{packed(IDENTITY[table])}, null::timestamp, {moment}, {moment} from __rows "
        "where not __is_new and __key not in (select __key from __now where _error is not null) and _error is null "
        f"and to_json([__key, {ids}])::varchar not in (select to_json([__key, {ids}])::varchar from __now) "
        f"and left(_position, -16) || {quote(VANISHED)} not in "
        f"(select _position from lake.raw.deletions where _source = {quote(source)} and raw_table = {quote(table)})"
    )
