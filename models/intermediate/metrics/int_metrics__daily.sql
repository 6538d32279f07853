{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'change_set': 'int_events__changed_arrivals', 'change_keys': ['arrival_day']},
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- What a metric of any day, or of several, is made of: counts of the rows that arrived, by raw table, source and segment. Rows count
-- whatever their verdict, but for those that their source deleted. Lines of orders count once, in the state that their order has now.
-- A day and source has at most some 1,500 rows, however many events it has.
{% set keys = 'arrival_day, raw_table, source' %}
with arrived as {{ gathered_once() }} (

    select
        cast(v.raw_available_at as date) as arrival_day,
        v.raw_table,
        v.source,
        {{ whole_seconds('cast(cast(v.raw_available_at as date) as timestamp)', 'v.raw_available_at') }} as second_of_day,
        {{ verdict_of_the_day('v') | indent(8) }} as verdict,
        -- What a line of an order is depends on what became of the order later.
        case v.raw_table when 'order_items' then 'purchase' when 'refunds' then 'refund' else v.event_type end as event_type,
        {% for column in completeness_columns() if column != 'event_type' %}
        v.{{ column }},
        {% endfor %}
        v.price_reported,
        {{ whole_seconds('v.event_at', 'v.raw_available_at') }} as lateness,
        extract(hour from v.event_at) as hour_of_day
    from {{ ref('int_events__validated') }} as v
    where v.verdict <> 'superseded'
        and not {{ has_value('v.reasons', 'deleted_at_source') }}
        and {{ is_changed('int_events__changed_arrivals', [('cast(v.raw_available_at as date)', 'arrival_day')]) | indent(8) }}

),

counted as (

    select
        {{ keys }},
        case
            when grouping(event_type) = 0 then 'event_type'
            when grouping(device) = 0 then 'device'
            else 'source'
        end as segment,
        case
            when grouping(event_type) = 0 then coalesce(event_type, 'unknown')
            when grouping(device) = 0 then coalesce(device, 'unknown')
            else source
        end as segment_value,
        count(*) as all_rows,
        max(second_of_day) as last_second,
        {% for verdict in ['kept', 'duplicate', 'quarantined'] %}
        {{ count_if("verdict = '" ~ verdict ~ "'") }} as {{ verdict }},
        {% endfor %}
        {% for column in completeness_columns() %}
        {{ count_if(column ~ ' is null') }} as without_{{ column }}{{ "," if not loop.last }}
        {% endfor %}
    from arrived
    group by grouping sets (({{ keys }}), ({{ keys }}, event_type), ({{ keys }}, device))

),

{% for column in label_columns() %}
{{ column }}_counts as (

    select
        *,
        row_number() over (partition by {{ keys }} order by n desc, label) as place
    from (
        select {{ keys }}, {{ column }} as label, count(*) as n
        from arrived
        where {{ column }} is not null
        group by {{ keys }}, {{ column }}
    ) as labels

),

{% endfor %}
{% for column in id_columns() %}
{{ column }}_counts as (

    select
        *,
        max(n) over (partition by {{ keys }}) as most,
        row_number() over (partition by {{ keys }} order by hash) as place
    from (
        select {{ keys }}, {{ number_of_hash(id_hash([column])) }} as hash, count(*) as n
        from arrived
        where {{ column }} is not null
        group by {{ keys }}, {{ column }}
    ) as ids

),

{% endfor %}
states as (

    {% for state, bucket, n in [
        ('rows', 'all', 'all_rows'), ('last_second', 'all', 'last_second'),
        ('verdict', 'kept', 'kept'), ('verdict', 'duplicate', 'duplicate'), ('verdict', 'quarantined', 'quarantined'),
    ] %}
    select
        {{ keys }},
        segment,
        segment_value,
        'row' as column_name,
        '{{ state }}' as state,
        '{{ bucket }}' as bucket,
        {{ n }} as n,
        cast(null as decimal(38, 4)) as total,
        {{ no_numbers() }} as sketch
    from counted
    union all
    {% endfor %}
    {% for column in completeness_columns() %}
    select
        {{ keys }}, segment, segment_value, '{{ column }}', 'nulls', 'all', without_{{ column }}, null, {{ no_numbers() }}
    from counted
    where segment <> '{{ column }}'
    union all
    {% endfor %}
    {% for column, (value, bucket) in number_columns().items() %}
    select
        {{ keys }}, 'source', source, '{{ column }}', 'histogram', cast({{ bucket }} as varchar), count(*),
        sum(cast({{ value }} as decimal(18, 4))), {{ no_numbers() }}
    from arrived
    where {{ value }} is not null
    group by {{ keys }}, {{ bucket }}
    union all
    {% endfor %}
    {% for column in label_columns() %}
    select
        {{ keys }}, 'source', source, '{{ column }}', 'labels',
        case when place <= {{ labels_counted() }} then label else 'other' end, cast(sum(n) as bigint), null, {{ no_numbers() }}
    from {{ column }}_counts
    group by {{ keys }}, case when place <= {{ labels_counted() }} then label else 'other' end
    union all
    {% endfor %}
    {% for column in id_columns() %}
    select
        {{ keys }}, 'source', source, '{{ column }}', 'ids', 'all', max(most), null, {{ collect('hash') }}
    from {{ column }}_counts
    where place <= {{ sketch_size() }}
    group by {{ keys }}
    {{ "union all" if not loop.last }}
    {% endfor %}

)

select
    arrival_day,
    raw_table,
    source,
    segment,
    segment_value,
    column_name,
    state,
    bucket,
    cast(n as bigint) as n,
    cast(total as decimal(38, 4)) as total,
    sketch
from states
