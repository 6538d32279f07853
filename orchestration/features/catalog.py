"""The feature catalogue: each feature's meaning, lineage and value statistics. It has every column that is declared in
`models/marts/features/*.yml`.
"""

from __future__ import annotations

import contextlib
import html
import json
import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import duckdb
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestration.config.project import PROJECT, owner_of_folder, roots
from orchestration.config.published import DATABASE, current
from orchestration.config.settings import SIMULATION, Settings, settings
from orchestration.config.yaml_file import FAST
from orchestration.errors import FinegrainError
from orchestration.sql.text import identifier
from orchestration.warehouse import warehouse
from orchestration.warehouse.lineage import FEATURES, Lineage, Origin
from orchestration.warehouse.lineage import lineage as trace
from orchestration.warehouse.publish import SCHEMA

#: The number of bins in a histogram, and the characters for an empty bin up to the fullest one.
BINS: Final = 12
MARKS: Final = "·▁▂▃▄▅▆▇█"
#: If more than this share of values is 0, the histogram leaves zeros out, and their share is shown beside it.
MOSTLY_ZERO: Final = 0.5
#: The number of values shown for a text column.
LABELS: Final = 3
#: Longer text values are cut to this many characters.
LONGEST: Final = 30
#: The number of values in memory for exact quantiles. A larger mart is scanned several times, each time for some of its columns.
HELD: Final = 20_000_000

NEVER_NULL: Final = "never null"
#: The `ttl_days` of a mart whose YAML says none.
TTL_DAYS: Final = 7
_WINDOW: Final = re.compile(r"(?<=_)(\d+[dh]|lifetime)(?=_|$)")
_IN_WORDS: Final = re.compile(r" in the last (?:hour|\d+ (?:hours|days))| so far")
_DAYS: Final = re.compile(r"\b\d+ days?\b")


@dataclass(frozen=True)
class Figures:
    """Statistics of one column. `nulls` is a share of all rows; the others are over values that are not null. `numbers`: min, p05,
    median, p95, max and mean. `picture`: a histogram between the 1st and the 99th percentile, without zeros if most values are 0
    (`zeros` is their share). `true`: the share of true. `labels`: the most frequent values with their shares. `moments`: the
    first and last time. `mean_length`: of lists."""

    nulls: float
    zeros: float | None = None
    numbers: dict[str, float] | None = None
    picture: str = ""
    true: float | None = None
    labels: dict[str, float] | None = None
    moments: tuple[datetime, datetime] | None = None
    mean_length: float | None = None

    def spread(self) -> str:
        """The statistics as text."""
        if self.numbers:
            low, *middle, high = (shown(self.numbers[name]) for name in ("min", "p05", "median", "p95", "max"))
            return f"{low} | {' · '.join(middle)} | {high}"
        if self.true is not None:
            return f"{percent(self.true)} true"
        if self.labels:
            return ", ".join(f"{_short(label)} {percent(share)}" for label, share in self.labels.items())
        if self.moments:
            return " .. ".join(f"{moment:%Y-%m-%d %H:%M}" for moment in self.moments)
        if self.mean_length is not None:
            return f"{shown(self.mean_length)} long on average"
        return "no values" if self.nulls == 1 else ""

    def drawn(self) -> str:
        """The histogram, after the share of zeros if it leaves them out."""
        dominant = self.zeros is not None and self.zeros > MOSTLY_ZERO
        return " ".join(filter(None, [f"{percent(self.zeros or 0)} 0" if dominant else "", self.picture]))


@dataclass(frozen=True)
class Feature:
    """One column of a mart, as declared in its YAML; `figures` is None if the mart is not built."""

    name: str
    data_type: str
    meaning: str
    unit: str
    window: str
    null_means: str
    range: tuple[float | None, float | None] | None
    owner: str
    figures: Figures | None = None

    @property
    def measure(self) -> str:
        """The name without its window: features that differ only in their window share it."""
        return _WINDOW.sub("<window>", self.name) if len(_WINDOW.findall(self.name)) == 1 else self.name

    def between(self) -> str:
        """The range as text."""
        if not self.range:
            return ""
        low, high = ("" if end is None else f"{end:g}" for end in self.range)
        return f"{low}..{high}"


@dataclass(frozen=True)
class Measure:
    """Features that differ only in their window, shortest first."""

    name: str
    windows: list[str]
    meaning: str
    features: list[Feature]

    @property
    def shown(self) -> Feature:
        """The feature with the longest window."""
        return self.features[-1]


@dataclass(frozen=True)
class Mart:
    """One mart. `keys` are the columns of its grain and its times, by name with their meaning; after `ttl_days` the feature store takes its values for too
    old; `rows` is None if it is not built."""

    name: str
    description: str
    grain: str
    keys: dict[str, str]
    features: list[Feature]
    ttl_days: float = TTL_DAYS
    rows: int | None = None
    lineage: Lineage | None = None

    @property
    def nulls(self) -> float | None:
        """The share of nulls over all features."""
        result = [feature.figures.nulls for feature in self.features if feature.figures]
        return sum(result) / len(result) if result else None

    def origin(self, names: Sequence[str]) -> Origin | None:
        """The raw fields of some columns together; None if only the mart's tables are known."""
        known = (self.lineage and self.lineage.columns) or {}
        found = [known[name] for name in names if name in known]
        return Origin.union(found) if len(found) == len(names) else None

    def measures(self) -> list[Measure]:
        """The features, grouped if they differ only in their window."""
        grouped: dict[tuple[str, ...], list[Feature]] = {}
        for each in self.features:
            grouped.setdefault((each.measure, each.data_type, each.unit, each.null_means, each.owner), []).append(each)
        return [_measure(key[0], features) for key, features in grouped.items()]


def _measure(name: str, features: list[Feature]) -> Measure:
    if len(features) == 1:
        [only] = features
        return Measure(only.name, [only.window] if only.window != "none" else [], only.meaning, features)
    windows = [_WINDOW.findall(each.name)[0] for each in features]
    bare = {_DAYS.sub("… days", _IN_WORDS.sub("", each.meaning)) for each in features}
    return Measure(name, windows, bare.pop() if len(bare) == 1 else features[-1].meaning, features)


@dataclass(frozen=True)
class Catalog:
    """All marts. `read_from` is the file with the marts, None if there are no statistics; `as_of` and `built_from` (the lake's
    snapshot) are those of the marts. `shop` describes the simulated shop, if the data is from one."""

    marts: list[Mart]
    read_from: str | None = None
    as_of: str | None = None
    built_from: int | None = None
    shop: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        result = asdict(self)
        for mart, each in zip(self.marts, result["marts"], strict=True):
            traced = each.pop("lineage") and mart.lineage and mart.lineage.as_dict()
            origins = (traced and traced.pop("columns")) or {}
            each["lineage"] = traced
            for feature in each["features"]:
                feature["lineage"] = origins.get(feature["name"])
        return result


def catalog(
    where: Settings | None = None,
    *,
    mart: str | None = None,
    like: str | None = None,
    of_warehouse: bool = False,
    lineage: bool = True,
    sample: int | None = None,
    quiet: bool = True,
    project: Path = PROJECT,
) -> Catalog:
    """The features of all marts, of one `mart`, or with `like` in their name or meaning. Statistics are from the published marts or the
    warehouse, of a mart with more rows than `sample` from about so many of them. Raises FinegrainError for an unknown mart or feature."""
    where = where or settings()
    marts = declared(project)
    if mart is not None:
        if mart not in {each.name for each in marts}:
            raise FinegrainError(f"there is no mart {mart}; there are: {', '.join(each.name for each in marts)}")
        marts = [each for each in marts if each.name == mart]
    if like is not None:
        marts = [found for each in marts if (found := _alike(each, like)).features]
        if not marts:
            raise FinegrainError(f"no feature has '{like}' in its name or meaning")
    origins = trace(where, quiet=quiet) if lineage else {}
    with _built(where, of_warehouse) as (con, source, schema):
        measured = [_measured(con, schema, each, sample) for each in marts] if con else marts
        as_of, built_from = _moment(con, schema, measured) if con else (None, None)
    return Catalog(
        [replace(each, lineage=origins.get(each.name)) for each in measured],
        source,
        as_of,
        built_from,
        _simulated(where),
    )


def declared(project: Path = PROJECT) -> list[Mart]:
    """The feature marts as their YAML files declare them, by name: finegrain's and the project's own. The owner of a feature is that of its column, else of
    the model, else of the model's folder."""
    found = []
    for root in roots(project):
        owner = owner_of_folder(root, FEATURES)
        for path in sorted((root / "models" / FEATURES).glob("*.yml")):
            for model in yaml.load(path.read_text("utf-8"), Loader=FAST).get("models", []):
                if "columns" in model:
                    found.append(_mart(model, owner))
    return sorted(found, key=lambda mart: mart.name)


def _mart(model: Mapping[str, Any], owner: str) -> Mart:
    keys, features = {}, []
    owner = model.get("config", {}).get("meta", {}).get("owner", owner)
    for column in model["columns"]:
        meta = column.get("config", {}).get("meta", {})
        meaning = " ".join(column.get("description", "").split())
        if "unit" not in meta:
            keys[column["name"]] = meaning
            continue
        features.append(
            Feature(
                column["name"],
                column["data_type"],
                meaning,
                meta["unit"],
                meta["window"],
                meta["null_means"],
                tuple(meta["range"]) if "range" in meta else None,
                meta.get("owner", owner),
            )
        )
    about = model.get("config", {}).get("meta", {})
    return Mart(
        model["name"],
        " ".join(model.get("description", "").split()),
        about.get("grain", ""),
        keys,
        features,
        about.get("ttl_days", TTL_DAYS),
    )


def _alike(mart: Mart, like: str) -> Mart:
    wanted = like.lower()
    return replace(mart, features=[each for each in mart.features if wanted in f"{each.name} {each.meaning}".lower()])


@contextlib.contextmanager
def _built(where: Settings, of_warehouse: bool) -> Iterator[tuple[duckdb.DuckDBPyConnection | None, str | None, str]]:
    """The connection, file and schema to read statistics from; no connection if nothing is published."""
    if of_warehouse:
        with duckdb.connect() as con:
            warehouse.attach(con, where.warehouse)
            yield con, str(where.warehouse), f"warehouse.{SCHEMA}"
        return
    folder = current(where)
    if folder is None:
        yield None, None, ""
        return
    with duckdb.connect(str(folder / DATABASE), read_only=True) as con:
        yield con, str(where.published / DATABASE), "main"


def _moment(con: duckdb.DuckDBPyConnection, schema: str, marts: list[Mart]) -> tuple[str | None, int | None]:
    for mart in marts:
        if mart.rows:
            [(as_of, built_from)] = con.execute(
                f"select max(as_of), max(built_from) from {schema}.{identifier(mart.name)}"
            ).fetchall()
            return f"{as_of:%Y-%m-%d %H:%M:%S}", built_from
    return None, None


def _simulated(where: Settings) -> dict[str, int]:
    """The number of events and the seed of the simulated shop in this home, if there is one (`finegrain demo`)."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        about = json.loads((where.home / "shop" / SIMULATION).read_text("utf-8"))
        return {name: about[name] for name in ("events", "seed")}
    return {}


# ---------------------------------------------------------------------------------------------------------- figures

_WHOLE: Final = re.compile(r"(tiny|small|big|huge|u)?int(eger)?")
_NUMBER: Final = re.compile(rf"{_WHOLE.pattern}|double|float|real|decimal.*|numeric.*")


def _kind(data_type: str) -> str:
    name = data_type.lower()
    if name.endswith("[]"):
        return "list"
    if _NUMBER.fullmatch(name):
        return "number"
    if name.startswith(("timestamp", "date")):
        return "moment"
    return {"boolean": "flag"}.get(name, "label")


def _measured(con: duckdb.DuckDBPyConnection, schema: str, mart: Mart, sample: int | None) -> Mart:
    """The mart with its row count and the statistics of its features, of a `sample` if it has more rows."""
    table = f"{schema}.{identifier(mart.name)}"
    try:
        [(rows,)] = con.execute(f"select count(*) from {table}").fetchall()
    except duckdb.CatalogException:  # declared, but not built yet
        return mart
    present = {column[0] for column in con.execute(f"from {table} limit 0").description or []}
    columns = [each for each in mart.features if each.name in present]
    measured = rows
    if sample is not None and rows > sample and columns:
        # Whole blocks of rows, so that the others are not read; always the same ones.
        names = ", ".join(identifier(each.name) for each in columns)
        con.execute(
            f"create or replace temp table sampled as select {names} from {table} tablesample system({100 * sample / rows} percent) repeatable (1)"
        )
        [(drawn,)] = con.execute("select count(*) from sampled").fetchall()
        table, measured = ("sampled", drawn) if drawn else (table, rows)
    figures: dict[str, Figures] = {}
    held = max(1, HELD // max(measured, 1))
    for first in range(0, len(columns), held):
        figures |= _figures(con, table, measured, columns[first : first + held])
    return replace(mart, rows=rows, features=[replace(each, figures=figures.get(each.name)) for each in mart.features])


def _figures(con: duckdb.DuckDBPyConnection, table: str, rows: int, features: list[Feature]) -> dict[str, Figures]:
    if not rows:
        return {each.name: Figures(nulls=0.0) for each in features}
    asked = ", ".join(_aggregates(each, table) for each in features)
    [answers] = con.execute(f"select {asked} from {table}").fetchall()
    result = dict(zip((each.name for each in features), answers, strict=True))
    pictures = _pictures(con, table, [each for each in features if _kind(each.data_type) == "number"], result)
    return {name: _figure(rows, each, pictures.get(name, "")) for name, each in result.items()}


def _aggregates(feature: Feature, table: str) -> str:
    """SQL: a struct of all statistics of a column."""
    column = identifier(feature.name)
    kind = _kind(feature.data_type)
    parts = {"there": f"count({column})"}
    if kind == "number":
        value = f"cast({column} as double)"
        parts |= {
            "zeros": f"count(*) filter ({column} = 0)",
            "mean": f"favg({value})",
            "quantiles": f"quantile_disc({value}, [0, 0.01, 0.05, 0.5, 0.95, 0.99, 1])",
            "ends_without_zeros": f"quantile_disc({value}, [0.01, 0.99]) filter ({column} <> 0)",
        }
    elif kind == "flag":
        parts["true"] = f"count(*) filter ({column})"
    elif kind == "moment":
        parts["ends"] = f"[min({column}), max({column})]"
    elif kind == "list":
        parts["length"] = f"favg(len({column}))"
    else:
        parts["labels"] = (
            f"(select list((label, n) order by n desc, label) from (select cast({column} as varchar) as label, count(*) as n "
            f"from {table} where {column} is not null group by all order by n desc, label limit {LABELS}))"
        )
    return "{" + ", ".join(f"'{name}': {sql}" for name, sql in parts.items()) + "}"


def _pictures(
    con: duckdb.DuckDBPyConnection, table: str, features: list[Feature], result: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """The histogram of each numeric column, in one scan. A column with a single value has none."""
    asked: dict[str, tuple[int, str]] = {}
    for each in features:
        figures = result[each.name]
        without_zeros = figures["zeros"] > MOSTLY_ZERO * figures["there"]
        ends = figures["ends_without_zeros"] if without_zeros else (figures["quantiles"] or [])[1:6:4]
        if not ends or ends[0] == ends[1] or not all(map(math.isfinite, ends)):
            continue
        low, high = ends
        # Bins of integers have integer bounds, so no bin is empty only because no integer falls into it.
        whole = _WHOLE.fullmatch(each.data_type.lower()) is not None
        span = high - low + whole
        bins = int(min(BINS, span)) if whole else BINS
        value = f"cast({identifier(each.name)} as double)"
        begin, end, width = (f"cast('{number!r}' as double)" for number in (low, high, span))
        asked[each.name] = (
            bins,
            f"histogram(cast(least(floor(({value} - {begin}) / {width} * {bins}), {bins - 1}) as integer)) "
            f"filter ({value} between {begin} and {end}{f' and {value} <> 0' if without_zeros else ''})",
        )
    if not asked:
        return {}
    [counts] = con.execute(f"select {', '.join(sql for _, sql in asked.values())} from {table}").fetchall()
    return {name: picture(found or {}, bins) for (name, (bins, _)), found in zip(asked.items(), counts, strict=True)}


def picture(counts: Mapping[int, int], bins: int = BINS) -> str:
    """A histogram as block characters; an empty bin is a dot."""
    most = max(counts.values(), default=0)
    steps = len(MARKS) - 1
    return "".join(MARKS[math.ceil(counts.get(bin, 0) / most * steps)] for bin in range(bins)) if most else ""


def _figure(rows: int, result: Mapping[str, Any], drawn: str) -> Figures:
    there = result["there"]
    nulls = 1 - there / rows
    if not there:
        return Figures(nulls)
    if "quantiles" in result:
        low, _, p05, median, p95, _, high = result["quantiles"]
        numbers = {"min": low, "p05": p05, "median": median, "p95": p95, "max": high, "mean": result["mean"]}
        return Figures(nulls, result["zeros"] / there, numbers, drawn)
    if "true" in result:
        return Figures(nulls, true=result["true"] / there)
    if "ends" in result:
        first, last = result["ends"]
        return Figures(nulls, moments=(first, last))
    if "length" in result:
        return Figures(nulls, mean_length=result["length"])
    return Figures(nulls, labels={label: n / there for label, n in result["labels"]})


# ---------------------------------------------------------------------------------------------------------- as text


def shown(value: float) -> str:
    """A number with three digits; a large one is rounded to an integer."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}" if digits < 7 else f"{value:.2e}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _short(label: str) -> str:
    text = " ".join(label.split()) or "(empty)"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def percent(share: float) -> str:
    """A share as a percentage; it is 0 % or 100 % only if it is exactly that."""
    if 0 < share < 0.01:
        return "<1 %"
    if 0.99 < share < 1:
        return ">99 %"
    return f"{share:.0%}".replace("%", " %")


def fields_in_words(names: frozenset[str]) -> str:
    """Raw fields by table: `events: price, quantity · refunds: amount`."""
    tables: dict[str, list[str]] = {}
    for each in sorted(names):
        table, _, name = each.partition(".")
        tables.setdefault(table, []).append(name)
    return " · ".join(f"{table}: {', '.join(fields)}" for table, fields in tables.items())


def origin_in_words(origin: Origin) -> str:
    """Raw fields: those whose values are used, and those that only filter or group."""
    by = fields_in_words(origin.conditions - origin.values)
    parts = [("values of ", fields_in_words(origin.values)), ("by ", by)]
    return "; ".join(word + text for word, text in parts if text) or "no raw field"


class Letters:
    """A letter for each set of raw fields that a mart's features come from, in order of appearance."""

    def __init__(self, mart: Mart) -> None:
        self._mart = mart
        self._given: dict[Origin, str] = {}

    def of(self, columns: Sequence[str]) -> str:
        """The letter of these columns together; "" if only the mart's tables are known."""
        origin = self._mart.origin(columns)
        if origin is None:
            return ""
        tens, ones = divmod(len(self._given), 26)
        letter = (string.ascii_lowercase[tens - 1] if tens else "") + string.ascii_lowercase[ones]
        return self._given.setdefault(origin, letter)

    def legend(self) -> Iterator[tuple[str, str]]:
        """Each letter with its raw fields; the last entry is for the whole mart."""
        for origin, letter in self._given.items():
            yield letter, origin_in_words(origin)
        if self._mart.lineage:
            raw, seeds = (", ".join(names) for names in (self._mart.lineage.raw, self._mart.lineage.seeds))
            yield "the mart as a whole", f"raw {raw}" + (f"; seeds {seeds}" if seeds else "")


def show(result: Catalog, out: Console, *, in_full: bool) -> None:
    """Print the marts: one line each or, with `in_full`, every feature."""
    if in_full:
        for mart in result.marts:
            _show_mart(mart, out)
    else:
        table = Table("mart", "grain", "features", "rows", "nulls", box=None, pad_edge=False, header_style="dim")
        for mart in result.marts:
            rows = "" if mart.rows is None else f"{mart.rows:,}"
            nulls = "" if mart.nulls is None else percent(mart.nulls)
            table.add_row(mart.name, mart.grain, str(len(mart.features)), rows, nulls)
        out.print(table)
        out.print("\nOne mart in full: finegrain catalog user_features; some features: --like revenue", style="dim")
    source = f"figures of {result.read_from}, as of {result.as_of} UTC" if result.read_from else NOT_PUBLISHED
    out.print(source, style="dim")


TERMINAL: Final = (
    "feature", "meaning", "unit", "window", "range", "from", "nulls", "min | p05 · median · p95 | max", "p01 to p99"
)  # fmt: skip
NOT_PUBLISHED: Final = (
    "nothing is published yet, so there are no figures; run `finegrain build` and `finegrain publish`"
)


def _show_mart(mart: Mart, out: Console) -> None:
    rows = "" if mart.rows is None else f", {mart.rows:,} rows"
    out.print(f"{mart.name}: {mart.grain}{rows}; owner {_owners(mart)}", style="bold")
    out.print(mart.description + "\n")
    letters = Letters(mart)
    table = Table(*TERMINAL, box=None, pad_edge=False, header_style="dim")
    for each in mart.features:
        figures = each.figures
        null = "" if each.null_means == NEVER_NULL else f"\nnull: {each.null_means}"
        table.add_row(
            Text.assemble(each.name, (f"\n{each.data_type}", "dim")),
            Text.assemble(each.meaning, (null, "dim")),
            each.unit,
            each.window,
            each.between(),
            letters.of([each.name]),
            percent(figures.nulls) if figures else "",
            figures.spread() if figures else "",
            figures.drawn() if figures else "",
        )
    out.print(table)
    out.print()
    for letter, origin in letters.legend():
        out.print(f"{letter}  {origin}", style="dim")
    out.print()


# ---------------------------------------------------------------------------------------------------------- the page

COLUMNS: Final = ("feature", "windows", "meaning", "unit", "type", "null means", "range", "from")
FIGURES: Final = ("nulls", "min | p05 · median · p95 | max", "distribution")


def page(result: Catalog) -> str:
    """The catalogue as Markdown: one section per mart, one line per measure."""
    return "\n".join([*_head(result), *(line for mart in result.marts for line in _section(mart))])


def _head(result: Catalog) -> Iterator[str]:
    yield "# The features"
    yield ""
    yield "Written by `finegrain catalog --write docs/reference/features.md` from `models/marts/features/*.yml`, not by hand (`make docs` after"
    yield "`make demo`). A feature of your own: [add a feature](../how-to/add-a-feature.md)."
    yield ""
    if result.read_from is None:
        yield "Nothing is published yet, so there are no figures here."
    else:
        shop = "what is published"
        if result.shop:
            shop = (
                f"the simulated shop of `finegrain demo` ({result.shop['events']:,} events, seed {result.shop['seed']})"
            )
        yield f"Figures are of {shop}, as of {result.as_of} UTC. They are of the longest window of a"
        yield "line; the picture is the histogram from the 1st to the 99th percentile, without zeros where most values are 0."
    yield ""
    yield "A letter under *from* stands for raw fields, listed below the mart's table: those whose **values** are used (also through"
    yield "exchange rates and name lists), and those **by** which rows are filtered, windowed or grouped. Which rows"
    yield "count at all, and who is who, is the same for all features of a mart and left out."
    yield ""
    yield "| mart | one row is | features | rows | nulls |"
    yield "|---|---|---:|---:|---:|"
    for mart in result.marts:
        rows = "" if mart.rows is None else f"{mart.rows:,}"
        nulls = "" if mart.nulls is None else percent(mart.nulls)
        yield f"| [{mart.name}](#{mart.name}) | {mart.grain} | {len(mart.features)} | {rows} | {nulls} |"
    yield ""


def _section(mart: Mart) -> Iterator[str]:
    yield f"## {mart.name}"
    yield ""
    yield mart.description
    yield ""
    yield f"{_sentence(mart.grain)}. " + " ".join(f"`{name}`: {meaning}" for name, meaning in mart.keys.items())
    yield f"Owner: {_owners(mart)}."
    yield ""
    letters = Letters(mart)
    built = mart.rows is not None
    yield _row([*COLUMNS, *(FIGURES if built else ())])
    yield "|" + "---|" * (len(COLUMNS) + (len(FIGURES) if built else 0))
    for measure in mart.measures():
        yield _row([*page_cells(measure, letters), *(_figure_cells(measure) if built else ())])
    yield ""
    for letter, origin in letters.legend():
        yield f"- **{letter}**: {origin}"
    yield ""


def page_cells(measure: Measure, letters: Letters) -> list[str]:
    """The cells of a measure without its statistics."""
    each = measure.shown
    return [
        f"`{measure.name}`",
        " ".join(measure.windows),
        measure.meaning,
        each.unit,
        each.data_type,
        "" if each.null_means == NEVER_NULL else each.null_means,
        each.between(),
        letters.of([each.name for each in measure.features]),
    ]


def _figure_cells(measure: Measure) -> list[str]:
    figures = measure.shown.figures
    return [percent(figures.nulls), html.escape(figures.spread()), figures.drawn()] if figures else ["", "", ""]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _owners(mart: Mart) -> str:
    return ", ".join(sorted({each.owner for each in mart.features}))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
