{#
  The additive state that features are made of, declared once. Each tile is a grain of clean events by event day and
  arrival day; each of its measures is [name, how it adds up, SQL over clean events]. A tile model applies it to closed
  days, the as-of macros apply the same to the events of the day that is still open.
#}

{% macro tile_keys(tile) %}
{{ return({
    'identity_day': ['identity'],
    'identity_product': ['identity', 'product_id', 'category', 'brand'],
    'identity_session': ['identity', 'session_id'],
    'identity_order': ['identity', 'order_key'],
    'product': ['product_id', 'category'],
    'product_order': ['product_id', 'category', 'brand', 'identity', 'order_key'],
}[tile]) }}
{% endmacro %}

{# Which clean events a tile is made of. #}
{% macro tile_filter(tile) %}
{{ return({
    'identity_day': 'true',
    'identity_product': 'product_id is not null',
    'identity_session': 'session_id is not null',
    'identity_order': 'order_key is not null',
    'product': 'product_id is not null',
    'product_order': 'product_id is not null and order_key is not null',
}[tile]) }}
{% endmacro %}

{# SQL: how many events are of a type. #}
{% macro count_of(event_type) %}cast(count(case when event_type = '{{ event_type }}' then 1 end) as bigint){% endmacro %}
{# SQL: of how many rows the condition holds. #}
{% macro count_if(condition) %}cast(count(case when {{ condition }} then 1 end) as bigint){% endmacro %}
{# SQL: how many different values there are where the condition holds. #}
{% macro count_distinct_if(condition, value) %}cast(count(distinct case when {{ condition }} then {{ value }} end) as bigint){% endmacro %}
{# SQL: the sum of the values where the condition holds; 0 if there are none. #}
{% macro sum_if(condition, value) %}cast(coalesce(sum(case when {{ condition }} then {{ value }} end), 0) as decimal(38, 4)){% endmacro %}

{# SQL: the money of what the condition holds of: 0 where that is nothing, null where there is something and none of it has a price. #}
{% macro money_if(condition, value) -%}
cast(coalesce(sum(case when {{ condition }} then {{ value }} end), case when {{ count_if(condition) }} = 0 then 0 end) as decimal(38, 4))
{%- endmacro %}

{# SQL: the money of what the condition holds of and has a price; null where there is none. As tiles keep it. #}
{% macro known_money_if(condition, value) %}cast(sum(case when {{ condition }} then {{ value }} end) as decimal(38, 4)){% endmacro %}

{# Whether a measure of dbt_project.yml is one of money. #}
{% macro is_money(name) %}
{{ return((var('measures') | selectattr('name', 'equalto', name) | map(attribute='unit') | first) == 'reporting currency') }}
{% endmacro %}

{# The columns of a tile that count, for each measure of money that entities declare, the events without a price. #}
{% macro unpriced_names(entities) %}
{%- set found = [] -%}
{%- for name, type, expression in declared_measures(entities) if is_money(name) %}{% do found.append('unpriced_' ~ name) %}{% endfor -%}
{{ return(found) }}
{% endmacro %}

{# SQL: what was put in the cart less what was taken out, of which the value is known. #}
{% macro known_in_cart(value) -%}
cast(sum(case event_type when 'add_to_cart' then {{ value }} when 'remove_from_cart' then -{{ value }} end) as decimal(38, 4))
{%- endmacro %}

{# SQL: the same, at least 0: 0 where neither was done, null where there was something and no value of it is known. #}
{% macro left_in_cart(value) -%}
coalesce(
    {{ at_least_zero(known_in_cart(value)) }},
    case when {{ count_if("event_type in ('add_to_cart', 'remove_from_cart')") }} = 0 then 0 end
)
{%- endmacro %}

{# SQL: a number, or 0 where it is below; greatest() would make 0 of null. #}
{% macro at_least_zero(number) %}case when {{ number }} < 0 then 0 else {{ number }} end{% endmacro %}

{# The measures that dbt_project.yml declares of an entity (user, item, category, affinity, user_item, session), as [name, type, SQL over
   clean events]; `also` is a further condition. #}
{% macro declared_measures(entities, also=none) %}
{%- set found = [] -%}
{%- for measure in var('measures') if measure.of | select('in', entities) | list -%}
    {%- set condition = measure.where ~ (' and ' ~ also if also else '') -%}
    {%- if measure.unit == 'reporting currency' -%}
        {%- do found.append([measure.name, 'decimal(38, 4)', money_if(condition, measure['sum'])]) -%}
    {%- elif 'sum' in measure -%}
        {%- do found.append([measure.name, 'decimal(38, 4)', sum_if(condition, measure['sum'])]) -%}
    {%- else -%}
        {%- do found.append([measure.name, 'bigint', count_if(condition)]) -%}
    {%- endif -%}
{%- endfor -%}
{{ return(found) }}
{% endmacro %}

{# The shares that features of users have of their events, as [share, measure of a tile, measure that it is a share of]: by part of the
   day, on weekends, and by device, of the events whose device is known. #}
{% macro habit_shares() %}
{%- set shares = [] -%}
{%- for name, first, last in day_parts() %}{% do shares.append([name ~ '_share', name ~ '_events', 'events']) %}{% endfor -%}
{%- do shares.append(['weekend_share', 'weekend_events', 'events']) -%}
{%- for device in var('devices') %}{% do shares.append([device ~ '_share', device ~ '_events', 'device_events']) %}{% endfor -%}
{{ return(shares) }}
{% endmacro %}

{# The names of what features of users count the distinct values of. #}
{% macro distinct_count_names() %}{{ return(var('distinct_counts') | map(attribute='name') | list) }}{% endmacro %}

{# Which entities' measures a tile holds. #}
{% macro tile_entities(tile) %}
{{ return({
    'identity_day': ['user'],
    'identity_product': ['affinity', 'user_item'],
    'product': ['item', 'category'],
}.get(tile, [])) }}
{% endmacro %}

{# The measures of a tile, each as [name, how it adds up, SQL]. #}
{% macro tile_measures(tile) %}
{%- set priced = "event_type in ('view_item', 'add_to_cart', 'purchase') and price is not null and product_id is not null" -%}
{%- set viewed_with_price = "event_type = 'view_item' and price is not null" -%}
{%- set bought = "event_type = 'purchase'" -%}
{%- set discounted = bought ~ " and list_price > price" -%}
{%- set declared = [] -%}
{%- for measure in var('measures') if measure.of | select('in', tile_entities(tile)) | list -%}
    {%- if measure.unit == 'reporting currency' -%}
        {%- do declared.append([measure.name, 'sum', known_money_if(measure.where, measure['sum'])]) -%}
        {%- do declared.append(['unpriced_' ~ measure.name, 'sum', count_if(measure.where ~ ' and ' ~ measure['sum'] ~ ' is null')]) -%}
    {%- else -%}
        {%- set column = sum_if(measure.where, measure['sum']) if 'sum' in measure else count_if(measure.where) -%}
        {%- do declared.append([measure.name, 'sum', column]) -%}
    {%- endif -%}
{%- endfor -%}
{%- set events = [['events', 'sum', 'cast(count(*) as bigint)']] -%}
{%- set returns = [['refunded_units', 'sum', sum_if("event_type = 'refund'", 'quantity')]] -%}
{%- set priced_sums = [
    ['priced_events', 'sum', count_if(priced)],
    ['price_total', 'sum', sum_if(priced, 'price')],
] -%}
{%- set prices = priced_sums + [
    ['price_square_total', 'sum', "cast(coalesce(sum(case when " ~ priced ~ " then"
        ~ " cast(price as decimal(19, 4)) * cast(price as decimal(19, 4)) end), 0) as decimal(38, 8))"],
    ['ranked_events', 'sum', count_if(priced ~ ' and price_percentile is not null')],
    ['price_percentile_total', 'sum', sum_if(priced, 'price_percentile')],
    ['listed_amount', 'sum',
        sum_if(bought ~ ' and list_price is not null', 'round(' ~ times('greatest(list_price, price)', 'quantity') ~ ', 4)')],
    ['discount_amount', 'sum', sum_if(discounted, 'round(' ~ times('(list_price - price)', 'quantity') ~ ', 4)')],
] -%}
{%- set moments = [['first_at', 'min', 'min(event_at)'], ['last_at', 'max', 'max(event_at)']] -%}
{%- set last_view = ['last_view_at', 'max', "max(case when event_type = 'view_item' then event_at end)"] -%}
{%- set last_cart_add = ['last_cart_add_at', 'max', "max(case when event_type = 'add_to_cart' then event_at end)"] -%}
{%- set last_order = ['last_order_at', 'max', "max(case when event_type = 'purchase' then event_at end)"] -%}
{%- set habits = [] -%}
{%- for name, first, last in day_parts() -%}
    {%- do habits.append([name ~ '_events', 'sum', count_if(is_in_hours_of_day('event_at', first, last))]) -%}
{%- endfor -%}
{%- do habits.append(['weekend_events', 'sum', count_if(is_weekend('event_at'))]) -%}
{%- for device in var('devices') -%}
    {%- do habits.append([device ~ '_events', 'sum', count_if("device = '" ~ device ~ "'")]) -%}
{%- endfor -%}
{%- do habits.append(['device_events', 'sum', count_if('device is not null')]) -%}
{{ return({
    'identity_day': events + declared + returns + prices + moments + [last_view, last_cart_add] + habits,
    'identity_product': events + declared + priced_sums + moments + [
        last_view,
        last_cart_add,
        last_order,
        ['purchases', 'sum', count_of('purchase')],
        ['last_cart_remove_at', 'max', "max(case when event_type = 'remove_from_cart' then event_at end)"],
        ['last_priced_view_at', 'max', "max(case when " ~ viewed_with_price ~ " then event_at end)"],
        ['last_view_price', 'last', last_by("case when " ~ viewed_with_price ~ " then price end", 'event_at')],
    ],
    'identity_session': events + [
        ['first_at', 'min', 'min(event_at)'],
        ['last_at', 'max', 'max(event_at)'],
        ['cart_adds', 'sum', count_of('add_to_cart')],
        ['purchases', 'sum', count_of('purchase')],
        ['cart_value', 'sum', known_in_cart('amount')],
    ],
    'identity_order': [
        ['ordered_at', 'min', 'min(event_at)'],
        ['revenue', 'sum', known_money_if('true', 'amount')],
    ],
    'product': events + declared + returns + priced_sums + moments + [last_order],
    'product_order': [['ordered_at', 'min', 'min(event_at)']],
}[tile]) }}
{% endmacro %}

{# SQL: the rows of a tile from `source`, a relation of clean events of which `condition` holds, by `also` columns and the tile's own keys
   and days. #}
{% macro tile_rows(tile, source, condition='true', also=[]) -%}
select
    {%- for key in also + tile_keys(tile) + ['event_day', 'arrival_day'] %}
    {{ key }},
    {%- endfor %}
    {%- for name, combine, expression in tile_measures(tile) %}
    {{ expression }} as {{ name }}{{ "," if not loop.last }}
    {%- endfor %}
from {{ source }}
where {{ tile_filter(tile) }} and {{ condition }}
group by {% for key in also + tile_keys(tile) + ['event_day', 'arrival_day'] %}{{ key }}{{ ", " if not loop.last }}{% endfor %}
{%- endmacro %}
