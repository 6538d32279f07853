-- What was sold, in the reporting currency.
-- Grain: one row per day of order, in the shop's time zone, and status, in the shop's own words (unknown: its database does not know the order).
-- Money given back is taken off on the day of the order that it belongs to. Cancelled orders are here: their status says so.
-- The average order value of any days is sum(revenue) / sum(orders).
select
    o.ordered_on as day,
    coalesce(o.status, 'unknown') as status,
    any_value(s.reporting_currency) as currency,
    count(*) as orders,
    cast(sum(o.units) as double) as units,
    cast(sum(o.revenue) as double) as revenue,
    cast(sum(o.refunds) as double) as refunds,
    cast(sum(coalesce(o.revenue, 0) - o.refunds) as double) as net_revenue
from fct_orders as o
cross join dim_shop as s
group by o.ordered_on, coalesce(o.status, 'unknown')
order by day, status
