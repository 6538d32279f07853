-- What one unit of a currency is worth in the reporting currency, for every day: that day's reference rate or, on days
-- without one (weekends, holidays, days to come), the last before it. A rate of the lake goes before one of the seed.
{% set reporting = shop_setting('reporting_currency') %}
with seed as (

    {% for currency in var('fx_currencies') %}
    select
        rate_date,
        '{{ currency | upper }}' as currency,
        cast({{ currency }} as double) as per_euro,
        cast(0 as bigint) as changed_in
    from {{ ref('fx_rates') }}
    where {{ currency }} is not null
    {{ "union all" if not loop.last }}
    {% endfor %}

),

lake as (

    select rate_date, currency, per_euro, arrived_in as changed_in from {{ ref('stg_lake__exchange_rates') }}

),

of_others as (

    select * from lake
    union all
    select seed.*
    from seed
    left join lake on seed.rate_date = lake.rate_date and seed.currency = lake.currency
    where lake.currency is null

),

quoted as (

    select * from of_others
    union all
    -- The euro is quoted on each day on which another currency is.
    select
        rate_date,
        'EUR' as currency,
        cast(1 as double) as per_euro,
        min(changed_in) as changed_in
    from of_others
    group by rate_date

),

crossed as (

    select
        quoted.rate_date,
        quoted.currency,
        reporting.per_euro / quoted.per_euro as rate,
        greatest(quoted.changed_in, reporting.changed_in) as changed_in
    from quoted
    inner join quoted as reporting
        on quoted.rate_date = reporting.rate_date and reporting.currency = '{{ reporting }}'

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
        case when currency <> '{{ reporting }}' then rate_date end as quoted_on,
        {{ unfold(day_range('rate_date', "coalesce(next_date, " ~ add_days('rate_date', var('fx_hold_days')) ~ ")")) }} as rate_date,
        rate,
        changed_in
    from held

)

select currency, rate_date, quoted_on, rate, changed_in from by_day
union all
select m.minor_currency as currency, d.rate_date, d.quoted_on, d.rate / m.per_unit as rate, d.changed_in
from by_day as d
inner join {{ seed('minor_currencies') }} as m on d.currency = m.currency
