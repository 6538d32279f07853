-- Every product by its one key, as the catalogue has it at the moment of the build, or as events alone name it.
with build as (

    select as_of, {{ add_days('as_of_day', -1 * var('fit_lag_days')) }} as fit_day from {{ ref('int_identity__build') }}

),

current_versions as (

    select v.*
    from {{ ref('int_reference__product_versions') }} as v
    inner join build as b on {{ is_valid_at('b.as_of', 'v.known_at', 'v.known_until') }}

),

products_of_events as (

    select * from {{ ref('int_tiles__product') }}
    where until_day is null

),

seen as (

    select
        product_id,
        min(first_at) as first_seen_at,
        max(last_at) as last_seen_at
    from products_of_events
    group by product_id

),

labels as (

    {{ most_frequent_category('products_of_events') | indent(4) }}

),

rules as (

    {{ imputation_of('product', ['weight']) | indent(4) }}

),

bounds as (

    {{ newest_fits(ref('int_cleaning__profile_statistics'), ['group_by', 'group_key'], "f.measure = 'weight'") | indent(4) }}

),

limits as (

    select
        f.group_by,
        f.group_key,
        case when r.of_weight and r.weight_by = f.group_by then case when r.by_mode_weight then f.most_frequent else f.q50 end end as usual,
        {{ outlier_bound('w', 'f', 'low') }} as low,
        {{ outlier_bound('w', 'f', 'high') }} as high,
        w.scale,
        w.action
    from bounds as f
    cross join rules as r
    left join {{ seed('outlier_rules') }} as w on f.measure = w.column_name and f.group_by = w.group_by

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

),

fitted as (

    select
        j.*,
        {% for bound in ['low', 'high', 'scale', 'action'] %}
        {{ narrowest([['category', 'category', 'lc'], ['all', "'all'", 'la']], bound) }} as {{ bound }},
        {% endfor %}
        coalesce(n.weight_grams, lc.usual, la.usual) as usual
    from joined as j
    left join {{ ref('int_current__product_neighbours') }} as n on j.product_id = n.product_id
    left join limits as lc on lc.group_by = 'category' and j.category = lc.group_key
    left join limits as la on la.group_by = 'all'

)

select
    {{ all_but('f', ['usual', 'low', 'high', 'scale', 'action']) }},
    cast(round(coalesce(
        {{ treated('cast(f.weight_grams_raw as double)', 'f.low', 'f.high', 'f.scale', 'f.action') }}, f.usual
    ), 3) as decimal(18, 3)) as weight_grams,
    f.weight_grams_raw is null as weight_was_missing,
    {{ is_outlier('f.weight_grams_raw', 'f.low', 'f.high', 'f.scale') }} as weight_is_outlier
from fitted as f
