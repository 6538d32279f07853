-- The currencies of seeds/fx_rates.csv are those of the var fx_currencies: the columns of others would not be read.
-- depends_on: {{ ref('fx_rates') }}
{% set listed = var('fx_currencies') | map('lower') | list %}
{% set found = [] %}
{% for column in adapter.get_columns_in_relation(ref('fx_rates')) if execute and column.name != 'rate_date' %}
{% do found.append(column.name | lower) %}
{% endfor %}
with listed as (

    {% for name in listed %}
    select '{{ name }}' as currency
    {{ "union all" if not loop.last }}
    {% endfor %}

),

found as (

    {% for name in found or listed %}
    select '{{ name }}' as currency
    {{ "union all" if not loop.last }}
    {% endfor %}

)

select
    coalesce(f.currency, l.currency) as currency,
    case
        when l.currency is null then 'add it to fx_currencies in dbt_project.yml'
        else 'add a column to seeds/fx_rates.csv'
    end as what_to_do
from found as f
full outer join listed as l on f.currency = l.currency
where f.currency is null or l.currency is null
