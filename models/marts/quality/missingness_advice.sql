-- What to do about each column's gaps, by how many there are, what they depend on, and whether another column can stand in.
with audit as (

    select
        record,
        source,
        column_name,
        sum(all_rows) as all_rows,
        sum(missing_rows) as missing_rows,
        sum(imputed_rows) as imputed_rows
    from {{ ref('missingness_audit') }}
    group by record, source, column_name

),

tests as (

    select
        *,
        row_number() over (partition by record, source, column_name, kind order by cramers_v desc, other asc) as place
    from {{ ref('missingness_tests') }}
    where depends

),

rules as (

    select
        record,
        column_name,
        method,
        group_by,
        action
    from {{ seed('imputation_rules') }}

),

-- Which column can stand in for which, and in how many rows it could: a price of the catalogue, the visitor for the login.
proxies as (

    {% for column, proxy in [('price', 'list_price'), ('user_id', 'anonymous_id'), ('anonymous_id', 'user_id'), ('referrer', 'campaign')] %}
    select
        source,
        '{{ column }}' as column_name,
        '{{ proxy }}' as proxy,
        cast(sum(case when not {{ is_in_pattern('missing', proxy) }} then events else 0 end) as double) / sum(events) as share
    from {{ ref('int_tiles__missing_patterns') }}
    where {{ is_in_pattern('missing', column) }}
    group by source
    {{ "union all" if not loop.last }}
    {% endfor %}

),

joined as (

    select
        a.*,
        cast(a.missing_rows as double) / a.all_rows as missing_share,
        v.other as depends_on,
        v.cramers_v as dependence,
        g.other as missing_with,
        g.cramers_v as together,
        case when p.share >= 0.5 then p.proxy end as proxy,
        p.share as proxy_share,
        r.method,
        r.group_by,
        r.action
    from audit as a
    left join tests as v
        on a.record = v.record and a.source = v.source and a.column_name = v.column_name and v.kind = 'value' and v.place = 1
    left join tests as g
        on a.record = g.record and a.source = g.source and a.column_name = g.column_name and g.kind = 'gap' and g.place = 1
    left join proxies as p on a.record = 'event' and a.source = p.source and a.column_name = p.column_name
    left join rules as r on a.record = r.record and a.column_name = r.column_name

)

select
    j.record,
    j.source,
    j.column_name,
    cast(j.all_rows as bigint) as all_rows,
    cast(j.missing_rows as bigint) as missing_rows,
    cast(j.imputed_rows as bigint) as imputed_rows,
    j.missing_share,
    j.depends_on,
    j.dependence,
    j.missing_with,
    j.together,
    j.proxy,
    case when j.proxy is not null then j.proxy_share end as proxy_share,
    case
        when j.missing_rows = 0 then 'keep'
        when j.missing_rows = j.all_rows then 'drop'
        when j.depends_on = 'event_type' and j.dependence >= 0.95 then 'keep'
        when j.proxy is not null then 'proxy'
        when j.missing_share > 0.95 and j.method is null then 'drop'
        when j.method is not null and j.missing_share <= 0.5 then 'impute'
        else 'keep'
    end as advice,
    case
        when j.missing_rows = 0 then 'no value is missing'
        when j.missing_rows = j.all_rows then 'the source gives no value at all; map it, or leave the column out'
        when j.depends_on = 'event_type' and j.dependence >= 0.95 then 'only some kinds of events have it'
        when j.proxy is not null then 'use ' || j.proxy || ', which is known in most rows without a value'
        when j.missing_share > 0.95 and j.method is null then 'nearly all rows have no value; leave the column out'
        when j.method is not null and j.missing_share <= 0.5
            then 'impute by ' || j.method || case when j.group_by = 'all' then '' else ' within ' || j.group_by end
                || case when j.depends_on is null then '' else '; use the flag, too: gaps depend on ' || j.depends_on end
        when j.method is not null then 'more gaps than values: leave them, for models that take nulls, or use the flag'
        when j.depends_on is not null then 'leave the gaps; they depend on ' || j.depends_on
        else 'leave the gaps'
    end as reason,
    b.as_of,
    b.built_from
from joined as j
cross join {{ ref('int_identity__build') }} as b
