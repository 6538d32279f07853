"""`finegrain replay`: reprocess dead letters or quarantined rows after the mapping, the seeds or the sender were fixed. Each lands once, and
keeps its position in the stream.

A dead letter that lands is recorded in `raw.replayed` in the same transaction, so the next replay skips it; the dead letter itself is kept.
A quarantined row is mapped again from its payload. If the result differs, it lands and the former row is recorded as deleted
(`raw.deletions`), in one transaction; otherwise the row stays as it is. A changed rule needs no replay: the next build applies it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from orchestration.config.published import DATABASE, current
from orchestration.config.settings import Environment, Settings, settings
from orchestration.errors import FinegrainError, Unavailable, console
from orchestration.ingest import personal
from orchestration.ingest.deliveries import is_deleted, mark_deleted
from orchestration.ingest.stream import isolation
from orchestration.ingest.stream.isolation import Piece
from orchestration.ingest.stream.messages import Messages
from orchestration.ingest.stream.run import entry_of
from orchestration.lake import lake
from orchestration.mapping.contracts import IN_RECORD, RAW_TABLES
from orchestration.sources.bounds import Bounds
from orchestration.sources.streams import MESSAGES, Chunk, Unreachable
from orchestration.sql.text import identifier, quote, timestamp_literal

#: Dead letters per transaction.
AT_ONCE: Final = 50_000


@dataclass
class Replay:
    """The result of a replay: of those `asked` for, `rows` have landed and `unchanged` would come out the same. The others still break a rule of
    the stream (counted by rule), or are filtered by the mapping's `where`."""

    asked: int = 0
    rows: int = 0
    unchanged: int = 0
    still_dead: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def replay(
    mapping: str | Path,
    table: str | None = None,
    *,
    quarantined: bool = False,
    rule: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    position: str | None = None,
    bounds: Bounds | None = None,
    where: Settings | None = None,
    quiet: bool = True,
) -> Replay:
    """Reprocess the dead letters of a mapping's stream, or (`quarantined`) its rows in the published quarantine: all, or only those that broke a
    `rule`, that arrived `since` or before `until` (naive UTC), or at one `position` (as `_position` in the lake). Raises FinegrainError."""
    where = where or settings()
    source, name, entry, zone, said = entry_of(mapping, table)
    done = Replay()
    try:
        # Without the lock, two replays at once would take the same dead letters.
        with lake.exclusive(where, f"replay {source} {name}"), closing(lake.connect(where)) as con:
            personal.register(con, where)
            messages = Messages(con, source, name, entry, zone, said, bounds=bounds)
            asked = _quarantined(con, where, messages) if quarantined else _letters(messages)
            wanted = ["true"]
            if rule is not None:
                with lake.reading(where):
                    found = con.execute(f"select distinct unnest(rules) from ({asked}) order by 1").fetchall()
                known = [str(row[0]) for row in found]
                if rule not in known:
                    what = "quarantined row" if quarantined else "dead letter"
                    raise FinegrainError(
                        f"--rule {rule}: no {what} of {messages.stream_id} broke this rule and waits; rules with one: {', '.join(known) or 'none'}"
                    )
                wanted.append(f"list_contains(rules, {quote(rule)})")
            if since is not None:
                wanted.append(f"_ingested_at >= {timestamp_literal(since)}")
            if until is not None:
                wanted.append(f"_ingested_at < {timestamp_literal(until)}")
            if position is not None:
                wanted.append(f"_position = {quote(position)}")
            asked = f"select * from ({asked}) where {' and '.join(wanted)}"
            with lake.reading(where):
                [(total,)] = con.execute(f"select count(*) from ({asked})").fetchall()
            after = ""
            land = _land_changed if quarantined else _land_letters
            with console.progress("replay", total, quiet=quiet) as advance:
                while True:
                    some = f"{asked} and _position > {quote(after)} order by _position limit {AT_ONCE}"
                    count, last = lake.retry(partial(_some, con, where, messages, some, land, done))
                    if not count:
                        return done
                    after = last
                    advance(count, messages.stream_id)
    except Unreachable as trouble:
        raise Unavailable(f"{said}.stream: {trouble}; run this again later") from None


def _letters(messages: Messages) -> str:
    """SQL of the waiting dead letters: the columns `MESSAGES`, `_position`, `_ingested_at` and the broken `rules`."""
    return (
        f"select {_part_and_number('_position', messages)}, payload, coalesce(epoch_ms(sent_at), -1) as sent_at, key, headers, _position, "
        f"_ingested_at, [rule_id] as rules from ({_waiting(messages)}) "
        # What was read again (--from-beginning) is one message all the same.
        "qualify row_number() over (partition by _position order by _ingested_at desc) = 1"
    )


def _waiting(messages: Messages) -> str:
    return (
        "select d.* from lake.raw.dead_letters as d "
        f"where _source = {quote(messages.source)} and place = {quote(messages.stream_id)} and raw_table = {quote(messages.table)} and "
        f"{lake.IS_WAITING}"
    )


def _of_message(position: str) -> str:
    """SQL of a message's `_position`, made from that of a row, which may be an element of a list in the message."""
    return f"regexp_replace({position}, '{IN_RECORD}$', '')"


def _part_and_number(position: str, messages: Messages) -> str:
    """SQL: part (with the digest of its topic_id) and position, from a `_position`."""
    place = f"substr({_of_message(position)}, {len(messages.name) + 2})"
    return f"regexp_replace({place}, '/[^/]*$', '') as part, regexp_extract({place}, '[^/]*$') as position"


def _quarantined(con: duckdb.DuckDBPyConnection, where: Settings, messages: Messages) -> str:
    """SQL of the quarantined rows, with the same columns. They are taken from the published marts, which no build locks. Rows replayed since then
    are skipped."""
    folder = current(where)
    if folder is None:
        raise FinegrainError(
            f"nothing is published in {where.published}, so there is no list of quarantined rows; "
            "run `finegrain build` and `finegrain publish`"
        )
    source, table, begin = quote(messages.source), quote(messages.table), f"{messages.name}/"
    con.execute(f"attach {quote(str(folder / DATABASE))} as published (read_only)")
    con.execute(
        "create temp table quarantined as select position as _position, ingested_at as _ingested_at, reasons as rules "
        f"from published.quarantined_events where source = {source} and raw_table = {table} "
        f"and starts_with(position, {quote(begin)})"
    )
    con.execute("detach published")
    return (
        f"select {_part_and_number('r._position', messages)}, "
        "encode(r.payload) as payload, -1 as sent_at, null::blob as key, null::varchar as headers, r._position, r._ingested_at, "
        f"list_distinct(flatten(list(q.rules) over (partition by {_of_message('r._position')}))) as rules from lake.raw.{messages.table} as r inner join quarantined as q using (_position, _ingested_at) "
        f"where r._source = {source} and not {is_deleted(messages.table, 'r')} "
        # One row per message.
        f"qualify row_number() over (partition by {_of_message('r._position')} order by r._position) = 1"
    )


def _some(
    con: duckdb.DuckDBPyConnection,
    where: Settings,
    messages: Messages,
    asked: str,
    land: Callable[[Messages, Chunk, datetime, Replay], None],
    done: Replay,
) -> tuple[int, str]:
    """Reprocess one batch in one transaction. Returns its size and the position of the last one."""
    this = replace(done, still_dead={})
    with lake.writing(con, where):
        found: pa.Table = con.execute(asked).to_arrow_table()
        if not found.num_rows:
            return 0, ""
        table = found.select(MESSAGES.names).cast(MESSAGES)
        chunk = Chunk(table.to_batches(), rows=table.num_rows)
        # A deletion must be later than the row it deletes, even if the clock was set back.
        came = max(found.column("_ingested_at").to_pylist()) + timedelta(microseconds=1)
        now = max(datetime.now(UTC).replace(tzinfo=None), came)
        pieces = [Piece(chunk)]
        if any(isolation.RULE in rules for rules in found.column("rules").to_pylist()):
            # A message that crashed a loader would crash this process, too.
            pieces = isolation.pieces(messages, chunk, where.home / "tmp", Environment.read().stream_memory)
        for piece in pieces:
            if piece.why is not None:
                this.still_dead[isolation.RULE] = this.still_dead.get(isolation.RULE, 0) + 1
                continue
            messages.validate(piece.messages)
            land(messages, piece.messages, now, this)
    done.asked, done.rows, done.unchanged = this.asked + found.num_rows, this.rows, this.unchanged
    for each, count in this.still_dead.items():
        done.still_dead[each] = done.still_dead.get(each, 0) + count
    return found.num_rows, str(found.column("_position")[-1].as_py())


def _land_letters(messages: Messages, letters: Chunk, now: datetime, done: Replay) -> None:
    landed = messages.land(letters, now, dead_letter=False)
    messages.con.execute(
        f"insert into lake.raw.replayed select _source, _position, raw_table, _ingested_at, {timestamp_literal(now)} "
        f"from ({_waiting(messages)}) where _position in "
        f"(select {quote(messages.name + '/')} || {messages.message} from validated where __why is null)"
    )
    done.rows += landed.rows
    for rule, count in landed.dead.items():
        done.still_dead[rule] = done.still_dead.get(rule, 0) + count


def _land_changed(messages: Messages, rows: Chunk, now: datetime, done: Replay) -> None:
    con, table = messages.con, messages.table
    good, parameters = messages.good(now)
    con.execute(f"create or replace temp table again as {good}", parameters)
    of_source = f"_source = {quote(messages.source)}"
    con.execute(
        f"create or replace temp table changed as select * from again where _position not in (select again._position from again "
        f"inner join lake.raw.{table} as r on r._position = again._position and r.{of_source} and not {is_deleted(table, 'r')} "
        f"where ({', '.join(f'again.{identifier(name)}' for name in RAW_TABLES[table])}) "
        f"is not distinct from ({', '.join(f'r.{identifier(name)}' for name in RAW_TABLES[table])}))"
    )
    mark_deleted(con, messages.source, table, "changed", now)
    [(landed,)] = con.execute(f"insert into lake.raw.{table} select * from changed").fetchall()
    [(good_rows,)] = con.execute("select count(*) from again").fetchall()
    done.rows += landed
    done.unchanged += good_rows - landed
    done.still_dead = messages.dead()
