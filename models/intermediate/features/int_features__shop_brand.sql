{{ config(
    meta={'closed_days': 'values'},
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- The brands in the shop as a whole (macros/affinity.sql). Only tiles by identity know brands.
-- {{ hooks_read(['int_identity__build', 'int_events__validated', 'int_cleaning__events']) }}
{{ shop_averages('brand', tile='identity_product') }}
