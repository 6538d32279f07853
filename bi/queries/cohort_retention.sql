-- Who comes back: of the customers whose first order fell into a period, those who ordered again in each period since.
-- Grain: one row per cohort (the first day of that period, in the shop's time zone) and number of periods since.
-- Periods are months or, while less than half a year is known, weeks from Monday on. Only those that were over at the build's
-- moment are here, and every one of them, with 0 where nobody came back. Only sales count (no pending or cancelled orders).
with shop as (

    select
        max(ordered_on) - min(ordered_on) < 180 as by_week,
        (select max(as_of_date) from dim_shop) as as_of
    from fct_orders
    where is_sale

),

active as (

    select distinct
        shop.*,
        customer_id,
        cast(case when by_week then date_trunc('week', ordered_on) else date_trunc('month', ordered_on) end as date) as ordered_in
    from fct_orders
    cross join shop
    where is_sale

),

customers as (

    select
        *,
        case
            when by_week then date_diff('week', cohort, ordered_in) else date_diff('month', cohort, ordered_in)
        end as periods_since,
        case when by_week then date_diff('week', cohort, as_of) else date_diff('month', cohort, as_of) end as periods_over
    from active
    inner join (select customer_id, min(ordered_in) as cohort from active group by customer_id) as firsts using (customer_id)

),

cohorts as (

    select by_week, cohort, periods_over, count(distinct customer_id) as customers from customers group by all

)

select
    case when k.by_week then 'week' else 'month' end as period,
    cast(k.cohort as date) as cohort,
    p.periods_since,
    k.customers,
    count(c.customer_id) as customers_who_ordered,
    count(c.customer_id) / k.customers as retention
from cohorts as k
cross join unnest(range(k.periods_over)) as p (periods_since)
left join customers as c on k.cohort = c.cohort and p.periods_since = c.periods_since
group by k.by_week, k.cohort, p.periods_since, k.customers
order by k.cohort, p.periods_since
