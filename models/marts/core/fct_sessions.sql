{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    on_schema_change='fail',
    meta={'change_set': 'int_changes__sessions', 'change_keys': ['session_id']},
    post_hook="{{ move_watermark('int_changes__sessions') }}",
) }}
with sessions as (

    select
        session_id,
        -- The login, if there is one: 'u:' sorts after 'a:'.
        max(identity) as identity,
        {{ last_by('customer_id', 'identity') }} as customer_id,
        min(source) as source,
        min(event_at) as started_at,
        {{ shop_day('min(event_at)') }} as started_on,
        max(event_at) as ended_at,
        {{ whole_seconds('min(event_at)', 'max(event_at)') }} as length_seconds,
        cast(count(*) as bigint) as events,
        cast(count(distinct product_id) as bigint) as products,
        cast(count(distinct category) as bigint) as categories,
        {{ count_of('view_item') }} as views,
        {{ count_of('search') }} as searches,
        {{ count_of('add_to_cart') }} as cart_adds,
        {{ count_of('begin_checkout') }} as checkouts,
        cast(count(distinct order_key) as bigint) as orders,
        {{ money_if("event_type = 'purchase'", 'amount') }} as revenue,
        max(case when is_entry then device end) as device,
        max(case when is_entry then country end) as country,
        max(case when is_entry then page end) as page,
        max(case when is_entry then referrer end) as referrer,
        max(case when is_entry then campaign end) as campaign,
        max(case when is_entry then client_class end) as client_class,
        count(*) = 1 as is_bounce
    from {{ ref('fct_events') }}
    where session_id is not null and {{ is_changed('int_changes__sessions', ['session_id']) }}
    group by session_id

),

{{ entries_of('sessions') }}

select
    session_id,
    identity,
    customer_id,
    source,
    started_at,
    started_on,
    ended_at,
    length_seconds,
    events,
    products,
    categories,
    views,
    searches,
    cart_adds,
    checkouts,
    orders,
    revenue,
    device,
    country,
    entry_source,
    entry_medium,
    entry_campaign,
    page as entry_page,
    referrer as entry_referrer,
    entry_channel,
    visitor_class,
    is_bounce
from entries
