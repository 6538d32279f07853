{{ config(materialized='view') }}
-- The days of each identity on which an event changed.
select
    identity,
    event_day,
    max(changed_in) as changed_in
from {{ ref('int_changes__events') }}
where identity is not null and event_day is not null
group by identity, event_day
