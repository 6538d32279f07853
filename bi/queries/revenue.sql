-- What was sold, in the reporting currency.
-- Grain: one row per UTC day of order and status, in the shop's own words (unknown: its database does not know the order).
-- Money given back is taken off on the day of the order that it belongs to. Cancelled orders are here: their status says so.
-- The average order value of any days is sum(revenue) / sum(orders).
select
    cast(ordered_at as date) as day,
    coalesce(status, 'unknown') as status,
    count(*) as orders,
    cast(sum(units) as double) as units,
    cast(sum(revenue) as double) as revenue,
    cast(sum(refunds) as double) as refunds,
    cast(sum(coalesce(revenue, 0) - coalesce(refunds, 0)) as double) as net_revenue
from fct_orders
group by all
order by all
