{{ config(materialized='view') }}
-- Every event-bearing raw row that this build has to validate, from all sources, in one shape. A line or a refund has a row for each state
-- of its order that it had arrived in, or before. All but today's are superseded.
{% set shared = [
    'row_id', 'raw_table', 'raw_rowid', 'source', 'position', 'origin', 'time_zone', 'expects', 'raw_error', 'ingested_at',
    'raw_available_at', 'client_event_id', 'event_name', 'event_at', 'is_odd_local_time', 'user_id', 'anonymous_id',
    'source_session_id', 'product_id', 'category_name', 'quantity', 'price', 'currency', 'order_id', 'line_id',
    'has_bad_number', 'device_name', 'user_agent', 'country', 'consent', 'properties'
] + (pass_through_fields() | list) %}
{% set ids = ['client_event_id', 'user_id', 'anonymous_id', 'source_session_id', 'product_id', 'order_id'] %}
with orders as (

    select * from {{ ref('int_reference__orders') }}

),

tracked as (

    select
        {{ shared | join(', ') }},
        cast(null as decimal(18, 4)) as given_amount,
        cast(null as decimal(18, 4)) as discount,
        cast(null as timestamp) as order_known_at,
        cast(null as timestamp) as superseded_at,
        false as has_unknown_status,
        false as has_bad_order_money,
        false as needs_order,
        false as is_disordered,
        false as is_order_deleted
    from {{ ref('stg_events__events') }}
    union all
    select
        {{ shared | join(', ') }},
        cast(null as decimal(18, 4)) as given_amount,
        cast(null as decimal(18, 4)) as discount,
        cast(null as timestamp) as order_known_at,
        cast(null as timestamp) as superseded_at,
        false as has_unknown_status,
        false as has_bad_order_money,
        false as needs_order,
        false as is_disordered,
        false as is_order_deleted
    from {{ ref('stg_ga4__events') }}

),

bought as (

    select
        {{ row_id_in_state('i.row_id', 'o.state_number') }} as row_id,
        i.raw_table,
        i.raw_rowid,
        i.source,
        i.position,
        i.origin,
        i.time_zone,
        i.expects,
        i.raw_error,
        i.ingested_at,
        i.raw_available_at,
        cast(null as varchar) as client_event_id,
        coalesce(o.event_type, 'purchase') as event_name,
        o.created_at as event_at,
        false as is_odd_local_time,
        o.user_id,
        o.anonymous_id,
        o.source_session_id,
        i.product_id,
        cast(null as varchar) as category_name,
        i.quantity,
        -- What a whole line cost, without a price of one, is the price of so many before the discount.
        coalesce(
            i.price,
            {{ to_decimal('(cast(i.amount as decimal(19, 4)) + coalesce(i.discount, 0)) / coalesce(nullif(i.quantity, 0), 1)', 4) }}
        ) as price,
        coalesce(i.currency, o.currency) as currency,
        i.order_id,
        i.line_id,
        i.has_bad_number,
        cast(null as varchar) as device_name,
        cast(null as varchar) as user_agent,
        cast(null as varchar) as country,
        cast(null as varchar) as consent,
        i.properties,
        {{ pass_through_from({}) }},
        i.amount as given_amount,
        coalesce(i.discount, {{ taken_off('i.price', 'i.quantity', 'i.amount') }}) as discount,
        o.known_at as order_known_at,
        o.known_until as superseded_at,
        coalesce(o.has_unknown_status, false) as has_unknown_status,
        coalesce(o.has_bad_money, false) as has_bad_order_money,
        true as needs_order,
        coalesce(o.is_disordered, false) as is_disordered,
        coalesce(o.is_deleted, false) as is_order_deleted
    from {{ ref('stg_shop__order_items') }} as i
    left join orders as o
        on i.order_id = o.order_id and coalesce(i.raw_available_at < o.known_until, true)

),

returned as (

    select
        {{ row_id_in_state('r.row_id', 'o.state_number') }} as row_id,
        r.raw_table,
        r.raw_rowid,
        r.source,
        r.position,
        r.origin,
        r.time_zone,
        r.expects,
        r.raw_error,
        r.ingested_at,
        r.raw_available_at,
        r.refund_id as client_event_id,
        -- Money given back for what counts as no sale was never revenue.
        case when o.event_type <> 'purchase' then 'refund_of_no_sale' else 'refund' end as event_name,
        r.refunded_at as event_at,
        r.is_odd_local_time,
        coalesce(r.user_id, o.user_id) as user_id,
        o.anonymous_id,
        cast(null as varchar) as source_session_id,
        r.product_id,
        cast(null as varchar) as category_name,
        r.quantity,
        -- Money that was given back is that, also where no quantity is said: it is the price of one.
        {{ to_decimal('r.amount / coalesce(nullif(r.quantity, 0), 1)', 4) }} as price,
        coalesce(r.currency, o.currency) as currency,
        r.order_id,
        r.line_id,
        r.has_bad_number,
        cast(null as varchar) as device_name,
        cast(null as varchar) as user_agent,
        cast(null as varchar) as country,
        cast(null as varchar) as consent,
        r.properties,
        {{ pass_through_from({}) }},
        r.amount as given_amount,
        cast(null as decimal(18, 4)) as discount,
        o.known_at as order_known_at,
        o.known_until as superseded_at,
        false as has_unknown_status,
        false as has_bad_order_money,
        {{ known_id('r.order_id') }} is not null as needs_order,
        coalesce(o.is_disordered, false) as is_disordered,
        coalesce(o.is_deleted, false) as is_order_deleted
    from {{ ref('stg_shop__refunds') }} as r
    left join orders as o
        on r.order_id = o.order_id and coalesce(r.raw_available_at < o.known_until, true)

)

select
    {{ all_but('u', ids) }},
    {% for id in ids %}
    {{ known_id('u.' ~ id) }} as {{ id }},
    {% endfor %}
    coalesce(
        {% for id in ids %}
        {{ is_rounded_id('u.' ~ id) }}{{ " or" if not loop.last }}
        {% endfor %}, false
    ) as has_unusable_id
from (
    select * from tracked
    union all
    select * from bought
    union all
    select * from returned
) as u
