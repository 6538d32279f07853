{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={
        'live': 'slice',
        'change_set': 'int_features__changed_customers',
        'change_keys': ['customer_id'],
        'spine': 'int_features__customer_spine',
    },
    post_hook="{{ move_watermark('int_features__changed_customers', has_as_of=true) }}",
) }}
-- What each customer did with each product that they had events about, up to the moment asked for (macros/features.sql).
{% set key = ['customer_id', 'as_of', 'as_of_day', 'product_id'] %}
{% set of_products = measure_names('user_item') + unpriced_names(['user_item']) + [
    'weight', 'first_at', 'last_view_at', 'last_cart_add_at', 'last_cart_remove_at', 'last_bought_at', 'last_view_price',
    'last_priced_view_at',
] %}
{% set of_hours = [] %}
{% for suffix, hours in hour_windows() %}
{% for name, type, expression in declared_measures(['user_item']) %}{% do of_hours.append([name ~ '_' ~ suffix, type]) %}{% endfor %}
{% do of_hours.append(['orders_' ~ suffix, 'bigint']) %}
{% endfor %}
{% set of_orders = [] %}
{% for suffix, days in day_windows() %}{% do of_orders.append(['orders_' ~ suffix, 'bigint']) %}{% endfor %}
{% do of_orders.extend([['last_order_at', 'timestamp'], ['orders_since_last', 'bigint'], ['reorder_gap_days_mean', 'double']]) %}
with {{ asked_members() }},

---------- what each source of state says at as_of

products as (

    {{ as_of_tiles('identity_product', open_events='open_events') | indent(4) }}

),

item_orders as (

    {{ as_of_tiles('product_order', open_events='open_events') | indent(4) }}

),

orders as (

    {{ as_of_tiles('identity_order', open_events='open_events') | indent(4) }}

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

weighted_products as (

    {{ weighted_events() | indent(4) }}

),

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

-- A union and one group by rather than joins: DuckDB spills a group by that memory does not hold, but underestimates so many rows, and
-- would build a hash table of them.
combined as (

    select
        {{ key | join(', ') }},
        {% for column in of_products %}
        {{ 'last_order_at as ' if column == 'last_bought_at' }}{{ column }},
        {% endfor %}
        {% for column, type in of_hours + of_orders %}
        cast(null as {{ type }}) as {{ column }},
        {% endfor %}
        event_day
    from weighted_products
    union all
    select
        customer_id,
        as_of,
        cast(as_of as date) as as_of_day,
        product_id,
        {% for column in of_products %}
        null as {{ column }},
        {% endfor %}
        {% for column, type in of_hours %}
        {{ column }},
        {% endfor %}
        {% for column, type in of_orders %}
        null as {{ column }},
        {% endfor %}
        cast(null as date) as event_day
    from recent
    union all
    select
        {{ key | join(', ') }},
        {% for column in of_products %}
        null as {{ column }},
        {% endfor %}
        {% for column, type in of_hours %}
        null as {{ column }},
        {% endfor %}
        {% for column, type in of_orders %}
        {{ column }},
        {% endfor %}
        cast(null as date) as event_day
    from since_order

)

select
    customer_id,
    product_id,
    as_of,
    {{ pinned() }} as built_in,

    ---------- windows
    -- Of the last 24 hours there is one row or none.
    {% for column, type in of_hours %}
    case when max(orders_24h) is null then 0 else max({{ column }}) end as {{ column }},
    {% endfor %}
    {{ measures_by_days('user_item') | indent(4) }}
    {% for suffix, days in day_windows() %}
    coalesce(max(orders_{{ suffix }}), 0) as orders_{{ suffix }},
    {% endfor %}

    ---------- moments and prices
    min(first_at) as first_event_at,
    max(last_view_at) as last_view_at,
    max(last_cart_add_at) as last_cart_add_at,
    max(last_order_at) as last_order_at,
    max(last_cart_add_at) is not null
    and (max(last_cart_remove_at) is null or max(last_cart_add_at) > max(last_cart_remove_at))
    and (max(last_bought_at) is null or max(last_cart_add_at) > max(last_bought_at)) as in_cart_now,
    max(orders_since_last) as orders_since_last,
    max(reorder_gap_days_mean) as reorder_gap_days_mean,
    {% for half_life in var('half_lives') %}
    {{ affinity(affinity_billionths(half_life)) }} as item_affinity_{{ half_life }}d,
    {% endfor %}
    {{ last_by('last_view_price', 'last_priced_view_at') }} as price_at_last_view
from combined
group by {{ key | join(', ') }}
