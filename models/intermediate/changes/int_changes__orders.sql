{{ config(materialized='view') }}
-- The orders that a line was added to, left or moved within. Values alone do not count.
select
    order_key,
    max(changed_in) as changed_in
from {{ ref('int_changes__events') }}
where order_key is not null and keys_changed
group by order_key
