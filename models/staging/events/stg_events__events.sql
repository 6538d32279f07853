with raw_events as (

    select * from {{ ref('base_events__events') }}

),

final as (

    select
        {{ row_id('events', 'raw_rowid') }} as row_id,
        'events' as raw_table,
        {{ provenance() }},

        ---------- what
        {{ clean_text('event_id') }} as client_event_id,
        {{ clean_text('event_type') }} as event_name,
        {{ parse_time(clean_text('event_at'), "coalesce(_time_zone, 'UTC')") }} as event_at,
        {{ local_time_is_odd(clean_text('event_at'), "coalesce(_time_zone, 'UTC')") }} as is_odd_local_time,

        ---------- who
        {{ clean_text('user_id') }} as user_id,
        {{ clean_text('anonymous_id') }} as anonymous_id,
        {{ clean_text('session_id') }} as source_session_id,

        ---------- product
        {{ clean_text('product_id') }} as product_id,
        {{ clean_text('category') }} as category_name,
        {{ to_quantity('quantity') }} as quantity,
        {{ to_money('price') }} as price,
        {{ currency_code('currency') }} as currency,
        {{ clean_text('order_id') }} as order_id,
        {{ clean_text('line_id') }} as line_id,
        {{ not_a_number('quantity') }} or {{ not_a_number('price') }} as has_bad_number,

        ---------- context
        {{ clean_text('device') }} as device_name,
        {{ clean_text('user_agent') }} as user_agent,
        {{ clean_text('country') }} as country,
        {{ clean_text('consent') }} as consent,
        {{ pass_through_from_text() }},
        properties
    from raw_events

)

select * from final
