-- Every order that has lines, with what its header in the shop's database says of it now. A header counts for an order that has a line
-- from the database, and not once it is deleted. Money is in the reporting currency, by the rate of the day of the order.
with orders as (

    select
        {{ order_key_of_line() }} as order_key,
        min(case when origin = 'database' then order_id end) as database_order_id,
        min(event_day) as rate_day,
        min(currency) as currency,
        coalesce(sum(gross_amount), 0) as amount,
        coalesce(sum(case when gross_amount is not null then discount end), 0) as discount
    from {{ ref('int_cleaning__events') }}
    where {{ is_order_line() }} and known_to is null
    group by {{ order_key_of_line() }}

)

select
    o.order_key,
    h.status,
    h.raw_status,
    h.paid_at,
    h.shipped_at,
    h.discount_code,
    -- What the header's discount takes off beyond those of the lines, which it includes; never more than the lines cost.
    least(greatest({{ in_reporting_currency('h.discount', 'r.rate') }} - o.discount, 0), o.amount) as order_discount,
    {% for column in ['tax', 'shipping', 'total'] %}
    {{ in_reporting_currency('h.' ~ column, 'r.rate') }} as {{ column }},
    {% endfor %}
    -- Where the header does not say, prices are those that a customer reads, with the tax.
    coalesce(h.is_tax_included, true) as is_tax_included,
    r.rate as exchange_rate
from orders as o
left join {{ ref('int_reference__orders') }} as h on o.database_order_id = h.order_id and h.known_until is null and not h.is_deleted
left join {{ ref('int_reference__exchange_rates') }} as r
    on coalesce(h.currency, o.currency) = r.currency and o.rate_day = r.rate_date
where o.order_key is not null
