{#
  Affinities: how much a customer likes something, by what they did. And the features of a customer and a category or a brand, which
  are one definition for both.
#}

{# CTE body. Rows of the tile identity_product, each with the `weight` of its events. #}
{% macro weighted_events(products='products') -%}
select
    p.*,
    p.views * w.views + p.cart_adds * w.cart_adds + p.purchases * w.purchases as weight
from {{ products }} as p
cross join {{ ref('int_reference__event_weights') }} as w
{%- endmacro %}

{# SQL: what exports need of an event `e`, with the weight that it adds to an affinity: as above, of one event. #}
{% macro event_columns(e, w) -%}
{{ e }}.event_id,
{{ e }}.event_type,
{{ e }}.event_at,
{{ e }}.product_id,
{{ e }}.category,
case {{ e }}.event_type
    when 'view_item' then {{ w }}.views when 'add_to_cart' then {{ w }}.cart_adds when 'purchase' then {{ w }}.purchases else 0
end as weight
{%- endmacro %}

{# SQL: the sum of `weight` x 0.5 ^ (age in days / half-life), in billionths. The decay is rounded before it is multiplied, so that
   the sum is one of whole numbers: equal histories come out equal, however tiles cut them, and share their rank. #}
{% macro affinity_billionths(half_life, day='event_day', as_of_day='as_of_day') -%}
cast(sum(weight * cast(round(power(0.5, {{ days_between(day, as_of_day) }} / {{ half_life }}.0) * 1000000000) as bigint)) as decimal(38, 0))
{%- endmacro %}

{# SQL: the affinity of `billionths`. #}
{% macro affinity(billionths) %}cast({{ billionths }} as double) / 1000000000{% endmacro %}

{# CTE body. The orders in each group of rows of an order tile, each once, though its lines came on several days: `ordered_at` by its
   first line, `event_day` by its last, since an order is in each window that has a line of it. #}
{% macro whole_orders(orders, keys) -%}
select
    {{ keys | join(', ') }},
    order_key,
    min(ordered_at) as ordered_at,
    max(event_day) as event_day
from {{ orders }}
group by {{ keys | join(', ') }}, order_key
{%- endmacro %}

{# SQL: how many such orders there are in each window of days. #}
{% macro orders_by_days() -%}
{%- for suffix, days in day_windows() %}
{{ count_if(in_window(days)) }} as orders_{{ suffix }},
{%- endfor %}
{%- endmacro %}

{# What each customer did with each `kind`, a column of the tile identity_product, which is category or brand. #}
{% macro affinity_state(kind) -%}
{%- set key = ['customer_id', 'as_of', 'as_of_day', kind] -%}
{%- set spans = share_windows() -%}
{%- set longest = var('half_lives') | max -%}
{%- set keys = ['customer_id', 'as_of', kind] -%}
{#- An incremental build gathers the few rows that it reads once; a full one would have to keep them all. -#}
{%- set products = 'select * from products' if is_incremental() else as_of_tiles('identity_product', open_events='open_events') -%}
{%- set kinds = '(select * from (' ~ products ~ ') as tiles where ' ~ kind ~ ' is not null) as tiles_with_kind' -%}
with {{ asked_members('not is_hours_only') }},

---------- what the customer did

products as (

    {{ as_of_tiles('identity_product', open_events='open_events') | indent(4) }}

),

weighted_products as (

    {{ weighted_events() | indent(4) }}

),

by_{{ kind }} as (

    select
        {{ measures_by_days('affinity') | indent(8) }}
        {% for half_life in var('half_lives') %}
        {{ affinity_billionths(half_life) }} as affinity_{{ half_life }}d,
        {% endfor %}
        {% for suffix, days in spans %}
        {{ window_sum('events', days, 'bigint') }} as events_{{ suffix }},
        {% endfor %}
        {{ share('sum(price_total)', 'sum(priced_events)') }} as price_mean_lifetime,
        max(last_at) as last_event_at,
        max(last_view_at) as last_view_at,
        max(last_cart_add_at) as last_cart_add_at,
        {{ key | join(', ') }}
    from weighted_products
    where {{ kind }} is not null
    group by {{ key | join(', ') }}

),

active_days as (

    {{ distinct_by_days('active_days', 'event_day', kinds, keys, spans[:1]) | indent(4) }}

),

distinct_products as (

    {{ distinct_by_days('distinct_products', 'product_id', kinds, keys, spans[1:]) | indent(4) }}

),

orders as (

    {{ as_of_tiles('product_order', open_events='open_events') | indent(4) }}

),

orders_with_{{ kind }} as (

    {{ whole_orders('orders', key) | indent(4) }}

),

by_order as (

    select
        {{ orders_by_days() | indent(8) }}
        max(ordered_at) as last_order_at,
        {{ key | join(', ') }}
    from orders_with_{{ kind }}
    group by {{ key | join(', ') }}

),

-- Beside what the customer did with every {{ kind }}.
compared as (

    select
        *,
        {% for suffix, days in spans %}
        sum(events_{{ suffix }}) over of_customer as all_events_{{ suffix }},
        sum(revenue_{{ suffix }}) over of_customer as all_revenue_{{ suffix }},
        {% endfor %}
        sum(affinity_{{ longest }}d) over of_customer as all_affinity_{{ longest }}d,
        cast(rank() over (partition by customer_id, as_of order by affinity_{{ longest }}d desc) as bigint) as preference_rank
    from by_{{ kind }}
    window of_customer as (partition by customer_id, as_of)

),

final as (

    select
        c.customer_id,
        c.{{ kind }},
        c.as_of,
        {{ pinned() }} as built_in,

        ---------- windows
        {% for suffix, days in day_windows() %}
        {% for name in measure_names('affinity') %}
        c.{{ name }}_{{ suffix }},
        {% endfor %}
        coalesce(o.orders_{{ suffix }}, 0) as orders_{{ suffix }},
        {% endfor %}

        ---------- preference
        {% for half_life in var('half_lives') %}
        {{ affinity('c.affinity_' ~ half_life ~ 'd') }} as {{ kind }}_affinity_{{ half_life }}d,
        {% endfor %}
        {{ share('c.affinity_' ~ longest ~ 'd', 'c.all_affinity_' ~ longest ~ 'd') }} as affinity_share_{{ longest }}d,
        c.preference_rank,
        {% for suffix, days in spans %}
        c.events_{{ suffix }},
        cast(c.all_events_{{ suffix }} as bigint) as all_events_{{ suffix }},
        {{ share('c.revenue_' ~ suffix, 'c.all_revenue_' ~ suffix) }} as share_of_spend_{{ suffix }},
        {% endfor %}

        ---------- moments, breadth and price
        c.last_event_at,
        c.last_view_at,
        c.last_cart_add_at,
        o.last_order_at,
        coalesce(a.active_days_90d, 0) as active_days_90d,
        coalesce(p.distinct_products_lifetime, 0) as distinct_products_lifetime,
        c.price_mean_lifetime
    from compared as c
    left join active_days as a on c.customer_id = a.customer_id and c.as_of = a.as_of and c.{{ kind }} = a.{{ kind }}
    left join distinct_products as p on c.customer_id = p.customer_id and c.as_of = p.as_of and c.{{ kind }} = p.{{ kind }}
    left join by_order as o on c.customer_id = o.customer_id and c.as_of = o.as_of and c.{{ kind }} = o.{{ kind }}

)

select * from final
{%- endmacro %}

{# The kinds' share of all the shop's events, and their prices, from what had arrived before the day of each moment asked for, by `tile`. #}
{% macro shop_averages(kind, tile) -%}
{%- set spans = share_windows() -%}
with days as (

    select
        {{ kind }},
        event_day,
        arrival_day,
        until_day,
        sum(events) as events,
        sum(priced_events) as priced_events,
        sum(price_total) as price_total
    from {{ ref('int_tiles__' ~ tile) }}
    where {{ kind }} is not null
    group by {{ kind }}, event_day, arrival_day, until_day

),

moments as (

    select distinct cast(as_of as date) as as_of_day from {{ ref('int_features__customer_spine') }}

),

by_{{ kind }} as (

    select
        m.as_of_day,
        d.{{ kind }},
        {% for suffix, days in spans %}
        sum(case when {{ in_window(days, 'd.event_day', 'm.as_of_day') }} then d.events else 0 end) as events_{{ suffix }},
        {% endfor %}
        {{ share('sum(d.price_total)', 'sum(d.priced_events)') }} as price_mean_lifetime
    from moments as m
    inner join days as d on {{ is_closed_by('m.as_of_day', 'd', at_its_begin=true) }}
    group by m.as_of_day, d.{{ kind }}

)

select
    as_of_day,
    {{ kind }},
    {% for suffix, days in spans %}
    {{ share('events_' ~ suffix, 'sum(events_' ~ suffix ~ ') over (partition by as_of_day)') }} as share_of_events_{{ suffix }},
    {% endfor %}
    price_mean_lifetime
from by_{{ kind }}
{%- endmacro %}

{#
  The features of each customer and `kind`, from their state and the shop's.

  Lift (Brin et al. 1997, "Dynamic itemset counting and implication rules for market basket data", there called interest) is the
  kind's share of the customer's events over its share of the shop's events; its logarithm is pointwise mutual
  information (Church & Hanks 1990, "Word association norms, mutual information, and lexicography").
#}
{% macro affinity_features(kind) -%}
{%- set spans = share_windows() -%}
{%- set longest = var('half_lives') | max -%}
with compared as (

    select
        c.*,
        {% for suffix, days in spans %}
        {{ share('c.events_' ~ suffix, 'c.all_events_' ~ suffix) }} as share_of_events_{{ suffix }},
        case
            when c.events_{{ suffix }} >= {{ [var('lift_min_support'), 1] | max }} and s.share_of_events_{{ suffix }} > 0
                then cast(c.events_{{ suffix }} as double) / cast(c.all_events_{{ suffix }} as double) / s.share_of_events_{{ suffix }}
        end as lift_{{ suffix }},
        {% endfor %}
        {{ share('c.price_mean_lifetime', 's.price_mean_lifetime') }} as price_ratio_lifetime
    from {{ ref('int_features__user_' ~ kind) }} as c
    left join {{ ref('int_features__shop_' ~ kind) }} as s on cast(c.as_of as date) = s.as_of_day and c.{{ kind }} = s.{{ kind }}

)

select
    ---------- key
    c.customer_id,
    c.{{ kind }},
    c.as_of,
    b.built_from,

    ---------- windows
    {{ by_window('c', mart_measure_names('affinity') + ['orders'], day_windows() | map('first')) | indent(4) }}

    ---------- preference
    {% for half_life in var('half_lives') %}
    c.{{ kind }}_affinity_{{ half_life }}d,
    {% endfor %}
    c.affinity_share_{{ longest }}d,
    c.preference_rank,
    {% for suffix, days in spans %}
    c.share_of_events_{{ suffix }},
    c.share_of_spend_{{ suffix }},
    c.lift_{{ suffix }},
    ln(c.lift_{{ suffix }}) as pmi_{{ suffix }},
    {% endfor %}

    ---------- recency and breadth
    {{ hours_between('c.last_event_at', 'c.as_of') }} as hours_since_event,
    {{ hours_between('c.last_view_at', 'c.as_of') }} as hours_since_view,
    {{ hours_between('c.last_cart_add_at', 'c.as_of') }} as hours_since_cart_add,
    {{ hours_between('c.last_order_at', 'c.as_of') }} as hours_since_order,
    c.active_days_90d,
    c.distinct_products_lifetime,

    ---------- price
    c.price_mean_lifetime,
    c.price_ratio_lifetime
from compared as c
cross join {{ ref('int_identity__build') }} as b
{%- endmacro %}
