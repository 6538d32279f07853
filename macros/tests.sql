{# What the generic tests of tests/generic share: the rows that break a rule, given as name: predicate, whole and with the names of
   the rules they break. #}
{% macro rows_that_break(model, rules) -%}
{%- if execute and not rules %}{% do exceptions.raise_compiler_error('A test of ' ~ model ~ ' has no rules.') %}{% endif -%}
with checked as (

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

select * from checked where broken_rules <> ''
{%- endmacro %}

{# The columns, as its YAML declares them by name, of the model that the running test is about; none while dbt parses. #}
{% macro declared_columns() %}
{{ return(graph.nodes[model.attached_node].columns if execute else {}) }}
{% endmacro %}

{#
  A row that passed when it was built need not be tested again. Where a model's YAML has `meta: {changes: {key, changed_via}}`, a test that
  has `meta: {checks: rows}` or `{checks: keys}` (its result is of each row, or of all rows of one key) reads, in a `dbt build`, only
  rows of the keys of which one of the models `changed_via` has a row built since the last whole build that passed. `dbt test`, a
  full audit, a full refresh, a build after one that failed, or of another moment, tests all rows; so does a test that is new or was
  changed since then, or is about models whose rules changed. tests/generic/built_in.sql gives dbt's own tests their meta.
#}
{% macro get_where_subquery(relation) %}
{%- set about = graph.nodes.get(model.attached_node) if execute else none -%}
{%- set changes = (about.config.get('meta') or {}).get('changes') if about else none -%}
{%- set checks = (config.get('meta') or {}).get('checks') -%}
{%- set audited = finegrain.last_audited() if changes and checks and not config.get('where') else none -%}
{%- if audited is none %}{{ return(dbt.default__get_where_subquery(relation)) }}{% endif -%}
{%- set changed -%}
(
    select * from {{ relation }}
    {%- if changes.changed_via == [about.name] and checks == 'rows' %}
    where built_in > {{ audited }}
    {%- else %}
    where {{ changes.key }} in (
        {%- for name in changes.changed_via %}
        select c.{{ changes.key }} from {{ target.schema }}.{{ name }} as c where c.built_in > {{ audited }}
        {{- " union" if not loop.last }}
        {%- endfor %}
    )
    {%- endif %}
) as changed
{%- endset -%}
{{ return(changed) }}
{% endmacro %}

{# The lake snapshot of the last build, if it was whole and passed; none where all has to be asked. #}
{% macro last_audited() %}
{%- if not execute or flags.WHICH != 'build' or flags.FULL_REFRESH or finegrain.asks_all() %}{{ return(none) }}{% endif -%}
{%- set inputs = finegrain.inputs_of(model) -%}
{%- set found = run_query(
    "select case when b.status = 'passed' and b.is_whole and b.as_of is not distinct from " ~ finegrain.requested_as_of()
    ~ " and not exists (select 1 from " ~ finegrain.states() ~ " as s"
    ~ " where s.model in (" ~ finegrain.names_in_sql(inputs.models + inputs.views) ~ ") and s.begun_in > b.number)"
    ~ " and exists (select 1 from " ~ finegrain.states() ~ " as t"
    ~ " where t.model = '" ~ model.name ~ "' and t.rules = " ~ finegrain.rules_of(model) ~ ")"
    ~ " then b.built_from end from " ~ target.schema ~ ".builds as b where b.invocation_id <> '" ~ invocation_id ~ "'"
    ~ " order by b.number desc nulls last limit 1"
) -%}
{{ return(found.rows[0][0] if found.rows else none) }}
{% endmacro %}

{# Whether every test is to be asked of all rows: `finegrain build --full-audit`, and the nightly job. #}
{% macro asks_all() %}{{ return(env_var('FINEGRAIN_FULL_AUDIT', '') == '1') }}{% endmacro %}
