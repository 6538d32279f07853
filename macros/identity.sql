{# Pre-hook: the identities that a changed event names, as itself or as the visitor beside a login; and forget them. #}
{% macro find_touched_identities() -%}
{% if execute and not starts_afresh(this.identifier) -%}
create or replace temporary table touched_identities as
select identity
from {{ ref('int_events__validated') }}
where built_in > coalesce({{ watermark(this.identifier) }}, -1) and identity is not null
union
select 'a:' || anonymous_id as identity
from {{ ref('int_events__validated') }}
where built_in > coalesce({{ watermark(this.identifier) }}, -1) and anonymous_id is not null
union
select identity
from {{ moved_rows() }}
where moved_in > coalesce({{ watermark(this.identifier) }}, -1) and identity is not null
union
select 'a:' || anonymous_id as identity
from {{ moved_rows() }}
where moved_in > coalesce({{ watermark(this.identifier) }}, -1) and anonymous_id is not null;
delete from {{ this }} where identity in (select t.identity from touched_identities as t)
{%- endif %}
{%- endmacro %}
