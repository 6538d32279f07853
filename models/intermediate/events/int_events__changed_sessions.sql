{{ config(materialized='view') }}
-- The rows that changed their session or their visitor, now or at an earlier time, as they were and as they are.
-- depends_on: {{ ref('int_events__sessionized') }} {{ ref('int_events__past_sessions') }}
select
    row_id,
    is_previous,
    session_id,
    changed_in
from {{ source('bookkeeping', 'change_journal') }}
where model in ('int_events__sessionized', 'int_events__past_sessions')
