{# The additive state of a group of numbers: how many, their sum and sum of squares, and the same of their natural
   logarithms (of those above zero) in millionths. All exact, so that the order of adding never shows. `counted`: 1 for what is added, -1
   for what is taken away. #}
{% macro value_sums(value, counted='1') -%}
cast(sum({{ counted }}) as bigint) as n,
        cast(sum({{ signed('cast(' ~ value ~ ' as decimal(18, 4))', counted) }}) as decimal(38, 4)) as total,
        cast(sum(
            {{ signed('cast(' ~ value ~ ' as decimal(19, 4)) * cast(' ~ value ~ ' as decimal(19, 4))', counted) }}
        ) as decimal(38, 8)) as total_square,
        cast(coalesce(sum(case when {{ value }} > 0 then {{ counted }} end), 0) as bigint) as log_n,
        cast(coalesce(sum({{ signed(log_micros(value), counted) }}), 0) as decimal(38, 0)) as log_total,
        cast(
            coalesce(sum({{ signed(
                'cast(' ~ log_micros(value) ~ ' as decimal(19, 0)) * cast(' ~ log_micros(value) ~ ' as decimal(19, 0))', counted
            ) }}), 0)
            as decimal(38, 0)
        ) as log_total_square
{%- endmacro %}

{# SQL: a value, or its opposite where it is taken away. #}
{% macro signed(value, counted) -%}
{%- if counted == '1' -%} {{ value }} {%- else -%} case when {{ counted }} < 0 then -({{ value }}) else {{ value }} end {%- endif -%}
{%- endmacro %}

{# CTE: the events that were kept at the end of their arrival day, `counted` as 1; and as -1, by the day of their end, those that are no
   longer kept. #}
{% macro kept_by_day() -%}
kept_by_day as {{ inlined() }} (

    {% for day, counted, condition in [
        ('arrival_day', 1, "(verdict = 'kept' or arrival_day < until_day)"),
        ('until_day', -1, 'arrival_day < until_day'),
    ] %}
    select
        arrival_day as seen_day,
        {{ day }} as arrival_day,
        {{ counted }} as counted,
        origin,
        product_id,
        product_category,
        event_type,
        event_at,
        price_reported,
        quantity,
        device,
        country
    from {{ ref('int_events__validated') }}
    where {{ condition }} and {{ is_changed('int_events__changed_days', [(day, 'arrival_day')]) }}
    {{ "union all" if not loop.last }}
    {% endfor %}

)
{%- endmacro %}

{# SQL: the natural logarithm of a positive value in millionths, a whole number, so that its sums are exact; null of others. #}
{% macro log_micros(value) -%}
case when {{ value }} > 0 then cast(round(ln(cast({{ value }} as double)) * 1000000) as bigint) end
{%- endmacro %}

{# The names of the sums above. #}
{% macro sum_names() %}{{ return(['n', 'total', 'total_square', 'log_n', 'log_total', 'log_total_square']) }}{% endmacro %}

{# The type of one of these sums. #}
{% macro sum_type(name) -%}
{{ {'n': 'bigint', 'log_n': 'bigint', 'total': 'decimal(38, 4)', 'total_square': 'decimal(38, 8)'}.get(name, 'decimal(38, 0)') }}
{%- endmacro %}

{# SQL: the first arrival day whose kept events changed since the model's watermark; null when none did. None in a full build. #}
{% macro first_changed_day() -%}
{%- if not execute %}{% do ref('int_events__changed_days') %}{% endif -%}
{%- if not is_incremental() %}{{ return(none) }}{% endif -%}
{%- set found -%}
coalesce((
    select min(d.arrival_day) from {{ ref('int_events__changed_days') }} as d
    where d.changed_in > coalesce({{ watermark(this.identifier) }}, -1)
), date '9999-12-31')
{%- endset -%}
{{ return(found) }}
{%- endmacro %}

{# Sample standard deviation from n, the sum and the sum of squares. #}
{% macro std_of(n, total, total_square) -%}
case
    when {{ n }} > 1 then sqrt(greatest(
        (cast({{ total_square }} as double) - cast({{ total }} as double) * cast({{ total }} as double) / {{ n }}) / ({{ n }} - 1),
        0
    ))
end
{%- endmacro %}

{# The twentieths at which a fit keeps quantiles, in percent. #}
{% macro quantile_steps() %}{{ return(range(5, 100, 5)) }}{% endmacro %}

{# SQL: how much of a fit's histogram lies up to `value`, in percent, to the twentieth; null for null. #}
{% macro steps_reached(value, fit) -%}
case when {{ value }} is not null then 5 * (
    {%- for step in quantile_steps() %}
    case when {{ value }} >= {{ fit }}.q{{ '%02d' % step }} then 1 else 0 end{{ " +" if not loop.last }}
    {%- endfor %}
) end
{%- endmacro %}

{#
  Fits of one histogram table: for each (measure, group_by, group_key) and each day on which something new arrived in
  it, the quantiles, the most frequent value (of equals the smallest), means and deviations of all that had arrived by
  the end of that day. A group whose events were all superseded by then has a fit of none, n = 0 and the rest null, which
  replaces the earlier one.

  `tiles`: a relation with arrival_day, measure, group_by, group_key, bucket and the sums of value_sums().
  `first_day`: SQL of the first day to make fits for, or none for all; what came before it is added up into one.
  `window_weeks`: fits by hour of the week are of what arrived in the last so many weeks before the end of that day; 0 for all. The
  tiles then have a seen_day.
#}
{% macro numeric_fits(tiles, first_day=none, window_weeks=0) -%}
{%- set keys = 'measure, group_by, group_key' -%}
with {% if window_weeks %}counted as (

    select {{ keys }}, bucket, arrival_day, 1 as of_arrivals, {{ sum_names() | join(', ') }} from {{ tiles }}
    union all
    -- What leaves the window is taken away again; what ends after it has left is not taken away twice.
    select
        {{ keys }},
        bucket,
        greatest(arrival_day, {{ add_days('seen_day', 7 * window_weeks) }}) as arrival_day,
        0 as of_arrivals,
        {%- for name in sum_names() %}
        -{{ name }} as {{ name }}{{ "," if not loop.last }}
        {%- endfor %}
    from {{ tiles }}
    where group_by = 'hour_of_week'

),

{% endif %}steps as (

    select
        {{ keys }},
        bucket,
        {% if first_day %}greatest(arrival_day, {{ add_days(first_day, -1) }}){% else %}arrival_day{% endif %} as valid_on,
        {%- if window_weeks %}
        max(of_arrivals) as of_arrivals,
        {%- endif %}
        {%- for name in sum_names() %}
        sum({{ name }}) as {{ name }}{{ "," if not loop.last }}
        {%- endfor %}
    from {{ 'counted' if window_weeks else tiles }}
    group by 1, 2, 3, 4, 5

),

days as (

    select
        {{ keys }},
        valid_on,
        {%- if window_weeks %}
        max(of_arrivals) as of_arrivals,
        {%- endif %}
        {%- for name in sum_names() %}
        cast(sum(sum({{ name }})) over (
            partition by {{ keys }} order by valid_on rows between unbounded preceding and current row
        ) as {{ sum_type(name) }}) as {{ name }}{{ "," if not loop.last }}
        {%- endfor %}
    from steps
    group by {{ keys }}, valid_on

),

buckets as (

    select {{ keys }}, bucket, min(valid_on) as first_on from steps group by {{ keys }}, bucket

),

-- Every bucket on every day of its group since it first occurred, added up day by day.
added as (

    select
        d.measure,
        d.group_by,
        d.group_key,
        d.valid_on,
        d.n as all_n,
        b.bucket,
        sum(coalesce(s.n, 0)) over so_far as n,
        sum(coalesce(s.total, 0)) over so_far as total
    from days as d
    inner join buckets as b
        on d.measure = b.measure and d.group_by = b.group_by and d.group_key = b.group_key and d.valid_on >= b.first_on
    left join steps as s
        on d.measure = s.measure and d.group_by = s.group_by and d.group_key = s.group_key
        and d.valid_on = s.valid_on and b.bucket = s.bucket
    window so_far as (
        partition by d.measure, d.group_by, d.group_key, b.bucket
        order by d.valid_on
        rows between unbounded preceding and current row
    )

),

ranked as (

    select
        {{ keys }},
        valid_on,
        all_n,
        -- A bucket's value is the mean of what fell into it, to the four decimals of the values: exact wherever it holds one value only.
        {{ mean_of('total', 'n') }} as bucket_value,
        sum(n) over (
            partition by {{ keys }}, valid_on order by bucket rows between unbounded preceding and current row
        ) as running_n,
        n = max(n) over (partition by {{ keys }}, valid_on) as is_most_frequent
    from added

),

quantiles as (

    select
        {{ keys }},
        valid_on,
        {%- for step in quantile_steps() %}
        min(case when running_n * 100 >= all_n * {{ step }} then bucket_value end) as q{{ '%02d' % step }},
        {%- endfor %}
        min(case when is_most_frequent then bucket_value end) as most_frequent
    from ranked
    group by {{ keys }}, valid_on

)

select
    d.measure,
    d.group_by,
    d.group_key,
    d.valid_on,
    d.n,
    {%- for step in quantile_steps() %}
    q.q{{ '%02d' % step }},
    {%- endfor %}
    q.most_frequent,
    case when d.n > 0 then cast(d.total as double) / d.n end as mean,
    {{ std_of('d.n', 'd.total', 'd.total_square') }} as std,
    case when d.log_n > 0 then cast(d.log_total as double) / d.log_n / 1000000 end as log_mean,
    {{ std_of('d.log_n', 'd.log_total', 'd.log_total_square') }} / 1000000 as log_std
from days as d
inner join quantiles as q
    on d.measure = q.measure and d.group_by = q.group_by and d.group_key = q.group_key and d.valid_on = q.valid_on
{% if first_day %}
where d.valid_on >= {{ first_day }}
{% endif %}
{% if window_weeks %}
    {#- Incremental builds replace the days of arrivals alone. A window that nothing came into stays as it was. #}
    {{ "and" if first_day else "where" }} d.of_arrivals = 1
{% endif %}
{%- endmacro %}

{# Fits of a table of counts: for each group and day, the most frequent value of all that had arrived by then; of
   equally frequent ones the first in alphabetical order; null where none is left. `tiles` has arrival_day, measure, group_by, group_key,
   observed and n. #}
{% macro mode_fits(tiles, first_day=none) -%}
{%- set keys = 'measure, group_by, group_key' -%}
with steps as (

    select
        {{ keys }},
        observed,
        {% if first_day %}greatest(arrival_day, {{ add_days(first_day, -1) }}){% else %}arrival_day{% endif %} as valid_on,
        sum(n) as n
    from {{ tiles }}
    group by 1, 2, 3, 4, 5

),

days as (

    select distinct {{ keys }}, valid_on from steps

),

first_seen as (

    select {{ keys }}, observed, min(valid_on) as first_on from steps group by {{ keys }}, observed

),

added as (

    select
        d.measure,
        d.group_by,
        d.group_key,
        d.valid_on,
        m.observed,
        sum(coalesce(s.n, 0)) over (
            partition by d.measure, d.group_by, d.group_key, m.observed
            order by d.valid_on
            rows between unbounded preceding and current row
        ) as n
    from days as d
    inner join first_seen as m
        on d.measure = m.measure and d.group_by = m.group_by and d.group_key = m.group_key and d.valid_on >= m.first_on
    left join steps as s
        on d.measure = s.measure and d.group_by = s.group_by and d.group_key = s.group_key
        and d.valid_on = s.valid_on and m.observed = s.observed

),

ranked as (

    select
        *,
        row_number() over (partition by {{ keys }}, valid_on order by n desc, observed) as place,
        sum(n) over (partition by {{ keys }}, valid_on) as all_n
    from added

)

select
    {{ keys }},
    valid_on,
    case when n > 0 then observed end as most_frequent,
    cast(n as bigint) as n,
    cast(all_n as bigint) as all_n
from ranked
where place = 1
{% if first_day %}
    and valid_on >= {{ first_day }}
{% endif %}
{%- endmacro %}

{# CTE body: for each of `keys` the newest of the fits that were valid by the day `fit_day` of the CTE `build`. #}
{% macro newest_fits(fits, keys, condition='true') -%}
select *
from (
    select
        f.*,
        row_number() over (
            partition by {% for key in keys %}f.{{ key }}{{ ", " if not loop.last }}{% endfor %} order by f.valid_on desc
        ) as recency
    from {{ fits }} as f
    inner join build as b on f.valid_on <= b.fit_day
    where {{ condition }}
) as ranked_fits
where recency = 1
{%- endmacro %}
