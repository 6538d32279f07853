-- How each customer stands to each brand (macros/taste.sql). Only tiles by identity know brands.
{{ taste_features('brand', shop_tile='identity_product') }}
