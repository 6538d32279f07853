select * from {{ lake_rows('events') }} as arrived
