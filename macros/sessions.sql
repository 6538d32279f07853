{# SELECT: the rows of `relation` with run_number. A run is one of `keys`'s events without a gap longer than session_gap_minutes; rows of
   which `always` holds begin one, those of which `never` holds do not. #}
{% macro numbered_runs(relation, keys, always=none, never=none) -%}
select
    *,
    sum(is_start) over (partition by {{ keys }} order by event_at, event_id rows between unbounded preceding and current row) as run_number
from (
    select
        *,
        case
            {%- if never %}
            when {{ never }} then 0
            {%- endif %}
            {%- if always %}
            when {{ always }} then 1
            {%- endif %}
            when lag(event_at) over in_order >= event_at - {{ minutes(var('session_gap_minutes')) }} then 0
            else 1
        end as is_start
    from {{ relation }}
    window in_order as (partition by {{ keys }} order by event_at, event_id)
) as starts
{%- endmacro %}

{# SQL: a list of a group's values of `column` whose `recency` is from 1, the newest, to `count`. #}
{% macro newest_of(column, count) -%}
{%- set values = [] -%}
{%- for place in range(1, count + 1) %}{% do values.append('max(case when recency = ' ~ place ~ ' then ' ~ column ~ ' end)') %}{% endfor -%}
{{ list_of_known(values) }}
{%- endmacro %}

{# SQL: whether a row is a refund in the shop's database: money moves, and nobody visits. #}
{% macro is_database_refund(alias=none) -%}
{%- set row = alias ~ '.' if alias else '' -%}
coalesce({{ row }}origin = 'database' and {{ row }}event_type in ('refund', 'refund_of_no_sale'), false)
{%- endmacro %}
