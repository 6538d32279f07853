-- How far visits come: a product viewed, one put into the cart, the checkout begun, an order.
-- Grain: one row per day on which sessions started, in the shop's time zone, device and step.
-- A session is counted at a step if it took that one and all before it. An order of which the shop's database alone knows is a
-- session without a view, and so in none of them. Rates add up over days and devices: sum(sessions) / sum(sessions_before).
with sessions as (

    select
        started_on as day,
        coalesce(device, 'unknown') as device,
        case
            when views = 0 then 0
            when cart_adds = 0 then 1
            when checkouts = 0 then 2
            when orders = 0 then 3
            else 4
        end as reached
    from fct_sessions

)

select
    day,
    device,
    step,
    step_name,
    count(*) filter (where reached >= step) as sessions,
    count(*) filter (where reached >= step - 1) as sessions_before
from sessions
cross join (values (1, 'viewed'), (2, 'added to cart'), (3, 'began checkout'), (4, 'purchased')) as steps (step, step_name)
group by day, device, step, step_name
order by day, device, step
