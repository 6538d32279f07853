"""Validates stream messages: each becomes a row of its raw table, or a dead letter that keeps the whole message and the reason.

A batch is validated by SQL. The contract of the raw table is enforced here, message by message, because no sender of a stream would read a
report. Only messages the models could not use become dead letters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from orchestration.config.project import seed
from orchestration.ingest import landing, personal
from orchestration.mapping import contracts
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.mapping.mapping import REQUIRED, Table
from orchestration.sources import columns
from orchestration.sources.bounds import Bounds, beyond
from orchestration.sources.registry import Registry, without_registry
from orchestration.sources.streams import Chunk
from orchestration.sql.text import exact_numbers, free_prefix, identifier, quote, timestamp_literal

#: The last valid time in ms since 1970: the end of the year 9999. The sender of a message sets its time, so it may be anything.
_LAST_MS: Final = 253_402_300_799_999
#: Dots examined at once, so that a payload full of dots does not take much memory.
DOTS: Final = 2**16
#: Unknown keys that are reported by name per batch.
NAMED: Final = 100
#: Up to this many unknown keys are searched for one by one in a message's own properties.
FEW: Final = 10


@dataclass
class BatchResult:
    """The result of a batch: rows landed, dead letters by rule, and messages with unknown keys, by key. The rest was filtered by the mapping's
    `where`. `types` are the rows by event type, `nulls` those without a value by mapped field. `delay` is the seconds from the median event to now."""

    rows: int = 0
    dead: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    nulls: dict[str, int] = field(default_factory=dict)
    delay: float | None = None

    def add(self, other: BatchResult) -> None:
        """Add the result of another piece of the same batch."""
        self.rows += other.rows
        for mine, theirs in (
            (self.dead, other.dead),
            (self.unknown, other.unknown),
            (self.types, other.types),
            (self.nulls, other.nulls),
        ):
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + count
        self.delay = other.delay if other.delay is not None else self.delay


class Messages:
    """Validates and lands the messages of one stream. `name` is the prefix of their positions, `where` names the mapping in errors."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        source: str,
        table: str,
        entry: Table,
        zone: str,
        where: str,
        *,
        bounds: Bounds | None = None,
    ) -> None:
        assert entry.stream is not None
        #: The arguments for creating the same object on another connection.
        self.given = (source, table, entry, zone, where)
        self.con, self.source, self.table = con, source, table
        self.stream_id = entry.stream.stream_id
        self.name = self.stream_id.partition(":")[2]
        self.registry = Registry(entry.stream, where) if entry.stream.registry is not None else None
        if not entry.fields:
            entry = entry.reading(RAW_TABLES[table])
        self.entry = entry
        self.bounds = bounds or Bounds()
        self.known = landing.read_columns(table, entry, [])
        #: Messages of the batch with unknown keys, by key; at most one more than `NAMED`.
        self.unknown: dict[str, int] = {}
        columns.check_case(self.known, f"{where}: the mapping")
        #: SQL: the unique id of a message within the stream.
        self._number = _number(None)
        got = ", ".join(f"__row.{identifier(name)} as {identifier(name)}" for name in self.known)
        own = free_prefix(self.known)
        opened = landing.Opened(
            self.stream_id,
            dict.fromkeys(self.known, "VARCHAR"),
            f"(select {got}, __n as {own}n, __kept as {own}kept, why as {own}bad, line as {own}payload from parsed)",
            tuple(self.known),
            along=("kept",),
        )
        self.bound = landing.bind_opened(con, opened, table, entry, zone, where)
        #: The column of bound rows with the id of their message; a message may have several rows, one per element of a list.
        self.message = "__n" if entry.explode is None else "__record"
        self.rules, self.clear = self._rules()
        #: The decoded messages of the batch, if a registry decodes them.
        self._decoded: pa.Table | None = None

    def validate(self, batch: Chunk, topic_id: str | None = None) -> None:
        """Validate a batch into the temporary table `validated`; nothing is written yet. Positions contain a digest of `topic_id`, so that those of a
        recreated stream differ."""
        if not len(batch):
            return
        self._number = _number(topic_id)
        table = batch.table
        if self.registry is not None:
            table, text = self.registry.decode(table, self.bounds.size), "text"
            self._decoded = table
        else:
            try:
                # The cast keeps the bytes, and Arrow checks them ten times faster than DuckDB.
                table, text = table.append_column("text", table["payload"].cast(pa.string())), "text"
            except pa.ArrowInvalid:
                text = "try(decode(payload))"
        read = table["payload" if self.registry is None else "text"]
        table = table.append_column("beyond", beyond(read, self.bounds))
        # Messages out of bounds are not parsed as JSON at all.
        line = f"case when beyond is null then {text} end"
        self.con.register("batch", table)
        try:
            self.unknown = self._unknown(line)
            parsed, parameters = self._parsed(line, has_long_numbers(read))
            self.con.execute(
                f"create or replace temporary table validated as with parsed as not materialized ({parsed}) "
                f"select *, {self.clear} as __clear, null::varchar as __why from ({self.bound.rows})",
                parameters,
            )
        finally:
            self.con.unregister("batch")
        [(unclear,)] = self.con.execute("select count(*) from validated where __clear is not true").fetchall()
        if unclear:
            # Planning the rules takes as long as planning everything else, so they run only if needed.
            self.con.execute(
                "create or replace temporary table validated as select * replace "
                f"(case when __clear then null {self.rules} end as __why) from validated"
            )
            if self.message != "__n":
                # A message lands as a whole: an error in one of its rows applies to all.
                self.con.execute(
                    "create or replace temporary table validated as select * replace "
                    "(min(__why) over (partition by __record) as __why) from validated"
                )

    def _unknown(self, line: str) -> dict[str, int]:
        """The number of messages of the batch with unknown keys, by key."""
        found = self.con.execute(
            f"select key, count(*) from (select unnest(try(json_keys({line}))) as key from batch) "
            f"where not list_contains({self._known()}, key) group by key order by count(*) desc, key limit {NAMED + 1}"
        ).fetchall()
        return {str(key): int(count) for key, count in found}

    def _known(self) -> str:
        """SQL: the keys that the mapping reads, as a list."""
        return f"[{', '.join(map(quote, self.known))}]::varchar[]"

    def _parsed(self, line: str, has_long_numbers: bool) -> tuple[str, dict[str, str | list[str]]]:
        """SQL of the parsed messages, and its parameters: `__n`, `line`, `__row` (the fields the mapping reads), `why` (the reason if there is no
        row), and `__kept` (the other keys, as the text of a JSON object)."""
        shape = dict.fromkeys(self.known, "VARCHAR")
        names = {name.lower() for name in (*self.known, *self.unknown)}
        parameters: dict[str, str | list[str]] = {}
        if not self.unknown or "properties" not in RAW_TABLES[self.table]:
            kept = "null::varchar"
        elif len(self.unknown) <= NAMED and len(names) == len(self.known) + len(self.unknown) and "" not in names:
            # In the same parse.
            shape |= dict.fromkeys(self.unknown, "JSON")
            # A struct cannot distinguish a null from a missing key; this is checked only if the text contains "null".
            members = ", ".join(
                f"$names[{n}] || coalesce(struct_extract_at(__row, {len(self.known) + n})::varchar, "
                f"case when contains(line, 'null') and json_exists(line, $paths[{n}]) then 'null' end)"
                for n in range(1, len(self.unknown) + 1)
            )
            kept = f"'{{' || concat_ws(',', {members}) || '}}'"
            parameters["names"] = [json.dumps(key, ensure_ascii=False) + ":" for key in self.unknown]
            parameters["paths"] = ["/" + key.replace("~", "~0").replace("/", "~1") for key in self.unknown]
        else:
            # Too many keys, or keys that a struct cannot distinguish.
            keys = f"list_distinct(list_filter(json_keys(line), lambda k: not list_contains({self._known()}, k)))"
            # As a JSON pointer, which any key can be.
            value = "json_extract(line, '/' || replace(replace(k, '~', '~0'), '/', '~1'))"
            entries = f"list_transform({keys}, lambda k: {{'k': k, 'v': {value}}})"
            kept = f"case when __row is not null then to_json(map_from_entries({entries}))::varchar end"
        undecoded = without_registry("payload") if self.registry is None else "undecoded"
        exact = exact_numbers("line") if has_long_numbers else "line"
        # Only projections: a filter would be pushed down, and messages would be parsed twice.
        parsed = f"""
            select *, {kept} as __kept, case
                when __row is not null and starts_with(line, '{{') then null
                when is_empty then 'empty: it has no payload'
                when size > {self.bounds.size} then 'over_size: it has ' || size || ' bytes, of at most {self.bounds.size}'
                when beyond is not null then beyond
                when {undecoded} is not null then {undecoded}
                when line is null then 'not_utf8: its bytes are not UTF-8 text'
                when not json_valid(line) then 'not_json: it is not JSON'
                when json_type(line) <> 'OBJECT' then 'not_json: it is ' || lower(json_type(line)) || ', not a JSON object'
            end as why
            from (
                select *, try(from_json({exact}, $shape)) as __row
                from (
                    select {self._number} as __n, payload is null as is_empty, octet_length(payload) as size, {line} as line, beyond,
                        {"payload" if self.registry is None else "undecoded"}
                    from batch
                ))"""
        return parsed, parameters | {"shape": json.dumps(shape)}

    def land(self, batch: Chunk, now: datetime, *, dead_letter: bool = True) -> BatchResult:
        """Within a writing transaction, land a validated batch: each message becomes a row or a dead letter, or is filtered by `where`. Without
        `dead_letter`, dead letters are counted but not stored."""
        done = BatchResult()
        if not len(batch):
            return done
        done.unknown = dict(list(self.unknown.items())[:NAMED])
        good, parameters = self.good(now)
        [(done.rows,)] = self.con.execute(f"insert into lake.raw.{self.table} {good}", parameters).fetchall()
        if done.rows < len(batch) or self.message != "__n":
            if dead_letter:
                self._dead_letter(batch, now, self.bound.fields)
            done.dead = self.dead()
        if done.rows:
            done.types, done.nulls = self._counts()
        if done.rows and "event_at" in self.bound.fields:
            moment = landing.parse_time("event_at", quote(self.bound.zone))
            [(done.delay,)] = self.con.execute(
                f"select median(epoch({timestamp_literal(now)} - {moment})) "
                "from (select event_at from validated where __why is null limit 1000)"
            ).fetchall()
        return done

    def good(self, now: datetime) -> tuple[str, dict[str, list[str]]]:
        """SQL of the valid messages as rows of their raw table, arriving `now`; and its parameters."""
        good = replace(self.bound, rows="select * exclude (__clear, __why) from validated where __why is null")
        parameters: dict[str, list[str]] = {}
        if self.unknown and "properties" in RAW_TABLES[self.table]:
            good, parameters = self._with_unknown(good)
        position = f"{quote(self.name + '/')} || __n"
        return landing.select(good, self.source, position, now, are_good=True), parameters

    def _rules(self) -> tuple[str, str]:
        """SQL over bound rows: CASE branches that return the broken rule and a sentence about it; and a fast condition that is true only for messages
        that break no rule."""
        cases = ["when __bad like '%: %' then __bad", "when __bad is not null then 'mapping: ' || __bad"]
        # A cheap test that most messages pass, so that DuckDB need not evaluate all rules for each of them.
        clear = ["__bad is null"]
        for names in REQUIRED[self.table]:
            there = [name for name in names if name in self.bound.fields]
            empty = " and ".join(f"nullif(trim({identifier(name)}), '') is null" for name in there)
            said = "missing_field: it has no " + " and no ".join(names)
            cases.append(f"when {empty} then {quote(said)}")
            # The first character is ASCII and not a space.
            clear.append("(" + " or ".join(f"{identifier(name)} between '!' and '~'" for name in there) + ")")
        for name, source in self.entry.fields.items():
            if source.column is None or name == "properties" or source.column in self.bound.opened.types:
                continue
            # A string may start with a bracket, too.
            column, key = identifier(name), "/" + source.column.replace("~", "~0").replace("/", "~1")
            nested = f"(starts_with({column}, '{{') or starts_with({column}, '[')) and json_type(__payload, {quote(key)}) in ('OBJECT', 'ARRAY')"
            hint = f"; extract a value from it, as in {name}: {{sql: \"{source.column}->>'$.id'\"}}"
            said = f"{quote(f'wrong_type: {name} is an object or a list: ')} || left({column}, 60) || {quote(hint)}"
            cases.append(f"when {nested} then {said}")
            if not (
                contracts.is_time(name) or name in landing.NUMBERS or name == "event_type"
            ):  # these are looked at more closely
                clear.append(f"({column} is null or {column} < '[' or {column} between '\\' and 'z~')")
        for name in self.bound.fields:
            column, text = identifier(name), f"nullif(trim({identifier(name)}), '')"
            if contracts.is_time(name):
                is_bad, what = f"{landing.parse_time(text, quote(self.bound.zone))} is null", "not a time"
                clear.append(f"({column} is null or {landing.is_plain_time(column)})")
            elif name in landing.NUMBERS:
                is_bad, what = f"try_cast({text} as double) is null", "not a number"
                is_bad += f" or not isfinite(try_cast({text} as double))"
                clear.append(f"({column} is null or isfinite(try_cast({column} as double)))")
            else:
                continue
            said = quote(f"wrong_type: {name} is {what}: ")
            cases.append(f"when {text} is not null and ({is_bad}) then {said} || left({column}, 60)")
        if self.table == "events":
            spelled = landing.macros("fields.sql").event_spelling
            raw_names = ", ".join(map(quote, sorted(_event_types())))
            kinds = f"list_transform([{raw_names}], lambda kind: {spelled('kind')})"
            cases.append(
                f"when not list_contains({kinds}, {spelled('trim(event_type)')}) then 'unknown_event: ' || left(event_type, 60) || "
                "' is not in seeds/event_types.csv'"
            )
            clear.append(f"list_contains({kinds}, {spelled('event_type')})")
        return " ".join(cases), " and ".join(clear)

    def _with_unknown(self, good: landing.Bound) -> tuple[landing.Bound, dict[str, list[str]]]:
        """The valid rows with unknown keys merged into `properties`; and the parameters of their SQL."""
        is_mapped = "properties" in good.fields
        mapped = "properties" if is_mapped else "null::varchar"
        cases = [f"when __kept = '{{}}' then {mapped}", f"when {mapped} is null then __kept"]
        parameters: dict[str, list[str]] = {}
        if is_mapped and len(self.unknown) <= FEW:
            # Two objects without a common key are joined as text, without parsing them again.
            apart = "".join(f" and not contains({mapped}, $keys[{n}])" for n in range(1, len(self.unknown) + 1))
            cases.append(
                f"when starts_with({mapped}, '{{\"') and ends_with({mapped}, '}}') and not contains({mapped}, '\\'){apart} "
                f"and json_valid({mapped}) then __kept[:-2] || ',' || {mapped}[2:]"
            )
            parameters["keys"] = [json.dumps(key, ensure_ascii=False) for key in self.unknown]
        joined = (
            f"case {' '.join(cases)} "
            f"when json_valid({mapped}) and json_type({mapped}) = 'OBJECT' then json_merge_patch(__kept, {mapped})::varchar "
            f"else json_merge_patch(__kept, json_object('properties', {mapped}))::varchar end"
        )
        others = "* exclude (properties)" if is_mapped else "*"
        joined_rows = replace(
            good,
            rows=f"select {others}, {joined} as properties from ({good.rows})",
            fields=good.fields if is_mapped else (*good.fields, "properties"),
        )
        return joined_rows, parameters

    def _counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """The valid rows by event type, and the nulls by mapped field."""
        label = contracts.EVENT_TYPE.get(self.table)
        fields = self.bound.fields
        counts = ", ".join(f"count({identifier(name)})" for name in fields)
        found = self.con.execute(
            f"select {label if label in fields else 'null'} as label, count(*), {counts} from validated where __why is null group by label order by 2 desc, 1"
        ).fetchall()
        types = {str(kind).strip().lower(): 0 for kind, *_ in found if kind is not None}
        nulls = dict.fromkeys(fields, 0)
        for kind, rows, *values in found:
            if kind is not None:
                types[str(kind).strip().lower()] += rows
            for name, count in zip(fields, values, strict=True):
                nulls[name] += rows - count
        return types, nulls

    def _dead_letter(self, batch: Chunk, now: datetime, fields: Sequence[str]) -> None:
        """Store the messages that break a rule as dead letters, without personal data. A message that had to be changed is stored as the JSON text that
        the registry decoded. `fields` are those that were read of them, by which forgotten people are found."""
        moment = timestamp_literal(now)
        is_decoded = self._decoded is not None and len(self._decoded) == len(batch)
        self.con.register("batch", self._decoded if is_decoded else batch.table)
        policy = self.entry.policy
        text = "text" if is_decoded else "try(decode(payload))"
        clean = personal.text(text, policy, self.table, is_json=True)
        payload = f"case when __text is null then {personal.binary('payload', policy)} when __clean = __text then payload else encode(__clean) end"
        key, headers, error = (
            personal.text(value, policy, self.table, is_json=False) for value in ("try(decode(key))", "headers", "why")
        )
        ids = [name for name in fields if name in contracts.IDS]
        bad = landing.without_personal(self.bound, "select * from validated where __why is not null", ids)
        self.con.execute(
            f"""insert into lake.raw.dead_letters
            select {quote(self.source)}, {quote(self.name + "/")} || __of, {quote(self.table)}, {quote(self.stream_id)}, part, position,
                case when not is_forgotten then {payload} end,
                case when not is_forgotten then coalesce(encode({key}), {personal.binary("key", policy)}) end,
                case when not is_forgotten then {headers} end,
                rule_id, case when is_forgotten then {quote(landing.FORGOTTEN)} else ({error})[len(rule_id) + 3:] end,
                case when sent_at between 0 and {_LAST_MS} then make_timestamp(sent_at * 1000) end, {moment}
            from (select *, {text} as __text, {clean} as __clean from batch)
            inner join (
                select {self.message} as __of, any_value(__why) as why, split_part(why, ': ', 1) as rule_id,
                    bool_or(__forgotten is not null) as is_forgotten from ({landing.guarded(self.table, fields, bad)}) group by 1
            ) on {self._number} = __of"""
        )
        self.con.unregister("batch")

    def dead_letter_all(self, batch: Chunk, why: str, now: datetime, topic_id: str | None = None) -> BatchResult:
        """Within a writing transaction, turn every message of a batch into a dead letter without parsing it; `why` is the rule and a sentence."""
        self._number, self._decoded = _number(topic_id), None
        self.con.register("batch", batch.table)
        self.con.execute(
            f"create or replace temporary table validated as select {self._number} as {self.message}, {quote(why)} as __why from batch"
        )
        self.con.unregister("batch")
        self._dead_letter(batch, now, ())
        return BatchResult(dead=self.dead())

    def dead(self) -> dict[str, int]:
        """The number of validated messages that break each rule."""
        found = self.con.execute(
            f"select split_part(__why, ': ', 1), count(distinct {self.message}) from validated where __why is not null group by 1 order by 1"
        ).fetchall()
        return {str(rule): int(count) for rule, count in found}


def _number(topic_id: str | None) -> str:
    """SQL of a message's partition and position, with a digest of the topic id."""
    tag = "" if topic_id is None else f"@{hashlib.md5(topic_id.encode()).hexdigest()[:8]}"
    return f"part || {quote(f'{tag}/')} || position"


def has_long_numbers(payloads: pa.ChunkedArray) -> bool:
    """Whether there may be a decimal number of 16 digits or more, which few batches have. A regular expression would take longer than DuckDB takes
    to parse the messages."""
    for chunk in payloads.chunks:
        held = chunk.buffers()[2]
        if held is None or held.size < 18:
            continue
        text = np.frombuffer(held, np.uint8)
        is_digit = (np.arange(256) >= ord("0")) & (np.arange(256) <= ord("9"))
        last = len(text) - 1
        dots = np.flatnonzero(text == ord("."))
        dots = dots[is_digit[text[np.maximum(dots - 9, 0)]] | is_digit[text[np.minimum(dots + 8, last)]]]
        around = np.arange(1, 17)
        for some in np.split(dots, range(DOTS, len(dots), DOTS)):
            before = is_digit[text[np.maximum(some[:, None] - around, 0)]].cumprod(axis=1).sum(axis=1)
            after = is_digit[text[np.minimum(some[:, None] + around, last)]].cumprod(axis=1).sum(axis=1)
            if bool(((before > 0) & (after > 0) & (before + after >= 16)).any()):
                return True
    return False


def _event_types() -> set[str]:
    return {row["raw_name"] for row in seed("event_types")}
