-- In seeds/category_map.csv, a category that others stand for is written one way, and stands for itself: else a spelling
-- would have two categories.
with categories as (

    select
        {{ category_spelling('category') }} as spelling,
        min(category) as category,
        max(category) as other_category
    from {{ seed('category_map') }}
    where category is not null
    group by {{ category_spelling('category') }}

)

select
    c.category as raw_category,
    c.other_category as category,
    'write the category one way' as what_to_do
from categories as c
where c.category <> c.other_category
union all
select
    m.raw_category,
    m.category,
    'let this category stand for itself, since others stand for it' as what_to_do
from {{ seed('category_map') }} as m
inner join categories as c on {{ category_spelling('m.raw_category') }} = c.spelling
where m.category is distinct from c.category
