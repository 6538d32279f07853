{{ config(post_hook="{{ move_watermark('int_changes__sessions') }}") }}
-- The sessions whose features may differ from those of the last build: those that an event was added to or left, and those with an event
-- that became visible since, and those of customers who gave or withdrew consent. The first build of a day, or of an earlier moment, asks
-- for all.
with moments as (

    {{ moments_of_builds() | indent(4) }}

)

select session_id from {{ ref('int_changes__sessions') }}
union
select e.session_id
from {{ ref('int_cleaning__events') }} as e
inner join moments as m on e.event_at >= m.last_as_of
where e.session_id is not null and e.event_day >= (select {{ add_days('d.as_of_day', -1) }} from moments as d)
union
select e.session_id
from {{ ref('int_cleaning__events') }} as e
inner join moments as m on e.known_from > m.last_as_of
where e.session_id is not null and e.arrival_day >= (select d.as_of_day from moments as d)
union
select e.session_id
from {{ ref('int_cleaning__events') }} as e
inner join moments as m on e.known_to > m.last_as_of
where e.session_id is not null and e.until_day >= (select d.as_of_day from moments as d)
union
select t.session_id
from {{ customers_of_changed_consent('moments') }} as c
inner join {{ ref('int_identity__links') }} as l on c.customer_id = l.customer_id
inner join {{ ref('int_tiles__identity_session') }} as t on l.identity = t.identity
union
select s.session_id
from {{ ref('int_features__session_spine') }} as s
inner join moments as m on not m.is_same_day
