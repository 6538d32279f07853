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
with followed as (

    {% for node in (graph.nodes.values() if execute else []) if node.config.materialized == 'incremental' %}
    select
        '{{ node.name }}' as model,
        {{ rules_of(node) }} as rules,
        (select max(i.begun_in) from {{ states() }} as i where i.model in ({{ names_in_sql(inputs_of(node).models) }})) as input_begun_in
    union all
    {% endfor %}
    select '' as model, '' as rules, cast(null as bigint) as input_begun_in

)

select
    s.model,
    w.snapshot,
    s.rules is distinct from f.rules as is_of_other_rules,
    f.input_begun_in > s.begun_in as is_older_than_its_input
from {{ states() }} as s
inner join followed as f on s.model = f.model
left join {{ target.schema }}.watermarks as w on s.model = w.model
where s.rules is distinct from f.rules or f.input_begun_in > s.begun_in or w.snapshot > {{ pinned() }}
