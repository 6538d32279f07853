"""`finegrain replay`: dead letters again, after a mend of the mapping, the seeds or the sender. Each lands once.

A letter that lands keeps the position that it had in the stream, and is noted in `raw.replayed` in the same transaction, so
another replay passes it by. One that cannot land still stays what it is. The letter itself is never removed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from orchestration import console, lake
from orchestration.errors import FinegrainError
from orchestration.lake import quote
from orchestration.settings import Settings, settings
from orchestration.stream.messages import LARGEST, Messages
from orchestration.stream.run import entry_of
from orchestration.stream.source import MESSAGES, Chunk

#: Letters that are taken at once.
AT_ONCE: Final = 50_000


@dataclass
class Replay:
    """What a replay did: of `letters` that were asked for, `rows` have landed; the others broke a rule again, by rule, or are left
    out by the mapping's `where`."""

    letters: int = 0
    rows: int = 0
    still_dead: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def replay(
    mapping: str | Path,
    table: str | None = None,
    *,
    rule: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    position: str | None = None,
    largest: int = LARGEST,
    where: Settings | None = None,
    quiet: bool = True,
) -> Replay:
    """Run the dead letters of a mapping's stream again: all, or those of a `rule`, that came `since` or before `until` (naive
    UTC), or at one `position` (as in raw.dead_letters). Raises FinegrainError."""
    where = where or settings()
    source, name, entry, zone, said = entry_of(mapping, table)
    done = Replay()
    con = lake.connect(where)
    try:
        messages = Messages(con, source, name, entry, zone, said, largest=largest)
        wanted = [
            f"d._source = {quote(source)}",
            f"d.place = {quote(messages.place)}",
            f"d.raw_table = {quote(name)}",
            "not exists (select 1 from lake.raw.replayed as r where r._source = d._source and r._position = d._position)",
        ]
        if rule is not None:
            known = {
                str(row[0])
                for row in con.execute(
                    f"select distinct rule_id from lake.raw.dead_letters as d where {' and '.join(wanted)}"
                ).fetchall()
            }
            if rule not in known:
                raise FinegrainError(
                    f"--rule {rule}: no dead letter of {messages.place} waits that broke it; "
                    f"there are {', '.join(sorted(known)) or 'none at all'}"
                )
            wanted.append(f"d.rule_id = {quote(rule)}")
        if since is not None:
            wanted.append(f"d._ingested_at >= timestamp {quote(since.isoformat(sep=' '))}")
        if until is not None:
            wanted.append(f"d._ingested_at < timestamp {quote(until.isoformat(sep=' '))}")
        if position is not None:
            wanted.append(f"d._position = {quote(position)}")
        [(total,)] = con.execute(
            f"select count(*) from lake.raw.dead_letters as d where {' and '.join(wanted)}"
        ).fetchall()
        after = ""
        with console.progress("replay", total, quiet=quiet) as advance:
            while True:
                count, last = lake.retry(
                    lambda after=after: _some(
                        con, where, messages, f"{' and '.join(wanted)} and d._position > {quote(after)}", done
                    )
                )
                if not count:
                    return done
                after = last
                advance(count, messages.place)
    finally:
        con.close()


def _some(con: Any, where: Settings, messages: Messages, wanted: str, done: Replay) -> tuple[int, str]:
    """Run some letters again, in one transaction; how many, and the position of the last."""
    with lake.writing(con, where):
        columns = ", ".join(f"d.{name}" for name in MESSAGES.names if name != "sent_at")
        found: pa.Table = con.execute(
            f"select {columns}, coalesce(epoch_ms(d.sent_at), -1) as sent_at, d._position as letter from lake.raw.dead_letters as d "
            f"where {wanted} order by d._position limit {AT_ONCE}"
        ).to_arrow_table()
        if not found.num_rows:
            return 0, ""
        table = found.select(MESSAGES.names).cast(MESSAGES)
        now = datetime.now(UTC).replace(tzinfo=None)
        landed = messages.land(Chunk(table.to_batches(), rows=table.num_rows), now, bury=False)
        con.execute(
            f"insert into lake.raw.replayed select {quote(messages.source)}, {quote(messages.name + '/')} || __n, "
            f"timestamp {quote(now.isoformat(sep=' '))} from judged where __why is null"
        )
    done.letters += found.num_rows
    done.rows += landed.rows
    for each, count in landed.dead.items():
        done.still_dead[each] = done.still_dead.get(each, 0) + count
    return found.num_rows, str(found.column("letter")[-1].as_py())
