-- How much each kind of event says about what a customer likes, as one row: the shop's own weights (a seed), not a fit.
-- What the seed leaves out weighs nothing.
select
    cast(coalesce(max(case when measure = 'views' then weight end), 0) as bigint) as views,
    cast(coalesce(max(case when measure = 'cart_adds' then weight end), 0) as bigint) as cart_adds,
    cast(coalesce(max(case when measure = 'purchases' then weight end), 0) as bigint) as purchases
from {{ ref('event_weights') }}
