{# SQL: the identities that an event names of which verdict, place or values changed since the model was last built, as itself or as the
   visitor beside a login. #}
{% macro changed_identities() -%}
{%- for relation, column in [
    (ref('int_events__validated'), 'built_in'), (ref('int_cleaning__events'), 'built_in'), (moved_rows(), 'moved_in')
] -%}
select {{ unfold("[identity, 'a:' || anonymous_id]") }} as identity
from {{ relation }}
where {{ column }} > coalesce({{ watermark(this.identifier) }}, -1)
{{ "union" if not loop.last }}
{% endfor -%}
{%- endmacro %}

{# Pre-hook: those, and forget them. #}
{% macro find_touched_identities() -%}
{% if execute and not is_full_refresh(this.identifier) -%}
create or replace temporary table touched_identities as
select identity from (
    {{ changed_identities() | indent(4) }}
) as named
where identity is not null;
delete from {{ this }} where identity in (select t.identity from touched_identities as t)
{%- endif %}
{%- endmacro %}
