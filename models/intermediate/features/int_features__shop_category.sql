-- The categories in the shop as a whole (macros/taste.sql).
{{ taste_of_the_shop('category', tile='item') }}
