-- The question that the batch build asks: every customer of whom something is visible at the moment of the build, at that moment.
with build as (

    select as_of, as_of_day from {{ ref('int_identity__build') }}

),

visible as (

    select t.identity
    from {{ ref('int_tiles__identity_day') }} as t
    inner join build as b on {{ is_closed_by('b.as_of_day', 't') }}
    union
    select e.identity
    from {{ ref('int_cleaning__events') }} as e
    inner join build as b on e.arrival_day = b.as_of_day and {{ is_valid_at('b.as_of', 'e.known_from', 'e.known_to') }}
    where e.event_at < b.as_of
    union
    select e.identity
    from {{ ref('int_cleaning__events') }} as e
    inner join build as b on e.until_day = b.as_of_day and e.arrival_day < b.as_of_day and e.known_to > b.as_of
    where e.event_at < b.as_of

)

select distinct
    l.customer_id,
    b.as_of
from {{ ref('int_identity__links') }} as l
inner join build as b on {{ is_valid_at('b.as_of', 'l.known_from', 'l.known_to') }}
where l.identity in (select v.identity from visible as v)
