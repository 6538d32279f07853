{#
  Fields of events that no model changes. models/staging/_sources.yml declares each once, in the table `events`, by
  `config: {meta: {pass_through: TYPE}}`: staging reads its text as TYPE, and all models from there to fct_events select it by these macros
  (docs/how-to/add-a-field.md).
#}

{# Name and type of these fields, in the order of the declaration. Not from dbt's graph, which is empty in unit tests. #}
{% macro pass_through_fields() -%}
{%- if not execute %}{{ return({}) }}{% endif -%}
{#- Asked once a node: a query costs dbt several milliseconds. -#}
{%- set known = model.setdefault('pass_through', {}) if model is defined else {} -%}
{%- if not known -%}
{%- do known.update(fromjson(run_query('select ' ~ pass_through_of_sources()).rows[0][0])) -%}
{%- endif -%}
{{ return(known) }}
{%- endmacro %}

{# SQL: these fields as columns of `alias`, or of the only table of a select. #}
{% macro pass_through(alias=none) -%}
{%- for name in pass_through_fields() %}{{ alias ~ "." if alias }}{{ name }}{{ ",\n    " if not loop.last }}{% endfor -%}
{%- endmacro %}

{# SQL: these fields, each as `expressions` has it by its name (SQL of the field's type); null where that has none. #}
{% macro pass_through_from(expressions) -%}
{%- for name, type in pass_through_fields().items() -%}
{{ expressions.get(name, 'cast(null as ' ~ type ~ ')') }} as {{ name }}{{ ",\n        " if not loop.last }}
{%- endfor -%}
{%- endmacro %}

{# SQL: these fields of raw.events, read from their text. What does not read as the field's type is null. #}
{% macro pass_through_from_text() -%}
{%- set read = {} -%}
{%- for name, type in pass_through_fields().items() -%}
{%- if type == 'varchar' -%}{%- do read.update({name: clean_text(name)}) -%}
{%- elif type == 'double' -%}
{#- Between these, since infinity and NaN are no numbers to count with. -#}
{%- do read.update({name: within('try_cast(' ~ clean_text(name) ~ ' as double)', '-1.7976931348623157e308', '1.7976931348623157e308')}) -%}
{%- elif type == 'integer' -%}{%- do read.update({name: to_integer(name, -2147483648, 2147483647)}) -%}
{%- elif type == 'boolean' -%}{%- do read.update({name: yes_or_no(name)}) -%}
{%- elif type == 'timestamp' -%}{%- do read.update({name: parse_time(clean_text(name), "coalesce(_time_zone, 'UTC')")}) -%}
{%- else -%}
{{ exceptions.raise_compiler_error(
    "models/staging/_sources.yml: the field " ~ name ~ " of events has pass_through: " ~ type
    ~ "; write varchar, double, integer, boolean or timestamp"
) }}
{%- endif -%}
{%- endfor -%}
{{ pass_through_from(read) }}
{%- endmacro %}
