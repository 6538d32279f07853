{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ find_touched_tiles('identity_session') }}",
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- What of each session fell on each day, by the day it arrived (macros/tiles.sql). A late event adds a row
-- and rewrites none.
-- {{ hooks_read(['int_events__validated']) }}
{{ tile_rows('identity_session', tile_source('identity_session')) }}
