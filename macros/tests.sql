{# What the generic tests of tests/generic share: every row, and the names of the rules, given as name: predicate, that it breaks. #}
{% macro broken_rules(model, rules) -%}
{%- if execute and not rules %}{% do exceptions.raise_compiler_error('A test of ' ~ model ~ ' has no rules.') %}{% endif -%}
select
    concat_ws(
        ', '
        {%- for name, predicate in rules.items() %},
        case when not ({{ predicate }}) then '{{ name }}' end
        {%- endfor %}
    ) as broken_rules,
    *
from {{ model }}
{%- endmacro %}
