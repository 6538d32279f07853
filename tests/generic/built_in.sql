{# dbt's own tests, with what get_where_subquery (macros/tests.sql) has to know of them: whether they check row by row, or all rows
   of a key. #}
{% test not_null(model, column_name) %}
{{ config(meta={'checks': 'rows'}) }}
{{ dbt.default__test_not_null(model, column_name) }}
{% endtest %}

{% test accepted_values(model, column_name, values, quote=true) %}
{{ config(meta={'checks': 'rows'}) }}
{{ dbt.default__test_accepted_values(model, column_name, values, quote) }}
{% endtest %}

{% test unique(model, column_name) %}
{{ config(meta={'checks': 'keys'}) }}
{{ dbt.default__test_unique(model, column_name) }}
{% endtest %}

{% test relationships(model, column_name, to, field) %}
{{ config(meta={'checks': 'keys'}) }}
{{ dbt.default__test_relationships(model, column_name, to, field) }}
{% endtest %}
