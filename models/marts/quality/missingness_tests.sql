-- Whether gaps depend on something else: on the kind of event, the device, or whether the session bought (a label); or on the gaps of
-- another column, that is, whether the two go missing together. Each by Pearson's chi-squared test of a table of 2 × k counts.
{% set dimensions = ['event_type', 'device', 'in_buying_session', 'acquisition_channel'] %}
{% set of_customers = ['birth_year', 'gender', 'country', 'household_size', 'income'] %}
with columns_of_records as (

    {% for record, columns in [('event', audited_columns()), ('customer', of_customers)] %}
    {% set is_last = loop.last %}
    {% for column in columns %}
    select '{{ record }}' as record, '{{ column }}' as column_name
    {{ "union all" if not (loop.last and is_last) }}
    {% endfor %}
    {% endfor %}

),

profiles as (

    select
        source,
        acquisition_channel,
        {{ pattern_of(of_customers, '#_was_missing') | indent(8) }} as missing
    from {{ ref('int_current__customers') }}

),

patterns as (

    select
        'event' as record,
        source,
        event_type,
        device,
        case when in_buying_session then 'yes' else 'no' end as in_buying_session,
        cast(null as varchar) as acquisition_channel,
        missing,
        sum(events) as n
    from {{ ref('int_tiles__missing_patterns') }}
    group by source, event_type, device, in_buying_session, missing
    union all
    select
        'customer' as record,
        source,
        cast(null as varchar) as event_type,
        cast(null as varchar) as device,
        cast(null as varchar) as in_buying_session,
        acquisition_channel,
        missing,
        count(*) as n
    from profiles
    group by source, acquisition_channel, missing

),

-- What a column's gaps are compared with: the values of dimensions, and the gaps of all columns.
compared as (

    {% for dimension in dimensions %}
    select
        record,
        source,
        missing,
        'value' as kind,
        '{{ dimension }}' as other,
        {{ dimension }} as other_value,
        n
    from patterns
    where {{ dimension }} is not null
    union all
    {% endfor %}
    select
        p.record,
        p.source,
        p.missing,
        'gap' as kind,
        c.column_name as other,
        case when p.missing like '%|' || c.column_name || '|%' then 'missing' else 'known' end as other_value,
        p.n
    from patterns as p
    inner join columns_of_records as c on p.record = c.record

),

cells as (

    select
        p.record,
        p.source,
        c.column_name,
        p.kind,
        p.other,
        p.other_value,
        sum(p.n) as n,
        sum(case when p.missing like '%|' || c.column_name || '|%' then p.n else 0 end) as missing
    from compared as p
    inner join columns_of_records as c on p.record = c.record and p.other <> c.column_name
    group by p.record, p.source, c.column_name, p.kind, p.other, p.other_value

),

shares as (

    select
        *,
        cast(sum(n) over of_test as double) as all_n,
        cast(sum(missing) over of_test as double) / sum(n) over of_test as share
    from cells
    window of_test as (partition by record, source, column_name, kind, other)

),

statistics as (

    select
        record,
        source,
        column_name,
        kind,
        other,
        max(all_n) as n,
        max(share) as missing_share,
        count(*) - 1 as degrees_of_freedom,
        sum((missing - n * share) * (missing - n * share) / (n * share * (1 - share))) as chi_squared,
        min(cast(missing as double) / n) as lowest_share,
        max(cast(missing as double) / n) as highest_share
    from shares
    where share > 0 and share < 1
    group by record, source, column_name, kind, other
    having count(*) > 1

)

select
    s.record,
    s.source,
    s.column_name,
    s.kind,
    s.other,
    cast(s.n as bigint) as all_rows,
    s.missing_share,
    s.lowest_share,
    s.highest_share,
    cast(round(s.chi_squared, 6) as double) as chi_squared,
    cast(s.degrees_of_freedom as bigint) as degrees_of_freedom,
    round(sqrt(s.chi_squared / s.n), 6) as cramers_v,
    -- Two thousandths of all tests go beyond three deviations of the distribution by chance alone.
    s.chi_squared > s.degrees_of_freedom + 3 * sqrt(2 * s.degrees_of_freedom) and s.chi_squared / s.n >= 0.01 as depends,
    b.as_of,
    b.built_from
from statistics as s
cross join {{ ref('int_identity__build') }} as b
