-- How each customer stands to each category (macros/taste.sql).
{{ taste_features('category', shop_tile='item') }}
