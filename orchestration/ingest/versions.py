"""Versions of rows that have a key: which of the rows read are new to the lake, and which of the lake's are gone.

A row's position is `label/key@number.hash`: `number` counts the versions of its key from 1, `hash` is the md5 (its first 16
digits) of the row as it was read, and all zeros where the row is gone. A row lands when its hash is not that of the key's newest version, so
what is read again does not land again, and what goes back to an earlier state does. Where each element of a list in it is a row (`explode`), these have positions `label/key[element]@number.hash`; what a new version of it
lacks is told as gone (`vanished`). All of it is SQL in bulk, over one staged lot:

    __read   the rows as they were read: their columns, and ours (`free_prefix`): payload, bad, row (their number), key, hash, gone, gone_at
    __staged a view of our columns, as __row, __bad, __key, __hash, __gone and __gone_at
    __news   of these rows the ones that land: __row and __n, what their position ends with
    __lost   keys to be told as gone: __key, __last (their newest version) and __gone_at
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import duckdb

from orchestration.ingest.deliveries import is_deleted
from orchestration.ingest.landing import as_text, packed, parse_time
from orchestration.mapping.contracts import IDENTITY, IN_RECORD
from orchestration.sql.text import free_prefix, identifier, quote, timestamp_literal

#: The hash of a row that is gone.
GONE: Final = "0" * 16
#: What the position of an element ends with that is gone of one version of its row: it comes after each hash.
VANISHED: Final = "g" * 16
#: Characters of `@number.hash`, and digits of its number.
_TAIL: Final = 27
_DIGITS: Final = 9

#: What `__staged` shows of our columns.
_SHOWN: Final = ("row", "bad", "key", "hash", "gone", "gone_at")


def news(columns: Iterable[str]) -> str:
    """What a staged lot of rows of these columns gives to `landing` as a relation."""
    ours = free_prefix(columns)
    return f"(select r.*, n.__n as {ours}n from __read r join __news n on r.{ours}row = n.__row)"


def key_of(columns: dict[str, str], key: Sequence[str]) -> str:
    """SQL of a row's key as text: of one column its value, of several a JSON list."""
    texts = [as_text(identifier(name), columns[name]) for name in key]
    return texts[0] if len(texts) == 1 else f"to_json([{', '.join(texts)}])::varchar"


def fingerprint(columns: dict[str, str]) -> str:
    """SQL of a row's content, whatever the order of its columns. Nulls do not count, so a new column is no change by itself."""
    parts = [f"{quote(name + chr(30))} || {identifier(name)}::varchar" for name in sorted(columns)]
    return f"concat_ws(chr(31), {', '.join(parts)})"


def stage(
    con: duckdb.DuckDBPyConnection,
    select: str,
    columns: dict[str, str],
    key: Sequence[str],
    deleted: str | None,
    zone: str,
    *,
    has_payload: bool = False,
) -> None:
    """Read a lot of rows into `__read`. `select` gives `columns`; `deleted` is the column that says a row is gone. Rows that bring payload
    and bad of their own (`has_payload`) are told apart by their payload."""
    ours = free_prefix(columns)
    gone, gone_at = "false", "null::timestamp"
    if deleted is not None:
        column, kind = identifier(deleted), columns[deleted]
        if kind == "BOOLEAN":
            gone = f"coalesce({column}, false)"
        elif kind == "VARCHAR":
            gone = f"lower(trim(coalesce({column}, ''))) not in ('', 'false', 'f', 'no', '0') and try_cast({column} as double) is distinct from 0"
        elif kind.startswith(("DATE", "TIMESTAMP")):
            gone = f"{column} is not null"
        else:
            gone = f"coalesce({column} <> 0, false)"
        if kind == "VARCHAR" or kind.startswith(("DATE", "TIMESTAMP")):
            gone_at = parse_time(as_text(column, kind), quote(zone))
    named = key_of(columns, key)
    brought, content = "", f"{ours}payload"
    if has_payload:  # what could not be read at all has no key
        named = f"coalesce({named}, case when {ours}bad is not null then md5({ours}payload) end)"
    else:
        brought, content = f"null::varchar as {ours}bad, {packed(columns)} as {ours}payload, ", fingerprint(columns)
    con.execute(
        f"create or replace temp table __read as select *, row_number() over () as {ours}row, {brought}{named} as {ours}key, "
        f"left(md5({content}), 16) as {ours}hash, {gone} as {ours}gone, {gone_at} as {ours}gone_at from ({select})"
    )
    shown = ", ".join(f"{ours}{name} as __{name}" for name in _SHOWN)
    con.execute(f"create or replace temp view __staged as select {shown} from __read")


def find_news(con: duckdb.DuckDBPyConnection, source: str, table: str, label: str, exploded: bool = False) -> None:
    """Compare the staged lot with the lake: fill `__news` and `__lost`."""
    last = newest(source, table, label, exploded, among=f"select {quote(label + '/')} || __key from __staged")
    con.execute(
        "create or replace temp table __met as "
        f"select r.__row, r.__key, r.__hash, r.__gone, r.__gone_at, l.__last from __staged r left join ({last}) l using (__key)"
    )
    con.execute(
        f"create or replace temp table __news as select __row, {_tail('__key', '__last', '__hash')} as __n from __met "
        "where not __gone and right(__last, 16) is distinct from __hash"
    )
    con.execute(
        "create or replace temp table __lost as select __key, __last, __gone_at from __met "
        f"where __gone and right(__last, 16) <> {quote(GONE)}"
    )


def find_lost(con: duckdb.DuckDBPyConnection, source: str, table: str, label: str, exploded: bool = False) -> None:
    """Compare all keys that the source has (`__there`) with those of the lake: fill `__lost`. No row is news by this."""
    con.execute("create or replace temp table __news (__row bigint, __n varchar)")
    con.execute(
        f"create or replace temp table __lost as select __key, __last, null::timestamp as __gone_at from ({newest(source, table, label, exploded)}) "
        f"where right(__last, 16) <> {quote(GONE)} and __key not in (select __key from __there where __key is not null)"
    )


def place_of(position: str, exploded: bool) -> str:
    """SQL of `label/key`, out of the position of a row, or of one of its elements."""
    place = f"left({position}, -{_TAIL})"
    return f"regexp_replace({place}, '{IN_RECORD}$', '')" if exploded else place


def newest(source: str, table: str, label: str, exploded: bool = False, among: str | None = None) -> str:
    """A SELECT of `__key` and `__last` (`number.hash`): the newest version that the lake has of each key, if it is `among` some."""
    first = label + "/"
    # What begins with `label/` lies between it and what follows the slash: the lake skips files by that.
    of = _of(source, label)
    place = place_of("_position", exploded)
    # A version that was unloaded counts as deleted, and its number is taken.
    position = (
        f"case when {is_deleted(table, 't')} then left(_position, -16) || {quote(GONE)} else _position end as _position"
    )
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
    """SQL: whether a row came by an entry."""
    return f"_source = {quote(source)} and _position >= {quote(label + '/')} and _position < {quote(label + '0')}"


def _tail(key: str, last: str, digest: str) -> str:
    number = f"coalesce(left({last}, {_DIGITS})::int, 0) + 1"
    return f"{key} || '@' || printf('%0{_DIGITS}d', {number}) || '.' || {digest}"


def _named(key: Sequence[str]) -> str:
    """SQL of a row's key as JSON, by the names of its columns, out of `__key`."""
    parts = [
        f"{quote(name)}: " + ("__key" if len(key) == 1 else f"(__key::json)->>{at}") for at, name in enumerate(key)
    ]
    return f"to_json({{{', '.join(parts)}}})::varchar"


def deletions(
    source: str, table: str, label: str, key: Sequence[str], known: str | None, now: datetime, exploded: bool = False
) -> str:
    """The SELECT that lands `__lost` in raw.deletions, each with the ids of the version that the lake has of it. `known` is SQL of
    when the shop knew it; left out, it is now."""
    moment = timestamp_literal(now)
    prefix = quote(label + "/")
    available = f"least(coalesce({known}, {moment}), {moment})" if known else moment
    if exploded:  # each element that any version has
        return (
            f"select {quote(source)}, {_tail(f'left(_position, -{_TAIL})', '__last', quote(GONE))}, {quote(table)}, {_named(key)}, "
            f"{packed(IDENTITY[table])}, __gone_at, {moment}, {available} from __lost join (select *, "
            f"substr({place_of('_position', True)}, {len(label) + 2}) as __of from lake.raw.{table} as t where {_of(source, label)} "
            f"and not {is_deleted(table, 't')} qualify row_number() over (partition by left(_position, -{_TAIL}) order by _position desc) = 1) "
            "on __of = __key"
        )
    return (
        f"select {quote(source)}, {prefix} || {_tail('__key', '__last', quote(GONE))}, {quote(table)}, "
        f"{_named(key)}, {packed(IDENTITY[table])}, __gone_at, {moment}, {available} "
        f"from __lost join lake.raw.{table} as t on _source = {quote(source)} and _position = {prefix} || __key || '@' || __last "
        f"and not {is_deleted(table, 't')}"
    )


def vanished(source: str, table: str, label: str, key: Sequence[str], now: datetime) -> str:
    """The SELECT that lands in raw.deletions, once `__news` have landed, the elements of former versions of these rows that the new ones
    lack, by their ids. A version that could not be read lacks nothing."""
    moment = timestamp_literal(now)
    ids = ", ".join(f'"{name}"' for name in dict.fromkeys((*IDENTITY[table], "product_id")))
    return (
        f"with __new as (select left(__n, -{_TAIL}) as __key, right(__n, {_TAIL - 1}) as __tail from __news), "
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
