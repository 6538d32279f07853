{{ config(materialized='view') }}
-- How each customer stands to each brand (macros/affinity.sql).
{{ affinity_features('brand') }}
