-- How often each product was touched, by day and the day on which it could be seen: what pairs are compared with. Each basket is
-- counted at the product that could be seen first (`place` 1), so that baskets add up to those of the whole shop.
with counted as (

    select product_id, event_day, arrival_day, until_day, kind, place from {{ ref('int_tiles__daily_product_touches') }}
    where kind in ('viewed', 'carted')
    union all
    select product_id, event_day, arrival_day, until_day, 'ordered' as kind, place from {{ ref('int_tiles__order_products') }}

)

select
    product_id,
    event_day,
    arrival_day,
    until_day,
    {{ count_if("kind = 'viewed'") }} as view_days,
    {{ count_if("kind = 'carted'") }} as cart_days,
    {{ count_if("kind = 'ordered'") }} as orders,
    {{ count_if("kind = 'viewed' and place = 1") }} as first_views,
    {{ count_if("kind = 'carted' and place = 1") }} as first_carts,
    {{ count_if("kind = 'ordered' and place = 1") }} as first_orders
from counted
group by product_id, event_day, arrival_day, until_day
