{# Spines with labels (models/marts/training): weeks, label windows and seeded draws. #}

{# SQL: the first Monday after a day. 1970-01-05 was a Monday. #}
{% macro next_monday(day) -%}
{{ add_days(day, '7 - ' ~ days_between("date '1970-01-05'", day) ~ ' % 7') }}
{%- endmacro %}

{# SQL: a label, or null while its window of so many days after t.as_of is not over at the moment of the build, b.as_of. #}
{% macro if_over(label, days) -%}
case when t.as_of + interval {{ days }} day <= b.as_of then {{ label }} end
{%- endmacro %}

{# SQL: a number from 0 to below `size` that depends on nothing but the texts and the var training_seed. #}
{% macro seeded_number(texts, size) -%}
{{ number_of_hash(id_hash(["'" ~ var('training_seed') ~ "'"] + texts)) }} % {{ size }}
{%- endmacro %}

{# CTEs that draw products for each row of `examples` (example_id, as_of), as `drawn` (example_id, product_id): training_negatives times
   one of those known on the days before, all alike. A product that is drawn twice is there once. #}
{% macro drawn_products() -%}
known as (

    select
        product_id,
        first_day,
        row_number() over (order by first_day, product_id) - 1 as place
    from (select product_id, min(arrival_day) as first_day from {{ ref('int_tiles__product') }} group by product_id) as firsts

),

arrivals as (

    select first_day, count(*) as products from known group by first_day

),

sizes as (

    select d.as_of_day, cast(sum(a.products) as bigint) as products
    from (select distinct cast(as_of as date) as as_of_day from examples) as d
    inner join arrivals as a on d.as_of_day > a.first_day
    group by d.as_of_day

),

draws as (

    select example_id, as_of, {{ unfold(range(var('training_negatives')) | list) }} as draw
    from examples

),

places as (

    select d.example_id, {{ seeded_number(['d.example_id', 'd.draw'], 's.products') }} as place
    from draws as d
    inner join sizes as s on cast(d.as_of as date) = s.as_of_day

),

drawn as (

    select distinct p.example_id, k.product_id
    from places as p
    inner join known as k on p.place = k.place

)
{%- endmacro %}
