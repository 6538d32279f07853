-- revenue = gross - discount; total = revenue + shipping + tax that prices do not include; net_revenue = revenue - refunds. For an
-- order that is not a sale, revenue, total, refunds, net_revenue and units are 0, so that sums need no condition.
with lines as (

    select
        *,
        {{ order_key_of_line() }} as key_of_order
    from {{ ref('fct_events') }}
    where {{ is_order_line() }}

),

refunded as (

    select
        order_id,
        cast(sum(coalesce(quantity, 1)) as decimal(38, 3)) as units
    from {{ ref('fct_events') }}
    where event_type = 'refund' and order_id is not null
    group by order_id

),

items as (

    select
        order_key,
        cast(sum(coalesce(quantity, 1)) as decimal(38, 3)) as units,
        cast(sum(gross) as decimal(38, 4)) as gross,
        cast(sum(discount) as decimal(38, 4)) as discount,
        cast(sum(revenue) as decimal(38, 4)) as revenue,
        cast(sum(refunds) as decimal(38, 4)) as refunds,
        max(is_refund_assumed) as is_refund_assumed,
        cast(sum(
            case when is_sale and list_price > price then {{ times('(list_price - price)', 'coalesce(quantity, 1)') }} else 0 end
        ) as decimal(38, 4)) as list_price_difference
    from {{ ref('fct_order_items') }}
    group by order_key

),

orders as (

    select
        key_of_order as order_key,
        min(order_id) as order_id,
        min(identity) as identity,
        min(customer_id) as customer_id,
        min(session_id) as session_id,
        min(source) as source,
        min(origin) as origin,
        min(event_at) as ordered_at,
        min(event_type) = 'purchase' as is_sale,
        min(currency) as currency,
        cast(count(*) as bigint) as lines,
        cast(count(distinct product_id) as bigint) as products
    from lines
    group by key_of_order

),

with_header as (

    select
        o.*,
        h.paid_at,
        h.shipped_at,
        h.status,
        h.raw_status,
        h.discount_code,
        h.tax,
        h.shipping,
        h.total,
        h.is_tax_included,
        h.exchange_rate
    from orders as o
    left join {{ ref('int_current__orders') }} as h on o.order_key = h.order_key

),

summed as (

    select
        h.*,
        i.gross,
        i.discount,
        i.revenue,
        i.refunds,
        i.is_refund_assumed,
        i.list_price_difference,
        case when h.is_sale then i.units else 0 end as units,
        case
            when not h.is_sale then 0
            when i.is_refund_assumed then i.units
            else coalesce(r.units, 0)
        end as refunded_units,
        case
            when h.is_sale
                then i.revenue + coalesce(h.shipping, 0) + case when h.is_tax_included then 0 else coalesce(h.tax, 0) end
            else 0
        end as order_total
    from with_header as h
    inner join items as i on h.order_key = i.order_key
    left join refunded as r on h.order_id = r.order_id

)

select
    order_key,
    order_id,
    identity,
    customer_id,
    session_id,
    source,
    origin,
    ordered_at,
    {{ shop_day('ordered_at') }} as ordered_on,
    paid_at,
    shipped_at,
    status,
    raw_status,
    is_sale,
    currency,
    lines,
    products,
    cast(units as decimal(38, 3)) as units,
    gross,
    discount,
    discount_code,
    revenue,
    shipping,
    tax,
    case when tax is not null then is_tax_included end as is_tax_included,
    cast(order_total as decimal(38, 4)) as total,
    total as source_total,
    -- Rounding may make a cent per line.
    coalesce(
        is_sale and abs(total - order_total) > 0.01 * lines * greatest(cast(exchange_rate as decimal(18, 6)), 1), false
    ) as total_differs,
    refunds,
    is_refund_assumed,
    cast(refunded_units as decimal(38, 3)) as refunded_units,
    cast(coalesce(revenue, 0) - refunds as decimal(38, 4)) as net_revenue,
    list_price_difference
from summed
