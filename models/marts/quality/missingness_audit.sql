-- How much of what is missing, by source and kind of event. A share that differs much between kinds is not missing at random.
{% set imputed = ['price', 'quantity', 'device', 'country'] %}
{% set plain = ['user_id', 'anonymous_id', 'product_id', 'category', 'brand', 'order_id', 'currency', 'query', 'page', 'referrer', 'campaign', 'list_price'] %}
with events as (

    select
        source,
        event_type,
        count(*) as all_rows,
        {% for column in plain %}
        count({{ column }}) as with_{{ column }},
        {% endfor %}
        {% for column in imputed %}
        count(case when {{ column }}_was_missing then 1 end) as without_{{ column }},
        count(case when {{ column }}_was_missing and {{ column }} is not null then 1 end) as imputed_{{ column }}{{ "," if not loop.last }}
        {% endfor %}
    from {{ ref('int_events__cleaned') }}
    group by source, event_type

),

profiles as (

    select
        source,
        count(*) as all_rows,
        {% for column in ['birth_year', 'gender', 'country', 'household_size', 'income'] %}
        count(case when {{ column }}_was_missing then 1 end) as without_{{ column }},
        count(case when {{ column }}_was_missing and {{ column }} is not null then 1 end) as imputed_{{ column }}{{ "," if not loop.last }}
        {% endfor %}
    from {{ ref('int_identity__profiles') }}
    group by source

),

products as (

    select
        count(*) as all_rows,
        count(case when weight_was_missing then 1 end) as without_weight,
        count(case when weight_was_missing and weight_grams is not null then 1 end) as imputed_weight,
        count(case when title is null then 1 end) as without_title,
        count(case when brand is null then 1 end) as without_brand,
        count(case when category is null then 1 end) as without_category
    from {{ ref('int_identity__products') }}
    where is_in_catalogue

),

long as (

    {% for column in plain %}
    select 'event' as record, source, event_type, '{{ column }}' as column_name, all_rows, all_rows - with_{{ column }} as missing_rows, 0 as imputed_rows from events
    union all
    {% endfor %}
    {% for column in imputed %}
    select 'event' as record, source, event_type, '{{ column }}' as column_name, all_rows, without_{{ column }} as missing_rows, imputed_{{ column }} as imputed_rows from events
    union all
    {% endfor %}
    {% for column in ['birth_year', 'gender', 'country', 'household_size', 'income'] %}
    select 'customer' as record, source, 'all' as event_type, '{{ column }}' as column_name, all_rows, without_{{ column }} as missing_rows, imputed_{{ column }} as imputed_rows from profiles
    union all
    {% endfor %}
    {% for column in ['title', 'brand', 'category'] %}
    select 'product' as record, 'catalogue' as source, 'all' as event_type, '{{ column }}' as column_name, all_rows, without_{{ column }} as missing_rows, 0 as imputed_rows from products
    union all
    {% endfor %}
    select 'product' as record, 'catalogue' as source, 'all' as event_type, 'weight' as column_name, all_rows, without_weight as missing_rows, imputed_weight as imputed_rows from products

)

select
    l.record,
    l.source,
    l.event_type,
    l.column_name,
    cast(l.all_rows as bigint) as all_rows,
    cast(l.missing_rows as bigint) as missing_rows,
    cast(l.imputed_rows as bigint) as imputed_rows,
    cast(l.missing_rows as double) / l.all_rows as missing_share,
    b.as_of,
    b.built_from
from long as l
cross join {{ ref('int_identity__build') }} as b
where l.all_rows > 0
