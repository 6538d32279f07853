{# SELECT: the rows of `relation` with run_number. A run is one of `keys`'s events without a gap longer than session_gap_minutes; rows of
   which `always` holds begin one, those of which `never` holds do not. #}
{% macro numbered_runs(relation, keys, always=none, never=none) -%}
select
    *,
    sum(is_start) over (partition by {{ keys }} order by event_at, event_id rows between unbounded preceding and current row) as run_number
from (
    select
        *,
        case
            {%- if never %}
            when {{ never }} then 0
            {%- endif %}
            {%- if always %}
            when {{ always }} then 1
            {%- endif %}
            when lag(event_at) over in_order >= event_at - {{ minutes(var('session_gap_minutes')) }} then 0
            else 1
        end as is_start
    from {{ relation }}
    window in_order as (partition by {{ keys }} order by event_at, event_id)
) as starts
{%- endmacro %}

{#
  CTEs, of which the last is `sessions`: the visitor and session of each row of the CTE `kept`
  (row_id, event_id, identity, user_id, anonymous_id, event_at, origin, source_session_id, database_order_id).

  The visitor is the event's anonymous_id, also after a login. An event without one belongs to the visitor whom its
  identity had in the same session of the source or, where that is not known, in the same run of events. A session is what
  the source says or, where it says nothing, a run of one visitor's events without a gap longer than session_gap_minutes
  and without a change from one login to another. An order of the shop's database joins the visit of the same order's web
  hit or, without one, the session of the last web event of its visitor or identity within order_join_minutes. A refund in the
  shop's database is no visit, and has no session.

  `events`: a relation of all kept events, which decide the visitor of those without one. `hits`: a relation with the web's hits of orders.
  `at`: a column of all three, where events stand in several states of knowledge; each is divided into sessions by itself.
#}
{% macro sessions_of(events, hits, at=none) -%}
{%- set first = at ~ ', ' if at else '' -%}
-- What the web saw of an order that the database has. The hit of the same identity goes first; a guest, whom the database knows
-- by no id of the web, has the hit alone.
web_hits as (

    select {{ first }}row_id, source_session_id, anonymous_id
    from (
        select
            {{ 'k.' ~ first if at }}
            k.row_id,
            h.source_session_id,
            h.anonymous_id,
            row_number() over (
                partition by {{ 'k.' ~ first if at }}k.row_id
                order by
                    case when h.identity = k.identity then 0 else 1 end,
                    h.source_session_id nulls last,
                    h.anonymous_id nulls last
            ) as place
        from kept as k
        inner join {{ hits }} as h on k.database_order_id = h.purchase_order_id{{ ' and k.' ~ at ~ ' = h.' ~ at if at }}
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
    left join web_hits as h on k.row_id = h.row_id{{ ' and k.' ~ at ~ ' = h.' ~ at if at }}

),

---------- the visitor of events that name none, from all events of their identity

events_of_identities as (

    select
        {{ 'v.' ~ first if at }}
        v.row_id,
        v.identity,
        v.event_at,
        v.event_id,
        v.origin,
        v.source_session_id,
        coalesce(v.source_session_id, t.known_session_id) as known_session_id,
        'a:' || v.anonymous_id as visitor
    from {{ events }} as v
    left join with_web_hits as t on v.row_id = t.row_id{{ ' and v.' ~ at ~ ' = t.' ~ at if at }}
    where v.identity in (select n.identity from with_web_hits as n where n.known_visitor is null)

),

runs as (

    {{ numbered_runs('events_of_identities', first ~ 'identity') | indent(4) }}

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
        session_order as (partition by {{ first }}identity, known_session_id order by event_at, event_id),
        run_order as (partition by {{ first }}identity, run_number order by event_at, event_id)

),

found as (

    select
        {{ first }}
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

    select {{ first }}row_id, event_at, coalesce(known_visitor, identity) as follows
    from with_web_hits
    where origin = 'database' and known_session_id is null

),

web_events as (

    select
        {{ 'v.' ~ first if at }}
        'a:' || v.anonymous_id as follows,
        v.event_at,
        v.event_id,
        'a:' || v.anonymous_id as visitor,
        v.source_session_id
    from {{ events }} as v
    where
        v.origin <> 'database' and v.anonymous_id is not null
        and 'a:' || v.anonymous_id in (select a.follows from unplaced_orders as a)
    union all
    select {{ 'f.' ~ first if at }}f.identity as follows, f.event_at, f.event_id, f.visitor, f.source_session_id
    from found as f
    where f.origin <> 'database' and f.identity in (select a.follows from unplaced_orders as a)

),

web_moments as (

    select {{ first }}follows, event_at, visitor, source_session_id
    from (
        select *, row_number() over (partition by {{ first }}follows, event_at order by event_id desc) as place
        from web_events
    ) as hits
    where place = 1

),

last_web_events as (

    select
        {{ 'a.' ~ first if at }}
        a.row_id,
        w.visitor,
        w.source_session_id as chain,
        w.event_at >= a.event_at - {{ minutes(var('order_join_minutes')) }} as is_near
    from {{ asof_left_join(
        'unplaced_orders as a', 'web_moments as w', [('a.follows', 'w.follows')] + ([('a.' ~ at, 'w.' ~ at)] if at else []),
        'a.event_at', 'w.event_at'
    ) }}

),

---------- each visitor's sessions

placed as (

    select
        {{ 't.' ~ first if at }}
        t.row_id,
        t.event_id,
        t.identity,
        t.user_id,
        t.event_at,
        coalesce(t.known_visitor, case when l.is_near then l.visitor end, f.visitor) as visitor,
        coalesce(t.known_session_id, case when l.is_near then l.chain end) as chain
    from with_web_hits as t
    left join last_web_events as l on t.row_id = l.row_id{{ ' and t.' ~ at ~ ' = l.' ~ at if at }}
    left join found as f on t.row_id = f.row_id{{ ' and t.' ~ at ~ ' = f.' ~ at if at }}

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

    {{ numbered_runs('events_of_shared_devices', first ~ 'visitor') | indent(4) }}

),

logins_before as (

    select
        {{ first }}
        row_id,
        user_id,
        {{ last_known('user_id') }} over (
            partition by {{ first }}visitor, run_number order by event_at, event_id rows between unbounded preceding and 1 preceding
        ) as login_before
    from runs_of_shared_devices

),

login_changes as (

    select {{ first }}row_id from logins_before where user_id <> login_before

),

with_login_changes as (

    select
        p.*,
        c.row_id is not null as is_login_change
    from placed as p
    left join login_changes as c on p.row_id = c.row_id{{ ' and p.' ~ at ~ ' = c.' ~ at if at }}

),

numbered as (

    {{ numbered_runs('with_login_changes', first ~ 'visitor, chain', never='chain is not null', always='is_login_change') | indent(4) }}

),

named as (

    select
        *,
        first_value(event_id) over (
            partition by {{ first }}visitor, chain, run_number order by event_at, event_id
        ) as first_event_id
    from numbered

),

sessions as (

    select
        {{ first }}
        row_id,
        event_id,
        identity,
        visitor,
        event_at,
        chain,
        {{ id_hash(['visitor', 'first_event_id']) }} as session_id,
        event_id = first_event_id as is_entry
    from named

)
{%- endmacro %}

{# SQL: a list of a group's values of `column` whose `recency` is from 1, the newest, to `count`. #}
{% macro newest_of(column, count) -%}
{%- set values = [] -%}
{%- for place in range(1, count + 1) %}{% do values.append('max(case when recency = ' ~ place ~ ' then ' ~ column ~ ' end)') %}{% endfor -%}
{{ list_of_known(values) }}
{%- endmacro %}

{# SQL: whether a row is a refund in the shop's database: money moves, and nobody visits. #}
{% macro is_database_refund(alias=none) -%}
{%- set row = alias ~ '.' if alias else '' -%}
coalesce({{ row }}origin = 'database' and {{ row }}event_type in ('refund', 'refund_of_no_sale'), false)
{%- endmacro %}
