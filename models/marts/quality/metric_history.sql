-- The metrics of every closed day, by table, source, segment and column, from the states of int_metrics__daily. A day on which nothing
-- arrived, between a source's first day and the last closed one, has a volume of zero. Drift compares a day with the reference_days before
-- it, all of them, also those that were anomalous themselves. Numbers are compared by buckets about 22 % wide. Volume and freshness are of
-- all rows; other metrics leave out rows that are quarantined as a bot's, which nobody has to correct, and which have metrics of their own.
{% set series = 'table_name, source, segment, segment_value' %}
{% set column_keys = 'table_name, source, column_name' %}
{% set day_ends = 'least(cast(' ~ add_days('d.day', 1) ~ ' as timestamp), b.as_of)' %}
with build as (

    select as_of, as_of_day, built_from from {{ ref('int_identity__build') }}

),

states as {{ inlined() }} (

    select d.*, d.raw_table as table_name
    from {{ ref('int_metrics__daily') }} as d
    inner join build as b on d.arrival_day < b.as_of_day

),

records as (

    select
        raw_table,
        source,
        cast(raw_available_at as date) as arrival_day,
        count(*) as all_rows,
        {{ count_if("verdict = 'duplicate'") }} as duplicates,
        {{ count_if("verdict = 'quarantined'") }} as quarantined,
        cast(null as bigint) as bots,
        max({{ whole_seconds('cast(cast(raw_available_at as date) as timestamp)', 'raw_available_at') }}) as last_second
    from {{ ref('int_reference__record_verdicts') }}
    where coalesce(reason, '') <> 'deleted_at_source'
    group by raw_table, source, cast(raw_available_at as date)

),

-- Rows, verdicts and the last arrival of each day, the build's own among them.
counted as (

    select
        d.raw_table as table_name,
        d.source,
        d.segment,
        d.segment_value,
        d.arrival_day as day,
        max(case when d.state = 'rows' then d.n end) as all_rows,
        max(case when d.state = 'verdict' and d.bucket = 'duplicate' then d.n end) as duplicates,
        max(case when d.state = 'verdict' and d.bucket = 'quarantined' then d.n end) as quarantined,
        max(case when d.state = 'verdict' and d.bucket = 'bot' then d.n end) as bots,
        max(case when d.state = 'last_second' then d.n end) as last_second
    from {{ ref('int_metrics__daily') }} as d
    inner join build as b on d.arrival_day <= b.as_of_day
    where d.column_name = 'row'
    group by d.raw_table, d.source, d.segment, d.segment_value, d.arrival_day
    union all
    select
        r.raw_table,
        r.source,
        'source' as segment,
        r.source as segment_value,
        r.arrival_day,
        r.all_rows,
        r.duplicates,
        r.quarantined,
        r.bots,
        r.last_second
    from records as r
    inner join build as b on r.arrival_day <= b.as_of_day

),

with_all as (

    select * from counted
    union all
    select
        table_name,
        'all' as source,
        'all' as segment,
        'all' as segment_value,
        day,
        cast(sum(all_rows) as bigint) as all_rows,
        cast(sum(duplicates) as bigint) as duplicates,
        cast(sum(quarantined) as bigint) as quarantined,
        cast(sum(bots) as bigint) as bots,
        max(last_second) as last_second
    from counted
    where segment = 'source'
    group by table_name, day

),

calendar as (

    select {{ series }}, {{ unfold(day_range('first_day', add_days('as_of_day', 1))) }} as day
    from (
        select s.table_name, s.source, s.segment, s.segment_value, min(s.day) as first_day, max(b.as_of_day) as as_of_day
        from with_all as s
        cross join build as b
        group by s.table_name, s.source, s.segment, s.segment_value
    ) as spans

),

days as (

    select
        c.table_name,
        c.source,
        c.segment,
        c.segment_value,
        c.day,
        coalesce(w.all_rows, 0) as all_rows,
        coalesce(w.all_rows, 0) - coalesce(w.bots, 0) as other_rows,
        w.duplicates,
        w.quarantined,
        w.bots,
        {{ last_known('cast(w.day as timestamp) + w.last_second * interval 1 second') }} over arrivals as last_arrival_at
    from calendar as c
    left join with_all as w
        on c.table_name = w.table_name and c.source = w.source and c.segment = w.segment
            and c.segment_value = w.segment_value and c.day = w.day
    window arrivals as (
        partition by c.table_name, c.source, c.segment, c.segment_value
        order by c.day
        rows between unbounded preceding and current row
    )

),

nulls as (

    select
        table_name,
        source,
        segment,
        segment_value,
        column_name,
        arrival_day as day,
        n as missing
    from states
    where state = 'nulls'
    union all
    select
        table_name,
        'all' as source,
        'all' as segment,
        'all' as segment_value,
        column_name,
        arrival_day as day,
        cast(sum(n) as bigint) as missing
    from states
    where state = 'nulls' and segment = 'source'
    group by table_name, column_name, arrival_day

),

-- A column that a segment never had says nothing.
completeness as (

    select
        n.*,
        d.other_rows,
        sum(d.other_rows - n.missing) over (
            partition by n.table_name, n.source, n.segment, n.segment_value, n.column_name
            order by n.day
            rows between unbounded preceding and current row
        ) as given_so_far
    from nulls as n
    inner join days as d
        on n.table_name = d.table_name and n.source = d.source and n.segment = d.segment
            and n.segment_value = d.segment_value and n.day = d.day

),

-- Sketches of the sources of a table merge into one of the table: the smallest hashes of all.
id_numbers as (

    select
        table_name,
        source,
        column_name,
        arrival_day,
        {{ unfold('sketch') }} as id_number
    from states
    where state = 'ids'

),

merged as (

    select
        table_name,
        'all' as source,
        column_name,
        arrival_day,
        id_number,
        row_number() over (partition by table_name, column_name, arrival_day order by id_number) as place
    from (select distinct table_name, column_name, arrival_day, id_number from id_numbers) as numbers_of_table

),

distinct_ids as (

    select
        {{ column_keys }},
        arrival_day as day,
        case
            when count(*) < {{ sketch_size() }} then cast(count(*) as double)
            else ({{ sketch_size() }} - 1) * cast(1152921504606846976 as double) / max(id_number)
        end as distinct_values
    from (
        select {{ column_keys }}, arrival_day, id_number from id_numbers
        union all
        select {{ column_keys }}, arrival_day, id_number from merged where place <= {{ sketch_size() }}
    ) as sketches
    group by {{ column_keys }}, arrival_day

),

top_ids as (

    select
        {{ column_keys }},
        arrival_day as day,
        n as most
    from states
    where state = 'ids'

),

given as (

    select
        table_name,
        source,
        segment,
        column_name,
        day,
        other_rows - missing as given
    from completeness
    where segment in ('all', 'source')

),

buckets as (

    select
        {{ column_keys }},
        arrival_day as day,
        state,
        bucket,
        n,
        total
    from states
    where state in ('histogram', 'labels')

),

column_buckets as (

    select distinct {{ column_keys }}, state, bucket from buckets

),

column_days as (

    select distinct {{ column_keys }}, day from buckets

),

-- Every bucket of a column on every day on which the column has a value.
grid as (

    select
        k.table_name,
        k.source,
        k.column_name,
        k.state,
        k.bucket,
        c.day,
        coalesce(b.n, 0) as n,
        sum(coalesce(b.n, 0)) over (
            partition by k.table_name, k.source, k.column_name, k.bucket
            order by {{ days_between("date '1970-01-01'", 'c.day') }}
            range between {{ var('reference_days') }} preceding and 1 preceding
        ) as reference_n
    from column_buckets as k
    inner join column_days as c
        on k.table_name = c.table_name and k.source = c.source and k.column_name = c.column_name
    left join buckets as b
        on
            k.table_name = b.table_name and k.source = b.source and k.column_name = b.column_name
            and k.bucket = b.bucket and c.day = b.day

),

distributions as (

    select
        *,
        sum(n) over of_day as all_n,
        sum(reference_n) over of_day as all_reference_n,
        count(*) over of_day as bucket_count,
        -- The order of labels means nothing, so nothing is made of it.
        sum(n) over up_to_bucket as running_n,
        sum(reference_n) over up_to_bucket as running_reference_n
    from grid
    where n > 0 or reference_n > 0
    window
        of_day as (partition by {{ column_keys }}, day),
        up_to_bucket as (
            partition by {{ column_keys }}, day
            order by case when state = 'histogram' then cast(bucket as integer) end, bucket
            rows between unbounded preceding and current row
        )

),

shares as (

    select
        *,
        -- Half a row more in each bucket, so that a bucket that is new, or empty, is not infinitely far off.
        (n + 0.5) / (all_n + 0.5 * bucket_count) as share,
        (reference_n + 0.5) / (all_reference_n + 0.5 * bucket_count) as reference_share,
        abs(cast(running_n as double) / all_n - cast(running_reference_n as double) / all_reference_n) as gap
    from distributions
    where all_n > 0 and all_reference_n > 0

),

drift as (

    select
        {{ column_keys }},
        state,
        day,
        max(all_n) as n,
        -- Added up exactly, so that the order of adding never shows.
        cast(sum(cast(
            (cast(share as double) - reference_share) * ln(cast(share as double) / reference_share) as decimal(18, 9)
        )) as double) as psi,
        max(gap) as ks
    from shares
    group by {{ column_keys }}, state, day

),

numbers as (

    select
        {{ column_keys }},
        day,
        n,
        total,
        sum(n) over of_day as all_n,
        sum(total) over of_day as all_total,
        sum(n) over (
            partition by {{ column_keys }}, day
            order by cast(bucket as integer)
            rows between unbounded preceding and current row
        ) as running_n,
        bucket
    from buckets
    where state = 'histogram'
        and column_name in (
            '{{ measured_columns() | join("', '") }}'
        )
    window of_day as (partition by {{ column_keys }}, day)

),

levels as (

    select
        {{ column_keys }},
        day,
        max(all_n) as n,
        cast(max(all_total) as double) / max(all_n) as mean,
        -- A bucket's value is the mean of what fell into it.
        max(case when running_n * 2 >= all_n and (running_n - n) * 2 < all_n then cast(total as double) / n end) as median
    from numbers
    group by {{ column_keys }}, day

),

metrics as (

    {% for metric, value, n, condition in [
        ('volume', 'cast(d.all_rows as double)', 'all_rows', 'd.day < b.as_of_day'),
        ('duplicate_share', 'cast(d.duplicates as double) / d.other_rows', 'other_rows', 'd.day < b.as_of_day and d.other_rows > 0'),
        ('quarantined_share', 'cast(d.quarantined as double) / d.other_rows', 'other_rows', 'd.day < b.as_of_day and d.other_rows > 0'),
        ('bot_share', 'cast(d.bots as double) / d.all_rows', 'all_rows', 'd.day < b.as_of_day and d.all_rows > 0 and d.bots is not null'),
        (
            'freshness', 'greatest(' ~ hours_between('d.last_arrival_at', day_ends) ~ ', 0)', 'all_rows',
            "d.segment in ('all', 'source')",
        ),
    ] %}
    select
        '{{ metric }}' as metric,
        d.table_name,
        d.source,
        d.segment,
        d.segment_value,
        'row' as column_name,
        d.day,
        {{ value }} as value,
        d.{{ n }} as n
    from days as d
    cross join build as b
    where {{ condition }}
    union all
    {% endfor %}
    select
        'bot_identity_share' as metric,
        table_name,
        source,
        segment,
        segment_value,
        'row' as column_name,
        arrival_day as day,
        cast(max(case when bucket = 'bot' then n end) as double) / max(case when bucket = 'all' then n end) as value,
        max(case when bucket = 'all' then n end) as n
    from states
    where state = 'identities'
    group by {{ series }}, arrival_day
    having max(case when bucket = 'all' then n end) > 0
    union all
    select
        'completeness' as metric,
        {{ series }},
        column_name,
        day,
        cast(other_rows - missing as double) / other_rows as value,
        other_rows as n
    from completeness
    where other_rows > 0 and given_so_far > 0
    union all
    select
        'distinctness' as metric,
        g.table_name,
        g.source,
        g.segment,
        g.source as segment_value,
        g.column_name,
        g.day,
        least(i.distinct_values / g.given, 1) as value,
        g.given as n
    from given as g
    inner join distinct_ids as i
        on g.table_name = i.table_name and g.source = i.source and g.column_name = i.column_name and g.day = i.day
    where g.given > 0
    union all
    select
        'top_share' as metric,
        g.table_name,
        g.source,
        g.segment,
        g.source as segment_value,
        g.column_name,
        g.day,
        cast(t.most as double) / g.given as value,
        g.given as n
    from given as g
    inner join top_ids as t
        on g.table_name = t.table_name and g.source = t.source and g.column_name = t.column_name and g.day = t.day
    where g.given > 0
    {% for metric in ['mean', 'median'] %}
    union all
    select
        '{{ metric }}' as metric,
        table_name,
        source,
        'source' as segment,
        source as segment_value,
        column_name,
        day,
        {{ metric }} as value,
        n
    from levels
    {% endfor %}
    {% for metric, condition in [('psi', 'true'), ('ks', "state = 'histogram'")] %}
    union all
    select
        '{{ metric }}' as metric,
        table_name,
        source,
        'source' as segment,
        source as segment_value,
        column_name,
        day,
        {{ metric }} as value,
        n
    from drift
    where {{ condition }}
    {% endfor %}

)

select
    m.metric,
    m.table_name,
    m.source,
    m.segment,
    m.segment_value,
    m.column_name,
    m.day,
    m.value,
    cast(m.n as bigint) as n,
    b.as_of,
    b.built_from
from metrics as m
cross join build as b
