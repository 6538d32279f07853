-- The values of metric_history that a rule of seeds/metric_rules.csv takes for anomalous, of closed days after the warm-up. A forecast is
-- the median of the last five of the same weekday or, where there are not four yet, of the last 28 days; how far off is usual is known from
-- the forecasts of the 28 days before. Of five, two may be holidays. A day is compared with days before it alone, so what comes later does
-- not change what is said of it.
{% set keys = ['metric', 'table_name', 'source', 'segment', 'segment_value', 'column_name'] %}
{% set key = keys | join(', ') %}
with history as (

    select *
    from {{ ref('metric_history') }}
    where day < cast(as_of as date)

),

series as (

    select {{ key }}, min(day) as first_day
    from history
    group by {{ key }}

),

followed as (

    select
        {% for name in keys %}
        s.{{ name }},
        {% endfor %}
        s.first_day,
        {{ all_but('r', keys | reject('equalto', 'segment_value') | list) }}
    from series as s
    inner join {{ seed('metric_rules') }} as r
        on
            r.grain = 'day'
            and s.metric = r.metric
            and s.table_name like r.table_name
            and s.source like r.source
            and s.segment = r.segment
            and s.column_name like r.column_name

),

scaled as (

    select
        *,
        {{ on_forecast_scale('metric', 'value') | indent(8) }} as scaled
    from history
    where ({{ key }}) in (select ({{ key_of(keys, 'f', listed=true) }}) from followed as f)

),

forecasts as (

    select
        *,
        case
            when count(*) over same_weekday >= 4 then {{ median_of('scaled') }} over same_weekday
            else {{ median_of('scaled') }} over last_days
        end as forecast,
        {{ median_of('n') }} over last_days as usual_n
    from scaled
    window
        same_weekday as (partition by {{ key }}, extract(isodow from day) order by day rows between 5 preceding and 1 preceding),
        last_days as (partition by {{ key }} order by day rows between 28 preceding and 1 preceding)

),

errors as (

    select
        *,
        {{ median_of('abs(scaled - forecast)') }} over (
            partition by {{ key }}
            order by day
            rows between 28 preceding and 1 preceding
        ) as usual_error
    from forecasts

),

compared as (

    select
        f.*,
        e.day,
        e.value,
        e.n,
        e.scaled,
        e.as_of,
        e.built_from,
        e.forecast,
        greatest(cast(e.n as double), e.usual_n) as rests_on,
        -- A median absolute error of 1 is a standard deviation of 1.4826, if errors are normal. What chance does to so few rows is added.
        sqrt(power(1.4826 * e.usual_error, 2) + {{ sampling_variance('e.metric', 'e.forecast', 'e.n') | indent(8) }}) as spread
    from errors as e
    inner join followed as f
        on
            e.metric = f.metric
            and e.table_name = f.table_name
            and e.source = f.source
            and e.segment = f.segment
            and e.segment_value = f.segment_value
            and e.column_name = f.column_name
    where e.day >= {{ add_days('f.first_day', var('metric_warm_up_days')) }}

),

bounded as (

    select
        *,
        case
            when method = 'forecast'
                then greatest(
                        sensitivity * spread,
                        case when metric in ({{ metrics_on_log_scale() }}) then ln(min_change) else min_change end
                    )
        end as margin
    from compared

),

limits as (

    select
        *,
        case
            when direction = 'up' then null
            when method = 'static' then at_least
            else {{ from_forecast_scale('metric', 'forecast - margin') }}
        end as low,
        case
            when direction = 'down' then null
            when method = 'static' then at_most
            else {{ from_forecast_scale('metric', 'forecast + margin') }}
        end as high
    from bounded

)

select
    rule_id,
    {{ key }},
    day,
    value,
    case when method = 'forecast' then {{ from_forecast_scale('metric', 'forecast') }} end as expected,
    low,
    high,
    case when method = 'forecast' then (scaled - forecast) / nullif(spread, 0) end as score,
    n,
    severity,
    owner,
    coalesce(day between suppressed_from and suppressed_until, false) as is_suppressed,
    as_of,
    built_from
from limits
where (value < low or value > high) and (rests_on >= min_n)
