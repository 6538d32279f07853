"""Metrics of streams by minute of arrival, and what is out of the ordinary in the newest closed ones.

The rows and dead letters of a stream are counted where they are: in the lake, into which the loader writes each of them exactly once, so the counts are exact, too.
Only the newest minutes are read. Those that are closed are kept in a file in the home, which may be deleted at any time: the counts of the last hour are then read
again, and those before it are missing (docs/decisions/0025-streams-are-counted-in-the-lake.md).

Counts have the shape of `int_metrics__daily`, and values that of `metric_history`, with a minute in place of a day. The rules are those of `seeds/metric_rules.csv` with
the grain `minute`.
"""

from __future__ import annotations

import hashlib
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import duckdb
from rich.console import Console
from rich.table import Table

from orchestration.config.project import seed, seed_file, variable
from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError, console
from orchestration.ingest.landing import macros
from orchestration.lake import lake
from orchestration.mapping.contracts import EVENT_TYPE, IN_RECORD, RAW_TABLES, given
from orchestration.quality.account import said
from orchestration.sql.text import identifier, quote, timestamp_literal

#: Batches are dated before they are committed: minutes are counted again for so long after their end.
LATE: Final = timedelta(minutes=3)
#: A minute is closed so long after its end.
CLOSED: Final = timedelta(seconds=1)
#: How far back rows are read if there is no file of earlier counts; and for how long counts are kept.
BACK: Final = timedelta(hours=1)
KEPT: Final = timedelta(days=8)
#: Of how many event types of a minute rows are counted, the most frequent ones; the rest count together.
TYPES: Final = 50
#: How many rows a visit has in a minute, roughly: chance moves a share as if there were fewer rows. Of the simulated shop's columns it is 0.8 to 2.6.
ROWS_PER_VISIT: Final = 3
#: Columns that say nothing about a sender: finegrain's own, and what is left over.
_NOT_COUNTED: Final = frozenset({"client_class", "property_currency", "properties"})

_SHAPE: Final = "minute timestamp, raw_table varchar, source varchar, place varchar, column_name varchar, state varchar, bucket varchar, n bigint"
#: The types of the columns of a rule, other than text.
_NUMBERS: Final = dict.fromkeys(("sensitivity", "min_change", "at_least", "at_most"), "double") | {"min_n": "bigint"}
_DAYS: Final = dict.fromkeys(("suppressed_from", "suppressed_until"), "date")


@dataclass(frozen=True)
class Minute:
    """The newest closed minute in which a stream had messages: rows and dead letters, by rule."""

    place: str
    source: str
    raw_table: str
    minute: datetime
    rows: int
    dead_letters: dict[str, int]


@dataclass(frozen=True)
class Streams:
    """What the closed minutes up to `until` (UTC) say. `minutes`: the newest one of each stream; `anomalies`: of the newest closed minutes, by minute, stream and owner, the
    newest first, in the shape of `account.anomalies`."""

    until: datetime
    minutes: list[Minute]
    anomalies: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def show(self, out: Console) -> None:
        """Print it as a table."""
        if not self.minutes:
            out.print("no message came by a stream in the minutes that are known")
            return
        table = Table("stream", "table", "minute (UTC)", "rows", "dead letters", box=None, pad_edge=False)
        for each in self.minutes:
            dead = ", ".join(f"{console.shown(rule)}: {count:,}" for rule, count in each.dead_letters.items())
            stream = console.shown(f"{each.source} from {each.place}")
            table.add_row(stream, each.raw_table, f"{each.minute:%Y-%m-%d %H:%M}", f"{each.rows:,}", dead or "none")
        out.print(table)
        for found in self.anomalies:
            values = "; ".join(said(value) for value in found["clearest"])
            line = f"{found['severity']}: {found['minute']:%H:%M} {found['source']}: {values} ({', '.join(found['rules'])}; {found['owner']})"
            out.print(console.shown(line), style="red" if found["severity"] == "error" else "yellow", markup=False)
        if not self.anomalies:
            out.print("nothing is out of the ordinary")


def streams(minutes: int, now: datetime, where: Settings | None = None) -> Streams:
    """Count what arrived in the closed minutes up to `now` (naive UTC), and compare the last `minutes` of them with those before. Raises FinegrainError."""
    where = where or settings()
    until = (now - CLOSED).replace(second=0, microsecond=0)
    if not lake.exists(where):
        return Streams(until, [], [])
    with lake.connect(where, read_only=True) as con:
        _count(con, until, where)
        found = anomalies(con, until, minutes)
        newest = con.execute(
            """select place, source, raw_table, minute, coalesce(sum(n) filter (state = 'rows'), 0)::bigint,
                map_from_entries(list((bucket, n) order by bucket) filter (state = 'dead_letters'))
            from states where state in ('rows', 'dead_letters')
            group by place, source, raw_table, minute
            qualify row_number() over (partition by place, source, raw_table order by minute desc) = 1 order by place, source, raw_table"""
        ).fetchall()
    return Streams(
        until,
        [Minute(place, source, table, minute, rows, dead or {}) for place, source, table, minute, rows, dead in newest],
        found,
    )


def _count(con: duckdb.DuckDBPyConnection, until: datetime, where: Settings) -> None:
    """Make the temporary table `states` of all minutes before `until` that are known, and keep them for the next time. Raises FinegrainError."""
    lake_id = hashlib.md5(str(where.lake_catalog).encode()).hexdigest()[:12]
    file = where.home / "streams" / f"{lake_id}.parquet"
    con.execute(f"create or replace temporary table states ({_SHAPE})")
    if file.exists():
        during = f"minute >= {timestamp_literal(until - KEPT)} and minute < {timestamp_literal(until)}"
        # A file of another version, or a damaged one, is no loss.
        with suppress(duckdb.Error):
            con.execute(f"insert into states by name select * from read_parquet({quote(str(file))}) where {during}")
    [(newest,)] = con.execute("select max(minute) from states").fetchall()
    since = until - BACK if newest is None else max(until - BACK, newest + timedelta(minutes=1) - LATE)
    con.execute(f"delete from states where minute >= {timestamp_literal(since)}")
    con.execute(f"insert into states by name {states(con, since, until)}")
    draft = file.with_name(f"{file.name}.{uuid.uuid4().hex}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        con.execute(f"copy states to {quote(str(draft))} (format parquet, compression zstd)")
        draft.replace(file)
    except (OSError, duckdb.IOException) as error:
        raise FinegrainError(f"{file}: the counts of streams cannot be kept: {str(error).splitlines()[0]}") from None
    finally:
        draft.unlink(missing_ok=True)


def states(con: duckdb.DuckDBPyConnection, since: datetime, until: datetime) -> str:
    """SQL of the counts of every minute between two times, of every stream of the lake: rows (`rows`), rows without a value by column (`nulls`), rows by event type
    (`labels`), and dead letters by rule (`dead_letters`). What `finegrain replay` brought back does not count: it is not what the sender sends now."""
    found = con.execute(
        "select distinct raw_table, source, place from lake.raw.positions "
        "where place similar to '(kafka|kinesis|folder):.*' order by all"
    ).fetchall()
    during = f"between {timestamp_literal(since)} and {timestamp_literal(until - timedelta(microseconds=1))}"
    parts = [
        "select date_trunc('minute', _ingested_at) as minute, raw_table, _source as source, place, 'row' as column_name, 'dead_letters' as state, rule_id as bucket, "
        f"count(*) as n from lake.raw.dead_letters where _ingested_at {during} group by all"
    ]
    for table in sorted({table for table, *_ in found if table in RAW_TABLES}):
        places = [(source, place) for of, source, place in found if of == table]
        parts += _states_of_table(table, places, during)
    return "\nunion all by name\n".join(f"({part})" for part in parts)


def _states_of_table(table: str, places: list[tuple[str, str]], during: str) -> list[str]:
    # A row's position begins with the name of its stream, so rows of files of the same source do not count.
    cases = " ".join(
        f"when _source = {quote(source)} and starts_with(_position, {quote(place.partition(':')[2] + '/')}) then {quote(place)}"
        for source, place in places
    )
    kinds = {name: kind for name, kind in RAW_TABLES[table].items() if name not in _NOT_COUNTED}
    values = {name: given(name, kind) for name, kind in kinds.items()}
    label = f"lower(trim({EVENT_TYPE[table]}))" if table in EVENT_TYPE else "null::varchar"
    keys = "minute, source, place"
    counted = f"""
        select date_trunc('minute', _ingested_at) as minute, _source as source, case {cases} end as place, {label} as label, count(*) as n,
            {", ".join(f"count(*) - count({value}) as {identifier(name)}" for name, value in values.items())}
        from lake.raw.{table} as r
        where _ingested_at {during} and case {cases} end is not null and not exists (
            select 1 from lake.raw.replayed as p
            where p.replayed_at {during} and p.raw_table = {quote(table)} and p._source = r._source
                and p._position = regexp_replace(r._position, {quote(IN_RECORD + "$")}, '')
        )
        group by all"""
    columns = ", ".join(map(identifier, values))
    shown = f"minute, {quote(table)} as raw_table, source, place"
    return [
        f"with counted as materialized ({counted}), "
        f"ranked as (select *, row_number() over (partition by {keys} order by n desc, label) as rank from counted) "
        f"select {shown}, 'row' as column_name, 'rows' as state, 'all' as bucket, sum(n)::bigint as n from counted group by {keys} "
        "union all by name "
        f"select {shown}, column_name, 'nulls' as state, 'all' as bucket, sum(missing)::bigint as n "
        f"from (unpivot (select * exclude (n) from counted) on {columns} into name column_name value missing) group by {keys}, column_name "
        "union all by name "
        f"select {shown}, {quote(EVENT_TYPE.get(table, ''))} as column_name, 'labels' as state, "
        f"case when rank <= {TYPES} then label else '(other)' end as bucket, sum(n)::bigint as n "
        f"from ranked where label is not null group by all"
    ]


def anomalies(con: duckdb.DuckDBPyConnection, until: datetime, minutes: int) -> list[dict[str, Any]]:
    """What is anomalous in the last `minutes` before `until`, by minute, stream and owner, from the temporary table `states`; without what is suppressed."""
    begin = until - timedelta(minutes=minutes)
    found = con.execute(
        f"""select
            minute, source || ' from ' || place as source, owner, min(severity) as severity, list(distinct rule_id order by rule_id) as rules,
            list(
                {{metric: metric, segment: segment, segment_value: segment_value, column_name: column_name, value: value, expected: expected, low: low, high: high}}
                order by abs(score) desc nulls last, rule_id, segment_value, column_name
            )[:3] as clearest
        from ({anomalous(con, f"minute >= {timestamp_literal(begin)} and minute < {timestamp_literal(until)}")})
        where not is_suppressed
        group by all order by minute desc, source, owner"""
    )
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def anomalous(con: duckdb.DuckDBPyConnection, tested: str) -> str:
    """SQL of the values that a rule takes for anomalous, like `metric_anomalies`. `tested`: SQL, which minutes are tested. Reads the temporary table `states`.

    A forecast is the median of the minutes before it (the var `stream_reference_minutes`), never of the minute itself. Where there are at least two earlier days, a value that is
    usual for them within five minutes of this time of the day is not anomalous either."""
    _rules(con)
    key = "source, raw_table, place"
    series = f"metric, {key}, segment, segment_value, column_name"
    variance = str(macros("metrics.sql").sampling_variance("metric", "overall", "n", ROWS_PER_VISIT))
    recent, warm_up = int(variable("stream_reference_minutes")), int(variable("stream_warm_up_minutes"))
    return f"""
        with minutes as materialized (
            select minute, {key}, coalesce(sum(n) filter (state = 'rows'), 0)::bigint as rows, coalesce(sum(n) filter (state = 'dead_letters'), 0)::bigint as dead
            from states group by minute, {key}
        ),
        -- A label or rule that a minute does not have has a share of zero in it.
        counts as (
            select m.minute, {", ".join(f"m.{each}" for each in key.split(", "))}, k.column_name, k.state, k.bucket, m.rows, m.dead, coalesce(s.n, 0) as n
            from minutes as m
            inner join (select distinct {key}, column_name, state, bucket from states where state <> 'rows') as k using ({key})
            left join states as s using (minute, {key}, column_name, state, bucket)
            where k.state <> 'nulls' or s.n is not null
        ),
        metrics as materialized (
            select 'completeness' as metric, minute, {key}, 'source' as segment, source as segment_value, column_name, 1 - n / rows as value, rows as n
            from counts where state = 'nulls' and rows > 0
            union all
            select 'type_share', minute, {key}, 'event_type', bucket, 'row', n / rows, rows from counts where state = 'labels' and rows > 0
            union all
            select 'dead_letter_share', minute, {key}, 'rule', bucket, 'row', n / (rows + dead), rows + dead from counts where state = 'dead_letters'
            union all
            select 'dead_letter_share', minute, {key}, 'source', source, 'row', dead / (rows + dead), rows + dead from minutes
        ),
        followed as (
            select m.*, r.* exclude (metric, raw_table, source, segment, column_name)
            from metrics as m
            inner join rules as r on m.metric = r.metric and m.raw_table like r.raw_table and m.source like r.source and m.segment = r.segment
                and m.column_name like r.column_name
            where {tested}
        ),
        -- How many minutes before a minute those are that it is compared with.
        ages as (
            select unnest(range(1, {recent + 1})) as age, false as is_of_days
            union all
            select 1440 * days.range + minutes.range, true from range(1, 8) as days, range(-5, 6) as minutes
        ),
        reference as (
            select f.minute, {", ".join(f"f.{each}" for each in series.split(", "))}, is_of_days, count(*) as minutes, count(distinct m.minute::date) as days,
                median(m.value) as expected, 1.4826 * mad(m.value) as usual_error, median(m.n) as usual_n,
                sum(m.value * m.n) / sum(m.n) as overall
            from (
                select minute, {series}, is_of_days, minute - to_minutes(age) as before
                from (select distinct minute, {series} from followed where method = 'forecast'), ages
            ) as f
            inner join metrics as m on m.minute = f.before and {" and ".join(f"m.{each} = f.{each}" for each in series.split(", "))}
            group by all
        ),
        forecasts as (
            -- In small minutes the median of a share is often 0 or 1, where chance seems to do nothing; that of all their rows is not.
            select f.*, r.is_of_days, r.minutes, r.days, r.usual_n, r.expected,
                greatest(sensitivity * spread, min_change) as margin, (value - r.expected) / nullif(spread, 0) as score
            from followed as f
            inner join reference as r using (minute, {series}), lateral (select greatest(usual_error, sqrt({variance})) as spread)
            where method = 'forecast'
        ),
        limits as (
            select rule_id, {series}, minute, any_value(value) as value, max(expected) filter (not is_of_days) as expected,
                min(expected - margin) as low, max(expected + margin) as high, max(score) filter (not is_of_days) as score,
                any_value(n) as n, max(usual_n) as usual_n, direction, min_n, severity, owner, suppressed_from, suppressed_until
            from forecasts
            where not is_of_days or (minutes >= 11 and days >= 2)
            group by rule_id, {series}, minute, direction, min_n, severity, owner, suppressed_from, suppressed_until
            having coalesce(max(minutes) filter (not is_of_days), 0) >= {warm_up}
            union all by name
            select rule_id, {series}, minute, value, at_least as low, at_most as high, n, direction, min_n, severity, owner, suppressed_from, suppressed_until
            from followed where method = 'static'
        )
        select rule_id, metric, raw_table as table_name, source, place, segment, segment_value, column_name, minute, value, expected,
            case when direction <> 'up' then low end as low, case when direction <> 'down' then high end as high, score, n, severity, owner,
            coalesce(minute::date between suppressed_from and suppressed_until, false) as is_suppressed
        from limits
        where ((direction <> 'up' and value < low) or (direction <> 'down' and value > high)) and greatest(n, coalesce(usual_n, 0)) >= min_n"""


def _rules(con: duckdb.DuckDBPyConnection) -> None:
    """Make the temporary table `rules` of the seed's rules of minutes. Raises FinegrainError."""
    rows = [row for row in seed("metric_rules") if row.get("grain") == "minute"]
    texts = (
        *("rule_id", "metric", "table_name", "source", "segment", "column_name"),
        *("method", "direction", "severity", "owner"),
    )
    kinds = dict.fromkeys(texts, "varchar") | _NUMBERS | _DAYS
    given = [[row.get(name) or None for name in kinds] for row in rows]
    columns = ", ".join(f"cast(r[{n}] as {kind}) as {name}" for n, (name, kind) in enumerate(kinds.items(), 1))
    try:
        con.execute(
            f"create or replace temporary table rules as select {columns} from (select unnest($rows::varchar[][]) as r)",
            {"rows": given},
        )
    except duckdb.Error as error:
        raise FinegrainError(
            f"{seed_file('metric_rules')}: a rule of minutes cannot be read: {str(error).splitlines()[0]}"
        ) from None
    con.execute("alter table rules rename table_name to raw_table")
