-- The newest profile of every customer in the shop's table, with gaps filled as seeds/imputation_rules.csv says: by the
-- fit of the day that was closed two days before the build.
with versions as (

    select
        *,
        row_number() over (partition by user_id order by {{ newest_version_first() }}) as recency
    from {{ ref('stg_shop__customers') }}
    where {{ is_usable_id('user_id') }} and raw_error is null and {{ is_not_deleted('customers') | indent(4) }}

),

build as (

    select {{ add_days('as_of_day', -1 * var('fit_lag_days')) }} as fit_day from {{ ref('int_identity__build') }}

),

fits as (

    {{ newest_fits(ref('int_cleaning__profile_statistics'), ['measure'], "f.group_by = 'all'") | indent(4) }}

),

medians as (

    select
        max(case when measure = 'birth_year' then q50 end) as birth_year,
        max(case when measure = 'household_size' then q50 end) as household_size,
        max(case when measure = 'income' then q50 end) as income
    from fits

),

income_limits as (

    select
        max({{ outlier_bound('r', 'f', 'low') }}) as low,
        max({{ outlier_bound('r', 'f', 'high') }}) as high,
        max(r.scale) as scale
    from fits as f
    inner join {{ ref('outlier_rules') }} as r on f.measure = r.column_name and f.group_by = r.group_by
    where f.measure = 'income'

),

modes as (

    select
        max(case when measure = 'customer_gender' then most_frequent end) as gender,
        max(case when measure = 'customer_country' then most_frequent end) as country
    from (
        {{ newest_fits(ref('int_cleaning__profile_modes'), ['measure']) | indent(8) }}
    ) as newest_modes

),

rules as (

    select
        {% for column in ['birth_year', 'household_size', 'income', 'gender', 'country'] %}
        coalesce(max(case when column_name = '{{ column }}' then action end) = 'impute', false) as of_{{ column }},
        {% endfor %}
        count(*) as rules
    from {{ ref('imputation_rules') }}
    where record = 'customer'

)

select
    v.user_id,
    v.source,
    v.created_at,
    v.updated_at,
    case when v.birth_year is null and r.of_birth_year then cast(round(m.birth_year) as integer) else v.birth_year end as birth_year,
    v.birth_year is null as birth_year_was_missing,
    case when v.gender is null and r.of_gender then d.gender else v.gender end as gender,
    v.gender is null as gender_was_missing,
    case when v.country is null and r.of_country then d.country else v.country end as country,
    v.country is null as country_was_missing,
    case
        when v.household_size is null and r.of_household_size then cast(round(m.household_size) as integer)
        else v.household_size
    end as household_size,
    v.household_size is null as household_size_was_missing,
    case when v.income is null and r.of_income then cast(m.income as decimal(18, 4)) else v.income end as income,
    v.income is null as income_was_missing,
    {{ is_outlier('v.income', 'i.low', 'i.high', 'i.scale') }} as income_is_outlier,
    v.acquisition_channel,
    case w.meaning when 'granted' then true when 'denied' then false end as marketing_consent
from versions as v
cross join medians as m
cross join modes as d
cross join rules as r
cross join income_limits as i
left join {{ ref('consent_words') }} as w on lower(v.marketing_consent) = w.word
where v.recency = 1
