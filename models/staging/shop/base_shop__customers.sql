select * from {{ lake_table('customers') }} as customers
