{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'change_set': 'int_events__changed_days', 'change_keys': ['arrival_day']},
    post_hook="{{ move_watermark('int_events__changed_days') }}",
) }}
-- How often which label was seen, by arrival day: devices and countries of the clickstream, and the categories of products where
-- a rule imputes them. What is no longer kept is taken away again on the day of its end.
with {{ kept_by_day() }}

{% for label in ['device', 'country'] %}
{% for group_by, group_key in [('all', "'all'"), ('event_type', 'event_type')] %}
select
    arrival_day,
    '{{ label }}' as measure,
    '{{ group_by }}' as group_by,
    {{ group_key }} as group_key,
    {{ label }} as observed,
    cast(sum(counted) as bigint) as n
from kept_by_day
where
    {{ label }} is not null and origin <> 'database'
    {{ "and " ~ is_named_by_rules('event', label, group_by) if group_by != 'all' }}
group by arrival_day, {{ group_key }}, {{ label }}
union all
{% endfor %}
{% endfor %}
select
    arrival_day,
    'category' as measure,
    'product_id' as group_by,
    product_id as group_key,
    product_category as observed,
    cast(sum(counted) as bigint) as n
from kept_by_day
where
    product_id is not null and product_category is not null
    and ({{ is_imputed_by('event', 'category', 'model') }} or {{ is_imputed_by('event', 'category', 'mode') }})
group by arrival_day, product_id, product_category
