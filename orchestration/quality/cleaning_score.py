"""Scores the cleaning against the known errors of a simulated shop (orchestration/simulation/simulate.py).

For each kind of planted error, the rows the pipeline flags (or the values it fills in) are compared with the truth. Precision is the share of
its answers that are right; recall is the share of planted errors that it gets right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import duckdb
from rich.table import Table

from orchestration.errors import FinegrainError
from orchestration.warehouse.warehouse import attach

SOURCES: Final = ("shop_web", "shop_app", "shop_store", "shop_database")

#: All kinds of copies of an event. The verdict is the same for all of them, so they share one precision.
DUPLICATES: Final = ("exact_duplicate", "near_duplicate", "redelivered_event", "repeated_purchase", "order_twin")

#: Kinds that should be quarantined, with the reasons that count as correct.
REASONS: Final = {
    "malformed_row": ("malformed", "missing_event_at"),
    "orphan_user": ("unknown_user",),
    "orphan_product": ("unknown_product",),
    "orphan_order": ("order_missing",),
    "disordered_times": ("order_times_disordered",),
    "future_event": ("event_in_future",),
    "unknown_currency": ("unknown_currency",),
    "bad_quantity": ("quantity_out_of_range",),
    "bad_price": ("price_out_of_range",),
    "denied_consent": ("consent_denied",),
    "bot": ("bot_user_agent", "bot_rate", "bot_behaviour"),
}

#: Kinds of visits that are kept, with the class that their sessions should have.
VISITORS: Final = {"agent": "agent", "assistant_referral": "assistant_referred"}

#: Kinds that must score 1.00; the scores of the others are only published.
EXACT: Final = (*DUPLICATES, "malformed_row", "orphan_user", "orphan_product", "orphan_order", "disordered_times")


@dataclass(frozen=True)
class Score:
    """The score of one kind of planted error, or of one `detail` of it. Counts are of rows or, for products and customers, of products
    and customers. `answered` and `right` are None if answers cannot be attributed to a `detail`. `ordinary`: for outliers, the
    number of values without a planted error. `rules`: the outlier rules that gave the answers."""

    kind: str
    detail: str | None
    planted: int
    recalled: int
    answered: int | None
    right: int | None
    note: str = ""
    ordinary: int | None = None
    rules: str = "as built"

    @property
    def false_alarms(self) -> int | None:
        """Ordinary values that the pipeline flags as outliers."""
        return None if self.ordinary is None else (self.answered or 0) - (self.right or 0)

    @property
    def precision(self) -> float | None:
        """The share of the pipeline's answers that are right; None if there are no answers."""
        return self.right / self.answered if self.answered and self.right is not None else None

    @property
    def recall(self) -> float | None:
        """The share of planted errors that the pipeline gets right; None if nothing was planted."""
        return self.recalled / self.planted if self.planted else None

    @property
    def must_be_exact(self) -> bool:
        return self.kind in EXACT

    @property
    def fails(self) -> bool:
        """Whether a kind that must score 1.00 does not, or more than one in 100,000 ordinary values is flagged as an outlier."""
        inexact = any(value is not None and value < 1 for value in (self.precision, self.recall))
        return (self.must_be_exact and inexact) or (self.false_alarms or 0) * 100_000 > (self.ordinary or 0)


def score(warehouse: Path, truth: Path) -> list[Score]:
    """Compare the warehouse built from a simulated shop with that shop's truth.

    `truth` is the simulation's folder or its `truth` folder. Raises FinegrainError if one of them does not exist.
    """
    with _compared(warehouse, truth) as con:
        return [
            *_duplicates(con),
            *_quarantined(con),
            *_visitors(con),
            *_marked(con),
            *_values(con),
        ]


def outliers_of_events(warehouse: Path, truth: Path, rules: str) -> list[Score]:
    """The scores of outliers alone, in all their details, of a warehouse built by these `rules`. Raises as `score` does."""
    with _compared(warehouse, truth) as con:
        return [replace(each, rules=rules) for each in _numbers(con)]


@contextmanager
def _compared(warehouse: Path, truth: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the warehouse and the truth."""
    folder = truth / "truth" if (truth / "truth").is_dir() else truth
    files = sorted(str(path) for path in folder.glob("*.parquet") if path.stem not in _BACKGROUND)
    if not files:
        raise FinegrainError(
            f"{truth} holds no truth of a simulated shop; run `finegrain simulate` and name its folder"
        )
    with duckdb.connect() as con:
        con.execute("set timezone = 'UTC'")
        con.execute("set preserve_insertion_order = false")
        attach(con, warehouse)
        con.execute("set search_path = 'warehouse.main,warehouse.marts'")
        _check(con, warehouse)
        con.execute(_PREPARE.replace("{files}", str(files)).replace("{sources}", str(SOURCES)))
        yield con


def table(scores: list[Score]) -> Table:
    """The scores as a table for a terminal."""
    out = Table(title="Cleaning compared with planted errors", title_justify="left")
    for name in ("kind", "planted", "found", "precision", "recall", ""):
        out.add_column(name, justify="left" if name in ("kind", "") else "right")
    for row in scores:
        style = "red" if row.fails else "dim" if row.detail else None
        out.add_row(
            f"  {row.detail}" if row.detail else row.kind,
            f"{row.planted:,}",
            f"{row.recalled:,}",
            share(row.precision),
            share(row.recall),
            row.note or ("must be 1.00" if row.must_be_exact and not row.detail else ""),
            style=style,
        )
    return out


def share(value: float | None) -> str:
    """A share as text, rounded down: 1.00 means all."""
    return "" if value is None else f"{int(value * 1000) / 1000:.3f}" if value < 1 else "1.00"


_BACKGROUND: Final = ("rates", "promotions", "identity_links", "visits", "incidents")

_NEEDED: Final = {
    "int_events__validated": "raw_table source position verdict reasons event_at raw_available_at category rate row_id",
    "int_cleaning__events": "row_id session_id price price_raw quantity_raw price_is_outlier quantity_is_outlier price_was_missing quantity_was_missing",
    "fct_sessions": "session_id visitor_class",
    "dim_products": "product_id category weight_grams weight_grams_raw weight_is_outlier weight_was_missing is_in_catalogue",
    "dim_customers": "user_id has_profile income_raw income_is_outlier income_was_missing birth_year_was_missing household_size_was_missing",
}

# Only verdicts that are compared: rows that are not kept, and rows in the truth. An event with several items is one row of
# the file, so its rows are grouped.
_PREPARE: Final = """
create temp table truth as select * from read_parquet({files}, union_by_name = true);
create temp table validated as
    select
        raw_table, source, position,
        bool_and(verdict = 'duplicate') as is_duplicate,
        bool_or(verdict = 'duplicate') as has_duplicate,
        bool_and(verdict = 'kept') as is_kept,
        coalesce(flatten(list(reasons) filter (verdict = 'quarantined')), []) as reasons,
        min(epoch_us(event_at)) as event_at,
        min(category) as category
    from int_events__validated
    where source in {sources} and verdict <> 'superseded'
        and (verdict <> 'kept' or (source, position) in (select (t.source, t.position) from truth as t))
    group by raw_table, source, position;
create temp table cleaned as
    select v.raw_table, v.source, v.position, v.rate, c.price, c.price_is_outlier, c.quantity_is_outlier,
        c.price_was_missing, c.quantity_was_missing
    from int_cleaning__events as c
    inner join int_events__validated as v on c.row_id = v.row_id
    where v.source in {sources} and (c.price_is_outlier or c.quantity_is_outlier or c.price_was_missing or c.quantity_was_missing);
create temp macro planted(what) as table select * from truth where kind = what;
"""


def _check(con: duckdb.DuckDBPyConnection, warehouse: Path) -> None:
    for name, wanted in _NEEDED.items():
        rows = con.execute(
            "select column_name from duckdb_columns() where database_name = 'warehouse' and table_name = ?", [name]
        ).fetchall()
        missing = sorted(set(wanted.split()) - {row[0] for row in rows})
        if missing:
            what = f"table {name}" if not rows else f"column {name}.{missing[0]}"
            raise FinegrainError(f"{warehouse} has no {what}; run `finegrain build` over the simulated shop first")


def _counts(con: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    return con.execute(query).fetchall()[0]


def _duplicates(con: duckdb.DuckDBPyConnection) -> list[Score]:
    answered, right = _counts(
        con,
        f"""select count(*), count(*) filter ((source, position) in
            (select (t.source, t.position) from truth as t where t.kind in {DUPLICATES})) from validated
                where has_duplicate""",
    )
    scores = []
    for kind in DUPLICATES:
        planted, found = _counts(
            con,
            f"""select count(*), count(*) filter (is_duplicate) from planted('{kind}')
            left join validated using (raw_table, source, position)""",
        )
        scores.append(Score(kind, None, planted, found, answered, right, "precision is over all copies; must be 1.00"))
    return scores


def _quarantined(con: duckdb.DuckDBPyConnection) -> list[Score]:
    scores = []
    for kind, reasons in REASONS.items():
        # A price that is a hundred times too high may also break the hard limit: that counts as an answer to price_outlier.
        shared = "and position not in (select position from planted('price_outlier'))" if kind == "bad_price" else ""
        found = f"(select * from validated where list_has_any(reasons, {list(reasons)}) {shared})"
        scores += _by_detail(con, kind, found, details=kind in ("bot", "malformed_row", "disordered_times"))
    return scores


def _visitors(con: duckdb.DuckDBPyConnection) -> list[Score]:
    scores = []
    for kind, visitor_class in VISITORS.items():
        found = f"""(
            select distinct v.raw_table, v.source, v.position from fct_sessions as s
            inner join int_cleaning__events as c on s.session_id = c.session_id
            inner join int_events__validated as v on c.row_id = v.row_id
            where s.visitor_class = '{visitor_class}' and v.source in {SOURCES}
        )"""
        scores += _by_detail(con, kind, found)
    return scores


def _marked(con: duckdb.DuckDBPyConnection) -> list[Score]:
    """Kinds that are kept, with a flag or a late arrival."""
    late = """(
        select raw_table, source, position from int_events__validated
        where source = 'shop_web' and verdict = 'kept' and raw_available_at - event_at > interval 50 minutes
    )"""
    missing = (
        "(select distinct raw_table, source, position from cleaned where price_was_missing or quantity_was_missing)"
    )
    (error,) = _counts(
        con,
        """select median(abs(c.price / (t.true_value * c.rate) - 1)) from planted('missing_value') as t
        join cleaned as c using (raw_table, source, position) where t.detail like 'price%'""",
    )
    note = "" if error is None else f"an imputed price is off by {error:.0%} (median)"
    return [
        *_by_detail(con, "late_event", late),
        *_numbers(con),
        _of_records(con, "weight", "dim_products", "weight_grams_raw"),
        _of_records(con, "income", "dim_customers", "income_raw"),
        *_by_detail(
            con, "missing_value", missing, details=True, only="raw_table in ('events', 'ga4_events')", note=note
        ),
        _profile_gaps(con),
        _weight_gaps(con),
    ]


def _numbers(con: duckdb.DuckDBPyConnection) -> list[Score]:
    """Outliers of prices and quantities."""
    prices = """(
        select raw_table, source, position from cleaned where price_is_outlier
        union select raw_table, source, position from validated
        where list_contains(reasons, 'price_out_of_range') and position not in (select position
            from planted('bad_price'))
    )"""

    def quantities(other: str) -> str:
        # A flag does not say which of the two kinds it means.
        return f"""(
            select raw_table, source, position from cleaned
            where quantity_is_outlier and (source, position) not in (select (o.source, o.position) from planted('{other}') as o)
        )"""

    return [
        *_outliers(con, "price_outlier", prices, "price_raw"),
        *_outliers(con, "quantity_outlier", quantities("seasonal_outlier"), "quantity_raw"),
        *_by_detail(con, "seasonal_outlier", quantities("quantity_outlier")),
    ]


def _by_detail(
    con: duckdb.DuckDBPyConnection, kind: str, found: str, *, details: bool = False, only: str = "true", note: str = ""
) -> list[Score]:
    """Score the rows that the query `found` (raw_table, source, position) returns for a kind, with recall by detail."""
    planted = f"(select * from planted('{kind}') where {only})"
    answered, right = _counts(
        con,
        f"""select count(*), count(*) filter ((source, position) in (select (t.source, t.position) from {planted} as t))
        from {found}""",
    )
    by_detail = con.execute(
        f"""select detail, count(*), count(*) filter ((source, position) in (select (f.source, f.position)
            from {found} as f))
        from {planted} group by detail order by detail"""
    ).fetchall()
    total = sum(row[1] for row in by_detail)
    scores = [Score(kind, None, total, sum(row[2] for row in by_detail), answered, right, note)]
    if details:
        scores += [Score(kind, detail, count, hits, None, None) for detail, count, hits in by_detail if detail]
    return scores


def _outliers(con: duckdb.DuckDBPyConnection, kind: str, found: str, column: str) -> list[Score]:
    """Score outlier flags, and count the ordinary values: those of kept events without a planted error."""
    first, *rest = _by_detail(con, kind, found, details=True)
    (values,) = _counts(
        con,
        f"""select count(c.{column}) from int_cleaning__events as c
        inner join int_events__validated as v on c.row_id = v.row_id where v.source in {SOURCES}""",
    )
    return [_with_ordinary(first, values - first.planted), *rest]


def _of_records(con: duckdb.DuckDBPyConnection, name: str, table: str, column: str) -> Score:
    """Score outlier flags of products or customers, where no errors are planted."""
    values, flagged = _counts(con, f"select count({column}), count_if({name}_is_outlier) from {table}")
    return _with_ordinary(Score("outlier", f"{name}, none planted", 0, 0, flagged, 0), values)


def _with_ordinary(score: Score, ordinary: int) -> Score:
    score = replace(score, ordinary=ordinary)
    return replace(score, note=f"{score.false_alarms} of {ordinary:,} ordinary values; at most 1 in 100,000")


def _profile_gaps(con: duckdb.DuckDBPyConnection) -> Score:
    flags = ("income", "birth_year", "household_size")
    gaps = " union all ".join(
        f"select user_id as key, '{name}' as detail from dim_customers where has_profile and {name}_was_missing"
        for name in flags
    )
    planted, recalled, answered = _counts(
        con,
        f"""with t as (select distinct key, detail from planted('missing_value') where raw_table = 'customers'),
        g as (select distinct * from ({gaps}))
        select (select count(*) from t), (select count(*) from t semi join g using (key, detail)),
            (select count(*) from g)""",
    )
    return Score("missing_value", "of customers", planted, recalled, answered, recalled)


def _weight_gaps(con: duckdb.DuckDBPyConnection) -> Score:
    planted, recalled, answered, error = _counts(
        con,
        """with t as (select key, any_value(true_value) as grams from planted('missing_value')
            where raw_table = 'products' group by key)
        select (select count(*) from t), count(t.key), count(*), median(abs(p.weight_grams / t.grams - 1))
        from dim_products as p left join t on p.product_id = t.key
        where p.weight_was_missing and p.is_in_catalogue""",
    )
    note = "" if error is None else f"an imputed weight is off by {error:.0%} (median)"
    return Score("missing_value", "weight of products", planted, recalled, answered, recalled, note)


def _values(con: duckdb.DuckDBPyConnection) -> list[Score]:
    """Kinds where the pipeline replaces the value: compare it with the true one."""
    scores = []
    right = "event_at = true_value::bigint"
    by_detail = con.execute(
        f"""select detail, count(*), count(event_at), count(*) filter ({right}) from planted('naive_local_time')
        left join validated using (raw_table, source, position) group by detail order by detail"""
    ).fetchall()
    sums = [sum(row[column] for row in by_detail) for column in (1, 2, 3)]
    scores.append(Score("naive_local_time", None, sums[0], sums[2], sums[1], sums[2]))
    scores += [
        Score("naive_local_time", detail, planted, hits, answered, hits)
        for detail, planted, answered, hits in by_detail
    ]

    planted, answered, hits = _counts(
        con,
        """select count(*), count(p.weight_grams), count(*) filter (abs(p.weight_grams / t.grams - 1) < 0.002)
        from (select key, any_value(true_value) as grams from planted('wrong_unit') group by key) as t
        left join dim_products as p on t.key = p.product_id""",
    )
    scores.append(Score("wrong_unit", None, planted, hits, answered, hits, "weight in grams, of products"))

    parts = {
        "in events": """select category, true_text from planted('misspelt_category') left join validated
            using (raw_table, source, position) where raw_table = 'events'""",
        "in the catalogue": """select p.category, t.true_text from
            (select distinct key, true_text from planted('misspelt_category') where raw_table = 'products') as t
            left join dim_products as p on t.key = p.product_id""",
    }
    by_part = {
        part: _counts(
            con, f"select count(*), count(category), count(*) filter (lower(category) = true_text) from ({query})"
        )
        for part, query in parts.items()
    }
    sums = [sum(row[column] for row in by_part.values()) for column in (0, 1, 2)]
    scores.append(Score("misspelt_category", None, sums[0], sums[2], sums[1], sums[2]))
    scores += [Score("misspelt_category", part, row[0], row[2], row[1], row[2]) for part, row in by_part.items()]
    return scores
