{{ config(post_hook="{{ move_watermark('int_cleaning__events') }}") }}
-- The customers whose features may differ from those of the last build. Within a UTC day windows of days stand still, so these are the
-- ones of whom an event changed, became visible since, or left a window of hours, and those who gave or withdrew consent. The first build
-- of a day, or of an earlier moment, asks for all.
with moments as (

    {{ moments_of_builds() | indent(4) }}

),

changed_identities as (

    select identity, false as is_hours_only
    from {{ ref('int_changes__identities') }}
    union all
    select e.identity, e.event_at < m.last_as_of as is_hours_only
    from {{ ref('int_cleaning__events') }} as e
    inner join moments as m
        on
            e.event_at >= m.last_as_of
            {% for suffix, hours in hour_windows() %}
            or (e.event_at >= m.last_as_of - interval {{ hours }} hour and e.event_at < m.as_of - interval {{ hours }} hour)
            {% endfor %}
    where e.event_day >= (select {{ add_days('d.as_of_day', -1) }} from moments as d)
    union all
    select {{ unfold("[e.identity, 'a:' || e.anonymous_id]") }} as identity, false as is_hours_only
    from {{ ref('int_cleaning__events') }} as e
    inner join moments as m on e.known_from > m.last_as_of
    where e.arrival_day >= (select d.as_of_day from moments as d)
    union all
    select e.identity, false as is_hours_only
    from {{ ref('int_cleaning__events') }} as e
    inner join moments as m on e.known_to > m.last_as_of
    where e.until_day >= (select d.as_of_day from moments as d)

)

select
    customer_id,
    min(is_hours_only) as is_hours_only
from (
    select l.customer_id, c.is_hours_only
    from {{ ref('int_identity__links') }} as l
    inner join changed_identities as c on l.identity = c.identity
    union all
    select c.customer_id, false as is_hours_only
    from {{ customers_of_changed_consent('moments') | indent(4) }} as c
    union all
    select s.customer_id, false as is_hours_only
    from {{ ref('int_features__customer_spine') }} as s
    inner join moments as m on not m.is_same_day
) as changes
group by customer_id
