{{ config(meta={'live': 'reference'}) }}
-- What is known of a product beside its category, as tokens, and since which day: the words of its titles, its brands, and its prices by
-- powers of two. Empty unless a rule imputes categories by a model.
with versions as (

    select
        product_id,
        title,
        brand,
        price,
        cast(known_at as date) as known_on
    from {{ ref('int_reference__product_versions') }}
    where {{ is_imputed_by('event', 'category', 'model') }}

),

tokens as (

    select
        product_id,
        'word' as feature,
        {{ unfold(words('title')) }} as token,
        known_on
    from versions
    union all
    select
        product_id,
        'brand' as feature,
        lower(brand) as token,
        known_on
    from versions
    union all
    select
        product_id,
        'price' as feature,
        case when price > 0 then cast(cast(floor(ln(price) / ln(2)) as integer) as varchar) end as token,
        known_on
    from versions

)

select
    product_id,
    feature,
    token,
    min(known_on) as known_on
from tokens
where token is not null and token <> ''
group by product_id, feature, token
