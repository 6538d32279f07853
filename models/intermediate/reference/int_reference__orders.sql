-- The states of each order: what events take from its header (their buyer, moment and currency, what they count as, and rules that they
-- break), and from when until when a build would have found it so. A header that says the same of all this changes no state, nor does one
-- that arrives after a newer one. Today's state has no known_until. Of a deleted order, the states that it had.
{% set taken = [
    'user_id', 'anonymous_id', 'source_session_id', 'currency', 'created_at', 'event_type', 'has_unknown_status', 'has_bad_money',
    'is_disordered'
] %}
with gone as (

    {{ deleted_rows(ref('stg_shop__orders'), 'raw_rowid', "'orders'") | indent(4) }}

),

versions as (

    select
        {{ all_but('s', ['user_id', 'anonymous_id', 'source_session_id', 'has_bad_money']) }},
        {{ known_id('s.user_id') }} as user_id,
        {{ known_id('s.anonymous_id') }} as anonymous_id,
        {{ known_id('s.source_session_id') }} as source_session_id,
        coalesce(k.event_type, 'purchase') as event_type,
        k.status as known_status,
        s.status is not null and k.status is null as has_unknown_status,
        s.has_bad_money or coalesce(
            {% for column in ['discount', 'tax', 'shipping', 'total'] %}
            coalesce(s.{{ column }} not between 0 and {{ limit('max_amount') }}, false){{ " or" if not loop.last }}
            {% endfor %}, false
        ) as has_bad_money,
        coalesce(
            s.created_at > s.paid_at or s.paid_at > s.shipped_at or s.created_at > s.shipped_at,
            false
        ) as is_disordered,
        g.raw_rowid is not null as is_deleted
    from {{ ref('stg_shop__orders') }} as s
    left join {{ seed('order_statuses') }} as k on {{ status_spelling('s.status') }} = k.raw_status
    left join gone as g on s.raw_rowid = g.raw_rowid
    where {{ is_usable_id('s.order_id') }} and s.raw_error is null

),

ranked as (

    select
        *,
        max(arrived_in) over (partition by order_id) as changed_in,
        min(case when is_deleted then 1 else 0 end) over (partition by order_id) as is_gone,
        row_number() over (partition by order_id order by is_deleted asc, {{ newest_version_first() }}) as recency
    from versions

),

-- The headers that were the newest of their order when they arrived. What was deleted says nothing, unless nothing else is left.
newest as (

    select *
    from (
        select *, min(recency) over (partition by order_id order by raw_available_at) as newest_by_then
        from ranked
        where is_gone = case when is_deleted then 1 else 0 end
    ) as arrivals
    where recency = newest_by_then

),

changes as (

    select
        *,
        (
            {% for column in taken %}
            (lag({{ column }}) over in_order is distinct from {{ column }}){{ " or" if not loop.last }}
            {% endfor %}
        ) as is_change
    from newest
    window in_order as (partition by order_id order by raw_available_at)

),

numbered as (

    select
        *,
        sum(case when is_change then 1 else 0 end) over (
            partition by order_id order by raw_available_at rows between unbounded preceding and current row
        ) as number
    from changes

),

described as (

    select
        *,
        min(raw_available_at) over (partition by order_id, number) as known_at,
        row_number() over (partition by order_id, number order by recency) as place
    from numbered

),

states as (

    select
        *,
        lead(known_at) over (partition by order_id order by number) as known_until
    from described
    where place = 1

)

select
    order_id,
    case when known_until is null then 0 else cast(number as integer) end as state_number,
    known_at,
    known_until,
    user_id,
    anonymous_id,
    source_session_id,
    known_status as status,
    status as raw_status,
    event_type,
    has_unknown_status,
    currency,
    created_at,
    paid_at,
    shipped_at,
    changed_in,
    is_deleted,
    {% for column in ['discount', 'tax', 'shipping', 'total'] %}
    {{ within(column, 0, limit('max_amount')) }} as {{ column }},
    {% endfor %}
    discount_code,
    is_tax_included,
    has_bad_money,
    is_disordered
from states
-- row_id has numbers for so many states.
where known_until is null or number <= {{ max_items() }}
