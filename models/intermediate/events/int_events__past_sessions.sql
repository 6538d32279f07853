{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    unique_key=['row_id', 'known_from'],
    meta={'live': 'past', 'change_set': 'int_events__changed_visitors', 'change_keys': ['visitor']},
    post_hook="{{ move_watermark('int_events__changed_visitors') }}",
) }}
-- The sessions that events were in before their last one, and until when (docs/decisions/0019-clean-events-have-a-validity.md).
--
-- Most events arrive in order, and an event that follows all others of a visit changes nothing about them. So the events of each visitor
-- are cut into islands, beyond which nothing reaches, and only the moments at which an island changed are looked at: the arrival of
-- an event before others, or the end of one that the shop's database replaced or changed. At each of them the events that had arrived
-- before are divided into sessions by the same SQL as those of today.
--
-- An event is looked at among the events of each visitor that it may have belonged to, and its sessions are those of that visitor.
-- depends_on: {{ ref('int_events__changed_visitors') }}
{% set incremental = is_incremental() %}
{% set reach = minutes([var('session_gap_minutes'), var('order_join_minutes')] | max) %}
with {% if incremental %}changed as {{ kept_once() }} (

    {{ changed_keys(ref('int_events__changed_visitors'), ['visitor'], this.identifier) }}

),

-- The changed visitors, and the identities whose rows may be theirs.
asked as {{ kept_once() }} (

    select visitor from changed
    union
    select v.identity as visitor
    from {{ ref('int_events__validated') }} as v
    where 'a:' || v.anonymous_id in (select c.visitor from changed as c)
    union
    select v.identity as visitor
    from {{ ref('int_events__validated') }} as v
    inner join {{ ref('int_events__validated') }} as h on v.purchase_order_id = h.purchase_order_id
    where v.origin = 'database' and 'a:' || h.anonymous_id in (select c.visitor from changed as c)

),

{% endif %}
known_rows as {{ kept_once() }} (

    select
        v.row_id,
        v.identity,
        v.user_id,
        v.anonymous_id,
        'a:' || v.anonymous_id as visitor,
        v.event_at,
        v.dedup_key as event_id,
        v.origin,
        v.source_session_id,
        case when v.origin = 'database' then v.purchase_order_id end as database_order_id,
        v.arrived_at,
        v.available_at,
        v.kept_until
    from {{ ref('int_events__validated') }} as v
    where
        {{ was_kept('v') }} and not {{ is_database_refund('v') }}
        {% if incremental %}
        and (v.identity in (select a.visitor from asked as a) or 'a:' || v.anonymous_id in (select a.visitor from asked as a))
        {% endif %}

),

hits as {{ kept_once() }} (

    select purchase_order_id, identity, anonymous_id, source_session_id, origin, is_repeated_order, arrived_at
    from {{ ref('int_events__validated') }}
    where
        is_repeated_order and origin <> 'database'
        and purchase_order_id in (select k.database_order_id from known_rows as k where k.database_order_id is not null)

),

---------- the events of each visitor that may have changed

-- Events that go by others, and the visitors that they may have had.
dependents as {{ kept_once() }} (

    select row_id, identity, visitor, database_order_id
    from known_rows
    where anonymous_id is null or (origin = 'database' and source_session_id is null)

),

candidates as {{ kept_once() }} (

    select row_id, identity, identity as visitor from dependents
    union
    select row_id, identity, visitor from dependents
    where visitor is not null
    union
    select d.row_id, d.identity, k.visitor
    from dependents as d
    inner join known_rows as k on d.identity = k.identity
    where k.visitor is not null
    union
    select d.row_id, d.identity, 'a:' || h.anonymous_id as visitor
    from dependents as d
    inner join hits as h on d.database_order_id = h.purchase_order_id
    where h.anonymous_id is not null

),

-- Of all other visitors, the sessions of which an event arrived before the first one. Where the source has no sessions, the visitors of
-- whom any event arrived before an earlier one.
first_events as {{ kept_once() }} (

    select
        k.visitor,
        k.source_session_id,
        n.session_id,
        max(case when n.is_entry then k.event_at end) as event_at,
        max(case when n.is_entry then k.event_id end) as event_id,
        max(case when n.is_entry then k.arrived_at end) as arrived_at,
        min(k.arrived_at) as first_arrived_at
    from known_rows as k
    inner join {{ ref('int_events__sessionized') }} as n on k.row_id = n.row_id
    where k.source_session_id is not null and k.visitor is not null
    group by k.visitor, k.source_session_id, n.session_id

),

-- An event that is no longer kept, of a session that began before it, was in that session and changed nothing, if nothing else did.
followers as {{ kept_once() }} (

    select
        k.row_id,
        k.visitor,
        k.source_session_id,
        f.session_id,
        k.available_at as known_from,
        k.kept_until as known_to
    from known_rows as k
    inner join first_events as f on k.visitor = f.visitor and k.source_session_id = f.source_session_id
    where
        k.kept_until is not null and k.origin <> 'database'
        and k.visitor not in (select c.visitor from candidates as c)
        and f.arrived_at = f.first_arrived_at and f.arrived_at <= k.arrived_at
        and (f.event_at < k.event_at or (f.event_at = k.event_at and f.event_id < k.event_id))

),

disordered as {{ kept_once() }} (

    select visitor, source_session_id from first_events
    where arrived_at > first_arrived_at
    union
    select visitor, source_session_id from known_rows
    where
        kept_until is not null and source_session_id is not null
        and row_id not in (select f.row_id from followers as f)

),

disordered_without_session as {{ kept_once() }} (

    select distinct visitor
    from (
        select
            visitor,
            kept_until,
            arrived_at < max(arrived_at) over (
                partition by visitor order by event_at, event_id rows between unbounded preceding and 1 preceding
            ) as is_overtaking
        from known_rows
        where visitor is not null and source_session_id is null
    ) as arrivals
    where is_overtaking or kept_until is not null

),

members as {{ kept_once() }} (

    select visitor as owner, row_id from candidates
    union
    -- They go by all events of their identity.
    select c.visitor as owner, k.row_id
    from candidates as c
    inner join known_rows as k on c.identity = k.identity
    union
    select visitor as owner, row_id from known_rows
    where visitor in (select c.visitor from candidates as c)
    union
    select visitor as owner, row_id from known_rows
    where source_session_id is null and visitor in (select d.visitor from disordered_without_session as d)
    union
    select k.visitor as owner, k.row_id
    from known_rows as k
    inner join disordered as d on k.visitor = d.visitor and k.source_session_id = d.source_session_id

),

events as {{ kept_once() }} (

    select
        m.owner,
        m.owner in (select c.visitor from candidates as c) as has_dependents,
        k.*
    from members as m
    inner join known_rows as k on m.row_id = k.row_id
    {% if incremental %}
    where m.owner in (select c.visitor from changed as c)
    {% endif %}

),

---------- islands: a session of the source reaches from its first to its last event

source_sessions as (

    select owner, source_session_id, min(event_at) as begins_at, max(event_at) as ends_at
    from events
    where source_session_id is not null
    group by owner, source_session_id

),

sessions_of_hits as (

    select e.owner, e.row_id, min(s.begins_at) as begins_at, max(s.ends_at) as ends_at
    from events as e
    inner join hits as h on e.database_order_id = h.purchase_order_id
    inner join source_sessions as s on e.owner = s.owner and h.source_session_id = s.source_session_id
    group by e.owner, e.row_id

),

spans as (

    select
        e.*,
        case when e.kept_until is null then e.arrived_at end as lasting_at,
        least(e.event_at, s.begins_at, h.begins_at) as begins_at,
        greatest(e.event_at, s.ends_at, h.ends_at) + {{ reach }} as reaches_to
    from events as e
    left join source_sessions as s on e.owner = s.owner and e.source_session_id = s.source_session_id
    left join sessions_of_hits as h on e.owner = h.owner and e.row_id = h.row_id

),

borders as (

    select
        *,
        max(reaches_to) over (
            partition by owner order by begins_at, row_id rows between unbounded preceding and 1 preceding
        ) as reached
    from spans

),

islands as {{ kept_once() }} (

    select
        *,
        sum(case when begins_at > reached then 1 else 0 end) over (
            partition by owner order by begins_at, row_id rows between unbounded preceding and current row
        ) as island
    from borders

),

---------- the moments at which one changed

overtaken as (

    select
        *,
        min(arrived_at) over (
            partition by owner, island order by event_at desc, event_id desc rows between unbounded preceding and 1 preceding
        ) < arrived_at as is_late,
        -- What changes nothing about the sessions of others: an event within a session of the source, or between two that stand together
        -- (and go on to do so).
        not has_dependents and case
            when source_session_id is not null
                then min(lasting_at) over (in_session rows between unbounded preceding and 1 preceding) <= arrived_at
            else
                lag(lasting_at) over in_session <= arrived_at
                and lead(lasting_at) over in_session <= arrived_at
                and lead(event_at) over in_session <= lag(event_at) over in_session + {{ minutes(var('session_gap_minutes')) }}
                and coalesce(
                    min(user_id) over (partition by owner, island) = max(user_id) over (partition by owner, island), true
                )
        end as is_inside,
        -- The first one that names a visitor decides about those before it.
        anonymous_id is not null and has_dependents and coalesce(
            lag(anonymous_id is null) over (partition by owner, island, identity order by event_at, event_id)
            or lag(anonymous_id is null) over (partition by owner, island, identity, source_session_id order by event_at, event_id),
            false
        ) as is_first_of_visitor
    from islands
    window in_session as (partition by owner, island, source_session_id order by event_at, event_id)

),

moments as {{ kept_once() }} (

    select owner, island, arrived_at as moment
    from overtaken
    where (is_late and not coalesce(is_inside, false)) or is_first_of_visitor
    union
    select owner, island, kept_until as moment from islands
    where kept_until is not null
    union
    select i.owner, i.island, h.arrived_at as moment
    from islands as i
    inner join hits as h on i.database_order_id = h.purchase_order_id and i.arrived_at < h.arrived_at

),

states as {{ kept_once() }} (

    select
        owner,
        island,
        moment,
        row_number() over (partition by owner, island order by moment) as place,
        lag(moment) over (partition by owner, island order by moment) as previous_moment,
        row_number() over (order by owner, island, moment) as state_id
    from moments

),

---------- the sessions of all that had arrived before each

kept as {{ kept_once() }} (

    select
        s.state_id,
        i.row_id,
        i.event_id,
        i.identity,
        i.user_id,
        i.anonymous_id,
        i.event_at,
        i.origin,
        i.source_session_id,
        i.database_order_id
    from states as s
    inner join islands as i
        on
            s.owner = i.owner
            and s.island = i.island
            and s.moment > i.arrived_at
            and s.moment <= coalesce(i.kept_until, timestamp '9999-12-31')

),

known_hits as (

    select s.state_id, h.*
    from (select distinct state_id, database_order_id from kept where database_order_id is not null) as o
    inner join states as s on o.state_id = s.state_id
    inner join hits as h on o.database_order_id = h.purchase_order_id and s.moment > h.arrived_at

),

{{ sessions_of('kept', 'known_hits', at='state_id') }},

last_states as (

    select owner, island, max(place) as place from states group by owner, island

),

steps as (

    select
        s.owner,
        s.island,
        s.place,
        n.row_id,
        n.session_id,
        n.is_entry,
        greatest(i.arrived_at, i.available_at, s.previous_moment) as known_from,
        s.moment as known_to
    from sessions as n
    inner join states as s on n.state_id = s.state_id and n.visitor = s.owner
    inner join islands as i on s.owner = i.owner and n.row_id = i.row_id
    union all
    select
        i.owner,
        i.island,
        s.place + 1 as place,
        n.row_id,
        n.session_id,
        n.is_entry,
        cast(null as timestamp) as known_from,
        cast(null as timestamp) as known_to
    from {{ ref('int_events__sessionized') }} as n
    inner join islands as i on n.row_id = i.row_id and n.visitor = i.owner
    inner join last_states as s on i.owner = s.owner and i.island = s.island

),

changes as (

    select
        *,
        lag(place) over in_order as previous_place,
        lag(session_id) over in_order as previous_session_id
    from steps
    where known_to is null or known_from < known_to
    window in_order as (partition by owner, row_id order by place)

),

versions as (

    select
        *,
        sum(case when place = previous_place + 1 and session_id = previous_session_id then 0 else 1 end) over (
            partition by owner, row_id order by place rows between unbounded preceding and current row
        ) as version
    from changes

)

select
    row_id,
    owner as visitor,
    session_id,
    min(known_from) as known_from,
    max(known_to) as known_to,
    is_entry,
    {{ pinned() }} as built_in
from versions
group by row_id, owner, version, session_id, is_entry
-- The session that an event is in now goes on, whatever it was called when.
having count(*) = count(known_to)
union all
select
    row_id,
    visitor,
    session_id,
    known_from,
    known_to,
    false as is_entry,
    {{ pinned() }} as built_in
from followers
where
    (visitor, source_session_id) not in (select (d.visitor, d.source_session_id) from disordered as d)
    {% if incremental %}
    and visitor in (select c.visitor from changed as c)
    {% endif %}
