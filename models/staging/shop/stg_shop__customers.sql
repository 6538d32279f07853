-- Every version of every customer row.
select
    arrived_in,
    {{ provenance() }},
    {{ clean_text('customer_id') }} as user_id,
    {{ parse_time(clean_text('created_at'), "coalesce(_time_zone, 'UTC')") }} as created_at,
    {{ parse_time(clean_text('updated_at'), "coalesce(_time_zone, 'UTC')") }} as updated_at,
    {{ to_integer('birth_year', var('earliest_birth_year'), var('latest_year')) }} as birth_year,
    lower({{ clean_text('gender') }}) as gender,
    {{ clean_text('country') }} as country,
    {{ to_integer('household_size', 1, var('max_household_size')) }} as household_size,
    {{ within(to_money('income'), 0, limit('max_income')) }} as income,
    lower({{ clean_text('acquisition_channel') }}) as acquisition_channel,
    {{ clean_text('marketing_consent') }} as marketing_consent,
    {{ clean_text('consent') }} as consent,
    properties,
    payload
from {{ ref('base_shop__customers') }}
