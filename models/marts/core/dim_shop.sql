-- What all marts share: the currency of their money, and the time zone of dates that people read.
select
    '{{ shop_setting("reporting_currency") }}' as reporting_currency,
    '{{ shop_setting("shop_time_zone") }}' as shop_time_zone,
    {{ shop_day('b.as_of') }} as as_of_date,
    b.as_of,
    b.built_from
from {{ ref('int_identity__build') }} as b
