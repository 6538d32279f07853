{#
  Where rows stood before they moved. A row of an order takes its moment and its buyer from the order's header, so a newer
  header can move it to another identity or day; models that keep sums by identity and day have to take up again the
  place it left as well. A journal, since nothing else remembers that place once the row is judged anew.
#}

{% macro moved_rows() -%} {{ target.schema }}.moved_rows {%- endmacro %}

{% macro create_moved_rows() -%}
create table if not exists {{ moved_rows() }} (
    row_id bigint, identity varchar, anonymous_id varchar, product_id varchar, event_day date, moved_in bigint
)
{%- endmacro %}

{# Pre-hook of the verdicts: note the places that rows are about to leave. #}
{% macro remember_moves() -%}
{% if execute and not is_full_refresh(this.identifier) -%}
insert into {{ moved_rows() }}
select t.row_id, t.identity, t.anonymous_id, t.product_id, t.event_day, {{ pinned() }}
from {{ this }} as t
inner join {{ ref('int_events__new_rows') }} as a on t.row_id = a.row_id
where t.identity is distinct from a.identity
    or t.anonymous_id is distinct from a.anonymous_id
    or t.event_day is distinct from a.event_day
{%- endif %}
{%- endmacro %}

{#
  Sessions that rows may have left, with the snapshot of the build. A session holds events of several identities, so when one of them
  goes, nothing of what is left of the session has changed. Models by session find it here.
#}

{% macro moved_sessions() -%} {{ target.schema }}.moved_sessions {%- endmacro %}

{% macro create_moved_sessions() -%}
create table if not exists {{ moved_sessions() }} (session_id varchar, moved_in bigint)
{%- endmacro %}
