{#
  What did not change is left as it is. What a table or incremental model holds follows from its SQL, the
  rules, the moment asked for, and its inputs: the raw tables (known by the last snapshot in which rows came), the seeds, and
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
{%- if finegrain.is_unchanged() or finegrain.closed_days_stand() %}{{ return(finegrain.leave_unchanged()) }}{% endif -%}
{{ return(dbt.materialization_table_duckdb()) }}
{% endmaterialization %}

{% materialization incremental, adapter='duckdb', supported_languages=['sql'] %}
{%- if finegrain.is_unchanged() %}{{ return(finegrain.leave_unchanged()) }}{% endif -%}
{%- set reason = finegrain.reason_to_begin(model.name) if load_cached_relation(this) and not flags.FULL_REFRESH -%}
{%- if reason %}{% do log('Built from scratch: ' ~ model.name ~ ', ' ~ reason, info=true) %}{% endif -%}
{{ return(dbt.materialization_incremental_duckdb()) }}
{% endmaterialization %}

{% materialization seed, adapter='duckdb' %}
{%- if finegrain.is_unchanged() -%}
    {#- dbt asks a seed for the rows that it loaded. -#}
    {%- do store_result('agate_table', response='unchanged', agate_table=run_query('select 1 where false')) -%}
    {{ return(finegrain.leave_unchanged()) }}
{%- endif -%}
{{ return(dbt.materialization_seed_default()) }}
{% endmaterialization %}

{% materialization snapshot, adapter='duckdb' %}
{%- if finegrain.is_unchanged() %}{{ return(finegrain.leave_unchanged()) }}{% endif -%}
{{ return(dbt.materialization_snapshot_default()) }}
{% endmaterialization %}

{% materialization view, adapter='duckdb' %}
{%- if finegrain.is_unchanged() %}{{ return(finegrain.leave_unchanged('view')) }}{% endif -%}
{{ return(dbt.materialization_view_default()) }}
{% endmaterialization %}

{# dbt's own writes a table for every test; this one only for a test that fails. #}
{% materialization test, adapter='duckdb' %}
{%- if finegrain.is_unchanged() -%}
    {%- call statement('main', fetch_result=true) -%} select 0 as failures, false as should_warn, false as should_error {%- endcall -%}
    {{ return({'relations': []}) }}
{%- endif -%}
{%- set kept = adapter.get_relation(database=database, schema=schema, identifier=model.alias) -%}
{%- if kept %}{% do adapter.drop_relation(kept) %}{% endif -%}
{%- call statement('main', fetch_result=true, auto_begin=true) -%}
{{ get_test_sql(
    get_limit_subquery_sql(sql, config.get('limit')), config.get('fail_calc'), config.get('warn_if'), config.get('error_if'), limit=none
) }}
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
delete from {{ finegrain.states() }} where model = '{{ model.name }}';
{%- if not failures %}
insert into {{ finegrain.states() }} (model, state, invocation_id, rules)
select '{{ model.name }}', {{ finegrain.state_of(model) }}, '{{ invocation_id }}', {{ finegrain.rules_of(model) }}
{%- endif %}
{%- endcall -%}
{%- do adapter.commit() -%}
{{ return({'relations': relations}) }}
{% endmaterialization %}

{# Ends a node that needs no build: its relation stays as it is. #}
{% macro leave_unchanged(type='table') %}
{%- call statement('main') -%} select 'unchanged' {%- endcall -%}
{{ return({'relations': [this.incorporate(type=type)]}) }}
{% endmacro %}

{# The table of what each model was last built from. #}
{% macro states() -%} {{ target.schema }}.states {%- endmacro %}

{# SQL: creates that table, or adds the columns that an earlier version did not have. #}
{% macro create_states() -%}
create table if not exists {{ states() }} (model varchar, state varchar, invocation_id varchar, rules varchar, begun_in bigint);
alter table {{ states() }} add column if not exists rules varchar;
alter table {{ states() }} add column if not exists begun_in bigint
{%- endmacro %}

{# Whether the running model holds already what building it would give, or a test would say again what it said. Asked of the
   warehouse, since only it knows. #}
{% macro is_unchanged() %}
{%- if flags.FULL_REFRESH or config.get('meta', {}).get('always') %}{{ return(false) }}{% endif -%}
{#- `dbt test`, `dbt seed` and `dbt snapshot` are asked to do it. -#}
{%- if model.resource_type != 'model' and flags.WHICH != 'build' %}{{ return(false) }}{% endif -%}
{%- if model.resource_type == 'test' and finegrain.asks_all() %}{{ return(false) }}{% endif -%}
{%- if model.resource_type != 'test' and load_cached_relation(this) is none %}{{ return(false) }}{% endif -%}
{%- if config.get('materialized') == 'incremental' and finegrain.should_full_refresh() %}{{ return(false) }}{% endif -%}
{%- set found = run_query(
    "select count(*) from " ~ finegrain.states() ~ " where model = '" ~ model.name ~ "' and state = " ~ finegrain.state_of(model)
) -%}
{{ return(found.rows[0][0] > 0) }}
{% endmacro %}

{# Whether a table that reads closed days alone would come out the same, since none of them changed and the day is the same. #}
{% macro closed_days_stand() %}
{%- set depends_on = config.get('meta', {}).get('closed_days') -%}
{%- if not depends_on or finegrain.is_full_refresh(model.name) %}{{ return(false) }}{% endif -%}
{%- set found = run_query(
    "select b.as_of_day = s.first_day and b.as_of_day = s.last_day"
    ~ " and not exists (select 1 from " ~ target.schema ~ ".int_changes__events as c"
    ~ " where c.changed_in > coalesce(" ~ finegrain.watermark(model.name) ~ ", -1) and c.arrival_day < b.as_of_day"
    ~ (" and c.keys_changed" if depends_on == 'keys' else "") ~ ")"
    ~ " from " ~ target.schema ~ ".int_identity__build as b"
    ~ " cross join (select min(as_of_day) as first_day, max(as_of_day) as last_day from " ~ this ~ ") as s"
) -%}
{{ return(found.rows[0][0] or false) }}
{% endmacro %}

{# Post-hook: remember the state that the model has come to, and the build in which it was begun. #}
{% macro record_state() -%}
{% if execute -%}
{%- set is_from_scratch = model.config.materialized == 'incremental' and not is_incremental() -%}
{%- if model.resource_type != 'model' or finegrain.should_full_refresh() or is_from_scratch -%}
delete from {{ finegrain.states() }} where model = '{{ model.name }}';
insert into {{ finegrain.states() }} (model, state, invocation_id, rules, begun_in)
select
    '{{ model.name }}', {{ finegrain.state_of(model) }}, '{{ invocation_id }}', {{ finegrain.rules_of(model) }},
    {{ finegrain.build_number() }}
{%- else -%}
update {{ finegrain.states() }} set state = {{ finegrain.state_of(model) }}, invocation_id = '{{ invocation_id }}'
where model = '{{ model.name }}'
{%- endif %}
{%- endif %}
{%- endmacro %}

{# SQL: the state of a node by its inputs as they are now. A view's is its SQL; a seed's, its file. #}
{% macro state_of(node) -%}
{#- As JSON, since a list of the config is a tuple only until dbt has kept and read its partial parse. -#}
{%- set own = local_md5(tojson(node.config, sort_keys=true) ~ tojson(node.columns, sort_keys=true)) -%}
{%- if node.config.materialized in ('view', 'seed') -%}
md5(concat_ws('|', '{{ own }}', {{ finegrain.rules_of(node) }}))
{%- else -%}
{%- set inputs = finegrain.inputs_of(node) -%}
(
    select md5(concat_ws(
        '|', '{{ own }}', {{ finegrain.rules_of(node) }}, cast({{ finegrain.requested_as_of() }} as varchar)
        {%- for table in inputs.sources %}, {{ finegrain.last_arrival_in(table) }}{% endfor %},
        {{ finegrain.in_one_text("s.model || s.state", "s.model") }}
    ))
    from {{ finegrain.states() }} as s
    where s.model in ({{ finegrain.names_in_sql(inputs.models) }})
)
{%- endif -%}
{%- endmacro %}

{#
  SQL: the rules by which a node is made, in one fingerprint: its own SQL, the macros and vars that this reads
  (orchestration/warehouse/fingerprints.py), and the views and seeds that it reads. What a table before it is made by is that
  table's. A test's are its arguments, too, and what is declared of the columns that it is about.
#}
{% macro rules_of(node, known=none) -%}
{%- set inputs = finegrain.inputs_of(node, known) -%}
{%- set names, texts = [node.name], inputs.seeds | list -%}
{%- if node.resource_type == 'seed' %}{% do texts.append(node.checksum.checksum) %}{% endif -%}
{%- if node.resource_type == 'test' -%}
    {%- do texts.append(node.raw_code ~ node.test_metadata ~ (graph.nodes.get(node.attached_node) or {}).get('columns')) -%}
    {%- if node.test_metadata -%}
        {%- do names.append('test_' ~ node.test_metadata.name) -%}
        {%- for name, argument in node.test_metadata.kwargs.items() if name != 'model' and '{' ~ '{' in argument | string -%}
            {%- do names.append('*') -%}
        {%- endfor -%}
    {%- endif -%}
{%- endif -%}
md5(concat_ws('|', '{{ local_md5(texts | join) }}'{% for name in names + inputs.views %}, {{ finegrain.fingerprint_of(name) }}{% endfor %}))
{%- endmacro %}

{# What a node reads: sources and models by name, seeds by their checksums. A view stands for what it reads itself, and its name is
   among `views`. #}
{# `known` keeps nodes by key, since dbt works out each of them whenever it is looked up. #}
{% macro inputs_of(node, known=none) %}
{%- set inputs = {'sources': [], 'seeds': [], 'views': [], 'models': []} -%}
{%- do finegrain.add_inputs_of(node, inputs, {} if known is none else known) -%}
{{ return({
    'sources': inputs.sources | unique | sort, 'seeds': inputs.seeds | unique | sort,
    'views': inputs.views | unique | sort, 'models': inputs.models | unique | sort,
}) }}
{% endmacro %}

{# Adds the inputs of a node to `inputs`, looking through views; `known` has the nodes seen so far. #}
{% macro add_inputs_of(node, inputs, known) %}
{%- for name in (node.depends_on or {}).get('nodes', []) -%}
    {%- if name not in known %}{% do known.update({name: graph.sources.get(name) or graph.nodes[name]}) %}{% endif -%}
    {%- set input = known[name] -%}
    {%- if input.resource_type == 'source' %}{% do inputs.sources.append(input.name) %}
    {%- elif input.resource_type == 'seed' %}{% do inputs.seeds.append(input.checksum.checksum) %}
    {%- elif input.config.materialized in ('view', 'ephemeral') -%}
        {%- do inputs.views.append(input.name) -%}
        {%- do finegrain.add_inputs_of(input, inputs, known) -%}
    {%- else %}{% do inputs.models.append(input.name) %}
    {%- endif -%}
{%- endfor -%}
{% endmacro %}

{# SQL: names as a list for `in`, which may not be empty. #}
{% macro names_in_sql(names) -%}
{% for name in names %}'{{ name }}', {% endfor %}''
{%- endmacro %}

{#
  Rules. An incremental build applies rules to new rows alone, so a model whose rules changed since it was begun is built from
  scratch, and so is each that reads it, directly or not. `states` keeps of every model by which rules, and in which build
  (`builds.number`), it was begun: of a table, that is the build in which its rules, or those of what it is made of, last changed.
  `rules` has the rules of today from the start of a command on, so that the answer is the same before and after what a model reads
  is built (int_events__new_rows asks for int_events__validated).
#}

{% macro rules() -%} {{ target.schema }}.rules {%- endmacro %}

{# The table of which tables each model reads. #}
{% macro reads() -%} {{ target.schema }}.reads {%- endmacro %}

{# At the start of a command: which tables each model reads, directly or not; the rules of each model, and how many tables it reads. #}
{% macro record_rules() -%}
{% if execute -%}
{%- set models, known = [], {} -%}
{%- for node in graph.nodes.values() -%}
    {%- do known.update({node.unique_id: node}) -%}
    {%- if node.resource_type == 'model' %}{% do models.append(node) %}{% endif -%}
{%- endfor -%}
create or replace table {{ reads() }} as
with recursive direct (model, input) as (
    {%- for node in models %}
    {%- for input in inputs_of(node, known).models %}
    select '{{ node.name }}', '{{ input }}' union all
    {%- endfor %}
    {%- endfor %}
    select '', ''
),

closure (model, input) as (
    select model, input from direct
    union
    select c.model, d.input from closure as c inner join direct as d on c.input = d.model
)

select model, input from closure where model <> '';

create or replace table {{ rules() }} as
with models (model, rules) as (
    {%- for node in models %}
    select '{{ node.name }}', {{ rules_of(node, known) }}
    {{ "union all" if not loop.last }}
    {%- endfor %}
)

select m.model, m.rules, (select count(*) from {{ reads() }} as i where i.model = m.model) as inputs
from models as m
{%- endif %}
{%- endmacro %}

{# dbt's own question, whether to build the running model from scratch. #}
{% macro should_full_refresh() %}
{%- if config.get('full_refresh') is not none %}{{ return(config.get('full_refresh')) }}{% endif -%}
{{ return(flags.FULL_REFRESH or (model.resource_type == 'model' and finegrain.reason_to_begin(model.name) is not none)) }}
{% endmacro %}

{# Why a model that was built before has to be built from scratch in this build, or was so; none where it has not. Of models that it
   reads, the first is named: the one that reads the fewest itself. #}
{% macro reason_to_begin(name) %}
{%- if not execute or flags.WHICH not in ['build', 'run', 'retry'] %}{{ return(none) }}{% endif -%}
{#- Asked once a node: a query costs dbt several milliseconds. -#}
{%- set known = model.setdefault('reasons_to_begin', {}) -%}
{%- if name in known %}{{ return(known[name]) }}{% endif -%}
{%- set found = run_query(
    "select case when s.begun_in = " ~ finegrain.build_number() ~ " then 'begun in this build'"
    ~ " when s.rules is distinct from r.rules then 'since its rules changed'"
    ~ " else 'since ' || f.model || ' was' end"
    ~ " from " ~ finegrain.states() ~ " as s inner join " ~ finegrain.rules() ~ " as r on s.model = r.model"
    ~ " left join ("
    ~ " select u.model from " ~ finegrain.states() ~ " as u inner join " ~ finegrain.rules() ~ " as n on u.model = n.model"
    ~ " where u.model in (select i.input from " ~ finegrain.reads() ~ " as i where i.model = '" ~ name ~ "')"
    ~ " and (u.rules is distinct from n.rules"
    ~ " or u.begun_in > (select o.begun_in from " ~ finegrain.states() ~ " as o where o.model = '" ~ name ~ "'))"
    ~ " order by n.inputs, u.model limit 1"
    ~ " ) as f on true where s.model = '" ~ name ~ "'"
) -%}
{%- do known.update({name: found.rows[0][0] if found.rows else 'since it is not known by which rules it was built'}) -%}
{{ return(known[name]) }}
{% endmacro %}

{# SQL: the number of the running build. #}
{% macro build_number() -%}
(select b.number from {{ target.schema }}.builds as b where b.invocation_id = '{{ invocation_id }}')
{%- endmacro %}
