{#
  Which events are a bot's, by how its identity behaves on a day, whatever its user agent says. The thresholds are the var bot_behaviour.

  An event is compared with what of its identity's day had arrived before it, so what comes later never changes the verdict on what came
  before. A day is a bot's from the moment on at which it is too regular; or at which it consists of views and pages alone, and of too
  many hours, or of too many products with hardly one seen twice. Each alone is beyond what people do (docs/explanation/cleaning.md).
#}

{# The rules of seeds/validation_rules.csv that find bots. #}
{% macro bot_rules() %}{{ return(['bot_user_agent', 'bot_rate', 'bot_behaviour']) }}{% endmacro %}

{# How many rows a day of an identity has at least, if any of them may be a bot's. #}
{% macro rows_of_a_busy_day() %}{{ [var('max_events_per_identity_day') + 1, var('bot_behaviour')['moments']] | min }}{% endmacro %}

{# CTEs: `automated`, the rows that a bot seems to have made. `arrivals`: rows of busy days, each with its moment and when that first
   arrived. #}
{% macro automated_rows(arrivals) -%}
{%- set limits = var('bot_behaviour') -%}
-- What was known of each moment when it first arrived. Engagements, which browsers send by themselves, say nothing.
facts as (

    select
        identity,
        event_day,
        moment,
        first_arrival,
        max(case when event_type <> 'engagement' then 1 else 0 end) as is_act,
        max(case when event_type not in ('view_item', 'view_item_list', 'page_view', 'engagement') then 1 else 0 end) as is_step,
        count(distinct case when event_type = 'view_item' then product_id end) as products,
        count(case when event_type = 'view_item' and product_id is not null and place = 1 then 1 end) as new_products
    from (
        select
            *,
            row_number() over (partition by identity, event_day, event_type, product_id order by first_arrival, moment, row_id) as place
        from {{ arrivals }}
        where raw_available_at = first_arrival
    ) as first_seen
    group by identity, event_day, moment, first_arrival

),

paced as (

    select
        *,
        case when is_act = 1 then abs({{ milliseconds_between(
            last_known('case when is_act = 1 then moment end') ~ ' over (
                partition by identity, event_day order by first_arrival, moment rows between unbounded preceding and 1 preceding
            )', 'moment'
        ) }}) end as gap,
        case
            when is_act = 1 and 1 = row_number() over (
                partition by identity, event_day, is_act, extract(hour from moment) order by first_arrival, moment
            ) then 1 else 0
        end as is_new_hour
    from facts

),

so_far as (

    select
        identity,
        event_day,
        moment,
        first_arrival,
        sum(is_act) over day_so_far as moments,
        sum(is_step) over day_so_far as steps,
        sum(products) over day_so_far as products,
        sum(new_products) over day_so_far as new_products,
        sum(is_new_hour) over day_so_far as hours,
        count(gap) over day_so_far as gaps,
        sum(gap) over day_so_far as gap_total,
        sum(gap * gap) over day_so_far as gap_square_total
    from paced
    window day_so_far as (
        partition by identity, event_day order by first_arrival, moment rows between unbounded preceding and current row
    )

),

signals as (

    select
        identity,
        event_day,
        moment,
        first_arrival,
        case
            when moments < {{ limits['moments'] }} then 0
            -- The coefficient of variation, squared: of whole milliseconds, whose sums are exact.
            when cast(gaps as double) * cast(gap_square_total as double)
                <= (1 + {{ limits['variation'] }} * {{ limits['variation'] }}) * cast(gap_total as double) * cast(gap_total as double)
                then 1
            when steps = 0 and hours >= {{ limits['hours'] }} then 1
            when steps = 0 and new_products >= {{ limits['products'] }} and new_products >= {{ limits['new_share'] }} * products then 1
            else 0
        end as is_signal
    from so_far

),

automated as (

    select a.row_id
    from {{ arrivals }} as a
    inner join (
        select
            *,
            max(is_signal) over (
                partition by identity, event_day order by first_arrival, moment rows between unbounded preceding and current row
            ) as is_automated
        from signals
    ) as s on a.identity = s.identity and a.event_day = s.event_day and a.moment = s.moment
    where s.is_automated = 1

),
{%- endmacro %}
