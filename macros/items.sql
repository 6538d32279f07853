{#
  What every mart that looks at all products of a moment shares: which products there are, what their tiles say, what the
  catalogue offers; and the averages, trends and rates that items and categories have alike.
#}

{# CTE body. What the catalogue said of each product at each of the `moments`. #}
{% macro catalogue_at_moments() -%}
select
    m.as_of,
    v.product_id,
    v.category,
    v.brand,
    v.price,
    v.first_known_at,
    v.created_at
from moments as m
inner join {{ ref('int_reference__product_versions') }} as v
    on {{ is_valid_at('m.as_of', 'v.known_at', 'v.known_until') }}
{%- endmacro %}

{# CTEs, from `moments` to `offers`, on all products at each moment that `spine` asks of, whichever of them it asks for: ranks,
   shares and rates compare each with all. #}
{% macro items_at_moments(spine='spine') -%}
moments as (

    select distinct as_of, cast(as_of as date) as as_of_day from {{ spine }}

),

catalogue as (

    {{ catalogue_at_moments() | indent(4) }}

),

sightings as (

    select product_id, arrival_day from {{ ref('int_tiles__product') }}
    union
    select product_id, cast(first_known_at as date) as arrival_day from {{ ref('int_reference__product_versions') }}

),

members as (

    select distinct p.product_id, m.as_of, m.as_of_day
    from moments as m
    inner join sightings as p on m.as_of_day >= p.arrival_day

),

days as (

    {{ as_of_tiles('product', entity='product_id', link='product_id') | indent(4) }}

),

-- What events say of a product where the catalogue is silent: the category that most of them name, and the mean price of the last
-- day that had one.
labels as (

    {{ most_frequent_category('days', ['product_id', 'as_of']) | indent(4) }}

),

seen as (

    select
        p.product_id,
        p.as_of,
        p.price,
        l.category
    from (
        select
            product_id,
            as_of,
            {{ mean_of('sum(price_total)', 'sum(priced_events)') }} as price,
            row_number() over (
                partition by product_id, as_of
                order by case when sum(priced_events) > 0 then 0 else 1 end, event_day desc
            ) as newest
        from days
        group by product_id, as_of, event_day
    ) as p
    left join labels as l on p.product_id = l.product_id and p.as_of = l.as_of
    where p.newest = 1

),

-- One row a product known at as_of.
offers as (

    select
        m.product_id,
        m.as_of,
        coalesce(c.category, s.category) as category,
        c.brand,
        coalesce(c.price, s.price) as price_now,
        c.first_known_at,
        c.created_at
    from members as m
    left join catalogue as c on m.product_id = c.product_id and m.as_of = c.as_of
    left join seen as s on m.product_id = s.product_id and m.as_of = s.as_of
    where c.product_id is not null or s.product_id is not null

)
{%- endmacro %}

{# CTE body: for each of `keys`, the category that most events of the tile rows `days` name; of those named as often, the one that was
   named last, then the first in alphabetical order. #}
{% macro most_frequent_category(days, keys=['product_id']) -%}
select {{ keys | join(', ') }}, category
from (
    select
        {{ keys | join(', ') }},
        category,
        row_number() over (
            partition by {{ keys | join(', ') }} order by sum(events) desc, max(last_at) desc, category
        ) as place
    from {{ days }}
    where category is not null
    group by {{ keys | join(', ') }}, category
) as categories
where place = 1
{%- endmacro %}

{# CTEs of what was done with products at each of the `moments`: `bought`, which orders each was in; `known_links`, who was whose
   customer; `shoppers`, what tiles say of who met which product; `last_day`, the events of 24 hours with their customers. #}
{% macro activity_at_moments() -%}
bought as (

    {{ as_of_tiles('product_order', entity='product_id', link='product_id') | indent(4) }}

),

known_links as (

    select
        m.as_of,
        m.as_of_day,
        l.identity,
        l.customer_id
    from moments as m
    inner join {{ ref('int_identity__links') }} as l
        on {{ is_valid_at('m.as_of', 'l.known_from', 'l.known_to') }}

),

shoppers as (

    {{ as_of_tiles('identity_product', members='known_links') | indent(4) }}

),

last_day as (

    select e.*, l.customer_id
    from (
        {{ as_of_last_day(entity='product_id', link='product_id') | indent(8) }}
    ) as e
    inner join known_links as l on e.identity = l.identity and e.as_of = l.as_of

)
{%- endmacro %}

{# SQL: columns <measure>_sma_7d and _30d of tile rows: the mean day, of the whole days before today, so that a morning does not
   look like a slump. #}
{% macro moving_averages(measures) -%}
{%- for days in [7, 30] %}
{%- for measure in measures %}
cast(coalesce(sum(case when {{ in_window(days) }} and event_day < as_of_day then {{ measure }} end), 0) as double)
/ {{ days }} as {{ measure }}_sma_{{ days }}d,
{%- endfor %}
{%- endfor %}
{%- endmacro %}

{# SQL: above 1 when the last week ran ahead of the last month. One a month is added to both, so that a single one does not make a
   trend. #}
{% macro trend(relation, measure) -%}
({{ relation }}.{{ measure }}_sma_7d + 1 / 30.0) / ({{ relation }}.{{ measure }}_sma_30d + 1 / 30.0)
{%- endmacro %}

{# The steps from looking to buying: [name, measure of those who took it, measure of those who might have]. #}
{% macro steps() %}
{{ return([['view_to_cart', 'cart_adds', 'views'], ['cart_to_order', 'orders', 'cart_adds'], ['view_to_order', 'orders', 'views']]) }}
{% endmacro %}

{# SQL: columns peer_<step>_rate_<suffix>: how often all rows of the query's window `peers` took each step. #}
{% macro peer_rates(suffixes) -%}
{%- for suffix in suffixes %}
{%- for step, taken, tried in steps() %}
{{ share('sum(' ~ taken ~ '_' ~ suffix ~ ') over peers', 'sum(' ~ tried ~ '_' ~ suffix ~ ') over peers') }} as peer_{{ step }}_rate_{{ suffix }},
{%- endfor %}
{%- endfor %}
{%- endmacro %}

{# SQL: columns <step>_rate_<suffix> of a relation, smoothed towards its peers'. #}
{% macro smoothed_rates(relation, suffixes) -%}
{%- for suffix in suffixes %}
{%- for step, taken, tried in steps() %}
{{ smoothed_rate(
    relation ~ '.' ~ taken ~ '_' ~ suffix,
    relation ~ '.' ~ tried ~ '_' ~ suffix,
    'least(coalesce(' ~ relation ~ '.peer_' ~ step ~ '_rate_' ~ suffix ~ ', 0), 1)'
) }} as {{ step }}_rate_{{ suffix }},
{%- endfor %}
{%- endfor %}
{%- endmacro %}
