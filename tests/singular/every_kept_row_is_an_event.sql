-- What the ledger calls kept is what the facts hold, by source; that each is there once, the key of fct_events says.
{{ config(meta={'dagster': {'ref': {'name': 'event_ledger'}}}) }}
with ledger as (

    select
        source,
        sum(kept_items) as kept,
        sum(quarantined_items) as quarantined
    from {{ ref('event_ledger') }}
    where raw_table in ('events', 'ga4_events', 'order_items', 'refunds')
    group by source

),

events as (

    select source, count(*) as kept from {{ ref('fct_events') }} group by source

),

quarantined as (

    select source, count(*) as quarantined from {{ ref('quarantined_events') }} group by source

)

select
    l.source,
    l.kept,
    coalesce(e.kept, 0) as events,
    l.quarantined,
    coalesce(q.quarantined, 0) as quarantined_events
from ledger as l
full outer join events as e on l.source = e.source
full outer join quarantined as q on coalesce(l.source, e.source) = q.source
where l.source is null
    or l.kept <> coalesce(e.kept, 0)
    or l.quarantined <> coalesce(q.quarantined, 0)
