{# A schema is called what dbt_project.yml calls it: `main` for the steps, `marts` for what is published, `audit` for rows
   that failed a test. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
{{ custom_schema_name | trim if custom_schema_name else target.schema }}
{%- endmacro %}
