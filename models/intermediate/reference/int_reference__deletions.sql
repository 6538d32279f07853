-- The last deletion of each place. Customers and products that a database deletes keep their history; what was unloaded, or
-- mapped again, does not.
with deletions as (

    select
        *,
        case when has_key then {{ without_version('position') }} else position end as place
    from {{ ref('stg_lake__deletions') }}
    where raw_table not in ('customers', 'products') or not has_key

)

select
    source,
    raw_table,
    has_key,
    place,
    max(position) as position,
    max(ingested_at) as ingested_at,
    max(arrived_in) as arrived_in
from deletions
group by source, raw_table, has_key, place
