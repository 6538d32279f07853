{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'live': 'slice', 'change_set': 'int_changes__product_days', 'change_keys': ['product_id', 'event_day']},
    post_hook="{{ move_watermark('int_cleaning__events') }}",
) }}
-- Which orders each product was in, by day and the day it arrived (macros/tiles/product_order.sql). A late event adds a row
-- and rewrites none.
{{ tile_product_order(ref('int_cleaning__events'), is_changed('int_changes__product_days', ['product_id', 'event_day'])) }}
