with identities as (

    select
        l.customer_id,
        count(*) as identities,
        min(case when l.identity like 'u:%' then substr(l.identity, 3) end) as user_id,
        min(l.known_from) as known_at
    from {{ ref('int_identity__links') }} as l
    where l.known_to is null
    group by l.customer_id

),

profiles as (

    select *, {{ uuid_v5("'u:' || user_id") }} as customer_id from {{ ref('int_current__customers') }}

),

seen as (

    select
        l.customer_id,
        min(t.first_at) as first_seen_at,
        max(t.last_at) as last_seen_at
    from {{ ref('int_tiles__identity_day') }} as t
    inner join {{ ref('int_identity__links') }} as l on t.identity = l.identity and l.known_to is null
    where t.until_day is null
    group by l.customer_id

)

select
    coalesce(i.customer_id, p.customer_id) as customer_id,
    coalesce(p.user_id, i.user_id) as user_id,
    coalesce(p.user_id, i.user_id) is null as is_anonymous,
    p.user_id is not null as has_profile,
    cast(coalesce(i.identities, 0) as bigint) as identities,
    s.first_seen_at,
    s.last_seen_at,
    p.created_at,
    p.updated_at,
    p.birth_year,
    coalesce(p.birth_year_was_missing, true) as birth_year_was_missing,
    p.gender,
    coalesce(p.gender_was_missing, true) as gender_was_missing,
    p.gender_confidence,
    p.country,
    coalesce(p.country_was_missing, true) as country_was_missing,
    p.country_confidence,
    p.household_size,
    coalesce(p.household_size_was_missing, true) as household_size_was_missing,
    p.income,
    p.income_raw,
    coalesce(p.income_was_missing, true) as income_was_missing,
    coalesce(p.income_is_outlier, false) as income_is_outlier,
    p.acquisition_channel,
    p.marketing_consent,
    b.as_of,
    b.built_from
from identities as i
full outer join profiles as p on i.customer_id = p.customer_id
left join seen as s on i.customer_id = s.customer_id
cross join {{ ref('int_identity__build') }} as b
