-- How many raw rows the lake holds, counted in the lake itself: what every later count must add up to.
{% set tables = ['events', 'ga4_events', 'order_items', 'refunds', 'customers', 'products', 'orders'] %}
{% for table in tables %}
select
    '{{ table }}' as raw_table,
    _source as source,
    cast({{ arrival('available_at') }} as date) as arrival_day,
    count(*) as raw_rows
from {{ lake_table(table) }} as {{ table }}
group by _source, cast({{ arrival('available_at') }} as date)
{{ "union all" if not loop.last }}
{% endfor %}
