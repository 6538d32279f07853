{{ config(materialized='view') }}
-- The days of each product on which an event changed.
select
    product_id,
    event_day,
    max(changed_in) as changed_in
from {{ ref('int_changes__events') }}
where product_id is not null and event_day is not null
group by product_id, event_day
