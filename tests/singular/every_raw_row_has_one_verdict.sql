-- Nothing is lost and nothing counts twice: what the lake holds is what was kept, a copy, or not believed; for each raw table,
-- source and day of arrival.
select *
from {{ ref('event_ledger') }}
where raw_rows <> kept + duplicates + quarantined
