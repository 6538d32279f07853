{#
  A watermark is the last lake snapshot that an incremental model has taken in. It moves in the model's own
  transaction (a post-hook), so a build that dies leaves data and watermark agreeing.
#}

{% macro create_watermarks() -%}
create table if not exists {{ target.schema }}.watermarks (model varchar, snapshot bigint, as_of timestamp);
alter table {{ target.schema }}.watermarks add column if not exists as_of timestamp
{%- endmacro %}

{# True when `model` must be built from scratch: it is not there, the user asked for it, or its rules changed. #}
{% macro is_full_refresh(model) %}
    {%- if not execute %}{{ return(true) }}{% endif -%}
    {%- set in_schema = this.schema if model == this.identifier else target.schema -%}
    {%- set relation = adapter.get_relation(database=target.database, schema=in_schema, identifier=model) -%}
    {{ return(relation is none or flags.FULL_REFRESH or finegrain.reason_to_begin(model) is not none) }}
{% endmacro %}

{# SQL: the snapshot up to which `model` has read; null when it has read nothing. #}
{% macro watermark(model) -%}
{%- if finegrain.is_full_refresh(model) -%} cast(null as bigint)
{%- else -%} (select max(w.snapshot) from {{ target.schema }}.watermarks as w where w.model = '{{ model }}')
{%- endif -%}
{%- endmacro %}

{# Post-hook: `this` has now read all that `upstream` holds (or, without one, all up to the pinned snapshot). `has_as_of`: its rows are of
   one moment, which is kept, too. #}
{% macro move_watermark(upstream=none, has_as_of=false) -%}
{%- set as_of = '(select max(t.as_of) from ' ~ this ~ ' as t)' if has_as_of else 'cast(null as timestamp)' -%}
{%- set snapshot -%}
{%- if upstream -%}
(select max(w.snapshot) from {{ target.schema }}.watermarks as w where w.model = '{{ upstream }}')
{%- else -%} {{ pinned() }}
{%- endif -%}
{%- endset -%}
delete from {{ target.schema }}.watermarks where model = '{{ this.identifier }}';
insert into {{ target.schema }}.watermarks (model, snapshot, as_of) select '{{ this.identifier }}', {{ snapshot }}, {{ as_of }}
{%- endmacro %}
