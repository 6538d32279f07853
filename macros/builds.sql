{#
  Who wrote to the warehouse, and how it ended. Every dbt command that writes opens a row before its first model and closes
  it after its last test, so `finegrain publish` can tell a warehouse that was audited whole from any other: also after a
  bare `dbt build`, a partial run, or a process that was killed.
#}

{# Whether the running dbt command writes to the warehouse. #}
{% macro writes() %}{{ return(flags.WHICH in ['build', 'run', 'seed', 'snapshot', 'clone', 'run-operation', 'retry']) }}{% endmacro %}

{% macro open_build() -%}
{% if writes() -%}
create table if not exists {{ target.schema }}.builds (
    invocation_id varchar, command varchar, built_from bigint, as_of timestamp, status varchar, is_whole boolean,
    passed bigint, failed bigint, opened_at timestamp, closed_at timestamp
);
create table if not exists {{ target.schema }}.build_failures (
    invocation_id varchar, node varchar, status varchar, failures bigint, kept_in varchar
);
insert into {{ target.schema }}.builds
select
    '{{ invocation_id }}', '{{ flags.WHICH }}', {{ pinned() }}, {{ requested_as_of() }}, 'open', false,
    0, 0, cast('{{ run_started_at.strftime("%Y-%m-%d %H:%M:%S.%f") }}' as timestamp), cast(null as timestamp)
{%- endif %}
{%- endmacro %}

{% macro close_build(results) -%}
{% if execute and writes() -%}
{%- set wanted = [] -%}
{%- for node in graph.nodes.values() if node.resource_type in ['model', 'seed', 'snapshot', 'test'] and node.unique_id not in selected_resources -%}
{%- do wanted.append(node.unique_id) -%}
{%- endfor -%}
{%- set failed = results | selectattr('status', 'in', ['error', 'fail', 'skipped', 'runtime error']) | list | length -%}
update {{ target.schema }}.builds
set
    status = '{{ "failed" if failed else "passed" }}',
    is_whole = {{ 'true' if flags.WHICH == 'build' and not wanted else 'false' }},
    passed = {{ results | length - failed }},
    failed = {{ failed }},
    closed_at = cast('{{ modules.datetime.datetime.utcnow().strftime("%Y-%m-%d %H:%M:%S.%f") }}' as timestamp)
where invocation_id = '{{ invocation_id }}';
{%- for result in results if result.status in ['error', 'fail', 'runtime error'] %}
insert into {{ target.schema }}.build_failures values (
    '{{ invocation_id }}', '{{ result.node.name }}', '{{ result.status }}', {{ result.failures or 0 }},
    {{ "'" ~ result.node.schema ~ "." ~ result.node.alias ~ "'" if result.node.resource_type == 'test' else 'null' }}
);
{%- endfor %}
{%- endif %}
{%- endmacro %}
