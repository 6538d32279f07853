{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'live': 'fit', 'change_set': 'int_events__changed_days', 'change_keys': [('valid_on', 'arrival_day')]},
    post_hook="{{ move_watermark('int_events__changed_days') }}",
) }}
-- Bounds and medians of what events carry, one row for each group and day on which something new arrived in it.
{{ numeric_fits(ref('int_cleaning__numeric_histogram'), first_changed_day(), var('hour_of_week_window_weeks') | int) }}
