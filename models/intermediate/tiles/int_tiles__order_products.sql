{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ find_touched_baskets() }}",
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- Which products each order holds: the line of each that could be seen first, and of all products the first
-- pair_basket_limit (macros/pairs.sql). By whole orders, since a database's lines of one order may lie on several days.
-- {{ hooks_read(['int_events__validated']) }}
with lines as (

    select
        identity,
        order_key,
        product_id,
        event_day,
        event_at,
        {{ visible_at() }} as visible_at
    from {{ ref('int_cleaning__events') }}
    where product_id is not null and order_key is not null
        {% if is_incremental() %}
        and order_key in (select t.order_key from touched_baskets as t)
        {% endif %}

),

firsts as (

    select
        *,
        row_number() over (partition by identity, order_key, product_id order by visible_at, event_at) as line
    from lines

),

placed as (

    select
        *,
        row_number() over (partition by identity, order_key order by visible_at, product_id) as place
    from firsts
    where line = 1

)

select
    identity,
    order_key,
    product_id,
    event_day,
    cast(visible_at as date) as arrival_day,
    place
from placed
where place <= {{ var('pair_basket_limit') }}
