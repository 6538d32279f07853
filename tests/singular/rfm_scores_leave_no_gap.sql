-- Every value from zero on has one score: the intervals of a measure follow one another from 0 to no limit, and each of
-- the three measures has some.
with ordered as (

    select
        measure,
        score,
        at_least,
        below,
        lag(below) over (partition by measure order by at_least) as ends_before,
        row_number() over (partition by measure order by at_least) as place,
        count(*) over (partition by measure) as places
    from {{ ref('rfm_bounds') }}

)

select * from ordered
where (place = 1 and at_least <> 0)
    or (place > 1 and at_least is distinct from ends_before)
    or (place = places) <> (below is null)
{% for measure in ['recency_days', 'orders', 'revenue'] %}
union all
select '{{ measure }}' as measure, null, null, null, null, null, null
where '{{ measure }}' not in (select o.measure from ordered as o)
{% endfor %}
