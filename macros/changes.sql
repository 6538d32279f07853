{#
  Incremental strategy `changes`: of the rows that a build takes up again, most come out as they were. Those are left alone, with the
  snapshot they were built in, so that nothing downstream takes them up in turn. The others are replaced, and those that are no
  longer there are deleted.

  A model says its `unique_key` and, where rows may vanish, the temporary table of keys that its pre-hook found: `meta: {takes_up}`.
#}
{% macro get_incremental_changes_sql(arguments) -%}
{%- set key, made, kept = arguments.unique_key, arguments.temp_relation, arguments.target_relation -%}
{%- set columns = arguments.dest_columns | map(attribute='quoted') | list -%}
{%- set has_days = '"event_day"' in columns -%}
{%- set takes_up = (config.get('meta') or {}).get('takes_up') or made -%}
create or replace temporary table known_before as
select {{ key }}{{ ", event_day" if has_days }}
from {{ kept }}
where {{ key }} in (select m.{{ key }} from {{ made }} as m);
create or replace temporary table as_they_were as
select m.{{ key }}
from {{ made }} as m
inner join (
    select * from {{ kept }}
    where {{ key }} in (select b.{{ key }} from known_before as b)
        {%- if has_days %}
        -- The days spare most of a wide table; a row without one counts as changed.
        and event_day in (select b.event_day from known_before as b)
        {%- endif %}
) as k on m.{{ key }} = k.{{ key }}
where
    {%- for column in columns if column not in about_the_build() %}
    m.{{ column }} is not distinct from k.{{ column }}{{ " and" if not loop.last }}
    {%- endfor %};
delete from {{ kept }}
where {{ key }} in (select t.{{ key }} from {{ takes_up }} as t)
    and {{ key }} not in (select a.{{ key }} from as_they_were as a);
insert into {{ kept }} ({{ columns | join(', ') }})
select {{ columns | join(', ') }} from {{ made }}
where {{ key }} not in (select a.{{ key }} from as_they_were as a)
{%- endmacro %}

{# Columns that tell of the build, and not of the row. #}
{% macro about_the_build() %}{{ return(['"built_in"', '"prior_arrival_day"']) }}{% endmacro %}
