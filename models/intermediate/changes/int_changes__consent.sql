{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='user_id',
) }}
-- What customers say of consent, and the lake snapshot of the build that first saw them say it. A customer who is deleted says nothing.
with said as (

    select user_id, consent_meaning
    from {{ ref('int_reference__known_users') }}
    where consent_meaning is not null

)

{% if is_incremental() %}
select
    coalesce(s.user_id, t.user_id) as user_id,
    s.consent_meaning,
    {{ pinned() }} as changed_in
from said as s
full outer join {{ this }} as t on s.user_id = t.user_id
where s.consent_meaning is distinct from t.consent_meaning
{% else %}
select
    user_id,
    consent_meaning,
    {{ pinned() }} as changed_in
from said
{% endif %}
