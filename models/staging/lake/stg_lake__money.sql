-- The money that raw rows speak of, read in the lake itself and in each row's own currency: what the ledger of money has to account for.
with said as (

    select
        'events' as raw_table,
        _source,
        available_at,
        lower({{ clean_text('event_type') }}) as event_name,
        {{ money_of_row(to_money('price'), to_quantity('quantity'), 'null', 'null') }} as money
    from {{ lake_table('events') }} as events
    where price is not null
    union all
    select
        'ga4_events' as raw_table,
        ga4_events._source,
        ga4_events.available_at,
        lower({{ clean_text('ga4_events.event_name') }}) as event_name,
        {{ money_of_row(to_decimal('unfolded.item.price', 4), to_decimal('unfolded.item.quantity', 3), 'null', 'null') }} as money
    from {{ lake_table('ga4_events') }} as ga4_events
    {{ unfold_items('case when ' ~ list_size('ga4_events.items') ~ ' <= ' ~ max_items() ~ ' then ga4_events.items end') }}
    union all
    select
        'order_items' as raw_table,
        _source,
        available_at,
        cast(null as varchar) as event_name,
        {{ money_of_row(to_money('price'), to_quantity('quantity'), to_money('discount'), to_money('amount')) }} as money
    from {{ lake_table('order_items') }} as order_items
    union all
    select
        'refunds' as raw_table,
        _source,
        available_at,
        cast(null as varchar) as event_name,
        {{ money_of_row('null', 'null', 'null', to_money('amount')) }} as money
    from {{ lake_table('refunds') }} as refunds

)

select
    raw_table,
    _source as source,
    cast({{ arrival('available_at') }} as date) as arrival_day,
    event_name,
    sum(money) as money
from said
group by raw_table, _source, cast({{ arrival('available_at') }} as date), event_name
