select
    {{ row_id('refunds', 'raw_rowid') }} as row_id,
    'refunds' as raw_table,
    {{ provenance() }},
    {{ clean_text('refund_id') }} as refund_id,
    {{ clean_text('order_id') }} as order_id,
    {{ clean_text('line_id') }} as line_id,
    {{ clean_text('user_id') }} as user_id,
    {{ clean_text('product_id') }} as product_id,
    {{ to_quantity('quantity') }} as quantity,
    {{ to_money('amount') }} as amount,
    {{ currency_code('currency') }} as currency,
    {{ parse_time(clean_text('refunded_at'), "coalesce(_time_zone, 'UTC')") }} as refunded_at,
    {{ local_time_is_odd(clean_text('refunded_at'), "coalesce(_time_zone, 'UTC')") }} as is_odd_local_time,
    {{ not_a_number('quantity') }} or {{ not_a_number('amount') }} as has_bad_number,
    properties
from {{ ref('base_shop__refunds') }}
