{{ config(materialized='view') }}
{% set state = ref('int_features__user') %}
{% set rates = [('view_to_cart', 'cart_adds', 'views'), ('cart_to_unit', 'units', 'cart_adds')] %}
{% set rfm_window = var('rfm_days') ~ 'd' %}
---------- the shop as a whole: what rates of customers with little history are smoothed towards

with days as (

    select distinct cast(as_of as date) as as_of_day from {{ state }}

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

),

shop as (

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

),

rfm_values as (

    select customer_id, as_of, 'recency_days' as measure, {{ hours_between('last_order_at', 'as_of') }} / 24 as score_of from {{ state }}
    where last_order_at is not null
    union all
    select customer_id, as_of, 'orders' as measure, cast(orders_{{ rfm_window }} as double) as score_of from {{ state }}
    where orders_{{ rfm_window }} > 0
    union all
    select customer_id, as_of, 'revenue' as measure, cast(revenue_{{ rfm_window }} as double) as score_of from {{ state }}
    where orders_{{ rfm_window }} > 0

),

rfm as (

    select
        v.customer_id,
        v.as_of,
        max(case when v.measure = 'recency_days' then b.score end) as rfm_recency_score,
        max(case when v.measure = 'orders' then b.score end) as rfm_frequency_score,
        max(case when v.measure = 'revenue' then b.score end) as rfm_monetary_score
    from rfm_values as v
    inner join {{ seed('rfm_bounds') }} as b
        on v.measure = b.measure and v.score_of >= b.at_least and (v.score_of < b.below or b.below is null)
    group by v.customer_id, v.as_of

),

final as (

    select
        ---------- key
        s.customer_id,
        s.as_of,
        b.built_from,

        ---------- windows
        {{ by_window('s', mart_measure_names('user') + distinct_count_names(), window_names()) | indent(8) }}

        ---------- recency and tenure
        {{ hours_between('s.last_view_at', 's.as_of') }} as hours_since_view,
        {{ hours_between('s.last_cart_add_at', 's.as_of') }} as hours_since_cart_add,
        {{ hours_between('s.last_order_at', 's.as_of') }} as hours_since_order,
        {{ hours_between('s.last_event_at', 's.as_of') }} as hours_since_session,
        {{ hours_between('s.first_event_at', 's.as_of') }} / 24 as tenure_days,

        ---------- orders
        s.order_value_mean,
        s.order_value_max,
        s.order_gap_days_mean,
        s.order_gap_days_std,
        s.order_gap_days_mean - {{ hours_between('s.last_order_at', 's.as_of') }} / 24 as days_to_expected_order,
        {% for suffix, days in share_windows() %}
        s.discount_share_{{ suffix }},
        s.return_rate_{{ suffix }},
        {% endfor %}

        ---------- rates, smoothed towards the shop's
        {% for suffix, days in share_windows() %}
        {% for rate, taken, tried in rates %}
        {{ smoothed_rate(
            's.' ~ taken ~ '_' ~ suffix,
            's.' ~ tried ~ '_' ~ suffix,
            'least(coalesce(' ~ share('h.' ~ taken ~ '_' ~ suffix, 'h.' ~ tried ~ '_' ~ suffix) ~ ', 0), 1)'
        ) }} as {{ rate }}_rate_{{ suffix }},
        {% endfor %}
        {% endfor %}

        ---------- carts
        {% for suffix, days in count_windows() %}
        s.abandoned_carts_{{ suffix }},
        s.abandoned_cart_value_{{ suffix }},
        {% endfor %}

        ---------- preferences and habits
        {% for suffix, days in share_windows() %}
        s.price_mean_{{ suffix }},
        s.price_std_{{ suffix }},
        s.price_percentile_mean_{{ suffix }},
        s.category_entropy_{{ suffix }},
        {% for name, part, whole in habit_shares() %}
        s.{{ name }}_{{ suffix }},
        {% endfor %}
        s.session_seconds_mean_{{ suffix }},
        s.session_seconds_mean_{{ suffix }} is null as session_seconds_mean_{{ suffix }}_was_missing,
        {% endfor %}

        ---------- segment
        cast(f.rfm_recency_score as integer) as rfm_recency_score,
        cast(f.rfm_frequency_score as integer) as rfm_frequency_score,
        cast(f.rfm_monetary_score as integer) as rfm_monetary_score,
        g.segment as rfm_segment
    from {{ state }} as s
    cross join {{ ref('int_identity__build') }} as b
    left join shop as h on cast(s.as_of as date) = h.as_of_day
    left join rfm as f on s.customer_id = f.customer_id and s.as_of = f.as_of
    left join {{ seed('rfm_segments') }} as g
        on f.rfm_recency_score = g.recency_score and f.rfm_frequency_score = g.frequency_score

)

select * from final
