{#
  dbt takes materializations, and the macros that it calls by itself, from the root project or from dbt, but not from a package. These hand
  over to finegrain's: a model, seed or test whose inputs did not change is left as it is; one whose rules changed is built from scratch.
#}
{% materialization table, adapter='duckdb', supported_languages=['sql'] %}{{ return(finegrain.materialization_table_duckdb()) }}{% endmaterialization %}

{% materialization incremental, adapter='duckdb', supported_languages=['sql'] %}{{ return(finegrain.materialization_incremental_duckdb()) }}{% endmaterialization %}

{% materialization view, adapter='duckdb' %}{{ return(finegrain.materialization_view_duckdb()) }}{% endmaterialization %}

{% materialization seed, adapter='duckdb' %}{{ return(finegrain.materialization_seed_duckdb()) }}{% endmaterialization %}

{% materialization snapshot, adapter='duckdb' %}{{ return(finegrain.materialization_snapshot_duckdb()) }}{% endmaterialization %}

{% materialization test, adapter='duckdb' %}{{ return(finegrain.materialization_test_duckdb()) }}{% endmaterialization %}

{# Whether is_incremental() is false in a model of this project. #}
{% macro should_full_refresh() %}{{ return(finegrain.should_full_refresh()) }}{% endmacro %}

{# Which rows a test reads. #}
{% macro get_where_subquery(relation) %}{{ return(finegrain.get_where_subquery(relation)) }}{% endmacro %}

{# A schema is called what dbt_project.yml calls it. #}
{% macro generate_schema_name(custom_schema_name, node) %}{{ return(finegrain.generate_schema_name(custom_schema_name, node)) }}{% endmacro %}
