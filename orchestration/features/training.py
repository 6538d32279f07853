"""Training sets: features as they were known at the moment of each row of a spine.

The rows are cut into parts by `as_of`, and the models' SQL is run on each (orchestration/warehouse/compiled.py). A YAML file beside the result says
what it was made from.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import duckdb
import yaml

from orchestration.config.project import PROJECT
from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError, console, stopping
from orchestration.features.catalog import Mart, declared
from orchestration.features.spines import AS_OF, GROUP_ID, Spine, read, ready_made, source_of
from orchestration.features.spines import about as about_spine
from orchestration.features.written import made_from, must_be_new, put_in_place
from orchestration.lake.locks import scratch
from orchestration.sql.text import identifier, quote
from orchestration.warehouse import warehouse
from orchestration.warehouse.compiled import Answers, Compiled, answers, compiled
from orchestration.warehouse.publish import categorical_columns, kinds_for_arrow

#: Rows of a spine that are computed at once. Of user_features, these take 2 to 3 GB; a million takes more than 4, and as long.
PART: Final = 125_000
#: Marts of products and categories compare each with all others, so they are computed once a period, as of its begin, like a build that runs once a
#: period. Keys of spines for which this holds.
PERIODIC: Final = frozenset({"product_id", "category"})
DAY: Final = timedelta(days=1)
DRAFT: Final = ".training-"
#: The file with the values of categorical columns.
VOCABULARY: Final = "vocabulary.json"


@dataclass(frozen=True)
class TrainingSet:
    """A written training set. `files`: by split (or `all`), the Parquet file and its rows. `unknown`: rows for which a mart has no row, by mart."""

    out: Path
    files: dict[str, tuple[str, int]]
    features: list[str]
    unknown: dict[str, int]
    left_out: int
    built_from: int
    seconds: float = field(default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def keys_of(mart: Mart) -> list[str]:
    """The key columns of a mart: those before `as_of`."""
    names = list(mart.keys)
    return names[: names.index(AS_OF)]


def chosen(patterns: Sequence[str], marts: Sequence[Mart], sets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """By mart, the features that the patterns name: `user_features.views_30d`, `user_features.views_*`, a whole mart, or a feature set. Raises
    FinegrainError for one that names nothing."""
    features = {mart.name: [each.name for each in mart.features] for mart in marts}
    known = [*sets, *features, *(f"{mart}.{name}" for mart, names in features.items() for name in names)]
    found: dict[str, list[str]] = {}
    waiting = list(patterns)
    while waiting:
        pattern = waiting.pop(0)
        if pattern in sets:
            waiting = [*sets[pattern], *waiting]
            continue
        mart, _, wanted = pattern.partition(".")
        names = fnmatch.filter(features.get(mart, []), wanted or "*")
        if not names:
            near = get_close_matches(pattern, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are the marts {', '.join(features)}"
            raise FinegrainError(f"--features: there is no {pattern}; {hint}")
        found[mart] = list(dict.fromkeys([*found.get(mart, []), *names]))
    return found


def training_set(
    out: Path,
    *,
    spine: Path | None = None,
    query: str | None = None,
    label: str | None = None,
    group: Sequence[str] = (),
    features: Sequence[str],
    splits: Sequence[datetime] = (),
    gap: timedelta | None = None,
    period: timedelta = DAY,
    trust_event_time: bool = False,
    where: Settings | None = None,
    project: Path = PROJECT,
    part: int = PART,
    arguments: Sequence[str] = (),
    sets: Mapping[str, Sequence[str]] | None = None,
    quiet: bool = True,
) -> TrainingSet:
    """Write the rows of a spine with their features into the folder `out`: `all.parquet`, or with `splits` (two moments, naive UTC) `train.parquet`,
    `valid.parquet` and `test.parquet`, each sorted by as_of; `vocabulary.json`, the values of categorical columns in the first of these files; and
    `training_set.yml`. Decimals are doubles and flags 0 or 1, as training wants them.

    The spine is a file, the name of a mart of models/marts/training, or a `query` on the published marts; with a `label`, it is of the rows that have one, and
    without the other labels. With a `group` (by default that of a ready-made spine), rows alike in these columns stand together and have the same `group_id`.
    Features of products and categories are as of the last begin of a `period` (whole days are UTC days) before each as_of; all others are as of as_of itself.
    With splits, rows are left out whose as_of is less than `gap` before the next split: the window of their label would reach into it (by default that of a
    ready-made spine's label, else none). With `trust_event_time`, an event counts from when it happened, however late it arrived. `arguments` are further ones
    of dbt. Raises FinegrainError.
    """
    where = where or settings()
    started = datetime.now(UTC)
    named = None if spine is None or spine.exists() else ready_made(project).get(str(spine))
    if gap is None:
        gap = timedelta(days=named.label_days.get(label or "", 0) if named else 0)
    group = group or (named.group if named else ())
    _check_splits(splits, gap)
    must_be_new(out)
    marts = {mart.name: mart for mart in declared(project)}
    asked = chosen(features, list(marts.values()), sets or {})
    warehouse.must_exist(where.warehouse)
    models = compiled(where, project, arguments)
    with scratch(where.home, DRAFT) as folder, answers(where, models, trust_event_time=trust_event_time) as opened:
        stopping.interruptible(opened.con)
        source, rows = source_of(where, spine, query, folder, project)
        keys = sorted({key for mart in marts.values() for key in keys_of(mart)})
        read_spine = read(opened.con, source, rows, keys, label, group)
        _check_keys(read_spine, asked, marts)
        check_moments(opened.con, read_spine)
        files, unknown, left_out = _write(
            opened, models, read_spine, asked, marts, folder, splits, gap, period, part, quiet
        )
        done = TrainingSet(
            out,
            {name: (f"{name}.parquet", count) for name, count in files.items()},
            [f"{mart}.{name}" for mart, names in asked.items() for name in names],
            unknown,
            left_out,
            opened.built_from,
            (datetime.now(UTC) - started).total_seconds(),
        )
        about = _about(done, read_spine, models, opened.con, splits, gap, period, trust_event_time)
        (folder / "out" / "training_set.yml").write_text(yaml.safe_dump(about, sort_keys=False), "utf-8")
        put_in_place(folder / "out", out)
    return done


def _check_splits(splits: Sequence[datetime], gap: timedelta) -> None:
    if splits and (len(splits) != 2 or splits[0] >= splits[1]):
        raise FinegrainError(
            "--split: give two times, the begin of the validation rows and, later, that of the test rows"
        )
    if gap < timedelta(0) or (splits and splits[0] + gap > splits[1]):
        raise FinegrainError(
            "--gap: it is longer than the time between the splits, so no validation rows would be left"
        )


def _check_keys(spine: Spine, asked: Mapping[str, Sequence[str]], marts: Mapping[str, Mart]) -> None:
    for mart in asked:
        if missing := [key for key in keys_of(marts[mart]) if key not in spine.keys]:
            raise FinegrainError(
                f"{spine.source}: {mart} has a row for each {' and '.join(keys_of(marts[mart]))}, and the spine has no {missing[0]}; "
                "add the column, or leave these features out"
            )


def check_moments(con: duckdb.DuckDBPyConnection, spine: Spine) -> None:
    """A moment after all that the build has seen has no answer yet."""
    newest = warehouse.last_arrival(con, "built")
    limit = newest + timedelta(microseconds=1) if newest else datetime.min
    if spine.last > limit:
        [(count,)] = con.execute("select count(*) from spine where as_of > $limit", {"limit": limit}).fetchall()
        raise FinegrainError(
            f"{spine.source}: as_of of {count:,} rows is later than the last event that is built ({newest}), up to {spine.last}: what came until then is not "
            "known yet. Load and build newer data, or leave these rows out"
        )


def _write(
    opened: Answers,
    models: Compiled,
    spine: Spine,
    asked: Mapping[str, Sequence[str]],
    marts: Mapping[str, Mart],
    folder: Path,
    splits: Sequence[datetime],
    gap: timedelta,
    period: timedelta,
    part: int,
    quiet: bool,
) -> tuple[dict[str, int], dict[str, int], int]:
    """Write the Parquet files below `folder`/out; returns rows by file, rows without a row of a mart, and rows left out."""
    con, out = opened.con, folder / "out"
    out.mkdir()
    order = ", ".join(map(identifier, (AS_OF, *([GROUP_ID] if spine.group else []), *spine.keys)))
    con.execute(
        f"create temp table placed as select *, {_split(splits, gap)} as split, {_begin_of_period(period)} as period_at, "
        f"row_number() over (order by {order}) as place from spine"
    )
    [(left_out,)] = con.execute("select count(*) from placed where split is null").fetchall()
    parts = -(-spine.rows // part)
    unknown = dict.fromkeys(asked, 0)
    files = dict.fromkeys(["train", "valid", "test"] if splits else ["all"], 0)
    categorical = sorted(
        f"{mart}__{name}"
        for mart, names in categorical_columns().items()
        for name in names
        if name in asked.get(mart, ())
    )

    def copy(query: str, file: Path) -> int:
        """Write a Parquet file; returns its rows."""
        kinds = kinds_for_arrow(con, query, categorical, folder)
        [(rows,)] = con.execute(
            f"copy ({query}) to {quote(str(file))} (format parquet, compression zstd, {kinds})"
        ).fetchall()
        return int(rows)

    with console.progress("training set", parts, quiet=quiet) as advance:
        for number in range(parts):
            con.execute(
                f"create or replace temp view part as from placed where split is not null "
                f"and place > {number * part} and place <= {(number + 1) * part}"
            )
            query, joins = _ask(opened, models, spine, asked, marts)
            for mart, join in joins.items():
                [(missing,)] = con.execute(f"select count(*) from part as p anti {join}").fetchall()
                unknown[mart] += missing
            kept = f"select * exclude (spine_row, split, period_at, place) from ({query})"
            for (split,) in con.execute("select distinct split from part").fetchall():
                files[split] += copy(
                    f"{kept} where split = {quote(split)} order by place", folder / f"{split}-{number:06}.parquet"
                )
            advance(1, f"part {number + 1} of {parts}")
    con.execute("set preserve_insertion_order = true")
    for split, rows in files.items():
        if not rows:
            raise FinegrainError(f"{spine.source}: no row falls into {split}; choose other times for --split")
        first, *others = sorted(folder.glob(f"{split}-*.parquet"))
        if others:
            copy(f"from read_parquet({[str(file) for file in (first, *others)]})", out / f"{split}.parquet")
            for file in (first, *others):
                file.unlink()
        else:
            first.rename(out / f"{split}.parquet")
    (out / VOCABULARY).write_text(
        json.dumps(_vocabulary(con, out / f"{next(iter(files))}.parquet", categorical)), "utf-8"
    )
    return files, unknown, int(left_out)


def _vocabulary(con: duckdb.DuckDBPyConnection, file: Path, categorical: Sequence[str]) -> dict[str, list[str]]:
    """The values of each categorical column of a file, in order."""
    found = {}
    for name in categorical:
        values = con.execute(
            f"select distinct {identifier(name)} from {quote(str(file))} where {identifier(name)} is not null order by 1"
        ).fetchall()
        found[name] = [str(value) for (value,) in values]
    return found


def _split(splits: Sequence[datetime], gap: timedelta) -> str:
    """SQL of the name of a row's split; null for rows in a gap."""
    if not splits:
        return "'all'"
    first, second = (f"timestamp {quote(str(moment))}" for moment in splits)
    window = f"to_microseconds({round(gap.total_seconds() * 1_000_000)})"
    return (
        f"case when as_of + {window} <= {first} then 'train' when as_of >= {first} and as_of + {window} <= {second} then 'valid' "
        f"when as_of >= {second} then 'test' end"
    )


def _begin_of_period(period: timedelta) -> str:
    return f"time_bucket(to_microseconds({round(period.total_seconds() * 1_000_000)}), as_of, timestamp '1970-01-01')"


def _ask(
    opened: Answers, models: Compiled, spine: Spine, asked: Mapping[str, Sequence[str]], marts: Mapping[str, Mart]
) -> tuple[str, dict[str, str]]:
    """Compute the marts for the rows of `part`; returns the query of these with their features, and by mart the join of it to `part`, which is called p."""
    spines, moments = {}, {}
    for mart in asked:
        by = models.spines(mart)
        moments[mart] = "period_at" if by & PERIODIC else "as_of"
        for key in by:
            spines[key] = f"select {identifier(key)}, {moments[mart]} as as_of from part" if key in spine.keys else None
    tables = opened.ask(list(asked), {key: query for key, query in spines.items() if query}, as_views=True)
    columns: list[str] = []
    joins: dict[str, str] = {}
    for mart, names in asked.items():
        alias = identifier(f"of {mart}")
        on = [f"p.{identifier(key)} = {alias}.{identifier(key)}" for key in keys_of(marts[mart])]
        joins[mart] = f"join {tables[mart]} as {alias} on {' and '.join([*on, f'p.{moments[mart]} = {alias}.as_of'])}"
        kinds = {name: kind for name, kind, *_ in opened.con.execute(f"describe {tables[mart]}").fetchall()}
        for name in names:
            value = f"{alias}.{identifier(name)}"
            # No library that trains models takes decimals, nor, by way of pandas, flags that may be null.
            kind = "double" if kinds[name].startswith("DECIMAL") else {"BOOLEAN": "utinyint"}.get(kinds[name])
            value = f"cast({value} as {kind})" if kind else value
            columns.append(f"{value} as {identifier(f'{mart}__{name}')}")
    return (
        f"select p.*, {', '.join(columns)} from part as p {' '.join(f'left {join}' for join in joins.values())}",
        joins,
    )


def _about(
    done: TrainingSet,
    spine: Spine,
    models: Compiled,
    con: duckdb.DuckDBPyConnection,
    splits: Sequence[datetime],
    gap: timedelta,
    period: timedelta,
    trust_event_time: bool,
) -> dict[str, Any]:
    """What the training set was made from."""
    return {
        **made_from(models, done.built_from),
        "spine": about_spine(con, spine),
        "splits": [str(moment) for moment in splits],
        "gap_seconds": gap.total_seconds(),
        "product_features_are_as_of_periods_of_seconds": period.total_seconds(),
        "trust_event_time": trust_event_time,
        "files": {name: {"file": file, "rows": rows} for name, (file, rows) in done.files.items()},
        "rows_left_out_between_splits": done.left_out,
        "rows_without_an_entity_known_by_then": done.unknown,
        "features": done.features,
    }
