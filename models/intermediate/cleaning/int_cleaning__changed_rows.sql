{{ config(post_hook="{{ move_watermark('int_events__validated') }}") }}
-- The events to clean (again): those whose verdict or session changed, and those of the days whose statistics did, which is what an
-- arrival on day D does to the days from D + fit_lag_days on.
with changed_catalogue as (

    select
        min(first_day) as first_day,
        max(changed_in) as changed_in
    from (
        select cast(known_at as date) as first_day, arrived_in as changed_in from {{ ref('int_reference__product_versions') }}
        union all
        select date '{{ var("earliest_year") }}-01-01' as first_day, arrived_in as changed_in from {{ ref('int_reference__deletions') }}
        where raw_table = 'products'
    ) as catalogue
    where changed_in > coalesce({{ watermark('int_cleaning__events') }}, -1)

)

select
    row_id,
    max(changed_in) as changed_in
from (
    select row_id, changed_in from {{ ref('int_events__changed_rows') }}
    union all
    select row_id, changed_in from {{ ref('int_events__changed_sessions') }}
    union all
    select v.row_id, d.changed_in
    from {{ ref('int_events__validated') }} as v
    cross join (
        select min(arrival_day) as first_day, max(changed_in) as changed_in from {{ ref('int_events__changed_days') }}
    ) as d
    where {{ was_kept('v') }} and v.event_day >= {{ add_days('d.first_day', var('fit_lag_days')) }}
    union all
    -- A category may be imputed from another catalogue.
    select v.row_id, c.changed_in
    from {{ ref('int_events__validated') }} as v
    cross join changed_catalogue as c
    where
        v.product_category is null and v.product_id is not null and {{ was_kept('v') }}
        and v.event_day >= c.first_day and {{ is_imputed_by('event', 'category', 'model') }}
) as changes
group by row_id
