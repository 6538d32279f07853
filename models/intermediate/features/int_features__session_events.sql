{{ config(materialized='view') }}
-- The events of each session that were visible at the moment asked for, one row each.
select
    s.session_id,
    s.as_of,
    {{ event_columns('e', 'w') | indent(4) }}
from {{ ref('int_features__session_spine') }} as s
inner join {{ ref('int_cleaning__events') }} as e
    on s.session_id = e.session_id and s.as_of > e.event_at and {{ is_valid_at('s.as_of', 'e.known_from', 'e.known_to') }}
cross join {{ ref('int_reference__event_weights') }} as w
