{#
  Every number of the model is finite, and lies within the range that its column's YAML declares: `config.meta.range`, as
  [lowest, highest], null for no limit.
#}
{% test ranges_as_declared(model) %}
{%- set rules = {} -%}
{%- for node in graph.nodes.values() if execute and node.resource_type == 'model' and node.name == model.identifier -%}
    {%- for column in node.columns.values() -%}
        {%- set lowest, highest = (column.get('config') or {}).get('meta', {}).get('range', [none, none]) -%}
        {%- set predicates = [] -%}
        {%- if column.data_type == 'double' %}{% do predicates.append(is_finite(column.name)) %}{% endif -%}
        {%- if lowest is not none %}{% do predicates.append(column.name ~ ' >= ' ~ lowest) %}{% endif -%}
        {%- if highest is not none %}{% do predicates.append(column.name ~ ' <= ' ~ highest) %}{% endif -%}
        {%- if predicates %}{% do rules.update({column.name: predicates | join(' and ')}) %}{% endif -%}
    {%- endfor -%}
{%- endfor -%}
with judged as (

    {{ broken_rules(model, rules) | indent(4) }}

)

select * from judged where broken_rules <> ''
{% endtest %}
