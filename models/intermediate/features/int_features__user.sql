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
-- What each customer did, up to the moment asked for (macros/features.sql).
with {{ asked_members() }},

---------- what each source of state says at as_of

days as (

    {{ as_of_tiles('identity_day', open_events='open_events') | indent(4) }}

),

products as (

    {{ as_of_tiles('identity_product', open_events='open_events') | indent(4) }}

),

sessions as (

    {{ as_of_tiles('identity_session', open_events='open_events') | indent(4) }}

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
        {{ measures_by_hours('user') | indent(8) }}
        {% for suffix, hours in hour_windows() %}
        {% set inside = in_hours(hours) %}
        {{ count_distinct_if(inside, 'order_key') }} as orders_{{ suffix }},
        {{ count_distinct_if(inside, 'session_id') }} as sessions_{{ suffix }},
        {{ count_distinct_if(inside, 'event_day') }} as active_days_{{ suffix }},
        {{ count_distinct_if(inside, 'product_id') }} as distinct_products_{{ suffix }},
        {{ count_distinct_if(inside ~ ' and product_id is not null', 'category') }} as distinct_categories_{{ suffix }},
        {{ count_distinct_if(inside ~ ' and product_id is not null', 'brand') }} as distinct_brands_{{ suffix }},
        {% endfor %}
        customer_id,
        as_of
    from last_day
    group by customer_id, as_of

),

---------- windows of days

by_day as (

    select
        customer_id,
        as_of,
        min(first_at) as first_event_at,
        max(last_at) as last_event_at,
        max(last_view_at) as last_view_at,
        {{ measures_by_days('user') | indent(8) }}
        {% for suffix, days in share_windows() %}
        {{ window_share('discount_amount', 'listed_amount', days) }} as discount_share_{{ suffix }},
        {{ window_share('price_total', 'priced_events', days) }} as price_mean_{{ suffix }},
        {{ exact_std(
            window_sum('priced_events', days, 'bigint'),
            window_sum('price_total', days, 'decimal(38, 4)'),
            window_sum('price_square_total', days, 'decimal(38, 8)')
        ) }} as price_std_{{ suffix }},
        {{ window_share('price_percentile_total', 'ranked_events', days) }} as price_percentile_mean_{{ suffix }},
        {{ window_share('refunded_units', 'units', days) }} as returned_share_{{ suffix }},
        {% for name, part, whole in habit_shares() %}
        {{ window_share(part, whole, days) }} as {{ name }}_{{ suffix }},
        {% endfor %}
        {% endfor %}
        max(last_cart_add_at) as last_cart_add_at
    from days
    group by customer_id, as_of

),

active_days as (

    {{ distinct_by_days(
        'active_days', 'event_day', '(' ~ as_of_tiles('identity_day', open_events='open_events') ~ ') as days'
    ) | indent(4) }}

),

by_product_and_category as (

    select
        customer_id,
        as_of,
        as_of_day,
        product_id,
        category,
        brand,
        {{ window_sum('events', 90, 'bigint') }} as events_90d,
        {{ window_sum('events', none, 'bigint') }} as events_lifetime,
        max(event_day) as last_day
    from products
    group by customer_id, as_of, as_of_day, product_id, category, brand

),

by_product as (

    {{ distinct_by_days('distinct_products', 'product_id', 'by_product_and_category', day='last_day') | indent(4) }}

),

by_brand as (

    {{ distinct_by_days('distinct_brands', 'brand', 'by_product_and_category', day='last_day') | indent(4) }}

),

category_counts as (

    select
        customer_id,
        as_of,
        as_of_day,
        category,
        sum(events_90d) as events_90d,
        sum(events_lifetime) as events_lifetime,
        max(last_day) as last_day
    from by_product_and_category
    where category is not null
    group by customer_id, as_of, as_of_day, category

),

category_totals as (

    select
        *,
        sum(events_90d) over (partition by customer_id, as_of) as all_90d,
        sum(events_lifetime) over (partition by customer_id, as_of) as all_lifetime
    from category_counts

),

by_category as (

    select
        {% for suffix, days in day_windows() %}
        {{ count_if(in_window(days, 'last_day')) }} as distinct_categories_{{ suffix }},
        {% endfor %}
        {% for suffix, days in share_windows() %}
        -- Shannon entropy, in nats.
        round(sum(case
            when events_{{ suffix }} > 0
                then -(cast(events_{{ suffix }} as double) / all_{{ suffix }}) * ln(cast(events_{{ suffix }} as double) / all_{{ suffix }})
        end), 9) as category_entropy_{{ suffix }},
        {% endfor %}
        customer_id,
        as_of
    from category_totals
    group by customer_id, as_of

),

---------- sessions and carts

whole_sessions as (

    select
        customer_id,
        as_of,
        as_of_day,
        session_id,
        {% for suffix, days in day_windows() %}
        sum(case when {{ in_window(days) }} then events end) as events_{{ suffix }},
        {% endfor %}
        {% for suffix, days in share_windows() %}
        {{ whole_seconds(
            'min(case when ' ~ in_window(days) ~ ' then first_at end)', 'max(case when ' ~ in_window(days) ~ ' then last_at end)'
        ) }} as seconds_{{ suffix }},
        {% endfor %}
        max(event_day) as last_day,
        max(last_at) as last_at,
        sum(cart_adds) as cart_adds,
        sum(purchases) as purchases,
        {{ at_least_zero('sum(cart_value)') }} as cart_value
    from sessions
    group by customer_id, as_of, as_of_day, session_id

),

by_session as (

    select
        {% for suffix, days in day_windows() %}
        cast(count(events_{{ suffix }}) as bigint) as sessions_{{ suffix }},
        {% endfor %}
        {% for suffix, days in share_windows() %}
        {{ share('sum(seconds_' ~ suffix ~ ')', 'count(seconds_' ~ suffix ~ ')') }} as session_seconds_mean_{{ suffix }},
        {% endfor %}
        {% for suffix, days in count_windows() %}
        {% set abandoned %}cart_adds > 0 and purchases = 0
            and last_at < as_of - {{ minutes(var('session_gap_minutes')) }} and {{ in_window(days, 'last_day') }}{% endset %}
        {{ count_if(abandoned) }} as abandoned_carts_{{ suffix }},
        {{ money_if(abandoned, 'cart_value') }} as abandoned_cart_value_{{ suffix }},
        {% endfor %}
        customer_id,
        as_of
    from whole_sessions
    group by customer_id, as_of

),

---------- orders

whole_orders as (

    select
        customer_id,
        as_of,
        as_of_day,
        order_key,
        min(ordered_at) as ordered_at,
        {% for suffix, days in day_windows() %}
        count(case when {{ in_window(days) }} then 1 end) as lines_{{ suffix }},
        {% endfor %}
        sum(revenue) as revenue
    from orders
    group by customer_id, as_of, as_of_day, order_key

),

spaced_orders as (

    select
        *,
        {{ whole_seconds(
            'lag(ordered_at) over (partition by customer_id, as_of order by ordered_at, order_key)', 'ordered_at'
        ) }} as gap_seconds
    from whole_orders

),

by_order as (

    select
        customer_id,
        as_of,
        {% for suffix, days in day_windows() %}
        {{ count_if('lines_' ~ suffix ~ ' > 0') }} as orders_{{ suffix }},
        {% endfor %}
        max(ordered_at) as last_order_at,
        {{ share('sum(revenue)', 'count(revenue)') }} as order_value_mean,
        cast(max(revenue) as decimal(38, 4)) as order_value_max,
        {{ share('sum(gap_seconds)', '(count(gap_seconds) * 86400)') }} as order_gap_days_mean,
        {{ exact_std(
            'count(gap_seconds)', 'cast(sum(gap_seconds) as decimal(19, 0))',
            'cast(sum(cast(gap_seconds as decimal(19, 0)) * cast(gap_seconds as decimal(19, 0))) as decimal(38, 0))'
        ) }} / 86400 as order_gap_days_std
    from spaced_orders
    group by customer_id, as_of

),

final as (

    select
        s.customer_id,
        s.as_of,

        ---------- windows
        {{ or_zero('r', measure_names('user') + distinct_count_names(), hour_windows()) | indent(8) }}
        {{ or_zero('d', measure_names('user'), day_windows()) | indent(8) }}
        {{ or_zero('a', ['active_days'], day_windows()) | indent(8) }}
        {{ or_zero('o', ['orders'], day_windows()) | indent(8) }}
        {{ or_zero('v', ['sessions'], day_windows()) | indent(8) }}
        {{ or_zero('p', ['distinct_products'], day_windows()) | indent(8) }}
        {{ or_zero('c', ['distinct_categories'], day_windows()) | indent(8) }}
        {{ or_zero('k', ['distinct_brands'], day_windows()) | indent(8) }}

        ---------- moments
        d.first_event_at,
        d.last_event_at,
        d.last_view_at,
        d.last_cart_add_at,
        o.last_order_at,

        ---------- orders
        o.order_value_mean,
        o.order_value_max,
        o.order_gap_days_mean,
        o.order_gap_days_std,
        {% for suffix, days in share_windows() %}
        d.discount_share_{{ suffix }},
        -- What comes back may have been bought before the window.
        case when d.returned_share_{{ suffix }} > 1 then 1 else d.returned_share_{{ suffix }} end as return_rate_{{ suffix }},
        {% endfor %}

        ---------- carts
        {% for suffix, days in count_windows() %}
        coalesce(v.abandoned_carts_{{ suffix }}, 0) as abandoned_carts_{{ suffix }},
        case when v.as_of is null then 0 else v.abandoned_cart_value_{{ suffix }} end as abandoned_cart_value_{{ suffix }},
        {% endfor %}

        ---------- preferences and habits
        {% for suffix, days in share_windows() %}
        d.price_mean_{{ suffix }},
        d.price_std_{{ suffix }},
        d.price_percentile_mean_{{ suffix }},
        c.category_entropy_{{ suffix }},
        {% for name, part, whole in habit_shares() %}
        d.{{ name }}_{{ suffix }},
        {% endfor %}
        v.session_seconds_mean_{{ suffix }},
        {% endfor %}
        {{ pinned() }} as built_in
    from asked as s
    left join recent as r on s.customer_id = r.customer_id and s.as_of = r.as_of
    left join by_day as d on s.customer_id = d.customer_id and s.as_of = d.as_of
    left join active_days as a on s.customer_id = a.customer_id and s.as_of = a.as_of
    left join by_product as p on s.customer_id = p.customer_id and s.as_of = p.as_of
    left join by_category as c on s.customer_id = c.customer_id and s.as_of = c.as_of
    left join by_brand as k on s.customer_id = k.customer_id and s.as_of = k.as_of
    left join by_session as v on s.customer_id = v.customer_id and s.as_of = v.as_of
    left join by_order as o on s.customer_id = o.customer_id and s.as_of = o.as_of

)

select * from final
