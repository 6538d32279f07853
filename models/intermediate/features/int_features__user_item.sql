{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ find_touched('customer_id') }}",
    post_hook=["{{ bring_to_this_moment() }}", "{{ move_watermark('int_events__validated') }}"],
) }}
-- What each customer did with each product they met, up to the moment asked for (macros/features.sql).
-- {{ hooks_read(['int_events__cleaned', 'int_events__validated', 'int_identity__build']) }}
{% set key = ['customer_id', 'as_of', 'as_of_day', 'product_id'] %}
with asked as (

    {{ asked('customer_id') | indent(4) }}

),

members as (

    {{ as_of_members('asked') | indent(4) }}

),

---------- what each source of state says at as_of

products as (

    {{ as_of_tiles('identity_product') | indent(4) }}

),

item_orders as (

    {{ as_of_tiles('item_order') | indent(4) }}

),

orders as (

    {{ as_of_tiles('identity_order') | indent(4) }}

),

last_day as (

    {{ as_of_last_day() | indent(4) }}

),

---------- the last hour and the last 24 hours, exact

recent as (

    select
        {{ measures_by_hours('user_item') | indent(8) }}
        {% for suffix, hours in hour_windows() %}
        {{ count_distinct_if(in_hours(hours), 'order_key') }} as orders_{{ suffix }},
        {% endfor %}
        customer_id,
        as_of,
        product_id
    from last_day
    where product_id is not null
    group by customer_id, as_of, product_id

),

---------- windows of days

weighed_products as (

    {{ weighed() | indent(4) }}

),

by_product as (

    select
        {{ measures_by_days('user_item') | indent(8) }}
        {% for half_life in var('half_lives') %}
        {{ affinity_billionths(half_life) }} as affinity_{{ half_life }}d,
        {% endfor %}
        min(first_at) as first_event_at,
        max(last_view_at) as last_view_at,
        max(last_cart_add_at) as last_cart_add_at,
        max(last_cart_remove_at) as last_cart_remove_at,
        max(last_order_at) as last_bought_at,
        {{ last_by('last_view_price', 'last_priced_view_at') }} as price_at_last_view,
        {{ key | join(', ') }}
    from weighed_products
    group by {{ key | join(', ') }}

),

---------- orders

orders_with_product as (

    {{ whole_orders('item_orders', key) | indent(4) }}

),

by_order as (

    select
        {{ orders_by_days() | indent(8) }}
        max(ordered_at) as last_order_at,
        -- The gaps between n orders add up to the time from the first to the last.
        case
            when count(*) > 1 then {{ hours_between('min(ordered_at)', 'max(ordered_at)') }} / 24 / (count(*) - 1)
        end as reorder_gap_days_mean,
        {{ key | join(', ') }}
    from orders_with_product
    group by {{ key | join(', ') }}

),

orders_of_any_product as (

    {{ whole_orders('orders', ['customer_id', 'as_of']) | indent(4) }}

),

-- How many orders the customer had made by the moment of each, and makes in all.
counted_orders as (

    select
        customer_id,
        as_of,
        ordered_at,
        sum(count(*)) over (partition by customer_id, as_of order by ordered_at) as orders_so_far,
        sum(count(*)) over (partition by customer_id, as_of) as orders
    from orders_of_any_product
    group by customer_id, as_of, ordered_at

),

since_order as (

    select
        i.*,
        cast(o.orders - o.orders_so_far as bigint) as orders_since_last
    from {{ asof_left_join(
        'by_order as i', 'counted_orders as o',
        [('i.customer_id', 'o.customer_id'), ('i.as_of', 'o.as_of')], 'i.last_order_at', 'o.ordered_at'
    ) }}

),

---------- one row a customer and product

final as (

    select
        p.customer_id,
        p.product_id,
        p.as_of,

        ---------- windows
        {{ or_zero('r', measure_names('user_item') + ['orders'], hour_windows()) | indent(8) }}
        {% for suffix, days in day_windows() %}
        {% for name in measure_names('user_item') %}
        p.{{ name }}_{{ suffix }},
        {% endfor %}
        coalesce(o.orders_{{ suffix }}, 0) as orders_{{ suffix }},
        {% endfor %}

        ---------- moments and prices
        p.first_event_at,
        p.last_view_at,
        p.last_cart_add_at,
        o.last_order_at,
        p.last_cart_add_at is not null
        and (p.last_cart_remove_at is null or p.last_cart_add_at > p.last_cart_remove_at)
        and (p.last_bought_at is null or p.last_cart_add_at > p.last_bought_at) as in_cart_now,
        o.orders_since_last,
        o.reorder_gap_days_mean,
        {% for half_life in var('half_lives') %}
        {{ affinity('p.affinity_' ~ half_life ~ 'd') }} as item_affinity_{{ half_life }}d,
        {% endfor %}
        p.price_at_last_view
    from by_product as p
    left join recent as r on p.customer_id = r.customer_id and p.as_of = r.as_of and p.product_id = r.product_id
    left join since_order as o on p.customer_id = o.customer_id and p.as_of = o.as_of and p.product_id = o.product_id

)

select * from final
