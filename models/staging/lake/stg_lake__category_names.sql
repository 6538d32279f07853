-- Every category name that was ever delivered, by events of either kind or by the catalogue, in its source's spelling.
select category as category_name from {{ lake_table('events') }} as e
union
select {{ unfold('items') }}.item_category from {{ lake_table('ga4_events') }} as g
union
select category from {{ lake_table('products') }} as p
