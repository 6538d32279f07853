-- How much each kind of event adds to a customer's affinity, as one row: the shop's own choice (a seed), not a fit. What the
-- seed leaves out weighs nothing.
select
    cast(coalesce(max(case when measure = 'views' then weight end), 0) as bigint) as views,
    cast(coalesce(max(case when measure = 'cart_adds' then weight end), 0) as bigint) as cart_adds,
    cast(coalesce(max(case when measure = 'purchases' then weight end), 0) as bigint) as purchases
from {{ seed('event_weights') }}
