-- A spine with labels: of a sample of the orders, the products that were bought, those that the customer had bought before, and others
-- that were drawn.
with bought as (

    select distinct i.order_key, o.identity, o.customer_id, o.ordered_at, i.product_id
    from {{ ref('fct_order_items') }} as i
    inner join {{ ref('fct_orders') }} as o on i.order_key = o.order_key
    where o.is_sale and i.product_id is not null

),

-- Of two orders of one moment, one: a spine has one row for each customer, product and moment.
examples as (

    select
        min(b.order_key) as example_id,
        b.customer_id as current_customer_id,
        l.customer_id,
        b.ordered_at as as_of
    from bought as b
    inner join {{ ref('int_identity__links') }} as l
        on b.identity = l.identity and {{ is_valid_at('b.ordered_at', 'l.known_from', 'l.known_to') }}
    where
        {{ seeded_number(['b.order_key'], 100) }} < {{ var('training_sample_percent') }}
        and {{ is_consenting('l.customer_id') | indent(8) }}
    group by b.customer_id, l.customer_id, b.ordered_at

),

{{ drawn_products() }},

bought_before as (

    select
        e.example_id,
        b.product_id,
        row_number() over (partition by e.example_id order by max(b.ordered_at) desc, b.product_id) as place
    from examples as e
    inner join bought as b on e.current_customer_id = b.customer_id and e.as_of > b.ordered_at
    group by e.example_id, b.product_id

),

candidates as (

    select order_key as example_id, product_id, 1 as is_bought from bought
    union all
    select example_id, product_id, 0 as is_bought from bought_before where place <= {{ var('training_bought_before') }}
    union all
    select example_id, product_id, 0 as is_bought from drawn

)

select
    e.customer_id,
    c.product_id,
    e.as_of,
    e.example_id as order_key,
    max(c.is_bought) = 1 as is_bought
from examples as e
inner join candidates as c on e.example_id = c.example_id
group by e.customer_id, c.product_id, e.as_of, e.example_id
