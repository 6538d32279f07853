-- Of each rate that was ever brought in, the newest.
select
    rate_date,
    currency,
    cast(per_euro as double) as per_euro,
    arrived_in
from (
    select
        rate_date,
        currency,
        per_euro,
        arrived_in,
        row_number() over (partition by rate_date, currency order by arrived_in desc, per_euro asc) as newest
    from {{ lake_table('exchange_rates') }} as exchange_rates
    where per_euro > 0
) as ranked
where newest = 1
