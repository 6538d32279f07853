-- The verdict on every row of the tables that describe things: customers, products and order headers.
with records as (

    {% for table, key in [('customers', 'user_id'), ('products', 'product_id'), ('orders', 'order_id')] %}
    select
        '{{ table }}' as raw_table,
        source,
        position,
        raw_rowid,
        raw_available_at,
        raw_error,
        {{ key }} as record_key,
        md5(payload) as content,
        case when {{ is_not_deleted(table) | indent(8) }} then false else true end as is_deleted,
        {{ known_id(key) }} is null as has_no_key,
        {{ is_rounded_id(key) }} as has_rounded_key,
        {{ is_absurd_price('price') if table == 'products' else 'false' }} as has_absurd_price
    from {{ ref('stg_shop__' ~ table) }}
    {{ "union all" if not loop.last }}
    {% endfor %}

),

judged as (

    select
        *,
        case
            when is_deleted then 'deleted_at_source'
            when raw_error is not null then 'malformed'
            when has_no_key then 'missing_key'
            when has_rounded_key then 'unusable_id'
            when has_absurd_price then 'price_out_of_range'
        end as error
    from records

),

-- Only a record that would be kept can make another its duplicate.
placed as (

    select
        *,
        row_number() over (
            partition by raw_table, source, record_key, content, error is null order by raw_available_at, position, raw_rowid
        ) as place
    from judged

)

select
    raw_table,
    raw_rowid,
    source,
    position,
    raw_available_at,
    record_key,
    case when error is not null then 'quarantined' when place > 1 then 'duplicate' else 'kept' end as verdict,
    case when error is not null then error when place > 1 then 'duplicate_record' end as reason
from placed
