{#
  What a build changed. The event models (validated, sessionized, cleaned) write the keys of each row that they add, replace or delete
  to the change journal, as they were and as they are, with the snapshot of the build, in their own transaction. Models of changes/
  turn the journal into change sets: the identities, identity-days, products, orders, sessions and days that something happened to. A
  later model reads a change set past its own watermark and replaces exactly those keys. Entries that all have read are deleted when a
  build begins (`create_change_journal`).
#}

{% macro create_change_journal() -%}
create table if not exists {{ target.schema }}.change_journal (
    model varchar, row_id bigint, is_previous boolean, keys_changed boolean,
    identity varchar, anonymous_id varchar, product_id varchar, order_key varchar, session_id varchar,
    event_day date, arrival_day date, until_day date, changed_in bigint
);
alter table {{ target.schema }}.change_journal add column if not exists until_day date;
-- Of a model that is no longer there, nobody reads on.
delete from {{ target.schema }}.watermarks where model not in (select r.model from {{ rules() }} as r);
delete from {{ target.schema }}.change_journal
where changed_in <= (select min(coalesce(w.snapshot, -1)) from {{ target.schema }}.watermarks as w)
{%- endmacro %}

{# The columns of the journal that say where a row stood or stands. #}
{% macro journal_keys() %}
{{ return(['identity', 'anonymous_id', 'product_id', 'order_key', 'session_id', 'event_day', 'arrival_day', 'until_day']) }}
{% endmacro %}

{# Predicate: true of the rows that a build has to work out: all in a full build, else those whose `keys` are in the change set past the
   model's watermark. `keys` are columns, or pairs of SQL and the change set's column. #}
{% macro is_changed(change_set, keys) -%}
{%- if not execute %}{% do ref(change_set) %}{% endif -%}
{%- if is_incremental() -%}
{{ has_changed_key(ref(change_set), keys, this.identifier) }}
{%- else -%} true
{%- endif -%}
{%- endmacro %}

{# Predicate: whether the keys of a row are among those of a change set that `model` has not read yet. #}
{% macro has_changed_key(change_set, keys, model) -%}
({% for key in keys %}{{ key if key is string else key[0] }}{{ ", " if not loop.last }}{% endfor %}) in (
    {{ changed_keys(change_set, keys, model) }}
)
{%- endmacro %}

{# SQL: the keys of a change set that `model` has not read yet. #}
{% macro changed_keys(change_set, keys, model) -%}
select
    {% if keys | length > 1 %}({% endif %}
    {%- for key in keys %}c.{{ key if key is string else key[1] }}{{ ", " if not loop.last }}{% endfor %}
    {%- if keys | length > 1 %}){% endif %}
from {{ change_set }} as c where c.changed_in > coalesce({{ watermark(model) }}, -1)
{%- endmacro %}

{#
  Incremental strategy `changes`, which a model's meta describes:

  - `change_set`, `change_keys`: the rows of these keys are replaced by those that the model's SQL gives. A change set without the column
    changed_in is taken whole, or what `change_condition` says of it.
  - with a `unique_key` (row_id, or a list that begins with it where a row has versions): rows that come out as they were are left
    alone, with the snapshot they were built in, so that nothing downstream reprocesses them; those that did change are written to the
    journal. The change set is then what may have to be deleted: rows of it that the SQL does not give any more.
  - `spine`: rows whose key it does not have are deleted, and what did not change is as true of the moment of this build as of the last.
#}
{% macro get_incremental_changes_sql(arguments) -%}
{{ replace_changed_rows(arguments) if arguments.unique_key else replace_changed_keys(arguments) }}
{%- endmacro %}

{# SQL: deletes all rows of the changed keys, and inserts what the model's SQL gives of them. #}
{% macro replace_changed_keys(arguments) -%}
{%- set made, kept = arguments.temp_relation, arguments.target_relation -%}
{%- set columns = arguments.dest_columns | map(attribute='quoted') | join(', ') -%}
{%- set meta = config.get('meta') -%}
{%- set keys = meta.change_keys -%}
delete from {{ kept }}
{%- if meta.spine %}
where {{ keys[0] }} in (select c.{{ keys[0] }} from {{ ref(meta.change_set) }} as c where {{ meta.change_condition or 'true' }})
    or {{ keys[0] }} not in (select s.{{ keys[0] }} from {{ ref(meta.spine) }} as s);
{%- else %}
where {{ has_changed_key(ref(meta.change_set), keys, this.identifier) }};
{%- endif %}
insert into {{ kept }} ({{ columns }})
select {{ columns }} from {{ made }}
{%- if meta.spine %};
update {{ kept }} set as_of = s.as_of
from (select max(as_of) as as_of from {{ ref(meta.spine) }}) as s
where {{ kept }}.as_of <> s.as_of
{%- endif %}
{%- endmacro %}

{# SQL: replaces only the rows that come out changed, deletes those that the SQL no longer gives, and writes both to the journal. A row may
   have several versions: then `unique_key` is a list that begins with row_id. #}
{% macro replace_changed_rows(arguments) -%}
{%- set made, kept = arguments.temp_relation, arguments.target_relation -%}
{%- set keys = [arguments.unique_key] if arguments.unique_key is string else arguments.unique_key -%}
{%- set key = keys | join(', ') -%}
{%- set columns = arguments.dest_columns | map(attribute='quoted') | list -%}
{%- set names = arguments.dest_columns | map(attribute='name') | list -%}
{%- set journal = journal_keys() | select('in', names) | list -%}
{#- A session is cut again when a late event joins it to another: what was done, by whom and when stays the same. -#}
{%- set has_versions = keys | length > 1 -%}
{%- set further = ['event_type', 'event_at', 'available_at'] | select('in', names) | list -%}
{%- set compared = journal | reject('in', ['session_id'] + (['arrival_day', 'until_day'] if has_versions else [])) | list + further -%}
{%- set meta = config.get('meta') or {} -%}
{%- set has_days = 'event_day' in names -%}
create or replace temporary table rows_before as
select {{ key }}{{ ", event_day" if has_days }}
from {{ kept }}
where ({{ key }}) in (select {{ key_of(keys, 'm') }} from {{ made }} as m)
{%- if meta.change_set %}
    or {{ in_change_set(meta, meta.change_keys or [keys[0]]) }}
{%- endif %};
-- The days spare most of a wide table; a row without one counts as changed.
create or replace temporary table whole_rows_before as
select * from {{ kept }}
where ({{ key }}) in (select {{ key_of(keys, 'b') }} from rows_before as b)
    {{ "and event_day in (select b.event_day from rows_before as b)" if has_days }};
create or replace temporary table unchanged_rows as
select {{ key_of(keys, 'm', listed=true) }}
from {{ made }} as m
inner join whole_rows_before as k on {% for name in keys %}m.{{ name }} = k.{{ name }}{{ " and " if not loop.last }}{% endfor %}
where
    {%- for column in columns if column != '"built_in"' %}
    m.{{ column }} is not distinct from k.{{ column }}{{ " and" if not loop.last }}
    {%- endfor %};
delete from whole_rows_before where ({{ key }}) in (select {{ key_of(keys, 'u') }} from unchanged_rows as u);
insert into {{ target.schema }}.change_journal (model, row_id, is_previous, keys_changed, {{ journal | join(', ') }}, changed_in)
with sides as (
    {%- for relation, is_previous in [('whole_rows_before', 'true'), (made, 'false')] %}
    select
        {{ (keys + journal + compared) | unique | join(', ') }},
        {{ "coalesce(known_to, timestamp '9999-12-31') as ends_at," if has_versions }}
        {{ is_previous }} as is_previous
    from {{ relation }}
    where ({{ key }}) not in (select {{ key_of(keys, 'u') }} from unchanged_rows as u)
    {{ "union all" if not loop.last }}
    {%- endfor %}
)
select
    '{{ this.identifier }}', {{ keys[0] }}, is_previous,
    min(case when is_previous then 1 else 0 end) over of_row = max(case when is_previous then 1 else 0 end) over of_row
    {%- for name in compared %}
    or count({{ name }}) over of_row not in (0, count(*) over of_row)
    or coalesce(min({{ name }}) over of_row <> max({{ name }}) over of_row, false)
    {%- endfor %}
    {%- for edge, name in [('min', keys[1]), ('max', 'ends_at')] if has_versions %}
    or {{ edge }}(case when is_previous then {{ name }} end) over of_row
    <> {{ edge }}(case when not is_previous then {{ name }} end) over of_row
    {%- endfor %},
    {{ journal | join(', ') }}, {{ pinned() }}
from sides
window of_row as (partition by {{ keys[0] }});
delete from {{ kept }}
where ({{ key }}) in (select {{ key_of(keys, 'b') }} from rows_before as b)
    and ({{ key }}) not in (select {{ key_of(keys, 'u') }} from unchanged_rows as u);
insert into {{ kept }} ({{ columns | join(', ') }})
select {{ columns | join(', ') }} from {{ made }}
where ({{ key }}) not in (select {{ key_of(keys, 'u') }} from unchanged_rows as u)
{%- endmacro %}

{# Predicate: whether the keys of a row are among those that the change set of a model's meta names to it. #}
{% macro in_change_set(meta, keys) -%}
{%- if meta.change_condition -%}
({{ keys | join(', ') }}) in (
    select ({{ key_of(keys, 'c', listed=true) }}) from {{ ref(meta.change_set) }} as c where {{ meta.change_condition }}
)
{%- else -%}
{{ has_changed_key(ref(meta.change_set), keys, this.identifier) }}
{%- endif -%}
{%- endmacro %}

{# SQL: the columns of a key as one value or, `listed`, as columns. #}
{% macro key_of(keys, alias, listed=false) -%}
{%- set brackets = keys | length > 1 and not listed -%}
{{ '(' if brackets }}{% for name in keys %}{{ alias }}.{{ name }}{{ ', ' if not loop.last }}{% endfor %}{{ ')' if brackets }}
{%- endmacro %}
