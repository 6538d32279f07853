{#
  What was done with each product on each day, by the day it arrived.
  Grain: product_id, category, event_day, arrival_day, until_day.
  `source`: a relation of clean events; `also`: columns of it to group by, too.
#}
{% macro tile_product(source, condition='true', also=[]) -%}
select
    {{ before_keys(also) }}
    product_id,
    category,
    event_day,
    arrival_day,
    until_day,
    cast(count(*) as bigint) as events,
    {{- declared_measures_of_tile(['item', 'category']) }}
    {{ sum_if("event_type = 'refund'", 'quantity') }} as refunded_units,
    {{ count_if(is_priced()) }} as priced_events,
    {{ sum_if(is_priced(), 'price') }} as price_total,
    min(event_at) as first_at,
    max(event_at) as last_at,
    {{ last_of('purchase') }} as last_order_at
from {{ source }}
where product_id is not null and {{ condition }}
group by {{ before_keys(also) }}product_id, category, event_day, arrival_day, until_day
{%- endmacro %}
