{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ find_touched_tiles('product') }}",
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- What was done with each product on each day, by the day it arrived (macros/tiles.sql). A late event adds a row
-- and rewrites none.
-- {{ hooks_read(['int_events__validated']) }}
{{ tile_rows('product', tile_source('product')) }}
