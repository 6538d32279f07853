{# Text as the models want it: without white space around it, also of the kinds that no one sees (tabs, no-break and zero-width
   spaces, a byte order mark), and null where nothing is said. #}
{% macro clean_text(column) -%}
nullif(nullif(
    case
        -- Of nearly all texts the two ends show that there is nothing to trim, in a twentieth of the time.
        when substr({{ column }}, 1, 1) between '!' and '~' and right({{ column }}, 1) between '!' and '~' then {{ column }}
        else trim({{ column }}, {{ blanks() }})
    end, ''), '(not set)')
{%- endmacro %}

{# SQL: all characters that count as white space around a text. #}
{% macro blanks() -%}
'{{
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b\u200c\u200d"
    ~ "\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
}}'
{%- endmacro %}

{# SQL: true of an id that a spreadsheet has rounded, 1.23457E+12: it stands for many, and nobody can tell them apart. #}
{% macro is_rounded_id(column) -%}
({{ column }} like '%+%' and {{ matches(column, '^[0-9]([.,][0-9]+)?[eE][+][0-9]+$') }})
{%- endmacro %}

{# SQL: an id, or null where it is a word for nothing (seeds/null_words.csv). #}
{% macro known_id(column) -%}
case when lower({{ column }}) not in (select n.word from {{ seed('null_words') }} as n) then {{ column }} end
{%- endmacro %}

{# SQL: true of an id by which a record can be found again. #}
{% macro is_usable_id(column) -%}
({{ known_id(column) }} is not null and not {{ is_rounded_id(column) }})
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
    {{ arrival('_ingested_at') }} as ingested_at,
    {{ arrival('available_at') }} as raw_available_at
{%- endmacro %}

{# SQL: the order of a record's versions, from the newest to the oldest: by when the source changed it, then by its arrival. #}
{% macro newest_version_first(updated_at='updated_at', available_at='raw_available_at') -%}
{{ updated_at }} desc nulls last, {{ available_at }} desc, position desc, source desc, raw_rowid desc
{%- endmacro %}

{# SQL: a moment of arrival, `_ingested_at` or `available_at`, of the years that count; of others, which only a loader of before could let
   in (infinity, or before Christ), the first of these. Dates and intervals are worked out from it. #}
{% macro arrival(column) -%}
{%- set first = "timestamp '" ~ var('earliest_year') ~ "-01-01'" -%}
case
    when {{ column }} >= {{ first }} and {{ column }} < timestamp '{{ var('latest_year') + 1 }}-01-01' then {{ column }}
    else {{ first }}
end
{%- endmacro %}

{# A limit of dbt_project.yml. None counts beyond what types are made for: squares of a hundred million values at this one add up to a
   decimal(38, 8). #}
{% macro limit(name) %}{{ [var(name), 100000000000] | min }}{% endmacro %}

{# How many items of one event get a row: what row_id has numbers for. An event with more is malformed; GA4 itself allows 200. #}
{% macro max_items() %}511{% endmacro %}

{# One number for one row of an event-bearing raw table: its table, its row id and the item within it. #}
{% macro row_id(raw_table, raw_rowid, item_index='0') -%}
(
    (cast({{ raw_rowid }} as bigint) * 512 + coalesce({{ item_index }}, 0)) * 8
    + {{ {'events': 1, 'ga4_events': 2, 'order_items': 3, 'refunds': 4}[raw_table] }}
)
{%- endmacro %}

{# The number of a line or refund in an earlier state of its order (int_reference__orders), which takes the place of an item; in today's
   state, it is the row's own. #}
{% macro row_id_in_state(row_id, state_number) -%}
{{ row_id }} + coalesce({{ state_number }}, 0) * 8
{%- endmacro %}

{# True where text is there and yet is no number. A case, and the narrow type first: a cast to a type wider than 18 digits
   takes a thousand times as long. #}
{% macro not_a_number(column) -%}
(case
    when {{ clean_text(column) }} is null or try_cast({{ clean_text(column) }} as decimal(18, 6)) is not null then false
    else try_cast({{ clean_text(column) }} as decimal(38, 6)) is null
end)
{%- endmacro %}

{# A number (text, or an engine's own) as decimal(18, `scale`). One too large for that is held at its end, where the rules
   on ranges find it: as null it would pass for missing and be imputed. #}
{% macro to_decimal(number, scale) -%}
{%- set largest = '9' * (18 - scale) -%}
coalesce(
    try_cast({{ number }} as decimal(18, {{ scale }})),
    cast(sign(try_cast({{ number }} as decimal(38, 6))) * {{ largest }} as decimal(18, {{ scale }}))
)
{%- endmacro %}

{# A raw value as money, with 4 decimals. #}
{% macro to_money(column) -%}
{{ to_decimal(clean_text(column), 4) }}
{%- endmacro %}

{# A raw value as a quantity, with 3 decimals. #}
{% macro to_quantity(column) -%}
{{ to_decimal(clean_text(column), 3) }}
{%- endmacro %}

{# True or false as programs and people write them; null of all else. #}
{% macro yes_or_no(column) -%}
case
    when lower({{ clean_text(column) }}) in ('true', 't', 'yes', 'y', '1') then true
    when lower({{ clean_text(column) }}) in ('false', 'f', 'no', 'n', '0') then false
end
{%- endmacro %}

{# How the states of orders are compared: without case, and a space or a hyphen is an underscore. #}
{% macro status_spelling(column) -%}
replace(replace(lower({{ column }}), ' ', '_'), '-', '_')
{%- endmacro %}

{# A number where it is from `lowest` to `highest`; null where it is not. #}
{% macro within(number, lowest, highest) -%}
case when {{ number }} between {{ lowest }} and {{ highest }} then {{ number }} end
{%- endmacro %}

{# A whole number as text, from `lowest` to `highest`; null for all else, and not rounded. #}
{% macro to_integer(column, lowest, highest) -%}
case
    when {{ matches(clean_text(column), '^[+-]?[0-9]+([.]0*)?$') }}
        then {{ within("try_cast(" ~ clean_text(column) ~ " as integer)", lowest, highest) }}
end
{%- endmacro %}

{# The code of a currency. Case tells a pound from its hundredth: GBP from GBp, which trade calls GBX. #}
{% macro currency_code(column) -%}
case {{ clean_text(column) }} when 'GBp' then 'GBX' when 'ZAc' then 'ZAC' else upper({{ clean_text(column) }}) end
{%- endmacro %}

{# SQL: true of a price that no row can have, in its own currency. #}
{% macro is_absurd_price(price) -%}
({{ price }} < 0 or {{ price }} > {{ limit('max_price') }})
{%- endmacro %}

{# SQL: true where so many at this price are worth more, in the reporting currency, than any row is. #}
{% macro is_absurd_amount(price, rate, quantity) -%}
({{ price }} * {{ rate }} * greatest(coalesce({{ quantity }}, 1), 1) > {{ limit('max_amount') }})
{%- endmacro %}

{# Money of a row in the reporting currency, rounded; null where it is too large, which its row's rules have found. #}
{% macro in_reporting_currency(price, rate) -%}
case when {{ price }} * {{ rate }} <= {{ limit('max_amount') }} then try_cast(round({{ price }} * {{ rate }}, 4) as decimal(18, 4)) end
{%- endmacro %}

{# SQL: the mean of values of four decimals, to four decimals, halves away from zero. In whole numbers, so that what is equal is
   found equal. Null of nothing. #}
{% macro mean_of(total, count) -%}
case
    when {{ count }} > 0
        then cast(cast(
            sign({{ total }}) * {{ whole_quotient('cast(20000 * abs(' ~ total ~ ') as decimal(38, 0)) + ' ~ count, '2 * ' ~ count) }}
        as decimal(18, 0)) * 0.0001 as decimal(18, 4))
end
{%- endmacro %}

{# SQL: the value at a share of a group's money, between two of them in proportion, to four decimals, halves away from zero. Of whole
   ten-thousandths, between which a double lies without a rest. #}
{% macro quantile_of_money(money, share) -%}
cast(cast(round(
    percentile_cont({{ share }}) within group (order by cast({{ money }} * 10000 as double))
) as decimal(18, 0)) * 0.0001 as decimal(18, 4))
{%- endmacro %}

{# What so many at this price come to: nothing without a price, and one where no quantity is said. Never more than a row may be worth, also
   where one of the two was filled in. #}
{% macro amount_of(price, quantity) -%}
case
    when {{ price }} is not null
        then cast(least(round({{ times(price, 'coalesce(' ~ quantity ~ ', 1)') }}, 4), {{ limit('max_amount') }}) as decimal(18, 4))
end
{%- endmacro %}

{# SQL: what a line cost, all in all, less than so many at this price; null where it did not, or where one of the three is not known. #}
{% macro taken_off(price, quantity, amount) -%}
case
    when {{ times(price, 'coalesce(' ~ quantity ~ ', 1)') }} > {{ amount }}
        then try_cast(round({{ times(price, 'coalesce(' ~ quantity ~ ', 1)') }} - {{ amount }}, 4) as decimal(18, 4))
end
{%- endmacro %}

{# What so many at this price come to after a discount; null without a price. Of a price that was cut or filled in, a discount may
   be more. #}
{% macro discounted(price, quantity, discount) -%}
case
    when {{ price }} is not null
        then cast(greatest({{ amount_of(price, quantity) }} - coalesce({{ discount }}, 0), 0) as decimal(18, 4))
end
{%- endmacro %}

{# SQL: what a row comes to in its own currency, for the ledger of money: what is given as a whole, else so many at this price less a
   discount. 0 where there is no money in it, or more than any row may be worth. #}
{% macro money_of_row(price, quantity, discount, amount) -%}
coalesce(cast(case
    when cast({{ amount }} as decimal(18, 4)) is not null then {{ within(amount, 0, limit('max_amount')) }}
    when cast({{ price }} as decimal(18, 4)) between 0 and {{ limit('max_price') }}
        and coalesce(cast({{ quantity }} as decimal(18, 3)), 1) between 0 and {{ limit('max_quantity') }}
        then round({{ times(price, 'coalesce(cast(' ~ quantity ~ ' as decimal(18, 3)), 1)') }}, 4)
            - coalesce({{ within('cast(' ~ discount ~ ' as decimal(18, 4))', 0, limit('max_amount')) }}, 0)
end as decimal(38, 4)), 0)
{%- endmacro %}

{# Money times a quantity, exact, with 7 decimals. DuckDB multiplies two decimals of 18 digits within 18 digits, which raises from
   10^11 on. #}
{% macro times(money, quantity) -%}
cast({{ money }} as decimal(19, 4)) * {{ quantity }}
{%- endmacro %}

{# How names of events are compared: without case, spaces, hyphens and underscores. Product Added and product_added are one. #}
{% macro event_spelling(column) -%}
replace(replace(replace(lower({{ column }}), '_', ''), '-', ''), ' ', '')
{%- endmacro %}

{# How category names are compared: without case, or runs of white space, or a slash at the end. #}
{% macro category_spelling(column) -%}
nullif(trim(rtrim(regexp_replace(lower({{ column }}), '\s+', ' ', 'g'), '/ ')), '')
{%- endmacro %}

{# SQL: whether one or, of a name of eight letters or more, two typing errors lead from a spelling to the name. Lengths are compared
   first: no text has fewer edits than it is longer, and those of a long text would take memory without end. #}
{% macro is_near_spelling(spelling, name) -%}
case
    when abs(length({{ spelling }}) - length({{ name }})) <= 2
        then {{ edit_distance(spelling, name) }} <= case when length({{ name }}) >= 8 then 2 else 1 end
    else false
end
{%- endmacro %}

{# SQL: which order a purchase is of. One without an order id is an order of its own, of one identity at one moment. #}
{% macro order_key() -%}
case when event_type = 'purchase' then coalesce(order_id, identity || '@' || cast(event_at as varchar)) end
{%- endmacro %}

{# SQL: whether an event is a line of an order, also of one that is pending or cancelled. #}
{% macro is_order_line() %}event_type in ('purchase', 'pending_order', 'cancelled_order'){% endmacro %}

{# SQL: which order a line of an order is of, also where that order counts as no sale. #}
{% macro order_key_of_line() -%}
coalesce(order_key, order_id)
{%- endmacro %}
