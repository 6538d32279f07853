-- For each source and day of arrival: what came in, and what became of it. Every raw row is counted exactly once.
with judged as (

    select
        raw_table,
        source,
        cast(raw_available_at as date) as arrival_day,
        raw_rowid,
        verdict
    from {{ ref('int_events__validated') }}
    union all
    select
        raw_table,
        source,
        cast(raw_available_at as date) as arrival_day,
        raw_rowid,
        verdict
    from {{ ref('int_identity__records') }}

),

counted as (

    select
        raw_table,
        source,
        arrival_day,
        count(distinct raw_rowid) as judged_raw_rows,
        count(*) as judged_rows,
        {{ count_if("verdict = 'kept'") }} as kept,
        {{ count_if("verdict = 'duplicate'") }} as duplicates,
        {{ count_if("verdict = 'quarantined'") }} as quarantined
    from judged
    group by raw_table, source, arrival_day

)

select
    coalesce(r.raw_table, c.raw_table) as raw_table,
    coalesce(r.source, c.source) as source,
    coalesce(r.arrival_day, c.arrival_day) as arrival_day,
    cast(coalesce(r.raw_rows, 0) as bigint) as raw_rows,
    cast(coalesce(c.judged_raw_rows, 0) as bigint) as judged_raw_rows,
    cast(coalesce(c.judged_rows, 0) as bigint) as judged_rows,
    coalesce(c.kept, 0) as kept,
    coalesce(c.duplicates, 0) as duplicates,
    coalesce(c.quarantined, 0) as quarantined,
    b.built_from
from {{ ref('int_events__raw_counts') }} as r
full outer join counted as c
    on r.raw_table = c.raw_table and r.source = c.source and r.arrival_day = c.arrival_day
cross join {{ ref('int_identity__build') }} as b
