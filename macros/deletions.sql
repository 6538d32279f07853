{#
  Which rows their source has taken back. Where a row has no key, its position is reported, and what landed there before is deleted:
  the same row may come again later. Where it has one, a deletion stands among the versions of the key, which are numbered
  (orchestration/ingest/versions.py), and all before it are deleted; but a position may be deleted, too, when a mapping was corrected
  or rows are unloaded. What is deleted is as if it had never come, but for the ledger.
#}

{# SQL: `id` of the rows of `relation`, which has source, position and ingested_at, that are deleted; `newer_than`: by deletions that
   arrived after that snapshot. `raw_table` is SQL over the relation as r. #}
{% macro deleted_rows(relation, id, raw_table='r.raw_table', newer_than=none) -%}
{%- for has_key, place, before in [
    (false, 'r.position', 'r.ingested_at < d.ingested_at'), (true, without_version('r.position'), 'r.position < d.position')
] -%}
select r.{{ id }}
from {{ relation }} as r
inner join {{ ref('int_reference__deletions') }} as d
    on r.source = d.source and {{ raw_table }} = d.raw_table and {{ place }} = d.place and {{ before }}
where {{ "d.has_key" if has_key else "not d.has_key" }}{{ " and d.arrived_in > " ~ newer_than if newer_than }}
{{ "union
" if not loop.last }}
{%- endfor -%}
{%- endmacro %}

{# SQL: whether a row of stg_shop__<table> is there still. #}
{% macro is_not_deleted(table) -%}
raw_rowid not in (
    select g.raw_rowid
    from (
        {{ deleted_rows(ref('stg_shop__' ~ table), 'raw_rowid', "'" ~ table ~ "'") | indent(8) }}
    ) as g
)
{%- endmacro %}

{# SQL: the position of a row with a key, but for `@number.hash`, its last 27 characters. #}
{% macro without_version(position) -%}
substr({{ position }}, 1, length({{ position }}) - 27)
{%- endmacro %}

{# SQL: whether a row of stg_shop__customers is a version of a customer: it could be read, has an id and is there still. #}
{% macro is_usable_customer() -%}
{{ is_usable_id('user_id') }} and raw_error is null and {{ is_not_deleted('customers') }}
{%- endmacro %}
