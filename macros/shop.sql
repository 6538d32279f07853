{#
  What is true of the whole shop: `reporting_currency` and `shop_time_zone`. A mapping says it, and the lake keeps it (orchestration/lake/shop.py);
  where none does, the var of the same name counts. Unit tests go by the vars, whatever the lake says.
#}
{% macro shop_setting(name) %}
{%- if execute and not (model is defined and model.resource_type == 'unit_test') -%}
    {%- set said = run_query('select ' ~ shop_setting_of_lake(name)).rows[0][0] -%}
    {%- if said is not none %}{{ return(said) }}{% endif -%}
{%- endif -%}
{{ return(var(name)) }}
{% endmacro %}

{# SQL: a moment as the shop's clocks show it. Days and hours that people read are the shop's; windows and tiles are of UTC days. #}
{% macro shop_time(moment) -%}
{%- set zone = shop_setting('shop_time_zone') -%}
{%- if zone == 'UTC' -%} {{ moment }} {%- else -%} {{ utc_to_local(moment, zone) }} {%- endif -%}
{%- endmacro %}

{# SQL: the day of a moment in the shop. #}
{% macro shop_day(moment) -%}
cast({{ shop_time(moment) }} as date)
{%- endmacro %}
