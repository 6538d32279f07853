{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    unique_key='row_id',
    meta={
        'live': 'slice', 'change_set': 'int_events__new_rows', 'change_keys': ['raw_table', 'raw_rowid'], 'change_condition': 'true',
    },
    post_hook="{{ move_watermark('int_events__new_rows') }}",
) }}
-- Every raw row of an event, each with its verdict: kept, duplicate or quarantined, and why.
--
-- Errors first: a row that breaks an error rule is quarantined, and only a row that breaks none can make another its
-- duplicate. Otherwise a rejected row would hide its own correction.
--
-- A line in an earlier state of its order is superseded. It was kept until the next state, if it would be kept but for that, and goes
-- before the web's hits and copies as today's rows do; but it is no copy of a row of another state.
--
-- An incremental build validates new rows and, again, rows that share a group with them (a deduplication key, an order, a
-- busy day of one identity: macros/bots.sql), that waited for a customer, a product or an order, whose exchange rate or list price has
-- changed, or that were deleted.
-- depends_on: {{ ref('stg_shop__customers') }} {{ ref('stg_shop__products') }} {{ ref('int_reference__exchange_rates') }}
{% set rules = validation_rules() %}
{% set incremental = is_incremental() %}
{# A full build scans the table of new rows once for each question; an incremental one gathers its few candidates once. #}
{% set kept_once = '' if incremental else inlined() %}
{% set is_whole = 'raw_error is null and identity is not null and event_at is not null and event_type is not null' %}
with new_rows as {{ kept_once }} (

    select * from {{ ref('int_events__new_rows') }}

),

users as (

    select * from {{ ref('int_reference__known_users') }}

),

products as (

    select product_id, min(known_at) as known_at
    from {{ ref('int_reference__product_versions') }}
    group by product_id

),

{% if incremental %}
watermark as (

    select {{ watermark(this.identifier) }} as snapshot

),

newly_deleted as (

    {{ deleted_rows(this, 'row_id', newer_than='(select w.snapshot from watermark as w)') | indent(4) }}

),

replaced as (

    select
        t.raw_error,
        t.dedup_key,
        t.client_key,
        t.purchase_order_id,
        t.identity,
        t.event_type,
        t.event_at,
        t.event_day
    from {{ this }} as t
    where (t.raw_table, t.raw_rowid) in (select (a.raw_table, a.raw_rowid) from new_rows as a)
        or t.row_id in (select d.row_id from newly_deleted as d)

),

touched_days as (

    select identity, event_day from new_rows where identity is not null and event_day is not null
    union
    select identity, event_day from replaced where identity is not null and event_day is not null

),

-- Those that may be a bot's, or may have been.
busy_touched_days as (

    select identity, event_day
    from (
        select t.identity, t.event_day
        from {{ this }} as t
        where (t.identity, t.event_day) in (select (d.identity, d.event_day) from touched_days as d)
        union all
        select identity, event_day from new_rows
    ) as counted
    group by identity, event_day
    having count(*) >= {{ rows_of_a_busy_day() }}

),

-- Customers and products of whom a row was deleted, by its position. Nothing else may be left of them.
deleted_users as (

    {{ deleted_rows(
        ref('stg_shop__customers'), 'user_id', "'customers'", newer_than='(select w.snapshot from watermark as w)'
    ) | indent(4) }}

),

deleted_products as (

    {{ deleted_rows(
        ref('stg_shop__products'), 'product_id', "'products'", newer_than='(select w.snapshot from watermark as w)'
    ) | indent(4) }}

),

-- Rows whose exchange rate came, or was corrected, since.
converted as (

    select
        t.row_id,
        r.rate,
        r.quoted_on
    from {{ this }} as t
    inner join {{ ref('int_reference__exchange_rates') }} as r
        on t.currency = r.currency and t.event_day = r.rate_date
    where r.changed_in > (select w.snapshot from watermark as w)
        and coalesce(t.price, t.given_amount) is not null
        and (t.rate is distinct from r.rate or t.rate_quoted_on is distinct from r.quoted_on)

),

rows_to_recheck as (

    select row_id from converted
    union
    select t.row_id
    from {{ this }} as t
    inner join {{ ref('int_reference__product_versions') }} as p
        on
            t.product_id = p.product_id
            and t.available_at >= p.known_at
            and t.available_at < coalesce(p.known_until, timestamp '9999-12-31')
    where p.priced_in > (select w.snapshot from watermark as w) and t.list_price is distinct from p.price
    union
    select t.row_id
    from {{ this }} as t
    inner join users as u on t.user_id = u.user_id
    where u.changed_in > (select w.snapshot from watermark as w)
        and t.expects like '%customers%'
        and t.user_known_at is distinct from u.known_at
    union
    select t.row_id
    from {{ this }} as t
    inner join {{ ref('int_reference__product_versions') }} as p on t.product_id = p.product_id
    where p.arrived_in > (select w.snapshot from watermark as w)
        and (t.product_known_at is distinct from p.first_known_at or t.available_at >= p.known_at)
    union
    select t.row_id
    from {{ this }} as t
    where (t.user_id in (select u.user_id from deleted_users as u) and t.expects like '%customers%')
        or t.product_id in (select p.product_id from deleted_products as p)

),

-- Rows that came before and whose errors may be others now: their groups may have another survivor.
recheck_candidates as (

    select t.row_id, t.dedup_key, t.client_key, t.purchase_order_id
    from {{ this }} as t
    where (t.identity, t.event_day) in (select (d.identity, d.event_day) from busy_touched_days as d)
        or t.row_id in (select r.row_id from rows_to_recheck as r)

),

touched_keys as (

    select dedup_key from new_rows where {{ is_whole }}
    union
    select dedup_key from replaced where {{ is_whole }}
    union
    select dedup_key from recheck_candidates

),

touched_client_keys as (

    select client_key from new_rows where client_key is not null
    union
    select client_key from replaced where client_key is not null
    union
    select client_key from recheck_candidates where client_key is not null

),

touched_orders as (

    select purchase_order_id from new_rows where purchase_order_id is not null
    union
    select purchase_order_id from replaced where purchase_order_id is not null
    union
    select purchase_order_id from recheck_candidates where purchase_order_id is not null

),

known_rows as (

    select t.row_id, t.event_day
    from {{ this }} as t
    -- Of a raw row that came again, the states that it has now are new rows, and it has no other.
    where (t.raw_table, t.raw_rowid) not in (select (a.raw_table, a.raw_rowid) from new_rows as a)
        and (
            t.row_id in (select n.row_id from newly_deleted as n)
            or t.dedup_key in (select k.dedup_key from touched_keys as k)
            or t.client_key in (select k.client_key from touched_client_keys as k)
            or t.purchase_order_id in (select k.purchase_order_id from touched_orders as k)
            or t.row_id in (select d.row_id from recheck_candidates as d)
        )

),

-- Whole rows, of their days alone: the table is some 60 columns wide.
known_in_full as (

    select t.*
    from {{ this }} as t
    where t.event_day in (select k.event_day from known_rows as k) and t.row_id in (select k.row_id from known_rows as k)
    union all
    select t.*
    from {{ this }} as t
    where t.event_day is null and t.row_id in (select k.row_id from known_rows as k)

),

known as (

    select
        {{ all_but('k', ['rate', 'rate_quoted_on', 'price_reported', 'given_amount_reported', 'discount_reported']) }},
        case when c.row_id is null then k.rate else c.rate end as rate,
        case when c.row_id is null then k.rate_quoted_on else c.quoted_on end as rate_quoted_on,
        case
            when c.row_id is null then k.price_reported else {{ in_reporting_currency('k.price', 'c.rate') }}
        end as price_reported,
        case
            when c.row_id is null then k.given_amount_reported else {{ in_reporting_currency('k.given_amount', 'c.rate') }}
        end as given_amount_reported,
        case
            when c.row_id is null then k.discount_reported else {{ in_reporting_currency('k.discount', 'c.rate') }}
        end as discount_reported
    from known_in_full as k
    left join converted as c on k.row_id = c.row_id

),

{% endif %}
candidates as {{ kept_once }} (

    select
        {% if incremental %}
        cast(null as timestamp) as duplicate_key_since,
        cast(null as timestamp) as duplicate_client_key_since,
        cast(null as timestamp) as repeated_order_since,
        cast(null as timestamp) as repeated_order_until,
        false as is_over_rate,
        false as is_automated,
        {% endif %}
        {{ arrived_columns('a') }}
    from new_rows as a
    {% if incremental %}
    union all
    select
        k.duplicate_key_since,
        k.duplicate_client_key_since,
        k.repeated_order_since,
        k.repeated_order_until,
        k.is_over_rate,
        k.is_automated,
        {{ arrived_columns('k') }}
    from known as k
    {% endif %}

),

deleted as (

    {{ deleted_rows('candidates', 'row_id') | indent(4) }}
    union
    select row_id from candidates where is_order_deleted

),

-- All activity of one identity, including copies and rows with other errors, but not what is deleted.
activity as {{ kept_once }} (

    select row_id, identity, event_day, event_at, raw_available_at, origin, client_key, event_type, product_id
    from candidates
    where {{ is_whole }}
        and row_id not in (select d.row_id from deleted as d)

),

busy_days as (

    select identity, event_day
    from activity
    group by identity, event_day
    having count(*) >= {{ rows_of_a_busy_day() }}

),

-- Moments count, those of copies with their first: the items of one hit share its moment (a person's full cart is many rows), and what
-- is delivered twice happened once. In the order of their first arrival, so that what comes later never changes the verdict on what
-- came before.
moments as (

    select
        w.row_id,
        w.identity,
        w.event_day,
        w.raw_available_at,
        w.event_type,
        w.product_id,
        case when w.client_key is null then w.event_at else first_value(w.event_at) over copies end as moment
    from activity as w
    inner join busy_days as d on w.identity = d.identity and w.event_day = d.event_day
    where w.origin <> 'database'
    window copies as (partition by w.identity, w.event_day, w.client_key order by w.raw_available_at, w.event_at)

),

arrivals as {{ kept_once }} (

    select *, min(raw_available_at) over (partition by identity, event_day, moment) as first_arrival from moments

),

over_rate as (

    select row_id
    from (
        select row_id, dense_rank() over (partition by identity, event_day order by first_arrival, moment) as place
        from arrivals
    ) as places
    where place > {{ var('max_events_per_identity_day') }}

),

{{ automated_rows('arrivals') }}

joined as {{ kept_once }} (

    select
        c.*,
        {% if incremental %}
        case
            when (c.identity, c.event_day) in (select (d.identity, d.event_day) from touched_days as d)
                then o.row_id is not null
            else coalesce(c.is_over_rate, false)
        end as is_too_many,
        case
            when (c.identity, c.event_day) in (select (d.identity, d.event_day) from touched_days as d)
                then b.row_id is not null
            else coalesce(c.is_automated, false)
        end as seems_automated,
        {% else %}
        o.row_id is not null as is_too_many,
        b.row_id is not null as seems_automated,
        {% endif %}
        g.row_id is not null as is_deleted,
        u.known_at as user_first_known_at,
        p.known_at as product_first_known_at
    from candidates as c
    left join over_rate as o on c.row_id = o.row_id
    left join automated as b on c.row_id = b.row_id
    left join deleted as g on c.row_id = g.row_id
    left join users as u on c.user_id = u.user_id
    left join products as p on c.product_id = p.product_id

),

severities as (

    select
        {{ collect("case when severity = 'error' then rule_id end") }} as errors,
        {{ collect("case when severity = 'warn' then rule_id end") }} as warnings
    from {{ seed('validation_rules') }}

),

-- The rules that rows break, of the few that break any.
ruled as (

    select
        j.row_id,
        {{ list_within('j.broken', 's.warnings') }} as warnings,
        {{ list_within('j.broken', 's.errors') }} as errors
    from (
        select row_id, {{ list_of_true(rules) }} as broken
        from joined
        where {{ any_rule(rules) }}
    ) as j
    cross join severities as s

),

valid_rows as {{ kept_once }} (

    select *
    from candidates
    where {{ is_whole }}
        and row_id not in (select r.row_id from ruled as r where {{ list_size('r.errors') }} > 0)
        -- What it rests on came after its end: it never counted.
        and row_id not in (
            select w.row_id
            from candidates as w
            left join users as u on w.user_id = u.user_id
            left join products as p on w.product_id = p.product_id
            where w.superseded_at is not null and w.superseded_at <= {{ arrived_since('w', 'u.known_at', 'p.known_at') | indent(12) }}
        )

),

duplicate_keys as (

    {{ later_in_group('valid_rows', 'dedup_key', incremental, 'touched_keys') }}

),

duplicate_client_keys as (

    {{ later_in_group('valid_rows', 'client_key', incremental, 'touched_client_keys') }}

),

-- An order counts as the shop's database reports it, if it does; else by the hit of it that arrived first. That hit counts until the
-- database first reports the order in a state that counts; and, if no state of today does, from the end of the last that did. Times in
-- between are not made out: before the database's first report, such a hit is not seen; nor is a hit between two states that count, while
-- one does not (docs/decisions/0019-clean-events-have-a-validity.md).
order_origins as (

    select
        w.purchase_order_id,
        max(case when w.origin = 'database' and w.superseded_at is null then 1 else 0 end) as in_database,
        max(w.superseded_at) as database_until,
        min(case when w.origin = 'database' then {{ arrived_since('w', 'u.known_at', 'p.known_at') | indent(8) }} end) as database_since,
        count(distinct case when w.origin = 'database' then null else w.event_at end) as web_moments
    from valid_rows as w
    left join users as u on w.user_id = u.user_id
    left join products as p on w.product_id = p.product_id
    where w.purchase_order_id is not null
    group by w.purchase_order_id

),

first_hits as (

    select purchase_order_id, event_at as first_hit_at
    from (
        {{ placed_in_group(
            "(select * from valid_rows where origin <> 'database')", 'purchase_order_id',
            'select t.purchase_order_id from order_origins as t where t.web_moments > 1'
        ) }}
    ) as hits
    where place = 1

),

repeated_orders as (

    select
        w.row_id,
        case
            when w.event_at <> f.first_hit_at then {{ from_the_first() }}
            when t.in_database = 1 then t.database_since
        end as since,
        case when t.in_database = 0 and w.event_at = coalesce(f.first_hit_at, w.event_at) then t.database_until end as ended_at
    from valid_rows as w
    inner join order_origins as t on w.purchase_order_id = t.purchase_order_id
    left join first_hits as f on w.purchase_order_id = f.purchase_order_id
    where w.origin <> 'database' and (t.database_since is not null or w.event_at <> f.first_hit_at)

),

with_duplicates as (

    select
        j.*,
        coalesce(r.warnings, {{ empty_list() }}) as warnings,
        coalesce(r.errors, {{ empty_list() }}) as errors,
        {{ in_group(
            'dk', 'j.dedup_key', 'duplicate_key_since', incremental, 'touched_keys', 'dedup_key'
        ) }} as key_since,
        {{ in_group(
            'dc', 'j.client_key', 'duplicate_client_key_since', incremental, 'touched_client_keys', 'client_key'
        ) }} as client_key_since,
        {{ in_group(
            'ro', 'j.purchase_order_id', 'repeated_order_since', incremental, 'touched_orders', 'purchase_order_id'
        ) }} as order_since,
        {{ in_group(
            'ro', 'j.purchase_order_id', 'repeated_order_until', incremental, 'touched_orders', 'purchase_order_id', 'ended_at'
        ) }} as order_until
    from joined as j
    left join ruled as r on j.row_id = r.row_id
    left join duplicate_keys as dk on j.row_id = dk.row_id
    left join duplicate_client_keys as dc on j.row_id = dc.row_id
    left join repeated_orders as ro on j.row_id = ro.row_id

),

decided as (

    select
        r.*,
        case
            when r.superseded_at is not null then 'superseded'
            when {{ list_size('r.errors') }} > 0 then 'quarantined'
            when coalesce(r.key_since, r.client_key_since, r.order_since) is not null then 'duplicate'
            else 'kept'
        end as verdict,
        case
            when {{ list_size('r.errors') }} > 0 then r.errors
            else {{ list_of_true([
                ('duplicate_key', 'r.key_since is not null'),
                ('duplicate_event_id', 'r.client_key_since is not null'),
                ('repeated_order', 'r.order_since is not null'),
            ]) }}
        end as reasons,
        greatest(
            {{ arrived_since('r', 'r.user_first_known_at', 'r.product_first_known_at') | indent(12) }}, r.order_until
        ) as arrived_at,
        case
            when {{ list_size('r.errors') }} = 0 then least(r.key_since, r.client_key_since, r.order_since, r.superseded_at)
        end as ends_at
    from with_duplicates as r

),

dated as (

    select
        *,
        greatest(event_at, arrived_at) as available_at,
        case when ends_at > greatest(event_at, arrived_at) then ends_at end as kept_until
    from decided

)

select
    {{ arrived_columns('d') }},

    ---------- the verdict
    d.verdict,
    d.reasons,
    d.warnings,
    d.key_since is not null as is_duplicate_key,
    d.client_key_since is not null as is_duplicate_client_key,
    d.order_since is not null as is_repeated_order,
    d.key_since as duplicate_key_since,
    d.client_key_since as duplicate_client_key_since,
    d.order_since as repeated_order_since,
    d.order_until as repeated_order_until,
    d.is_too_many as is_over_rate,
    d.seems_automated as is_automated,

    ---------- what it rests on
    case when d.expects like '%customers%' then d.user_first_known_at end as user_known_at,
    v.first_known_at as product_known_at,
    d.arrived_at,
    d.available_at,
    d.kept_until,
    case when d.verdict = 'kept' or d.kept_until is not null then cast(d.available_at as date) end as arrival_day,
    cast(d.kept_until as date) as until_day,

    ---------- what the catalogue said by then
    v.brand,
    coalesce(v.category, d.category) as product_category,
    v.price as list_price,

    {{ pinned() }} as built_in
from dated as d
-- Not `or v.known_until is null`: a join on an `or` compares every event with every version.
left join {{ ref('int_reference__product_versions') }} as v
    on
        d.product_id = v.product_id
        and d.available_at >= v.known_at
        and d.available_at < coalesce(v.known_until, timestamp '9999-12-31')
