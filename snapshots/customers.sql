{% snapshot customers_history %}
select
    customer_id,
    user_id,
    has_profile,
    identities,
    created_at,
    birth_year,
    gender,
    country,
    household_size,
    income,
    acquisition_channel,
    marketing_consent,
    as_of
from {{ ref('dim_customers') }}
where not is_anonymous and {{ follows_history('as_of') }}
{% endsnapshot %}
