{{ config(meta={'live': 'fit'}) }}
-- How many products of which category have which token, by the day on which this was known: what naive Bayes judges a product's category
-- by. A product has the categories that the catalogue says, and those that its events were kept with.
with in_catalogue as (

    select
        product_id,
        category as label,
        min(cast(known_at as date)) as arrival_day
    from {{ ref('int_reference__product_versions') }}
    where category is not null and {{ is_imputed_by('event', 'category', 'model') }}
    group by product_id, category

),

-- Counted from the day on which an event of this category is kept, and no longer once none is.
of_events as (

    select
        group_key as product_id,
        observed as label,
        arrival_day,
        sum(n) over so_far > 0 as is_seen
    from {{ ref('int_cleaning__category_counts') }}
    where measure = 'category' and group_by = 'product_id'
    window so_far as (partition by group_key, observed order by arrival_day rows between unbounded preceding and current row)

),

changes as (

    select
        product_id,
        label,
        arrival_day,
        case when is_seen then 1 else 0 end
        - case when coalesce(lag(is_seen) over (partition by product_id, label order by arrival_day), false) then 1 else 0 end as n
    from of_events

),

tokens as (

    {{ product_tokens(is_imputed_by('event', 'category', 'model')) | indent(4) }}

),

labels as (

    select
        product_id,
        label,
        arrival_day,
        1 as n
    from in_catalogue
    union all
    select
        c.product_id,
        c.label,
        c.arrival_day,
        c.n
    from changes as c
    where
        c.n <> 0
        and (c.product_id, c.label) not in (select (k.product_id, k.label) from in_catalogue as k)

)

select
    arrival_day,
    'label' as feature,
    '' as token,
    label,
    cast(sum(n) as bigint) as n
from labels
group by arrival_day, label
union all
select
    greatest(l.arrival_day, t.known_on) as arrival_day,
    t.feature,
    t.token,
    l.label,
    cast(sum(l.n) as bigint) as n
from labels as l
inner join tokens as t on l.product_id = t.product_id
group by greatest(l.arrival_day, t.known_on), t.feature, t.token, l.label
