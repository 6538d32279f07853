{{ config(materialized='view') }}
-- How each customer stands to each category (macros/taste.sql).
{{ taste_features('category') }}
