{#
  Metrics of data quality. `int_metrics__daily` keeps them as states by day of arrival: counts, sums, histograms and sketches, which add up
  over days, sources and segments, whatever the order. `metric_history` turns them into values, `metric_anomalies` compares these with
  seeds/metric_rules.csv.
#}

{# The columns of events of which metrics say how complete they are. #}
{% macro completeness_columns() %}
{{ return([
    'event_at', 'event_type', 'user_id', 'anonymous_id', 'source_session_id', 'product_id', 'category', 'order_id', 'quantity', 'price',
    'currency', 'device', 'user_agent', 'country', 'consent',
]) }}
{% endmacro %}

{# The columns of ids: of each day the distinct ones are sketched, and the rows of the most frequent one counted. #}
{% macro id_columns() %}{{ return(['user_id', 'anonymous_id', 'product_id']) }}{% endmacro %}

{# The columns of labels, whose values are counted. #}
{% macro label_columns() %}{{ return(['event_type', 'currency', 'device', 'country']) }}{% endmacro %}

{# The columns of numbers, by name: SQL of the value and of its bucket. Prices are as they came, and in the reporting currency; lateness is
   in seconds between event and arrival; the hour is of the day in UTC. #}
{% macro number_columns() %}
{{ return({
    'price': ['price', coarse_bucket('price')],
    'price_reported': ['price_reported', coarse_bucket('price_reported')],
    'quantity': ['quantity', coarse_bucket('quantity')],
    'lateness': ['lateness', coarse_bucket('lateness')],
    'hour': ['hour_of_day', 'hour_of_day'],
}) }}
{% endmacro %}

{# The columns of numbers that have a mean and a median. #}
{% macro measured_columns() %}{{ return(['price', 'price_reported', 'quantity', 'lateness']) }}{% endmacro %}

{# A histogram bucket about 22 % wide: ten of the narrow ones that fits are made of. #}
{% macro coarse_bucket(value) -%}
cast(floor({{ log_bucket(value) }} / 10.0) as integer)
{%- endmacro %}

{# How many hashes a sketch of distinct values keeps: the smallest ones (k minimum values, Bar-Yossef et al. 2002). The estimate is exact
   below it, and else off by about 1 / sqrt(k - 2), which is 6 %. #}
{% macro sketch_size() %}{{ return(256) }}{% endmacro %}

{# Of how many labels of a day and source the rows are counted, the most frequent ones; the rest count together. #}
{% macro labels_counted() %}{{ return(100) }}{% endmacro %}

{# After the `as` of a CTE that many others read: an incremental build gathers its few rows once, a full one scans the table for each. #}
{% macro gathered_once() -%}
{{ '' if is_incremental() else inlined() }}
{%- endmacro %}

{# SQL: the columns of a row of int_metrics__daily, after its keys of day, table and source. #}
{% macro metric_state(state, column, n, bucket="'all'", total='null', sketch=none, segment="'source'", segment_value='source') -%}
arrival_day,
raw_table,
source,
{{ segment }} as segment,
{{ segment_value }} as segment_value,
'{{ column }}' as column_name,
'{{ state }}' as state,
{{ bucket }} as bucket,
cast({{ n }} as bigint) as n,
cast({{ total }} as decimal(38, 4)) as total,
{{ sketch or no_numbers() }} as sketch
{%- endmacro %}

{# SQL: the verdict on a row at the end of the day it arrived on, so that what arrives later does not change it: a row that waited longer
   for its customer or product was quarantined, and one that became a duplicate later was kept. A row that is quarantined as a bot's is
   `bot`, whatever else is wrong with it. #}
{% macro verdict_of_the_day(alias) -%}
case
    when {{ alias }}.verdict = 'quarantined'
        and (
            {%- for rule in bot_rules() %}
            {{ has_value(alias ~ '.reasons', rule) }}{{ " or" if not loop.last }}
            {%- endfor %}
        )
        then 'bot'
    when {{ alias }}.verdict = 'quarantined'
        or cast(greatest(
            {{ alias }}.raw_available_at,
            {{ alias }}.user_known_at,
            case when {{ alias }}.expects like '%products%' then {{ alias }}.product_known_at end
        ) as date) > cast({{ alias }}.raw_available_at as date)
        then 'quarantined'
    when {{ alias }}.verdict = 'duplicate' and coalesce({{ alias }}.until_day <= cast({{ alias }}.raw_available_at as date), true)
        then 'duplicate'
    else 'kept'
end
{%- endmacro %}

{# SQL: a value of a metric on the scale on which it is forecast: logarithms of counts and amounts, since these change by factors. #}
{% macro on_forecast_scale(metric, value) -%}
case
    when {{ metric }} in ({{ metrics_on_log_scale() }}) then ln(1 + greatest({{ value }}, 0))
    else {{ value }}
end
{%- endmacro %}

{# SQL: the opposite. #}
{% macro from_forecast_scale(metric, value) -%}
case
    when {{ metric }} in ({{ metrics_on_log_scale() }}) then greatest(exp({{ value }}) - 1, 0)
    else {{ value }}
end
{%- endmacro %}

{# The metrics that are forecast on logarithms. #}
{% macro metrics_on_log_scale() %}'volume', 'mean', 'median'{% endmacro %}

{# How many rows a visit has in a day, roughly: rows of one visit resemble each other, so that chance moves a metric as if there were
   fewer rows. #}
{% macro rows_per_visit() %}10{% endmacro %}

{# SQL: the variance of a metric on its forecast scale from chance alone: counts as Poisson, shares as binomial (of one row more with it and
   one without, so that a share that was always 0 or 1 has some), others none. Identities are counted one by one. Plain Jinja:
   orchestration/quality/streams.py reads it, too. #}
{% macro sampling_variance(metric, forecast, n, rows=rows_per_visit()) -%}
{%- set share = '(' ~ forecast ~ ' * ' ~ n ~ ' + 1) / (' ~ n ~ ' + 2)' -%}
case
    when {{ metric }} = 'volume' then {{ rows }} * exp(-{{ forecast }})
    when {{ metric }} = 'bot_identity_share' then {{ share }} * (1 - {{ share }}) / {{ n }}
    when {{ metric }} in (
        'completeness', 'distinctness', 'top_share', 'quarantined_share', 'duplicate_share', 'bot_share', 'type_share', 'dead_letter_share'
    )
        then {{ rows }} * {{ share }} * (1 - {{ share }}) / {{ n }}
    else 0
end
{%- endmacro %}
