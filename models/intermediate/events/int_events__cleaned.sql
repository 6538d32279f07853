{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook=["{{ find_rows_to_clean() }}", "{{ forget_rows_to_clean() }}"],
    post_hook="{{ move_watermark('int_events__validated') }}",
) }}
-- Kept events with cleaned values beside the raw ones. A value of event day D is treated with the fits of day D-2.
{% set groups = {'product_id': 'product_id', 'category': 'product_category', 'event_type': 'event_type'} %}
with events as (

    select
        v.*,
        {{ add_days('v.event_day', -1 * var('fit_lag_days')) }} as fit_day
    from {{ ref('int_events__validated') }} as v
    where v.verdict = 'kept'
    {% if is_incremental() %}
        and v.row_id in (select r.row_id from rows_to_clean as r)
    {% endif %}

),

sessions as (

    select row_id, session_id from {{ ref('int_events__sessionized') }}
    {% if is_incremental() %}
    where row_id in (select r.row_id from rows_to_clean as r)
    {% endif %}

),

fits as (

    select * from {{ ref('int_fits__numbers') }}

),

modes as (

    select * from {{ ref('int_fits__modes') }}

),

rules as (

    select
        e.row_id,
        po.action as price_outlier_action,
        {{ group_of('po.group_by', groups) }} as price_outlier_group,
        po.group_by as price_outlier_by,
        qo.action as quantity_outlier_action,
        {{ group_of('qo.group_by', groups) }} as quantity_outlier_group,
        qo.group_by as quantity_outlier_by
    from events as e
    left join (select * from {{ ref('outlier_rules') }} where column_name = 'price') as po on true
    left join (select * from {{ ref('outlier_rules') }} where column_name = 'quantity') as qo on true

),

grouped as (

    select
        e.row_id,
        e.event_type,
        e.product_id,
        e.product_category,
        e.fit_day,
        e.price_reported,
        e.quantity,
        r.price_outlier_by,
        r.price_outlier_group,
        r.quantity_outlier_by,
        r.quantity_outlier_group
    from events as e
    inner join rules as r on e.row_id = r.row_id

),

-- The fits that are asked for, each once: far fewer than events.
asked as (

    select distinct 'price' as measure, price_outlier_by as group_by, price_outlier_group as group_key, fit_day from grouped
    union
    select distinct 'quantity', quantity_outlier_by, quantity_outlier_group, fit_day from grouped
    union
    select distinct 'price', 'product_id', product_id, fit_day from grouped
    union
    select distinct 'price', 'category', product_category, fit_day from grouped
    union
    select distinct 'price', 'all', 'all', fit_day from grouped
    union
    select distinct 'quantity', 'event_type', event_type, fit_day from grouped
    union
    select distinct 'quantity', 'all', 'all', fit_day from grouped

),

answered as (

    select
        a.measure,
        a.group_by,
        a.group_key,
        a.fit_day,
        {{ all_but('f', ['measure', 'group_by', 'group_key', 'valid_on']) }}
    from {{ asof_left_join(
        'asked as a', 'fits as f',
        [('a.measure', 'f.measure'), ('a.group_by', 'f.group_by'), ('a.group_key', 'f.group_key')],
        'a.fit_day', 'f.valid_on'
    ) }}

),

-- The limits of each group and day, worked out once.
limits as (

    select
        a.measure,
        a.group_by,
        a.group_key,
        a.fit_day,
        {{ outlier_bound('o', 'a', 'low') }} as low,
        {{ outlier_bound('o', 'a', 'high') }} as high
    from answered as a
    inner join {{ ref('outlier_rules') }} as o on a.measure = o.column_name and a.group_by = o.group_by

),

labels_asked as (

    select distinct fit_day from events

),

labels as (

    select
        l.fit_day,
        d.most_frequent as device,
        c.most_frequent as country
    from {{ asof_left_join(
        'labels_asked as l', "(select * from modes where measure = 'device') as d", [], 'l.fit_day', 'd.valid_on'
    ) }}
    {{ asof_left_join('', "(select * from modes where measure = 'country') as c", [], 'l.fit_day', 'c.valid_on') }}

),

imputations as (

    select
        max(case when column_name = 'price' then action end) = 'impute' as of_price,
        max(case when column_name = 'price' then group_by end) as price_by,
        max(case when column_name = 'quantity' then action end) = 'impute' as of_quantity,
        max(case when column_name = 'quantity' then group_by end) as quantity_by,
        max(case when column_name = 'device' then action end) = 'impute' as of_device,
        max(case when column_name = 'country' then action end) = 'impute' as of_country
    from {{ ref('imputation_rules') }}
    where record = 'event'

),

treated as (

    select
        e.*,
        s.session_id,
        pl.low as price_low,
        pl.high as price_high,
        ql.low as quantity_low,
        ql.high as quantity_high,
        coalesce(e.price_reported < pl.low or e.price_reported > pl.high, false) as price_is_outlier,
        coalesce(e.quantity < ql.low or e.quantity > ql.high, false) as quantity_is_outlier,
        cast(round({{ treated('cast(e.price_reported as double)', 'pl.low', 'pl.high', 'r.price_outlier_action') }}, 4) as decimal(18, 4)) as price_treated,
        cast(round({{ treated('cast(e.quantity as double)', 'ql.low', 'ql.high', 'r.quantity_outlier_action') }}, 3) as decimal(18, 3)) as quantity_treated,
        e.price_reported is null and e.product_id is not null as price_was_missing,
        e.quantity is null and e.product_id is not null
            and e.event_type in ('add_to_cart', 'remove_from_cart', 'purchase', 'refund') as quantity_was_missing,
        e.device is null and e.origin <> 'database' as device_was_missing,
        e.country is null and e.origin <> 'database' as country_was_missing
    from events as e
    inner join rules as r on e.row_id = r.row_id
    left join sessions as s on e.row_id = s.row_id
    left join limits as pl
        on pl.measure = 'price' and r.price_outlier_by = pl.group_by and r.price_outlier_group = pl.group_key
        and e.fit_day = pl.fit_day
    left join limits as ql
        on ql.measure = 'quantity' and r.quantity_outlier_by = ql.group_by and r.quantity_outlier_group = ql.group_key
        and e.fit_day = ql.fit_day

),

filled as (

    select
        t.*,
        -- A group that is too young to have a median borrows that of the next wider one.
        case
            when t.price_treated is null and t.product_id is not null and i.of_price
                then cast(round(coalesce(
                    case when i.price_by = 'product_id' then fp.q50 end,
                    case when i.price_by in ('product_id', 'category') then fc.q50 end,
                    fa.q50
                ), 4) as decimal(18, 4))
            else t.price_treated
        end as price_clean,
        case
            when t.quantity_was_missing and i.of_quantity
                then cast(round(coalesce(case when i.quantity_by = 'event_type' then qt.q50 end, qa.q50, 1), 3) as decimal(18, 3))
            else t.quantity_treated
        end as quantity_clean,
        case when t.device_was_missing and i.of_device then l.device else t.device end as device_clean,
        case when t.country_was_missing and i.of_country then l.country else t.country end as country_clean,
        case when fc.n is null then null else (
            {%- for step in quantile_steps() %}
            case when t.price_treated >= fc.q{{ '%02d' % step }} then 1 else 0 end{{ " +" if not loop.last }}
            {%- endfor %}
        ) end as price_rank
    from treated as t
    cross join imputations as i
    left join answered as fp
        on fp.measure = 'price' and fp.group_by = 'product_id' and t.product_id = fp.group_key and t.fit_day = fp.fit_day
        and t.price_treated is null
    left join answered as fc
        on fc.measure = 'price' and fc.group_by = 'category' and t.product_category = fc.group_key and t.fit_day = fc.fit_day
    left join answered as fa
        on fa.measure = 'price' and fa.group_by = 'all' and t.fit_day = fa.fit_day and t.price_treated is null
    left join answered as qt
        on qt.measure = 'quantity' and qt.group_by = 'event_type' and t.event_type = qt.group_key and t.fit_day = qt.fit_day
        and t.quantity_was_missing
    left join answered as qa
        on qa.measure = 'quantity' and qa.group_by = 'all' and t.fit_day = qa.fit_day and t.quantity_was_missing
    left join labels as l on t.fit_day = l.fit_day

)

select
    ---------- ids
    row_id,
    dedup_key as event_id,
    session_id,
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
    arrival_day,

    ---------- product
    product_id,
    product_category as category,
    brand,
    order_id,
    -- A purchase without an order id is an order of its own, of one identity at one moment.
    case when event_type = 'purchase' then coalesce(order_id, identity || '@' || cast(event_at as varchar)) end as order_key,
    line_id,
    list_price,

    ---------- values: cleaned, then as they came
    price_clean as price,
    price_reported as price_raw,
    price_is_outlier,
    price_was_missing,
    -- The share of the category's prices below this one, to the twentieth, in percent.
    case when price_treated is not null then cast(price_rank * 5 as integer) end as price_percentile,
    quantity_clean as quantity,
    quantity as quantity_raw,
    quantity_is_outlier,
    quantity_was_missing,
    cast(round(coalesce(price_clean, 0) * coalesce(quantity_clean, 1), 4) as decimal(18, 4)) as amount,
    cast(round(coalesce(price_reported, 0) * coalesce(quantity, 1), 4) as decimal(18, 4)) as gross_amount,
    currency,
    price as price_in_currency,

    ---------- context
    device_clean as device,
    device_was_missing,
    country_clean as country,
    country_was_missing,
    query,
    page,
    referrer,
    campaign,
    properties,
    warnings,

    {{ pinned() }} as built_in
from filled
