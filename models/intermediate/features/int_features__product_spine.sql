-- The question that the batch build asks of products: each one seen or in the catalogue by the moment of the build.
select distinct
    p.product_id,
    b.as_of
from (
    select product_id, arrival_day from {{ ref('int_tiles__product') }}
    union
    select product_id, cast(first_known_at as date) as arrival_day from {{ ref('int_reference__product_versions') }}
) as p
inner join {{ ref('int_identity__build') }} as b on p.arrival_day <= b.as_of_day
