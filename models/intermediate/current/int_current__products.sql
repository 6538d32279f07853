-- Every product by its one key, as the catalogue has it at the moment of the build, or as events alone name it.
with build as (

    select as_of, {{ add_days('as_of_day', -1 * var('fit_lag_days')) }} as fit_day from {{ ref('int_identity__build') }}

),

current_versions as (

    select v.*
    from {{ ref('int_reference__product_versions') }} as v
    inner join build as b on {{ is_valid_at('b.as_of', 'v.known_at', 'v.known_until') }}

),

seen as (

    select
        product_id,
        min(first_at) as first_seen_at,
        max(last_at) as last_seen_at
    from {{ ref('int_tiles__product') }}
    group by product_id

),

labels as (

    {{ most_frequent_category(ref('int_tiles__product')) | indent(4) }}

),

bounds as (

    {{ newest_fits(ref('int_cleaning__profile_statistics'), ['group_key'], "f.measure = 'weight'") | indent(4) }}

),

weight_rule as (

    select * from {{ ref('outlier_rules') }} where column_name = 'weight'

),

limits as (

    select
        f.group_key as category,
        f.q50 as median,
        {{ outlier_bound('w', 'f', 'low') }} as low,
        {{ outlier_bound('w', 'f', 'high') }} as high,
        w.scale,
        w.action
    from bounds as f
    left join weight_rule as w on true

),

joined as (

    select
        coalesce(c.product_id, s.product_id) as product_id,
        c.title,
        c.brand,
        coalesce(c.category, l.category) as category,
        coalesce(c.category_is_corrected, false) as category_is_corrected,
        c.price,
        c.price_raw,
        c.currency,
        c.weight_grams as weight_grams_raw,
        c.created_at,
        c.updated_at,
        s.first_seen_at,
        s.last_seen_at,
        c.product_id is not null as is_in_catalogue
    from current_versions as c
    full outer join seen as s on c.product_id = s.product_id
    left join labels as l on s.product_id = l.product_id

)

select
    j.*,
    cast(round(coalesce(
        {{ treated('cast(j.weight_grams_raw as double)', 'l.low', 'l.high', 'l.scale', 'l.action') }}, l.median
    ), 3) as decimal(18, 3)) as weight_grams,
    j.weight_grams_raw is null as weight_was_missing,
    {{ is_outlier('j.weight_grams_raw', 'l.low', 'l.high', 'l.scale') }} as weight_is_outlier
from joined as j
left join limits as l on j.category = l.category
