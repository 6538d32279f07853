select
    {{ row_id('order_items', 'raw_rowid') }} as row_id,
    'order_items' as raw_table,
    {{ provenance() }},
    {{ clean_text('order_id') }} as order_id,
    {{ clean_text('line_id') }} as line_id,
    {{ clean_text('product_id') }} as product_id,
    {{ to_quantity('quantity') }} as quantity,
    {{ to_money('price') }} as price,
    {{ to_money('discount') }} as discount,
    {{ to_money('amount') }} as amount,
    {{ currency_code('currency') }} as currency,
    {{ not_a_number('quantity') }} or {{ not_a_number('price') }} or {{ not_a_number('discount') }}
    or {{ not_a_number('amount') }} as has_bad_number,
    properties
from {{ ref('base_shop__order_items') }}
