-- Every version of every customer row.
select
    arrived_in,
    {{ provenance() }},
    {{ clean_text('customer_id') }} as user_id,
    {{ parse_time(clean_text('created_at'), "coalesce(_time_zone, 'UTC')") }} as created_at,
    {{ parse_time(clean_text('updated_at'), "coalesce(_time_zone, 'UTC')") }} as updated_at,
    try_cast({{ clean_text('birth_year') }} as integer) as birth_year,
    lower({{ clean_text('gender') }}) as gender,
    {{ clean_text('country') }} as country,
    try_cast({{ clean_text('household_size') }} as integer) as household_size,
    {{ to_money('income') }} as income,
    lower({{ clean_text('acquisition_channel') }}) as acquisition_channel,
    case
        when lower({{ clean_text('marketing_consent') }}) in ('true', 't', 'yes', '1', 'granted') then true
        when lower({{ clean_text('marketing_consent') }}) in ('false', 'f', 'no', '0', 'denied') then false
    end as marketing_consent,
    properties,
    payload
from {{ ref('base_shop__customers') }}
