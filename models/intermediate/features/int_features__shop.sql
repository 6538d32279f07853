{{ config(
    meta={'closed_days': 'values', 'live': 'shop'},
    post_hook="{{ move_watermark('int_cleaning__events') }}",
) }}
-- The shop as a whole: what rates of customers with little history are smoothed towards.
with days as (

    select distinct cast(as_of as date) as as_of_day from {{ ref('int_features__customer_spine') }}

),

shop_days as (

    select
        event_day,
        arrival_day,
        until_day,
        sum(views) as views,
        sum(cart_adds) as cart_adds,
        sum(units) as units
    from {{ ref('int_tiles__identity_day') }}
    group by event_day, arrival_day, until_day

)

select
    {% for suffix, days in share_windows() %}
    {% for measure in ['views', 'cart_adds', 'units'] %}
    {{ window_sum('t.' ~ measure, days, 'decimal(38, 4)') }} as {{ measure }}_{{ suffix }},
    {% endfor %}
    {% endfor %}
    d.as_of_day
from days as d
left join shop_days as t on {{ is_closed_by('d.as_of_day', 't', at_its_begin=true) }}
group by d.as_of_day
