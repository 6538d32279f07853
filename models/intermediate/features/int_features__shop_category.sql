{{ config(
    meta={'live': 'shop', 'closed_days': 'values'},
    post_hook="{{ move_watermark('int_cleaning__events') }}",
) }}
-- The categories in the shop as a whole (macros/affinity.sql).
{{ shop_averages('category', tile='product') }}
