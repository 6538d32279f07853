select * from {{ lake_rows('ga4_events') }} as arrived
