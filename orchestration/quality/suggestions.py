"""Suggests dbt tests for a table from what is in it (`finegrain suggest-tests`), as YAML that a person reads, changes and keeps.

A rule that all rows keep is suggested if there are enough of them to be sure, at the `confidence` asked for, that no more than 1 in 20 rows breaks it. Ranges are
rounded outward, so they are no extremes of today's rows. A set is suggested only if it is the same in both halves of the table. What looks personal is never
written: no values of such columns, and of ids only the pattern.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, Final

import duckdb
import yaml

from orchestration.config.project import PROJECT, roots
from orchestration.config.published import DATABASE, current
from orchestration.config.settings import Settings, settings
from orchestration.config.yaml_file import FAST
from orchestration.errors import FinegrainError, console, stopping
from orchestration.errors.console import shown
from orchestration.lake import lake
from orchestration.lake.locks import scratch
from orchestration.quality.alerts import scrub
from orchestration.quality.profile import Column, Profile, profile
from orchestration.sql.text import identifier, quote
from orchestration.warehouse import warehouse
from orchestration.warehouse.data_contracts import tests_of
from orchestration.warehouse.publish import SCHEMA

#: The share of rows that may break a suggested rule, at the confidence asked for.
RARE: Final = 0.05
#: Each value of a set is in at least this many rows, and the rows are this many times as many as the values.
ROWS_A_VALUE: Final = 5
ROWS_A_SET: Final = 20
#: A share of distinct values from which a column is nearly unique.
NEARLY: Final = Decimal("0.9")
#: Numbers beyond this are mistakes, of which no range is made.
ABSURD: Final = Decimal(10) ** 30
#: Columns whose values may be personal, by a word of their name.
_PERSONAL: Final = re.compile(
    r"(^|_)(e?mail|phone|mobile|tel|fax|ip|address|street|zip|postcode|name|firstname|lastname|surname|birth|birthday|agent|user|customer|visitor)(_|$)",
    re.IGNORECASE,
)
_PLAIN: Final = re.compile("[a-z_][a-z0-9_]*")
_EXPECT: Final = "dbt_expectations.expect_"
#: Before the name of a raw table of the lake, which dbt has as a table of the source `lake`.
RAW: Final = "raw."


@dataclass(frozen=True)
class Test:
    """One suggested test: its name, its arguments, and why it is suggested."""

    name: str
    arguments: Mapping[str, Any]
    evidence: str


@dataclass(frozen=True)
class Suggestion:
    """For one model: tests of the whole table, and its columns with their tests. `file`: the YAML that declares it today. `has_contract`: whether the
    types of all columns are suggested as a contract; `least`: the rows that tests are suggested from."""

    model: str
    rows: int
    file: Path | None
    tests: list[Test]
    columns: list[tuple[Column, list[Test]]]
    has_contract: bool
    least: int
    keywords: frozenset[str]


@dataclass
class _Declared:
    """A model as its YAML declares it."""

    file: Path
    model: Mapping[str, Any]


def suggest(
    tables: Sequence[str],
    *,
    where: Settings | None = None,
    published: bool = False,
    sample: int = 100_000,
    confidence: float = 0.95,
    project: Path = PROJECT,
) -> str:
    """YAML of suggested tests for models of the warehouse or raw tables of the lake (`raw.events`), or for the published marts: those that they do not
    have yet.

    `sample`: the rows in which patterns and compound keys are looked for; what is found is checked on all rows. Raises FinegrainError for an
    unknown table, or where there is nothing to read."""
    where = where or settings()
    declared = _declared(project)
    with (
        scratch(where.home, ".suggest-") as spill,
        duckdb.connect(config=warehouse.limits(spill)) as con,
        console.progress("suggest tests", len(tables)) as advance,
    ):
        stopping.interruptible(con)
        places: dict[str, str] = {}
        if published or any(not name.startswith(RAW) for name in tables):
            places |= _places(con, where, published)
        if not published and any(name.startswith(RAW) for name in tables):
            places |= _raw_places(con, where)
        if unknown := next((name for name in tables if name not in places), None):
            near = difflib.get_close_matches(unknown, places, 1)
            raise FinegrainError(
                f"there is no table {shown(unknown)} in {_where(unknown, published)}"
                + (
                    f"; did you mean {near[0]}?"
                    if near
                    else "; name a model that has been built, or a raw table such as raw.events"
                )
            )
        parents = _parents(declared, {name: place for name, place in places.items() if published or _is_mart(place)})
        keywords = frozenset(
            str(word)
            for (word,) in con.execute(
                "select keyword_name from duckdb_keywords() where keyword_category = 'reserved'"
            ).fetchall()
        )

        def look(name: str) -> Profile:
            advance(1, name)
            # A model that marts are made of cannot wait for one of them.
            known = parents if published or _is_mart(places[name]) else {}
            finds_key = name not in declared or not _has_key(declared[name].model)
            return profile(con, places[name], sample=sample, parents=known, finds_key=finds_key)

        found = [
            suggestion(name, look(name), confidence, declared.get(name), keywords) for name in dict.fromkeys(tables)
        ]
    return written(found, project)


def write(text: str, path: Path) -> None:
    """Write the YAML to a new file. Raises FinegrainError if there is one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise FinegrainError(f"{shown(path)} exists, and is not overwritten; name a new file with --write") from None
    except OSError as error:
        raise FinegrainError(
            f"{shown(path)}: cannot be written: {error.strerror}; name another file with --write"
        ) from None


def _places(con: duckdb.DuckDBPyConnection, where: Settings, published: bool) -> dict[str, str]:
    """The quoted name of each table, by name."""
    if published:
        folder = current(where)
        if folder is None:
            raise FinegrainError("nothing is published; run `finegrain publish` first")
        con.execute(f"attach {quote(str(folder / DATABASE))} as warehouse (read_only)")
    else:
        warehouse.attach(con, where.warehouse)
    found = con.execute(
        "select table_schema, table_name from information_schema.tables where table_catalog = 'warehouse' "
        "and not (table_schema = 'main' and table_name in ('builds', 'states', 'watermarks', 'build_failures', 'build_times')) and table_schema <> 'audit'"
    ).fetchall()
    return {name: f"warehouse.{identifier(schema)}.{identifier(name)}" for schema, name in sorted(found)}


def _raw_places(con: duckdb.DuckDBPyConnection, where: Settings) -> dict[str, str]:
    """The quoted name of each raw table of the lake, by name with `RAW`."""
    if not lake.exists(where):
        raise FinegrainError(f"{where.lake_catalog}: there is no lake yet; load a source first (finegrain ingest)")
    lake.attach(con, where, read_only=True)
    found = con.execute(
        "select table_name from information_schema.tables where table_catalog = 'lake' and table_schema = 'raw'"
    ).fetchall()
    return {f"{RAW}{name}": f"lake.raw.{identifier(name)}" for (name,) in sorted(found)}


def _where(name: str, published: bool) -> str:
    return "the published marts" if published else "the lake" if name.startswith(RAW) else "the warehouse"


def _is_mart(place: str) -> bool:
    return place.startswith(f"warehouse.{identifier(SCHEMA)}.")


def _has_key(model: Mapping[str, Any]) -> bool:
    return any(_plain(test) in ("unique", "compound") for test, *_ in tests_of(model))


def _declared(project: Path) -> dict[str, _Declared]:
    """Every model of the project by name, and every raw table of the lake by name with `RAW`."""
    files = [path for root in roots(project) for path in sorted((root / "models").rglob("*.yml"))]
    found: dict[str, _Declared] = {}
    for path in files:
        said = yaml.load(path.read_text("utf-8"), Loader=FAST) or {}
        found |= {model["name"]: _Declared(path, model) for model in said.get("models") or []}
        for source in said.get("sources") or []:
            if source["name"] == "lake":
                found |= {f"{RAW}{table['name']}": _Declared(path, table) for table in source.get("tables") or []}
    return found


def _parents(declared: Mapping[str, _Declared], places: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """By column, the models of which it alone is the key, dimensions first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, each in sorted(declared.items(), key=lambda pair: (not pair[0].startswith("dim_"), pair[0])):
        keys = {
            column for test, column, _, config in tests_of(each.model) if test == "unique" and not config.get("where")
        }
        for key in keys & _never_null(each.model) if name in places else ():
            found.setdefault(key, []).append((name, places[name]))
    return found


def _never_null(model: Mapping[str, Any]) -> set[str]:
    constrained = {
        column["name"]
        for column in model.get("columns") or []
        if any(each["type"] in ("not_null", "primary_key") for each in column.get("constraints") or [])
    }
    return constrained | {
        column for test, column, _, _ in tests_of(model) if test.endswith("not_null") or test.endswith("not_be_null")
    }


# ---------------------------------------------------------------------------------------------------------- rules


def least_rows(confidence: float) -> int:
    """The rows without an exception that it takes to be this sure that no more than `RARE` of all rows are exceptions."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - RARE))


def suggestion(
    name: str, found: Profile, confidence: float, declared: _Declared | None, keywords: frozenset[str] = frozenset()
) -> Suggestion:
    """What a profile suggests for a model, without what it has already."""
    model: Mapping[str, Any] = declared.model if declared else {}
    has = {
        (_plain(test), column)
        for test, column, arguments, config in tests_of(model)
        if not (config.get("where") or arguments.get("row_condition"))
    }
    has |= {("not_null", column) for column in _never_null(model)}
    own = {column["name"]: column for column in model.get("columns") or []}
    if ("ranges_as_declared", "") in has:
        for column_name, column_of in own.items():
            meta = (column_of.get("config") or {}).get("meta") or {}
            has |= {("between", column_name)} if "range" in meta else set()
            has |= {("not_null", column_name)} if meta.get("null_means") == "never null" else set()
    least = least_rows(confidence)
    tests, columns = [], []
    if found.rows >= least and ("row_count", "") not in has:
        half = Decimal(found.rows) / 2
        step = Decimal(1).scaleb(half.adjusted())
        bounds = {"min_value": int(half // step * step), "max_value": int(_beyond(half * 5))}
        tests.append(Test(f"{_EXPECT}table_row_count_to_be_between", bounds, f"{found.rows:,} rows"))
    if found.key and ("compound", "") not in has and found.rows >= least:
        listed = [_quoted(each, keywords) for each in found.key]
        tests.append(
            Test(
                f"{_EXPECT}compound_columns_to_be_unique",
                {"column_list": listed},
                f"no two of {found.rows:,} rows are alike in these",
            )
        )
    for column in found.columns:
        wanted = _of_column(column, found.rows, least) if _can_be_named(column.name) else ()
        columns.append((column, [each for each in wanted if (_plain(each.name), column.name) not in has]))
    can_be_named = all(_can_be_named(column.name) for column in found.columns)
    has_types = all((own.get(column.name) or {}).get("data_type") for column in found.columns)
    file = declared.file if declared else None
    has_contract = can_be_named and not has_types and not name.startswith(RAW)  # dbt has no contracts of sources
    return Suggestion(name, found.rows, file, tests, columns, has_contract, least, keywords)


def _can_be_named(column: str) -> bool:
    """Whether dbt can name a column: it puts names between quotes without escaping them, and reads {{ … }} as Jinja."""
    return '"' not in column and "{" not in column and column.isprintable()


#: Tests that say the same, by the end of their names.
_SAME: Final = (
    ("compound_columns_to_be_unique", "compound"),
    ("table_row_count_to_be_between", "row_count"),
    ("proportion_of_unique_values_to_be_between", "unique"),
    ("values_to_be_unique", "unique"),
    ("not_be_null", "not_null"),
    ("values_to_be_between", "between"),
    ("to_be_in_set", "accepted_values"),
    ("match_regex", "regex"),
)


def _plain(test: str) -> str:
    return next((word for end, word in _SAME if test.endswith(end)), test)


def _of_column(column: Column, rows: int, least: int) -> Iterator[Test]:
    of_rows = f"{column.rows:,} of {rows:,} rows"
    if column.rows < least:
        return
    if column.rows == rows:
        yield Test("not_null", {}, of_rows)
    if column.is_unique:
        yield Test("unique", {}, f"{column.rows:,} values, each once")
    elif column.may_be_key and column.rows >= ROWS_A_SET * 10:
        # The estimate is off by a few percent: another step of room.
        share = Decimal(min(column.distinct, column.rows)) / Decimal(rows)
        if share >= NEARLY + Decimal("0.05"):
            yield Test(
                f"{_EXPECT}column_proportion_of_unique_values_to_be_between",
                {"min_value": float(NEARLY)},
                f"about {share:.0%} of {rows:,} rows have a value of their own",
            )
    if column.parent is not None:
        model, key = column.parent
        yield Test("relationships", {"to": f"ref('{model}')", "field": key}, f"{column.rows:,} values are all there")
    is_set = _is_set(column)
    if is_set:
        values = list(column.values or {})
        evidence = f"the same {len(values)} in both halves of {column.rows:,} values"
        yield Test("accepted_values", {"values": values}, evidence)
    if column.pattern is not None and not is_set and column.parent is None:
        regex, what = column.pattern
        yield Test(f"{_EXPECT}column_values_to_match_regex", {"regex": regex}, f"{column.rows:,} values: {what}")
    if column.low is not None and column.high is not None and not column.infinite:
        yield from _range(column)


def _range(column: Column) -> Iterator[Test]:
    low, high = column.low, column.high
    name, evidence = f"{_EXPECT}column_values_to_be_between", f"{column.rows:,} values, rounded outward"
    assert low is not None and high is not None
    if column.is_moment:  # there is no end to what comes
        if low > 2 and column.distinct > 1:
            kind = column.kind.partition(" ")[0].lower()
            yield Test(
                name, {"min_value": f"{kind} '{int(low) - 1:04}-01-01'"}, f"{column.rows:,} values, the first in {low}"
            )
        return
    if max(abs(Decimal(low)), abs(Decimal(high))) > ABSURD:
        return
    if column.may_be_key or low == high:  # a number that goes up, or always the same
        if low >= 0:
            yield Test(name, {"min_value": 0}, f"{column.rows:,} values")
        return
    least, most = outward(low, high, whole=column.is_whole)
    yield Test(name, {"min_value": least, "max_value": most}, evidence)


def _is_set(column: Column) -> bool:
    """Whether the values of a column are a set that one can write down."""
    values = column.values or {}
    return (
        len(values) > 1
        and column.halves == 2
        and min(values.values()) >= ROWS_A_VALUE
        and column.rows >= ROWS_A_SET * len(values)
        and not _PERSONAL.search(column.name)
        and not column.is_unique
        # dbt would read {{ … }} as Jinja, and SQL a quote as its end.
        and all(scrub(value) == value and value.isprintable() and not re.search(r"['\\{}]", value) for value in values)
    )


def outward(low: float | Decimal, high: float | Decimal, *, whole: bool) -> tuple[Any, Any]:
    """A range around this one, of round numbers: 0 or 1 where they are natural, else up to five times as far from 0, or, for values in a narrow
    band such as years, as far again on both sides. Whole numbers go to 10 at least."""
    with localcontext() as context:
        context.prec = 80
        first, last = Decimal(str(low)), Decimal(str(high))
        if not whole and first >= 0 and last <= 1:
            found = (Decimal(0), Decimal(1))
        elif first >= 0 and first * 2 > last:
            found = _band(first, last)
        elif last <= 0 and last * 2 < first:
            found = tuple(sorted(-each for each in _band(-last, -first)))  # type: ignore[assignment]
        else:
            found = (-_beyond(-first), _beyond(last))
        if whole:  # of a count that was 1, 3 is no surprise
            return math.floor(found[0]), max(math.ceil(found[1]), 10 if last > 0 else 0)
        return tuple(_number(each) for each in found)  # type: ignore[return-value]


def _band(first: Decimal, last: Decimal) -> tuple[Decimal, Decimal]:
    margin = max(last - first, last / 100) or Decimal(1)
    step = Decimal(1).scaleb(margin.adjusted())
    return max((first - margin) // step * step, Decimal(0)), ((last + margin) // step + 1) * step


def _beyond(end: Decimal) -> Decimal:
    """1, 2 or 5 times a power of ten that is at least twice as far from 0; 0 for what is not above it."""
    if end <= 0:
        return Decimal(0)
    power = Decimal(1).scaleb((2 * end).adjusted())
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 2 * end)


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


# ----------------------------------------------------------------------------------------------------------- YAML


def written(suggestions: Iterable[Suggestion], project: Path = PROJECT) -> str:
    """The suggestions as YAML, each with its evidence as a comment."""
    lines = [
        "# Suggested by finegrain suggest-tests, from the rows of today. Read each test before you keep it.",
        "# dbt wants one entry a model: of a model that has YAML, move what you keep there.",
        "version: 2",
    ]
    models: list[Suggestion] = []
    raw: list[Suggestion] = []
    for each in suggestions:
        (raw if each.model.startswith(RAW) else models).append(each)
    if models:
        lines += ["models:", *_entries(models, project)]
    if raw:
        tables = [replace(each, model=each.model.removeprefix(RAW)) for each in raw]
        lines += ["sources:", "  - name: lake", "    schema: raw", "    tables:"]
        lines += [f"    {line}" for line in _entries(tables, project)]
    return "\n".join(lines) + "\n"


def _entries(suggestions: Iterable[Suggestion], project: Path) -> list[str]:
    lines = []
    for each in suggestions:
        file = (
            f"; {each.file.relative_to(project) if each.file.is_relative_to(project) else each.file.name} declares it"
            if each.file
            else ""
        )
        few = f"; too few for tests, which need {each.least:,} at this confidence" if each.rows < each.least else ""
        lines.append(f"  - name: {_scalar(each.model)}  # {each.rows:,} rows{few}{file}")
        if each.has_contract:
            lines.append("    config: {contract: {enforced: true}}")
        if each.tests:
            lines += ["    data_tests:", *(line for test in each.tests for line in _test(test, "      "))]
        shown_columns = each.columns if each.has_contract else [pair for pair in each.columns if pair[1]]
        lines += ["    columns:"] * bool(shown_columns)
        for column, tests in shown_columns:
            lines.append(f"      - name: {_scalar(column.name)}")
            if _quoted(column.name, each.keywords) != column.name:
                lines.append("        quote: true")
            if each.has_contract:
                lines.append(f"        data_type: {_scalar(column.kind.lower())}")
            if tests:
                lines += ["        data_tests:", *(line for test in tests for line in _test(test, "          "))]
    return lines


def _test(test: Test, indent: str) -> list[str]:
    if not test.arguments:
        return [f"{indent}- {test.name}  # {test.evidence}"]
    arguments = ", ".join(f"{name}: {_flow(value)}" for name, value in test.arguments.items())
    return [f"{indent}- {test.name}:  # {test.evidence}", f"{indent}    arguments: {{{arguments}}}"]


def _flow(value: Any) -> str:
    return f"[{', '.join(map(_flow, value))}]" if isinstance(value, list) else _scalar(value)


def _scalar(value: Any) -> str:
    """A value as YAML: texts in quotes, unless they are plain words that nothing else can be read from."""
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")
    if not isinstance(value, str):
        return str(value)
    if _PLAIN.fullmatch(value) and isinstance(yaml.safe_load(value), str):
        return value
    return str(yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf)).strip()


def _quoted(name: str, keywords: frozenset[str]) -> str:
    """A column's name as SQL: in quotes where it has to be."""
    return name if _PLAIN.fullmatch(name) and name not in keywords else identifier(name)
