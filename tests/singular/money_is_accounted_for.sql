-- The ledger of money. What raw rows speak of, by raw table, source and day of arrival and in their own currencies, is kept,
-- quarantined or a duplicate; what is kept, by source and day, is in fct_events by the rate of its day; and each order's revenue
-- and refunds are what its lines cost less the order's discount, and what its refunds gave back, if its status makes it a sale.
-- It is added up again from the rows of the lake and the verdicts, not from the steps between. A row whose money is absurd counts
-- as 0 on both sides.
{{ config(meta={'dagster': {'ref': {'name': 'fct_orders'}}}) }}
with rows_with_money as (

    select
        v.*,
        {{ money_of_row('v.price', 'v.quantity', 'v.discount', 'v.given_amount') }} as money,
        r.rate as rate_of_day
    from {{ ref('int_events__validated') }} as v
    left join {{ ref('int_reference__exchange_rates') }} as r
        on coalesce(v.currency, '{{ shop_setting("reporting_currency") }}') = r.currency and v.event_day = r.rate_date
    where
        v.event_type in ('purchase', 'refund', 'pending_order', 'cancelled_order', 'refund_of_no_sale')
        or v.raw_table in ('order_items', 'refunds')

),

judged_money as (

    select
        raw_table,
        source,
        cast(raw_available_at as date) as arrival_day,
        sum(case verdict when 'kept' then money when 'quarantined' then money when 'duplicate' then money end) as money
    from rows_with_money
    group by raw_table, source, cast(raw_available_at as date)

),

-- What is kept, converted: what is given as a whole, else the price of one, then so many, less the discount.
kept as (

    select
        source,
        event_day,
        order_id,
        origin,
        event_type,
        currency,
        coalesce(order_id, identity || '@' || cast(event_at as varchar)) as order_key,
        cast(round(given_amount * rate_of_day, 4) as decimal(38, 4)) as given,
        cast(round(price * rate_of_day, 4) as decimal(19, 4)) as price,
        coalesce(quantity, 1) as quantity,
        coalesce(cast(round(discount * rate_of_day, 4) as decimal(38, 4)), 0) as discount
    from rows_with_money
    where verdict = 'kept'

),

converted as (

    select
        *,
        coalesce(given, case when price is not null then greatest(round(price * quantity, 4) - discount, 0) end) as money
    from kept

),

kept_money as (

    select
        source,
        event_day,
        sum(money) as money
    from converted
    group by source, event_day

),

event_money as (

    select
        source,
        event_day,
        sum(amount) as money
    from {{ ref('fct_events') }}
    where event_type in ('purchase', 'refund', 'pending_order', 'cancelled_order', 'refund_of_no_sale')
    group by source, event_day

),

-- What the shop's database says of an order that its lines do not: whether it is a sale, and what the whole is cheaper by.
headers as (

    select
        h.order_id,
        coalesce(s.event_type, 'purchase') = 'purchase' as is_sale,
        h.discount,
        h.currency,
        h.created_at
    from {{ ref('int_reference__orders') }} as h
    left join {{ seed('order_statuses') }} as s on {{ status_spelling('h.raw_status') }} = s.raw_status
    where h.known_until is null and not h.is_deleted

),

payments as (

    select
        c.order_key,
        coalesce(sum(c.money), 0) as goods
    from converted as c
    where c.event_type not in ('refund', 'refund_of_no_sale')
    group by c.order_key

),

of_database as (

    select
        order_id,
        sum(discount) as discount,
        min(currency) as currency
    from kept
    where origin = 'database' and order_id is not null and price is not null
        and event_type in ('purchase', 'pending_order', 'cancelled_order')
    group by order_id

),

given_back as (

    select
        order_id,
        sum(money) as refunds
    from converted
    where event_type in ('refund', 'refund_of_no_sale') and order_id is not null
    group by order_id

),

sales as (

    select
        p.order_key,
        p.goods,
        coalesce(h.is_sale, true) as is_sale,
        coalesce({{ in_reporting_currency('h.discount', 'r.rate') }} - d.discount, 0) as more_discount
    from payments as p
    left join of_database as d on p.order_key = d.order_id
    left join headers as h on d.order_id = h.order_id
    left join {{ ref('int_reference__exchange_rates') }} as r
        on
            coalesce(h.currency, d.currency, '{{ shop_setting("reporting_currency") }}') = r.currency
            and cast(h.created_at as date) = r.rate_date

),

expected_orders as (

    select
        s.order_key,
        case when s.is_sale then s.goods - least(greatest(s.more_discount, 0), s.goods) else 0 end as revenue,
        case when s.is_sale then coalesce(g.refunds, 0) else 0 end as refunds
    from sales as s
    left join given_back as g on s.order_key = g.order_id

),

compared as (

    select
        'raw rows and verdicts: ' || coalesce(r.raw_table, j.raw_table) as account,
        coalesce(r.source, j.source) as source,
        cast(coalesce(r.arrival_day, j.arrival_day) as varchar) as of_what,
        coalesce(r.money, 0) as expected,
        coalesce(j.money, 0) as found
    from {{ ref('stg_lake__money') }} as r
    full outer join judged_money as j
        on r.raw_table = j.raw_table and r.source = j.source and r.arrival_day = j.arrival_day
    union all
    select
        'kept rows and fct_events' as account,
        coalesce(k.source, e.source) as source,
        cast(coalesce(k.event_day, e.event_day) as varchar) as of_what,
        coalesce(k.money, 0) as expected,
        coalesce(e.money, 0) as found
    from kept_money as k
    full outer join event_money as e on k.source = e.source and k.event_day = e.event_day
    union all
    select
        'payments and revenue of fct_orders' as account,
        o.source,
        coalesce(x.order_key, o.order_key) as of_what,
        coalesce(x.revenue, 0) as expected,
        coalesce(o.revenue, 0) as found
    from expected_orders as x
    full outer join {{ ref('fct_orders') }} as o on x.order_key = o.order_key
    union all
    select
        'refunds and refunds of fct_orders' as account,
        o.source,
        coalesce(x.order_key, o.order_key) as of_what,
        -- Of an order that is paid back without a refund: all that was paid for it.
        case when o.is_refund_assumed and x.refunds = 0 then x.revenue else coalesce(x.refunds, 0) end as expected,
        coalesce(o.refunds, 0) as found
    from expected_orders as x
    full outer join {{ ref('fct_orders') }} as o on x.order_key = o.order_key

)

select *
from compared
where expected <> found
