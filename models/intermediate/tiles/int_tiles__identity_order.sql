{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ find_touched_tiles('identity_order') }}",
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- What of each order fell on each day, by the day it arrived (macros/tiles.sql). A late event adds a row
-- and rewrites none.
-- {{ hooks_read(['int_events__validated']) }}
{{ tile_rows('identity_order', tile_source('identity_order')) }}
