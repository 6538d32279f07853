-- What customers and products were first seen to have, by the day it arrived: numbers by bucket, labels by value.
with customers as (

    select user_id, raw_available_at, position, source, raw_rowid, birth_year, household_size, income, gender, country
    from {{ ref('stg_shop__customers') }}
    where {{ is_usable_customer() | indent(4) }}

),

-- Each value once a group, when it was first seen of its customer or product.
numbers_seen as (

    {% for measure in ['birth_year', 'household_size', 'income'] %}
    {% for group_by, group_key in [('country', 'country'), ('gender', 'gender'), ('all', "'all'")] %}
    select
        '{{ measure }}' as measure,
        '{{ group_by }}' as group_by,
        {{ group_key }} as group_key,
        cast(raw_available_at as date) as arrival_day,
        cast({{ measure }} as decimal(18, 4)) as value,
        row_number() over (partition by user_id order by raw_available_at, position, source, raw_rowid) as place
    from customers
    where {{ measure }} is not null and {{ group_key }} is not null
        {{ "and " ~ is_named_by_rules('customer', measure, group_by) if group_by != 'all' }}
    union all
    {% endfor %}
    {% endfor %}
    {% for group_by, group_key in [('category', 'category'), ('all', "'all'")] %}
    select
        'weight' as measure,
        '{{ group_by }}' as group_by,
        {{ group_key }} as group_key,
        cast(known_at as date) as arrival_day,
        cast(weight_grams as decimal(18, 4)) as value,
        row_number() over (partition by product_id order by known_at) as place
    from {{ ref('int_reference__product_versions') }}
    where weight_grams is not null and {{ group_key }} is not null
        {{ "and " ~ is_named_by_rules('product', 'weight', group_by) if group_by == 'all' }}
    {{ "union all" if not loop.last }}
    {% endfor %}

),

labels_seen as (

    {% for measure, other in [('gender', 'country'), ('country', 'gender')] %}
    {% set last_measure = loop.last %}
    {% for group_by, group_key in [(other, other), ('all', "'all'")] %}
    select
        'customer_{{ measure }}' as measure,
        '{{ group_by }}' as group_by,
        {{ group_key }} as group_key,
        cast(raw_available_at as date) as arrival_day,
        {{ measure }} as observed,
        row_number() over (partition by user_id order by raw_available_at, position, source, raw_rowid) as place
    from customers
    where {{ measure }} is not null and {{ group_key }} is not null
        {{ "and " ~ is_named_by_rules('customer', measure, group_by) if group_by != 'all' }}
    {{ "union all" if not (loop.last and last_measure) }}
    {% endfor %}
    {% endfor %}

)

select
    measure,
    group_by,
    group_key,
    arrival_day,
    {{ log_bucket('value') }} as bucket,
    cast(null as varchar) as observed,
    {{ value_sums('value') }}
from numbers_seen
where place = 1
group by measure, group_by, group_key, arrival_day, bucket
union all
select
    measure,
    group_by,
    group_key,
    arrival_day,
    cast(null as integer) as bucket,
    observed,
    cast(count(*) as bigint) as n,
    cast(null as decimal(38, 4)) as total,
    cast(null as decimal(38, 8)) as total_square,
    cast(null as bigint) as log_n,
    cast(null as decimal(38, 0)) as log_total,
    cast(null as decimal(38, 0)) as log_total_square
from labels_seen
where place = 1
group by measure, group_by, group_key, arrival_day, observed
