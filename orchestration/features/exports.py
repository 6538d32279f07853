"""Exports for the libraries that recommenders are trained with: interactions for RecTools and implicit, and RecBole's atomic files.

An interaction is an event about a product. Each file of a split has what was known at its end: the events that had arrived by then, with the customers as
they were known then. The rule is that of the features (models/intermediate/features/int_features__customer_events.sql).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import duckdb
import yaml

from orchestration.config.project import PROJECT
from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError, stopping
from orchestration.features import vocabulary
from orchestration.features.catalog import declared
from orchestration.features.training import PART, chosen
from orchestration.features.written import made_from, must_be_new, put_in_place
from orchestration.lake.locks import scratch
from orchestration.sql.text import identifier, quote, timestamp_literal
from orchestration.warehouse import warehouse
from orchestration.warehouse.compiled import BUILD, EVENTS, EVENTS_OF, Answers, Compiled, answers, compiled

DRAFT: Final = ".export-"
#: What an export was made from.
ABOUT: Final = "made_from.yml"
#: The names of the files, by the number of splits.
FILES: Final = (("interactions",), ("train", "test"), ("train", "valid", "test"))
#: RecBole's settings for the files.
RECBOLE: Final = "recbole.yaml"
#: Texts that pandas takes for a missing value, with which RecBole reads its files: pandas.read_csv, na_values.
READ_AS_MISSING: Final = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)


@dataclass(frozen=True)
class Wanted:
    """Which interactions: event types (none: those that add to an affinity), whether each weighs 1 (`counts`)
    or as much as it adds to an affinity (seeds/event_weights.csv), the times between which they happened (naive UTC; `since` belongs to
    them, `until` does not), when they must have been known (None: the moment of the build), and where the validation and test rows begin."""

    events: Sequence[str] = ()
    counts: bool = False
    since: datetime | None = None
    until: datetime | None = None
    as_of: datetime | None = None
    splits: Sequence[datetime] = ()


@dataclass(frozen=True)
class Export:
    """A written export. `files`: rows by file. `sizes`: different values by what is encoded or named. `notes`: rows of which something must be said, by what."""

    out: Path
    files: dict[str, int]
    sizes: dict[str, int]
    notes: dict[str, int]
    built_from: int
    seconds: float = field(default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


#: In `notes`: events that had not arrived by the end of their file.
LATE: Final = "events arrived after the end of their file, and are in none"
#: In `notes`: products with a name that RecBole takes for none.
UNREADABLE: Final = "events are of products whose id RecBole reads as missing, and are in no file"


def interactions(
    out: Path,
    wanted: Wanted,
    *,
    earlier: Path | None = None,
    trust_event_time: bool = False,
    where: Settings | None = None,
    project: Path = PROJECT,
    arguments: Sequence[str] = (),
) -> Export:
    """Write interactions into the folder `out`, as Parquet sorted by time: `interactions.parquet`, or with splits `train.parquet`, `valid.parquet` (of two)
    and `test.parquet`. Columns are RecTools': BIGINT `user_id` and `item_id`, DOUBLE `weight`, TIMESTAMP `datetime` (UTC). The vocabularies of customer_id and
    product_id are beside them; customers and products of the first file have the first codes, so that they do not depend on what came later. The codes of the
    export `earlier` are kept. `arguments` are further ones of dbt. Raises FinegrainError."""

    def write(opened: Answers, draft: Path, counts: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
        con = opened.con
        users, items = (
            vocabulary.encode(con, column, f"select {column} as value, place from interactions", earlier)
            for column in ("customer_id", "product_id")
        )
        files = {}
        for place, name in enumerate(counts):
            query = (
                "select u.code as user_id, i.code as item_id, e.weight, e.event_at as datetime from interactions as e "
                f"inner join {users} as u on e.customer_id = u.value inner join {items} as i on e.product_id = i.value "
                f"where e.place = {place} order by e.event_at, e.event_id"
            )
            file = f"{name}.parquet"
            con.execute(f"copy ({query}) to {quote(str(draft / file))} (format parquet, compression zstd)")
            files[file] = counts[name]
        sizes = {
            "users": vocabulary.write(con, "customer_id", users, draft),
            "items": vocabulary.write(con, "product_id", items, draft),
        }
        return files, sizes

    vocabulary.must_have_one(earlier, ("customer_id", "product_id"))
    return _export(
        out, wanted, write, trust_event_time, where, project, arguments, vocabulary=str(earlier) if earlier else None
    )


def recbole(
    out: Path,
    wanted: Wanted,
    *,
    features: Sequence[str] = (),
    sets: Mapping[str, Sequence[str]] | None = None,
    trust_event_time: bool = False,
    where: Settings | None = None,
    project: Path = PROJECT,
    arguments: Sequence[str] = (),
) -> Export:
    """Write RecBole's atomic files into the folder `out`, whose name is that of the data set: `<name>.inter`, or of two splits `<name>.train.inter`,
    `<name>.valid.inter` and `<name>.test.inter`; with `features` of user_features or item_features, `<name>.user` and `<name>.item` with all customers and
    products of the interactions as of the end of the first file; and `recbole.yaml`, RecBole's settings for them. Products with an id that RecBole reads as
    missing are left out. Raises FinegrainError."""
    marts = {"user_features": ("customer_id", "user"), "item_features": ("product_id", "item")}
    asked = chosen(features, declared(project), sets or {})
    if wrong := [mart for mart in asked if mart not in marts]:
        raise FinegrainError(f"--features: RecBole takes features of {' and '.join(marts)}, not of {wrong[0]}")
    if len(wanted.splits) == 1:
        raise FinegrainError(
            "--split: RecBole takes train, valid and test rows; give two times, or none and let RecBole split"
        )
    name = out.resolve().name

    def write(opened: Answers, draft: Path, counts: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
        con = opened.con
        files, columns = {}, {"inter": ["user_id", "item_id", "weight", "timestamp", "event_type"]}
        for place, part in enumerate(counts):
            file = f"{name}.inter" if len(counts) == 1 else f"{name}.{part}.inter"
            query = (
                'select customer_id as "user_id:token", product_id as "item_id:token", weight as "weight:float", '
                'epoch_us(event_at) / 1e6 as "timestamp:float", event_type as "event_type:token" '
                f"from interactions where place = {place} order by event_at, event_id"
            )
            _copy(con, query, draft / file)
            files[file] = counts[part]
        sizes = {}
        for mart, (key, kind) in marts.items():
            [(sizes[f"{kind}s"],)] = con.execute(f"select count(distinct {key}) from interactions").fetchall()
            if mart in asked:
                query, columns[kind] = _entities(opened, mart, key, f"{kind}_id", asked[mart])
                _copy(con, query, draft / f"{name}.{kind}")
                files[f"{name}.{kind}"] = sizes[f"{kind}s"]
        about: dict[str, Any] = {
            "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id",
            "TIME_FIELD": "timestamp",
            "load_col": columns,
        }
        if len(counts) > 1:
            about["benchmark_filename"] = list(counts)
        (draft / RECBOLE).write_text(yaml.safe_dump(about, sort_keys=False), "utf-8")
        return files, sizes

    return _export(
        out,
        wanted,
        write,
        trust_event_time,
        where,
        project,
        arguments,
        without=READ_AS_MISSING,
        features=[f"{mart}.{feature}" for mart, names in asked.items() for feature in names],
    )


@contextlib.contextmanager
def opened_for(
    out: Path, where: Settings, project: Path, arguments: Sequence[str], *, trust_event_time: bool
) -> Iterator[tuple[Answers, Compiled, Path]]:
    """The answers of the warehouse, the models, and a folder aside. What is written to `out` in it is in place at the end of the block, if that was reached."""
    must_be_new(out)
    warehouse.must_exist(where.warehouse)
    models = compiled(where, project, arguments)
    with scratch(where.home, DRAFT) as folder, answers(where, models, trust_event_time=trust_event_time) as opened:
        stopping.interruptible(opened.con)
        (folder / "out").mkdir()
        yield opened, models, folder
        put_in_place(folder / "out", out)


def _export(
    out: Path,
    wanted: Wanted,
    write: Callable[[Answers, Path, dict[str, int]], tuple[dict[str, int], dict[str, int]]],
    trust_event_time: bool,
    where: Settings | None,
    project: Path,
    arguments: Sequence[str],
    without: Sequence[str] = (),
    **about: Any,
) -> Export:
    """Gather the interactions, `write` them (returns rows by file, and sizes), and say what they were made from."""
    where = where or settings()
    started = datetime.now(UTC)
    with opened_for(out, where, project, arguments, trust_event_time=trust_event_time) as (opened, models, folder):
        wanted = _at_moments(opened.con, wanted)
        counts, notes = _gather(opened, wanted, without)
        opened.con.execute("set preserve_insertion_order = true")
        files, sizes = write(opened, folder / "out", counts)
        done = Export(out, files, sizes, notes, opened.built_from, (datetime.now(UTC) - started).total_seconds())
        said = {
            **made_from(models, opened.built_from),
            "events": list(wanted.events) or "those that add to an affinity",
            "weights": "counts" if wanted.counts else "affinity",
            "since": wanted.since and str(wanted.since),
            "until": str(wanted.until),
            "as_of": str(wanted.as_of),
            "splits": [str(moment) for moment in wanted.splits],
            "trust_event_time": trust_event_time,
            **about,
            "files": files,
            **sizes,
            "notes": notes,
        }
        (folder / "out" / ABOUT).write_text(yaml.safe_dump(said, sort_keys=False), "utf-8")
    return done


def _at_moments(con: duckdb.DuckDBPyConnection, wanted: Wanted) -> Wanted:
    """With the moments that were not given. Raises FinegrainError where they contradict each other."""
    newest = warehouse.last_arrival(con, "built")
    limit = newest + timedelta(microseconds=1) if newest else datetime.min
    [(built_as_of,)] = con.execute(f"select as_of from built.main.{BUILD}").fetchall()
    as_of = wanted.as_of or built_as_of
    if as_of > limit:
        raise FinegrainError(
            f"--as-of: {as_of} is later than the last event that is built ({newest}): what came until then is not known yet. Load and build newer "
            "data, or name an earlier time"
        )
    until = wanted.until or as_of
    if until > as_of:
        raise FinegrainError(f"--until: {until} is later than {as_of}, as of which the export is; name an earlier time")
    if wanted.since and wanted.since >= until:
        raise FinegrainError(
            f"--since: {wanted.since} is not before the end, {until}, so there is nothing between them"
        )
    bounds = [*([wanted.since] if wanted.since else []), *wanted.splits, until]
    if len(wanted.splits) > 2 or any(one >= other for one, other in itertools.pairwise(bounds)):
        raise FinegrainError(
            "--split: give the time at which the test rows begin, or that of the validation rows and, later, that of the test rows; "
            f"all before {until}" + (f" and after {wanted.since}" if wanted.since else "")
        )
    return replace(wanted, as_of=as_of, until=until)


def of_types(con: duckdb.DuckDBPyConnection, events: Sequence[str]) -> str:
    """SQL: whether an event is of one of these types. Raises FinegrainError for a type that no event is of."""
    known = [
        name for (name,) in con.execute(f"select distinct event_type from built.main.{EVENTS} order by 1").fetchall()
    ]
    for name in events:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise FinegrainError(f"--events: no event is of the type {name}; {hint}")
    return f"event_type in ({', '.join(map(quote, events))})"


def _gather(opened: Answers, wanted: Wanted, without: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Create the temp table `interactions`: `place` of the file, customer_id, product_id, event_type, weight, event_at, event_id. Returns the rows of each
    file, and those that are in none."""
    con = opened.con
    assert wanted.until and wanted.as_of
    named = of_types(con, wanted.events) if wanted.events else "weight > 0"
    names = FILES[len(wanted.splits)]
    begins = [wanted.since or datetime.min, *wanted.splits]
    ends = [*wanted.splits, wanted.until]
    known_at = [*wanted.splits, wanted.as_of]
    periods = ", ".join(
        f"({place}, {', '.join(map(timestamp_literal, moments))})"
        for place, moments in enumerate(zip(begins, ends, known_at, strict=True))
    )
    con.execute(f"create temp table periods as from (values {periods}) as t (place, begins, ends, known_at)")
    model = EVENTS_OF["customer_id"]
    everybody = "select l.customer_id, p.known_at as as_of from main.int_identity__links as l cross join periods as p"
    table = opened.ask([model], {"customer_id": everybody}, as_views=True)[model]
    weight = "1" if wanted.counts else "weight"
    rows = (
        f"from {table} as e inner join periods as p on e.as_of = p.known_at where e.product_id is not null and {named}"
    )
    con.execute(
        "create temp table interactions as select p.place, e.customer_id, e.product_id, e.event_type, "
        f"cast({weight} as double) as weight, e.event_at, e.event_id {rows} and e.event_at >= p.begins and e.event_at < p.ends"
    )
    if weighs_nothing := con.execute(
        "select min(event_type) from interactions where weight = 0 having count(*) > 0"
    ).fetchall():
        raise FinegrainError(
            f"--events: {weighs_nothing[0][0]} has no weight in seeds/event_weights.csv; leave it out, or say --counts"
        )
    # What the last file would have if it had all periods, and no file before it has.
    [(late,)] = con.execute(
        f"select count(*) {rows} and p.place = {len(names) - 1} and e.event_at >= {timestamp_literal(begins[0])} and e.event_at < p.begins "
        "and e.event_id not in (select event_id from interactions)"
    ).fetchall()
    notes = {LATE: int(late)} if late else {}
    if without:
        found = con.execute(
            "delete from interactions where list_contains($without, product_id)", {"without": list(without)}
        ).fetchall()
        notes |= {UNREADABLE: int(found[0][0])} if found[0][0] else {}
    counts = dict(con.execute("select place, count(*) from interactions group by 1").fetchall())
    for place, name in enumerate(names):
        if not counts.get(place):
            of = f"of the types {', '.join(wanted.events)}" if wanted.events else "that adds to an affinity"
            since = f"from {begins[place]}" if place or wanted.since else "from the beginning"
            raise FinegrainError(
                f"{name} would be empty: as of {known_at[place]}, there is no event {of} about a product {since} to {ends[place]}; choose other times or --events"
            )
    return {name: int(counts[place]) for place, name in enumerate(names)}, notes


def _copy(con: duckdb.DuckDBPyConnection, query: str, file: Path) -> None:
    """Write an atomic file: fields between tabs, nulls empty."""
    con.execute(f"copy ({query}) to {quote(str(file))} (format csv, delimiter '\t', header)")


def _entities(opened: Answers, mart: str, key: str, name: str, features: Sequence[str]) -> tuple[str, list[str]]:
    """The query of an atomic file with features of all customers or products, as of the end of the first file; and the names of its fields."""
    con = opened.con
    con.execute(
        f"create or replace temp table asked as select {key}, row_number() over (order by {key}) as row, (select min(known_at) from periods) as as_of "
        f"from (select distinct {key} from interactions)"
    )
    [(rows,)] = con.execute("select count(*) from asked").fetchall()
    # Products are compared with each other, so all are asked for at once.
    parts = -(-rows // PART) if key == "customer_id" else 1
    columns: list[str] = []
    for number in range(parts):
        some = f"row > {number * PART} and row <= {(number + 1) * PART}" if parts > 1 else "true"
        table = opened.ask([mart], {key: f"select {key}, as_of from asked where {some}"})[mart]
        kinds = {str(each): str(kind) for each, kind, *_ in con.execute(f"describe {table}").fetchall()}
        columns = [_field(mart, feature, kinds[feature]) for feature in features]
        query = f"select a.{key}, f.* exclude ({key}) from asked as a left join {table} as f on a.{key} = f.{key} where {some}"
        begin = "insert into entities" if number else "create or replace temp table entities as"
        con.execute(f"{begin} select {key} as {identifier(f'{name}:token')}, {', '.join(columns)} from ({query})")
    return f'from entities order by "{name}:token"', [name, *(f"{mart}__{feature}" for feature in features)]


def _field(mart: str, feature: str, kind: str) -> str:
    """SQL of a feature as a field of an atomic file, with RecBole's type in its name."""
    column = identifier(feature)
    if kind == "VARCHAR":
        value, of = column, "token"
    elif kind.startswith("TIMESTAMP") or kind == "DATE":
        value, of = f"epoch_us({column}::timestamp) / 1e6", "float"
    elif kind.endswith("[]"):
        raise FinegrainError(
            f"--features: {mart}.{feature} is a list, which an atomic file has no place for; leave it out"
        )
    else:
        value, of = f"cast({column} as double)", "float"
    return f"{value} as {identifier(f'{mart}__{feature}:{of}')}"
