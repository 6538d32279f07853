{{ config(post_hook="{{ move_watermark('int_events__validated') }}") }}
-- The arrival days from the first one of which a kept event changed. What was learned by the end of a day rests on all days before it, so
-- statistics are worked out again for every one of these days.
with first_days as (

    select
        changed_in,
        min(arrival_day) as first_day
    from {{ ref('int_events__changed_rows') }}
    where arrival_day is not null
    group by changed_in

),

days as (

    select distinct arrival_day
    from {{ ref('int_events__validated') }}
    where arrival_day >= (select min(f.first_day) from first_days as f)
    union
    select until_day as arrival_day
    from {{ ref('int_events__validated') }}
    where until_day >= (select min(f.first_day) from first_days as f)
    union
    select arrival_day from {{ ref('int_events__changed_rows') }}
    where arrival_day is not null
    union
    select until_day from {{ ref('int_events__changed_rows') }}
    where until_day is not null

)

select
    d.arrival_day,
    max(f.changed_in) as changed_in
from days as d
inner join first_days as f on d.arrival_day >= f.first_day
group by d.arrival_day
