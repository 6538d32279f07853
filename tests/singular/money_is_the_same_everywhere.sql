-- The money of the purchases is the money of the order lines before they share their order's discount, of the sessions and,
-- before and after the treatment of outliers, of the customers' and the items' lifetimes: to the cent, refunds too. A mart of features
-- sees events up to its moment only, and a purchase without a product is no item's, no category's, nor any customer's with an item.
{{ config(meta={'dagster': {'ref': {'name': 'fct_order_items'}}}) }}
with facts as (

    select {{ sum_if("event_type = 'purchase'", 'amount') }} as revenue from {{ ref('fct_events') }}

),

-- What a mart of features sees: of an order that the shop's database reports later than the build's moment, the web's hit.
seen as (

    select
        e.event_type,
        e.product_id,
        e.category,
        e.gross_amount as amount,
        e.amount as amount_treated
    from {{ ref('int_cleaning__events') }} as e
    inner join {{ ref('int_identity__build') }} as b
        on {{ is_valid_at('b.as_of', 'e.known_from', 'e.known_to') }} and e.event_at < b.as_of

),

said as (

    {% set of_category = "event_type = 'purchase' and product_id is not null and category is not null" %}
    select
        (select f.revenue from facts as f) as revenue,
        {{ sum_if("event_type = 'purchase'", 'amount_treated') }} as seen_revenue,
        {{ sum_if("event_type = 'purchase'", 'amount') }} as seen_gross_revenue,
        {{ sum_if("event_type = 'refund'", 'amount_treated') }} as seen_refunds,
        {{ sum_if("event_type = 'purchase' and product_id is not null", 'amount_treated') }} as item_revenue,
        {{ sum_if("event_type = 'purchase' and product_id is not null", 'amount') }} as item_gross_revenue,
        {{ sum_if("event_type = 'refund' and product_id is not null", 'amount_treated') }} as item_refunds,
        {{ sum_if(of_category, 'amount_treated') }} as category_revenue
    from seen

),

compared as (

    {% for mart, column, expected in [
        ('fct_order_items', 'case when m.is_sale then m.revenue + m.order_discount end', 'revenue'),
        ('fct_sessions', 'm.revenue', 'revenue'),
        ('user_features', 'm.revenue_lifetime', 'seen_revenue'),
        ('user_features', 'm.gross_revenue_lifetime', 'seen_gross_revenue'),
        ('user_features', 'm.refunds_lifetime', 'seen_refunds'),
        ('item_features', 'm.revenue_lifetime', 'item_revenue'),
        ('item_features', 'm.gross_revenue_lifetime', 'item_gross_revenue'),
        ('item_features', 'm.refunds_lifetime', 'item_refunds'),
        ('category_features', 'm.revenue_lifetime', 'category_revenue'),
        ('user_item_features', 'm.revenue_lifetime', 'item_revenue'),
    ] %}
    select
        '{{ mart }}: {{ column }}' as summed,
        s.{{ expected }} as expected,
        (select coalesce(sum({{ column }}), 0) from {{ ref(mart) }} as m) as found
    from said as s
    {{ "union all" if not loop.last }}
    {% endfor %}

)

select * from compared
where expected <> found
