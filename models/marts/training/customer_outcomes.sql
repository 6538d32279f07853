{% set active, churn = var('training_active_days'), var('training_churn_days') %}
-- A spine with labels: who was active before each Monday, 00:00 UTC, and what they did from then on. What is known by now decides a
-- label; who was active is decided by what was known by then.
with build as (

    select as_of, as_of_day from {{ ref('int_identity__build') }}

),

-- The Mondays after an event arrived, for as long as it counts as activity.
mondays as (

    {% for week in range((active + 6) // 7) %}
    select
        identity,
        event_day,
        until_day,
        {{ add_days(next_monday('greatest(event_day, arrival_day)'), 7 * week) }} as monday
    from {{ ref('int_tiles__identity_day') }}
    {{ "union all" if not loop.last }}
    {% endfor %}

),

active_customers as (

    select distinct
        l.customer_id,
        cast(m.monday as timestamp) as as_of
    from mondays as m
    inner join build as b on m.monday <= b.as_of_day
    inner join {{ ref('int_identity__links') }} as l
        on m.identity = l.identity and {{ is_valid_at('cast(m.monday as timestamp)', 'l.known_from', 'l.known_to') }}
    where
        {{ days_between('m.event_day', 'm.monday') }} <= {{ active }}
        and coalesce(m.until_day, date '9999-12-31') >= m.monday
        and {{ is_consenting('l.customer_id') | indent(8) }}

),

-- A visitor who logged in later is that customer: the orders that follow are theirs.
customers as (

    select distinct customer_id, current_customer_id from {{ ref('bridge_identities') }}

),

outcomes as (

    select
        a.customer_id,
        a.as_of,
        {% for days in [7, 14, 30] %}
        count(case when o.ordered_at >= a.as_of and o.ordered_at < a.as_of + interval {{ days }} day then 1 end) as orders_{{ days }}d,
        {% endfor %}
        count(case when o.ordered_at < a.as_of then 1 end) as orders_before,
        cast(sum(case when o.ordered_at >= a.as_of then o.revenue end) as decimal(38, 4)) as revenue
    from active_customers as a
    inner join customers as c on a.customer_id = c.customer_id
    left join {{ ref('fct_orders') }} as o
        on
            c.current_customer_id = o.customer_id
            and o.is_sale
            and o.ordered_at >= a.as_of - interval {{ churn }} day
            and o.ordered_at < a.as_of + interval 90 day
    group by a.customer_id, a.as_of

)

select
    t.customer_id,
    t.as_of,
    {% for days in [7, 14] %}
    {{ if_over('t.orders_' ~ days ~ 'd > 0', days) }} as bought_within_{{ days }}d,
    {% endfor %}
    {% for days in [14, 30] %}
    {{ if_over('case when t.orders_before > 0 then t.orders_' ~ days ~ 'd = 0 end', days) }} as churned_within_{{ days }}d,
    {% endfor %}
    {{ if_over('coalesce(t.revenue, 0)', 90) }} as revenue_next_90d
from outcomes as t
cross join build as b
