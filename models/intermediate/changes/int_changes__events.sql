{{ config(materialized='view') }}
-- The clean events that were added, replaced or deleted, as they were and as they are.
-- depends_on: {{ ref('int_cleaning__events') }}
select
    row_id,
    is_previous,
    keys_changed,
    identity,
    anonymous_id,
    product_id,
    order_key,
    session_id,
    event_day,
    arrival_day,
    changed_in
from {{ source('bookkeeping', 'change_journal') }}
where model = 'int_cleaning__events'
