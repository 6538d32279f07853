{#
  What a feature mart tells of a customer has two parts. What the customer did is folded up in a state (int_features__*): it
  changes when something of theirs arrives, and when a window passes over something of theirs. What follows from the moment
  itself, the shop and the catalogue is worked out by the mart, a view of the state.

  Within a UTC day the windows of days stand still, so a build folds up again only the customers of whom something changed or
  who did something in the 24 hours before the last build's moment. The first build of a day folds up everybody.
#}

{# Pre-hook: find those customers, and forget them. #}
{% macro find_touched_customers() -%}
{% if execute and not starts_afresh(this.identifier) -%}
create or replace temporary table touched_customers as
with moments as (

    select
        b.as_of_day,
        s.made_of,
        coalesce(s.moments = 1 and s.made_of <= b.as_of and cast(s.made_of as date) = b.as_of_day, false) as is_of_one_day
    from {{ ref('int_identity__build') }} as b
    cross join (select max(as_of) as made_of, count(distinct as_of) as moments from {{ this }}) as s

),

identities as (

    {{ changed_identities() | indent(4) }}
    union
    select e.identity
    from {{ ref('int_events__cleaned') }} as e
    where e.built_in > coalesce({{ watermark(this.identifier) }}, -1)
    union
    select e.identity
    from {{ ref('int_events__cleaned') }} as e
    inner join moments as m on e.event_at >= m.made_of - interval 24 hour
    where e.event_day >= (select {{ add_days('d.as_of_day', -1) }} from moments as d)
    union
    select unnest([e.identity, 'a:' || e.anonymous_id]) as identity
    from {{ ref('int_events__cleaned') }} as e
    inner join moments as m on e.available_at > m.made_of
    where e.arrival_day >= (select d.as_of_day from moments as d)

)

select l.customer_id
from {{ ref('int_identity__links') }} as l
where l.identity in (select i.identity from identities as i)
union
select s.customer_id
from {{ ref('spine_customers') }} as s
inner join moments as m on not m.is_of_one_day;
delete from {{ this }}
where customer_id in (select t.customer_id from touched_customers as t)
    or customer_id not in (select s.customer_id from {{ ref('spine_customers') }} as s)
{%- endif %}
{%- endmacro %}

{# The questions that a build has to answer: all, or those about the customers above. #}
{% macro asked_customers() -%}
select customer_id, as_of
from {{ ref('spine_customers') }}
{%- if is_incremental() %}
where customer_id in (select t.customer_id from touched_customers as t)
{%- endif %}
{%- endmacro %}

{# Post-hook: what did not change is as true of this moment as it was of the last. #}
{% macro bring_to_this_moment() -%}
{% if is_incremental() -%}
update {{ this }} set as_of = b.as_of
from {{ ref('int_identity__build') }} as b
where {{ this }}.as_of <> b.as_of
{%- endif %}
{%- endmacro %}
