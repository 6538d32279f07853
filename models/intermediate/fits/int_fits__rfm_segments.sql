-- The segment of each pair of recency and frequency scores.
select
    cast(recency_score as integer) as recency_score,
    cast(frequency_score as integer) as frequency_score,
    segment
from {{ ref('rfm_segments') }}
