{#
  Every row keeps every rule, given as name: predicate. A row that does not comes whole, with the names of the rules that it
  breaks. As with a check constraint, a predicate that is null breaks nothing: where null is wrong, say `is not null`.
#}
{% test every_row(model, rules) %}
{{ config(meta={'checks': 'rows'}) }}
{{ finegrain.rows_that_break(model, rules) }}
{% endtest %}
