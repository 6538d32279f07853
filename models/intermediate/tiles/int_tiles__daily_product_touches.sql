{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'change_set': 'int_changes__identity_days', 'change_keys': ['identity', 'event_day']},
    post_hook="{{ move_watermark('int_cleaning__events') }}",
) }}
-- Which products each identity touched on each day, by kind: the event of each that could be seen first, and of all products the
-- first pair_basket_limit (macros/pairs.sql). Where an event ended, there is another answer for the days up to its end.
with product_events as (

    select
        identity,
        case event_type
            {% for event_type, kind in touch_kinds().items() %}
            when '{{ event_type }}' then '{{ kind }}'
            {% endfor %}
        end as kind,
        product_id,
        event_day,
        event_at,
        cast(available_at as date) as arrival_day,
        until_day,
        {{ visible_at() }} as visible_at
    from {{ ref('int_cleaning__events') }}
    where
        product_id is not null
        and {{ outlived_its_day() }}
        and {{ is_changed('int_changes__identity_days', ['identity', 'event_day']) }}
        and event_type in ('{{ touch_kinds() | join("', '") }}')

),

{{ in_periods('product_events', ['identity', 'event_day']) }},

firsts as (

    select
        *,
        row_number() over (
            partition by identity, kind, product_id, event_day, ends_on order by visible_at, event_at
        ) as nth_event
    from in_periods

),

placed as (

    select
        identity,
        kind,
        product_id,
        event_day,
        event_at as touched_at,
        visible_at,
        begins_on,
        ends_on,
        row_number() over (partition by identity, kind, event_day, ends_on order by visible_at, event_at, product_id) as place
    from firsts
    where nth_event = 1

)

select
    identity,
    kind,
    product_id,
    event_day,
    greatest(cast(visible_at as date), begins_on) as arrival_day,
    ends_on as until_day,
    touched_at,
    visible_at,
    place
from placed
where place <= {{ var('pair_basket_limit') }}
