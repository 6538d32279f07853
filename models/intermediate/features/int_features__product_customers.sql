-- Which customers had events about each product by each moment that is asked for, and when they bought it. The category is the one that
-- the product had when the event happened.
with moments as (

    select distinct as_of, as_of_day from {{ ref('int_features__offers') }}

),

members as (

    select
        m.as_of,
        m.as_of_day,
        l.identity,
        l.customer_id
    from moments as m
    inner join {{ ref('int_identity__links') }} as l on {{ is_valid_at('m.as_of', 'l.known_from', 'l.known_to') }}

),

products as (

    {{ as_of_tiles('identity_product') | indent(4) }}

)

select
    product_id,
    category,
    customer_id,
    as_of,
    as_of_day,
    max(event_day) as last_event_day,
    min(case when units > 0 then event_day end) as first_order_day,
    max(case when units > 0 then event_day end) as last_order_day
from products
group by product_id, category, customer_id, as_of, as_of_day
