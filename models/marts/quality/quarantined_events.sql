-- The rows that failed validation, whole, with every reason. The payload is in the lake, at (raw_table, source, position).
select
    row_id,
    raw_table,
    source,
    position,
    raw_available_at,
    ingested_at,
    reasons,
    raw_error,
    event_name,
    event_type,
    event_at,
    identity,
    user_id,
    anonymous_id,
    product_id,
    order_id,
    quantity,
    price,
    currency,
    consent,
    user_agent,
    properties
from {{ ref('int_events__validated') }}
where verdict = 'quarantined'
