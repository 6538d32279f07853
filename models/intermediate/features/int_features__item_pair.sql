{{ config(
    meta={'closed_days': 'keys'},
    post_hook="{{ move_watermark('int_cleaning__events') }}",
) }}
-- The products that occur most with each, by what had arrived before the day of each moment asked for (macros/pairs.sql).
{% set windows = count_windows() %}
{% set marginals = {'view_days': 'co_views', 'cart_days': 'co_carts', 'orders': 'co_orders'} %}
{% set confidences = pair_confidences() %}
with asked as (

    select distinct product_id, cast(as_of as date) as as_of_day from {{ ref('int_features__product_spine') }}

),

moments as (

    select distinct as_of_day from asked

),

---------- the others of each product, by score

scored as (

    select
        s.product_id,
        s.as_of_day,
        p.other_product_id,
        {{ pair_score() }} as pair_score,
        sum({{ weighted_co_occurrences() }}) as undecayed_score
    from asked as s
    inner join {{ ref('int_tiles__product_pairs') }} as p
        on s.product_id = p.product_id and {{ is_closed_by('s.as_of_day', 'p', at_its_begin=true) }}
    group by s.product_id, s.as_of_day, p.other_product_id

),

ranked as (

    select
        *,
        -- Of pairs so old that their scores have decayed to 0, those with the greater sum come first.
        row_number() over (
            partition by product_id, as_of_day order by pair_score desc, undecayed_score desc, other_product_id asc
        ) as pair_rank
    from scored

),

kept as (

    select * from ranked
    where pair_rank <= {{ var('pairs_per_item') }}

),

---------- counts of the pairs that are kept

pair_counts as (

    select
        {% for name in pair_count_names() %}
        {% for suffix, days in windows %}
        {{ window_sum(name, days, 'bigint') }} as {{ name }}_{{ suffix }},
        {% endfor %}
        {% for half_life in var('half_lives') if half_life >= 7 %}
        {{ decayed_count(name, half_life) }} as {{ name }}_decayed_{{ half_life }}d,
        {% endfor %}
        {% endfor %}
        k.product_id,
        k.other_product_id,
        k.as_of_day
    from kept as k
    inner join {{ ref('int_tiles__product_pairs') }} as p
        on
            k.product_id = p.product_id and k.other_product_id = p.other_product_id
            and {{ is_closed_by('k.as_of_day', 'p', at_its_begin=true) }}
    group by k.product_id, k.other_product_id, k.as_of_day

),

-- The same pairs, seen from the other product.
reverse_counts as (

    select
        {% for name in marginals.values() %}
        {{ window_sum(name, none, 'bigint') }} as {{ name }},
        {% endfor %}
        k.product_id,
        k.other_product_id,
        k.as_of_day
    from kept as k
    inner join {{ ref('int_tiles__product_pairs') }} as p
        on
            k.other_product_id = p.product_id and k.product_id = p.other_product_id
            and {{ is_closed_by('k.as_of_day', 'p', at_its_begin=true) }}
    group by k.product_id, k.other_product_id, k.as_of_day

),

---------- what they are compared with

product_totals as (

    select
        {% for name in marginals %}
        {{ window_sum(name, 90, 'bigint') }} as {{ name }}_90d,
        {{ window_sum(name, none, 'bigint') }} as {{ name }}_lifetime,
        {% endfor %}
        b.product_id,
        m.as_of_day
    from moments as m
    inner join {{ ref('int_tiles__product_touch_counts') }} as b on {{ is_closed_by('m.as_of_day', 'b', at_its_begin=true) }}
    group by b.product_id, m.as_of_day

),

shop_totals as (

    select
        m.as_of_day,
        sum(b.first_views) as first_views,
        sum(b.first_carts) as first_carts,
        sum(b.first_orders) as first_orders
    from moments as m
    inner join {{ ref('int_tiles__product_touch_counts') }} as b on {{ is_closed_by('m.as_of_day', 'b', at_its_begin=true) }}
    group by m.as_of_day

),

measured as (

    select
        cast(k.pair_rank as bigint) as pair_rank,
        k.pair_score,
        {% for name in pair_count_names() %}
        {% for suffix, days in windows %}
        f.{{ name }}_{{ suffix }},
        {% endfor %}
        {% for half_life in var('half_lives') if half_life >= 7 %}
        f.{{ name }}_decayed_{{ half_life }}d,
        {% endfor %}
        {% endfor %}
        {% for name, together, whole, other_whole, total in confidences %}
        {% for suffix, days in share_windows() %}
        {{ share('f.' ~ together ~ '_' ~ suffix, 'a.' ~ whole ~ '_' ~ suffix) }} as {{ name }}_confidence_{{ suffix }},
        {% endfor %}
        -- The other product's share of all.
        {{ share('b.' ~ other_whole ~ '_lifetime', 's.' ~ total) }} as {{ name }}_base,
        {% endfor %}
        {% for whole, together in marginals.items() %}
        {{ share('r.' ~ together, 'b.' ~ whole ~ '_lifetime') }} as reverse_{{ together }}_share,
        {% endfor %}
        k.product_id,
        k.other_product_id,
        k.as_of_day
    from kept as k
    inner join pair_counts as f on k.product_id = f.product_id and k.other_product_id = f.other_product_id and k.as_of_day = f.as_of_day
    inner join shop_totals as s on k.as_of_day = s.as_of_day
    left join reverse_counts as r on k.product_id = r.product_id and k.other_product_id = r.other_product_id and k.as_of_day = r.as_of_day
    left join product_totals as a on k.product_id = a.product_id and k.as_of_day = a.as_of_day
    left join product_totals as b on k.other_product_id = b.product_id and k.as_of_day = b.as_of_day

)

-- Pairs with little support have no lift.
select
    product_id,
    other_product_id,
    as_of_day,
    pair_rank,
    pair_score,
    {% for name in pair_count_names() %}
    {% for suffix, days in windows %}
    {{ name }}_{{ suffix }},
    {% endfor %}
    {% for half_life in var('half_lives') if half_life >= 7 %}
    {{ name }}_decayed_{{ half_life }}d,
    {% endfor %}
    {% endfor %}
    {% for name, together, whole, other_whole, total in confidences %}
    {% for suffix, days in share_windows() %}
    {{ name }}_confidence_{{ suffix }},
    {% endfor %}
    {% endfor %}
    {% for name, together, whole, other_whole, total in confidences %}
    {% set supported %}{{ together }}_lifetime >= {{ var('pair_min_support') }}{% endset %}
    case when {{ supported }} then {{ share(name ~ '_confidence_lifetime', name ~ '_base') }} end as lift_{{ together }},
    {% if loop.index <= 3 %}
    case when {{ supported }} then sqrt({{ name }}_confidence_lifetime * reverse_{{ together }}_share) end as cosine_{{ together }},
    {% endif %}
    {% endfor %}
    {{ pinned() }} as built_in
from measured
