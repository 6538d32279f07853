{{ config(materialized='view') }}
-- The events of each customer that were visible at the moment asked for, one row each: what interactions and sequences are made of.
with members as (

    {{ as_of_members(ref('int_features__customer_spine')) | indent(4) }}

)

select
    m.customer_id,
    m.as_of,
    {{ event_columns('e', 'w') | indent(4) }}
from members as m
inner join {{ ref('int_cleaning__events') }} as e
    on m.identity = e.identity and m.as_of > e.event_at and {{ is_valid_at('m.as_of', 'e.known_from', 'e.known_to') }}
cross join {{ ref('int_reference__event_weights') }} as w
where {{ is_consenting('m.customer_id') }}
