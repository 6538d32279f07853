{{ config(post_hook="{{ move_watermark('int_cleaning__events') }}") }}
-- The days whose pairs of products may have changed: those on which an event about a product was added, deleted or moved, the days beside
-- them, since 24 hours reach there, and the days of the other lines of changed orders. Values alone do not count.
select
    event_day,
    max(changed_in) as changed_in
from (
    select
        {{ add_days('c.event_day', 'o.days') }} as event_day,
        c.changed_in
    from {{ ref('int_changes__events') }} as c
    cross join (values (-1), (0), (1)) as o (days)
    where c.product_id is not null and c.keys_changed
    union all
    select e.event_day, o.changed_in
    from {{ ref('int_cleaning__events') }} as e
    inner join {{ ref('int_changes__orders') }} as o on e.order_key = o.order_key
) as changes
where event_day is not null
group by event_day
