-- Incremental models that were begun by other rules (seeds, vars, SQL) than today's or before a model that they read, or that hold rows
-- from after the snapshot that this build is of. Remedy: run `finegrain build`, or `dbt build --full-refresh`.
-- It runs after the last of the models that keep a watermark, all of which this build has brought up to date.
{{ config(meta={'dagster': {'ref': {'name': 'fct_sessions'}}}) }}
-- depends_on: {{ ref('int_cleaning__events') }} {{ ref('int_identity__links') }} {{ ref('fct_sessions') }}
{% for tile in ['identity_day', 'identity_order', 'identity_product', 'identity_session', 'product', 'product_order', 'product_pairs'] %}
-- depends_on: {{ ref('int_tiles__' ~ tile) }}
{% endfor %}
{% for state in ['session', 'user', 'user_brand', 'user_category', 'user_item'] %}
-- depends_on: {{ ref('int_features__' ~ state) }}
{% endfor %}
{% set nodes = graph.nodes.values() if execute else [] %}
{% set incremental = nodes | selectattr('config.materialized', 'equalto', 'incremental') | map(attribute='name') | list %}
with begun as (

    select
        s.model,
        s.begun_in,
        coalesce(s.rules <> r.rules, true) as is_of_other_rules
    from {{ states() }} as s
    inner join {{ rules() }} as r on s.model = r.model

)

select
    b.model,
    w.snapshot,
    b.is_of_other_rules,
    i.model as newer_input
from begun as b
left join {{ target.schema }}.watermarks as w on b.model = w.model
left join {{ reads() }} as r on b.model = r.model
left join begun as i on r.input = i.model and (i.is_of_other_rules or b.begun_in < i.begun_in)
where
    b.model in ({{ names_in_sql(incremental) }})
    and (b.is_of_other_rules or i.model is not null or w.snapshot > {{ pinned() }})
