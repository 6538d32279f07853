{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key=['product_id', 'fit_day'],
    meta={'live': 'lookup'},
    post_hook="{{ move_watermark('int_cleaning__changed_rows') }}",
) }}
-- The category of products of which an event came without one, by the fit of two days before the event: the one that the product's other
-- events had most often or, by method model, the one that naive Bayes takes for the most probable. A row for each product and day that is
-- asked for.
with wanted as (

    select distinct
        v.product_id,
        {{ add_days('v.event_day', -1 * var('fit_lag_days')) }} as fit_day
    from {{ ref('int_events__validated') }} as v
    where
        v.product_id is not null and v.product_category is null and {{ was_kept('v') }}
        and {{ is_changed('int_cleaning__changed_rows', [('v.row_id', 'row_id')]) }}
        and ({{ is_imputed_by('event', 'category', 'model') }} or {{ is_imputed_by('event', 'category', 'mode') }})

),

of_product as (

    select
        w.product_id,
        w.fit_day,
        m.most_frequent as category,
        round(cast(m.n as double) / nullif(m.all_n, 0), 4) as confidence
    from {{ asof_left_join(
        'wanted as w', "(select * from " ~ ref('int_cleaning__modes') ~ " where measure = 'category' and group_by = 'product_id') as m",
        [('w.product_id', 'm.group_key')], 'w.fit_day', 'm.valid_on'
    ) }}

),

tokens as (

    {{ product_tokens('v.product_id in (select o.product_id from of_product as o where o.category is null)') | indent(4) }}

),

-- What the catalogue said before the day of the event.
asked as (

    select
        o.product_id as key,
        o.fit_day,
        t.feature,
        t.token
    from of_product as o
    inner join tokens as t
        on o.product_id = t.product_id and t.known_on < {{ add_days('o.fit_day', var('fit_lag_days')) }}
    where o.category is null

),

{{ predicted_by_naive_bayes(ref('int_cleaning__category_evidence')) }}

select
    o.product_id,
    o.fit_day,
    coalesce(o.category, case when p.confidence >= coalesce(cast(r.min_confidence as double), 0.8) then p.label end) as category,
    coalesce(o.confidence, p.confidence) as confidence,
    o.category is null and p.label is not null as is_predicted
from of_product as o
left join predicted as p on o.product_id = p.key and o.fit_day = p.fit_day
left join {{ seed('imputation_rules') }} as r on r.record = 'event' and r.column_name = 'category'
