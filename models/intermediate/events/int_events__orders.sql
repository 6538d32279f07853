-- The newest version of every order header, and since when the order is known at all.
with versions as (

    select * from {{ ref('stg_shop__orders') }}
    where order_id is not null and raw_error is null

),

ranked as (

    select
        *,
        min(raw_available_at) over (partition by order_id) as known_at,
        max(arrived_in) over (partition by order_id) as changed_in,
        row_number() over (
            partition by order_id
            order by updated_at desc nulls last, raw_available_at desc, position desc, raw_rowid desc
        ) as newest
    from versions

)

select
    order_id,
    user_id,
    anonymous_id,
    source_session_id,
    status,
    currency,
    created_at,
    paid_at,
    shipped_at,
    known_at,
    changed_in,
    coalesce(
        created_at > paid_at or paid_at > shipped_at or created_at > shipped_at,
        false
    ) as is_disordered
from ranked
where newest = 1
