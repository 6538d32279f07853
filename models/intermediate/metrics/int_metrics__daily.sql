{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'change_set': 'int_events__changed_arrivals', 'change_keys': ['arrival_day']},
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- What a metric of any day, or of several, is made of: counts of the rows that arrived, by raw table, source and segment. Rows count
-- whatever their verdict, but for those that their source deleted. Lines of orders count once, in the state that their order has now.
-- Rows that are quarantined as a bot's are counted, but not described: a bot's products and currencies say nothing about the source.
-- A day and source has at most some 1,500 rows, however many events it has.
{% set keys = 'arrival_day, raw_table, source' %}
{% set counted_label = "case when place <= " ~ labels_counted() ~ " then label else 'other' end" %}
with arrived as {{ gathered_once() }} (

    select
        cast(v.raw_available_at as date) as arrival_day,
        v.raw_table,
        v.source,
        v.identity,
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

    {% for segment, value in [
        ('source', 'source'), ('event_type', "coalesce(event_type, 'unknown')"), ('device', "coalesce(device, 'unknown')"),
    ] %}
    select
        {% for verdict in ['kept', 'duplicate', 'quarantined', 'bot'] %}
        {{ count_if("verdict = '" ~ verdict ~ "'") }} as {{ verdict }},
        {% endfor %}
        {% for column in completeness_columns() %}
        {{ count_if("verdict <> 'bot' and " ~ column ~ ' is null') }} as without_{{ column }},
        {% endfor %}
        {{ keys }},
        '{{ segment }}' as segment,
        {{ value }} as segment_value,
        count(*) as all_rows,
        max(second_of_day) as last_second
    from arrived
    group by {{ keys }}, {{ value }}
    {{ "union all" if not loop.last }}
    {% endfor %}

),

described as {{ inlined() }} (

    select * from arrived where verdict <> 'bot'

),

identities as (

    select
        {{ keys }},
        count(distinct identity) as all_identities,
        count(distinct case when verdict = 'bot' then identity end) as bots
    from arrived
    group by {{ keys }}

),

{% for column in label_columns() %}
{{ column }}_counts as (

    select
        *,
        row_number() over (partition by {{ keys }} order by n desc, label asc) as place
    from (
        select {{ keys }}, {{ column }} as label, count(*) as n
        from described
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
        row_number() over (partition by {{ keys }} order by id_number) as place
    from (
        select {{ keys }}, {{ number_of_hash(id_hash([column])) }} as id_number, count(*) as n
        from described
        where {{ column }} is not null
        group by {{ keys }}, {{ column }}
    ) as ids

),

{% endfor %}
states as (

    {% for state, bucket, n in [
        ('rows', 'all', 'all_rows'), ('last_second', 'all', 'last_second'),
        ('verdict', 'kept', 'kept'), ('verdict', 'duplicate', 'duplicate'), ('verdict', 'quarantined', 'quarantined'),
        ('verdict', 'bot', 'bot'),
    ] %}
    select {{ metric_state(state, 'row', n, "'" ~ bucket ~ "'", segment='segment', segment_value='segment_value') | indent(8) }}
    from counted
    union all
    {% endfor %}
    {% for column in completeness_columns() %}
    select {{ metric_state('nulls', column, 'without_' ~ column, segment='segment', segment_value='segment_value') | indent(8) }}
    from counted
    where segment <> '{{ column }}'
    union all
    {% endfor %}
    {% for bucket, n in [('all', 'all_identities'), ('bot', 'bots')] %}
    select {{ metric_state('identities', 'identity', n, "'" ~ bucket ~ "'") | indent(8) }}
    from identities
    union all
    {% endfor %}
    {% for column, (value, bucket) in number_columns().items() %}
    select
        {{ metric_state(
            'histogram', column, 'count(*)', 'cast(' ~ bucket ~ ' as varchar)', total='sum(cast(' ~ value ~ ' as decimal(22, 4)))'
        ) | indent(8) }}
    from described
    where {{ value }} is not null
    group by {{ keys }}, {{ bucket }}
    union all
    {% endfor %}
    {% for column in label_columns() %}
    select {{ metric_state('labels', column, 'sum(n)', counted_label) | indent(8) }}
    from {{ column }}_counts
    group by {{ keys }}, {{ counted_label }}
    union all
    {% endfor %}
    {% for column in id_columns() %}
    select {{ metric_state('ids', column, 'max(most)', sketch=collect('id_number')) | indent(8) }}
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
    n,
    total,
    sketch
from states
