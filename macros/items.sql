{#
  What item_features and category_features share: the events of the last day with their customers, moving averages, trends and rates;
  and the catalogue at a moment. The products that were known at a moment are in int_features__offers.
#}

{# CTE body: each product's version in the catalogue at each of the `moments`. #}
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

{# CTE body: for each of `keys`, the category that most events of the tile rows `days` name. Ties go to the category that was named last,
   then to the first in alphabetical order. #}
{% macro most_frequent_category(days, keys=['product_id']) -%}
select {{ keys | join(', ') }}, category
from (
    select
        {{ keys | join(', ') }},
        category,
        row_number() over (
            partition by {{ keys | join(', ') }} order by sum(events) desc, max(last_at) desc, category
        ) as frequency_rank
    from {{ days }}
    where category is not null
    group by {{ keys | join(', ') }}, category
) as categories
where frequency_rank = 1
{%- endmacro %}

{# CTE body: the visible events about products of the 24 hours before each moment, with the customer whose identity was known by then. #}
{% macro last_day_by_customer() -%}
select e.*, l.customer_id
from (
    {{ as_of_last_day(ref('int_features__offers'), 'product_id', 'product_id') | indent(4) }}
) as e
inner join {{ ref('int_identity__links') }} as l
    on e.identity = l.identity and {{ is_valid_at('e.as_of', 'l.known_from', 'l.known_to') }}
{%- endmacro %}

{# SQL: columns <measure>_sma_7d and _30d of tile rows: the mean per day over the whole days before as_of's day, which is not over yet. #}
{% macro moving_averages(measures) -%}
{%- for days in [7, 30] %}
{%- for measure in measures %}
cast(coalesce(sum(case when {{ in_window(days) }} and event_day < as_of_day then {{ measure }} end), 0) as double)
/ {{ days }} as {{ measure }}_sma_{{ days }}d,
{%- endfor %}
{%- endfor %}
{%- endmacro %}

{# SQL: the mean day of the last week over that of the last month. One per month is added to both, so that a single event does not make
   a trend. #}
{% macro trend(relation, measure) -%}
({{ relation }}.{{ measure }}_sma_7d + 1 / 30.0) / ({{ relation }}.{{ measure }}_sma_30d + 1 / 30.0)
{%- endmacro %}

{# The steps of the funnel, as [name, measure of those who took the step, measure of those who could have]. #}
{% macro steps() %}
{{ return([['view_to_cart', 'cart_adds', 'views'], ['cart_to_order', 'orders', 'cart_adds'], ['view_to_order', 'orders', 'views']]) }}
{% endmacro %}

{# SQL: columns peer_<step>_rate_<suffix>: the rate of each step over all rows of the query's window `peers`. #}
{% macro peer_rates(suffixes) -%}
{%- for suffix in suffixes %}
{%- for step, taken, tried in steps() %}
{{ share('sum(' ~ taken ~ '_' ~ suffix ~ ') over peers', 'sum(' ~ tried ~ '_' ~ suffix ~ ') over peers') }}
    as peer_{{ step }}_rate_{{ suffix }},
{%- endfor %}
{%- endfor %}
{%- endmacro %}

{# SQL: columns <step>_rate_<suffix> of a relation, smoothed towards the rates of its peers. #}
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
