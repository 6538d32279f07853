-- Every spelling of a category that was ever delivered, and the category it stands for: as seeds/category_map.csv says;
-- else, where one slip of the keyboard (two in a long name) leads to exactly one mapped category, that one; else itself.
with spellings as (

    select distinct {{ category_spelling('category_name') }} as spelling
    from {{ ref('stg_lake__category_names') }}
    where {{ category_spelling(clean_text('category_name')) }} is not null

),

canonical as (

    select distinct {{ category_spelling('category') }} as spelling, category
    from {{ seed('category_map') }}
    where category is not null

),

mapped as (

    select {{ category_spelling('raw_category') }} as spelling, category from {{ seed('category_map') }}
    union
    select spelling, category from canonical

),

near as (

    select
        spellings.spelling,
        min(canonical.category) as category
    from spellings
    inner join canonical on {{ is_near_spelling('spellings.spelling', 'canonical.spelling') }}
    where length(canonical.spelling) >= 4
    group by spellings.spelling
    having count(*) = 1

)

select
    spellings.spelling,
    case
        when mapped.spelling is not null then mapped.category
        else coalesce(near.category, spellings.spelling)
    end as category,
    mapped.spelling is null and near.category is not null as is_corrected
from spellings
left join mapped on spellings.spelling = mapped.spelling
left join near on spellings.spelling = near.spelling
