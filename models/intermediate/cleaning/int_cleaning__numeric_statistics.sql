{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ forget_days('valid_on', first_changed_day()) }}",
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- Bounds and medians of what events carry, one row for each group and day on which something new arrived in it.
{% if is_incremental() %}
{{ numeric_fits(ref('int_cleaning__numeric_histogram'), "coalesce(" ~ first_changed_day() ~ ", date '9999-12-31')") }}
{% else %}
{{ numeric_fits(ref('int_cleaning__numeric_histogram')) }}
{% endif %}
