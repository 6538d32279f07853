{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    unique_key='row_id',
    meta={'takes_up': 'rows_of_visitors'},
    pre_hook="{{ find_touched_visitors() }}",
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
-- An incremental build cuts again only the visitors that a changed event touches (macros/sessions.sql).
{% set incremental = is_incremental() %}
{% set gap = minutes(var('session_gap_minutes')) %}
with kept as (

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
        and v.row_id in (select r.row_id from rows_of_visitors as r)
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

told as (

    select
        k.*,
        coalesce(k.source_session_id, h.source_session_id) as told_session_id,
        'a:' || case
            when k.source_session_id is null then coalesce(h.anonymous_id, k.anonymous_id)
            else k.anonymous_id
        end as told_visitor
    from kept as k
    left join web_hits as h on k.row_id = h.row_id

),

---------- the visitor of events that name none: they go by all that their identity did

companies as (

    select
        v.row_id,
        v.identity,
        v.event_at,
        v.dedup_key as event_id,
        v.origin,
        v.source_session_id,
        coalesce(v.source_session_id, t.told_session_id) as told_session_id,
        'a:' || v.anonymous_id as visitor
    from {{ ref('int_events__validated') }} as v
    left join told as t on v.row_id = t.row_id
    where
        v.verdict = 'kept' and not {{ is_database_refund('v') }}
        and v.identity in (select n.identity from told as n where n.told_visitor is null)

),

company_starts as (

    select
        *,
        case when lag(event_at) over in_order >= event_at - {{ gap }} then 0 else 1 end as is_start
    from companies
    window in_order as (partition by identity order by event_at, event_id)

),

company_runs as (

    select
        *,
        sum(is_start) over (
            partition by identity order by event_at, event_id rows between unbounded preceding and current row
        ) as run_number
    from company_starts

),

company_neighbours as (

    select
        *,
        {{ last_known('visitor') }} over (session_order rows between unbounded preceding and current row) as session_before,
        {{ first_known('visitor') }} over (session_order rows between current row and unbounded following) as session_after,
        {{ last_known('visitor') }} over (run_order rows between unbounded preceding and current row) as run_before,
        {{ first_known('visitor') }} over (run_order rows between current row and unbounded following) as run_after
    from company_runs
    window
        session_order as (partition by identity, told_session_id order by event_at, event_id),
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
            case when told_session_id is not null then coalesce(session_before, session_after) end,
            run_before,
            run_after,
            identity
        ) as visitor
    from company_neighbours

),

---------- orders that no session id tells of, and the last web event before each

-- They are few: a join in time, rather than a window over every event.
astray as (

    select row_id, event_at, coalesce(told_visitor, identity) as follows
    from told
    where origin = 'database' and told_session_id is null

),

web_events as (

    select 'a:' || v.anonymous_id as follows, v.event_at, v.dedup_key as event_id, 'a:' || v.anonymous_id as visitor, v.source_session_id
    from {{ ref('int_events__validated') }} as v
    where
        v.verdict = 'kept' and v.origin <> 'database' and v.anonymous_id is not null
        and 'a:' || v.anonymous_id in (select a.follows from astray as a)
    union all
    select f.identity as follows, f.event_at, f.event_id, f.visitor, f.source_session_id
    from found as f
    where f.origin <> 'database' and f.identity in (select a.follows from astray as a)

),

web_moments as (

    select follows, event_at, visitor, source_session_id
    from (
        select *, row_number() over (partition by follows, event_at order by event_id desc) as place
        from web_events
    ) as hits
    where place = 1

),

led as (

    select
        a.row_id,
        w.visitor,
        w.source_session_id as chain,
        w.event_at >= a.event_at - {{ minutes(var('order_join_minutes')) }} as is_near
    from {{ asof_left_join(
        'astray as a', 'web_moments as w', [('a.follows', 'w.follows')], 'a.event_at', 'w.event_at'
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
        coalesce(t.told_visitor, case when l.is_near then l.visitor end, f.visitor) as visitor,
        coalesce(t.told_session_id, case when l.is_near then l.chain end) as chain
    from told as t
    left join led as l on t.row_id = l.row_id
    left join found as f on t.row_id = f.row_id

),

-- Of visitors with several logins, the events at which the login changes within a run.
shared_starts as (

    select
        *,
        case when lag(event_at) over in_order >= event_at - {{ gap }} then 0 else 1 end as is_start
    from placed
    where
        chain is null
        and visitor in (
            select p.visitor from placed as p where p.chain is null group by p.visitor having min(p.user_id) <> max(p.user_id)
        )
    window in_order as (partition by visitor order by event_at, event_id)

),

shared_runs as (

    select
        *,
        sum(is_start) over (
            partition by visitor order by event_at, event_id rows between unbounded preceding and current row
        ) as run_number
    from shared_starts

),

shared_logins as (

    select
        row_id,
        user_id,
        {{ last_known('user_id') }} over (
            partition by visitor, run_number order by event_at, event_id rows between unbounded preceding and 1 preceding
        ) as login_before
    from shared_runs

),

login_changes as (

    select row_id from shared_logins where user_id <> login_before

),

cut as (

    select
        p.*,
        case
            when p.chain is not null then 0
            when c.row_id is not null then 1
            when lag(p.event_at) over in_chain >= p.event_at - {{ gap }} then 0
            else 1
        end as is_start
    from placed as p
    left join login_changes as c on p.row_id = c.row_id
    window in_chain as (partition by p.visitor, p.chain order by p.event_at, p.event_id)

),

numbered as (

    select
        *,
        sum(is_start) over (
            partition by visitor, chain order by event_at, event_id rows between unbounded preceding and current row
        ) as run_number
    from cut

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
