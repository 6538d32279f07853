"""What the page says, read from the published marts by SQL: one query a question. Nothing here names a person, a session or an order."""

from __future__ import annotations

from typing import Any, Final

import duckdb

from orchestration.sql.text import quote

#: Closed days before the build whose anomalies are recent; and days of history in a chart.
RECENT: Final = 28
HISTORY: Final = 400
#: Periods in which the matrices divide the history.
PERIODS: Final = 26
#: The most series that are drawn, sources in the flow, and rows of drift below which a day says little.
SERIES: Final = 40
FLOWS: Final = 8
MIN_ROWS: Final = 100
#: Reasons of rows that no shop loses money by: what they say is impossible, no person did it, or the source took it back.
WORTHLESS: Final = (
    "malformed",
    "deleted_at_source",
    "price_out_of_range",
    "discount_out_of_range",
    "quantity_out_of_range",
    "bot_user_agent",
    "bot_rate",
    "bot_behaviour",
)

Rows = list[dict[str, Any]]


def ask(con: duckdb.DuckDBPyConnection, query: str) -> Rows:
    """The rows of a query, by column; none if the marts are of an earlier version, which lacks what is asked for."""
    try:
        found = con.execute(query)
    except (duckdb.CatalogException, duckdb.BinderException):
        return []
    columns = [column[0] for column in found.description or []]
    return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]


#: Raw rows by source and verdict, as bands: at the left by source (`left_low` to `left_high`), at the right by verdict, as shares of the
#: height of all rows. `left_gap` and `right_gap`: how many bands of other sources and verdicts lie below.
FLOW: Final = f"""
    with sources as (
        select
            source, sum(kept) as kept, sum(duplicates) as duplicates, sum(quarantined) as quarantined,
            row_number() over (order by sum(kept + duplicates + quarantined) desc, source) as place
        from event_ledger group by source
    ),

    grouped as (
        select
            case when place <= {FLOWS} then source else 'other sources' end as source, min(place) as place,
            sum(kept) as kept, sum(duplicates) as duplicates, sum(quarantined) as quarantined
        from sources group by 1
    ),

    bands as (
        select source, -place as left_order, verdict, list_position(['quarantined', 'duplicates', 'kept'], verdict) as right_order, n
        from (unpivot grouped on kept, duplicates, quarantined into name verdict value n)
    ),

    stacked as (
        select
            *, sum(n) over () as total,
            sum(n) over (order by left_order, right_order) as left_top,
            sum(n) over (order by right_order, left_order) as right_top,
            dense_rank() over (order by left_order) - 1 as left_gap,
            right_order - 1 as right_gap
        from bands
    )

    select
        source, verdict, n::bigint as n, total::bigint as total, left_gap, right_gap,
        ((left_top - n) / total)::double as left_low, (left_top / total)::double as left_high,
        ((right_top - n) / total)::double as right_low, (right_top / total)::double as right_high,
        sum(n) over (partition by source)::bigint as source_rows, sum(n) over (partition by verdict)::bigint as verdict_rows
    from stacked
    where total > 0
    order by left_order desc, right_order desc
"""

# The worth of a quarantined purchase, in the reporting currency: at the median exchange rate of kept events; null where it is no loss, also
# where the same purchase was kept from another source.
_QUARANTINED: Final = f"""
    rates as (
        select currency, median(price / price_in_currency) as rate
        from fct_events where price_in_currency > 0 and price > 0 group by currency
    ),

    kept_lines as (
        select distinct order_id, product_id from fct_events where order_id is not null and event_type = 'purchase'
    ),

    quarantined as (
        select
            q.row_id, q.source, q.reasons, cast(q.raw_available_at as date) as day,
            case
                when q.event_type = 'purchase' and k.order_id is null
                    and not list_has_any(q.reasons, [{", ".join(map(quote, WORTHLESS))}])
                    then q.price * coalesce(q.quantity, 1) * case when q.currency is null then 1 else r.rate end
            end as worth
        from quarantined_events as q
        left join rates as r on q.currency = r.currency
        left join kept_lines as k on q.order_id = k.order_id and q.product_id is not distinct from k.product_id
    )
"""

#: Quarantined rows by reason: how many, since when and until when they came, how many of them recently, and the worth of the purchases.
REASONS: Final = f"""
    with {_QUARANTINED},

    built as (select cast(any_value(as_of) as date) as day from event_ledger)

    select
        reason, count(*) as n, count(*) filter (q.day >= b.day - {RECENT}) as recent,
        min(q.day) as since, max(q.day) as until, string_agg(distinct source, ', ' order by source) as sources,
        coalesce(sum(worth), 0)::double as worth
    from (select *, unnest(reasons) as reason from quarantined) as q
    cross join built as b
    group by reason
    order by worth desc, n desc, reason
"""

#: The worth of all quarantined purchases, each once; and what became of revenue by the treatment of outliers.
COSTS: Final = f"""
    with {_QUARANTINED}

    select
        (select coalesce(sum(worth), 0) from quarantined)::double as quarantined,
        (select count(*) from quarantined where worth > 0) as purchases,
        coalesce(sum(amount) filter (event_type = 'purchase'), 0)::double as revenue,
        coalesce(sum(amount_treated) filter (event_type = 'purchase'), 0)::double as revenue_treated
    from fct_events
"""

#: Recent anomalies by source and owner: since when, on how many days, by which rules, and the clearest value of the newest day.
INCIDENTS: Final = f"""
    select
        source, owner, min(severity) as severity, min(day) as since, max(day) as until, count(distinct day) as days,
        list(distinct rule_id order by rule_id) as rules, list(distinct metric order by metric) as metrics,
        arg_max(
            {{metric: metric, segment: segment, segment_value: segment_value, column_name: column_name, value: value, expected: expected}},
            (day, coalesce(abs(score), 0))
        ) as clearest
    from metric_anomalies
    where not is_suppressed and day >= cast(as_of as date) - {RECENT}
    group by source, owner
    order by until desc, severity, days desc, source, owner
"""

#: The series that are drawn, by source, the newest anomalies first: `left_out` says how many others there are.
SERIES_SHOWN: Final = f"""
    with anomalous as (
        select
            metric, table_name, source, segment, segment_value, column_name, max(day) as last_day, count(distinct day) as days,
            count(distinct day) filter (day >= cast(as_of as date) - {RECENT}) as recent_days
        from metric_anomalies
        where not is_suppressed and day >= cast(as_of as date) - {HISTORY}
        group by all
    ),

    series as (
        select distinct metric, table_name, source, segment, segment_value, column_name
        from metric_history where metric = 'volume' and segment = 'source'
        union
        select metric, table_name, source, segment, segment_value, column_name from anomalous
    ),

    ranked as (
        select
            s.*, a.last_day, coalesce(a.days, 0) as days, coalesce(a.recent_days, 0) as recent_days,
            row_number() over (
                order by
                    a.last_day desc nulls last, a.days desc nulls last, s.source, s.metric, s.table_name, s.segment_value, s.column_name
            ) as number
        from series as s
        left join anomalous as a using (metric, table_name, source, segment, segment_value, column_name)
    )

    select *, (select count(*) from ranked) - {SERIES} as left_out from ranked where number <= {SERIES} order by source, number
"""

#: The values of these series, and which of them are anomalous.
POINTS: Final = f"""
    with anomalous as (
        select
            metric, table_name, source, segment, segment_value, column_name, day,
            min(severity) as severity, any_value(expected) as expected, min(low) as low, max(high) as high
        from metric_anomalies where not is_suppressed group by all
    )

    select
        s.number, h.day, h.value, a.severity, a.expected, a.low, a.high
    from ({SERIES_SHOWN}) as s
    inner join metric_history as h using (metric, table_name, source, segment, segment_value, column_name)
    left join anomalous as a using (metric, table_name, source, segment, segment_value, column_name, day)
    where h.day >= cast(h.as_of as date) - {HISTORY}
    order by s.number, h.day
"""


def _matrix(metric: str, value: str, where: str, least: float) -> str:
    """A metric of sources by column and period, of the columns where it is ever at `least` so much."""
    return f"""
    with measured as (
        select
            *, min(day) over () as first_day,
            cast(ceil((date_diff('day', min(day) over (), max(day) over ()) + 1) / {PERIODS}) as integer) as days
        from metric_history
        where metric = '{metric}' and segment = 'source' and n > 0 and day >= cast(as_of as date) - {HISTORY}
    ),

    by_period as (
        select
            source, table_name, column_name, first_day + cast(date_diff('day', first_day, day) // days * days as integer) as period, days,
            {value} as value, sum(n)::bigint as n
        from measured
        {where}
        group by all
    )

    select * from by_period
    qualify max(value) over (partition by source, table_name, column_name) >= {least}
    order by source, table_name, column_name, period
    """


#: The share of rows without a value, by source, column and period; and the drift of a typical day against the days before it.
GAPS: Final = _matrix("completeness", "1 - sum(value * n) / sum(n)", "", 0.005)
DRIFT: Final = _matrix("psi", "median(value)", f"where n >= {MIN_ROWS}", 0.1)

#: The drift of the last seven days, the highest first.
DRIFT_NOW: Final = f"""
    select
        source, table_name, column_name, median(value) filter (metric = 'psi') as psi, median(value) filter (metric = 'ks') as ks,
        max(value) filter (metric = 'psi') as psi_worst, arg_max(day, value) filter (metric = 'psi') as worst_day
    from metric_history
    where metric in ('psi', 'ks') and segment = 'source' and n >= {MIN_ROWS} and day >= cast(as_of as date) - 7
    group by all
    having psi is not null
    order by psi desc, source, column_name
    limit 12
"""

#: What to do about gaps, where it is anything but leaving them alone; the largest gaps first.
ADVICE: Final = """
    select record, source, column_name, missing_share, missing_rows, imputed_rows, depends_on, missing_with, advice, reason
    from missingness_advice
    where missing_rows > 0
    order by advice = 'keep', imputed_rows >= missing_rows, missing_share desc, record, source, column_name
"""

# Each column that outlier rules treat: its values as reported and after treatment, of the rows that were treated.
_TREATED: Final = """
    treated as (
        select 'price' as column_name, price as before, price_treated as after, price_is_outlier as is_outlier from fct_events
        union all select 'quantity', quantity, quantity_treated, quantity_is_outlier from fct_events
        union all
        select 'weight (g)', weight_grams_raw, case when not weight_was_missing then weight_grams end, weight_is_outlier from dim_products
        union all select 'income', income_raw, income, income_is_outlier from dim_customers
    )
"""

#: Outliers by column: how many values there are, how many were treated, and their range before and after.
OUTLIERS: Final = f"""
    with {_TREATED}

    select
        column_name, count(before) as n, count(*) filter (is_outlier) as outliers,
        (min(before) filter (is_outlier))::double as before_low, (max(before) filter (is_outlier))::double as before_high,
        (median(before) filter (is_outlier))::double as before_median,
        (min(after) filter (is_outlier))::double as after_low, (max(after) filter (is_outlier))::double as after_high,
        (median(after) filter (is_outlier))::double as after_median,
        count(*) filter (is_outlier and after is null) as removed,
        count(*) filter (is_outlier and after is not distinct from before) as flagged
    from treated group by column_name having n > 0
    order by outliers desc, column_name
"""

#: The values that were treated, before and after, in buckets: four to a factor of ten.
OUTLIER_BUCKETS: Final = f"""
    with {_TREATED}

    select column_name, stage, pow(10, bucket / 4) as low, pow(10, (bucket + 1) / 4) as high, count(*) as n
    from (
        select column_name, stage, floor(log10(value) * 4) as bucket
        from (unpivot (select column_name, before::double as before, after::double as after from treated where is_outlier) on before, after
            into name stage value value)
        where value > 0
    )
    group by all order by all
"""

#: When the last row of each table and source came, in hours before the build; and the usual, at the end of a day of the 28 days before.
FRESHNESS: Final = f"""
    select
        table_name, source, arg_max(value, day) as hours,
        median(value) filter (day < cast(as_of as date) and day >= cast(as_of as date) - {RECENT}) as usual
    from metric_history
    where metric = 'freshness' and segment = 'source'
    group by table_name, source
    order by hours desc, table_name, source
"""

#: Every query of the page, by what it answers.
QUERIES: Final = {
    "flow": FLOW,
    "reasons": REASONS,
    "costs": COSTS,
    "incidents": INCIDENTS,
    "series_shown": SERIES_SHOWN,
    "points": POINTS,
    "gaps": GAPS,
    "drift": DRIFT,
    "drift_now": DRIFT_NOW,
    "advice": ADVICE,
    "outliers": OUTLIERS,
    "outlier_buckets": OUTLIER_BUCKETS,
    "freshness": FRESHNESS,
}
