{{ config(post_hook="{{ move_watermark('int_events__validated') }}") }}
-- The events to clean (again): those whose verdict or session changed, and those of the days whose statistics did, which is what an
-- arrival on day D does to the days from D + fit_lag_days on.
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
) as changes
group by row_id
