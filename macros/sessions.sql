{#
  Which sessions a build has to take up again. A changed row touches, of its identity, the sessions that lie within the
  longest gap of it and the session of its own session id; all other sessions stay as they are, since no gap between
  them and anything new is short enough to join.
#}
{% macro find_touched_sessions() -%}
{% if execute and not starts_afresh(this.identifier) -%}
create or replace temporary table touched_rows as
select v.row_id, v.identity, v.event_at, v.source_session_id, v.purchase_order_id
from {{ ref('int_events__validated') }} as v
where v.built_in > coalesce({{ watermark(this.identifier) }}, -1);

create or replace temporary table touched_moments as
select identity, event_at, source_session_id from touched_rows
union
-- Where a changed row stood before.
select identity, event_at, chain as source_session_id
from {{ this }}
where row_id in (select t.row_id from touched_rows as t)
union
-- A database order moves with its web hit, wherever it stands.
select identity, event_at, cast(null as varchar) as source_session_id
from {{ this }}
where row_id in (
    select v.row_id
    from {{ ref('int_events__validated') }} as v
    where v.purchase_order_id in (select t.purchase_order_id from touched_rows as t where t.purchase_order_id is not null)
);

create or replace temporary table touched_sessions as
with sessions as (

    select session_id, identity, chain, min(event_at) as first_at, max(event_at) as last_at
    from {{ this }}
    where identity in (select m.identity from touched_moments as m)
    group by session_id, identity, chain

)

select distinct s.session_id
from sessions as s
inner join touched_moments as m on s.identity = m.identity
where s.chain = m.source_session_id
    or (
        s.first_at <= m.event_at + {{ minutes([var('session_gap_minutes'), var('order_join_minutes')] | max) }}
        and s.last_at >= m.event_at - {{ minutes([var('session_gap_minutes'), var('order_join_minutes')] | max) }}
    );

create or replace temporary table rows_of_sessions as
select s.row_id
from {{ this }} as s
where s.session_id in (select t.session_id from touched_sessions as t)
union
select t.row_id from touched_rows as t
{%- endif %}
{%- endmacro %}

{# SQL: a list of a group's values of `column` whose `recency` is from 1, the newest, to `count`. #}
{% macro newest_of(column, count) -%}
{%- set values = [] -%}
{%- for place in range(1, count + 1) %}{% do values.append('max(case when recency = ' ~ place ~ ' then ' ~ column ~ ' end)') %}{% endfor -%}
{{ list_of_known(values) }}
{%- endmacro %}
