{#
  What a feature mart says of a customer or a session has two parts. What was done is added up in a state (int_features__*): it changes
  when something arrives, and when a window passes over something. What follows from the moment itself, the shop and the catalogue is
  worked out by the mart, a view of the state.

  A build works out the states of those alone that a change set names (int_features__changed_customers, int_features__changed_sessions).
#}

{# CTE body: the entities and moments that a build has to answer: the whole spine, or those of the change set of which `condition` holds. #}
{% macro asked(key, spine, change_set, condition='true') -%}
{%- if not execute %}{% do ref(change_set) %}{% endif -%}
select {{ key }}, as_of
from {{ ref(spine) }}
where
    {{ is_consenting(key, key) | indent(4) }}
    {%- if is_incremental() %}
    and {{ key }} in (select c.{{ key }} from {{ ref(change_set) }} as c where {{ condition }})
    {%- endif %}
{%- endmacro %}

{# CTEs: the customers and moments, `asked`; `members`, the identities that were known to be theirs; and the `open_events` of these. #}
{% macro asked_members(condition='true') -%}
asked as (

    {{ asked('customer_id', 'int_features__customer_spine', 'int_features__changed_customers', condition) | indent(4) }}

),

members as (

    {{ as_of_members('asked') | indent(4) }}

),

open_events as (

    {{ as_of_open_events('members', 'customer_id', 'identity') | indent(4) }}

)
{%- endmacro %}

{# CTE body: the moment of this build, and `last_as_of`, the one for which the state that lags behind most was built; whether windows of
   days have stood still since (`is_same_day`). #}
{% macro moments_of_builds() -%}
select
    b.as_of,
    b.as_of_day,
    min(w.as_of) as last_as_of,
    min(w.snapshot) as last_snapshot,
    coalesce(max(w.as_of) <= b.as_of and cast(min(w.as_of) as date) = b.as_of_day, false) as is_same_day
from {{ ref('int_identity__build') }} as b
left join {{ source('bookkeeping', 'watermarks') }} as w on w.as_of is not null
group by b.as_of, b.as_of_day
{%- endmacro %}
