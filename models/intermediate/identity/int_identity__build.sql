-- The one row that says of which moment and from which lake snapshot this build is. Unless the user asked for a moment, it is the
-- first one at which all events that arrived are visible by their own arrival: what the data say, not the clock. An event that waits
-- for a customer, product or order dated later does not count, lest one late row empties every window; but where more than
-- `max_hidden_percent` of events wait, the moment is the first one at which no more than that are left out
-- (docs/decisions/0015-the-moment-of-a-build.md).
-- Built once the cleaned events are: {{ ref('int_cleaning__events') }}
with events as (

    select
        available_at,
        greatest(raw_available_at, event_at) as arrived_at
    from {{ ref('int_events__validated') }}
    where verdict = 'kept'

),

arrivals as (

    select
        max(arrived_at) as last_arrival_at,
        count(*) as events
    from events

),

waiting as (

    select
        e.available_at,
        a.events,
        row_number() over (order by e.available_at desc) as place
    from events as e
    inner join arrivals as a on e.available_at > a.last_arrival_at

),

too_many as (

    select max(available_at) as available_at from waiting where place * 100 > events * {{ var('max_hidden_percent') }}

),

moment as (

    select
        coalesce(
            {{ requested_as_of() }},
            greatest(a.last_arrival_at, w.available_at) + interval 1 microsecond,
            timestamp '1970-01-01'
        ) as as_of
    from arrivals as a
    cross join too_many as w

)

select
    as_of,
    cast(as_of as date) as as_of_day,
    {{ pinned() }} as built_from
from moment
