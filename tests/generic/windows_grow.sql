{#
  A measure by window, which is a count or a sum of what is not below zero, is no less over a longer window. Which columns
  these are follows from their names: whatever there is as <measure>_7d (the shortest window of days) up to <measure>_lifetime.
#}
{% test windows_grow(model) %}
{{ config(meta={'checks': 'rows'}) }}
{%- set rules = {} -%}
{%- set columns = finegrain.declared_columns() -%}
{%- set shortest = '_' ~ (finegrain.day_windows() | first | first) -%}
{%- for column in columns if column.endswith(shortest) -%}
    {%- set measure = column[:-(shortest | length)] -%}
    {%- set windows = [] -%}
    {%- for window in finegrain.window_names() if measure ~ '_' ~ window in columns %}{% do windows.append(window) %}{% endfor -%}
    {%- for shorter in windows[:-1] if measure ~ '_lifetime' in columns -%}
        {%- set longer = windows[loop.index] -%}
        {%- set rule = measure ~ '_' ~ shorter ~ ' <= ' ~ measure ~ '_' ~ longer -%}
        {%- do rules.update({rule: rule}) -%}
    {%- endfor -%}
{%- endfor -%}
{{ finegrain.rows_that_break(model, rules) }}
{% endtest %}
