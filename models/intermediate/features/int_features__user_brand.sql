{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={
        'live': 'slice',
        'change_set': 'int_features__changed_customers',
        'change_keys': ['customer_id'],
        'change_condition': 'not is_hours_only',
        'spine': 'int_features__customer_spine',
    },
    post_hook="{{ move_watermark('int_features__changed_customers', has_as_of=true) }}",
) }}
-- What each customer did with each brand, up to the moment asked for (macros/affinity.sql, macros/features.sql).
{{ affinity_state('brand') }}
