-- The gender and country of customers whose profile has none, as naive Bayes judges by what they do: the categories and brands they look
-- at, the devices they use, the countries they come from, and how they first came. Learned from the profiles and events that were known
-- two days before the build.
{% set columns = ['gender', 'country'] %}
with build as (

    select {{ add_days('as_of_day', -1 * var('fit_lag_days')) }} as fit_day from {{ ref('int_identity__build') }}

),

profiles as (

    select
        user_id,
        gender,
        country,
        acquisition_channel,
        cast(raw_available_at as date) as known_on,
        row_number() over (partition by user_id order by {{ newest_version_first() }}) as recency
    from {{ ref('stg_shop__customers') }}
    where
        ({{ is_imputed_by('customer', 'gender', 'model') }} or {{ is_imputed_by('customer', 'country', 'model') }})
        and {{ is_usable_customer() | indent(8) }}

),

tokens as (

    select
        user_id,
        feature,
        token,
        min(known_on) as known_on
    from (
        {% for feature in ['category', 'brand', 'device', 'country'] %}
        select
            user_id,
            '{{ feature }}' as feature,
            {{ feature }} as token,
            arrival_day as known_on
        from {{ ref('int_cleaning__events') }}
        where
            known_to is null {{ "and not " ~ feature ~ "_was_missing" if feature in ('device', 'country') }}
            and user_id in (select p.user_id from profiles as p)
        union all
        {% endfor %}
        select
            user_id,
            'channel' as feature,
            acquisition_channel as token,
            known_on
        from profiles
    ) as observed
    where token is not null
    group by user_id, feature, token

)

{% for column in columns %}
select
    '{{ column }}' as column_name,
    key as user_id,
    label,
    confidence
from (
    with known as (

        select
            user_id,
            {{ column }} as label,
            known_on,
            row_number() over (partition by user_id order by known_on asc, recency desc) as place
        from profiles
        where {{ column }} is not null and {{ is_imputed_by('customer', column, 'model') }}

    ),

    evidence as (

        select
            known_on as arrival_day,
            'label' as feature,
            '' as token,
            label,
            count(*) as n
        from known
        where place = 1
        group by known_on, label
        union all
        select
            greatest(k.known_on, t.known_on) as arrival_day,
            t.feature,
            t.token,
            k.label,
            count(*) as n
        from known as k
        inner join tokens as t on k.user_id = t.user_id
        where k.place = 1
        group by greatest(k.known_on, t.known_on), t.feature, t.token, k.label

    ),

    asked as (

        select
            t.user_id as key,
            b.fit_day,
            t.feature,
            t.token
        from tokens as t
        cross join build as b
        where t.user_id in (select p.user_id from profiles as p where p.recency = 1 and p.{{ column }} is null)

    ),

    {{ predicted_by_naive_bayes('evidence') | indent(4) }}

    select
        p.key,
        p.label,
        p.confidence
    from predicted as p
    inner join {{ seed('imputation_rules') }} as r
        on r.record = 'customer' and r.column_name = '{{ column }}' and r.method = 'model'
    where p.confidence >= coalesce(cast(r.min_confidence as double), 0.8)
) as {{ column }}s
{{ "union all" if not loop.last }}
{% endfor %}
