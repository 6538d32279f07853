-- A rule is a predicate in macros/validation_rules.sql and a row of seeds/validation_rules.csv: one without the other is a slip.
with done as (

    {% for rule, predicate in validation_rules() %}
    select '{{ rule }}' as rule_id
    {{ "union all" if not loop.last }}
    {% endfor %}

)

select
    d.rule_id as predicate_of,
    s.rule_id as row_of
from done as d
full outer join {{ seed('validation_rules') }} as s on d.rule_id = s.rule_id
where d.rule_id is null or s.rule_id is null
