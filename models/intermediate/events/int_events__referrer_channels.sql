-- Which channel a visit came by, by the name of the site that led to it: a seed, passed on to the marts.
select
    lower(trim(site)) as site,
    channel
from {{ ref('referrer_channels') }}
