-- What one unit of a currency is worth in the reporting currency, for every day: that day's reference rate or, on days
-- without one (weekends, holidays, days to come), the last before it.
{% set currencies = var('fx_currencies') %}
with quoted as (

    select rate_date, 'EUR' as currency, cast(1 as double) as per_euro from {{ ref('fx_rates') }}
    {% for currency in currencies %}
    union all
    select rate_date, '{{ currency | upper }}', cast({{ currency }} as double) from {{ ref('fx_rates') }}
    where {{ currency }} is not null
    {% endfor %}

),

crossed as (

    select
        quoted.rate_date,
        quoted.currency,
        reporting.per_euro / quoted.per_euro as rate
    from quoted
    inner join quoted as reporting
        on quoted.rate_date = reporting.rate_date and reporting.currency = '{{ var("reporting_currency") }}'

),

held as (

    select
        *,
        lead(rate_date) over (partition by currency order by rate_date) as next_date
    from crossed

),

by_day as (

    select
        currency,
        {{ unfold(day_range('rate_date', "coalesce(next_date, " ~ add_days('rate_date', var('fx_hold_days')) ~ ")")) }} as rate_date,
        rate
    from held

)

select currency, rate_date, rate from by_day
union all
select m.minor_currency as currency, d.rate_date, d.rate / m.per_unit as rate
from by_day as d
inner join {{ ref('minor_currencies') }} as m on d.currency = m.currency
