{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ forget_days('arrival_day', first_changed_day()) }}",
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- How often which number was seen, by arrival day, within each group that a fit may be made for: a histogram in buckets
-- of about 2 %, with exact sums, so that days add up to any fit.
with observed as (

    select
        arrival_day,
        product_id,
        product_category as category,
        event_type,
        price_reported as price,
        {{ log_bucket('price_reported') }} as price_bucket,
        quantity,
        {{ log_bucket('quantity') }} as quantity_bucket
    from {{ ref('int_events__validated') }}
    where verdict = 'kept'
    {% if is_incremental() %}
        and arrival_day >= {{ first_changed_day() }}
    {% endif %}

),

prices as (

    select
        arrival_day,
        'price' as measure,
        case
            when grouping(product_id) = 0 then 'product_id'
            when grouping(category) = 0 then 'category'
            else 'all'
        end as group_by,
        case
            when grouping(product_id) = 0 then product_id
            when grouping(category) = 0 then category
            else 'all'
        end as group_key,
        price_bucket as bucket,
        {{ value_sums('price') }}
    from observed
    where price is not null and product_id is not null
    group by grouping sets (
        (arrival_day, price_bucket, product_id),
        (arrival_day, price_bucket, category),
        (arrival_day, price_bucket)
    )

),

quantities as (

    select
        arrival_day,
        'quantity' as measure,
        case
            when grouping(event_type) = 0 then 'event_type'
            when grouping(category) = 0 then 'category'
            else 'all'
        end as group_by,
        case
            when grouping(event_type) = 0 then event_type
            when grouping(category) = 0 then category
            else 'all'
        end as group_key,
        quantity_bucket as bucket,
        {{ value_sums('quantity') }}
    from observed
    where quantity is not null
    group by grouping sets (
        (arrival_day, quantity_bucket, event_type),
        (arrival_day, quantity_bucket, category),
        (arrival_day, quantity_bucket)
    )

)

select * from prices
where group_key is not null
union all
select * from quantities
where group_key is not null
