-- Lines that arrived, and lines whose order header arrived: either may come first.
with arrived as (

    select * from {{ lake_rows('refunds') }} as new_rows

),

waiting as (

    select * from {{ lake_table_of_touched_orders('refunds') }} as known_rows

)

select * from arrived
union all
select * from waiting
where raw_rowid not in (select a.raw_rowid from arrived as a)
