select * from {{ lake_table('orders') }} as orders
