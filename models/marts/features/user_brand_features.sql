{{ config(materialized='view', meta={'live': 'slice'}) }}
-- How each customer relates to each brand (macros/affinity.sql).
{{ affinity_features('brand') }}
