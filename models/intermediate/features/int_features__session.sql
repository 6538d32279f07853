{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={
        'live': 'slice',
        'change_set': 'int_features__changed_sessions',
        'change_keys': ['session_id'],
        'spine': 'int_features__session_spine',
    },
    post_hook="{{ move_watermark('int_features__changed_sessions', has_as_of=true) }}",
) }}
-- What each session was, as far as it could be seen at the moment asked for (macros/features.sql).
{% set first_of = ['page', 'referrer', 'campaign', 'device', 'country', 'client_class'] %}
{% set lists = [('last_products', 'product_id'), ('last_categories', 'category')] %}
with asked as (

    {{ asked('session_id', 'int_features__session_spine', 'int_features__changed_sessions') | indent(4) }}

),

---------- the events of each session that were visible at as_of

-- On which days a session had events, so that those of all other days need not be read.
session_days as (

    select distinct s.session_id, s.as_of, t.event_day
    from asked as s
    inner join {{ ref('int_tiles__identity_session') }} as t on s.session_id = t.session_id

),

visible as (

    select
        d.as_of,
        e.session_id,
        e.event_id,
        e.identity,
        e.event_type,
        e.event_at,
        e.product_id,
        e.category,
        e.brand,
        e.order_key,
        e.quantity,
        {% for column in first_of %}
        e.{{ column }},
        {% endfor %}
        e.amount
    from session_days as d
    inner join {{ ref('int_cleaning__events') }} as e
        on
            d.session_id = e.session_id
            and d.event_day = e.event_day
            and d.as_of > e.event_at
            and {{ is_valid_at('d.as_of', 'e.known_from', 'e.known_to') }}
    where e.event_day >= (select min(m.event_day) from session_days as m)

),

-- In the order of events, each with how often something had been added to the cart before it.
placed as (

    select
        *,
        row_number() over in_order as place,
        {{ seconds_between('event_at', 'lead(event_at) over in_order') }} as dwell_seconds,
        count(case when event_type = 'add_to_cart' then 1 end) over (
            in_order rows between unbounded preceding and 1 preceding
        ) as adds_before
    from visible
    window in_order as (partition by session_id, as_of order by event_at, event_id)

),

---------- what each session adds up to

sessions as (

    select
        session_id,
        as_of,
        {% for column in first_of %}
        max(case when place = 1 then {{ column }} end) as {{ column }},
        {% endfor %}
        -- The login, if one was seen: 'u:' sorts after 'a:'.
        max(identity) as identity,
        min(event_at) as started_at,
        max(event_at) as last_event_at,
        count(*) as events,
        {% for name, type, expression in declared_measures(['session']) %}
        {{ expression }} as {{ name }},
        {% endfor %}
        count(distinct order_key) as orders,
        count(distinct product_id) as distinct_products,
        count(distinct category) as distinct_categories,
        count(distinct brand) as distinct_brands,
        cast(sum(case when event_type = 'view_item' then dwell_seconds end) as double)
        / count(case when event_type = 'view_item' then dwell_seconds end) as dwell_seconds_mean,
        cast(max(case when event_type = 'view_item' then dwell_seconds end) as double) as dwell_seconds_max,
        -- The first addition itself is neither before nor after.
        {{ count_if("adds_before = 0 and event_type <> 'add_to_cart'") }} as events_before_first_cart_add,
        {{ count_if('adds_before > 0') }} as events_after_first_cart_add,
        {{ count_if("adds_before = 0 and event_type = 'view_item'") }} as views_before_first_cart_add,
        {{ count_if("adds_before > 0 and event_type = 'view_item'") }} as views_after_first_cart_add,
        min(case when event_type = 'add_to_cart' then event_at end) as first_cart_add_at,
        {{ left_in_cart('amount') }} as cart_value,
        -- As in amounts, what says no quantity is one.
        {{ left_in_cart('coalesce(quantity, 1)') }} as cart_units
    from placed
    group by session_id, as_of

),

---------- the last products and categories

{% for name, column in lists %}
{{ name }} as (

    select
        session_id,
        as_of,
        {{ newest_of(column, var('session_last_k')) }} as {{ name }}
    from (
        select
            session_id,
            as_of,
            {{ column }},
            row_number() over (partition by session_id, as_of order by max(place) desc) as recency
        from placed
        where {{ column }} is not null
        group by session_id, as_of, {{ column }}
    ) as distinct_values
    group by session_id, as_of

),

{% endfor %}

final as (

    select
        s.session_id,
        s.as_of,
        s.identity,
        s.started_at,
        s.last_event_at,

        ---------- what was done
        s.events,
        {% for name in measure_names('session') %}
        s.{{ name }},
        {% endfor %}
        s.orders,
        s.dwell_seconds_mean,
        s.dwell_seconds_max,

        ---------- products and categories
        s.distinct_products,
        s.distinct_categories,
        s.distinct_brands,
        {% for name, column in lists %}
        coalesce({{ name }}.{{ name }}, {{ empty_list() }}) as {{ name }},
        {% endfor %}

        ---------- the cart
        s.events_before_first_cart_add,
        s.events_after_first_cart_add,
        s.views_before_first_cart_add,
        s.views_after_first_cart_add,
        {{ whole_seconds('s.started_at', 's.first_cart_add_at') }} as seconds_to_first_cart_add,
        s.cart_value,
        s.cart_units,

        ---------- how it began
        {% for column in first_of %}
        s.{{ column }},
        {% endfor %}
        {{ pinned() }} as built_in
    from sessions as s
    {% for name, column in lists %}
    left join {{ name }} on s.session_id = {{ name }}.session_id and s.as_of = {{ name }}.as_of
    {% endfor %}

)

select * from final
