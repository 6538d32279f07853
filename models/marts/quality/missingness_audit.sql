-- How many values are missing, by source and type of event. Where the share differs much between types, values are not missing at random.
{% set of_customers = ['birth_year', 'gender', 'country', 'household_size', 'income'] %}
{% set of_products = ['title', 'brand', 'category'] %}
with events as (

    select
        {% for column in audited_columns() %}
        sum(case when {{ is_in_pattern('missing', column) }} then events else 0 end) as without_{{ column }},
        sum(case when {{ is_in_pattern('imputed', column) }} then events else 0 end) as imputed_{{ column }},
        {% endfor %}
        source,
        event_type,
        sum(events) as all_rows
    from {{ ref('int_tiles__missing_patterns') }}
    group by source, event_type

),

profiles as (

    select
        {% for column in of_customers %}
        count(case when {{ column }}_was_missing then 1 end) as without_{{ column }},
        count(case when {{ column }}_was_missing and {{ column }} is not null then 1 end) as imputed_{{ column }},
        {% endfor %}
        source,
        count(*) as all_rows
    from {{ ref('int_current__customers') }}
    group by source

),

products as (

    select
        {% for column in of_products %}
        count(*) - count({{ column }}) as without_{{ column }},
        0 as imputed_{{ column }},
        {% endfor %}
        count(case when weight_was_missing then 1 end) as without_weight,
        count(case when weight_was_missing and weight_grams is not null then 1 end) as imputed_weight,
        count(*) as all_rows
    from {{ ref('int_current__products') }}
    where is_in_catalogue

),

long as (

    {% for record, relation, source, event_type, columns in [
        ('event', 'events', 'source', 'event_type', audited_columns()),
        ('customer', 'profiles', 'source', "'all'", of_customers),
        ('product', 'products', "'catalogue'", "'all'", of_products + ['weight']),
    ] %}
    {% set is_last = loop.last %}
    {% for column in columns %}
    select
        '{{ record }}' as record,
        {{ source }} as source,
        {{ event_type }} as event_type,
        '{{ column }}' as column_name,
        all_rows,
        without_{{ column }} as missing_rows,
        imputed_{{ column }} as imputed_rows
    from {{ relation }}
    {{ "union all" if not (loop.last and is_last) }}
    {% endfor %}
    {% endfor %}

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
