{#
  Which products each order has, by day and the day it arrived.
  Grain: product_id, category, brand, identity, order_key, event_day, arrival_day, until_day.
  `source`: a relation of clean events; `also`: columns of it to group by, too.
#}
{% macro tile_product_order(source, condition='true', also=[]) -%}
select
    {{ before_keys(also) }}
    product_id,
    category,
    brand,
    identity,
    order_key,
    event_day,
    arrival_day,
    until_day,
    min(event_at) as ordered_at
from {{ source }}
where product_id is not null and order_key is not null and {{ condition }}
group by {{ before_keys(also) }}product_id, category, brand, identity, order_key, event_day, arrival_day, until_day
{%- endmacro %}
