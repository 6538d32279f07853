{#
  Every number of the model is finite and as its column's YAML declares it in `config.meta`: within `range` ([lowest, highest],
  null for no limit), and there if `null_means` says never null.
#}
{% test ranges_as_declared(model) %}
{%- set rules = {} -%}
{%- for node in (graph.nodes.values() if execute else []) if node.resource_type == 'model' and node.name == model.identifier -%}
    {%- for column in node.columns.values() -%}
        {%- set meta = (column.get('config') or {}).get('meta', {}) -%}
        {%- set lowest, highest = meta.get('range', [none, none]) -%}
        {%- set predicates = [] -%}
        {%- if meta.get('null_means') == 'never null' %}{% do predicates.append(column.name ~ ' is not null') %}{% endif -%}
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
