{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    unique_key='row_id',
    meta={'live': 'slice', 'change_set': 'int_events__changed_rows'},
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- Kept events with their visitor and their session (docs/decisions/0014-a-session-is-a-visitors.md).
--
-- The visitor is the event's anonymous_id, also after a login. An event without one belongs to the visitor whom its
-- identity had in the same session of the source or, where that is not known, in the same run of events. A session is what
-- the source says or, where it says nothing, a run of one visitor's events without a gap longer than session_gap_minutes
-- and without a change from one login to another. An order of the shop's database joins the visit of the same order's web
-- hit or, without one, the session of the last web event of its visitor or identity within order_join_minutes. A refund in the
-- shop's database is no visit, and has no session.
--
-- An incremental build cuts again all events of each visitor to whom a changed row belongs, belonged or may belong. A row with an
-- anonymous_id belongs to that visitor. One without goes by what else its identity did, so a change of an identity affects all of its
-- rows without an anonymous_id and every visitor that the identity had. All other visitors stay as they are.
-- depends_on: {{ ref('int_events__changed_rows') }}
{% set incremental = is_incremental() %}
{% if incremental %}
with changed as {{ kept_once() }} (

    select row_id, identity, anonymous_id, purchase_order_id
    from {{ ref('int_events__validated') }}
    where built_in > coalesce({{ watermark(this.identifier) }}, -1)

),

changed_visitors as {{ kept_once() }} (

    select {{ unfold("[identity, 'a:' || anonymous_id]") }} as visitor
    from changed
    union
    -- Where a changed row stood before.
    select {{ unfold('[identity, visitor]') }} as visitor
    from {{ this }}
    where row_id in (select c.row_id from changed as c)

),

-- Rows that go by others: those without an anonymous_id and, by their web hits, orders of the database.
dependent as {{ kept_once() }} (

    select v.row_id, v.identity, v.anonymous_id, v.purchase_order_id
    from {{ ref('int_events__validated') }} as v
    where v.verdict = 'kept' and v.anonymous_id is null and v.identity in (select c.visitor from changed_visitors as c)
    union
    select v.row_id, v.identity, v.anonymous_id, v.purchase_order_id
    from {{ ref('int_events__validated') }} as v
    where
        v.verdict = 'kept' and v.origin = 'database'
        and v.purchase_order_id in (select c.purchase_order_id from changed as c where c.purchase_order_id is not null)

),

affected_visitors as {{ kept_once() }} (

    select visitor from changed_visitors
    union
    select {{ unfold("[identity, 'a:' || anonymous_id]") }} as visitor from dependent
    union
    select visitor
    from {{ this }}
    where row_id in (select d.row_id from dependent as d)
    union
    select 'a:' || v.anonymous_id as visitor
    from {{ ref('int_events__validated') }} as v
    where
        v.anonymous_id is not null
        and (
            v.identity in (select d.identity from dependent as d)
            or v.purchase_order_id in (select d.purchase_order_id from dependent as d where d.purchase_order_id is not null)
        )

),

affected_rows as {{ kept_once() }} (

    select row_id
    from {{ this }}
    where visitor in (select a.visitor from affected_visitors as a where a.visitor is not null)
    union
    select row_id from changed
    union
    select row_id from dependent

),

{% else %}
with
{% endif %}
kept as (

    select
        v.row_id,
        v.identity,
        v.user_id,
        v.anonymous_id,
        v.event_at,
        v.dedup_key as event_id,
        v.origin,
        v.source_session_id,
        case when v.origin = 'database' then v.purchase_order_id end as database_order_id
    from {{ ref('int_events__validated') }} as v
    where
        v.verdict = 'kept' and not {{ is_database_refund('v') }}
        {% if incremental %}
        and v.row_id in (select a.row_id from affected_rows as a)
        {% endif %}

),

-- What the web saw of an order that the database has. The hit of the same identity goes first; a guest, whom the database knows
-- by no id of the web, has the hit alone.
web_hits as (

    select row_id, source_session_id, anonymous_id
    from (
        select
            k.row_id,
            h.source_session_id,
            h.anonymous_id,
            row_number() over (
                partition by k.row_id
                order by
                    case when h.identity = k.identity then 0 else 1 end,
                    h.source_session_id nulls last,
                    h.anonymous_id nulls last
            ) as place
        from kept as k
        inner join {{ ref('int_events__validated') }} as h on k.database_order_id = h.purchase_order_id
        where
            h.is_repeated_order and h.origin <> 'database'
            and (h.anonymous_id is not null or (h.source_session_id is not null and h.identity = k.identity))
    ) as hits
    where place = 1

),

with_web_hits as (

    select
        k.*,
        coalesce(k.source_session_id, h.source_session_id) as known_session_id,
        'a:' || case
            when k.source_session_id is null then coalesce(h.anonymous_id, k.anonymous_id)
            else k.anonymous_id
        end as known_visitor
    from kept as k
    left join web_hits as h on k.row_id = h.row_id

),

---------- the visitor of events that name none, from all events of their identity

events_of_identities as (

    select
        v.row_id,
        v.identity,
        v.event_at,
        v.dedup_key as event_id,
        v.origin,
        v.source_session_id,
        coalesce(v.source_session_id, t.known_session_id) as known_session_id,
        'a:' || v.anonymous_id as visitor
    from {{ ref('int_events__validated') }} as v
    left join with_web_hits as t on v.row_id = t.row_id
    where
        v.verdict = 'kept' and not {{ is_database_refund('v') }}
        and v.identity in (select n.identity from with_web_hits as n where n.known_visitor is null)

),

runs as (

    {{ numbered_runs('events_of_identities', 'identity') | indent(4) }}

),

neighbours as (

    select
        *,
        {{ last_known('visitor') }} over (session_order rows between unbounded preceding and current row) as session_before,
        {{ first_known('visitor') }} over (session_order rows between current row and unbounded following) as session_after,
        {{ last_known('visitor') }} over (run_order rows between unbounded preceding and current row) as run_before,
        {{ first_known('visitor') }} over (run_order rows between current row and unbounded following) as run_after
    from runs
    window
        session_order as (partition by identity, known_session_id order by event_at, event_id),
        run_order as (partition by identity, run_number order by event_at, event_id)

),

found as (

    select
        row_id,
        identity,
        event_at,
        event_id,
        origin,
        source_session_id,
        coalesce(
            visitor,
            case when known_session_id is not null then coalesce(session_before, session_after) end,
            run_before,
            run_after,
            identity
        ) as visitor
    from neighbours

),

---------- orders without a session id, and the last web event before each

-- They are few: a join in time, rather than a window over every event.
unplaced_orders as (

    select row_id, event_at, coalesce(known_visitor, identity) as follows
    from with_web_hits
    where origin = 'database' and known_session_id is null

),

web_events as (

    select 'a:' || v.anonymous_id as follows, v.event_at, v.dedup_key as event_id, 'a:' || v.anonymous_id as visitor, v.source_session_id
    from {{ ref('int_events__validated') }} as v
    where
        v.verdict = 'kept' and v.origin <> 'database' and v.anonymous_id is not null
        and 'a:' || v.anonymous_id in (select a.follows from unplaced_orders as a)
    union all
    select f.identity as follows, f.event_at, f.event_id, f.visitor, f.source_session_id
    from found as f
    where f.origin <> 'database' and f.identity in (select a.follows from unplaced_orders as a)

),

web_moments as (

    select follows, event_at, visitor, source_session_id
    from (
        select *, row_number() over (partition by follows, event_at order by event_id desc) as place
        from web_events
    ) as hits
    where place = 1

),

last_web_events as (

    select
        a.row_id,
        w.visitor,
        w.source_session_id as chain,
        w.event_at >= a.event_at - {{ minutes(var('order_join_minutes')) }} as is_near
    from {{ asof_left_join(
        'unplaced_orders as a', 'web_moments as w', [('a.follows', 'w.follows')], 'a.event_at', 'w.event_at'
    ) }}

),

---------- each visitor's sessions

placed as (

    select
        t.row_id,
        t.event_id,
        t.identity,
        t.user_id,
        t.event_at,
        coalesce(t.known_visitor, case when l.is_near then l.visitor end, f.visitor) as visitor,
        coalesce(t.known_session_id, case when l.is_near then l.chain end) as chain
    from with_web_hits as t
    left join last_web_events as l on t.row_id = l.row_id
    left join found as f on t.row_id = f.row_id

),

-- Of visitors with several logins, the events at which the login changes within a run.
events_of_shared_devices as (

    select *
    from placed
    where
        chain is null
        and visitor in (
            select p.visitor from placed as p where p.chain is null group by p.visitor having min(p.user_id) <> max(p.user_id)
        )

),

runs_of_shared_devices as (

    {{ numbered_runs('events_of_shared_devices', 'visitor') | indent(4) }}

),

logins_before as (

    select
        row_id,
        user_id,
        {{ last_known('user_id') }} over (
            partition by visitor, run_number order by event_at, event_id rows between unbounded preceding and 1 preceding
        ) as login_before
    from runs_of_shared_devices

),

login_changes as (

    select row_id from logins_before where user_id <> login_before

),

with_login_changes as (

    select
        p.*,
        c.row_id is not null as is_login_change
    from placed as p
    left join login_changes as c on p.row_id = c.row_id

),

numbered as (

    {{ numbered_runs('with_login_changes', 'visitor, chain', never='chain is not null', always='is_login_change') | indent(4) }}

),

named as (

    select
        *,
        first_value(event_id) over (
            partition by visitor, chain, run_number order by event_at, event_id
        ) as first_event_id
    from numbered

)

select
    row_id,
    event_id,
    identity,
    visitor,
    event_at,
    chain,
    {{ id_hash(['visitor', 'first_event_id']) }} as session_id,
    event_id = first_event_id as is_entry,
    {{ pinned() }} as built_in
from named
