{% snapshot products_history %}
select
    product_id,
    title,
    brand,
    category,
    price,
    currency,
    weight_grams,
    is_in_catalogue,
    as_of
from {{ ref('dim_products') }}
where {{ follows_history('as_of') }}
{% endsnapshot %}
