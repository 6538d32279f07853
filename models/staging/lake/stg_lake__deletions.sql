-- Every row that a source told gone, each time it was told.
select
    _source as source,
    raw_table,
    _position as position,
    row_key is not null as has_key,
    _ingested_at as ingested_at,
    arrived_in
from {{ lake_table('deletions') }} as deletions
