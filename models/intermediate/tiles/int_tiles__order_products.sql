{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'change_set': 'int_changes__orders', 'change_keys': ['order_key']},
    post_hook="{{ move_watermark('int_cleaning__events') }}",
) }}
-- Which products each order holds: the line of each that could be seen first, and of all products the first
-- pair_basket_limit (macros/pairs.sql). By whole orders, since a database's lines of one order may lie on several days. Where
-- a line ended, there is another answer for the days up to its end.
with lines as (

    select
        identity,
        order_key,
        product_id,
        event_day,
        event_at,
        cast(available_at as date) as arrival_day,
        until_day,
        {{ visible_at() }} as visible_at
    from {{ ref('int_cleaning__events') }}
    where
        product_id is not null and order_key is not null and {{ outlived_its_day() }}
        and {{ is_changed('int_changes__orders', ['order_key']) }}

),

{{ in_periods('lines', ['order_key']) }},

firsts as (

    select
        *,
        row_number() over (partition by identity, order_key, product_id, ends_on order by visible_at, event_at) as line
    from in_periods

),

placed as (

    select
        *,
        row_number() over (partition by identity, order_key, ends_on order by visible_at, product_id) as place
    from firsts
    where line = 1

)

select
    identity,
    order_key,
    product_id,
    event_day,
    greatest(cast(visible_at as date), begins_on) as arrival_day,
    ends_on as until_day,
    place
from placed
where place <= {{ var('pair_basket_limit') }}
