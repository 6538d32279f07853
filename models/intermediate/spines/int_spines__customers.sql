-- The question that the batch build asks: every customer known at the moment of the build, at that moment.
select distinct
    l.customer_id,
    b.as_of
from {{ ref('int_identity__links') }} as l
inner join {{ ref('int_identity__build') }} as b
    on l.known_from <= b.as_of and (l.known_to > b.as_of or l.known_to is null)
