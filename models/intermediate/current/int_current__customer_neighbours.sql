-- What customers like them have, for the gaps of customers' profiles that are filled by k nearest neighbours
-- (seeds/imputation_rules.csv): alike in the numbers that the shop knows of them, and in how much they do and spend. Learned from what was
-- known two days before the build, of customers whose income is no outlier that a rule caps or removes.
{% set attributes = ['birth_year', 'household_size', 'income'] %}
{% set chain = [['country', 'country', 'ic'], ['gender', 'gender', 'ig'], ['all', "'all'", 'ia']] %}
{% set group_key %}
case g.group_by
            when 'country' then coalesce('country:' || v.country, 'all')
            when 'gender' then coalesce('gender:' || v.gender, 'all')
            else 'all'
        end
{%- endset %}
with build as (

    select {{ add_days('as_of_day', -1 * var('fit_lag_days')) }} as fit_day from {{ ref('int_identity__build') }}

),

rules as (

    {% for column in attributes %}
    select
        {{ loop.index }} as position,
        group_by,
        coalesce(cast(neighbours as double), 20) as k
    from {{ seed('imputation_rules') }}
    where record = 'customer' and column_name = '{{ column }}' and method = 'knn' and action = 'impute'
    {{ "union all" if not loop.last }}
    {% endfor %}

),

groups as (

    -- Whoever has no country is compared with all.
    select group_by from rules
    union
    select 'all' as group_by from rules

),

versions as (

    select
        user_id,
        {% for column in attributes %}
        {{ column }},
        {% endfor %}
        country,
        gender,
        cast(raw_available_at as date) as arrival_day,
        row_number() over (partition by user_id order by {{ newest_version_first() }}) as recency
    from {{ ref('stg_shop__customers') }}
    where
        (select count(*) from groups) > 0
        and {{ is_usable_customer() | indent(8) }}

),

fits as (

    {{ newest_fits(ref('int_cleaning__profile_statistics'), ['group_by', 'group_key', 'measure'], "f.measure = 'income'") | indent(4) }}

),

income_limits as (

    {{ bounds_of_attribute('income') | indent(4) }}

),

activity as (

    select
        substr(t.identity, 3) as user_id,
        round(ln(1 + sum(t.events)), 4) as activity,
        round(ln(1 + greatest(sum(t.revenue), 0)), 4) as spend
    from {{ ref('int_tiles__identity_day') }} as t
    inner join build as b on t.arrival_day <= b.fit_day and (t.until_day is null or t.until_day > b.fit_day)
    where t.identity like 'u:%' and (select count(*) from groups) > 0
    group by t.identity

),

{% for relation in ['asked', 'reference'] %}
{{ relation }} as (

    select distinct
        v.user_id as key,
        {{ group_key }} as group_key,
        {% for column in attributes %}
        v.{{ column }},
        {% endfor %}
        coalesce(a.activity, 0) as activity,
        coalesce(a.spend, 0) as spend
    from {{ "versions" if relation == 'asked' else "versions_of_the_fit" }} as v
    cross join groups as g
    left join activity as a on v.user_id = a.user_id
    {% if relation == 'reference' %}
    {% for name, column, alias in chain %}
    left join income_limits as {{ alias }}
        on {{ alias }}.group_by = '{{ name }}' and {{ 'v.' ~ column if name != 'all' else column }} = {{ alias }}.group_key
    {% endfor %}
    {% endif %}
    where v.recency = 1 {{ "and not " ~ is_treated('v.income', chain) if relation == 'reference' }}

),

{% if relation == 'asked' %}
versions_of_the_fit as (

    select
        {{ all_but('v', ['recency']) }},
        row_number() over (partition by v.user_id order by v.recency) as recency
    from versions as v
    inner join build as b on v.arrival_day <= b.fit_day

),

{% endif %}
{% endfor %}
gaps as (

    select
        v.user_id as key,
        {{ group_key }} as group_key,
        g.position,
        g.k
    from versions as v
    inner join rules as g
        on
            case g.position
                {% for column in attributes %}
                when {{ loop.index }} then v.{{ column }} is null
                {% endfor %}
            end
    where v.recency = 1

),

{{ imputed_by_neighbours(attributes + ['activity', 'spend']) }}

select
    key as user_id,
    {% for column in attributes %}
    max(case when position = {{ loop.index }} then value end) as {{ column }},
    {% endfor %}
    max(neighbours) as neighbours
from imputed
group by key
