-- Models that were begun by other rules (seeds, vars, SQL) than today's, or that hold rows from after the snapshot that
-- this build is of. Mend: build with --full-refresh, as `finegrain build` does by itself.
-- depends_on: {{ ref('int_events__cleaned') }}
select
    model,
    snapshot,
    rules
from {{ target.schema }}.watermarks
where rules is distinct from {{ rules_of_today() }} or snapshot > {{ pinned() }}
