{#
  Which products co-occur. A touch is one identity's first event about one product in one day, by kind; a basket is the products of one
  order. Both keep only the first `pair_basket_limit` products, by when they could be seen: so a bot or a wholesale order does not
  make the square of its products, and what arrives later never displaces what was counted
  (docs/decisions/0003-pairs-are-counted-once-a-day.md).
#}

{# The kinds of touch, by type of event. #}
{% macro touch_kinds() %}{{ return({'view_item': 'viewed', 'add_to_cart': 'carted', 'purchase': 'bought'}) }}{% endmacro %}

{# What is counted of two touches of one identity: [count, kind of the product's touch, kind of the other's, hours by which the other's
   may be earlier, hours by which it may be later]. #}
{% macro pair_counts() %}
{{ return([
    ['co_views', 'viewed', 'viewed', 24, 24],
    ['co_carts', 'carted', 'carted', 24, 24],
    ['carts_to_orders', 'carted', 'bought', 0, 24],
]) }}
{% endmacro %}

{# The names of all counts of a pair, including those of baskets. #}
{% macro pair_count_names() %}{{ return(['co_views', 'co_carts', 'co_orders', 'carts_to_orders']) }}{% endmacro %}

{# The confidences of a pair, as [name, count of the pair, count of the product that it is a share of, count of the other product for
   the lift, the shop's total]. #}
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

{# SQL: the keys of the orders of which a row was judged since the model's watermark, also of those that are no sale (any more): an order
   comes and goes with its rows, all of which are judged again when its header moves it or changes its status. #}
{% macro touched_order_keys() -%}
select coalesce(order_id, {{ order_key() }}) as order_key
from {{ ref('int_events__validated') }}
where built_in > coalesce({{ watermark(this.identifier) }}, -1)
    and event_type in ('purchase', 'pending_order', 'cancelled_order')
{%- endmacro %}

{% macro find_touched_baskets() -%}
{% if execute and not is_full_refresh(this.identifier) -%}
create or replace temporary table touched_baskets as
select distinct k.order_key from ({{ touched_order_keys() }}) as k
where k.order_key is not null;
delete from {{ this }} where order_key in (select t.order_key from touched_baskets as t)
{%- endif %}
{%- endmacro %}

{# The days whose pairs may have changed: where a row about a product came, left or changed its verdict, the days beside them, since
   24 hours reach there, and the days of the other lines of touched orders. Cleaned values do not matter here. A pair is no
   one identity's, so these days are counted anew, whole. #}
{% macro find_touched_days() -%}
{% if execute and not is_full_refresh(this.identifier) -%}
create or replace temporary table touched_days as
with changed as (
    select event_day
    from {{ ref('int_events__validated') }}
    where built_in > coalesce({{ watermark(this.identifier) }}, -1) and product_id is not null
    union
    select event_day
    from {{ moved_rows() }}
    where moved_in > coalesce({{ watermark(this.identifier) }}, -1) and product_id is not null
)
select {{ add_days('c.event_day', 'o.days') }} as event_day
from changed as c
cross join (values (-1), (0), (1)) as o (days)
where c.event_day is not null
union
select e.event_day
from {{ ref('int_cleaning__events') }} as e
where e.order_key in (select k.order_key from ({{ touched_order_keys() }}) as k);
delete from {{ this }} where event_day in (select t.event_day from touched_days as t)
{%- endif %}
{%- endmacro %}

{# SQL: the sum of a pair's co-occurrences, weighted by `pair_weights`. #}
{% macro weighted_co_occurrences() -%}
{%- set terms = [] -%}
{%- for name, weight in var('pair_weights').items() %}{% do terms.append(weight ~ ' * ' ~ name) %}{% endfor -%}
{{ terms | join(' + ') }}
{%- endmacro %}

{# SQL: the same, halved with every 30 days of age. #}
{% macro pair_score() -%}
{{ decayed_count(weighted_co_occurrences(), 30) }}
{%- endmacro %}
