{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook="{{ find_touched_identities() }}",
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- {{ hooks_read(['int_events__cleaned', 'int_events__validated']) }}
select
    session_id,
    min(identity) as identity,
    min(customer_id) as customer_id,
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
    max(case when is_entry then campaign end) as entry_campaign,
    max(case when is_entry then page end) as entry_page,
    count(*) = 1 as is_bounce
from {{ ref('fct_events') }}
{% if is_incremental() %}
where identity in (select t.identity from touched_identities as t)
{% endif %}
group by session_id
