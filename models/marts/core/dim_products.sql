select
    p.product_id,
    p.title,
    p.brand,
    p.category,
    p.category_is_corrected,
    p.price,
    p.price_raw,
    p.currency,
    p.weight_grams,
    p.weight_grams_raw,
    p.weight_was_missing,
    p.weight_is_outlier,
    p.is_in_catalogue,
    p.created_at,
    p.updated_at,
    p.first_seen_at,
    p.last_seen_at,
    b.as_of,
    b.built_from
from {{ ref('int_current__products') }} as p
cross join {{ ref('int_identity__build') }} as b
