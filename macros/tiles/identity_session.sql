{#
  What each identity did in each session on each day, by the day it arrived.
  Grain: identity, session_id, event_day, arrival_day, until_day.
  `source`: a relation of clean events; `also`: columns of it to group by, too.
#}
{% macro tile_identity_session(source, condition='true', also=[]) -%}
select
    {{ before_keys(also) }}
    identity,
    session_id,
    event_day,
    arrival_day,
    until_day,
    cast(count(*) as bigint) as events,
    min(event_at) as first_at,
    max(event_at) as last_at,
    {{ count_of('add_to_cart') }} as cart_adds,
    {{ count_of('purchase') }} as purchases,
    {{ known_in_cart('amount') }} as cart_value
from {{ source }}
where session_id is not null and {{ condition }}
group by {{ before_keys(also) }}identity, session_id, event_day, arrival_day, until_day
{%- endmacro %}
