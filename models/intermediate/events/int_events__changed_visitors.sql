{{ config(post_hook="{{ move_watermark('int_events__validated') }}") }}
-- The visitors whose sessions, now or at an earlier time, may rest on a changed row. A row with an anonymous_id belongs to that visitor;
-- one without goes by what else its identity did, and an order of the database by its web hits.
with changed as (

    select
        c.identity,
        c.anonymous_id,
        v.purchase_order_id,
        c.changed_in
    from {{ ref('int_events__changed_rows') }} as c
    left join {{ ref('int_events__validated') }} as v on c.row_id = v.row_id

),

orders as (

    select v.purchase_order_id, v.identity, max(c.changed_in) as changed_in
    from {{ ref('int_events__validated') }} as v
    inner join changed as c on v.purchase_order_id = c.purchase_order_id
    where v.origin = 'database'
    group by v.purchase_order_id, v.identity

),

identities as (

    select identity, max(changed_in) as changed_in
    from (
        select identity, changed_in from changed
        union all
        select identity, changed_in from orders
    ) as named
    where identity is not null
    group by identity

),

-- The orders in the database of these identities: they may have belonged to the visitor of any web hit of theirs.
orders_of_identities as (

    select v.purchase_order_id, max(i.changed_in) as changed_in
    from {{ ref('int_events__validated') }} as v
    inner join identities as i on v.identity = i.identity
    where v.origin = 'database' and v.purchase_order_id is not null
    group by v.purchase_order_id

)

select
    visitor,
    max(changed_in) as changed_in
from (
    select identity as visitor, changed_in from identities
    union all
    select 'a:' || anonymous_id as visitor, changed_in from changed
    union all
    select 'a:' || v.anonymous_id as visitor, i.changed_in
    from {{ ref('int_events__validated') }} as v
    inner join identities as i on v.identity = i.identity
    union all
    select 'a:' || v.anonymous_id as visitor, o.changed_in
    from {{ ref('int_events__validated') }} as v
    inner join orders_of_identities as o on v.purchase_order_id = o.purchase_order_id
) as named
where visitor is not null
group by visitor
