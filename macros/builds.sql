{#
  Who wrote to the warehouse, and how it ended. Every dbt command that writes opens a row before its first model and closes
  it after its last test, so `finegrain publish` can tell a warehouse that was audited whole from any other: also after a
  bare `dbt build`, a partial run, or a process that was killed.

  `number`: 1, 2, 3 …, in the order in which builds began. The warehouse lets one process in, so no two take the same; a clock may be
  put back, so `opened_at` says nothing of order. Builds from before there were numbers have none, and come before all others.

  `is_whole`: it built and tested everything. `marts`: of which marts it did, with all that they are made of; a build of some of
  them may be published alone, between whole ones.

  `build_times` has the seconds that each model, seed and snapshot of the last build took.
#}

{# Whether the running dbt command writes to the warehouse. #}
{% macro writes() %}{{ return(flags.WHICH in ['build', 'run', 'seed', 'snapshot', 'clone', 'run-operation', 'retry']) }}{% endmacro %}

{# SQL: opens the row of this command, before its first model. #}
{% macro open_build() -%}
{% if writes() -%}
create table if not exists {{ target.schema }}.builds (
    invocation_id varchar, command varchar, built_from bigint, as_of timestamp, status varchar, is_whole boolean,
    passed bigint, failed bigint, opened_at timestamp, closed_at timestamp, marts varchar[],
    number bigint, inputs varchar
);
alter table {{ target.schema }}.builds add column if not exists number bigint;
alter table {{ target.schema }}.builds add column if not exists inputs varchar;
create table if not exists {{ target.schema }}.build_failures (
    invocation_id varchar, node varchar, status varchar, failures bigint, kept_in varchar
);
create table if not exists {{ target.schema }}.build_times (invocation_id varchar, node varchar, seconds double);
insert into {{ target.schema }}.builds
(
    invocation_id, command, built_from, as_of, status, is_whole, passed, failed, opened_at, closed_at, marts, number, inputs
)
select
    '{{ invocation_id }}', '{{ flags.WHICH }}', {{ pinned() }}, {{ requested_as_of() }}, 'open', false,
    0, 0, cast('{{ run_started_at.strftime("%Y-%m-%d %H:%M:%S.%f") }}' as timestamp), cast(null as timestamp), [],
    (select coalesce(max(b.number), 0) + 1 from {{ target.schema }}.builds as b),
    {{ inputs_of_build() }}
{%- endif %}
{%- endmacro %}

{# SQL: closes the row of this command after its last test, with what it built and what failed. #}
{% macro close_build(results) -%}
{% if execute and writes() -%}
{%- set wanted = [] -%}
{%- for node in graph.nodes.values()
    if node.resource_type in ['model', 'seed', 'snapshot', 'test'] and node.unique_id not in selected_resources -%}
{%- do wanted.append(node.unique_id) -%}
{%- endfor -%}
{%- set failed = results | selectattr('status', 'in', ['error', 'fail', 'skipped', 'runtime error']) | list | length -%}
update {{ target.schema }}.builds
set
    status = '{{ "failed" if failed else "passed" }}',
    is_whole = {{ 'true' if flags.WHICH == 'build' and not wanted else 'false' }},
    passed = {{ results | length - failed }},
    failed = {{ failed }},
    marts = {% if flags.WHICH == 'build' %}whole_marts('{{ graph_in_json() | replace("'", "''") }}'){% else %}[]{% endif %},
    closed_at = cast('{{ modules.datetime.datetime.utcnow().strftime("%Y-%m-%d %H:%M:%S.%f") }}' as timestamp)
where invocation_id = '{{ invocation_id }}';
{%- set built = results | selectattr('node.resource_type', 'in', ['model', 'seed', 'snapshot']) | list %}
delete from {{ target.schema }}.build_times;
{%- if built %}
insert into {{ target.schema }}.build_times values
{%- for result in built %}
    ('{{ invocation_id }}', '{{ result.node.name }}', {{ result.execution_time }}){{ "," if not loop.last else ";" }}
{%- endfor %}
{%- endif %}
{%- for result in results if result.status in ['error', 'fail', 'runtime error'] %}
insert into {{ target.schema }}.build_failures values (
    '{{ invocation_id }}', '{{ result.node.name }}', '{{ result.status }}', {{ result.failures or 0 }},
    {{ "'" ~ result.node.schema ~ "." ~ result.node.alias ~ "'" if result.node.resource_type == 'test' else 'null' }}
);
{%- endfor %}
{%- endif %}
{%- endmacro %}

{# The nodes of the graph in JSON, for orchestration/warehouse/whole_marts.py: by key, the kind, the name, whether it is a mart, the
   keys of what it reads, and whether the running command builds it. #}
{% macro graph_in_json() %}
{%- set found = {} -%}
{%- for node in graph.nodes.values() if node.resource_type in ['model', 'seed', 'snapshot', 'test'] -%}
    {%- do found.update({node.unique_id: [
        node.resource_type, node.name, node.resource_type == 'model' and node.fqn[1] == 'marts',
        (node.depends_on or {}).get('nodes', []), node.unique_id in selected_resources,
    ]}) -%}
{%- endfor -%}
{{ return(tojson(found)) }}
{% endmacro %}
