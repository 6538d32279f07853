with events as (

    select
        *,
        row_number() over (partition by session_id order by event_at, event_id) as place
    from {{ ref('fct_events') }}

)

select
    session_id,
    min(identity) as identity,
    min(customer_id) as customer_id,
    min(source) as source,
    min(event_at) as started_at,
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
    {{ sum_if("event_type = 'purchase'", 'amount') }} as revenue,
    max(case when place = 1 then device end) as device,
    max(case when place = 1 then country end) as country,
    max(case when place = 1 then campaign end) as entry_campaign,
    max(case when place = 1 then page end) as entry_page,
    count(*) = 1 as is_bounce
from events
group by session_id
