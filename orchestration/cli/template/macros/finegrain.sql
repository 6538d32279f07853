{#
  dbt looks up materializations, and macros that it calls itself, in the root project and in dbt, but not in packages. These call
  finegrain's: a model, seed or test with unchanged inputs is not run again; a model whose rules have changed is built from scratch.
#}
{% materialization table, adapter='duckdb', supported_languages=['sql'] %}{{ return(finegrain.materialization_table_duckdb()) }}{% endmaterialization %}

{% materialization incremental, adapter='duckdb', supported_languages=['sql'] %}{{ return(finegrain.materialization_incremental_duckdb()) }}{% endmaterialization %}

{% materialization view, adapter='duckdb' %}{{ return(finegrain.materialization_view_duckdb()) }}{% endmaterialization %}

{% materialization seed, adapter='duckdb' %}{{ return(finegrain.materialization_seed_duckdb()) }}{% endmaterialization %}

{% materialization snapshot, adapter='duckdb' %}{{ return(finegrain.materialization_snapshot_duckdb()) }}{% endmaterialization %}

{% materialization test, adapter='duckdb' %}{{ return(finegrain.materialization_test_duckdb()) }}{% endmaterialization %}

{# Whether a model is built from scratch. #}
{% macro should_full_refresh() %}{{ return(finegrain.should_full_refresh()) }}{% endmacro %}

{# Which rows a test reads. #}
{% macro get_where_subquery(relation) %}{{ return(finegrain.get_where_subquery(relation)) }}{% endmacro %}

{# Schemas are named as in dbt_project.yml, without a prefix. #}
{% macro generate_schema_name(custom_schema_name, node) %}{{ return(finegrain.generate_schema_name(custom_schema_name, node)) }}{% endmacro %}
