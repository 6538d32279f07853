{{ config(
    materialized='incremental',
    incremental_strategy='changes',
    unique_key=['row_id', 'known_from'],
    meta={'live': 'slice', 'change_set': 'int_cleaning__changed_rows'},
    post_hook="{{ move_watermark('int_cleaning__changed_rows') }}",
) }}
-- Kept events with cleaned values beside the raw ones. A value of event day D is treated with the fits of day D-2.
--
-- An event has a version for each session that it was in, and for as long as it was kept; a line of an order, for each state of its order.
-- The versions with known_from <= t < known_to are the clean events that a build of all that had arrived by t would have. Those of today
-- have no known_to.
{% set groups = outlier_groups() %}
with events as (

    select
        v.*,
        {{ hour_of_week('v.event_at') }} as hour_of_week,
        {{ add_days('v.event_day', -1 * var('fit_lag_days')) }} as fit_day
    from {{ ref('int_events__validated') }} as v
    where {{ was_kept('v') }} and {{ is_changed('int_cleaning__changed_rows', [('v.row_id', 'row_id')]) }}

),

past_sessions as (

    select * from {{ ref('int_events__past_sessions') }}
    where {{ is_changed('int_cleaning__changed_rows', ['row_id']) }}

),

last_ends as (

    select row_id, max(known_to) as known_from from past_sessions group by row_id

),

sessions as (

    select row_id, session_id, is_entry, known_from, known_to from past_sessions
    union all
    select
        s.row_id,
        s.session_id,
        s.is_entry,
        p.known_from,
        cast(null as timestamp) as known_to
    from {{ ref('int_events__sessionized') }} as s
    left join last_ends as p on s.row_id = p.row_id
    where {{ is_changed('int_cleaning__changed_rows', [('s.row_id', 'row_id')]) }}

),

modes as (

    select * from {{ ref('int_cleaning__modes') }}

),

days as (

    select distinct fit_day from {{ ref('int_cleaning__outlier_bounds') }}

),

labels as (

    select
        l.fit_day,
        d.most_frequent as device,
        c.most_frequent as country
    from {{ asof_left_join(
        'days as l', "(select * from modes where measure = 'device' and group_by = 'all') as d", [], 'l.fit_day', 'd.valid_on'
    ) }}
    {{ asof_left_join('', "(select * from modes where measure = 'country' and group_by = 'all') as c", [], 'l.fit_day', 'c.valid_on') }}

),

-- The same of one kind of event, where a rule asks for it. No as-of join: after one, DuckDB joins the events in one thread.
labels_of_types as (

    select
        m.group_key as event_type,
        d.fit_day,
        -- Empty where the last fit is of no events, so that it is not passed over for an earlier one.
        nullif({{ last_by("case when m.measure = 'device' then coalesce(m.most_frequent, '') end", 'm.valid_on') }}, '') as device,
        nullif({{ last_by("case when m.measure = 'country' then coalesce(m.most_frequent, '') end", 'm.valid_on') }}, '') as country
    from days as d
    inner join modes as m on d.fit_day >= m.valid_on
    where m.group_by = 'event_type'
    group by m.group_key, d.fit_day

),

imputations as (

    {{ imputation_of('event', ['price', 'quantity', 'device', 'country', 'category']) | indent(4) }}

),

fitted as (

    select
        e.*,
        {% for measure, chain in groups.items() %}
        {% for bound in ['low', 'high', 'scale', 'action'] %}
        {{ narrowest(chain, bound) }} as {{ measure }}_{{ bound }},
        {% endfor %}
        {{ imputed_from(chain, 'i', measure) }} as {{ measure }}_usual,
        {% endfor %}
        e.product_id is not null
        and e.event_type in ('add_to_cart', 'remove_from_cart', 'purchase', 'refund') as needs_quantity,
        s.session_id,
        coalesce(s.is_entry, false) as is_entry,
        coalesce(s.known_from, e.available_at) as known_from,
        coalesce(s.known_to, e.kept_until) as known_to,
        coalesce(s.known_to = e.kept_until, s.known_to is null) as is_last_version,
        coalesce(case when i.device_by = 'event_type' then t.device end, l.device) as frequent_device,
        coalesce(case when i.country_by = 'event_type' then t.country end, l.country) as frequent_country,
        k.category as usual_category,
        case when k.category is not null then k.confidence end as category_confidence
    from events as e
    cross join imputations as i
    left join sessions as s on e.row_id = s.row_id
    left join labels as l on e.fit_day = l.fit_day
    left join labels_of_types as t on e.event_type = t.event_type and e.fit_day = t.fit_day
    left join {{ ref('int_cleaning__product_categories') }} as k
        on e.product_category is null and i.of_category and e.product_id = k.product_id and e.fit_day = k.fit_day
    {% for measure, chain in groups.items() %}
    {% for group_by, column, alias in chain %}
    left join {{ ref('int_cleaning__outlier_bounds') }} as {{ alias }}
        on
            {{ alias }}.measure = '{{ measure }}' and {{ alias }}.group_by = '{{ group_by }}'
            and {{ 'e.' ~ column if group_by != 'all' else column }} = {{ alias }}.group_key
            and e.fit_day = {{ alias }}.fit_day
    {% endfor %}
    {% endfor %}

),

treated as (

    select
        f.*,
        {% for measure, raw, places in [('price', 'price_reported', 4), ('quantity', 'quantity', 3)] %}
        {% set bounds = ['f.' ~ measure ~ '_low', 'f.' ~ measure ~ '_high', 'f.' ~ measure ~ '_scale'] %}
        {{ is_outlier('f.' ~ raw, *bounds) }} as {{ measure }}_is_outlier,
        cast(round(
            {{ treated('cast(f.' ~ raw ~ ' as double)', *bounds, action='f.' ~ measure ~ '_action') }}, {{ places }}
        ) as decimal(18, {{ places }})) as {{ measure }}_treated,
        {% endfor %}
        f.price_reported is null and f.product_id is not null as price_was_missing,
        f.quantity is null and f.needs_quantity as quantity_was_missing,
        f.device is null and f.origin <> 'database' as device_was_missing,
        f.country is null and f.origin <> 'database' as country_was_missing
    from fitted as f

),

filled as (

    select
        t.*,
        case
            when t.price_treated is null and t.product_id is not null and i.of_price
                then cast(round(t.price_usual, 4) as decimal(18, 4))
            else t.price_treated
        end as price_clean,
        case
            -- Money given back for how many nobody knows is the price of one (int_events__unified).
            when t.quantity_was_missing and i.of_quantity and t.event_type = 'refund' then 1
            when t.quantity_treated is null and t.needs_quantity and i.of_quantity
                then cast(round(coalesce(t.quantity_usual, 1), 3) as decimal(18, 3))
            else t.quantity_treated
        end as quantity_clean,
        case when t.device_was_missing and i.of_device then t.frequent_device else t.device end as device_clean,
        case when t.country_was_missing and i.of_country then t.frequent_country else t.country end as country_clean,
        -- The share of the category's prices up to this one, to the twentieth, in percent.
        case when c.n > 0 then {{ steps_reached('t.price_treated', 'c') }} end as price_percentile
    from treated as t
    cross join imputations as i
    left join {{ ref('int_cleaning__outlier_bounds') }} as c
        on
            c.measure = 'price' and c.group_by = 'category'
            and t.product_category = c.group_key and t.fit_day = c.fit_day

)

select
    ---------- ids
    row_id,
    dedup_key as event_id,
    session_id,
    is_entry,
    identity,
    user_id,
    anonymous_id,
    source,
    origin,

    ---------- what and when
    event_type,
    event_at,
    event_day,
    available_at,
    known_from,
    known_to,
    is_last_version,
    cast(known_from as date) as arrival_day,
    cast(known_to as date) as until_day,

    ---------- product
    product_id,
    coalesce(product_category, usual_category) as category,
    product_category is null and product_id is not null as category_was_missing,
    category_confidence,
    brand,
    order_id,
    {{ order_key() }} as order_key,
    line_id,
    list_price,

    ---------- values: cleaned, then as they came
    price_clean as price,
    price_reported as price_raw,
    price_is_outlier,
    price_was_missing,
    cast(price_percentile as integer) as price_percentile,
    quantity_clean as quantity,
    quantity as quantity_raw,
    quantity_is_outlier,
    quantity_was_missing,
    case
        when price_clean = price_reported and coalesce(quantity, quantity_clean, 1) = coalesce(quantity_clean, 1)
            and given_amount_reported is not null then given_amount_reported
        else {{ discounted('price_clean', 'quantity_clean', 'discount_reported') }}
    end as amount,
    coalesce(given_amount_reported, {{ discounted('price_reported', 'quantity', 'discount_reported') }}) as gross_amount,
    discount_reported as discount,
    currency,
    price as price_in_currency,

    ---------- context
    device_clean as device,
    device_was_missing,
    country_clean as country,
    country_was_missing,
    {{ pass_through() }},
    properties,
    warnings,

    {{ pinned() }} as built_in
from filled
