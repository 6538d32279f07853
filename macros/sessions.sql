{#
  Which rows a build has to cut into sessions again: all of each visitor to whom a changed row belongs, belonged or may belong. A row
  with an anonymous_id belongs to that visitor. One without goes by what else its identity did, so a change of an identity touches all
  of its rows without an anonymous_id and every visitor that the identity had. All other visitors stay as they are.
#}
{% macro find_touched_visitors() -%}
{% if execute and not is_full_refresh(this.identifier) -%}
create or replace temporary table touched_rows as
select v.row_id, v.identity, v.anonymous_id, v.purchase_order_id
from {{ ref('int_events__validated') }} as v
where v.built_in > coalesce({{ watermark(this.identifier) }}, -1);

create or replace temporary table touched_keys as
select {{ unfold("[identity, 'a:' || anonymous_id]") }} as visitor
from touched_rows
union
-- Where a changed row stood before.
select {{ unfold('[identity, visitor]') }} as visitor
from {{ this }}
where row_id in (select t.row_id from touched_rows as t);

-- Rows that go by others: those without an anonymous_id and, by their web hits, orders of the database.
create or replace temporary table dependent_rows as
select v.row_id, v.identity, v.anonymous_id, v.purchase_order_id
from {{ ref('int_events__validated') }} as v
where v.verdict = 'kept' and v.anonymous_id is null and v.identity in (select k.visitor from touched_keys as k)
union
select v.row_id, v.identity, v.anonymous_id, v.purchase_order_id
from {{ ref('int_events__validated') }} as v
where v.verdict = 'kept' and v.origin = 'database'
    and v.purchase_order_id in (select t.purchase_order_id from touched_rows as t where t.purchase_order_id is not null);

create or replace temporary table touched_visitors as
select visitor from touched_keys
union
select {{ unfold("[identity, 'a:' || anonymous_id]") }} as visitor
from dependent_rows
union
select visitor
from {{ this }}
where row_id in (select d.row_id from dependent_rows as d)
union
select 'a:' || v.anonymous_id as visitor
from {{ ref('int_events__validated') }} as v
where v.anonymous_id is not null
    and (
        v.identity in (select d.identity from dependent_rows as d)
        or v.purchase_order_id in (select d.purchase_order_id from dependent_rows as d where d.purchase_order_id is not null)
    );

create or replace temporary table rows_of_visitors as
select s.row_id
from {{ this }} as s
where s.visitor in (select t.visitor from touched_visitors as t where t.visitor is not null)
union
select t.row_id from touched_rows as t
union
select d.row_id from dependent_rows as d;

-- What both of its readers have read is forgotten, so that the journal does not grow with the history.
delete from {{ moved_sessions() }}
where moved_in <= (
    select min(w.snapshot)
    from {{ target.schema }}.watermarks as w
    where w.model in ('fct_sessions', 'int_features__session')
);
insert into {{ moved_sessions() }}
select distinct s.session_id, {{ pinned() }}
from {{ this }} as s
where s.row_id in (select r.row_id from rows_of_visitors as r)
{%- endif %}
{%- endmacro %}

{# Pre-hook: which sessions a build has to sum up again, and forget them: those that rows may have left, and those in which an identity
   has a part of which something changed. #}
{% macro find_touched_sessions() -%}
{% if execute and not is_full_refresh(this.identifier) -%}
create or replace temporary table touched_sessions as
select m.session_id
from {{ moved_sessions() }} as m
where m.moved_in > coalesce({{ watermark(this.identifier) }}, -1)
union
select e.session_id
from {{ ref('int_cleaning__events') }} as e
where e.identity in (
    select c.identity
    from (
        {{ changed_identities() | indent(8) }}
    ) as c
);
delete from {{ this }} where session_id in (select t.session_id from touched_sessions as t)
{%- endif %}
{%- endmacro %}

{# SQL: a list of a group's values of `column` whose `recency` is from 1, the newest, to `count`. #}
{% macro newest_of(column, count) -%}
{%- set values = [] -%}
{%- for place in range(1, count + 1) %}{% do values.append('max(case when recency = ' ~ place ~ ' then ' ~ column ~ ' end)') %}{% endfor -%}
{{ list_of_known(values) }}
{%- endmacro %}

{# SQL: whether a row is a refund in the shop's database: money moves, and nobody visits. #}
{% macro is_database_refund(alias=none) -%}
{%- set row = alias ~ '.' if alias else '' -%}
coalesce({{ row }}origin = 'database' and {{ row }}event_type in ('refund', 'refund_of_no_sale'), false)
{%- endmacro %}
