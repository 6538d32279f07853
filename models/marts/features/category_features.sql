{% set offers = ref('int_features__offers') %}
{% set rate_windows = ['30d', 'lifetime'] %}
with spine as (

    select category, as_of from {{ ref('int_features__category_spine') }}

),

---------- what was visible at as_of of all products: shares and the shop's rates compare each category with all

days as (

    {{ as_of_tiles('product', offers, 'product_id', 'product_id') | indent(4) }}

),

orders as (

    {{ as_of_tiles('product_order', offers, 'product_id', 'product_id') | indent(4) }}

),

last_day as (

    {{ last_day_by_customer() | indent(4) }}

),

---------- windows; the category of an event is the one that its product had when it happened

recent as (

    select
        {{ measures_by_hours('category') | indent(8) }}
        {% for suffix, hours in hour_windows() %}
        {{ count_distinct_if(in_hours(hours), 'order_key') }} as orders_{{ suffix }},
        {{ count_distinct_if(in_hours(hours), 'customer_id') }} as users_{{ suffix }},
        {% endfor %}
        category,
        as_of
    from last_day
    where category is not null
    group by category, as_of

),

by_day as (

    select
        {{ measures_by_days('category') | indent(8) }}
        {{ window_sum('refunded_units', none, 'decimal(38, 4)') }} as refunded_units_lifetime,
        {{ moving_averages(['views', 'units']) | indent(8) }}
        cast(count(distinct case when {{ in_window(30) }} then product_id end) as bigint) as items_with_events_30d,
        category,
        as_of,
        max(last_at) as last_seen_at,
        max(last_order_at) as last_order_at
    from days
    where category is not null
    group by category, as_of

),

-- An order of several products, or whose lines arrived on several days, stands in several tiles and is one order.
by_order as (

    {{ distinct_by_days(
        'orders', 'order_key', '(select * from orders where category is not null) as categorized', keys=['category', 'as_of']
    ) | indent(4) }}

),

by_customer as (

    select
        category,
        as_of,
        as_of_day,
        customer_id,
        max(last_event_day) as last_day
    from {{ ref('int_features__product_customers') }}
    where category is not null
    group by category, as_of, as_of_day, customer_id

),

by_users as (

    select
        {% for suffix, days in day_windows() %}
        {{ count_if(in_window(days, 'last_day')) }} as users_{{ suffix }},
        {% endfor %}
        category,
        as_of
    from by_customer
    group by category, as_of

),

---------- what is on offer

listed as (

    select
        catalogue_category as category,
        as_of,
        count(*) as products_in_catalogue
    from {{ offers }}
    where catalogue_category is not null
    group by catalogue_category, as_of

),

prices as (

    select
        category,
        as_of,
        count(price_now) as products_priced,
        {{ quantile_of_money('price_now', 0.25) }} as price_q25,
        {{ quantile_of_money('price_now', 0.5) }} as price_median,
        {{ quantile_of_money('price_now', 0.75) }} as price_q75
    from {{ offers }}
    where category is not null
    group by category, as_of

),

---------- one row a category of the shop

known as (

    select category, as_of from by_day
    union
    select category, as_of from listed

),

categories as (

    select
        {{ or_zero('d', measure_names('category'), day_windows()) | indent(8) }}
        {{ or_zero('o', ['orders'], day_windows()) | indent(8) }}
        coalesce(d.refunded_units_lifetime, 0) as refunded_units_lifetime,
        {% for measure in ['views', 'units'] %}
        coalesce(d.{{ measure }}_sma_7d, 0) as {{ measure }}_sma_7d,
        coalesce(d.{{ measure }}_sma_30d, 0) as {{ measure }}_sma_30d,
        {% endfor %}
        coalesce(d.items_with_events_30d, 0) as items_with_events_30d,
        k.category,
        k.as_of,
        d.last_seen_at,
        d.last_order_at
    from known as k
    left join by_day as d on k.category = d.category and k.as_of = d.as_of
    left join by_order as o on k.category = o.category and k.as_of = o.as_of

),

compared as (

    select
        *,
        {{ peer_rates(rate_windows) | indent(8) }}
        {{ share('views_30d', 'sum(views_30d) over peers') }} as share_of_views_30d,
        {{ share('revenue_30d', 'sum(revenue_30d) over peers') }} as share_of_revenue_30d
    from categories
    window peers as (partition by as_of)

),

final as (

    select
        ---------- key
        s.category,
        s.as_of,
        b.built_from,

        ---------- windows
        {{ or_zero('r', measure_names('category') + ['orders', 'users'], hour_windows()) | indent(8) }}
        {{ or_zero('c', measure_names('category') + ['orders'], day_windows()) | indent(8) }}
        {{ or_zero('u', ['users'], day_windows()) | indent(8) }}

        ---------- breadth
        c.items_with_events_30d,
        coalesce(l.products_in_catalogue, 0) as products_in_catalogue,

        ---------- recency
        {{ hours_between('c.last_seen_at', 's.as_of') }} as hours_since_event,
        {{ hours_between('c.last_order_at', 's.as_of') }} as hours_since_order,

        ---------- rates, smoothed towards those of all categories
        {{ smoothed_rates('c', rate_windows) | indent(8) }}
        {{ share('least(c.refunded_units_lifetime, c.units_lifetime)', 'c.units_lifetime') }} as return_rate_lifetime,

        ---------- popularity
        c.share_of_views_30d,
        c.share_of_revenue_30d,
        c.views_sma_7d,
        c.views_sma_30d,
        c.units_sma_7d,
        c.units_sma_30d,
        {{ trend('c', 'views') }} as views_trend_7d_30d,
        {{ trend('c', 'units') }} as units_trend_7d_30d,

        ---------- price
        coalesce(p.products_priced, 0) as products_priced,
        p.price_q25,
        p.price_median,
        p.price_q75
    from spine as s
    cross join {{ ref('int_identity__build') }} as b
    inner join compared as c on s.category = c.category and s.as_of = c.as_of
    left join recent as r on s.category = r.category and s.as_of = r.as_of
    left join by_users as u on s.category = u.category and s.as_of = u.as_of
    left join listed as l on s.category = l.category and s.as_of = l.as_of
    left join prices as p on s.category = p.category and s.as_of = p.as_of

)

select * from final
