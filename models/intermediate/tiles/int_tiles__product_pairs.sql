{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'change_set': 'int_changes__days', 'change_keys': ['event_day']},
    post_hook="{{ move_watermark('int_changes__days') }}",
) }}
-- How often each ordered pair of products co-occurred, by the day of the first product's touch and the day on which both touches
-- could be seen (macros/pairs.sql).
with touches as (

    select * from {{ ref('int_tiles__daily_product_touches') }}

),

-- One row a touch and count that it may be part of.
counted_touches as (

    {% for name, kind, other_kind, before, after in pair_counts() %}
    select
        '{{ name }}' as counted,
        identity,
        product_id,
        event_day,
        arrival_day,
        touched_at - interval {{ before }} hour as from_at,
        touched_at + interval {{ after }} hour as to_at
    from touches
    where kind = '{{ kind }}' and {{ is_changed('int_changes__days', ['event_day']) }}
    {{ "union all" if not loop.last }}
    {% endfor %}

),

-- The touches that may be the other half of a pair, once for each day within 24 hours of them, so that days are joined on equality.
other_touches as (

    {% for name, kind, other_kind, before, after in pair_counts() %}
    select
        '{{ name }}' as counted,
        m.identity,
        m.product_id,
        {{ add_days('m.event_day', 'o.days') }} as event_day,
        m.arrival_day,
        m.touched_at
    from touches as m
    cross join (values {{ "(-1), (0), (1)" if before else "(-1), (0)" }}) as o (days)
    where m.kind = '{{ other_kind }}' and {{ is_changed('int_changes__days', [(add_days('m.event_day', 'o.days'), 'event_day')]) }}
    {{ "union all" if not loop.last }}
    {% endfor %}

),

-- The other product may be touched on two or three days within reach: the pair counts as soon as the first of them can be seen.
pairs_of_touches as (

    select
        m.counted,
        m.product_id,
        o.product_id as other_product_id,
        m.event_day,
        greatest(m.arrival_day, min(o.arrival_day)) as arrival_day
    from counted_touches as m
    inner join other_touches as o
        on
            m.identity = o.identity
            and m.counted = o.counted
            and m.event_day = o.event_day
            and m.product_id <> o.product_id
            and m.from_at <= o.touched_at
            and m.to_at >= o.touched_at
    group by m.counted, m.identity, m.product_id, m.event_day, m.arrival_day, o.product_id

),

pairs_of_orders as (

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

pairs as (

    select * from pairs_of_touches
    union all
    select * from pairs_of_orders

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
from pairs
group by product_id, other_product_id, event_day, arrival_day
