{# What the generic tests of tests/generic share: the rows that break a rule, given as name: predicate, whole and with the names of
   the rules they break. #}
{% macro rows_that_break(model, rules) -%}
{%- if execute and not rules %}{% do exceptions.raise_compiler_error('A test of ' ~ model ~ ' has no rules.') %}{% endif -%}
with judged as (

    select
        concat_ws(
            ', '
            {%- for name, predicate in rules.items() %},
            case when not ({{ predicate }}) then '{{ name }}' end
            {%- endfor %}
        ) as broken_rules,
        *
    from {{ model }}

)

select * from judged where broken_rules <> ''
{%- endmacro %}

{# The columns of a model as its YAML declares them, by name; none while dbt parses. #}
{% macro declared_columns(model) %}
{%- for node in (graph.nodes.values() if execute else []) if node.resource_type == 'model' and node.name == model.identifier -%}
    {{ return(node.columns) }}
{%- endfor -%}
{{ return({}) }}
{% endmacro %}
