{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'live': 'fit', 'change_set': 'int_events__changed_days', 'change_keys': [('valid_on', 'arrival_day')]},
    post_hook="{{ move_watermark('int_events__changed_days') }}",
) }}
-- The most frequent device and country, one row for each day on which some arrived.
{{ mode_fits(ref('int_cleaning__category_counts'), first_changed_day()) }}
