{#
  The as-of rule, in one place. A feature at moment t sees events with event_at < t that were available_at <= t, each in the version
  that was valid at t (known_from <= t < known_to). A window of n days covers the n whole UTC days before t's day, and t's day up to t;
  windows of an hour or a day end at t itself.

  What arrived before t's day, and did not end on it, is read from tiles, which are closed; what arrived or ended on t's day is read
  from the events and added up by the very same measures.
#}

{# SQL: whether `moment` lies in the period from `begins`, which it includes, to `ends`, which it does not; a period without an end is open.
   No `or`: a join on one compares all with all, while one of comparisons is hashed on its other columns. #}
{% macro is_valid_at(moment, begins, ends) -%}
{{ begins }} <= {{ moment }} and {{ moment }} < coalesce({{ ends }}, timestamp '9999-12-31')
{%- endmacro %}

{# SQL: whether a row of a tile was valid before a day and still was when the day ended or, `at_its_begin`, when it began. #}
{% macro is_closed_by(as_of_day, tile, at_its_begin=false) -%}
{{ tile }}.arrival_day < {{ as_of_day }}
    and coalesce({{ tile }}.until_day, date '9999-12-31') {{ '>=' if at_its_begin else '>' }} {{ as_of_day }}
{%- endmacro %}

{# CTE bodies. `members`: the spine with the identities that were known, at as_of, to be each customer's. The validity is one condition (a
   comparison with an open end is null): with comparisons in the join, DuckDB expects twenty times as many rows as there are, and builds the
   hash tables of the joins with `members` from all events. #}
{% macro as_of_members(spine, key='customer_id') -%}
select
    s.{{ key }},
    s.as_of,
    cast(s.as_of as date) as as_of_day,
    l.identity
from {{ spine }} as s
inner join {{ ref('int_identity__links') }} as l
    on s.{{ key }} = l.{{ key }} and coalesce(l.known_from <= s.as_of and s.as_of < l.known_to, l.known_from <= s.as_of)
{%- endmacro %}

{# The rows of a tile that were visible at each as_of, as (entity, as_of, as_of_day) and the tile's own columns: `members` is a
   CTE with entity, as_of, as_of_day and `link`. Where entity and link are one column, the entity is called entity_key.
   `open_events`: a CTE with as_of_open_events() of the same, so that several tiles read the events once. #}
{% macro as_of_tiles(tile, members='members', entity='customer_id', link='identity', open_events=none) -%}
select m.{{ entity }}{{ ' as entity_key' if entity == link }}, m.as_of, m.as_of_day, t.*
from {{ members }} as m
inner join {{ ref('int_tiles__' ~ tile) }} as t on m.{{ link }} = t.{{ link }} and {{ finegrain.is_closed_by('m.as_of_day', 't') }}
union all
select *
from (
    {{ finegrain.tile_rows(
        tile,
        open_events or "(" ~ finegrain.as_of_open_events(members, entity, link) ~ ") as open_events",
        also=['entity_key' if entity == link else entity, 'as_of', 'as_of_day']
    ) | indent(4) }}
) as open_tiles
{%- endmacro %}

{# The visible events that arrived or ended on as_of's own day, which no tile may speak for. Two joins, since one on an `or` is slow. By
   itself, DuckDB reads only events of the days that a few `members` ask for; for many, that few events have ended has to be said. #}
{% macro as_of_open_events(members, entity, link) -%}
select
    m.{{ entity }}{{ ' as entity_key' if entity == link }},
    m.as_of,
    m.as_of_day,
    e.*
from {{ members }} as m
inner join {{ ref('int_cleaning__events') }} as e
    on m.{{ link }} = e.{{ link }}
    and e.arrival_day = m.as_of_day
    and {{ finegrain.is_valid_at('m.as_of', 'e.known_from', 'e.known_to') }}
    and e.event_at < m.as_of
union all
select
    m.{{ entity }}{{ ' as entity_key' if entity == link }},
    m.as_of,
    m.as_of_day,
    e.*
from {{ members }} as m
inner join {{ ref('int_cleaning__events') }} as e
    on m.{{ link }} = e.{{ link }}
    and e.until_day = m.as_of_day
    and e.arrival_day < m.as_of_day
    and e.known_to > m.as_of
    and e.event_at < m.as_of
where e.until_day is not null
{%- endmacro %}

{# The visible events of the 24 hours before each as_of. #}
{% macro as_of_last_day(members='members', entity='customer_id', link='identity') -%}
select
    m.{{ entity }}{{ ' as entity_key' if entity == link }},
    m.as_of,
    e.*
from {{ members }} as m
inner join {{ ref('int_cleaning__events') }} as e
    on m.{{ link }} = e.{{ link }}
    and e.event_at >= m.as_of - interval 24 hour
    and e.event_at < m.as_of
    and {{ finegrain.is_valid_at('m.as_of', 'e.known_from', 'e.known_to') }}
{%- endmacro %}

{# The windows made of days, as [suffix, days]; lifetime has none. #}
{% macro day_windows() %}
{%- set windows = [] -%}
{%- for days in var('day_windows') %}{% do windows.append([days ~ 'd', days]) %}{% endfor -%}
{% do windows.append(['lifetime', none]) %}
{{ return(windows) }}
{% endmacro %}

{# Of the windows of days, those over which shares, means and rates of a customer are taken. #}
{% macro share_windows() %}{{ return([['90d', 90], ['lifetime', none]]) }}{% endmacro %}

{# Of the windows of days, those in which rare things are counted: carts that were left, products seen together. #}
{% macro count_windows() %}{{ return([['30d', 30]] + finegrain.share_windows()) }}{% endmacro %}

{# The windows that end at the moment itself, as [suffix, hours]. #}
{% macro hour_windows() %}{{ return([['1h', 1], ['24h', 24]]) }}{% endmacro %}

{# The suffixes of all windows, from the shortest to the lifetime. #}
{% macro window_names() %}{{ return((finegrain.hour_windows() + finegrain.day_windows()) | map('first') | list) }}{% endmacro %}

{# SQL: whether an event lies in a window of hours. #}
{% macro in_hours(hours) %}event_at >= as_of - interval {{ hours }} hour{% endmacro %}

{# The declared measures of an entity over the windows of hours, from events of the last day. #}
{% macro measures_by_hours(entity) -%}
{%- for suffix, hours in finegrain.hour_windows() %}
{%- for name, type, expression in finegrain.declared_measures([entity], finegrain.in_hours(hours)) %}
{{ expression }} as {{ name }}_{{ suffix }},
{%- endfor %}
{%- endfor %}
{%- endmacro %}

{# The same over the windows of days, from tile rows. #}
{% macro measures_by_days(entity) -%}
{%- for suffix, days in finegrain.day_windows() %}
{%- for name, type, expression in finegrain.declared_measures([entity]) %}
{{ finegrain.window_money(name, days) if finegrain.is_money(name) else finegrain.window_sum(name, days, type) }} as {{ name }}_{{ suffix }},
{%- endfor %}
{%- endfor %}
{%- endmacro %}

{# The names of an entity's declared measures, the shop's own included. #}
{% macro measure_names(entity) %}{{ return(finegrain.declared_measures([entity]) | map('first') | list) }}{% endmacro %}

{# Those of them that the contract of the entity's mart names: finegrain's. #}
{% macro mart_measure_names(entity) %}
{%- set found = [] -%}
{%- for measure in var('measures') if entity in measure.of %}{% do found.append(measure.name) %}{% endfor -%}
{{ return(found) }}
{% endmacro %}

{# SQL: columns <name>_<suffix> of a left-joined relation over such windows, 0 where it has no row. #}
{% macro or_zero(alias, names, windows) -%}
{%- for suffix, span in windows %}
{%- for name in names %}
case when {{ alias }}.as_of is null then 0 else {{ alias }}.{{ name }}_{{ suffix }} end as {{ name }}_{{ suffix }},
{%- endfor %}
{%- endfor %}
{%- endmacro %}

{# SQL: columns <name>_<suffix> of `alias`, for each of the windows by their suffixes. #}
{% macro by_window(alias, names, suffixes) -%}
{%- for suffix in suffixes %}
{%- for name in names %}
{{ alias }}.{{ name }}_{{ suffix }},
{%- endfor %}
{%- endfor %}
{%- endmacro %}

{# SQL: whether a tile row's event day lies in the window; true for the lifetime. #}
{% macro in_window(days, day='event_day', as_of_day='as_of_day') -%}
{%- if days is none -%} true {%- else -%} {{ day }} >= {{ finegrain.add_days(as_of_day, -1 * days) }} {%- endif -%}
{%- endmacro %}

{# SQL: a measure of tile rows summed over a window; 0 where there is nothing. #}
{% macro window_sum(measure, days, type) -%}
cast(coalesce(sum(
    {%- if days is none %}{{ measure }}{% else %}case when {{ finegrain.in_window(days) }} then {{ measure }} end{% endif -%}
), 0) as {{ type }})
{%- endmacro %}

{# SQL: money of tile rows summed over a window: 0 where there is nothing to add up, null where there is and none of it has a price. #}
{% macro window_money(measure, days) -%}
cast(coalesce(
    sum({% if days is none %}{{ measure }}{% else %}case when {{ finegrain.in_window(days) }} then {{ measure }} end{% endif %}),
    case when {{ finegrain.window_sum('unpriced_' ~ measure, days, 'bigint') }} = 0 then 0 end
) as decimal(38, 4))
{%- endmacro %}

{# CTE body: for each of `keys`, how many different values rows of state have over each window of days, as <name>_<suffix>. A value is in
   every window that reaches its last day, so one row per value is enough, where count(distinct) would keep all values once a window. #}
{% macro distinct_by_days(name, value, rows, keys=['customer_id', 'as_of'], windows=finegrain.day_windows(), day='event_day') -%}
select
    {%- for suffix, days in windows %}
    {{ finegrain.count_if(finegrain.in_window(days, 'last_day')) }} as {{ name }}_{{ suffix }},
    {%- endfor %}
    {{ keys | join(', ') }}
from (
    select {{ keys | join(', ') }}, as_of_day, {{ value }}, max({{ day }}) as last_day
    from {{ rows }}
    where {{ value }} is not null
    group by {{ keys | join(', ') }}, as_of_day, {{ value }}
) as distinct_values
group by {{ keys | join(', ') }}
{%- endmacro %}

{# SQL: numerator / denominator; null when there is nothing to share. #}
{% macro share(numerator, denominator) -%}
case when {{ denominator }} > 0 then cast({{ numerator }} as double) / cast({{ denominator }} as double) end
{%- endmacro %}

{# SQL: one measure of tile rows as a share of another, both summed over a window. #}
{% macro window_share(numerator, denominator, days) -%}
{{ finegrain.share(finegrain.window_sum(numerator, days, 'decimal(38, 4)'), finegrain.window_sum(denominator, days, 'decimal(38, 4)')) }}
{%- endmacro %}

{# SQL: a rate pulled towards a prior by `smoothing_strength` pseudo-observations (the posterior mean of a beta-binomial
   model whose prior mean is `prior`), within 0 and 1. #}
{% macro smoothed_rate(successes, trials, prior) -%}
least((cast({{ successes }} as double) + {{ var('smoothing_strength') }} * {{ prior }})
    / (greatest(cast({{ trials }} as double), cast({{ successes }} as double)) + {{ var('smoothing_strength') }}), 1.0)
{%- endmacro %}

{# SQL: a sum of `value` weighted by 0.5 ^ (age in days / half-life), in exact millionths, so that order never shows. #}
{% macro decayed_sum(value, half_life, day='event_day', as_of_day='as_of_day') -%}
coalesce(cast(sum(cast(round(cast({{ value }} as double)
    * power(0.5, {{ finegrain.days_between(day, as_of_day) }} / {{ half_life }}.0) * 1000000) as bigint)) as double) / 1000000, 0)
{%- endmacro %}

{# SQL: sample standard deviation from exact sums of integers or decimals; of sums whose squares no decimal holds, from doubles. #}
{% macro exact_std(n, total, total_square) -%}
{%- set n_double, total_double = 'cast(' ~ n ~ ' as double)', 'cast(' ~ total ~ ' as double)' -%}
{%- set square_double = 'cast(' ~ total_square ~ ' as double)' -%}
case when {{ n }} > 1 then round(sqrt(greatest(
    case
        when abs({{ total_double }}) < 1e14 and {{ n_double }} * {{ square_double }} < 1e29
            then cast({{ n }} * {{ total_square }} - {{ total }} * {{ total }} as double)
        else {{ n_double }} * {{ square_double }} - {{ total_double }} * {{ total_double }}
    end / ({{ n_double }} * ({{ n }} - 1)), 0
)), 6) end
{%- endmacro %}
