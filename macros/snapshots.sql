{# SQL: whether a build is of no earlier moment than the history that is being written. A build for a moment of the past
   tells the history nothing, or its versions would end before they begin. #}
{% macro follows_history(as_of) -%}
{%- if execute and load_relation(this) -%}
{{ as_of }} >= (select coalesce(max(h.dbt_valid_from), timestamp '1970-01-01') from {{ this }} as h)
{%- else -%}
true
{%- endif -%}
{%- endmacro %}
