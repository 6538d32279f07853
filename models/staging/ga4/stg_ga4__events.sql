-- One row for each item of an event, and one for an event without items, or with too many to be believed.
{% set pass_through = {
    'query': clean_text(parameter('event_params', 'search_term', 'string')),
    'page': clean_text(parameter('event_params', 'page_location', 'string')),
    'referrer': clean_text(parameter('event_params', 'page_referrer', 'string')),
    'campaign': clean_text('traffic_source."medium"'),
    'client_class': clean_text('client_class'),
} %}
with raw_events as (

    select * from {{ ref('base_ga4__events') }}

),

unfolded as (

    select
        raw_events.*,
        unfolded.item,
        unfolded.item_index
    from raw_events
    {{ unfold_items('case when ' ~ list_size('raw_events.items') ~ ' <= ' ~ max_items() ~ ' then raw_events.items end') }}

),

final as (

    select
        {{ row_id('ga4_events', 'raw_rowid', 'item_index') }} as row_id,
        'ga4_events' as raw_table,
        {{ provenance() }},

        ---------- what: GA4 has no id for an event, and times it to the microsecond
        cast(null as varchar) as client_event_id,
        {{ clean_text('event_name') }} as event_name,
        {{ parse_time(clean_text('event_timestamp'), "'UTC'") }} as event_at,
        false as is_odd_local_time,

        ---------- who
        {{ clean_text('user_id') }} as user_id,
        {{ clean_text('user_pseudo_id') }} as anonymous_id,
        cast({{ parameter('event_params', 'ga_session_id', 'int') }} as varchar) as source_session_id,

        ---------- product
        {{ clean_text('item.item_id') }} as product_id,
        {{ clean_text('item.item_category') }} as category_name,
        {{ to_decimal('item.quantity', 3) }} as quantity,
        {{ to_decimal('item.price', 4) }} as price,
        coalesce(
            {{ currency_code(parameter('event_params', 'currency', 'string')) }}, {{ currency_code('property_currency') }}
        ) as currency,
        {{ clean_text('ecommerce.transaction_id') }} as order_id,
        -- Two variants of a product are two lines of an order; of any other event, a product listed twice is one.
        case when lower({{ clean_text('event_name') }}) in ('purchase', 'refund') then cast(unfolded.item_index as varchar) end as line_id,
        (item.price is not null and try_cast(item.price as decimal(28, 6)) is null)
        or coalesce({{ list_size('items') }} > {{ max_items() }}, false) as has_bad_number,

        ---------- context
        {{ clean_text('device.category') }} as device_name,
        cast(null as varchar) as user_agent,
        {{ clean_text('geo.country') }} as country,
        {{ clean_text('privacy_info.analytics_storage') }} as consent,
        {{ pass_through_from(pass_through) }},
        cast(null as varchar) as properties
    from unfolded

)

select * from final
