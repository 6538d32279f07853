{{ config(meta={'live': 'reference'}) }}
-- What the catalogue said of each product, and from when on it said so. A version that arrived after a newer one was
-- known is left out: it never was the truth of any moment.
with versions as (

    select
        p.product_id,
        p.raw_available_at as known_at,
        coalesce(p.updated_at, p.raw_available_at) as said_at,
        p.updated_at,
        p.created_at,
        p.arrived_in,
        p.position,
        p.source,
        p.raw_rowid,
        p.title,
        p.brand,
        c.category,
        coalesce(c.is_corrected, false) as category_is_corrected,
        p.currency,
        p.price as price_raw,
        {{ in_reporting_currency('p.price', 'r.rate') }} as price,
        r.changed_in as priced_in,
        u.base_unit as weight_unit,
        case
            when p.weight > 0 and p.weight * u.factor <= {{ limit('max_weight') }} then cast(p.weight * u.factor as decimal(18, 3))
        end as weight_grams
    from {{ ref('stg_shop__products') }} as p
    left join {{ ref('int_reference__category_names') }} as c on {{ category_spelling('p.category_name') }} = c.spelling
    left join {{ ref('int_reference__exchange_rates') }} as r
        on
            coalesce(p.currency, '{{ shop_setting("reporting_currency") }}') = r.currency
            and cast(coalesce(p.updated_at, p.raw_available_at) as date) = r.rate_date
    left join {{ seed('unit_conversions') }} as u on coalesce(p.weight_unit, 'g') = u.unit
    where {{ is_usable_id('p.product_id') }} and p.raw_error is null and not coalesce({{ is_absurd_price('p.price') }}, false)
        and p.{{ is_not_deleted('products') | indent(4) }}

),

ordered as (

    select
        *,
        max(said_at) over (
            partition by product_id
            order by known_at
            range between unbounded preceding and current row
        ) as newest_so_far,
        row_number() over (
            partition by product_id, known_at order by {{ newest_version_first('said_at', 'known_at') }}
        ) as recency,
        min(known_at) over (partition by product_id) as first_known_at,
        max(arrived_in) over (partition by product_id) as changed_in
    from versions

)

select
    product_id,
    known_at,
    lead(known_at) over (partition by product_id order by known_at) as known_until,
    first_known_at,
    arrived_in,
    changed_in,
    created_at,
    updated_at,
    title,
    brand,
    category,
    category_is_corrected,
    currency,
    price_raw,
    price,
    priced_in,
    weight_grams
from ordered
where recency = 1 and said_at >= newest_so_far
