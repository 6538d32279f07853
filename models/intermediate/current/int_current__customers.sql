-- The newest profile of every customer in the shop's table, with gaps filled as seeds/imputation_rules.csv says: by the fit of the day that
-- was closed two days before the build, by customers like them, or by what they do.
with versions as (

    select
        *,
        row_number() over (partition by user_id order by {{ newest_version_first() }}) as recency
    from {{ ref('stg_shop__customers') }}
    where {{ is_usable_customer() | indent(4) }}

),

build as (

    select {{ add_days('as_of_day', -1 * var('fit_lag_days')) }} as fit_day from {{ ref('int_identity__build') }}

),

rules as (

    {{ imputation_of('customer', ['birth_year', 'household_size', 'income', 'gender', 'country']) | indent(4) }}

),

fits as (

    {{ newest_fits(ref('int_cleaning__profile_statistics'), ['measure', 'group_by', 'group_key']) | indent(4) }}

),

-- What gaps are filled with, by group.
usual_numbers as (

    select
        f.group_by,
        {% for column in ['birth_year', 'household_size', 'income'] %}
        max(case
            when f.measure = '{{ column }}' then case when r.by_mode_{{ column }} then f.most_frequent else f.q50 end
        end) as {{ column }},
        {% endfor %}
        f.group_key
    from fits as f
    cross join rules as r
    group by f.group_by, f.group_key

),

income_limits as (

    {{ bounds_of_attribute('income') | indent(4) }}

),

usual_labels as (

    select
        group_by,
        group_key,
        max(case when measure = 'customer_gender' then most_frequent end) as gender,
        max(case when measure = 'customer_country' then most_frequent end) as country
    from (
        {{ newest_fits(ref('int_cleaning__profile_modes'), ['measure', 'group_by', 'group_key']) | indent(8) }}
    ) as newest_modes
    group by group_by, group_key

),

-- Every profile with the fits that apply to it: those of its country or its gender where a rule asks for that and there are any, else
-- those of all customers.
fitted as (

    select
        {% for column, other in [('gender', 'country'), ('country', 'gender')] %}
        case
            when r.by_model_{{ column }} then p{{ column[0] }}.label
            when r.of_{{ column }}
                then coalesce(case when r.{{ column }}_by = '{{ other }}' then l{{ other[0] }}.{{ column }} end, la.{{ column }})
        end as usual_{{ column }},
        p{{ column[0] }}.confidence as {{ column }}_confidence,
        {% endfor %}
        {% for column in ['birth_year', 'household_size', 'income'] %}
        case
            when kn.{{ column }} is not null then kn.{{ column }}
            when r.of_{{ column }} and r.{{ column }}_by = 'country' then coalesce(nc.{{ column }}, na.{{ column }})
            when r.of_{{ column }} and r.{{ column }}_by = 'gender' then coalesce(ng.{{ column }}, na.{{ column }})
            when r.of_{{ column }} then na.{{ column }}
        end as usual_{{ column }},
        {% endfor %}
        {% for bound in ['low', 'high', 'scale', 'action'] %}
        {{ narrowest([['country', 'country', 'ic'], ['gender', 'gender', 'ig'], ['all', "'all'", 'ia']], bound) }} as income_{{ bound }},
        {% endfor %}
        v.*
    from versions as v
    cross join rules as r
    {% for relation, initial in [('usual_numbers', 'n'), ('usual_labels', 'l'), ('income_limits', 'i')] %}
    left join {{ relation }} as {{ initial }}c on {{ initial }}c.group_by = 'country' and v.country = {{ initial }}c.group_key
    left join {{ relation }} as {{ initial }}g on {{ initial }}g.group_by = 'gender' and v.gender = {{ initial }}g.group_key
    left join {{ relation }} as {{ initial }}a on {{ initial }}a.group_by = 'all'
    {% endfor %}
    left join {{ ref('int_current__customer_neighbours') }} as kn on v.user_id = kn.user_id
    {% for column in ['gender', 'country'] %}
    left join {{ ref('int_current__customer_labels') }} as p{{ column[0] }}
        on v.user_id = p{{ column[0] }}.user_id and p{{ column[0] }}.column_name = '{{ column }}'
    {% endfor %}
    where v.recency = 1

),

treated as (

    select
        *,
        {{ is_outlier('income', 'income_low', 'income_high', 'income_scale') }} as income_is_outlier,
        {{ treated('cast(income as double)', 'income_low', 'income_high', 'income_scale', 'income_action') }} as income_treated
    from fitted

)

select
    t.user_id,
    t.source,
    t.created_at,
    t.updated_at,
    coalesce(t.birth_year, cast(round(t.usual_birth_year) as integer)) as birth_year,
    t.birth_year is null as birth_year_was_missing,
    coalesce(t.gender, t.usual_gender) as gender,
    t.gender is null as gender_was_missing,
    t.gender_confidence,
    coalesce(t.country, t.usual_country) as country,
    t.country is null as country_was_missing,
    t.country_confidence,
    coalesce(t.household_size, cast(round(t.usual_household_size) as integer)) as household_size,
    t.household_size is null as household_size_was_missing,
    coalesce(
        case when t.income_is_outlier then cast(round(t.income_treated, 4) as decimal(18, 4)) else t.income end,
        cast(t.usual_income as decimal(18, 4))
    ) as income,
    t.income as income_raw,
    t.income is null as income_was_missing,
    t.income_is_outlier,
    t.acquisition_channel,
    case w.meaning when 'granted' then true when 'denied' then false end as marketing_consent
from treated as t
left join {{ seed('consent_words') }} as w on lower(t.marketing_consent) = w.word
