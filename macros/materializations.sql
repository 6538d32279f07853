{#
  What did not change is left as it is. What a table or incremental model holds follows from its SQL, the
  rules, the moment asked for, and its inputs: the raw tables (told by the last snapshot in which rows came), the seeds, and
  the models it reads. A fingerprint of these, its state, is kept when the model is built, in the model's own transaction;
  a build that would come to the same state has nothing to do. A full refresh builds all the same.

  dbt's own materializations do the work; a model that must run every time (its result is the news itself) says
  `meta: {always: true}`.

  A table that reads no more than the days before as_of's is left as it is, too, within a UTC day, if nothing that came changed a
  closed day. It says so, and what of the events it depends on: `meta: {closed_days: keys}`, or `values` where their cleaned
  values count, too. It keeps the day as `as_of_day`.

  So it is with a data test: in a `dbt build`, one that passed on these very inputs is not asked again.
#}
{% materialization table, adapter='duckdb', supported_languages=['sql'] %}
{%- if is_unchanged() or closed_days_stand() %}{{ return(leave_unchanged()) }}{% endif -%}
{{ return(dbt.materialization_table_duckdb()) }}
{% endmaterialization %}

{% materialization incremental, adapter='duckdb', supported_languages=['sql'] %}
{%- if is_unchanged() %}{{ return(leave_unchanged()) }}{% endif -%}
{{ return(dbt.materialization_incremental_duckdb()) }}
{% endmaterialization %}

{% materialization seed, adapter='duckdb' %}
{%- if is_unchanged() -%}
    {#- dbt asks a seed for the rows that it loaded. -#}
    {%- do store_result('agate_table', response='unchanged', agate_table=run_query('select 1 where false')) -%}
    {{ return(leave_unchanged()) }}
{%- endif -%}
{{ return(dbt.materialization_seed_default()) }}
{% endmaterialization %}

{% materialization snapshot, adapter='duckdb' %}
{%- if is_unchanged() %}{{ return(leave_unchanged()) }}{% endif -%}
{{ return(dbt.materialization_snapshot_default()) }}
{% endmaterialization %}

{% materialization view, adapter='duckdb' %}
{%- if is_unchanged() %}{{ return(leave_unchanged('view')) }}{% endif -%}
{{ return(dbt.materialization_view_default()) }}
{% endmaterialization %}

{# dbt's own writes a table for every test; this one only for a test that fails. #}
{% materialization test, adapter='duckdb' %}
{%- if is_unchanged() -%}
    {%- call statement('main', fetch_result=true) -%} select 0 as failures, false as should_warn, false as should_error {%- endcall -%}
    {{ return({'relations': []}) }}
{%- endif -%}
{%- set kept = adapter.get_relation(database=database, schema=schema, identifier=model.alias) -%}
{%- if kept %}{% do adapter.drop_relation(kept) %}{% endif -%}
{%- call statement('main', fetch_result=true, auto_begin=true) -%}
{{ get_test_sql(get_limit_subquery_sql(sql, config.get('limit')), config.get('fail_calc'), config.get('warn_if'), config.get('error_if'), limit=none) }}
{%- endcall -%}
{%- set failures = load_result('main')['data'][0][0] -%}
{%- set relations = [] -%}
{%- if failures and should_store_failures() -%}
    {%- do relations.append(api.Relation.create(identifier=model.alias, schema=schema, database=database, type='table')) -%}
    {%- call statement('failures') -%}
    {{ get_create_sql(relations[0], get_limit_subquery_sql(sql, config.get('limit'))) }}
    {%- endcall -%}
{%- endif -%}
{%- call statement('state') -%}
delete from {{ states() }} where model = '{{ model.name }}';
{%- if not failures %}
insert into {{ states() }} select '{{ model.name }}', {{ state_of(model) }}, '{{ invocation_id }}'
{%- endif %}
{%- endcall -%}
{%- do adapter.commit() -%}
{{ return({'relations': relations}) }}
{% endmaterialization %}

{% macro leave_unchanged(type='table') %}
{%- call statement('main') -%} select 'unchanged' {%- endcall -%}
{{ return({'relations': [this.incorporate(type=type)]}) }}
{% endmacro %}

{% macro states() -%} {{ target.schema }}.states {%- endmacro %}

{% macro create_states() -%}
create table if not exists {{ states() }} (model varchar, state varchar, invocation_id varchar)
{%- endmacro %}

{# Whether the running model holds already what building it would give, or a test would say again what it said. Asked of the
   warehouse, since only it knows. #}
{% macro is_unchanged() %}
{%- if flags.FULL_REFRESH or config.get('meta', {}).get('always') %}{{ return(false) }}{% endif -%}
{#- `dbt test`, `dbt seed` and `dbt snapshot` are asked to do it. -#}
{%- if model.resource_type != 'model' and flags.WHICH != 'build' %}{{ return(false) }}{% endif -%}
{%- if model.resource_type == 'test' and asks_all() %}{{ return(false) }}{% endif -%}
{%- if model.resource_type != 'test' and load_cached_relation(this) is none %}{{ return(false) }}{% endif -%}
{%- set found = run_query(
    "select count(*) from " ~ states() ~ " where model = '" ~ model.name ~ "' and state = " ~ state_of(model)
) -%}
{{ return(found.rows[0][0] > 0) }}
{% endmacro %}

{# Whether a table that reads closed days alone would come out the same, since none of them changed and the day is the same. #}
{% macro closed_days_stand() %}
{%- set depends_on = config.get('meta', {}).get('closed_days') -%}
{%- if not depends_on or is_full_refresh(model.name) %}{{ return(false) }}{% endif -%}
{%- set found = run_query(
    "select b.as_of_day = s.first_day and b.as_of_day = s.last_day and not exists (select 1 from " ~ target.schema ~ ".int_changes__events as c"
    ~ " where c.changed_in > coalesce(" ~ watermark(model.name) ~ ", -1) and c.arrival_day < b.as_of_day" ~ (" and c.keys_changed" if depends_on == 'keys' else "") ~ ")"
    ~ " from " ~ target.schema ~ ".int_identity__build as b cross join (select min(as_of_day) as first_day, max(as_of_day) as last_day from " ~ this ~ ") as s"
) -%}
{{ return(found.rows[0][0] or false) }}
{% endmacro %}

{# Post-hook: remember the state that the model has come to. #}
{% macro record_state() -%}
{% if execute -%}
delete from {{ states() }} where model = '{{ model.name }}';
insert into {{ states() }} select '{{ model.name }}', {{ state_of(model) }}, '{{ invocation_id }}'
{%- endif %}
{%- endmacro %}

{# SQL: the state of a node by its inputs as they are now. A view's is its SQL; a seed's, its file. #}
{% macro state_of(node) -%}
{%- set own = local_md5(node.raw_code ~ node.config ~ node.columns ~ node.checksum ~ node.test_metadata) -%}
{%- if node.config.materialized in ('view', 'seed') -%}
md5(concat_ws('|', '{{ own }}', {{ rules_fingerprint() }}))
{%- else -%}
{%- set inputs = {'sources': [], 'texts': [own], 'models': []} -%}
{%- do add_inputs_of(node, inputs) -%}
(
    select md5(concat_ws(
        '|', '{{ local_md5(inputs.texts | unique | sort | join) }}', {{ rules_fingerprint() }}, cast({{ requested_as_of() }} as varchar)
        {%- for table in inputs.sources | unique | sort %}, {{ last_arrival_in(table) }}{% endfor %},
        {{ in_one_text("s.model || s.state", "s.model") }}
    ))
    from {{ states() }} as s
    where s.model in ({% for name in inputs.models | unique | sort %}'{{ name }}', {% endfor %}'')
)
{%- endif -%}
{%- endmacro %}

{# Add to `inputs` what a node reads: sources by name, texts that stand for what they are, models that keep a state. A view stands for
   what it reads itself. #}
{% macro add_inputs_of(node, inputs) %}
{%- for name in node.depends_on.nodes -%}
    {%- set input = graph.sources.get(name) or graph.nodes[name] -%}
    {%- if input.resource_type == 'source' %}{% do inputs.sources.append(input.name) %}
    {%- elif input.resource_type == 'seed' %}{% do inputs.texts.append(input.checksum.checksum) %}
    {%- elif input.config.materialized in ('view', 'ephemeral') -%}
        {%- do inputs.texts.append(local_md5(input.raw_code)) -%}
        {%- do add_inputs_of(input, inputs) -%}
    {%- else %}{% do inputs.models.append(input.name) %}
    {%- endif -%}
{%- endfor -%}
{% endmacro %}
