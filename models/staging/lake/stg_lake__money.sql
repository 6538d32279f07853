-- The money of orders and refunds that raw rows speak of, read in the lake itself and in each row's own currency: what the ledger of money
-- has to account for. Most events are no sales, and their money need not be read.
with sales_names as (

    {% for table, column in [('events', 'event_type'), ('ga4_events', 'event_name')] %}
    select
        '{{ table }}' as raw_table,
        n.raw_name
    from (select distinct {{ column }} as raw_name from {{ lake_table(table) }} as {{ table }}) as n
    inner join {{ seed('event_types') }} as t on {{ event_spelling(clean_text('n.raw_name')) }} = {{ event_spelling('t.raw_name') }}
    where t.event_type in ('purchase', 'refund')
    {{ "union all" if not loop.last }}
    {% endfor %}

),

said as (

    select
        'events' as raw_table,
        _source,
        available_at,
        {{ money_of_row(to_money('price'), to_quantity('quantity'), 'null', 'null') }} as money
    from {{ lake_table('events') }} as events
    where price is not null and event_type in (select n.raw_name from sales_names as n where n.raw_table = 'events')
    union all
    select
        'ga4_events' as raw_table,
        ga4_events._source,
        ga4_events.available_at,
        {{ money_of_row(to_decimal('unfolded.item.price', 4), to_decimal('unfolded.item.quantity', 3), 'null', 'null') }} as money
    from (
        select g.*
        from {{ lake_table('ga4_events') }} as g
        where g.event_name in (select n.raw_name from sales_names as n where n.raw_table = 'ga4_events')
    ) as ga4_events
    {{ unfold_items('case when ' ~ list_size('ga4_events.items') ~ ' <= ' ~ max_items() ~ ' then ga4_events.items end') }}
    union all
    select
        'order_items' as raw_table,
        _source,
        available_at,
        {{ money_of_row(to_money('price'), to_quantity('quantity'), to_money('discount'), to_money('amount')) }} as money
    from {{ lake_table('order_items') }} as order_items
    union all
    select
        'refunds' as raw_table,
        _source,
        available_at,
        {{ money_of_row('null', 'null', 'null', to_money('amount')) }} as money
    from {{ lake_table('refunds') }} as refunds

)

select
    raw_table,
    _source as source,
    cast({{ arrival('available_at') }} as date) as arrival_day,
    sum(money) as money
from said
group by raw_table, _source, cast({{ arrival('available_at') }} as date)
