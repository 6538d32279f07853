{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    unique_key='row_id',
    meta={'takes_up': 'rows_of_sessions'},
    pre_hook="{{ find_touched_sessions() }}",
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- Kept events in their sessions. A session is what the source says or, where it says nothing, a run of one identity's
-- events without a gap longer than session_gap_minutes. An order of the shop's database joins the session of the same
-- order's web hit or, without one, of the last web event of its identity within order_join_minutes.
--
-- An incremental build takes up again only the sessions that a changed event touches (macros/sessions.sql).
{% set incremental = is_incremental() %}
with kept as (

    select
        v.row_id,
        v.identity,
        v.event_at,
        v.dedup_key as event_id,
        v.origin,
        v.source_session_id,
        case when v.origin = 'database' then v.purchase_order_id end as database_order_id
    from {{ ref('int_events__validated') }} as v
    where
        v.verdict = 'kept'
        {% if incremental %}
        and v.row_id in (select r.row_id from rows_of_sessions as r)
        {% endif %}

),

web_hits as (

    select
        purchase_order_id,
        identity,
        min(source_session_id) as source_session_id
    from {{ ref('int_events__validated') }}
    where
        is_repeated_order and origin <> 'database' and source_session_id is not null and purchase_order_id is not null
        {% if incremental %}
        and purchase_order_id in (select k.database_order_id from kept as k)
        {% endif %}
    group by purchase_order_id, identity

),

told as (

    select
        k.*,
        coalesce(k.source_session_id, h.source_session_id) as told_session_id
    from kept as k
    left join web_hits as h on k.database_order_id = h.purchase_order_id and k.identity = h.identity

),

-- Orders that no session id tells of, and the last web event before each. They are few: a join in time, rather than a window
-- over every event.
astray as (

    select row_id, identity, event_at from told where origin = 'database' and told_session_id is null

),

web_moments as (

    select identity, event_at, told_session_id
    from (
        select
            *,
            row_number() over (partition by identity, event_at order by event_id desc) as place
        from told
        where origin <> 'database' and identity in (select a.identity from astray as a)
    ) as hits
    where place = 1

),

led as (

    select
        a.row_id,
        w.event_at as last_web_at,
        w.told_session_id as last_web_session_id
    from {{ asof_left_join('astray as a', 'web_moments as w', [('a.identity', 'w.identity')], 'a.event_at', 'w.event_at') }}

),

chained as (

    select
        t.*,
        coalesce(
            t.told_session_id,
            case
                when l.last_web_at >= t.event_at - {{ minutes(var('order_join_minutes')) }} then l.last_web_session_id
            end
        ) as chain
    from told as t
    left join led as l on t.row_id = l.row_id

),

cut as (

    select
        *,
        case
            when chain is not null then 0
            when lag(event_at) over in_chain >= event_at - {{ minutes(var('session_gap_minutes')) }} then 0
            else 1
        end as is_start
    from chained
    window in_chain as (partition by identity, chain order by event_at, event_id)

),

numbered as (

    select
        *,
        sum(is_start) over (
            partition by identity, chain order by event_at, event_id rows between unbounded preceding and current row
        ) as run_number
    from cut

),

named as (

    select
        *,
        first_value(event_id) over (
            partition by identity, chain, run_number order by event_at, event_id
        ) as first_event_id
    from numbered

)

select
    row_id,
    event_id,
    identity,
    event_at,
    chain,
    {{ id_hash(['identity', 'first_event_id']) }} as session_id,
    event_id = first_event_id as is_entry,
    {{ pinned() }} as built_in
from named
