{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'live': 'slice', 'change_set': 'int_changes__identities', 'change_keys': ['identity']},
    post_hook="{{ move_watermark('int_cleaning__events') }}",
) }}
-- Which customer an identity belongs to, and from when until when that was what one knew. A visitor is a customer of
-- its own until the first login on it arrives; from then on it is that login's customer, for good. An event that is no longer kept
-- counts, too: a link does not move.
with events as (

    select event_id, identity, user_id, anonymous_id, event_at, available_at
    from {{ ref('int_cleaning__events') }}
    where {{ is_changed('int_changes__identities', ['identity']) }}
        or {{ is_changed('int_changes__identities', [("'a:' || anonymous_id", 'identity')]) }}

),

seen as (

    select identity, min(available_at) as known_from
    from (
        select identity, available_at from events
        union all
        select 'a:' || anonymous_id as identity, available_at from events where anonymous_id is not null
    ) as sightings
    where {{ is_changed('int_changes__identities', ['identity']) }}
    group by identity

),

logins as (

    select identity, user_id, available_at
    from (
        select
            'a:' || anonymous_id as identity,
            user_id,
            available_at,
            row_number() over (partition by anonymous_id order by available_at, event_at, event_id) as place
        from events
        where user_id is not null and anonymous_id is not null
    ) as sightings
    where place = 1

)

select
    s.identity,
    {{ uuid_v5('s.identity') }} as customer_id,
    s.known_from,
    l.available_at as known_to
from seen as s
left join logins as l on s.identity = l.identity
where l.available_at is null or s.known_from < l.available_at
union all
select
    l.identity,
    {{ uuid_v5("'u:' || l.user_id") }} as customer_id,
    l.available_at as known_from,
    cast(null as timestamp) as known_to
from logins as l
inner join seen as s on l.identity = s.identity
