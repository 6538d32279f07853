{{ config(materialized='view', meta={'live': 'slice'}) }}
{% set state = ref('int_features__user') %}
{% set rates = [('view_to_cart', 'cart_adds', 'views'), ('cart_to_unit', 'units', 'cart_adds')] %}
{% set rfm_window = var('rfm_days') ~ 'd' %}
{% set ordered = 's.orders_' ~ rfm_window ~ ' > 0' %}
{% set rfm_measures = [
    ('rr', 'recency_days', hours_between('s.last_order_at', 's.as_of') ~ ' / 24', 's.last_order_at is not null'),
    ('rf', 'orders', 'cast(s.orders_' ~ rfm_window ~ ' as double)', ordered),
    ('rm', 'revenue', 'cast(s.revenue_' ~ rfm_window ~ ' as double)', ordered),
] %}
with final as (

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
        cast(rr.score as integer) as rfm_recency_score,
        cast(rf.score as integer) as rfm_frequency_score,
        cast(rm.score as integer) as rfm_monetary_score,
        g.segment as rfm_segment
    from {{ state }} as s
    cross join {{ ref('int_identity__build') }} as b
    left join {{ ref('int_features__shop') }} as h on cast(s.as_of as date) = h.as_of_day
    {% for alias, measure, value, condition in rfm_measures %}
    left join {{ seed('rfm_bounds') }} as {{ alias }}
        on
            {{ alias }}.measure = '{{ measure }}'
            and {{ condition }}
            and {{ value }} >= {{ alias }}.at_least
            and ({{ value }} < {{ alias }}.below or {{ alias }}.below is null)
    {% endfor %}
    left join {{ seed('rfm_segments') }} as g on rr.score = g.recency_score and rf.score = g.frequency_score

)

select * from final
