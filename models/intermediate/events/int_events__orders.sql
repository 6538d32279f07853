-- The newest version of every order header, and since when what events take from it is known: a buyer or a moment that
-- a later version brought must not be seen before that version had arrived. Of an order that is gone, the last that was said.
with gone as (

    {{ gone_rows(ref('stg_shop__orders'), 'raw_rowid', "'orders'") | indent(4) }}

),

versions as (

    select
        {{ all_but('s', ['user_id', 'anonymous_id', 'source_session_id']) }},
        {{ known_id('s.user_id') }} as user_id,
        {{ known_id('s.anonymous_id') }} as anonymous_id,
        {{ known_id('s.source_session_id') }} as source_session_id,
        g.raw_rowid is not null as is_gone
    from {{ ref('stg_shop__orders') }} as s
    left join gone as g on s.raw_rowid = g.raw_rowid
    where {{ is_usable_id('s.order_id') }} and s.raw_error is null

),

ranked as (

    select
        *,
        min(raw_available_at) over (
            partition by order_id, user_id, anonymous_id, source_session_id, currency, created_at, is_gone
        ) as known_at,
        max(arrived_in) over (partition by order_id) as changed_in,
        row_number() over (
            partition by order_id
            order by is_gone asc, updated_at desc nulls last, raw_available_at desc, position desc, source desc, raw_rowid desc
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
    is_gone,
    coalesce(
        created_at > paid_at or paid_at > shipped_at or created_at > shipped_at,
        false
    ) as is_disordered
from ranked
where newest = 1
