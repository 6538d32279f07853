-- What is in the feature marts, column by column; what was not believed on the way, by source; what was missing and filled.
-- Grain: one row per mart, item and measure. An item is a column of a feature mart; in event_ledger a source; in
-- missingness_audit a column of events, customers or products. What a column does not have (a text: a mean) has no row.
with features as (

    -- One statement for all feature marts, whatever their columns: each is read once, and a row per column comes out.
    from query(array_to_string(list_transform(
        [
            'user_features', 'item_features', 'category_features', 'user_category_features', 'user_brand_features',
            'user_item_features', 'session_features', 'item_pair_features'
        ],
        lambda mart: replace($$
            select
                '<mart>' as mart,
                item,
                unnest(['rows', 'null_share', 'zero_share', 'mean', 'min', 'max']) as measure,
                unnest(found) as value,
                (select max(as_of) from <mart>) as as_of
            from (
                unpivot (
                    select [
                        count(*),
                        1 - count(columns(*)) / count(*),
                        count(*) filter (where try_cast(columns(*) as double) = 0) / count(*),
                        avg(try_cast(columns(*) as double)),
                        min(try_cast(columns(*) as double)),
                        max(try_cast(columns(*) as double))
                    ]
                    from <mart>
                ) on columns(*) into name item value found
            )
        $$, '<mart>', mart)
    ), ' union all '))

),

measured as (

    select f.*
    from features as f
    inner join duckdb_columns() as c on f.mart = c.table_name and f.item = c.column_name
    where
        f.item not in ('as_of', 'built_from')
        -- A text of digits is no number; of a flag, the mean is the share that is true.
        and (f.measure in ('rows', 'null_share') or c.numeric_precision is not null or c.data_type = 'BOOLEAN')

    union all

    select
        'event_ledger' as mart,
        source as item,
        unnest(['rows', 'duplicate_share', 'quarantined_share']) as measure,
        unnest([sum(raw_rows), sum(duplicates) / sum(raw_rows), sum(quarantined) / sum(raw_rows)]) as value,
        max(as_of) as as_of
    from event_ledger
    group by source

    union all

    select
        'missingness_audit' as mart,
        concat_ws('.', record, column_name) as item,
        unnest(['rows', 'missing_share', 'imputed_share']) as measure,
        unnest([sum(all_rows), sum(missing_rows) / sum(all_rows), sum(imputed_rows) / sum(all_rows)]) as value,
        max(as_of) as as_of
    from missingness_audit
    group by record, column_name

)

select
    mart,
    item,
    measure,
    value,
    as_of,
    (epoch(now()) - epoch(as_of)) / 3600 as age_hours
from measured
where value is not null
order by mart, item, measure
