{# Text as the models want it: trimmed, and null where nothing is said. #}
{% macro clean_text(column) -%}
nullif(nullif(trim({{ column }}), ''), '(not set)')
{%- endmacro %}

{# The columns that every raw row brings along, under the names the models use. #}
{% macro provenance() -%}
    raw_rowid,
    _source as source,
    _position as position,
    _origin as origin,
    coalesce(_time_zone, 'UTC') as time_zone,
    coalesce(_expects, '') as expects,
    _error as raw_error,
    _ingested_at as ingested_at,
    available_at as raw_available_at
{%- endmacro %}

{# One number for one row of an event-bearing raw table: its table, its row id and the item within it. #}
{% macro row_id(raw_table, raw_rowid, item_index='0') -%}
((cast({{ raw_rowid }} as bigint) * 512 + coalesce({{ item_index }}, 0)) * 8 + {{ {'events': 1, 'ga4_events': 2, 'order_items': 3, 'refunds': 4}[raw_table] }})
{%- endmacro %}

{# True where text is there and yet is no number. A case, and the narrow type first: a cast to a type wider than 18 digits
   takes a thousand times as long. #}
{% macro not_a_number(column) -%}
(case
    when {{ clean_text(column) }} is null or try_cast({{ clean_text(column) }} as decimal(18, 6)) is not null then false
    else try_cast({{ clean_text(column) }} as decimal(28, 6)) is null
end)
{%- endmacro %}

{# A number (text, or an engine's own) as decimal(18, `scale`). One too large for that is held at its end, where the rules
   on ranges find it: as null it would pass for missing and be imputed. #}
{% macro to_decimal(number, scale) -%}
{%- set largest = '9' * (18 - scale) -%}
coalesce(try_cast({{ number }} as decimal(18, {{ scale }})), cast(sign(try_cast({{ number }} as decimal(28, 6))) * {{ largest }} as decimal(18, {{ scale }})))
{%- endmacro %}

{% macro to_money(column) -%}
{{ to_decimal(clean_text(column), 4) }}
{%- endmacro %}

{% macro to_quantity(column) -%}
{{ to_decimal(clean_text(column), 3) }}
{%- endmacro %}

{# The one spelling of a product id. #}
{% macro product_key(column) -%}
upper({{ clean_text(column) }})
{%- endmacro %}

{# How category names are compared: without case, or runs of white space, or a slash at the end. #}
{% macro category_spelling(column) -%}
nullif(trim(rtrim(regexp_replace(lower({{ column }}), '\s+', ' ', 'g'), '/ ')), '')
{%- endmacro %}

{# SQL: which order a purchase is of. One without an order id is an order of its own, of one identity at one moment. #}
{% macro order_key() -%}
case when event_type = 'purchase' then coalesce(order_id, identity || '@' || cast(event_at as varchar)) end
{%- endmacro %}
