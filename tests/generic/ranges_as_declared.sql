{#
  Every number of the model is finite and as its column's YAML declares it in `config.meta`: within `range` ([lowest, highest],
  null for no limit), and there if a constraint or `null_means` says so: of a view the database itself holds no constraint.
#}
{% test ranges_as_declared(model) %}
{{ config(meta={'checks': 'rows'}) }}
{%- set rules = {} -%}
{%- for column in finegrain.declared_columns().values() -%}
    {%- set meta = (column.get('config') or {}).get('meta', {}) -%}
    {%- set lowest, highest = meta.get('range', [none, none]) -%}
    {%- set predicates = [] -%}
    {%- set may_not_be_null = column.constraints | selectattr('type', 'equalto', 'not_null') | list -%}
    {%- if may_not_be_null or meta.get('null_means') == 'never null' %}{% do predicates.append(column.name ~ ' is not null') %}{% endif -%}
    {%- if column.data_type == 'double' %}{% do predicates.append(finegrain.is_finite(column.name)) %}{% endif -%}
    {%- if lowest is not none %}{% do predicates.append(column.name ~ ' >= ' ~ lowest) %}{% endif -%}
    {%- if highest is not none %}{% do predicates.append(column.name ~ ' <= ' ~ highest) %}{% endif -%}
    {%- if predicates %}{% do rules.update({column.name: predicates | join(' and ')}) %}{% endif -%}
{%- endfor -%}
{{ finegrain.rows_that_break(model, rules) }}
{% endtest %}
