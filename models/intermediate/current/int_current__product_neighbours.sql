-- What products at their price weigh, for weights that are filled by k nearest neighbours (seeds/imputation_rules.csv): within the
-- category, or among all. Learned from what the catalogue said two days before the build, of weights that no outlier rule caps or removes.
{% set chain = [['category', 'category', 'lc'], ['all', "'all'", 'la']] %}
with build as (

    select as_of, {{ add_days('as_of_day', -1 * var('fit_lag_days')) }} as fit_day from {{ ref('int_identity__build') }}

),

rules as (

    select group_by, coalesce(cast(neighbours as double), 20) as k
    from {{ seed('imputation_rules') }}
    where record = 'product' and column_name = 'weight' and method = 'knn' and action = 'impute'

),

fits as (

    {{ newest_fits(ref('int_cleaning__profile_statistics'), ['group_by', 'group_key', 'measure'], "f.measure = 'weight'") | indent(4) }}

),

limits as (

    {{ bounds_of_attribute('weight') | indent(4) }}

),

{% for relation, is_valid in [
    ('asked', is_valid_at('b.as_of', 'v.known_at', 'v.known_until') ~ ' and v.weight_grams is null'),
    ('reference', is_valid_at('b.fit_day', 'cast(v.known_at as date)', 'cast(v.known_until as date)') ~ ' and v.weight_grams is not null'),
] %}
{{ relation }} as (

    select
        v.product_id as key,
        case when r.group_by = 'category' then coalesce('category:' || v.category, 'none') else 'all' end as group_key,
        v.weight_grams,
        r.k,
        round(ln(nullif(greatest(v.price, 0), 0)), 4) as price,
        case when v.weight_grams > 0 then round(ln(v.weight_grams), 4) end as weight
    from {{ ref('int_reference__product_versions') }} as v
    cross join rules as r
    inner join build as b on {{ is_valid }}
    {% if relation == 'reference' %}
    left join limits as lc on lc.group_by = 'category' and v.category = lc.group_key
    left join limits as la on la.group_by = 'all'
    where not {{ is_treated('v.weight_grams', chain) }}
    {% endif %}

),

{% endfor %}
gaps as (

    select
        key,
        group_key,
        1 as position,
        k
    from asked

),

{{ imputed_by_neighbours(['weight', 'price']) }}

select
    key as product_id,
    round(exp(value), 3) as weight_grams,
    neighbours
from imputed
