{{ config(materialized='view') }}
-- The days on which raw rows arrived, each with the last build that changed a row of it, whatever its verdict. (int_events__changed_days
-- has the days of kept rows alone.) A raw row keeps its day, so the rows as they are say it all.
select
    cast(raw_available_at as date) as arrival_day,
    max(built_in) as changed_in
from {{ ref('int_events__validated') }}
group by cast(raw_available_at as date)
