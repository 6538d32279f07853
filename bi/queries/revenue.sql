-- What was sold, in the reporting currency.
-- Grain: one row per day of order, in the shop's time zone, and status (unknown: the shop's database does not know the order, or says no status that is
-- known). Money given back is taken off on the day of the order that it belongs to. Orders that are no sale (pending, cancelled)
-- are in none of these sums, but in unsold_orders, and with what they would have brought in unsold_value.
-- The average order value of any days is sum(revenue) / sum(orders).
select
    o.ordered_on as day,
    coalesce(o.status, 'unknown') as status,
    any_value(s.reporting_currency) as currency,
    count(*) filter (where o.is_sale) as orders,
    cast(sum(o.units) as double) as units,
    cast(sum(o.revenue) as double) as revenue,
    cast(sum(o.refunds) as double) as refunds,
    cast(sum(o.net_revenue) as double) as net_revenue,
    count(*) filter (where not o.is_sale) as unsold_orders,
    cast(coalesce(sum(o.gross - o.discount) filter (where not o.is_sale), 0) as double) as unsold_value
from fct_orders as o
cross join dim_shop as s
group by o.ordered_on, coalesce(o.status, 'unknown')
order by day, status
