{{ config(materialized='view') }}
-- The rows that changed their session or their visitor, as they were and as they are.
-- depends_on: {{ ref('int_events__sessionized') }}
select
    row_id,
    is_previous,
    session_id,
    changed_in
from {{ source('bookkeeping', 'change_journal') }}
where model = 'int_events__sessionized'
