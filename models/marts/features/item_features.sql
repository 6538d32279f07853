{% set offers = ref('int_features__offers') %}
{% set rate_windows = ['30d', 'lifetime'] %}
{% set weight = 'cast(round(power(0.5, ' ~ days_between('event_day', 'as_of_day') ~ ' / 7.0) * 1000000000) as bigint)' %}
{% set middle_price %}
case when price_place > floor(priced_days / 10.0) and price_place <= priced_days - floor(priced_days / 10.0) then price end
{%- endset %}
with spine as (

    select product_id, as_of from {{ ref('int_features__product_spine') }}

),

---------- what was visible at as_of of all products, whichever of them the spine asks for: ranks and category rates compare each with all

days as (

    {{ as_of_tiles('product', offers, 'product_id', 'product_id') | indent(4) }}

),

orders as (

    {{ as_of_tiles('product_order', offers, 'product_id', 'product_id') | indent(4) }}

),

last_day as (

    {{ last_day_by_customer() | indent(4) }}

),

---------- windows

recent as (

    select
        {{ measures_by_hours('item') | indent(8) }}
        {% for suffix, hours in hour_windows() %}
        {{ count_distinct_if(in_hours(hours), 'order_key') }} as orders_{{ suffix }},
        {{ count_distinct_if(in_hours(hours), 'customer_id') }} as users_{{ suffix }},
        {% endfor %}
        product_id,
        as_of
    from last_day
    group by product_id, as_of

),

by_day as (

    select
        {{ measures_by_days('item') | indent(8) }}
        {{ window_sum('refunded_units', none, 'decimal(38, 4)') }} as refunded_units_lifetime,
        {{ window_share('price_total', 'priced_events', 30) }} as price_mean_30d,
        {{ moving_averages(['views', 'units']) | indent(8) }}
        -- An exponential average: weights halve with every half-life, and add up to one.
        {% for half_life in var('half_lives') %}
        {{ decayed_sum('case when event_day < as_of_day then views end', half_life) }}
        * (1 - power(0.5, 1 / {{ half_life }}.0)) / power(0.5, 1 / {{ half_life }}.0) as views_ema_{{ half_life }}d,
        {% endfor %}
        product_id,
        as_of,
        min(first_at) as first_seen_at,
        max(last_at) as last_seen_at,
        max(last_order_at) as last_order_at
    from days
    group by product_id, as_of

),

-- Each day of the last month by itself, ranked: of a tenth of the days at either end, trimmed means take no notice.
daily as (

    select
        product_id,
        as_of,
        as_of_day,
        event_day,
        sum(views) as views,
        sum(units) as units,
        {{ mean_of('sum(price_total)', 'sum(priced_events)') }} as price
    from days
    where {{ in_window(30) }}
    group by product_id, as_of, as_of_day, event_day

),

placed as (

    select
        *,
        {% for measure in ['views', 'units'] %}
        row_number() over (partition by product_id, as_of, event_day < as_of_day order by {{ measure }} desc) as {{ measure }}_place,
        {% endfor %}
        row_number() over (partition by product_id, as_of order by price asc nulls last) as price_place,
        count(price) over (partition by product_id, as_of) as priced_days
    from daily

),

trimmed as (

    select
        product_id,
        as_of,
        {% for measure in ['views', 'units'] %}
        -- Of thirty days, of which those without a row have none.
        cast(coalesce(sum(
            case when event_day < as_of_day and {{ measure }}_place between 4 and 27 then {{ measure }} end
        ), 0) as double) / 24 as {{ measure }}_trimmed_mean_30d,
        {% endfor %}
        -- In whole weights, so that order never shows.
        {{ share(
            'sum(price * ' ~ weight ~ ')', 'sum(case when price is not null then ' ~ weight ~ ' end)'
        ) }} as price_ema_7d,
        {{ share(
            'sum(' ~ middle_price ~ ')', 'count(' ~ middle_price ~ ')'
        ) }} as price_trimmed_mean_30d
    from placed
    group by product_id, as_of

),

-- An order whose lines arrived on several days stands in several tiles and is one order.
by_order as (

    {{ distinct_by_days('orders', 'order_key', 'orders', keys=['product_id', 'as_of']) | indent(4) }}

),

by_customer as (

    select
        product_id,
        as_of,
        as_of_day,
        customer_id,
        max(last_event_day) as last_day,
        min(first_order_day) as first_order_day,
        max(last_order_day) as last_order_day
    from {{ ref('int_features__product_customers') }}
    group by product_id, as_of, as_of_day, customer_id

),

by_users as (

    select
        product_id,
        as_of,
        {% for suffix, days in day_windows() %}
        {{ count_if(in_window(days, 'last_day')) }} as users_{{ suffix }},
        {% endfor %}
        {{ share('count(case when last_order_day > first_order_day then 1 end)', 'count(first_order_day)') }} as repeat_buy_rate
    from by_customer
    group by product_id, as_of

),

---------- one row an item of the shop

items as (

    select
        {{ or_zero('d', measure_names('item'), day_windows()) | indent(8) }}
        {{ or_zero('o', ['orders'], day_windows()) | indent(8) }}
        coalesce(d.refunded_units_lifetime, 0) as refunded_units_lifetime,
        d.price_mean_30d,
        {% for days in [7, 30] %}
        coalesce(d.views_sma_{{ days }}d, 0) as views_sma_{{ days }}d,
        coalesce(d.units_sma_{{ days }}d, 0) as units_sma_{{ days }}d,
        {% endfor %}
        {% for half_life in var('half_lives') %}
        coalesce(d.views_ema_{{ half_life }}d, 0) as views_ema_{{ half_life }}d,
        {% endfor %}
        f.product_id,
        f.as_of,
        f.category,
        f.brand,
        f.price_now,
        least(coalesce(f.created_at, f.first_known_at), f.first_known_at, d.first_seen_at) as born_at,
        d.last_seen_at,
        d.last_order_at
    from {{ offers }} as f
    left join by_day as d on f.product_id = d.product_id and f.as_of = d.as_of
    left join by_order as o on f.product_id = o.product_id and f.as_of = o.as_of

),

ranked as (

    select
        *,
        {{ peer_rates(rate_windows) | indent(8) }}
        cast(rank() over (partition by as_of order by views_7d desc) as bigint) as popularity_rank_7d,
        cast(rank() over (partition by as_of order by views_30d desc) as bigint) as popularity_rank_30d,
        case
            when revenue_30d is not null
                then cast(rank() over (partition by as_of order by revenue_30d desc nulls last) as bigint)
        end as revenue_rank_30d,
        case
            when price_now is not null
                then percent_rank() over (partition by as_of, category, price_now is null order by price_now)
        end as price_percentile_in_category
    from items
    window peers as (partition by as_of, category)

),

final as (

    select
        ---------- key
        s.product_id,
        s.as_of,
        b.built_from,

        ---------- windows
        {{ or_zero('r', measure_names('item') + ['orders', 'users'], hour_windows()) | indent(8) }}
        {{ or_zero('i', measure_names('item') + ['orders'], day_windows()) | indent(8) }}
        {{ or_zero('u', ['users'], day_windows()) | indent(8) }}

        ---------- recency and age
        {{ hours_between('i.last_seen_at', 's.as_of') }} as hours_since_event,
        {{ hours_between('i.last_order_at', 's.as_of') }} as hours_since_order,
        greatest({{ hours_between('i.born_at', 's.as_of') }} / 24, 0) as age_days,

        ---------- rates, smoothed towards the category's
        {{ smoothed_rates('i', rate_windows) | indent(8) }}
        u.repeat_buy_rate,
        {{ share('least(i.refunded_units_lifetime, i.units_lifetime)', 'i.units_lifetime') }} as return_rate_lifetime,

        ---------- popularity
        i.popularity_rank_7d,
        i.popularity_rank_30d,
        i.revenue_rank_30d,
        i.views_sma_7d,
        i.views_sma_30d,
        i.units_sma_7d,
        i.units_sma_30d,
        {% for half_life in var('half_lives') %}
        i.views_ema_{{ half_life }}d,
        {% endfor %}
        coalesce(t.views_trimmed_mean_30d, 0) as views_trimmed_mean_30d,
        coalesce(t.units_trimmed_mean_30d, 0) as units_trimmed_mean_30d,
        least(greatest({{ days_between('cast(i.born_at as date)', 'cast(s.as_of as date)') }}, 0), 30) as days_averaged_30d,
        {{ trend('i', 'views') }} as views_trend_7d_30d,
        {{ trend('i', 'units') }} as units_trend_7d_30d,

        ---------- price
        i.category,
        i.brand,
        i.price_now,
        i.price_mean_30d,
        t.price_trimmed_mean_30d,
        t.price_ema_7d,
        {{ share('i.price_now', 'i.price_mean_30d') }} as price_to_mean_30d,
        i.price_percentile_in_category
    from spine as s
    cross join {{ ref('int_identity__build') }} as b
    inner join ranked as i on s.product_id = i.product_id and s.as_of = i.as_of
    left join recent as r on s.product_id = r.product_id and s.as_of = r.as_of
    left join by_users as u on s.product_id = u.product_id and s.as_of = u.as_of
    left join trimmed as t on s.product_id = t.product_id and s.as_of = t.as_of

)

select * from final
