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
        case when {{ is_there(table) | indent(8) }} then false else true end as is_gone
    from {{ ref('stg_shop__' ~ table) }}
    {{ "union all" if not loop.last }}
    {% endfor %}

),

placed as (

    select
        *,
        row_number() over (
            partition by raw_table, source, record_key, content, is_gone order by raw_available_at, position, raw_rowid
        ) as place
    from records

)

select
    raw_table,
    raw_rowid,
    source,
    position,
    raw_available_at,
    record_key,
    case
        when raw_error is not null or record_key is null or is_gone then 'quarantined'
        when place > 1 then 'duplicate'
        else 'kept'
    end as verdict,
    case
        when is_gone then 'deleted_at_source'
        when raw_error is not null then 'malformed'
        when record_key is null then 'missing_key'
        when place > 1 then 'duplicate_record'
    end as reason
from placed
