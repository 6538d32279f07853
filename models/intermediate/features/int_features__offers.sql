-- Every product that was known at each moment that is asked for, whichever of them the spines ask for: ranks, shares and rates
-- compare each with all. The catalogue comes first; where it is silent, what events say.
with moments as (

    select as_of, cast(as_of as date) as as_of_day from {{ ref('int_features__product_spine') }}
    union
    select as_of, cast(as_of as date) as as_of_day from {{ ref('int_features__category_spine') }}

),

catalogue as (

    {{ catalogue_at_moments() | indent(4) }}

),

arrivals as (

    select product_id, arrival_day from {{ ref('int_tiles__product') }}
    union
    select product_id, cast(first_known_at as date) as arrival_day from {{ ref('int_reference__product_versions') }}

),

members as (

    select distinct a.product_id, m.as_of, m.as_of_day
    from moments as m
    inner join arrivals as a on m.as_of_day >= a.arrival_day

),

days as (

    {{ as_of_tiles('product', entity='product_id', link='product_id') | indent(4) }}

),

---------- what events say: the category that most of them name, and the mean price of the last day that had one

event_categories as (

    {{ most_frequent_category('days', ['product_id', 'as_of']) | indent(4) }}

),

daily_prices as (

    select
        product_id,
        as_of,
        {{ mean_of('sum(price_total)', 'sum(priced_events)') }} as price,
        row_number() over (
            partition by product_id, as_of
            order by case when sum(priced_events) > 0 then 0 else 1 end, event_day desc
        ) as recency
    from days
    group by product_id, as_of, event_day

),

by_events as (

    select
        p.product_id,
        p.as_of,
        p.price,
        c.category
    from daily_prices as p
    left join event_categories as c on p.product_id = c.product_id and p.as_of = c.as_of
    where p.recency = 1

)

select
    m.product_id,
    m.as_of,
    m.as_of_day,
    coalesce(c.category, e.category) as category,
    c.category as catalogue_category,
    c.brand,
    coalesce(c.price, e.price) as price_now,
    c.first_known_at,
    c.created_at
from members as m
left join catalogue as c on m.product_id = c.product_id and m.as_of = c.as_of
left join by_events as e on m.product_id = e.product_id and m.as_of = e.as_of
where c.product_id is not null or e.product_id is not null
