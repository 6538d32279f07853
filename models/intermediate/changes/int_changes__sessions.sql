{{ config(post_hook="{{ move_watermark('int_cleaning__events') }}") }}
-- The sessions that an event of them changed in, and those in which a changed identity has a part: its customer may be another.
select
    session_id,
    max(changed_in) as changed_in
from (
    select session_id, changed_in from {{ ref('int_changes__events') }}
    union all
    select e.session_id, i.changed_in
    from {{ ref('int_cleaning__events') }} as e
    inner join {{ ref('int_changes__identities') }} as i on e.identity = i.identity
) as changes
where session_id is not null
group by session_id
