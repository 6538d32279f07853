{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    unique_key='row_id',
    meta={'live': 'slice', 'change_set': 'int_events__changed_rows'},
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- Kept events with their visitor and their session (macros/sessions.sql).
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

-- An identity's events without a visitor go by all others of it, also where this build need not place those again.
events as {{ inlined() }} (

    select
        v.row_id,
        v.dedup_key as event_id,
        v.identity,
        v.anonymous_id,
        v.event_at,
        v.origin,
        v.source_session_id
    from {{ ref('int_events__validated') }} as v
    where v.verdict = 'kept' and not {{ is_database_refund('v') }}

),

{{ sessions_of('events', ref('int_events__validated')) }}

select
    row_id,
    event_id,
    identity,
    visitor,
    event_at,
    chain,
    session_id,
    is_entry,
    {{ pinned() }} as built_in
from sessions
