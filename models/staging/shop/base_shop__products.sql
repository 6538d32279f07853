select * from {{ lake_table('products') }} as products
