{#
  A seed as models read it. Where the var `shop_seeds` lists it, the root project has a seed shop_<name> with the same columns: its
  rows count, and those of finegrain's seed whose key it does not give. seeds/_seeds.yml says which columns are the key (`meta: {key}`).
#}
{% macro seed(name) -%}
{%- if name not in var('shop_seeds', []) %}{{ return(ref(name)) }}{% endif -%}
{%- set own, package = ref('shop_' ~ name), ref(name) -%}
{%- if not execute %}{{ return(own) }}{% endif -%}
{%- set declared = graph.nodes['seed.finegrain.' ~ name] -%}
{%- set columns = declared.columns | join(', ') -%}
{%- set meta = declared.config.meta -%}
(
    select {{ columns }} from {{ own }}
    union all
    select {{ columns }}
    from {{ package }} as f
    where not exists (
        select 1
        from {{ own }} as s
        where
            {%- for column in meta.key %}
            {{ finegrain.spelled('s.' ~ column, meta) }} = {{ finegrain.spelled('f.' ~ column, meta) }}{{ " and" if not loop.last }}
            {%- endfor %}
    )
)
{%- endmacro %}

{# SQL: a value of a key, by the seed's `spelling` where it has one. #}
{% macro spelled(column, meta) -%}
{{ finegrain[meta.spelling](column) if meta.spelling else column }}
{%- endmacro %}
