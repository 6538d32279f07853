-- A customer's shares over all categories, and over all brands, add up to one, or are null in all of them. A share of spend is null, too,
-- where the customer bought something and no price of it is known.
{{ config(meta={'dagster': {'ref': {'name': 'user_category_features'}}}) }}
{% set shares = {
    'affinity_share_' ~ var('half_lives') | max ~ 'd': '*', 'share_of_events_90d': '*', 'share_of_events_lifetime': '*',
    'share_of_spend_90d': 'revenue_90d', 'share_of_spend_lifetime': 'revenue_lifetime',
} %}
{% set predicates = [] %}
{% for name, known in shares.items() %}
{% do predicates.append('abs(sum(' ~ name ~ ') - 1) > 1e-9 or count(' ~ name ~ ') not in (0, count(' ~ known ~ '))') %}
{% endfor %}
{% for mart in ['user_category_features', 'user_brand_features'] %}
select
    '{{ mart }}' as mart,
    customer_id,
    as_of
from {{ ref(mart) }}
group by customer_id, as_of
having {{ predicates | join(' or ') }}
{{ "union all" if not loop.last }}
{% endfor %}
