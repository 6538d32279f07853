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
        until_day,
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
        m.until_day,
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
        m.identity,
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
    where m.until_day is null and o.until_day is null
    group by m.counted, m.identity, m.product_id, m.event_day, m.arrival_day, o.product_id

),

-- Of touches that ended, the pairs as they were until then: few, so they are joined by themselves.
ended_pairs as (

    {% for side in ["m.until_day is not null", "m.until_day is null and o.until_day is not null"] %}
    select
        m.counted,
        m.identity,
        m.product_id,
        o.product_id as other_product_id,
        m.event_day,
        greatest(m.arrival_day, o.arrival_day) as arrival_day,
        least(m.until_day, o.until_day) as until_day
    from counted_touches as m
    inner join other_touches as o
        on
            m.identity = o.identity
            and m.counted = o.counted
            and m.event_day = o.event_day
            and m.product_id <> o.product_id
            and m.from_at <= o.touched_at
            and m.to_at >= o.touched_at
    where {{ side }}
    {{ "union all" if not loop.last }}
    {% endfor %}

),

-- A pair that is still there counts from its own first day on, and one that several touches make up counts once.
ended_before_open as (

    select
        e.counted,
        e.identity,
        e.product_id,
        e.other_product_id,
        e.event_day,
        e.arrival_day,
        least(e.until_day, p.arrival_day) as until_day
    from ended_pairs as e
    left join pairs_of_touches as p
        on
            e.counted = p.counted
            and e.identity = p.identity
            and e.product_id = p.product_id
            and e.other_product_id = p.other_product_id
            and e.event_day = p.event_day

),

ended_spans as (

    select
        *,
        max(until_day) over (of_pair rows between unbounded preceding and 1 preceding) as reached
    from ended_before_open
    where arrival_day < until_day
    window of_pair as (
        partition by counted, identity, product_id, other_product_id, event_day order by arrival_day, until_day
    )

),

pairs_of_orders as (

    select
        'co_orders' as counted,
        a.product_id,
        b.product_id as other_product_id,
        a.event_day,
        greatest(a.arrival_day, b.arrival_day) as arrival_day,
        least(a.until_day, b.until_day) as until_day
    from {{ ref('int_tiles__order_products') }} as a
    inner join {{ ref('int_tiles__order_products') }} as b
        on a.identity = b.identity and a.order_key = b.order_key and a.product_id <> b.product_id
    where {{ is_changed('int_changes__days', [('a.event_day', 'event_day')]) }}

),

pairs as (

    select counted, product_id, other_product_id, event_day, arrival_day, cast(null as date) as until_day
    from pairs_of_touches
    union all
    select counted, product_id, other_product_id, event_day, greatest(arrival_day, reached) as arrival_day, until_day
    from ended_spans
    where reached is null or until_day > reached
    union all
    select * from pairs_of_orders
    where until_day is null or arrival_day < until_day

)

select
    {% for name in pair_count_names() %}
    {{ count_if("counted = '" ~ name ~ "'") }} as {{ name }},
    {% endfor %}
    product_id,
    other_product_id,
    event_day,
    arrival_day,
    until_day,
    {{ pinned() }} as built_in
from pairs
group by product_id, other_product_id, event_day, arrival_day, until_day
