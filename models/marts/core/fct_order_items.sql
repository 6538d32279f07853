-- A discount or refund of a whole order is allocated to its lines in proportion to what they cost, exactly to the ten-thousandth. Each
-- line gets the rounded share of the running sum up to and including it, less that of the lines before it: so shares add up to the whole.
{% set group = 'kind, key_of_order, line_id, product_id' %}
with lines as (

    select
        e.*,
        {{ order_key_of_line() }} as key_of_order,
        e.event_type = 'purchase' as is_sale
    from {{ ref('fct_events') }} as e
    where {{ is_order_line() }}

),

refunds as (

    select order_id, line_id, product_id, amount
    from {{ ref('fct_events') }}
    where event_type = 'refund' and order_id is not null

),

line_ids as (

    select distinct order_id, line_id from lines where order_id is not null and line_id is not null

),

product_ids as (

    select distinct order_id, product_id from lines where order_id is not null and product_id is not null

),

-- A refund belongs to the line that it names, or else to the lines of its product, or else to the whole order.
placed_refunds as (

    select
        r.order_id,
        l.line_id,
        case when l.line_id is null then p.product_id end as product_id,
        sum(r.amount) as amount
    from refunds as r
    left join line_ids as l on r.order_id = l.order_id and r.line_id = l.line_id
    left join product_ids as p on r.order_id = p.order_id and r.product_id = p.product_id
    group by r.order_id, l.line_id, case when l.line_id is null then p.product_id end

),

shared as (

    select
        l.event_id,
        l.amount,
        'order_discount' as kind,
        l.key_of_order,
        cast(null as varchar) as line_id,
        cast(null as varchar) as product_id,
        h.order_discount as whole
    from lines as l
    inner join {{ ref('int_current__orders') }} as h on l.key_of_order = h.order_key
    where h.order_discount > 0
    {% for condition in [
        'l.line_id = r.line_id',
        'l.product_id = r.product_id',
        'r.line_id is null and r.product_id is null',
    ] %}
    union all
    select
        l.event_id,
        l.amount,
        'refund' as kind,
        l.key_of_order,
        r.line_id,
        r.product_id,
        r.amount as whole
    from lines as l
    inner join placed_refunds as r on l.order_id = r.order_id and {{ condition }}
    where r.amount > 0
    {% endfor %}

),

totals as (

    select
        *,
        sum(amount) over (partition by {{ group }}) as total
    from shared

),

-- In whole ten-thousandths. Lines that cost nothing, or more than the numbers can hold, get equal shares.
weighted_events as (

    select
        event_id,
        {{ group }},
        cast(cast(whole as decimal(38, 4)) * 10000 as decimal(38, 0)) as whole,
        case
            when total > 0 and greatest(total, whole) <= 1000 * {{ limit('max_amount') }}
                then cast(cast(coalesce(amount, 0) as decimal(38, 4)) * 10000 as decimal(38, 0))
            else 1
        end as weight
    from totals

),

running as (

    select
        event_id,
        kind,
        whole,
        weight,
        sum(weight) over (partition by {{ group }} order by event_id rows unbounded preceding) as reached,
        sum(weight) over (partition by {{ group }}) as total
    from weighted_events

),

shares as (

    select
        event_id,
        sum(case when kind = 'order_discount' then share end) as order_discount,
        sum(case when kind = 'refund' then share end) as refunds
    from (
        select
            event_id,
            kind,
            cast(
                {{ whole_quotient('whole * reached', 'total') }} - {{ whole_quotient('whole * (reached - weight)', 'total') }}
                as decimal(38, 0)
            ) * 0.0001 as share
        from running
    ) as each_share
    group by event_id

),

-- Orders that are refunded by their status, without a refund that says how much.
paid_back as (

    select order_key
    from {{ ref('int_current__orders') }}
    where status = 'refunded' and order_key not in (select r.order_id from refunds as r)

),

priced as (

    select
        l.*,
        case when l.amount is not null then cast(coalesce(s.order_discount, 0) as decimal(18, 4)) end as order_discount,
        coalesce(s.refunds, 0) as shared_refunds,
        b.order_key is not null and l.is_sale as is_refund_assumed
    from lines as l
    left join shares as s on l.event_id = s.event_id
    left join paid_back as b on l.key_of_order = b.order_key

)

select
    event_id as order_item_id,
    key_of_order as order_key,
    line_id,
    customer_id,
    event_at as ordered_at,
    event_date as ordered_on,
    is_sale,
    product_id,
    category,
    brand,
    quantity,
    price,
    list_price,
    cast(amount + coalesce(discount, 0) as decimal(38, 4)) as gross,
    cast(case when amount is not null then coalesce(discount, 0) + order_discount else 0 end as decimal(38, 4)) as discount,
    cast(coalesce(order_discount, 0) as decimal(18, 4)) as order_discount,
    cast(case when is_sale then amount - order_discount else 0 end as decimal(18, 4)) as revenue,
    cast(case
        when not is_sale then 0
        when is_refund_assumed then coalesce(amount - order_discount, 0)
        else shared_refunds
    end as decimal(38, 4)) as refunds,
    is_refund_assumed,
    currency,
    price_in_currency,
    session_id,
    source
from priced
