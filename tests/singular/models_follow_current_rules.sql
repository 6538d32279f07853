-- Models that were begun by other rules (seeds, vars, SQL) than today's, or that hold rows from after the snapshot that
-- this build is of. Mend: build with --full-refresh, as `finegrain build` does by itself.
-- It runs after the last of the models that keep a watermark, so that a full refresh has begun them all anew.
{{ config(meta={'dagster': {'ref': {'name': 'fct_sessions'}}}) }}
-- depends_on: {{ ref('int_cleaning__events') }} {{ ref('int_identity__links') }} {{ ref('fct_sessions') }}
{% for tile in ['identity_day', 'identity_order', 'identity_product', 'identity_session', 'product', 'product_order', 'product_pairs'] %}
-- depends_on: {{ ref('int_tiles__' ~ tile) }}
{% endfor %}
{% for state in ['session', 'user', 'user_brand', 'user_category', 'user_item'] %}
-- depends_on: {{ ref('int_features__' ~ state) }}
{% endfor %}
select
    model,
    snapshot,
    rules
from {{ target.schema }}.watermarks
where rules is distinct from {{ rules_fingerprint() }} or snapshot > {{ pinned() }}
