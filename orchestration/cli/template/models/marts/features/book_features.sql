-- What each customer has to do with books. int_features__user holds the measures of dbt_project.yml by window.
select
    s.customer_id,
    s.as_of,
    b.built_from,
    s.book_views_7d,
    s.book_views_30d,
    s.book_views_lifetime,
    {{ finegrain.share('s.book_views_lifetime', 's.views_lifetime') }} as book_view_share
from {{ ref('int_features__user') }} as s
cross join {{ ref('int_identity__build') }} as b
