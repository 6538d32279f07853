{{ config(materialized='view') }}
-- How each customer stands to each brand (macros/taste.sql).
{{ taste_features('brand') }}
