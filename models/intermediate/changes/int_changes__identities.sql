{{ config(materialized='view') }}
-- The identities that a changed event names, as itself or as the visitor beside a login.
select
    identity,
    max(changed_in) as changed_in
from (
    select {{ unfold("[identity, 'a:' || anonymous_id]") }} as identity, changed_in from {{ ref('int_changes__events') }}
) as named
where identity is not null
group by identity
