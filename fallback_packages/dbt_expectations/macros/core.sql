{#
  What every test here is made of. A test selects the rows (or groups) that fail. As in the real package, a
  predicate that is null does not fail: pair such a test with not_null where null is wrong.
#}

{# `expression` for each row of the model, or for each group of `group_by` (whose values come as col_1, col_2 …). #}
{% macro select_expression(model, expression, group_by=none, row_condition=none) %}
    select
        {%- for column in group_by or [] %}
        {{ column }} as col_{{ loop.index }},
        {%- endfor %}
        {{ expression }} as expression
    from {{ model }}
    {%- if row_condition %}
    where {{ row_condition }}
    {%- endif %}
    {%- if group_by %}
    group by {{ group_by | join(', ') }}
    {%- endif %}
{% endmacro %}

{# Rows, or groups, of which `expression` followed by `test_condition` is false. #}
{% macro expression_is_true(model, expression, test_condition='= true', group_by_columns=none, row_condition=none) %}
with judged as (
    {{ dbt_expectations.select_expression(model, expression, group_by_columns, row_condition) }}
)

select *
from judged
where not (expression {{ test_condition }})
{% endmacro %}

{# Rows, or groups, of which `expression` lies outside the bounds; the bounds themselves are inside unless `strictly`. #}
{% macro expression_between(model, expression, min_value, max_value, group_by_columns, row_condition, strictly) %}
    {%- if min_value is none and max_value is none -%}
        {{ exceptions.raise_compiler_error('A test on ' ~ model ~ ' has no bounds: give min_value, max_value or both.') }}
    {%- endif -%}
    {%- set equal = '' if strictly else '=' -%}
    {%- set bounds = [] -%}
    {%- if min_value is not none -%}
        {%- do bounds.append('(' ~ expression ~ ') >' ~ equal ~ ' ' ~ min_value) -%}
    {%- endif -%}
    {%- if max_value is not none -%}
        {%- do bounds.append('(' ~ expression ~ ') <' ~ equal ~ ' ' ~ max_value) -%}
    {%- endif -%}
    {{ dbt_expectations.expression_is_true(
        model, '(' ~ bounds | join(' and ') ~ ')', group_by_columns=group_by_columns, row_condition=row_condition
    ) }}
{% endmacro %}

{#
  Groups (or the one whole) of which the two tables' aggregates differ by more than `tolerance`, or by more than
  `tolerance_percent` (a fraction) of the first. A group that one table lacks counts as 0 there.
#}
{% macro expressions_equal(
    model, expression, compare_model, compare_expression, group_by, compare_group_by, row_condition,
    compare_row_condition, tolerance=0.0, tolerance_percent=none
) %}
    {%- set keys = range(1, (group_by or []) | length + 1) -%}
with here as (
    {{ dbt_expectations.select_expression(model, expression, group_by, row_condition) }}
),

there as (
    {{ dbt_expectations.select_expression(
        compare_model or model, compare_expression or expression, compare_group_by or group_by,
        compare_row_condition or row_condition
    ) }}
),

compared as (
    select
        {%- for key in keys %}
        coalesce(here.col_{{ key }}, there.col_{{ key }}) as col_{{ key }},
        {%- endfor %}
        here.expression,
        there.expression as compare_expression,
        abs(coalesce(here.expression, 0) - coalesce(there.expression, 0)) as difference
    from here
    {%- if group_by %}
    full outer join there on {% for key in keys %}here.col_{{ key }} = there.col_{{ key }}{{ ' and ' if not loop.last }}{% endfor %}
    {%- else %}
    cross join there
    {%- endif %}
)

select *
from compared
where {% if tolerance_percent %}difference / nullif(expression * 1.0, 0) > {{ tolerance_percent }}{% else %}difference > {{ tolerance }}{% endif %}
{% endmacro %}

{# True where the text matches the regular expression anywhere. #}
{% macro matches_regex(value, regex, flags) %}
    {{- return(adapter.dispatch('matches_regex', 'dbt_expectations')(value, regex, flags)) -}}
{% endmacro %}

{% macro default__matches_regex(value, regex, flags) -%}
    regexp_matches({{ value }}, '{{ regex }}', '{{ flags }}')
{%- endmacro %}

{% macro spark__matches_regex(value, regex, flags) -%}
    {{ value }} rlike '{{ '(?' ~ flags ~ ')' if flags }}{{ regex }}'
{%- endmacro %}
