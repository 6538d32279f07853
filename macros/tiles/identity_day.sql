{#
  What each identity did on each day, by the day it arrived.
  Grain: identity, event_day, arrival_day, until_day.
  `source`: a relation of clean events; `also`: columns of it to group by, too.
#}
{% macro tile_identity_day(source, condition='true', also=[]) -%}
select
    {{ before_keys(also) }}
    identity,
    event_day,
    arrival_day,
    until_day,
    cast(count(*) as bigint) as events,
    {{- declared_measures_of_tile(['user']) }}
    {{ sum_if("event_type = 'refund'", 'quantity') }} as refunded_units,
    {{ count_if(is_priced()) }} as priced_events,
    {{ sum_if(is_priced(), 'price') }} as price_total,
    cast(coalesce(
        sum(case when {{ is_priced() }} then cast(price as decimal(19, 4)) * cast(price as decimal(19, 4)) end), 0
    ) as decimal(38, 8)) as price_square_total,
    {{ count_if(is_priced() ~ ' and price_percentile is not null') }} as ranked_events,
    {{ sum_if(is_priced(), 'price_percentile') }} as price_percentile_total,
    {{ sum_if("event_type = 'purchase' and list_price is not null", line_amount('greatest(list_price, price)')) }} as listed_amount,
    {{ sum_if("event_type = 'purchase' and list_price > price", line_amount('(list_price - price)')) }} as discount_amount,
    min(event_at) as first_at,
    max(event_at) as last_at,
    {{ last_of('view_item') }} as last_view_at,
    {{ last_of('add_to_cart') }} as last_cart_add_at,
    {%- for name, first, last in day_parts() %}
    {{ count_if(is_in_hours_of_day('event_at', first, last)) }} as {{ name }}_events,
    {%- endfor %}
    {{ count_if(is_weekend('event_at')) }} as weekend_events,
    {%- for device in var('devices') %}
    {{ count_if("device = '" ~ device ~ "'") }} as {{ device }}_events,
    {%- endfor %}
    {{ count_if('device is not null') }} as device_events
from {{ source }}
where {{ condition }}
group by {{ before_keys(also) }}identity, event_day, arrival_day, until_day
{%- endmacro %}
