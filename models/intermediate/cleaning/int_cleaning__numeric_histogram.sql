{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'change_set': 'int_events__changed_days', 'change_keys': ['arrival_day']},
    post_hook="{{ move_watermark('int_events__changed_days') }}",
) }}
-- How often which number was seen, by arrival day, within each group that a fit may be made for: a histogram in buckets
-- of about 2 %, with exact sums, so that days add up to any fit.
-- What is no longer kept is taken away again on the day of its end.
with {{ kept_by_day() }},

observed as (

    select
        arrival_day,
        seen_day,
        counted,
        product_id,
        product_category as category,
        event_type,
        {{ hour_of_week('event_at') }} as hour_of_week,
        price_reported as price,
        {{ log_bucket('price_reported') }} as price_bucket,
        quantity,
        {{ log_bucket('quantity') }} as quantity_bucket
    from kept_by_day

)

{% for measure, chain in outlier_groups().items() %}
{% set is_last = loop.last %}
{% for group_by, column, alias in chain %}
{% set group_key = column | replace('product_category', 'category') %}
select
    arrival_day,
    seen_day,
    '{{ measure }}' as measure,
    '{{ group_by }}' as group_by,
    {{ group_key }} as group_key,
    {{ measure }}_bucket as bucket,
    {{ value_sums(measure, 'counted') }}
from observed
where
    {{ measure }} is not null and {{ group_key }} is not null
    {{ "and product_id is not null" if measure == 'price' }}
    {{ "and " ~ is_named_by_rules('event', measure, group_by) if group_by in optional_groups()[measure] }}
group by arrival_day, seen_day, {{ group_key }}, {{ measure }}_bucket
{{ "union all" if not (loop.last and is_last) }}
{% endfor %}
{% endfor %}
