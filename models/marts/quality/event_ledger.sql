-- For each source and day of arrival: how many raw rows came in, and what became of them. Every raw row is counted exactly once: as kept
-- if any of its items is, else as quarantined if any of its items is, else as a duplicate. Only an event of an export may have several
-- items; these are also counted by themselves.
with verdicts as (

    select raw_table, raw_rowid, source, cast(raw_available_at as date) as arrival_day, verdict
    from {{ ref('int_events__validated') }}
    where verdict <> 'superseded'
    union all
    select raw_table, raw_rowid, source, cast(raw_available_at as date) as arrival_day, verdict
    from {{ ref('int_reference__record_verdicts') }}

),

raw_rows as (

    select
        raw_table,
        source,
        arrival_day,
        {{ count_if("verdict = 'kept'") }} as kept,
        {{ count_if("verdict = 'duplicate'") }} as duplicates,
        {{ count_if("verdict = 'quarantined'") }} as quarantined
    from verdicts
    where raw_table = 'ga4_events'
    group by raw_table, raw_rowid, source, arrival_day
    union all
    select
        raw_table,
        source,
        arrival_day,
        case when verdict = 'kept' then 1 else 0 end as kept,
        case when verdict = 'duplicate' then 1 else 0 end as duplicates,
        case when verdict = 'quarantined' then 1 else 0 end as quarantined
    from verdicts
    where raw_table <> 'ga4_events'

),

counted as (

    select
        raw_table,
        source,
        arrival_day,
        {{ count_if('kept > 0') }} as kept,
        {{ count_if('kept = 0 and quarantined = 0') }} as duplicates,
        {{ count_if('kept = 0 and quarantined > 0') }} as quarantined,
        cast(sum(kept) as bigint) as kept_items,
        cast(sum(duplicates) as bigint) as duplicate_items,
        cast(sum(quarantined) as bigint) as quarantined_items
    from raw_rows
    group by raw_table, source, arrival_day

)

select
    coalesce(r.raw_table, c.raw_table) as raw_table,
    coalesce(r.source, c.source) as source,
    coalesce(r.arrival_day, c.arrival_day) as arrival_day,
    cast(coalesce(r.raw_rows, 0) as bigint) as raw_rows,
    coalesce(c.kept, 0) as kept,
    coalesce(c.duplicates, 0) as duplicates,
    coalesce(c.quarantined, 0) as quarantined,
    coalesce(c.kept_items, 0) as kept_items,
    coalesce(c.duplicate_items, 0) as duplicate_items,
    coalesce(c.quarantined_items, 0) as quarantined_items,
    b.as_of,
    b.built_from
from {{ ref('stg_lake__row_counts') }} as r
full outer join counted as c
    on r.raw_table = c.raw_table and r.source = c.source and r.arrival_day = c.arrival_day
cross join {{ ref('int_identity__build') }} as b
