{#
  What products are met together. A meeting is one identity's first sight of one product in one day, by kind; a basket is
  what one order holds. Both keep the first `pair_basket_limit` products alone, by when they could be seen: so neither a bot
  nor a wholesale order makes their square, and what arrives later never displaces what was counted
  (docs/decisions/0003-pairs-are-counted-once-a-day.md).
#}

{# The kinds of meeting, by the event that makes them. #}
{% macro touch_kinds() %}{{ return({'view_item': 'viewed', 'add_to_cart': 'carted', 'purchase': 'bought'}) }}{% endmacro %}

{# What is counted of two meetings of one identity: [count, kind of the product's, kind of the other's, hours that the other's
   may be earlier, hours that it may be later]. #}
{% macro pair_counts() %}
{{ return([
    ['co_views', 'viewed', 'viewed', 24, 24],
    ['co_carts', 'carted', 'carted', 24, 24],
    ['carts_to_orders', 'carted', 'bought', 0, 24],
]) }}
{% endmacro %}

{# The names of all counts of a pair, those of baskets too. #}
{% macro pair_count_names() %}{{ return(['co_views', 'co_carts', 'co_orders', 'carts_to_orders']) }}{% endmacro %}

{# How one product leads to the other: [name, count of the pair, what of the product it is a share of, what of the other makes its
   lift, the shop's total]. #}
{% macro pair_confidences() %}
{{ return([
    ['view', 'co_views', 'view_days', 'view_days', 'first_views'],
    ['cart', 'co_carts', 'cart_days', 'cart_days', 'first_carts'],
    ['order', 'co_orders', 'orders', 'orders', 'first_orders'],
    ['cart_to_order', 'carts_to_orders', 'cart_days', 'orders', 'first_orders'],
]) }}
{% endmacro %}

{# SQL: the first moment t that sees an event, by the as-of rule (event_at < t and available_at <= t). #}
{% macro visible_at() %}greatest(available_at, event_at + interval 1 microsecond){% endmacro %}

{# SQL: a count of tile rows, halved with every `half_life` days of age. The weight of a day is rounded, not the product: so
   the sum is the same however a day's count is split by arrival, and ranks may hang on it. #}
{% macro decayed_count(count, half_life) -%}
cast(sum(({{ count }}) * cast(round(power(0.5, {{ days_between('event_day', 'as_of_day') }} / {{ half_life }}.0) * 1000000) as bigint)) as double) / 1000000
{%- endmacro %}

{# SQL: what the meetings of a pair add up to, by `pair_weights`. #}
{% macro weighted_co_occurrences() -%}
{%- set terms = [] -%}
{%- for name, weight in var('pair_weights').items() %}{% do terms.append(weight ~ ' * ' ~ name) %}{% endfor -%}
{{ terms | join(' + ') }}
{%- endmacro %}

{# SQL: the same, halved with every 30 days of age. #}
{% macro pair_score() -%}
{{ decayed_count(weighted_co_occurrences(), 30) }}
{%- endmacro %}
