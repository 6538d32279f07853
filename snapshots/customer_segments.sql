{% snapshot customer_segments_history %}
select
    customer_id,
    rfm_recency_score,
    rfm_frequency_score,
    rfm_monetary_score,
    rfm_segment,
    as_of
from {{ ref('user_features') }}
where rfm_recency_score is not null and {{ follows_history('as_of') }}
{% endsnapshot %}
