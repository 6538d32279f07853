-- What was sold, in the reporting currency.
-- Grain: one row per day of order, in the shop's time zone, and status (unknown: the shop's database does not know the order, or says no status that is
-- known). Money given back is taken off on the day of the order that it belongs to. Orders that are no sale (pending, cancelled)
-- are in none of these sums, but in unsold_orders, and with what they would have brought in unsold_value.
-- The average order value of any days is sum(revenue) / sum(orders).
select
    ordered_on as day,
    coalesce(status, 'unknown') as status,
    any_value(reporting_currency) as currency,
    count(*) filter (where is_sale) as orders,
    cast(sum(units) as double) as units,
    cast(sum(revenue) as double) as revenue,
    cast(sum(refunds) as double) as refunds,
    cast(sum(net_revenue) as double) as net_revenue,
    count(*) filter (where not is_sale) as unsold_orders,
    cast(coalesce(sum(gross - discount) filter (where not is_sale), 0) as double) as unsold_value
from fct_orders
cross join (select reporting_currency from dim_shop) as shop
group by day, coalesce(status, 'unknown')
order by day, status
