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
select
    s.model,
    w.snapshot,
    coalesce(s.rules <> r.rules, true) as is_of_other_rules,
    n.model as newer_input
from {{ states() }} as s
inner join {{ rules() }} as r on s.model = r.model
left join {{ target.schema }}.watermarks as w on s.model = w.model
left join (
    select
        i.model,
        i.begun_in,
        coalesce(i.rules <> c.rules, true) as is_of_other_rules
    from {{ states() }} as i
    inner join {{ rules() }} as c on i.model = c.model
) as n on list_contains(r.upstream, n.model) and (n.is_of_other_rules or n.begun_in > s.begun_in)
where
    s.model in ({{ names_in_sql(incremental) }})
    and (s.rules is distinct from r.rules or n.model is not null or w.snapshot > {{ pinned() }})
