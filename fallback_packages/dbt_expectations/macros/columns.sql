{# Tests of one column, row by row. #}

{% test expect_column_to_exist(model, column_name, column_index=none, transform='upper') %}
    {%- if execute -%}
        {%- set wanted = column_name | map(transform) | join -%}
        {%- set names = adapter.get_columns_in_relation(model) | map(attribute='name') | map(transform) | list -%}
        {%- set position = names.index(wanted) + 1 if wanted in names else 0 -%}
select '{{ wanted }}' as column_name, {{ position }} as position
where {{ position }} = 0{% if column_index %} or {{ position }} <> {{ column_index }}{% endif %}
    {%- endif -%}
{% endtest %}

{# A column that is not there passes: that is what expect_column_to_exist is for. #}
{% test expect_column_values_to_be_of_type(model, column_name, column_type) %}
    {{ dbt_expectations.column_type_in(model, column_name, [column_type]) }}
{% endtest %}

{% test expect_column_values_to_be_in_type_list(model, column_name, column_type_list) %}
    {{ dbt_expectations.column_type_in(model, column_name, column_type_list) }}
{% endtest %}

{% macro column_type_in(model, column_name, column_types) %}
    {%- if execute -%}
        {%- set allowed = column_types | map('upper') | list -%}
        {%- set wrong = [] -%}
        {%- for column in adapter.get_columns_in_relation(model) -%}
            {%- if column.name | upper == column_name | upper and column.dtype | upper not in allowed -%}
                {%- do wrong.append(column.dtype | upper) -%}
            {%- endif -%}
        {%- endfor -%}
select '{{ column_name }}' as column_name, '{{ wrong | join }}' as column_type
where {{ wrong | length }} > 0
    {%- endif -%}
{% endmacro %}

{% test expect_column_values_to_not_be_null(model, column_name, row_condition=none) %}
    {{ dbt_expectations.expression_is_true(model, column_name ~ ' is not null', row_condition=row_condition) }}
{% endtest %}

{% test expect_column_values_to_be_between(model, column_name, min_value=none, max_value=none, row_condition=none, strictly=false) %}
    {{ dbt_expectations.expression_between(model, column_name, min_value, max_value, none, row_condition, strictly) }}
{% endtest %}

{% test expect_column_value_lengths_to_be_between(model, column_name, min_value=none, max_value=none, row_condition=none, strictly=false) %}
    {{ dbt_expectations.expression_between(
        model, dbt.length(column_name) | trim, min_value, max_value, none, row_condition, strictly
    ) }}
{% endtest %}

{# Null is not in the set. With `quote_values` each value is a text literal; without, an SQL expression. #}
{% test expect_column_values_to_be_in_set(model, column_name, value_set, quote_values=true, row_condition=none) %}
    {%- set quote = "'" if quote_values else '' -%}
select {{ column_name }} as value_field
from {{ model }}
where
    ({{ column_name }} is null or {{ column_name }} not in ({{ quote }}{{ value_set | join(quote ~ ', ' ~ quote) }}{{ quote }}))
    {%- if row_condition %}
    and ({{ row_condition }})
    {%- endif %}
{% endtest %}

{# `is_raw` is taken and, as in the real package on DuckDB and Spark, makes no difference. #}
{% test expect_column_values_to_match_regex(model, column_name, regex, row_condition=none, is_raw=false, flags='') %}
    {{ dbt_expectations.expression_is_true(
        model, dbt_expectations.matches_regex(column_name, regex, flags), row_condition=row_condition
    ) }}
{% endtest %}

{% test expect_column_values_to_be_unique(model, column_name, row_condition=none) %}
    {{ dbt_expectations.duplicates(model, [column_name], 'all_values_are_missing', row_condition) }}
{% endtest %}
