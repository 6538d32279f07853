{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ find_touched_tiles('product_order') }}",
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- Which orders each product was in, by day and the day it arrived (macros/tiles.sql). A late event adds a row
-- and rewrites none.
-- {{ hooks_read(['int_events__validated']) }}
{{ tile_rows('product_order', tile_source('product_order')) }}
