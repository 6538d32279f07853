{{ config(materialized='view') }}
-- How each customer stands to each category (macros/affinity.sql).
{{ affinity_features('category') }}
