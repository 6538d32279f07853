{# The columns that a raw row keeps from normalization on, in one order, for the models that pass them along. #}
{% macro arrived_columns(alias) -%}
{%- set columns = [
    'row_id', 'raw_table', 'raw_rowid', 'source', 'position', 'origin', 'expects', 'raw_error', 'ingested_at', 'raw_available_at',
    'event_name', 'event_type', 'event_at', 'event_day', 'is_odd_local_time', 'identity', 'user_id',
    'anonymous_id', 'source_session_id', 'product_id', 'category', 'quantity', 'price', 'currency', 'is_currency_assumed', 'rate',
    'rate_quoted_on', 'price_reported', 'given_amount', 'given_amount_reported', 'discount', 'discount_reported', 'order_id', 'line_id',
    'has_bad_number', 'has_unusable_id', 'device', 'user_agent', 'country',
    'consent', 'consent_meaning', 'properties', 'order_known_at', 'superseded_at', 'has_unknown_status', 'has_bad_order_money',
    'needs_order', 'is_disordered', 'is_order_deleted', 'dedup_key', 'client_key', 'purchase_order_id'
] + (pass_through_fields() | list) -%}
{%- for column in columns %}{{ alias }}.{{ column }}{{ ",\n        " if not loop.last }}{% endfor -%}
{%- endmacro %}

{# SQL: since when a row is known to be clean: once all that its verdict rests on had arrived, and never before it happened. `user` and
   `product` are the moments at which the shop knew those that it names. #}
{% macro clean_since(alias, user, product) -%}
greatest({{ alias }}.event_at, {{ arrived_since(alias, user, product) }})
{%- endmacro %}

{# SQL: since when all that the verdict on a row rests on had arrived, whether it had happened by then or not. #}
{% macro arrived_since(alias, user, product) -%}
greatest(
    {{ alias }}.raw_available_at,
    case when {{ alias }}.expects like '%customers%' then {{ user }} end,
    case when {{ alias }}.expects like '%products%' then {{ product }} end,
    {{ alias }}.order_known_at
)
{%- endmacro %}

{# Rows of `relation` that share their `key` with others, with their place among those of their origin, the shop's database or not, and of
   their state, if they are superseded: who was clean first comes first, so that a row that waited for its customer does not displace a
   copy that features have seen. Positions differ by source and table; what is left of ties is one row delivered twice, of which either
   may go first, and the items of one row. `database_since`: since when the database has reported any of them. Only groups of two and more
   are sorted, which spares a sort of everything. #}
{% macro placed_in_group(relation, key, among) -%}
    select
        w.row_id,
        w.event_at,
        w.{{ key }},
        w.origin,
        row_number() over (
            partition by w.{{ key }}, w.origin = 'database', w.superseded_at
            order by
                {{ clean_since('w', 'u.known_at', 'p.known_at') | indent(16) }},
                w.raw_available_at, w.position, w.source, w.raw_table, w.row_id
        ) as place,
        max(case when w.origin = 'database' and w.superseded_at is null then 1 else 0 end) over (partition by w.{{ key }}) as in_database,
        min(case when w.origin = 'database' then {{ arrived_since('w', 'u.known_at', 'p.known_at') | indent(8) }} end) over (
            partition by w.{{ key }}
        ) as database_since
    from {{ relation }} as w
    left join users as u on w.user_id = u.user_id
    left join products as p on w.product_id = p.product_id
    where w.{{ key }} in ({{ among }})
{%- endmacro %}

{# Predicate: of rows that are kept, or were so until the shop's database reported or changed them. #}
{% macro was_kept(alias) %}({{ alias }}.verdict = 'kept' or {{ alias }}.kept_until is not null){% endmacro %}

{# SQL: the moment since when a copy is one: its own arrival. #}
{% macro from_the_first() %}timestamp '1970-01-01'{% endmacro %}

{# The rows of `relation` that are not the first of their group: the copies. The shop's database goes before all others,
   as it does for orders, lest two copies each be taken for the other's; what came before the database's row was no copy until then
   (`since`). In an incremental build only whole (touched) groups count. #}
{% macro later_in_group(relation, key, incremental, touched) -%}
{%- set among -%}
select g.{{ key }} from {{ relation }} as g
        where g.{{ key }} is not null
        {%- if incremental %} and g.{{ key }} in (select k.{{ key }} from {{ touched }} as k){% endif %}
        group by g.{{ key }} having count(*) > 1
{%- endset -%}
    select
        row_id,
        case when place > 1 then {{ from_the_first() }} else database_since end as since
    from (
    {{ placed_in_group(relation, key, among) }}
    ) as places
    where place > 1 or (origin <> 'database' and in_database = 1)
{%- endmacro %}

{# Since when row `j` is a copy, by the list of copies joined as `alias`; null where it is none. For a group that was not touched, what was
   found before (`stored`). `value`: another column of the list. #}
{% macro in_group(alias, key, stored, incremental, touched, touched_key, value='since') -%}
{%- if incremental -%}
case
            when {{ key }} is null then null
            when {{ key }} in (select k.{{ touched_key }} from {{ touched }} as k) then {{ alias }}.{{ value }}
            else j.{{ stored }}
        end
{%- else -%}
{{ alias }}.{{ value }}
{%- endif -%}
{%- endmacro %}
