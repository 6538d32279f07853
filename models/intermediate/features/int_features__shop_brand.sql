{{ config(
    meta={'live': 'shop', 'closed_days': 'values'},
    post_hook="{{ move_watermark('int_cleaning__events') }}",
) }}
-- The brands in the shop as a whole (macros/affinity.sql). Only tiles by identity know brands.
{{ shop_averages('brand', tile='identity_product') }}
