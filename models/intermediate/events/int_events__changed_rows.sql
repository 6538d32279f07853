{{ config(materialized='view') }}
-- The rows whose verdict, keys or values changed, as they were and as they are.
-- depends_on: {{ ref('int_events__validated') }}
select
    row_id,
    is_previous,
    identity,
    anonymous_id,
    arrival_day,
    until_day,
    changed_in
from {{ source('bookkeeping', 'change_journal') }}
where model = 'int_events__validated'
