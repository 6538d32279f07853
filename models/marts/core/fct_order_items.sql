select
    e.event_id as order_item_id,
    e.order_key,
    e.line_id,
    e.customer_id,
    e.event_at as ordered_at,
    e.event_date as ordered_on,
    e.product_id,
    e.category,
    e.brand,
    e.quantity,
    e.price,
    e.list_price,
    e.amount as revenue,
    e.currency,
    e.price_in_currency,
    e.session_id,
    e.source
from {{ ref('fct_events') }} as e
where e.event_type = 'purchase'
