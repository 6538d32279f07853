with lines as (

    select * from {{ ref('fct_events') }} where event_type = 'purchase'

),

refunds as (

    select
        order_id,
        cast(sum(amount) as decimal(38, 4)) as refunds,
        cast(sum(coalesce(quantity, 1)) as decimal(38, 3)) as refunded_units
    from {{ ref('fct_events') }}
    where event_type = 'refund' and order_id is not null
    group by order_id

),

orders as (

    select
        order_key,
        min(order_id) as order_id,
        min(case when origin = 'database' then order_id end) as database_order_id,
        min(identity) as identity,
        min(customer_id) as customer_id,
        min(session_id) as session_id,
        min(source) as source,
        min(origin) as origin,
        min(event_at) as ordered_at,
        min(currency) as currency,
        cast(count(*) as bigint) as lines,
        cast(count(distinct product_id) as bigint) as products,
        cast(sum(coalesce(quantity, 1)) as decimal(38, 3)) as units,
        cast(sum(amount) as decimal(38, 4)) as revenue,
        cast(sum(
            case when list_price > price then {{ times('(list_price - price)', 'coalesce(quantity, 1)') }} else 0 end
        ) as decimal(38, 4)) as discount
    from lines
    group by order_key

)

select
    o.order_key,
    o.order_id,
    o.identity,
    o.customer_id,
    o.session_id,
    o.source,
    o.origin,
    o.ordered_at,
    {{ shop_day('o.ordered_at') }} as ordered_on,
    h.paid_at,
    h.shipped_at,
    h.status,
    o.currency,
    o.lines,
    o.products,
    o.units,
    o.revenue,
    o.discount,
    case when r.order_id is null then 0 else r.refunds end as refunds,
    coalesce(r.refunded_units, 0) as refunded_units
from orders as o
left join refunds as r on o.order_id = r.order_id
left join {{ ref('int_events__orders') }} as h on o.database_order_id = h.order_id and not h.is_gone
