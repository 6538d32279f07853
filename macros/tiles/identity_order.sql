{#
  What each order of an identity came to on each day, by the day it arrived.
  Grain: identity, order_key, event_day, arrival_day, until_day.
  `source`: a relation of clean events; `also`: columns of it to group by, too.
#}
{% macro tile_identity_order(source, condition='true', also=[]) -%}
select
    {{ before_keys(also) }}
    identity,
    order_key,
    event_day,
    arrival_day,
    until_day,
    min(event_at) as ordered_at,
    {{ known_money_if('true', 'amount') }} as revenue
from {{ source }}
where order_key is not null and {{ condition }}
group by {{ before_keys(also) }}identity, order_key, event_day, arrival_day, until_day
{%- endmacro %}
