-- Every version of every product row.
select
    arrived_in,
    {{ provenance() }},
    {{ clean_text('product_id') }} as product_id,
    {{ clean_text('title') }} as title,
    {{ clean_text('brand') }} as brand,
    {{ clean_text('category') }} as category_name,
    {{ to_money('price') }} as price,
    {{ currency_code('currency') }} as currency,
    try_cast({{ clean_text('weight') }} as decimal(18, 6)) as weight,
    lower({{ clean_text('weight_unit') }}) as weight_unit,
    {{ parse_time(clean_text('created_at'), "coalesce(_time_zone, 'UTC')") }} as created_at,
    {{ parse_time(clean_text('updated_at'), "coalesce(_time_zone, 'UTC')") }} as updated_at,
    properties,
    payload
from {{ ref('base_shop__products') }}
