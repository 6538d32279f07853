{{ config(materialized='view', meta={'live': 'slice'}) }}
-- How each customer relates to each category (macros/affinity.sql).
{{ affinity_features('category') }}
