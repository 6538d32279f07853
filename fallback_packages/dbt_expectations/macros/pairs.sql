{# Tests over several columns of a row. #}

{% test expression_is_true(model, expression, test_condition='= true', group_by_columns=none, row_condition=none) %}
    {{ dbt_expectations.expression_is_true(model, expression, test_condition, group_by_columns, row_condition) }}
{% endtest %}

{% test expect_column_pair_values_A_to_be_greater_than_B(model, column_A, column_B, or_equal=false, row_condition=none) %}
    {{ dbt_expectations.expression_is_true(
        model, column_A ~ (' >= ' if or_equal else ' > ') ~ column_B, row_condition=row_condition
    ) }}
{% endtest %}

{% test expect_compound_columns_to_be_unique(
    model, column_list, quote_columns=false, ignore_row_if='all_values_are_missing', row_condition=none
) %}
    {%- set columns = [] -%}
    {%- for column in column_list -%}
        {%- do columns.append(adapter.quote(column) if quote_columns else column) -%}
    {%- endfor -%}
    {{ dbt_expectations.duplicates(model, columns, ignore_row_if, row_condition) }}
{% endtest %}

{# Combinations that occur more than once, with nulls taken as equal, but for rows whose values are all (or any) null. #}
{% macro duplicates(model, columns, ignore_row_if, row_condition) %}
    {%- if ignore_row_if not in ['all_values_are_missing', 'any_value_is_missing'] -%}
        {{ exceptions.raise_compiler_error(
            'ignore_row_if is ' ~ ignore_row_if ~ '; write all_values_are_missing or any_value_is_missing.'
        ) }}
    {%- endif -%}
select {{ columns | join(', ') }}, count(*) as n_records
from {{ model }}
where
    ({{ columns | join(' is not null ' ~ ('or' if ignore_row_if == 'all_values_are_missing' else 'and') ~ ' ') }} is not null)
    {%- if row_condition %}
    and ({{ row_condition }})
    {%- endif %}
group by {{ columns | join(', ') }}
having count(*) > 1
{% endmacro %}
