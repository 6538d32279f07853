{{ config(meta={'live': 'reference'}) }}
-- The login ids the shop's customer table knows, since when, and what they last said of consent.
with versions as (

    select
        user_id,
        raw_available_at,
        arrived_in,
        {{ consent_texts('consent') }} as consent_texts,
        case
            when consent is not null
                then row_number() over (partition by user_id, consent is not null order by {{ newest_version_first() }})
        end as recency
    from {{ ref('stg_shop__customers') }}
    where {{ is_usable_customer() | indent(4) }}

),

words as (

    {{ consent_words() | indent(4) }}

)

select
    v.user_id,
    min(v.raw_available_at) as known_at,
    max(v.arrived_in) as changed_in,
    max(case when v.recency = 1 then {{ consent_meaning('v.consent_texts', 'w') | indent(4) }} end) as consent_meaning
from versions as v
cross join words as w
group by v.user_id
