-- Every version of every order header.
select
    arrived_in,
    {{ provenance() }},
    {{ clean_text('order_id') }} as order_id,
    {{ clean_text('user_id') }} as user_id,
    {{ clean_text('anonymous_id') }} as anonymous_id,
    {{ clean_text('session_id') }} as source_session_id,
    lower({{ clean_text('status') }}) as status,
    {{ currency_code('currency') }} as currency,
    {{ to_money('discount') }} as discount,
    {{ clean_text('discount_code') }} as discount_code,
    {{ to_money('tax') }} as tax,
    {{ to_money('shipping') }} as shipping,
    {{ yes_or_no('tax_included') }} as is_tax_included,
    {{ to_money('total') }} as total,
    {% for column in ['discount', 'tax', 'shipping', 'total'] %}
    {{ not_a_number(column) }}{{ " or" if not loop.last }}
    {% endfor %}
    or ({{ clean_text('tax_included') }} is not null and {{ yes_or_no('tax_included') }} is null) as has_bad_money,
    {{ parse_time(clean_text('created_at'), "coalesce(_time_zone, 'UTC')") }} as created_at,
    {{ parse_time(clean_text('paid_at'), "coalesce(_time_zone, 'UTC')") }} as paid_at,
    {{ parse_time(clean_text('shipped_at'), "coalesce(_time_zone, 'UTC')") }} as shipped_at,
    {{ parse_time(clean_text('updated_at'), "coalesce(_time_zone, 'UTC')") }} as updated_at,
    payload
from {{ ref('base_shop__orders') }}
