{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ find_touched('customer_id') }}",
    post_hook=["{{ bring_to_this_moment() }}", "{{ move_watermark('int_events__validated') }}"],
) }}
-- What each customer did with each brand, up to the moment asked for (macros/affinity.sql, macros/features.sql).
-- {{ hooks_read(['int_cleaning__events', 'int_events__validated', 'int_identity__build']) }}
{{ affinity_state('brand') }}
