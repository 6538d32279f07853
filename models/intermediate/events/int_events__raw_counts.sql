{{ config(materialized='view') }}
-- What the lake holds, for the ledger to add up to.
select * from {{ ref('stg_lake__row_counts') }}
