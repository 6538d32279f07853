{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'change_set': 'int_changes__days', 'change_keys': ['event_day']},
    post_hook="{{ move_watermark('int_changes__days') }}",
) }}
-- How often each ordered pair of products was met together, by the day of the first one's meeting and the day that both
-- meetings could be seen (macros/pairs.sql).
with meetings as (

    select * from {{ ref('int_tiles__daily_product_touches') }}

),

-- One row a meeting and what is counted of it.
met as (

    {% for name, kind, other_kind, before, after in pair_counts() %}
    select
        '{{ name }}' as counted,
        identity,
        product_id,
        event_day,
        arrival_day,
        touched_at - interval {{ before }} hour as from_at,
        touched_at + interval {{ after }} hour as to_at
    from meetings
    where kind = '{{ kind }}' and {{ is_changed('int_changes__days', ['event_day']) }}
    {{ "union all" if not loop.last }}
    {% endfor %}

),

-- The meetings that may be its other half, as seen from each day that 24 hours reach: days are joined on equality.
others as (

    {% for name, kind, other_kind, before, after in pair_counts() %}
    select
        '{{ name }}' as counted,
        m.identity,
        m.product_id,
        {{ add_days('m.event_day', 'o.days') }} as event_day,
        m.arrival_day,
        m.touched_at
    from meetings as m
    cross join (values {{ "(-1), (0), (1)" if before else "(-1), (0)" }}) as o (days)
    where m.kind = '{{ other_kind }}' and {{ is_changed('int_changes__days', [(add_days('m.event_day', 'o.days'), 'event_day')]) }}
    {{ "union all" if not loop.last }}
    {% endfor %}

),

-- The other product may be met on two or three days within reach: the pair is there as soon as one is.
near as (

    select
        m.counted,
        m.product_id,
        o.product_id as other_product_id,
        m.event_day,
        greatest(m.arrival_day, min(o.arrival_day)) as arrival_day
    from met as m
    inner join others as o
        on
            m.identity = o.identity
            and m.counted = o.counted
            and m.event_day = o.event_day
            and m.product_id <> o.product_id
            and m.from_at <= o.touched_at
            and m.to_at >= o.touched_at
    group by m.counted, m.identity, m.product_id, m.event_day, m.arrival_day, o.product_id

),

ordered as (

    select
        'co_orders' as counted,
        a.product_id,
        b.product_id as other_product_id,
        a.event_day,
        greatest(a.arrival_day, b.arrival_day) as arrival_day
    from {{ ref('int_tiles__order_products') }} as a
    inner join {{ ref('int_tiles__order_products') }} as b
        on a.identity = b.identity and a.order_key = b.order_key and a.product_id <> b.product_id
    where {{ is_changed('int_changes__days', [('a.event_day', 'event_day')]) }}

),

together as (

    select * from near
    union all
    select * from ordered

)

select
    {% for name in pair_count_names() %}
    {{ count_if("counted = '" ~ name ~ "'") }} as {{ name }},
    {% endfor %}
    product_id,
    other_product_id,
    event_day,
    arrival_day,
    {{ pinned() }} as built_in
from together
group by product_id, other_product_id, event_day, arrival_day
