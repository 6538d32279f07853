{#
  A measure by window, which is a count or a sum of what is not below zero, is no less over a longer window. Which columns
  these are is told by their names: whatever there is as <measure>_1h up to <measure>_lifetime.
#}
{% test windows_grow(model) %}
{%- set windows = ['1h', '24h'] + (day_windows() | map('first') | list) -%}
{%- set rules = {} -%}
{%- set columns = declared_columns(model) -%}
{%- for column in columns if column.endswith('_1h') -%}
    {%- set measure = column[:-3] -%}
    {%- for shorter in windows[:-1] if measure ~ '_lifetime' in columns -%}
        {%- set longer = windows[loop.index] -%}
        {%- do rules.update({
            measure ~ ' ' ~ shorter ~ ' <= ' ~ longer: measure ~ '_' ~ shorter ~ ' <= ' ~ measure ~ '_' ~ longer
        }) -%}
    {%- endfor -%}
{%- endfor -%}
{{ rows_that_break(model, rules) }}
{% endtest %}
