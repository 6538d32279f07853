{#
  All rows of one `key` hold one `value`: so distinct pairs of them are a mapping, which a join does not multiply.
#}
{% test one_value_per_key(model, key, value) %}
select {{ key }}, count(distinct {{ value }}) as found
from {{ model }}
group by {{ key }}
having count(distinct {{ value }}) > 1
{% endtest %}
