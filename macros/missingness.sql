{# The columns of events that imputation can fill. #}
{% macro imputed_columns() %}{{ return(['price', 'quantity', 'device', 'country', 'category']) }}{% endmacro %}

{# The columns of events whose gaps are audited, in the order in which patterns name them. #}
{% macro audited_columns() %}
{{ return(imputed_columns() + [
    'user_id', 'anonymous_id', 'product_id', 'brand', 'order_id', 'currency', 'query', 'page', 'referrer', 'campaign', 'list_price',
]) }}
{% endmacro %}

{# SQL: the names of the columns of which `template`, with # for the name, is true, each between bars. #}
{% macro pattern_of(columns, template) -%}
'|'
{%- for column in columns %}
|| case when {{ template | replace('#', column) }} then '{{ column }}|' else '' end
{%- endfor %}
{%- endmacro %}

{# Predicate: whether a pattern names this column. #}
{% macro is_in_pattern(pattern, column) %}{{ pattern }} like '%|{{ column }}|%'{% endmacro %}
