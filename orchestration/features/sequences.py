"""Sequences: the last events of a customer or session before each row of a spine, as lists with the oldest first.

They are computed for each spine rather than kept as a mart: how many events, and of which types, is the choice of a model, and a table with the last events of
every customer would be written again by every build. Which events a row sees is the rule of the features
(models/intermediate/features/int_features__customer_events.sql and int_features__session_events.sql).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import yaml

from orchestration.config.project import PROJECT
from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError, console
from orchestration.features import vocabulary
from orchestration.features.catalog import declared
from orchestration.features.exports import ABOUT, Export, of_types, opened_for
from orchestration.features.spines import AS_OF, about, read, source_of
from orchestration.features.training import check_moments, keys_of
from orchestration.features.written import made_from
from orchestration.sql.text import identifier, quote
from orchestration.warehouse.compiled import EVENTS_OF

#: Events of lists that are in memory at once: rows of a spine are computed in parts of so many, divided by the length of a list.
EVENTS: Final = 1_000_000
#: Parquet in parts of so many rows, since each row has lists: DuckDB keeps one in memory for each thread. Its least is 2,048.
GROUP: Final = 10_000
#: What is encoded, as (column of an event, list of values, list of codes).
ENCODED: Final = (
    ("product_id", "product_ids", "product_codes"),
    ("category", "categories", "category_codes"),
    ("event_type", "event_types", "event_type_codes"),
)
#: The columns that are added to a spine.
LISTS: Final = (*(name for _, *names in ENCODED for name in names), "event_times", "seconds_since_previous")
FILE: Final = "sequences.parquet"


def sequences(
    out: Path,
    *,
    spine: Path | None = None,
    query: str | None = None,
    label: str | None = None,
    of: str | None = None,
    events: Sequence[str] = (),
    last: int = 50,
    earlier: Path | None = None,
    trust_event_time: bool = False,
    where: Settings | None = None,
    project: Path = PROJECT,
    part: int | None = None,
    arguments: Sequence[str] = (),
    quiet: bool = True,
) -> Export:
    """Write the rows of a spine with the `last` events before each into `sequences.parquet` in the folder `out`, sorted by as_of, with the vocabularies beside it.

    The spine is as in `training_set`. Events are those of the key `of`, customer_id or session_id (by default the one that the spine has, or customer_id), and of
    the types `events`, by default all that are about a product. Of each there are lists of the same length, the oldest first: VARCHAR `product_ids`, `categories`,
    `event_types`, BIGINT codes of these from 1 (`product_codes` …; 0 where there is none), TIMESTAMP `event_times` in UTC, and DOUBLE `seconds_since_previous`,
    null of the first. A code is that of the vocabulary plus 1, so that 0 is free for padding. `arguments` are further ones of dbt. Raises FinegrainError."""
    where = where or settings()
    started = datetime.now(UTC)
    if last < 1:
        raise FinegrainError(f"--last is {last}; give the number of events to keep, at least 1")
    vocabulary.must_have_one(earlier, [column for column, *_ in ENCODED])
    with opened_for(out, where, project, arguments, trust_event_time=trust_event_time) as (opened, models, folder):
        con = opened.con
        source, rows = source_of(where, spine, query, folder, project)
        keys = sorted({key for mart in declared(project) for key in keys_of(mart)})
        spine_read = read(con, source, rows, keys, label)
        key = _key(source, spine_read.keys, of)
        if taken := sorted({*LISTS, "place"}.intersection(spine_read.labels)):
            raise FinegrainError(
                f"{source}: the export has a column {taken[0]} of its own; give that column another name"
            )
        check_moments(con, spine_read)
        wanted = of_types(con, events) if events else "product_id is not null"
        order = ", ".join(map(identifier, (AS_OF, *spine_read.keys)))
        con.execute(f"create temp table placed as select *, row_number() over (order by {order}) as place from spine")
        part = part or max(EVENTS // last, 1)
        ranges = [f"place > {begin} and place <= {begin + part}" for begin in range(0, spine_read.rows, part)]
        model = EVENTS_OF[key]
        with console.progress("sequences", 2 * len(ranges), quiet=quiet) as advance:
            for number, some in enumerate(ranges):
                table = opened.ask([model], {key: f"select {key}, as_of from placed where {some}"}, as_views=True)[
                    model
                ]
                con.execute(
                    f"copy (select {key}, as_of, event_at, event_id, product_id, category, event_type from {table} where {wanted} qualify "
                    f"row_number() over (partition by {key}, as_of order by event_at desc, event_id desc) <= {last}) "
                    f"to {quote(str(_draft(folder, 'events', number)))} (format parquet, compression zstd)"
                )
                advance(1, f"events of part {number + 1} of {len(ranges)}")
            found = f"read_parquet({quote(str(folder / 'events-*.parquet'))})"
            codes = {
                column: vocabulary.encode(
                    con, column, f"select distinct {column} as value, 0 as place from {found}", earlier
                )
                for column, *_ in ENCODED
            }
            con.execute("set preserve_insertion_order = true")
            written = f"format parquet, compression zstd, row_group_size {GROUP}"
            for number, some in enumerate(ranges):
                con.execute(
                    f"copy ({_listed(key, _draft(folder, 'events', number), codes, some)}) "
                    f"to {quote(str(_draft(folder, 'lists', number)))} ({written})"
                )
                _draft(folder, "events", number).unlink()
                advance(1, f"lists of part {number + 1} of {len(ranges)}")
        lists = [str(_draft(folder, "lists", number)) for number in range(len(ranges))]
        file = quote(str(folder / "out" / FILE))
        con.execute(f"copy (from read_parquet({lists})) to {file} ({written})")
        [(empty,)] = con.execute(f"select count(*) from {file} where len(event_times) = 0").fetchall()
        sizes = {column: vocabulary.write(con, column, table, folder / "out") for column, table in codes.items()}
        done = Export(
            out,
            {FILE: spine_read.rows},
            sizes,
            {"rows have no event before them: their lists are empty": int(empty)} if empty else {},
            opened.built_from,
            (datetime.now(UTC) - started).total_seconds(),
        )
        said = {
            **made_from(models, opened.built_from),
            "spine": about(con, spine_read),
            "of": key,
            "events": list(events) or "those about a product",
            "last": last,
            "trust_event_time": trust_event_time,
            "vocabulary": str(earlier) if earlier else None,
            "files": done.files,
            "vocabularies": sizes,
            "rows_without_an_event": int(empty),
        }
        (folder / "out" / ABOUT).write_text(yaml.safe_dump(said, sort_keys=False), "utf-8")
    return done


def _key(source: str, keys: Sequence[str], of: str | None) -> str:
    """Whose events a sequence is of."""
    has = [key for key in EVENTS_OF if key in keys]
    if of is not None and of not in EVENTS_OF:
        raise FinegrainError(f"--of is {of}; a sequence is of a {' or a '.join(EVENTS_OF)}")
    if not has or (of is not None and of not in has):
        raise FinegrainError(
            f"{source}: a sequence is of a {of or ' or a '.join(EVENTS_OF)}, which the spine has no column of; add it"
        )
    return of or has[0]


def _draft(folder: Path, what: str, number: int) -> Path:
    return folder / f"{what}-{number:06}.parquet"


def _listed(key: str, events: Path, codes: dict[str, str], some: str) -> str:
    """The query of some rows of `placed` with their lists, from the file with their events."""
    joins = " ".join(
        f"left join {table} as {identifier('of ' + column)} on e.{column} = {identifier('of ' + column)}.value"
        for column, table in codes.items()
    )
    coded = ", ".join(f"coalesce({identifier('of ' + column)}.code + 1, 0) as {column}_code" for column in codes)
    fields = ["event_at", "event_id", *(f"{column}{end}" for column in codes for end in ("", "_code"))]
    # Sorted afterwards, by their first two fields: an aggregate with an order holds tens of kilobytes for each group.
    events_of = f"list_sort(list({{{', '.join(f'{quote(each)}: {each}' for each in fields)}}}))"
    lists = ", ".join(
        f"coalesce([x.{column} for x in l.events], []) as {values}, coalesce([x.{column}_code for x in l.events], []) as {numbers}"
        for column, values, numbers in ENCODED
    )
    return (
        f"with coded as (select e.*, {coded} from read_parquet({quote(str(events))}) as e {joins}), "
        f"listed as (select {key}, as_of, {events_of} as events from coded group by {key}, as_of) "
        f"select p.* exclude (spine_row, place), {lists}, coalesce([x.event_at for x in l.events], []) as event_times, "
        "coalesce(list_transform(l.events, lambda x, i: (epoch_us(x.event_at) - epoch_us(l.events[i - 1].event_at)) / 1e6), []) as seconds_since_previous "
        f"from placed as p left join listed as l using ({key}, as_of) where {some.replace('place', 'p.place')} order by p.place"
    )
