{{ config(materialized='view', meta={'live': 'slice'}) }}
with states as (

    select * from {{ ref('int_features__session') }}

),

{{ entries_of('states') }},

final as (

    select
        ---------- key
        s.session_id,
        s.as_of,
        b.built_from,

        ---------- who and when
        l.customer_id,
        s.started_at,
        s.last_event_at,
        {{ whole_seconds('s.started_at', 's.last_event_at') }} as length_seconds,
        cast({{ seconds_between('s.last_event_at', 's.as_of') }} as double) as seconds_since_last_event,
        s.last_event_at < s.as_of - {{ minutes(var('session_gap_minutes')) }} as is_over,

        ---------- what was done
        s.events,
        {% for name in mart_measure_names('session') %}
        s.{{ name }},
        {% endfor %}
        s.orders,
        s.orders > 0 as has_order,
        s.events = 1 as is_bounced,
        s.dwell_seconds_mean,
        s.dwell_seconds_max,

        ---------- products and categories
        s.distinct_products,
        s.distinct_categories,
        s.distinct_brands,
        {{ share('s.views', 's.distinct_products') }} as views_per_product,
        s.last_products,
        s.last_categories,

        ---------- the cart
        s.events_before_first_cart_add,
        s.events_after_first_cart_add,
        s.views_before_first_cart_add,
        s.views_after_first_cart_add,
        s.seconds_to_first_cart_add,
        s.cart_value,
        s.cart_units,

        ---------- how it came
        s.page as entry_page,
        s.referrer as entry_referrer,
        s.entry_campaign,
        s.entry_channel,
        s.visitor_class,
        s.device,
        s.country,
        {{ day_part('s.started_at') | indent(8) }} as day_part,
        {{ is_weekend('s.started_at') }} as is_weekend
    from entries as s
    cross join {{ ref('int_identity__build') }} as b
    inner join {{ ref('int_identity__links') }} as l
        on s.identity = l.identity and {{ is_valid_at('s.as_of', 'l.known_from', 'l.known_to') }}

)

select * from final
