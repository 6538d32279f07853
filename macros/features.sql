{#
  What a feature mart tells of a customer or a session has two parts. What was done is folded up in a state (int_features__*): it
  changes when something arrives, and when a window passes over something. What follows from the moment itself, the shop and
  the catalogue is worked out by the mart, a view of the state.

  Within a UTC day the windows of days stand still, so a build folds up again only those of whom something changed, and those of whom
  an event left a window of hours since the last build's moment. The first build of a day folds up all of them.
#}

{# By the key of an entity: the spine that asks for it, and the model that tells its identities. #}
{% macro spine_of(key) %}{{ return(ref('int_features__customer_spine') if key == 'customer_id' else ref('int_features__session_spine')) }}{% endmacro %}
{% macro identities_of(key) %}
{{ return(ref('int_identity__links') if key == 'customer_id' else ref('int_tiles__identity_session')) }}
{% endmacro %}

{# Pre-hook: find what has to be folded up again, and forget it. `windows`: those of hours that the state has. #}
{% macro find_touched(key, windows=[]) -%}
{% if execute and not is_full_refresh(this.identifier) -%}
create or replace temporary table touched as
with moments as (

    select
        b.as_of,
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
    from {{ ref('int_cleaning__events') }} as e
    inner join moments as m
        on e.event_at >= m.made_of
        {%- for suffix, hours in windows %}
        or (e.event_at >= m.made_of - interval {{ hours }} hour and e.event_at < m.as_of - interval {{ hours }} hour)
        {%- endfor %}
    where e.event_day >= (select {{ add_days('d.as_of_day', -1) }} from moments as d)
    union
    select {{ unfold("[e.identity, 'a:' || e.anonymous_id]") }} as identity
    from {{ ref('int_cleaning__events') }} as e
    inner join moments as m on e.available_at > m.made_of
    where e.arrival_day >= (select d.as_of_day from moments as d)

)

select l.{{ key }}
from {{ identities_of(key) }} as l
where l.identity in (select i.identity from identities as i)
{%- if key == 'session_id' %}
union
select m.session_id
from {{ moved_sessions() }} as m
where m.moved_in > coalesce({{ watermark(this.identifier) }}, -1)
{%- endif %}
union
select s.{{ key }}
from {{ spine_of(key) }} as s
inner join moments as m on not m.is_of_one_day;
delete from {{ this }}
where {{ key }} in (select t.{{ key }} from touched as t)
    or {{ key }} not in (select s.{{ key }} from {{ spine_of(key) }} as s)
{%- endif %}
{%- endmacro %}

{# CTE body: the questions that a build has to answer: all, or those about what is touched. #}
{% macro asked(key) -%}
select {{ key }}, as_of
from {{ spine_of(key) }}
{%- if is_incremental() %}
where {{ key }} in (select t.{{ key }} from touched as t)
{%- endif %}
{%- endmacro %}

{# CTEs: the questions about customers, `asked`, and `members`, the identities that were known to be theirs. #}
{% macro asked_members() -%}
asked as (

    {{ asked('customer_id') | indent(4) }}

),

members as (

    {{ as_of_members('asked') | indent(4) }}

)
{%- endmacro %}

{# Post-hook: what did not change is as true of this moment as it was of the last. #}
{% macro bring_to_this_moment() -%}
{% if is_incremental() -%}
update {{ this }} set as_of = b.as_of
from {{ ref('int_identity__build') }} as b
where {{ this }}.as_of <> b.as_of
{%- endif %}
{%- endmacro %}
