{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ forget_days('arrival_day', first_changed_day()) }}",
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- How often which label was seen among the clickstream, by arrival day.
{% for label in ['device', 'country'] %}
{% set last_label = loop.last %}
{% for group_by, group_key in [('all', "'all'"), ('event_type', 'event_type')] %}
select
    arrival_day,
    '{{ label }}' as measure,
    '{{ group_by }}' as group_by,
    {{ group_key }} as group_key,
    {{ label }} as observed,
    cast(count(*) as bigint) as n
from {{ ref('int_events__validated') }}
where
    verdict = 'kept' and {{ label }} is not null and origin <> 'database'
    {{ "and " ~ is_named_by_rules('event', label, group_by) if group_by != 'all' }}
    {% if is_incremental() %}
    and arrival_day >= {{ first_changed_day() }}
    {% endif %}
group by arrival_day, {{ group_key }}, {{ label }}
{{ "union all" if not (loop.last and last_label) }}
{% endfor %}
{% endfor %}
