-- What was sold, in the reporting currency.
-- Grain: one row per day of order, in the shop's time zone, and status, in the shop's own words (unknown: its database does not know the order).
-- Money given back is taken off on the day of the order that it belongs to. Cancelled orders are here: their status says so.
-- The average order value of any days is sum(revenue) / sum(orders).
select
    ordered_on as day,
    coalesce(status, 'unknown') as status,
    any_value(reporting_currency) as currency,
    count(*) as orders,
    cast(sum(units) as double) as units,
    cast(sum(revenue) as double) as revenue,
    cast(sum(refunds) as double) as refunds,
    cast(sum(coalesce(revenue, 0) - coalesce(refunds, 0)) as double) as net_revenue
from fct_orders
cross join (select reporting_currency from dim_shop) as shop
group by day, coalesce(status, 'unknown')
order by day, status
