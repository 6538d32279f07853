"""`finegrain report`: counts of loaded rows by verdict, and what the published marts contain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
from rich.console import Console
from rich.table import Table

from orchestration.config.published import DATABASE, current
from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError
from orchestration.lake import lake
from orchestration.sql.text import identifier
from orchestration.warehouse.publish import marts_of
from orchestration.warehouse.warehouse import stale_rates

#: The counts of raw rows in the ledger, and the raw tables that hold events.
COUNTS: Final = ("raw_rows", "kept", "duplicates", "quarantined")
EVENT_TABLES: Final = ("events", "ga4_events", "order_items", "refunds")
#: The closed days before a build of which the report shows anomalies.
ANOMALY_DAYS: Final = 7
#: Rows and columns of the sample of `user_features`.
SAMPLE_ROWS: Final = 4
SAMPLE: Final = [
    "views_24h",
    "views_7d",
    "views_30d",
    "cart_adds_30d",
    "orders_365d",
    "revenue_365d",
    "order_value_mean",
    "hours_since_view",
    "hours_since_order",
    "tenure_days",
    "sessions_90d",
    "distinct_categories_90d",
    "category_entropy_90d",
    "view_to_cart_rate_90d",
    "price_percentile_mean_90d",
    "mobile_share_90d",
    "abandoned_carts_30d",
    "rfm_segment",
]


@dataclass(frozen=True)
class Account:
    """Row counts. `sources`: loaded rows and their verdicts, by source and raw table; `events`: the same for all rows with events (not
    customers, products and order headers); `reasons`: quarantined rows by reason (a row may have several); `dead_letters`: stream
    messages that wait to be replayed, by rule; `cleaned`: values capped, removed or imputed; `marked`: kept rows by warning, and
    catalogue prices with an assumed currency; `anomalies`: of the last ANOMALY_DAYS closed days, by day and source; `marts`: rows and columns by name; `empty`: the columns that are null in every row,
    by mart; `sample`: a few customers, by column. Money is in `reporting_currency`; `stale_rates` is a warning if old exchange
    rates were used."""

    published: str
    built_from: int
    as_of: str
    reporting_currency: str | None
    shop_time_zone: str | None
    stale_rates: str | None
    sources: list[dict[str, Any]]
    events: dict[str, int]
    reasons: dict[str, int]
    dead_letters: dict[str, int]
    cleaned: dict[str, int]
    marked: dict[str, int]
    anomalies: list[dict[str, Any]]
    marts: dict[str, tuple[int, int]]
    empty: dict[str, list[str]]
    sample: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def show(self, out: Console) -> None:
        """Print the report."""
        table = _table("What came in", "source", "raw table", "raw rows", "kept", "duplicates", "quarantined")
        table.columns[1].justify = "left"
        for row in self.sources:
            table.add_row(row["source"], row["raw_table"], *(f"{row[name]:,}" for name in COUNTS))
        table.add_section()
        table.add_row("all that hold events", "", *(f"{self.events[name]:,}" for name in COUNTS))
        out.print(table)
        out.print("An export's event with several items is kept if one of them is.\n", style="dim")
        for title, counts in (
            ("Why rows were quarantined", self.reasons),
            ("Dead letters", self.dead_letters),
            ("What cleaning changed", self.cleaned),
            ("What was kept and marked", self.marked),
        ):
            if not counts:
                continue
            table = _table(title, "", "rows")
            for name, count in counts.items():
                table.add_row(name, f"{count:,}")
            out.print(table)
            out.print()
        if self.anomalies:
            table = _table(
                f"Anomalies of the last {ANOMALY_DAYS} closed days",
                "day",
                "source",
                "severity",
                "rules",
                "the clearest",
            )
            for each in table.columns:
                each.justify = "left"
            for row in self.anomalies:
                table.add_row(
                    str(row["day"]), row["source"], row["severity"], ", ".join(row["rules"]), said(row["clearest"][0])
                )
            out.print(table)
            out.print()
        if self.stale_rates:
            out.print(f"{self.stale_rates}\n", style="yellow")
        table = _table("What is published", "mart", "rows", "columns")
        for mart, (rows, columns) in self.marts.items():
            table.add_row(mart, f"{rows:,}", str(columns))
        out.print(table)
        for mart, names in self.empty.items():
            out.print(
                f"{mart}: {len(names)} of {self.marts[mart][1]} columns are null in every row: {', '.join(names)}",
                style="yellow",
                markup=False,
            )
        out.print(f"Money is in {self.reporting_currency}; days are of {self.shop_time_zone}.\n", style="dim")
        if self.sample:
            money = f", money in {self.reporting_currency}"
            table = _table(f"user_features, a sample, as of {self.as_of} UTC{money}", "", *[""] * len(self.sample))
            for column in self.sample[0]:
                table.add_row(column, *(_value(row[column]) for row in self.sample))
            out.print(table)
            out.print()


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", header_style="dim")
    return table


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = str(value)
    return text[:8] + "…" if len(text) > 20 else text.rstrip("0").rstrip(".") if "." in text else text


def account(where: Settings | None = None) -> Account:
    """Read the published marts. Raises FinegrainError if nothing is published."""
    where = where or settings()
    folder = current(where)
    if folder is None:
        raise FinegrainError(
            f"nothing is published in {where.published}; run `finegrain build` and `finegrain publish`"
        )
    with duckdb.connect(str(folder / DATABASE), read_only=True) as con:
        built_from, as_of = con.execute("select any_value(built_from), any_value(as_of) from dim_products").fetchall()[
            0
        ]
        currency, zone = shop_of(con)
        sources = _dicts(con, _SOURCES)
        return Account(
            published=str(where.published / DATABASE),
            built_from=built_from,
            as_of=str(as_of)[:19],
            reporting_currency=currency,
            shop_time_zone=zone,
            stale_rates=stale_rates(con, "fct_events"),
            sources=sources,
            events=_sums([row for row in sources if row["raw_table"] in EVENT_TABLES]),
            reasons=dict(con.execute(_REASONS).fetchall()),
            dead_letters=_dead_letters(where),
            cleaned={name: count for name, count in con.execute(_CLEANED).fetchall() if count},
            marked={name: count for name, count in con.execute(_MARKED).fetchall() if count},
            anomalies=_anomalies(con, ANOMALY_DAYS),
            marts=marts_of(folder),
            empty=_empty_columns(con, folder),
            sample=_dicts(con, _SAMPLE),
        )


def shop_of(con: duckdb.DuckDBPyConnection) -> tuple[str | None, str | None]:
    """The reporting currency and the time zone of the published marts; unknown for marts from before dim_shop existed."""
    try:
        found = con.execute("select reporting_currency, shop_time_zone from dim_shop").fetchall()
    except duckdb.CatalogException:
        return None, None
    return found[0] if found else (None, None)


def _dead_letters(where: Settings) -> dict[str, int]:
    """Dead letters by rule; empty if this machine has no lake and only reads marts."""
    if isinstance(where.lake_catalog, Path) and not where.lake_catalog.exists():
        return {}  # do not create a lake
    try:
        con = lake.connect(where, read_only=True)
    except FinegrainError:
        return {}
    try:
        return waiting_letters(con)
    finally:
        con.close()


def waiting_letters(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Dead letters in the attached lake that have not been replayed, by rule."""
    return dict(con.execute(_DEAD_LETTERS).fetchall())


def ledger(where: Settings | None = None) -> dict[str, int]:
    """All raw rows by verdict, from the published ledger: `raw_rows`, `kept`, `duplicates`, `quarantined`; empty if nothing is published."""
    folder = current(where or settings())
    if folder is None:
        return {}
    with duckdb.connect(str(folder / DATABASE), read_only=True) as con:
        sources = _dicts(con, _SOURCES)
    return _sums(sources)


def anomalies(days: int, where: Settings | None = None) -> list[dict[str, Any]]:
    """What was anomalous in the last `days` closed days of the published build, by day, source and owner, the newest day first, without what is
    suppressed: `severity` (the highest), `rules`, and the three `clearest` values; empty if nothing is published."""
    folder = current(where or settings())
    if folder is None:
        return []
    with duckdb.connect(str(folder / DATABASE), read_only=True) as con:
        return _anomalies(con, days)


def _anomalies(con: duckdb.DuckDBPyConnection, days: int) -> list[dict[str, Any]]:
    try:
        return _dicts(con, _ANOMALIES, {"days": days})
    except duckdb.CatalogException:  # marts from before there was metric_anomalies
        return []


def said(anomaly: Mapping[str, Any]) -> str:
    """One anomalous value in words: `completeness of price (device mobile) is 0, expected 0.78`."""
    of = "" if anomaly["column_name"] == "row" else f" of {anomaly['column_name']}"
    where = f" ({anomaly['segment']} {anomaly['segment_value']})" if anomaly["segment"] not in ("all", "source") else ""
    limits = " to ".join(f"{limit:.4g}" for limit in (anomaly["low"], anomaly["high"]) if limit is not None)
    expected = f"allowed {limits}" if anomaly["expected"] is None else f"expected {anomaly['expected']:.4g}"
    return f"{anomaly['metric']}{of}{where} is {anomaly['value']:.4g}, {expected}"


def _sums(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in COUNTS}


def _empty_columns(con: duckdb.DuckDBPyConnection, folder: Path) -> dict[str, list[str]]:
    """The columns that are null in every row, by mart, from the statistics in Parquet footers. Footers count the elements of lists, so lists
    are counted by a query."""
    found: dict[str, list[str]] = {}
    for mart, (rows, _) in marts_of(folder).items():
        if not rows:
            continue
        kinds = {column: kind for column, kind, *_ in con.execute(f"describe {identifier(mart)}").fetchall()}
        files = str(folder / "parquet" / mart / "*.parquet")
        footers = con.execute(
            "select path_in_schema, sum(stats_null_count) from parquet_metadata($files) group by all", {"files": files}
        ).fetchall()
        empty = {str(column) for column, nulls in footers if nulls == rows and column in kinds}
        lists = [column for column, kind in kinds.items() if kind.endswith("[]")]
        if lists:
            counted = ", ".join(f"count({identifier(column)})" for column in lists)
            [counts] = con.execute(f"select {counted} from {identifier(mart)}").fetchall()
            empty |= {column for column, count in zip(lists, counts, strict=True) if count == 0}
        if empty:
            found[mart] = [column for column in kinds if column in empty]
    return found


def _dicts(con: duckdb.DuckDBPyConnection, query: str, given: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    found = con.execute(query, given)
    columns = [column[0] for column in found.description or []]
    return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]


_SOURCES: Final = """
    select source, raw_table, sum(raw_rows)::bigint as raw_rows, sum(kept)::bigint as kept,
        sum(duplicates)::bigint as duplicates, sum(quarantined)::bigint as quarantined
    from event_ledger group by source, raw_table order by raw_rows desc, source, raw_table
"""
_ANOMALIES: Final = """
    select
        day, source, owner, min(severity) as severity, list(distinct rule_id order by rule_id) as rules,
        list(
            {metric: metric, segment: segment, segment_value: segment_value, column_name: column_name, value: value, expected: expected, low: low, high: high}
            order by abs(score) desc nulls last, rule_id
        )[:3] as clearest
    from metric_anomalies
    where not is_suppressed and day >= cast(as_of as date) - cast($days as integer)
    group by day, source, owner
    order by day desc, severity, source, owner
"""
_REASONS: Final = """
    select reason, count(*) from (select unnest(reasons) as reason from quarantined_events) group by reason
    order by count(*) desc, reason
"""
_DEAD_LETTERS: Final = f"""
    select rule_id, count(*) from lake.raw.dead_letters as d where {lake.IS_WAITING}
    group by rule_id order by count(*) desc, rule_id
"""
_CLEANED: Final = """
    select 'price outliers treated', count(*) filter (price_is_outlier) from fct_events
    union all select 'quantity outliers treated', count(*) filter (quantity_is_outlier) from fct_events
    union all select 'weight outliers treated', count(*) filter (weight_is_outlier) from dim_products
    union all select 'income outliers flagged', count(*) filter (income_is_outlier) from dim_customers
    union all select 'categories corrected in the catalogue', count(*) filter (category_is_corrected) from dim_products
    union all (
        select record || ' ' || column_name || ' imputed', sum(imputed_rows)::bigint
        from missingness_audit group by record, column_name order by record, column_name
    )
"""
_MARKED: Final = """
    select warning, count(*) from (select unnest(warnings) as warning from fct_events) group by warning
    union all select 'assumed_currency in the catalogue', count(*) from dim_products where price_raw is not null and currency is null
    order by 2 desc, 1
"""
# Customers with many events, from different segments.
_SAMPLE: Final = f"""
    select customer_id, {", ".join(SAMPLE)} from user_features
    qualify row_number() over (partition by rfm_segment order by views_365d desc, customer_id) = 1
    order by revenue_365d desc, customer_id limit {SAMPLE_ROWS}
"""
