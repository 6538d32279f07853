{{ config(meta={'live': 'reference'}) }}
-- The login ids the shop's customer table knows, and since when.
select
    user_id,
    min(raw_available_at) as known_at,
    max(arrived_in) as changed_in
from {{ ref('stg_shop__customers') }}
where {{ is_usable_customer() }}
group by user_id
