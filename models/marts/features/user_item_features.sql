{{ config(materialized='view', meta={'live': 'slice'}) }}
select
    ---------- key
    s.customer_id,
    s.product_id,
    s.as_of,
    b.built_from,

    ---------- windows
    {{ by_window('s', mart_measure_names('user_item') + ['orders'], window_names()) | indent(4) }}

    ---------- recency
    {{ hours_between('s.last_view_at', 's.as_of') }} as hours_since_view,
    {{ hours_between('s.last_cart_add_at', 's.as_of') }} as hours_since_cart_add,
    {{ hours_between('s.last_order_at', 's.as_of') }} as hours_since_order,
    {{ hours_between('s.first_event_at', 's.as_of') }} / 24 as days_since_first_event,

    ---------- cart and orders
    s.in_cart_now,
    s.orders_since_last,
    s.reorder_gap_days_mean,
    {{ share(hours_between('s.last_order_at', 's.as_of') ~ ' / 24', 's.reorder_gap_days_mean') }} as due_ratio,

    ---------- preference
    {% for half_life in var('half_lives') %}
    s.item_affinity_{{ half_life }}d,
    {% endfor %}

    ---------- the product, as the catalogue had it
    v.category,
    v.brand,
    v.price as price_now,
    s.price_at_last_view,
    {{ share('v.price', 's.price_at_last_view') }} - 1 as price_change_since_view
from {{ ref('int_features__user_item') }} as s
cross join {{ ref('int_identity__build') }} as b
left join {{ ref('int_reference__product_versions') }} as v
    on s.product_id = v.product_id and {{ is_valid_at('s.as_of', 'v.known_at', 'v.known_until') }}
