{#
  What tiles and features add up. A tile is additive daily state: a grain of clean events by event day and arrival day, with
  measures. Each has its own file beside this one, which shows both. The tile's model applies it to all clean events; the as-of
  macros (macros/as_of.sql) apply the same to the events of the day that is still open. What several tiles measure is here.
#}

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
cast(coalesce(
    sum(case when {{ condition }} then {{ value }} end),
    case when {{ finegrain.count_if(condition) }} = 0 then 0 end
) as decimal(38, 4))
{%- endmacro %}

{# SQL: the money of what the condition holds of and has a price; null where there is none. As tiles keep it. #}
{% macro known_money_if(condition, value) %}cast(sum(case when {{ condition }} then {{ value }} end) as decimal(38, 4)){% endmacro %}

{#
  The measures that dbt_project.yml declares: finegrain's, whose columns the contracts of the marts name, and the shop's own
  (`shop_measures`), which tiles and states hold, too. A mart of the shop's project selects them from the state. item_features and
  category_features have no state, so a shop's measure cannot be of them.
#}
{% macro all_measures() %}
{%- set names = var('measures') | map(attribute='name') | list -%}
{%- for measure in var('shop_measures', []) -%}
    {%- set said = 'dbt_project.yml, shop_measures: ' ~ measure.name -%}
    {%- if measure.name in names -%}
        {%- do exceptions.raise_compiler_error(said ~ ' is declared twice, here or in measures; give it another name') -%}
    {%- elif not measure.of or measure.of | reject('in', ['user', 'affinity', 'user_item', 'session']) | list -%}
        {%- set fix = 'write a list of user, affinity, user_item and session' -%}
        {%- do exceptions.raise_compiler_error(said ~ ' is of ' ~ measure.of ~ '; ' ~ fix) -%}
    {%- endif -%}
    {%- do names.append(measure.name) -%}
{%- endfor -%}
{{ return(var('measures') + var('shop_measures', [])) }}
{% endmacro %}

{# Whether a declared measure is one of money. #}
{% macro is_money(name) %}
{{ return((all_measures() | selectattr('name', 'equalto', name) | map(attribute='unit') | first) == 'reporting currency') }}
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
{%- for measure in all_measures() if measure.of | select('in', entities) | list -%}
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

{# SQL: the measures that dbt_project.yml declares of these entities, as tiles keep them: money without a price is counted beside it. #}
{% macro declared_measures_of_tile(entities) -%}
{%- for measure in all_measures() if measure.of | select('in', entities) | list -%}
{%- if measure.unit == 'reporting currency' %}
    {{ known_money_if(measure.where, measure['sum']) }} as {{ measure.name }},
    {{ count_if(measure.where ~ ' and ' ~ measure['sum'] ~ ' is null') }} as unpriced_{{ measure.name }},
{%- elif 'sum' in measure %}
    {{ sum_if(measure.where, measure['sum']) }} as {{ measure.name }},
{%- else %}
    {{ count_if(measure.where) }} as {{ measure.name }},
{%- endif %}
{%- endfor %}
{%- endmacro %}

{# SQL: the money of a line at a price. #}
{% macro line_amount(price) %}round({{ times(price, 'quantity') }}, 4){% endmacro %}

{# SQL: the last moment of an event of a type. #}
{% macro last_of(event_type) %}max(case when event_type = '{{ event_type }}' then event_at end){% endmacro %}

{# Predicate: of events that show what a customer pays attention to, at a known price. #}
{% macro is_priced() %}event_type in ('view_item', 'add_to_cart', 'purchase') and price is not null and product_id is not null{% endmacro %}

{# SQL: `columns`, each followed by a comma, before the keys of a tile. #}
{% macro before_keys(columns) %}{% for column in columns %}{{ column }}, {% endfor %}{% endmacro %}

{# SQL: the rows of a tile, by its name. #}
{% macro tile_rows(tile, source, also) -%}
{%- if tile == 'identity_day' -%} {{ tile_identity_day(source, also=also) }}
{%- elif tile == 'identity_product' -%} {{ tile_identity_product(source, also=also) }}
{%- elif tile == 'identity_session' -%} {{ tile_identity_session(source, also=also) }}
{%- elif tile == 'identity_order' -%} {{ tile_identity_order(source, also=also) }}
{%- elif tile == 'product' -%} {{ tile_product(source, also=also) }}
{%- elif tile == 'product_order' -%} {{ tile_product_order(source, also=also) }}
{%- endif -%}
{%- endmacro %}
