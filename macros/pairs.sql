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
cast(sum(
    ({{ count }})
    * cast(round(power(0.5, {{ days_between('event_day', 'as_of_day') }} / {{ half_life }}.0) * 1000000) as bigint)
) as double) / 1000000
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

{# Predicate: of the last version of events that were still valid when the day of their arrival ended. Pairs know no sessions, and are
   read of closed days alone. #}
{% macro outlived_its_day() %}is_last_version and (until_day is null or until_day > cast(available_at as date)){% endmacro %}

{# CTEs, of which the last is `in_periods`: the rows of `relation` in each period in which none of their group (`keys`) ended, with the days
   `begins_on` and `ends_on` of it. Both are null for most: nothing of their group ever ended. #}
{% macro in_periods(relation, keys) -%}
periods as (

    select
        {{ keys | join(', ') }},
        until_day as ends_on,
        lag(until_day) over (partition by {{ keys | join(', ') }} order by until_day) as begins_on
    from (select distinct {{ keys | join(', ') }}, until_day from {{ relation }} where until_day is not null) as ends

),

last_ends as (

    select {{ keys | join(', ') }}, max(ends_on) as begins_on
    from periods
    group by {{ keys | join(', ') }}

),

in_periods as (

    select r.*, p.begins_on, cast(null as date) as ends_on
    from {{ relation }} as r
    left join last_ends as p on {% for key in keys %}r.{{ key }} = p.{{ key }}{{ ' and ' if not loop.last }}{% endfor %}
    where r.until_day is null
    union all
    select r.*, p.begins_on, p.ends_on
    from {{ relation }} as r
    inner join periods as p
        on
            {% for key in keys %}r.{{ key }} = p.{{ key }} and {% endfor %}{{ is_closed_by('p.ends_on', 'r', at_its_begin=true) }}

)
{%- endmacro %}
