-- The newest version of every order header, and since when what events take from it is known: a buyer or a moment that
-- a later version brought must not be seen before that version had arrived. Of an order that is gone, the last that was said.
--
-- What its lines count as (a purchase, or no sale) follows the newest status, and is known since the first version that says so. A moment
-- between a payment and a cancellation therefore sees no purchase, though it saw one when it was now: history shows an order as it ended.
with gone as (

    {{ deleted_rows(ref('stg_shop__orders'), 'raw_rowid', "'orders'") | indent(4) }}

),

versions as (

    select
        {{ all_but('s', ['user_id', 'anonymous_id', 'source_session_id']) }},
        {{ known_id('s.user_id') }} as user_id,
        {{ known_id('s.anonymous_id') }} as anonymous_id,
        {{ known_id('s.source_session_id') }} as source_session_id,
        coalesce(k.event_type, 'purchase') as event_type,
        k.status as known_status,
        g.raw_rowid is not null as is_deleted
    from {{ ref('stg_shop__orders') }} as s
    left join {{ seed('order_statuses') }} as k on {{ status_spelling('s.status') }} = k.raw_status
    left join gone as g on s.raw_rowid = g.raw_rowid
    where {{ is_usable_id('s.order_id') }} and s.raw_error is null

),

ranked as (

    select
        *,
        min(raw_available_at) over (
            partition by order_id, user_id, anonymous_id, source_session_id, currency, created_at, event_type, is_deleted
        ) as known_at,
        max(arrived_in) over (partition by order_id) as changed_in,
        row_number() over (partition by order_id order by is_deleted asc, {{ newest_version_first() }}) as recency
    from versions

)

select
    order_id,
    user_id,
    anonymous_id,
    source_session_id,
    known_status as status,
    status as raw_status,
    event_type,
    status is not null and known_status is null as has_unknown_status,
    currency,
    created_at,
    paid_at,
    shipped_at,
    known_at,
    changed_in,
    is_deleted,
    {% for column in ['discount', 'tax', 'shipping', 'total'] %}
    {{ within(column, 0, limit('max_amount')) }} as {{ column }},
    {% endfor %}
    discount_code,
    is_tax_included,
    has_bad_money or coalesce(
        {% for column in ['discount', 'tax', 'shipping', 'total'] %}
        coalesce({{ column }} not between 0 and {{ limit('max_amount') }}, false){{ " or" if not loop.last }}
        {% endfor %}, false
    ) as has_bad_money,
    coalesce(
        created_at > paid_at or paid_at > shipped_at or created_at > shipped_at,
        false
    ) as is_disordered
from ranked
where recency = 1
