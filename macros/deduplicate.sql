{# The columns that a raw row keeps from normalization on, in one order, for the models that pass them along. #}
{% macro arrived_columns(alias) -%}
{%- set columns = [
    'row_id', 'raw_table', 'raw_rowid', 'source', 'position', 'origin', 'expects', 'raw_error', 'ingested_at', 'raw_available_at',
    'client_event_id', 'event_name', 'event_type', 'event_at', 'event_day', 'is_odd_local_time', 'identity', 'user_id',
    'anonymous_id', 'source_session_id', 'product_id', 'category', 'quantity', 'price', 'currency', 'rate', 'price_reported',
    'order_id', 'line_id', 'has_bad_number', 'query', 'device', 'user_agent', 'page', 'referrer', 'campaign', 'country',
    'consent', 'properties', 'order_known_at', 'needs_order', 'is_disordered', 'is_order_gone', 'dedup_key', 'client_key', 'purchase_order_id'
] -%}
{%- for column in columns %}{{ alias }}.{{ column }}{{ ",\n        " if not loop.last }}{% endfor -%}
{%- endmacro %}

{# SQL: who came first. Positions are told apart by source and table; what is left of ties is one row delivered twice, of
   which either may go first, and the items of one row. #}
{% macro arrival_order(alias) -%}
{{ alias }}.raw_available_at, {{ alias }}.position, {{ alias }}.source, {{ alias }}.raw_table, {{ alias }}.row_id
{%- endmacro %}

{# The rows of `relation` that are not the first of their group: the copies. The shop's database goes before all others,
   as it does for orders, lest two copies each be taken for the other's; then who came first. Only groups of two and
   more are sorted, which spares a sort of everything. In an incremental build only whole (touched) groups count. #}
{% macro later_in_group(relation, key, incremental, touched) -%}
    select row_id
    from (
        select
            w.row_id,
            row_number() over (
                partition by w.{{ key }}
                order by case when w.origin = 'database' then 0 else 1 end, {{ arrival_order('w') }}
            ) as place
        from {{ relation }} as w
        where w.{{ key }} in (
            select g.{{ key }} from {{ relation }} as g
            where g.{{ key }} is not null
            group by g.{{ key }}
            having count(*) > 1
        )
        {% if incremental -%}
        and w.{{ key }} in (select k.{{ key }} from {{ touched }} as k)
        {%- endif %}
    ) as places
    where place > 1
{%- endmacro %}

{# Whether row `c` is in the list of copies joined as `alias`; for a group that was not touched, what was found before. #}
{% macro in_group(alias, key, stored, incremental, touched, touched_key) -%}
{%- if incremental -%}
case
            when {{ key }} is null then false
            when {{ key }} in (select k.{{ touched_key }} from {{ touched }} as k) then {{ alias }}.row_id is not null
            else coalesce(c.{{ stored }}, false)
        end
{%- else -%}
{{ alias }}.row_id is not null
{%- endif -%}
{%- endmacro %}
