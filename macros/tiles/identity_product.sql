{#
  What each identity did with each product on each day, by the day it arrived.
  Grain: identity, product_id, category, brand, event_day, arrival_day, until_day.
  `source`: a relation of clean events; `also`: columns of it to group by, too.
#}
{% macro tile_identity_product(source, condition='true', also=[]) -%}
select
    {{ before_keys(also) }}
    identity,
    product_id,
    category,
    brand,
    event_day,
    arrival_day,
    until_day,
    cast(count(*) as bigint) as events,
    {{- declared_measures_of_tile(['affinity', 'user_item']) }}
    {{ count_if(is_priced()) }} as priced_events,
    {{ sum_if(is_priced(), 'price') }} as price_total,
    min(event_at) as first_at,
    max(event_at) as last_at,
    {{ last_of('view_item') }} as last_view_at,
    {{ last_of('add_to_cart') }} as last_cart_add_at,
    {{ last_of('purchase') }} as last_order_at,
    {{ count_of('purchase') }} as purchases,
    {{ last_of('remove_from_cart') }} as last_cart_remove_at,
    max(case when event_type = 'view_item' and price is not null then event_at end) as last_priced_view_at,
    {{ last_by("case when event_type = 'view_item' and price is not null then price end", 'event_at') }} as last_view_price
from {{ source }}
where product_id is not null and {{ condition }}
group by {{ before_keys(also) }}identity, product_id, category, brand, event_day, arrival_day, until_day
{%- endmacro %}
