{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ forget_days('valid_on', first_changed_day()) }}",
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- The most frequent device and country, one row for each day on which some arrived.
{% if is_incremental() %}
{{ mode_fits(ref('int_cleaning__category_counts'), "coalesce(" ~ first_changed_day() ~ ", date '9999-12-31')") }}
{% else %}
{{ mode_fits(ref('int_cleaning__category_counts')) }}
{% endif %}
