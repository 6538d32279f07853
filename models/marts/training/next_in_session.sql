-- A spine with labels: of a sample of the sessions, each moment at which the visitor came to another product, with that product and
-- others that were drawn. Features are as of the moment itself, so they see the session up to the product before.
with touches as (

    select
        session_id,
        identity,
        event_id,
        event_at,
        product_id,
        category,
        row_number() over (partition by session_id, event_at order by event_id) as place
    from {{ ref('fct_events') }}
    where
        session_id is not null
        and product_id is not null
        and event_type in ('view_item', 'add_to_cart')
        and {{ seeded_number(['session_id'], 100) }} < {{ var('training_sample_percent') }}

),

followed as (

    select
        *,
        lag(identity) over (partition by session_id order by event_at) as previous_identity,
        lag(product_id) over (partition by session_id order by event_at) as previous_product_id
    from touches
    where place = 1

),

examples as (

    select
        f.event_id as example_id,
        f.session_id,
        l.customer_id,
        f.event_at as as_of,
        f.product_id,
        f.category
    from followed as f
    inner join {{ ref('int_identity__links') }} as l
        on f.previous_identity = l.identity and {{ is_valid_at('f.event_at', 'l.known_from', 'l.known_to') }}
    where
        f.product_id <> f.previous_product_id
        and {{ is_consenting('l.customer_id') | indent(8) }}

),

{{ drawn_products() }}

select
    session_id,
    customer_id,
    product_id,
    as_of,
    true as is_next,
    category as next_category
from examples
union all
select
    e.session_id,
    e.customer_id,
    d.product_id,
    e.as_of,
    false as is_next,
    e.category as next_category
from examples as e
inner join drawn as d on e.example_id = d.example_id and e.product_id <> d.product_id
