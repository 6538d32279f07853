{{ config(materialized='view') }}
{% set windows = count_windows() %}
{% set confidences = pair_confidences() %}
with moments as (

    select distinct as_of from {{ ref('int_features__product_spine') }}

),

catalogue as (

    {{ catalogue_at_moments() | indent(4) }}

),

final as (

    select
        ---------- key
        p.product_id,
        p.other_product_id,
        s.as_of,
        b.built_from,

        ---------- rank
        p.pair_rank,
        p.pair_score,

        ---------- co-occurrences
        {% for name in pair_count_names() %}
        {% for suffix, days in windows %}
        p.{{ name }}_{{ suffix }},
        {% endfor %}
        {% for half_life in var('half_lives') if half_life >= 7 %}
        p.{{ name }}_decayed_{{ half_life }}d,
        {% endfor %}
        {% endfor %}

        ---------- confidence, lift and cosine
        {% for name, together, whole, other_whole, total in confidences %}
        {% for suffix, days in share_windows() %}
        p.{{ name }}_confidence_{{ suffix }},
        {% endfor %}
        {% endfor %}
        {% for name, together, whole, other_whole, total in confidences %}
        p.lift_{{ together }},
        ln(p.lift_{{ together }}) as pmi_{{ together }},
        {% endfor %}
        {% for name, together, whole, other_whole, total in confidences[:3] %}
        p.cosine_{{ together }},
        {% endfor %}

        ---------- by the catalogue
        c.category = o.category as is_same_category
    from {{ ref('int_features__product_spine') }} as s
    inner join {{ ref('int_features__item_pair') }} as p on s.product_id = p.product_id and cast(s.as_of as date) = p.as_of_day
    left join catalogue as c on p.product_id = c.product_id and s.as_of = c.as_of
    left join catalogue as o on p.other_product_id = o.product_id and s.as_of = o.as_of
    cross join {{ ref('int_identity__build') }} as b

)

select * from final
