-- Every value from zero on has one score: the intervals of a measure follow one another from 0 to no limit, and each of
-- the three measures has some.
with measures as (

    {% for measure in ['recency_days', 'orders', 'revenue'] %}
    select '{{ measure }}' as measure
    {{ "union all" if not loop.last }}
    {% endfor %}

),

ordered as (

    select
        coalesce(b.measure, m.measure) as measure,
        b.score,
        b.at_least,
        b.below,
        lag(b.below) over (partition by b.measure order by b.at_least) as ends_before,
        row_number() over (partition by b.measure order by b.at_least) as place,
        count(b.measure) over (partition by b.measure) as places
    from measures as m
    full outer join {{ seed('rfm_bounds') }} as b on m.measure = b.measure

)

select * from ordered
where (place = 1 and at_least <> 0)
    or (place > 1 and at_least is distinct from ends_before)
    or (place = places) <> (below is null)
    or places = 0
