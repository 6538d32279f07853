{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    meta={'change_set': 'int_changes__events', 'change_keys': ['event_day']},
    post_hook="{{ move_watermark('int_cleaning__events') }}",
) }}
-- Which columns are missing together, and which of them were imputed: how many events of a day have which pattern. From these few rows,
-- audits work out all shares and tests, without reading events again.
{% set plain = audited_columns() | reject('in', imputed_columns()) | list %}
with events as (

    select *
    from {{ ref('int_cleaning__events') }}
    where known_to is null and {{ is_changed('int_changes__events', ['event_day']) }}

),

-- Of the same day, so that a day can be counted by itself.
buying_sessions as (

    select distinct
        session_id,
        event_day
    from events
    where event_type = 'purchase'

),

patterns as (

    select
        e.event_day,
        e.source,
        e.event_type,
        case when not e.device_was_missing then e.device end as device,
        b.session_id is not null as in_buying_session,
        {{ pattern_of(imputed_columns(), 'e.#_was_missing') | indent(8) }}
        || substr({{ pattern_of(plain, 'e.# is null') | indent(8) }}, 2) as missing,
        {{ pattern_of(imputed_columns(), 'e.#_was_missing and e.# is not null') | indent(8) }} as imputed
    from events as e
    left join buying_sessions as b on e.session_id = b.session_id and e.event_day = b.event_day

)

select
    event_day,
    source,
    event_type,
    device,
    in_buying_session,
    missing,
    imputed,
    cast(count(*) as bigint) as events
from patterns
group by event_day, source, event_type, device, in_buying_session, missing, imputed
