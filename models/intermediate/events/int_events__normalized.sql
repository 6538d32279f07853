{{ config(materialized='view') }}
-- One vocabulary: event types, currencies, categories, devices, identities; and the keys that tell two rows are one event.
{# An engagement is many kinds of event; two kinds of one moment are no copies. #}
{# A line of an order keeps its key when the order's status changes. #}
{% set kind -%}
case
    when t.event_type = 'engagement' then lower(t.event_name)
    when t.event_type in ('pending_order', 'cancelled_order') then 'purchase'
    when t.event_type = 'refund_of_no_sale' then 'refund'
    else t.event_type
end
{%- endset %}
{% set key = [] %}
{% for column in var('dedup_key') %}
{% do key.append(kind if column == 'event_type' else column) %}
{% endfor %}
with unified as (

    select * from {{ ref('int_events__unified') }}

),

translated as (

    select
        u.*,
        -- What a line or a refund is, its order's status has said.
        case when u.raw_table in ('order_items', 'refunds') then u.event_name else t.event_type end as event_type,
        c.category,
        case
            when u.user_id is not null then 'u:' || u.user_id
            when u.anonymous_id is not null then 'a:' || u.anonymous_id
        end as identity,
        case
            when lower(u.device_name) in ('desktop', 'mobile', 'tablet') then lower(u.device_name)
            when lower(u.device_name) in ('phone', 'smartphone', 'app', 'ios', 'android') then 'mobile'
            when lower(u.device_name) in ('web', 'pc', 'computer', 'laptop') then 'desktop'
            when u.device_name is not null then 'other'
        end as device,
        cast(u.event_at as date) as event_day,
        -- A row without money has no rate. (As a condition of the join, this would make it one of every row with every rate.)
        case when coalesce(u.price, u.given_amount) is not null then cast(u.event_at as date) end as rate_day,
        {{ consent_texts('u.consent') }} as consent_texts,
        coalesce(u.currency, '{{ shop_setting("reporting_currency") }}') as money_currency
    from unified as u
    left join {{ seed('event_types') }} as t on {{ event_spelling('u.event_name') }} = {{ event_spelling('t.raw_name') }}
    left join {{ ref('int_reference__category_names') }} as c on {{ category_spelling('u.category_name') }} = c.spelling

),

consent as (

    {{ consent_words() | indent(4) }}

)

select
    {{ all_but('t', ['category_name', 'device_name', 'money_currency', 'currency', 'consent_texts', 'rate_day']) }},
    coalesce(t.currency, case when t.price is not null then t.money_currency end) as currency,
    t.currency is null and t.price is not null as is_currency_assumed,
    r.rate,
    r.quoted_on as rate_quoted_on,
    {{ in_reporting_currency('t.price', 'r.rate') }} as price_reported,
    {{ in_reporting_currency('t.given_amount', 'r.rate') }} as given_amount_reported,
    {{ in_reporting_currency('t.discount', 'r.rate') }} as discount_reported,
    {{ consent_meaning('t.consent_texts', 'w') | indent(4) }} as consent_meaning,
    {{ id_hash(key) }} as dedup_key,
    -- The second layer: a client's own id, within one source and product (GA-style items share their event's id).
    case when t.client_event_id is not null then {{ id_hash(['source', 'client_event_id', 'product_id', 'line_id']) }} end as client_key,
    -- The third layer: an order that is repeated, even if it does not count as a sale: its web hit does not count either.
    case when t.event_type in ('purchase', 'pending_order', 'cancelled_order') then t.order_id end as purchase_order_id
from translated as t
cross join consent as w
left join {{ ref('int_reference__exchange_rates') }} as r on t.money_currency = r.currency and t.rate_day = r.rate_date
