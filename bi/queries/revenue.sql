-- What was sold, in the reporting currency.
-- Grain: one row per UTC day of order and status (unknown: the shop's database does not know the order, or says no status that is
-- known). Money given back is taken off on the day of the order that it belongs to. Orders that are no sale (pending, cancelled)
-- are in none of these sums, but in unsold_orders, and with what they would have brought in unsold_value.
-- The average order value of any days is sum(revenue) / sum(orders).
select
    cast(ordered_at as date) as day,
    coalesce(status, 'unknown') as status,
    count(*) filter (where is_sale) as orders,
    cast(sum(units) as double) as units,
    cast(sum(revenue) as double) as revenue,
    cast(sum(refunds) as double) as refunds,
    cast(sum(net_revenue) as double) as net_revenue,
    count(*) filter (where not is_sale) as unsold_orders,
    cast(coalesce(sum(gross - discount) filter (where not is_sale), 0) as double) as unsold_value
from fct_orders
group by all
order by all
