-- The question that the batch build asks of categories: each one seen or in the catalogue by the moment of the build.
select distinct
    c.category,
    b.as_of
from (
    select category, arrival_day from {{ ref('int_tiles__product') }}
    union
    select category, cast(known_at as date) as arrival_day from {{ ref('int_reference__product_versions') }}
) as c
inner join {{ ref('int_identity__build') }} as b on c.arrival_day <= b.as_of_day
where c.category is not null
