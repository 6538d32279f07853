{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ set_since(watermark(this.identifier)) }}",
    post_hook="{{ move_watermark() }}",
) }}
-- Every category name that was ever delivered, by events of either kind or by the catalogue, in its source's spelling.
with delivered as (

    select category as category_name from {{ lake_rows('events') }} as e
    union
    select {{ unfold('items') }}.item_category as category_name from {{ lake_rows('ga4_events') }} as g
    union
    select category as category_name from {{ lake_rows('products') }} as p

)

select category_name from delivered
{% if is_incremental() %}
except
select category_name from {{ this }}
{% endif %}
