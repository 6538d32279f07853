with links as (

    select identity, customer_id, known_from, known_to from {{ ref('int_identity__links') }}

),

-- A login in the customer table is a customer from the moment its row is known, with or without events.
profiles as (

    select 'u:' || user_id as identity, known_at from {{ ref('int_reference__known_users') }}

)

select
    coalesce(l.identity, p.identity) as identity,
    coalesce(l.customer_id, {{ uuid_v5('p.identity') }}) as customer_id,
    least(l.known_from, p.known_at) as known_from,
    l.known_to,
    coalesce(c.customer_id, {{ uuid_v5('p.identity') }}) as current_customer_id
from links as l
left join links as c on l.identity = c.identity and c.known_to is null
full outer join profiles as p on l.identity = p.identity
