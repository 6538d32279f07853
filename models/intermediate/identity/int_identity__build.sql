-- The one row that says of which moment and from which lake snapshot this build is. Unless the user asked for a moment,
-- it is the first one at which all that arrived is visible: what the data say, not the clock.
select
    coalesce(
        {{ requested_as_of() }},
        max(available_at) + interval 1 microsecond,
        timestamp '1970-01-01'
    ) as as_of,
    cast(coalesce({{ requested_as_of() }}, max(available_at) + interval 1 microsecond, timestamp '1970-01-01') as date) as as_of_day,
    {{ pinned() }} as built_from
from {{ ref('int_events__cleaned') }}
