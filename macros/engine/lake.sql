{# DuckLake's change feed: what came into a raw table after `since`. It is asked even where `since` is null or is the pinned snapshot,
   so its bounds must be ones that there are. #}
{% macro _insertions(table) -%}
ducklake_table_insertions(
    'lake', 'raw', '{{ table }}',
    least(coalesce(getvariable('since') + 1, getvariable('pinned')), getvariable('pinned')), getvariable('pinned')
)
{%- endmacro %}

{# The rows of a raw table that the running build may see: all up to the pinned snapshot or, when `since` is set on
   the connection, only those that arrived after it (DuckLake's change feed). `raw_rowid` never changes. #}
{% macro lake_rows(table) %}{{ return(adapter.dispatch('lake_rows', 'finegrain')(table)) }}{% endmacro %}

{% macro duckdb__lake_rows(table) -%}
(
    select *, rowid as raw_rowid
    from {{ source('lake', table) }} at (version => getvariable('pinned'))
    where getvariable('since') is null
    union all
    select *, rowid as raw_rowid
    from {{ _insertions(table) }}
    where getvariable('since') < getvariable('pinned')
)
{%- endmacro %}

{# Every row of a raw table up to the pinned snapshot, with the snapshot it came in. #}
{% macro lake_table(table) %}{{ return(adapter.dispatch('lake_table', 'finegrain')(table)) }}{% endmacro %}

{% macro duckdb__lake_table(table) -%}
(
    select *, rowid as raw_rowid, snapshot_id as arrived_in
    from {{ source('lake', table) }} at (version => getvariable('pinned'))
)
{%- endmacro %}

{# The lake snapshot that this build pinned. #}
{% macro pinned() %}{{ return(adapter.dispatch('pinned', 'finegrain')()) }}{% endmacro %}
{% macro duckdb__pinned() %}cast(getvariable('pinned') as bigint){% endmacro %}

{# SQL: a digest of all that the running build sees. #}
{% macro inputs_of_build() %}{{ return(adapter.dispatch('inputs_of_build', 'finegrain')()) }}{% endmacro %}
{% macro duckdb__inputs_of_build() %}getvariable('inputs'){% endmacro %}

{# SQL: the fingerprint of a node by its name: of its own SQL, and of the macros and vars that this reads. #}
{% macro fingerprint_of(name) %}{{ return(adapter.dispatch('fingerprint_of', 'finegrain')(name)) }}{% endmacro %}
{% macro duckdb__fingerprint_of(name) %}json_extract_string(getvariable('fingerprints'), '{{ name }}'){% endmacro %}

{# The moment the user asked the build to be made for, or null. #}
{% macro requested_as_of() %}{{ return(adapter.dispatch('requested_as_of', 'finegrain')()) }}{% endmacro %}
{% macro duckdb__requested_as_of() %}cast(getvariable('as_of') as timestamp){% endmacro %}

{# Statement that tells the views over the lake to show only what arrived after `expression` (null: everything). #}
{% macro set_since(expression) %}{{ return(adapter.dispatch('set_since', 'finegrain')(expression)) }}{% endmacro %}
{% macro duckdb__set_since(expression) %}set variable since = {{ expression }}{% endmacro %}

{# In an incremental build: all rows of a line table whose order header has arrived, or was reported as deleted, since. Otherwise: none. #}
{% macro lake_table_of_touched_orders(table) -%}
{{ return(adapter.dispatch('lake_table_of_touched_orders', 'finegrain')(table)) }}
{%- endmacro %}

{% macro duckdb__lake_table_of_touched_orders(table) -%}
(
    select *, rowid as raw_rowid
    from {{ source('lake', table) }} at (version => getvariable('pinned'))
    where getvariable('since') is not null
        and {{ clean_text('order_id') }} in (
            select {{ clean_text('o.order_id') }}
            from {{ _insertions('orders') }} as o
            where getvariable('since') < getvariable('pinned')
            union all
            select {{ clean_text('order_id') }}
            from {{ source('lake', 'orders') }} at (version => getvariable('pinned'))
            where getvariable('since') < coalesce(getvariable('arrivals')['deletions'], 0)
                and (
                    {%- for place in ['_position', without_version('_position')] %}
                    (_source, {{ place }}) in (
                        select (d._source, {{ place | replace('_position', 'd._position') }})
                        from {{ _insertions('deletions') }} as d
                        where d.raw_table = 'orders'
                    )
                    {{- " or" if not loop.last }}
                    {%- endfor %}
                )
        )
)
{%- endmacro %}

{# SQL: the last snapshot, up to the pinned one, in which rows came into a raw table. #}
{% macro last_arrival_in(table) %}{{ return(adapter.dispatch('last_arrival_in', 'finegrain')(table)) }}{% endmacro %}
{% macro duckdb__last_arrival_in(table) %}cast(coalesce(getvariable('arrivals')['{{ table }}'], 0) as varchar){% endmacro %}

{# SQL: what mappings say of the whole shop, by the name of a setting; null where they say nothing. #}
{% macro shop_setting_of_lake(setting) %}{{ return(adapter.dispatch('shop_setting_of_lake', 'finegrain')(setting)) }}{% endmacro %}
{% macro duckdb__shop_setting_of_lake(setting) %}getvariable('shop')['{{ setting }}']{% endmacro %}

{# SQL: the fields of events that pass through all models, as JSON of name to type (orchestration/mapping/contracts.py). #}
{% macro pass_through_of_sources() %}{{ return(adapter.dispatch('pass_through_of_sources', 'finegrain')()) }}{% endmacro %}
{% macro duckdb__pass_through_of_sources() %}getvariable('pass_through'){% endmacro %}
