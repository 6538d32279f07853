{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key=['measure', 'group_by', 'group_key', 'fit_day'],
    meta={'live': 'lookup'},
    post_hook="{{ move_watermark('int_cleaning__changed_rows') }}",
) }}
-- What the values of kept events are held against: for each group and day of which there are any, the fit of two days before
-- and, where a rule says so and the group is old enough, the limits of what is believable.
--
-- A table of its own: DuckDB expects twenty times as many of them as there are, and would spill the events that it joins.
with groups as (

    select distinct
        v.event_type,
        v.product_id,
        v.product_category,
        -- Null where no rule asks for it, so that there are not 168 rows of each group.
        case
            when {{ is_named_by_rules('event', 'price', 'hour_of_week') | indent(12) }} then {{ hour_of_week('v.event_at') }}
            when {{ is_named_by_rules('event', 'quantity', 'hour_of_week') | indent(12) }} then {{ hour_of_week('v.event_at') }}
        end as hour_of_week,
        {{ add_days('v.event_day', -1 * var('fit_lag_days')) }} as fit_day
    from {{ ref('int_events__validated') }} as v
    where {{ was_kept('v') }} and {{ is_changed('int_cleaning__changed_rows', [('v.row_id', 'row_id')]) }}

),

asked as (

    {% for measure, chain in outlier_groups().items() %}
    {% set last_measure = loop.last %}
    {% for group_by, column, alias in chain %}
    select distinct
        '{{ measure }}' as measure,
        '{{ group_by }}' as group_by,
        {{ column }} as group_key,
        fit_day
    from groups
    where
        {{ column }} is not null
        {{ "and " ~ is_named_by_rules('event', measure, group_by) if group_by in optional_groups()[measure] }}
    {{ "union all" if not (loop.last and last_measure) }}
    {% endfor %}
    {% endfor %}

),

-- Of the groups asked for alone: an as-of join sorts all that it gets. (By the key alone: one text is looked up faster than three.)
fits as (

    select f.*
    from {{ ref('int_cleaning__numeric_statistics') }} as f
    where f.group_key in (select a.group_key from asked as a)

),

answered as (

    select
        a.measure,
        a.group_by,
        a.group_key,
        a.fit_day,
        {{ all_but('f', ['measure', 'group_by', 'group_key', 'valid_on']) }}
    from {{ asof_left_join(
        'asked as a', 'fits as f',
        [('a.measure', 'f.measure'), ('a.group_by', 'f.group_by'), ('a.group_key', 'f.group_key')],
        'a.fit_day', 'f.valid_on'
    ) }}

)

select
    a.*,
    o.scale,
    o.action,
    {{ outlier_bound('o', 'a', 'low') }} as low,
    {{ outlier_bound('o', 'a', 'high') }} as high
from answered as a
left join {{ seed('outlier_rules') }} as o on a.measure = o.column_name and a.group_by = o.group_by
