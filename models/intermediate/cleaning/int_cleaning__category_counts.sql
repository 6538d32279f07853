{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'change_set': 'int_events__changed_days', 'change_keys': ['arrival_day']},
    post_hook="{{ move_watermark('int_events__changed_days') }}",
) }}
-- How often which label was seen among the clickstream, by arrival day.
{% for label in ['device', 'country'] %}
select
    arrival_day,
    '{{ label }}' as measure,
    'all' as group_by,
    'all' as group_key,
    {{ label }} as observed,
    cast(count(*) as bigint) as n
from {{ ref('int_events__validated') }}
where
    verdict = 'kept' and {{ label }} is not null and origin <> 'database'
    and {{ is_changed('int_events__changed_days', ['arrival_day']) }}
group by arrival_day, {{ label }}
{{ "union all" if not loop.last }}
{% endfor %}
