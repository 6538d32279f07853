{{ config(
    meta={'closed_days': 'values'},
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- The categories in the shop as a whole (macros/affinity.sql).
-- {{ hooks_read(['int_identity__build', 'int_events__validated', 'int_cleaning__events']) }}
{{ shop_averages('category', tile='product') }}
