-- The brands in the shop as a whole (macros/taste.sql). Only tiles by identity know brands.
{{ taste_of_the_shop('brand', tile='identity_product') }}
