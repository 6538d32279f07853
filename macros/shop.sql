{#
  What is true of the whole shop: `reporting_currency` and `shop_time_zone`. A mapping says it, and the lake keeps it
  (orchestration/lake/shop.py); where none does, the var of the same name counts. Unit tests go by the vars, whatever the lake says.
#}
{% macro shop_setting(name) %}
{%- if execute and not (model is defined and model.resource_type == 'unit_test') -%}
    {#- Asked once a node: a query costs dbt several milliseconds. -#}
    {%- set known = model.setdefault('shop_settings', {}) if model is defined else {} -%}
    {%- if name not in known -%}
        {%- do known.update({name: run_query('select ' ~ finegrain.shop_setting_of_lake(name)).rows[0][0]}) -%}
    {%- endif -%}
    {%- if known[name] is not none %}{{ return(known[name]) }}{% endif -%}
{%- endif -%}
{{ return(var(name)) }}
{% endmacro %}

{# SQL: a moment as the shop's clocks show it. Days and hours that people read are the shop's; windows and tiles are of UTC days. #}
{% macro shop_time(moment) -%}
{%- set zone = finegrain.shop_setting('shop_time_zone') -%}
{%- if zone == 'UTC' -%} {{ moment }} {%- else -%} {{ finegrain.utc_to_local(moment, zone) }} {%- endif -%}
{%- endmacro %}

{# SQL: the day of a moment in the shop. #}
{% macro shop_day(moment) -%}
cast({{ finegrain.shop_time(moment) }} as date)
{%- endmacro %}

{# The parts of a day, as [name, first hour, last hour], by the shop's clocks. #}
{% macro day_parts() %}
{%- set parts, starts = [], var('day_parts').items() | list -%}
{%- for name, first in starts -%}
{%- do parts.append([name, first, 23 if loop.last else starts[loop.index][1] - 1]) -%}
{%- endfor -%}
{{ return(parts) }}
{% endmacro %}

{# SQL: whether a moment lies between two whole hours, both included, by the shop's clocks. #}
{% macro is_in_hours_of_day(moment, first, last) -%}
extract(hour from {{ finegrain.shop_time(moment) }}) between {{ first }} and {{ last }}
{%- endmacro %}

{# SQL: the name of the part of the day in which a moment lies. #}
{% macro day_part(moment) -%}
case
    {%- for name, first, last in finegrain.day_parts() %}
    when {{ finegrain.is_in_hours_of_day(moment, first, last) }} then '{{ name }}'
    {%- endfor %}
end
{%- endmacro %}

{# SQL: the hour of the week in which a moment lies, by the shop's clocks: as text, from 0 (Monday after midnight) to 167. #}
{% macro hour_of_week(moment) -%}
cast(24 * (extract(isodow from {{ finegrain.shop_time(moment) }}) - 1) + extract(hour from {{ finegrain.shop_time(moment) }}) as varchar)
{%- endmacro %}

{# SQL: whether a moment lies on a Saturday or Sunday, by the shop's clocks. #}
{% macro is_weekend(moment) -%}
extract(isodow from {{ finegrain.shop_time(moment) }}) >= 6
{%- endmacro %}
