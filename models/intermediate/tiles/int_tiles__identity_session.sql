{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'live': 'slice', 'change_set': 'int_changes__identity_days', 'change_keys': ['identity', 'event_day']},
    post_hook="{{ move_watermark('int_cleaning__events') }}",
) }}
-- What of each session fell on each day, by the day it arrived (macros/tiles/identity_session.sql). A late event adds a row
-- and rewrites none.
{{ tile_identity_session(ref('int_cleaning__events'), is_changed('int_changes__identity_days', ['identity', 'event_day'])) }}
