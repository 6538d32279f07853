-- The question that the batch build asks of sessions: each one with an event in the last session_days whole days or today,
-- at the moment of the build.
select distinct
    t.session_id,
    b.as_of
from {{ ref('int_tiles__identity_session') }} as t
inner join {{ ref('int_identity__build') }} as b
    on
        t.arrival_day <= b.as_of_day
        and coalesce(t.until_day, date '9999-12-31') >= b.as_of_day
        and t.event_day <= b.as_of_day
        and t.event_day >= {{ add_days('b.as_of_day', -1 * var('session_days')) }}
