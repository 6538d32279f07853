-- The shop's own bounds for recency, frequency and monetary scores: a seed, not a fit, so that a score means the same in
-- training, in batch and live.
select
    measure,
    cast(score as integer) as score,
    cast(at_least as double) as at_least,
    cast(below as double) as below
from {{ ref('rfm_bounds') }}
