-- The floor: what one would type to get the marts once, for one moment, from the raw tables of the lake, and nothing else.
-- benchmarks/floor.py runs it, in the project's folder and with the lake attached as `lake`; the build is measured against it
-- and tests/test_benchmarks.py holds that both come to the same.
--
-- It is plain DuckDB and made to be fast. It knows that it runs once, after the last arrival: every clean event is visible, the
-- newest link of an identity is the only one, so there are no tiles, no watermarks and no as-of joins on events. It leaves out
-- what such a one-off would not need: the reasons and warnings of verdicts, quarantine and ledger, audits, snapshots, tests,
-- `built_from`, and columns of fct_events that say how a row came to be as it is. The rules of validation and imputation
-- stand in the SQL; lists of names, rates and outlier factors are read from seeds/.

---------- reading text

create temp macro said(x) as nullif(nullif(trim(x), ''), '(not set)');

create temp macro spelling(x) as nullif(trim(rtrim(regexp_replace(lower(x), '\s+', ' ', 'g'), '/ ')), '');

create temp macro money(x) as coalesce(
    try_cast(x as decimal(18, 4)), cast(sign(try_cast(x as decimal(28, 6))) * 99999999999999 as decimal(18, 4))
);

create temp macro amount_of(x) as coalesce(
    try_cast(x as decimal(18, 3)), cast(sign(try_cast(x as decimal(28, 6))) * 999999999999999 as decimal(18, 3))
);

create temp macro is_no_number(x) as case
    when x is null or try_cast(x as decimal(18, 6)) is not null then false
    else try_cast(x as decimal(28, 6)) is null
end;

create temp macro in_utc(local, zone) as case
    when zone = 'UTC' then local
    when timezone(zone, timezone(zone, local) - interval 1 hour) = local
        then (timezone(zone, local) - interval 1 hour) at time zone 'UTC'
    else timezone(zone, local) at time zone 'UTC'
end;

create temp macro moment(x, zone) as case
    when regexp_full_match(x, '[0-9]{9,17}([.][0-9]+)?') then case
        when length(split_part(x, '.', 1)) >= 15 then make_timestamp(try_cast(split_part(x, '.', 1) as bigint))
        when length(split_part(x, '.', 1)) >= 12
            then make_timestamp(cast(cast(try_cast(x as decimal(18, 3)) as decimal(38, 3)) * 1000 as bigint))
        else make_timestamp(cast(cast(try_cast(x as decimal(18, 6)) as decimal(38, 6)) * 1000000 as bigint))
    end
    when regexp_matches(x, '[0-9]{2}:[0-9]{2}.*([+-][0-9]{2}(:?[0-9]{2})?|Z|z)$')
        then try_cast(try_cast(regexp_replace(x, '([+-][0-9]{2})([0-9]{2})$', '\1:\2') as timestamptz) at time zone 'UTC' as timestamp)
    else in_utc(try_cast(x as timestamp), zone)
end;

-- A null is spelled, so that it is neither dropped nor taken for ''.
create temp macro spelled(x) as coalesce(replace(cast(x as varchar), '|', '||'), '|null');

create temp macro uuid_of_digest(d) as cast(
    substr(d, 1, 12) || '5' || substr(d, 14, 3)
    || substr('89ab', 1 + (strpos('0123456789abcdef', substr(d, 17, 1)) - 1) % 4, 1) || substr(d, 18, 15) as uuid
);

create temp macro customer_of(identity) as
    uuid_of_digest(sha1(unhex('4eb3ae3446e552a1b4bed109cfb28e73') || encode(identity)));

create temp macro session_of(visitor, first_event_id) as
    cast(md5(concat(spelled(visitor), '|,', replace(cast(first_event_id as varchar), '-', ''))) as uuid);

-- A tag of an address; of what says that there is none, nothing.
create temp macro decoded_tag(page, name) as trim(regexp_replace(
    try(url_decode(replace(regexp_extract(page, '(?i)[?&](?:amp;)?' || name || '=([^&#]*)', 1), '+', ' '))), '[\x00-\x1f\x7f]', '', 'g'
));

create temp macro said_tag(page, name) as case
    when lower(decoded_tag(page, name)) not in (
        '', 'direct', '(direct)', 'none', '(none)', '(not set)', '(not provided)', 'null', 'undefined'
    ) then decoded_tag(page, name)
end;

create temp macro bare_host(address) as regexp_replace(
    regexp_extract(lower(address), '^(?:(?:[a-z][a-z0-9+.-]*:)?//)?([^/?#]*)', 1), '^www[.]|:[0-9]*$', '', 'g'
);

create temp macro host_of(address) as
    case when regexp_matches(bare_host(address), '^[\p{L}\p{N}_-][\p{L}\p{N}._-]*$') then bare_host(address) end;

create temp macro is_paid(medium) as contains(medium, 'cp') or medium in ('ppc', 'retargeting') or starts_with(medium, 'paid');

create temp macro bucket(x) as cast(
    case when x = 0 then 0 else sign(x) * (100000 + floor(ln(abs(cast(x as double))) / ln(1.02))) end as integer
);

create temp macro hours(a, b) as (epoch_us(b) - epoch_us(a)) / 3600000000.0;

create temp macro seconds(a, b) as (epoch_us(b) - epoch_us(a)) // 1000000;

create temp macro share(a, b) as case when b > 0 then cast(a as double) / cast(b as double) end;

-- To four decimals, halves away from zero.
create temp macro mean_of(total, n) as
    case when n > 0 then cast(cast(sign(total) * ((cast(20000 * abs(total) as hugeint) + cast(n as hugeint)) // (2 * cast(n as hugeint))) as decimal(18, 0)) * 0.0001 as decimal(18, 4)) end;
create temp macro rate(a, b, prior) as
    least((cast(a as double) + 20 * prior) / (greatest(cast(b as double), cast(a as double)) + 20), 1.0);

create temp macro std(n, total, square) as
    case when n > 1 then sqrt(greatest((cast(square as double) - cast(total as double) * cast(total as double) / n) / (n - 1), 0)) end;

create temp macro exact_std(n, total, square) as case
    when n > 1
        then round(sqrt(greatest(cast(n * square - total * total as double) / (cast(n as double) * (n - 1)), 0)), 6)
end;

---------- what names stand for

create temp macro event_spelling(name) as replace(replace(replace(lower(name), '_', ''), '-', ''), ' ', '');

create temp table event_types as
select event_spelling(raw_name) as spelling, event_type from read_csv('seeds/event_types.csv')
union all
select event_spelling(event_type), event_type from (values ('pending_order'), ('cancelled_order'), ('refund_of_no_sale')) as of_orders (event_type);

create temp table rates as
with quoted as (
    select rate_date, upper(name) as currency, per_euro
    from (unpivot (from read_csv('seeds/fx_rates.csv')) on columns(* exclude rate_date) into name name value per_euro)
    union all
    select rate_date, 'EUR', 1.0 from read_csv('seeds/fx_rates.csv')
),

held as (
    select
        q.currency,
        q.rate_date,
        usd.per_euro / q.per_euro as rate,
        lead(q.rate_date) over (partition by q.currency order by q.rate_date) as next_date
    from quoted as q
    inner join quoted as usd on q.rate_date = usd.rate_date and usd.currency = 'USD'
)

select
    currency,
    unnest(cast(range(cast(rate_date as timestamp), cast(coalesce(next_date, rate_date + 1200) as timestamp), interval 1 day) as date[])) as rate_date,
    rate
from held;

-- Every category name as it was said: as the map has it, or one slip of the keyboard (two in a long name) away, or itself.
create temp table categories as
with names as (
    select said(category) as name from lake.raw.events
    union
    select said(category) from lake.raw.products
    union
    select said(unnest(items).item_category) from lake.raw.ga4_events
),

spellings as (
    select distinct spelling(name) as spelling from names where spelling(name) is not null
),

canonical as (
    select distinct spelling(category) as spelling, category
    from read_csv('seeds/category_map.csv', all_varchar = true) where category is not null
),

mapped as (
    select spelling(raw_category) as spelling, category from read_csv('seeds/category_map.csv', all_varchar = true)
    union
    from canonical
),

near as (
    select s.spelling, min(c.category) as category
    from spellings as s
    inner join canonical as c
        on length(c.spelling) >= 4
        and damerau_levenshtein(s.spelling, c.spelling) <= case when length(c.spelling) >= 8 then 2 else 1 end
    group by s.spelling
    having count(*) = 1
)

select
    n.name,
    case when m.spelling is not null then m.category else coalesce(near.category, spelling(n.name)) end as category,
    m.spelling is null and near.category is not null as is_corrected
from names as n
left join mapped as m on spelling(n.name) = m.spelling
left join near on spelling(n.name) = near.spelling
where spelling(n.name) is not null;

---------- the shop's own tables

create temp table customers as
select
    said(customer_id) as user_id,
    available_at,
    _position as position,
    _source as source,
    rowid as raw_rowid,
    moment(said(created_at), coalesce(_time_zone, 'UTC')) as created_at,
    moment(said(updated_at), coalesce(_time_zone, 'UTC')) as updated_at,
    try_cast(said(birth_year) as integer) as birth_year,
    lower(said(gender)) as gender,
    said(country) as country,
    try_cast(said(household_size) as integer) as household_size,
    money(said(income)) as income,
    lower(said(acquisition_channel)) as acquisition_channel,
    case
        when lower(said(marketing_consent)) in ('true', 't', 'yes', '1', 'granted') then true
        when lower(said(marketing_consent)) in ('false', 'f', 'no', '0', 'denied') then false
    end as marketing_consent
from lake.raw.customers
where said(customer_id) is not null and _error is null;

create temp table product_versions as
with given as (
    select
        said(product_id) as product_id,
        available_at as known_at,
        _position as position,
        _source as source,
        rowid as raw_rowid,
        said(title) as title,
        said(brand) as brand,
        said(category) as category_name,
        money(said(price)) as price_raw,
        upper(said(currency)) as currency,
        try_cast(said(weight) as decimal(18, 6)) as weight,
        coalesce(lower(said(weight_unit)), 'g') as weight_unit,
        moment(said(created_at), coalesce(_time_zone, 'UTC')) as created_at,
        moment(said(updated_at), coalesce(_time_zone, 'UTC')) as updated_at
    from lake.raw.products
    where said(product_id) is not null and _error is null
),

versions as (
    select
        t.* exclude (category_name, weight, weight_unit),
        coalesce(t.updated_at, t.known_at) as said_at,
        c.category,
        coalesce(c.is_corrected, false) as category_is_corrected,
        cast(round(t.price_raw * r.rate, 4) as decimal(18, 4)) as price,
        cast(t.weight * u.factor as decimal(18, 3)) as weight_grams
    from given as t
    left join categories as c on t.category_name = c.name
    left join rates as r on coalesce(t.currency, 'USD') = r.currency and cast(coalesce(t.updated_at, t.known_at) as date) = r.rate_date
    left join read_csv('seeds/unit_conversions.csv') as u on t.weight_unit = u.unit
),

ordered as (
    select
        *,
        max(said_at) over (partition by product_id order by known_at range between unbounded preceding and current row) as newest_so_far,
        row_number() over (partition by product_id, known_at order by said_at desc, position desc, source desc, raw_rowid desc) as newest,
        min(known_at) over (partition by product_id) as first_known_at
    from versions
)

-- A version that arrived after a newer one was known never was the truth of any moment.
select
    * exclude (position, source, raw_rowid, said_at, newest_so_far, newest),
    lead(known_at, 1, timestamp '9999-12-31') over (partition by product_id order by known_at) as known_until
from ordered
where newest = 1 and said_at >= newest_so_far;

create temp table orders as
with versions as (
    select
        said(order_id) as order_id,
        said(user_id) as user_id,
        said(anonymous_id) as anonymous_id,
        said(session_id) as session_id,
        lower(said(status)) as raw_status,
        upper(said(currency)) as currency,
        money(said(discount)) as discount,
        said(discount_code) as discount_code,
        money(said(tax)) as tax,
        money(said(shipping)) as shipping,
        coalesce(lower(said(tax_included)) not in ('false', 'f', 'no', 'n', '0'), true) as is_tax_included,
        money(said(total)) as total,
        moment(said(created_at), coalesce(_time_zone, 'UTC')) as created_at,
        moment(said(paid_at), coalesce(_time_zone, 'UTC')) as paid_at,
        moment(said(shipped_at), coalesce(_time_zone, 'UTC')) as shipped_at,
        moment(said(updated_at), coalesce(_time_zone, 'UTC')) as updated_at,
        available_at,
        _position as position,
        _source as source,
        rowid as raw_rowid
    from lake.raw.orders
    where said(order_id) is not null and _error is null
)

select
    v.*,
    s.status,
    coalesce(s.event_type, 'purchase') as event_type,
    min(available_at) over (
        partition by order_id, user_id, anonymous_id, session_id, currency, created_at, coalesce(s.event_type, 'purchase')
    ) as known_at,
    coalesce(created_at > paid_at or paid_at > shipped_at or created_at > shipped_at, false) as is_disordered
from versions as v
left join read_csv('seeds/order_statuses.csv') as s on regexp_replace(v.raw_status, '[ -]', '_', 'g') = s.raw_status
qualify row_number() over (
    partition by order_id order by updated_at desc nulls last, available_at desc, position desc, source desc, raw_rowid desc
) = 1;

---------- every event-bearing row that has an identity, a moment and a type; no other is ever kept, or a copy

create temp table arrived as
with ga4 as (
    select
        * exclude (items, payload),
        rowid,
        unnest(case when len(items) > 0 then items else [null] end) as item,
        unnest(case when len(items) > 0 then range(1, len(items) + 1) else [null] end) as item_index
    from lake.raw.ga4_events
    where _error is null
),

tracked as (
    select
        e.rowid * 4096 + 1 as row_id,
        'events' as raw_table,
        _source as source,
        _position as position,
        _origin as origin,
        coalesce(_expects, '') as expects,
        available_at as arrived_at,
        said(event_id) as client_event_id,
        said(event_type) as event_name,
        moment(event_at, coalesce(_time_zone, 'UTC')) as event_at,
        said(user_id) as user_id,
        said(anonymous_id) as anonymous_id,
        said(session_id) as source_session_id,
        said(product_id) as product_id,
        said(category) as category_name,
        amount_of(quantity) as quantity,
        money(price) as price,
        upper(said(currency)) as currency,
        said(order_id) as order_id,
        said(line_id) as line_id,
        said(query) as query,
        said(device) as device_name,
        said(page) as page,
        said(client_class) as client_class,
        said(referrer) as referrer,
        said(campaign) as campaign,
        said(country) as country,
        properties,
        cast(null as timestamp) as order_known_at,
        coalesce(
            is_no_number(quantity) or is_no_number(price)
            or lower(said(consent)) in ('denied', 'false', 'no', '0')
            or client_class = 'crawler',
            false
        ) as is_broken
    from (
        select * replace (said(event_at) as event_at, said(quantity) as quantity, said(price) as price), rowid
        from lake.raw.events
    ) as e
    where e._error is null
    union all by name
    select
        (g.rowid * 512 + coalesce(g.item_index, 0)) * 8 + 2 as row_id,
        'ga4_events' as raw_table,
        g._source as source,
        g._position as position,
        g._origin as origin,
        coalesce(g._expects, '') as expects,
        g.available_at as arrived_at,
        said(g.event_name) as event_name,
        moment(said(g.event_timestamp), 'UTC') as event_at,
        said(g.user_id) as user_id,
        said(g.user_pseudo_id) as anonymous_id,
        cast(list_filter(g.event_params, lambda p: p.key = 'ga_session_id')[1].value.int_value as varchar) as source_session_id,
        said(g.item.item_id) as product_id,
        said(g.item.item_category) as category_name,
        amount_of(g.item.quantity) as quantity,
        money(g.item.price) as price,
        upper(said(list_filter(g.event_params, lambda p: p.key = 'currency')[1].value.string_value)) as currency,
        said(g.ecommerce.transaction_id) as order_id,
        case when lower(said(g.event_name)) in ('purchase', 'refund') then cast(g.item_index as varchar) end as line_id,
        said(list_filter(g.event_params, lambda p: p.key = 'search_term')[1].value.string_value) as query,
        said(g.device.category) as device_name,
        said(list_filter(g.event_params, lambda p: p.key = 'page_location')[1].value.string_value) as page,
        said(g.client_class) as client_class,
        said(list_filter(g.event_params, lambda p: p.key = 'page_referrer')[1].value.string_value) as referrer,
        said(g.traffic_source.medium) as campaign,
        said(g.geo.country) as country,
        coalesce(
            (g.item.price is not null and try_cast(g.item.price as decimal(28, 6)) is null)
            or lower(g.privacy_info.analytics_storage) in ('no', '0', 'denied'),
            false
        ) as is_broken
    from ga4 as g
    union all by name
    select
        i.rowid * 4096 + 3 as row_id,
        'order_items' as raw_table,
        i._source as source,
        i._position as position,
        i._origin as origin,
        coalesce(i._expects, '') as expects,
        i.available_at as arrived_at,
        o.event_type as event_name,
        o.created_at as event_at,
        o.user_id,
        o.anonymous_id,
        o.session_id as source_session_id,
        said(i.product_id) as product_id,
        amount_of(said(i.quantity)) as quantity,
        coalesce(
            money(said(i.price)),
            cast((money(said(i.amount)) + coalesce(money(said(i.discount)), 0)) / coalesce(nullif(amount_of(said(i.quantity)), 0), 1) as decimal(18, 4))
        ) as price,
        money(said(i.amount)) as given_amount,
        coalesce(
            money(said(i.discount)),
            nullif(greatest(cast(round(money(said(i.price)) * coalesce(amount_of(said(i.quantity)), 1) - money(said(i.amount)), 4) as decimal(18, 4)), 0), 0)
        ) as discount,
        coalesce(upper(said(i.currency)), o.currency) as currency,
        said(i.order_id) as order_id,
        said(i.line_id) as line_id,
        i.properties,
        o.known_at as order_known_at,
        is_no_number(said(i.quantity)) or is_no_number(said(i.price)) or is_no_number(said(i.discount))
        or is_no_number(said(i.amount)) or o.is_disordered as is_broken
    from lake.raw.order_items as i
    inner join orders as o on said(i.order_id) = o.order_id
    where i._error is null
    union all by name
    select
        r.rowid * 4096 + 4 as row_id,
        'refunds' as raw_table,
        r._source as source,
        r._position as position,
        r._origin as origin,
        coalesce(r._expects, '') as expects,
        r.available_at as arrived_at,
        said(r.refund_id) as client_event_id,
        case when o.event_type <> 'purchase' then 'refund_of_no_sale' else 'refund' end as event_name,
        moment(said(r.refunded_at), coalesce(r._time_zone, 'UTC')) as event_at,
        coalesce(said(r.user_id), o.user_id) as user_id,
        o.anonymous_id,
        said(r.product_id) as product_id,
        amount_of(said(r.quantity)) as quantity,
        cast(money(said(r.amount)) / coalesce(nullif(amount_of(said(r.quantity)), 0), 1) as decimal(18, 4)) as price,
        money(said(r.amount)) as given_amount,
        coalesce(upper(said(r.currency)), o.currency) as currency,
        said(r.order_id) as order_id,
        said(r.line_id) as line_id,
        r.properties,
        o.known_at as order_known_at,
        is_no_number(said(r.quantity)) or is_no_number(said(r.amount)) or coalesce(o.is_disordered, false)
        or (said(r.order_id) is not null and o.known_at is null) as is_broken
    from lake.raw.refunds as r
    left join orders as o on said(r.order_id) = o.order_id
    where r._error is null
),

named as (
    select
        t.* exclude (event_name, category_name, device_name, currency, is_broken),
        e.event_type,
        coalesce('u:' || t.user_id, 'a:' || t.anonymous_id) as identity,
        cast(t.event_at as date) as event_day,
        c.category,
        coalesce(t.currency, case when t.price is not null then 'USD' end) as currency,
        cast(round(t.price * r.rate, 4) as decimal(18, 4)) as price_reported,
        cast(round(t.given_amount * r.rate, 4) as decimal(18, 4)) as given_reported,
        cast(round(t.discount * r.rate, 4) as decimal(18, 4)) as discount_reported,
        case
            when lower(t.device_name) in ('desktop', 'mobile', 'tablet') then lower(t.device_name)
            when lower(t.device_name) in ('phone', 'smartphone', 'app', 'ios', 'android') then 'mobile'
            when lower(t.device_name) in ('web', 'pc', 'computer', 'laptop') then 'desktop'
            when t.device_name is not null then 'other'
        end as device,
        case e.event_type
            when 'engagement' then lower(t.event_name)
            when 'pending_order' then 'purchase'
            when 'cancelled_order' then 'purchase'
            when 'refund_of_no_sale' then 'refund'
            else e.event_type
        end as kind,
        t.is_broken
        or coalesce(t.event_at > t.arrived_at + interval 10 minute, false)
        or coalesce(t.price < 0 or t.price > 100000, false)
        or coalesce(t.quantity <= 0 or t.quantity > 10000, false)
        or coalesce(t.given_amount < 0 or t.discount < 0, false)
        or coalesce(t.given_amount is null and t.discount > t.price * coalesce(t.quantity, 1), false)
        or (t.price is not null and r.rate is null) as is_broken
    from tracked as t
    inner join event_types as e on event_spelling(t.event_name) = e.spelling
    left join categories as c on t.category_name = c.name
    left join rates as r on coalesce(t.currency, 'USD') = r.currency and cast(t.event_at as date) = r.rate_date
)

select
    * exclude (kind),
    cast(md5(concat(
        spelled(identity), '|,', spelled(event_at), '|,', spelled(product_id), '|,',
        spelled(kind), '|,', spelled(order_id), '|,', spelled(line_id)
    )) as uuid) as event_id
from named;

-- By itself: a filter above would be pushed down, and every time be parsed twice.
delete from arrived where event_at is null or identity is null;

---------- copies: the same event by its key, or by its client's own id, or the same order reported twice

-- Only groups of two and more are sorted. They are found by a hash, and compared by what was hashed.
create temp table copies as
with same_key as (
    select row_id
    from arrived
    where event_id in (select event_id from arrived group by event_id having count(*) > 1)
    qualify row_number() over (
        partition by event_id
        order by origin = 'database' desc, arrived_at, position, source, raw_table, row_id
    ) > 1
),

hashed as (
    select hash(source, client_event_id, product_id, line_id) as h from arrived
    where client_event_id is not null
    group by 1
    having count(*) > 1
),

same_client_id as (
    select row_id
    from arrived
    where client_event_id is not null and hash(source, client_event_id, product_id, line_id) in (select h from hashed)
    qualify row_number() over (
        partition by source, client_event_id, product_id, line_id
        order by origin = 'database' desc, arrived_at, position, source, raw_table, row_id
    ) > 1
)

select row_id, false as is_order from same_key
union all
select row_id, false from same_client_id
union all
select row_id, true
from (
    select
        row_id,
        origin = 'database' as is_told,
        bool_or(origin = 'database') over (partition by order_id) as in_database,
        event_at,
        first_value(event_at) over (partition by order_id order by origin = 'database', arrived_at, position, event_at) as teller_at
    from arrived
    where event_type in ('purchase', 'pending_order', 'cancelled_order') and order_id is not null
) as hits
where case when in_database then not is_told else event_at <> teller_at end;

-- More moments of one identity in one day than a person has, by order of their first arrival; a copy's is that of its first.
create temp table moments as
with whens as (
    select
        row_id,
        identity,
        event_day,
        event_type,
        product_id,
        arrived_at,
        case
            when client_event_id is null then event_at
            else first_value(event_at) over (
                partition by identity, event_day, source, client_event_id, product_id, line_id order by arrived_at, event_at
            )
        end as moment
    from arrived
    where origin <> 'database'
        and (identity, event_day) in (select (identity, event_day) from arrived group by identity, event_day having count(*) >= 30)
)

select *, min(arrived_at) over (partition by identity, event_day, moment) as first_arrival from whens;

create temp table too_many as
select row_id from moments
qualify dense_rank() over (partition by identity, event_day order by first_arrival, moment) > 600;

-- Days that are a bot's from some moment on, by what had arrived: even gaps; or nothing but views and pages, in 10 hours, or of 30 products of which
-- nine in ten are new.
create temp table automated as
with acts as (
    select
        identity,
        event_day,
        moment,
        first_arrival,
        bool_or(event_type not in ('view_item', 'view_item_list', 'page_view')) as is_step,
        list(distinct product_id) filter (event_type = 'view_item' and product_id is not null) as viewed
    from moments
    where event_type <> 'engagement'
        -- What came of a moment later than its first row says nothing.
        and arrived_at = first_arrival
    group by all
),

new_products as (
    select identity, event_day, moment, count(*) as n
    from (
        select identity, event_day, min_by(moment, (first_arrival, moment)) as moment
        from (select * exclude (viewed), unnest(viewed) as product_id from acts)
        group by identity, event_day, product_id
    )
    group by all
),

days as (
    select
        a.identity,
        a.event_day,
        a.moment,
        a.first_arrival,
        count(*) over w as n,
        count(*) filter (is_step) over w as steps,
        stddev_pop(gap) over w / avg(gap) over w as variation,
        bit_or(1 << hour(a.moment)) over w as hours,
        sum(len(viewed)) over w as views,
        sum(p.n) over w as products
    from (
        select *, abs(epoch_ms(moment) - epoch_ms(lag(moment) over (partition by identity, event_day order by first_arrival, moment))) as gap
        from acts
    ) as a
    left join new_products as p on a.identity = p.identity and a.event_day = p.event_day and a.moment = p.moment
    window w as (partition by a.identity, a.event_day order by a.first_arrival, a.moment)
)

select m.row_id
from moments as m
inner join (
    select identity, event_day, min((first_arrival, moment)) as since
    from days
    where
        n >= 30
        and (variation <= 0.35 or (steps = 0 and (bit_count(hours) >= 10 or (products >= 30 and products >= 0.9 * views))))
    group by all
) as d on m.identity = d.identity and m.event_day = d.event_day and (m.first_arrival, m.moment) >= d.since;

---------- kept events, with what the catalogue said by then

-- So few rows are dropped that the planner's guesses would have it hash all events, and not the catalogue.
set disabled_optimizers = 'build_side_probe_side';

create temp table kept as
with users as (
    select user_id, min(available_at) as known_at from customers group by user_id
),

products as (
    select product_id, min(known_at) as known_at from product_versions group by product_id
),

known as (
    select
        a.* exclude (is_broken, expects),
        greatest(
            a.arrived_at,
            a.event_at,
            case when a.expects like '%customers%' then u.known_at end,
            case when a.expects like '%products%' then p.known_at end,
            a.order_known_at
        ) as available_at
    from arrived as a
    left join users as u on a.user_id = u.user_id
    left join products as p on a.product_id = p.product_id
    where not a.is_broken
        and not (a.expects like '%customers%' and a.user_id is not null and u.known_at is null)
        and not (a.expects like '%products%' and a.product_id is not null and p.known_at is null)
        and a.row_id not in (select row_id from copies)
        and a.row_id not in (select row_id from too_many)
        and a.row_id not in (select row_id from automated)
)

select
    k.* exclude (category, order_known_at, raw_table, arrived_at),
    cast(k.available_at as date) as arrival_day,
    v.brand,
    coalesce(v.category, k.category) as category,
    v.price as list_price
from known as k
left join product_versions as v
    on k.product_id = v.product_id and k.available_at >= v.known_at and k.available_at < v.known_until;

set disabled_optimizers = '';

---------- sessions

-- Whose visit an event is: its anonymous id's or, where it has none, that of the identity's last event before it in the same session of
-- the source, or in the same run, that has one; or else of the first one after it.
create temp table known_visitors as
with seen as (
    select order_id, identity, anonymous_id, source_session_id
    from arrived
    where row_id in (select row_id from copies where is_order) and origin <> 'database'
),

hits as (
    select
        k.row_id,
        min({
            'rank': if(s.identity = k.identity, 0, 1),
            'session': coalesce(s.source_session_id, '~'),
            'visitor': coalesce(s.anonymous_id, '~')
        }) as hit
    from kept as k
    inner join seen as s on k.order_id = s.order_id
    where
        k.origin = 'database' and k.event_type in ('purchase', 'pending_order', 'cancelled_order')
        and (s.anonymous_id is not null or (s.source_session_id is not null and s.identity = k.identity))
    group by k.row_id
)

select
    k.row_id,
    k.identity,
    k.user_id,
    k.event_at,
    k.event_id,
    k.origin,
    coalesce(k.source_session_id, nullif(h.hit.session, '~')) as chain,
    'a:' || case
        when k.source_session_id is null then coalesce(nullif(h.hit.visitor, '~'), k.anonymous_id) else k.anonymous_id
    end as visitor,
    'a:' || k.anonymous_id as own_visitor
from kept as k
left join hits as h on k.row_id = h.row_id
where not (k.origin = 'database' and k.event_type in ('refund', 'refund_of_no_sale'));

create temp table found_visitors as
with starts as (
    select *, coalesce(lag(event_at) over in_order < event_at - interval 30 minute, true) as is_start
    from known_visitors
    where identity in (select identity from known_visitors where visitor is null)
    window in_order as (partition by identity order by event_at, event_id)
),

runs as (
    select *, count_if(is_start) over (partition by identity order by event_at, event_id) as run from starts
),

neighbours as (
    select
        *,
        last_value(own_visitor ignore nulls) over (in_session rows unbounded preceding) as session_before,
        first_value(own_visitor ignore nulls) over (in_session rows between current row and unbounded following) as session_after,
        last_value(own_visitor ignore nulls) over (in_run rows unbounded preceding) as run_before,
        first_value(own_visitor ignore nulls) over (in_run rows between current row and unbounded following) as run_after
    from runs
    window
        in_session as (partition by identity, chain order by event_at, event_id),
        in_run as (partition by identity, run order by event_at, event_id)
)

select
    row_id,
    case when chain is not null then coalesce(session_before, session_after) end as session_visitor,
    coalesce(session_visitor, run_before, run_after, identity) as visitor
from neighbours
where visitor is null;

-- A database order without a session belongs to where its visitor or, without one, its identity was last seen.
create temp table visits as
with without_session as (
    select row_id, event_at, coalesce(visitor, identity) as follows from known_visitors where origin = 'database' and chain is null
),

web as (
    select t.row_id, t.identity, t.own_visitor, t.event_at, t.event_id, coalesce(t.visitor, f.visitor) as visitor, t.chain
    from known_visitors as t
    left join found_visitors as f on t.row_id = f.row_id
    where t.origin <> 'database'
),

last_seen as (
    select follows, event_at, max({'id': event_id, 'visitor': visitor, 'chain': chain}) as place
    from (
        from (select own_visitor as follows, * from web where own_visitor in (select follows from without_session))
        union all
        from (select identity as follows, * from web where identity like 'u:%' and identity in (select follows from without_session))
    ) as places
    group by all
),

placed_orders as (
    select a.row_id, w.place
    from without_session as a
    asof inner join last_seen as w on a.follows = w.follows and a.event_at >= w.event_at
    where w.event_at >= a.event_at - interval 30 minute
)

select
    t.row_id,
    t.user_id,
    t.event_at,
    t.event_id,
    coalesce(t.visitor, l.place.visitor, f.visitor) as visitor,
    coalesce(t.chain, l.place.chain) as chain
from known_visitors as t
left join found_visitors as f on t.row_id = f.row_id
left join placed_orders as l on t.row_id = l.row_id;

drop table arrived;
drop table known_visitors;

-- What the source tells apart needs no window, only its first event.
create temp table told_sessions as
select
    visitor,
    chain,
    min({'at': event_at, 'id': event_id})['id'] as first_event_id,
    session_of(visitor, first_event_id) as session_id
from visits
where chain is not null
group by visitor, chain;

-- The rest is cut by gaps, and where the login changes within a run.
create temp table found_sessions as
with runs as (
    select *, count_if(is_gap) over (partition by visitor order by event_at, event_id) as run
    from (
        select *, coalesce(lag(event_at) over (partition by visitor order by event_at, event_id) < event_at - interval 30 minute, true) as is_gap
        from visits
        where chain is null
    ) as gaps
),

started as (
    select
        *,
        case
            when is_gap or user_id <> last_value(user_id ignore nulls) over (
                partition by visitor, run order by event_at, event_id rows between unbounded preceding and 1 preceding
            ) then event_id
        end as starts
    from runs
)

select
    row_id,
    visitor,
    last_value(starts ignore nulls) over (
        partition by visitor order by event_at, event_id rows between unbounded preceding and current row
    ) as first_event_id
from started;

---------- fits: what was usual by the end of each day

-- Histograms in buckets of 2 % by arrival day, of each group that a value may be compared with.
create temp table histograms as
with prices as (
    select arrival_day, product_id, category, price_reported as value, count(*) as n
    from kept
    where price_reported is not null and product_id is not null
    group by all
),

quantities as (
    select arrival_day, event_type, category, quantity as value, count(*) as n from kept where quantity is not null group by all
),

grouped as (
    select 'price' as measure, arrival_day, value, n, unnest([
        {'by': 'product_id', 'key': product_id}, {'by': 'category', 'key': category}, {'by': 'all', 'key': 'all'}
    ], recursive := true)
    from prices
    union all
    select 'quantity' as measure, arrival_day, value, n, unnest([
        {'by': 'event_type', 'key': event_type}, {'by': 'category', 'key': category}, {'by': 'all', 'key': 'all'}
    ], recursive := true)
    from quantities
)

select
    measure,
    "by",
    "key",
    arrival_day as valid_on,
    bucket(value) as bucket,
    cast(sum(n) as bigint) as n,
    sum(n * value) as total,
    cast(sum(case when value > 0 then n end) as bigint) as log_n,
    sum(n * micros) as log_total,
    sum(n * micros * micros) as log_square
from (
    select *, case when value > 0 then cast(round(ln(cast(value as double)) * 1000000) as bigint) end as micros
    from grouped
    where "key" is not null
) as observed
group by all;

create temp table fit_days as
select
    measure,
    "by",
    "key",
    valid_on,
    sum(sum(n)) over so_far as n,
    sum(sum(log_n)) over so_far as log_n,
    sum(sum(log_total)) over so_far as log_total,
    sum(sum(log_square)) over so_far as log_square
from histograms
group by measure, "by", "key", valid_on
window so_far as (partition by measure, "by", "key" order by valid_on rows between unbounded preceding and current row);

-- The histogram of each group as it stood on each of its days, from the lowest bucket up.
create temp table standing as
with added as (
    select
        measure,
        "by",
        "key",
        bucket,
        valid_on,
        lead(valid_on, 1, date '9999-12-31') over in_bucket as until,
        sum(n) over (in_bucket rows between unbounded preceding and current row) as n,
        sum(total) over (in_bucket rows between unbounded preceding and current row) as total
    from histograms
    window in_bucket as (partition by measure, "by", "key", bucket order by valid_on)
)

select
    d.measure,
    d."by",
    d."key",
    d.valid_on,
    mean_of(a.total, a.n) as value,
    sum(a.n) over (partition by d.measure, d."by", d."key", d.valid_on order by a.bucket rows between unbounded preceding and current row)
    * 100 / d.n as reached
from fit_days as d
inner join added as a
    on d.measure = a.measure and d."by" = a."by" and d."key" = a."key" and d.valid_on >= a.valid_on and d.valid_on < a.until;

create temp table category_prices as
select
    "key" as category,
    valid_on,
    min(case when reached >= 5 then value end) as q05,
    min(case when reached >= 10 then value end) as q10,
    min(case when reached >= 15 then value end) as q15,
    min(case when reached >= 20 then value end) as q20,
    min(case when reached >= 25 then value end) as q25,
    min(case when reached >= 30 then value end) as q30,
    min(case when reached >= 35 then value end) as q35,
    min(case when reached >= 40 then value end) as q40,
    min(case when reached >= 45 then value end) as q45,
    min(case when reached >= 50 then value end) as q50,
    min(case when reached >= 55 then value end) as q55,
    min(case when reached >= 60 then value end) as q60,
    min(case when reached >= 65 then value end) as q65,
    min(case when reached >= 70 then value end) as q70,
    min(case when reached >= 75 then value end) as q75,
    min(case when reached >= 80 then value end) as q80,
    min(case when reached >= 85 then value end) as q85,
    min(case when reached >= 90 then value end) as q90,
    min(case when reached >= 95 then value end) as q95
from standing
where measure = 'price' and "by" = 'category'
group by "key", valid_on;

-- With the bounds of what is believable, where a rule says so and the group is old enough.
create temp table fits as
with quartiles as (
    select
        measure,
        "by",
        "key",
        valid_on,
        min(case when reached >= 25 then value end) as q25,
        min(case when reached >= 50 then value end) as q50,
        min(case when reached >= 75 then value end) as q75
    from standing
    group by measure, "by", "key", valid_on
),

spread as (
    select
        q.*,
        r.action,
        r.min_count,
        r.min_ratio,
        r.min_distance,
        d.n,
        case when r.method = 'iqr' and q.q25 > 0 then ln(q.q25) when r.method = 'zscore' then cast(d.log_total as double) / d.log_n / 1000000 end as low_log,
        case when r.method = 'iqr' and q.q25 > 0 then ln(q.q75) when r.method = 'zscore' then cast(d.log_total as double) / d.log_n / 1000000 end as high_log,
        r.factor * case
            when r.method = 'iqr' and q.q25 > 0 then ln(q.q75) - ln(q.q25)
            when r.method = 'zscore' then coalesce(std(d.log_n, d.log_total, d.log_square), 0) / 1000000
        end as reach
    from quartiles as q
    inner join fit_days as d on q.measure = d.measure and q."by" = d."by" and q."key" = d."key" and q.valid_on = d.valid_on
    left join read_csv('seeds/outlier_rules.csv') as r on q.measure = r.column_name and q."by" = r.group_by and r.scale = 'log'
)

select
    measure,
    "by",
    "key",
    valid_on,
    q50,
    case when n >= min_count and reach is not null then least(exp(low_log - reach), q50 / min_ratio, q50 - min_distance) end as low,
    case when n >= min_count and reach is not null then greatest(exp(high_log + reach), q50 * min_ratio, q50 + min_distance) end as high
from spread;

drop table standing;

-- The fits that events ask for: of the narrowest group that has bounds, and the median of the narrowest that has one.
create temp table price_fits as
with asked as (
    select distinct product_id, category, event_day, event_day - 2 as fit_day from kept
),

answered as (
    select
        a.product_id,
        a.category,
        a.event_day,
        p.low as p_low,
        p.high as p_high,
        p.q50 as p_median,
        c.low as c_low,
        c.high as c_high,
        c.q50 as c_median,
        s.q50 as s_median
    from asked as a
    asof left join (from fits where measure = 'price' and "by" = 'product_id') as p on a.product_id = p."key" and a.fit_day >= p.valid_on
    asof left join (from fits where measure = 'price' and "by" = 'category') as c on a.category = c."key" and a.fit_day >= c.valid_on
    asof left join (from fits where measure = 'price' and "by" = 'all') as s on a.fit_day >= s.valid_on
)

select
    product_id,
    category,
    event_day,
    coalesce(p_low, c_low) as low,
    coalesce(p_high, c_high) as high,
    coalesce(p_median, c_median, s_median) as median
from answered;

create temp table quantity_fits as
with asked as (
    select distinct event_type, category, event_day, event_day - 2 as fit_day from kept
)

select
    a.event_type,
    a.category,
    a.event_day,
    c.low,
    c.high,
    coalesce(e.q50, c.q50, s.q50) as median
from asked as a
asof left join (from fits where measure = 'quantity' and "by" = 'event_type') as e on a.event_type = e."key" and a.fit_day >= e.valid_on
asof left join (from fits where measure = 'quantity' and "by" = 'category') as c on a.category = c."key" and a.fit_day >= c.valid_on
asof left join (from fits where measure = 'quantity' and "by" = 'all') as s on a.fit_day >= s.valid_on;

create temp table category_price_days as
select a.*, p.* exclude (category, valid_on)
from (select distinct category, event_day from kept where category is not null) as a
asof left join category_prices as p on a.category = p.category and a.event_day - 2 >= p.valid_on;

-- The most frequent device and country so far; of equally frequent ones the first in alphabetical order.
create temp table frequent as
with seen as (
    select 'device' as label, device as value, arrival_day, count(*) as n from kept where origin <> 'database' and device is not null group by all
    union all
    select 'country', country, arrival_day, count(*) from kept where origin <> 'database' and country is not null group by all
),

days as (
    select distinct label, arrival_day as valid_on from seen
),

latest as (
    select d.label, d.valid_on, min({'n': -n, 'value': value})['value'] as value
    from (
        select d.label, d.valid_on, s.value, sum(s.n) as n
        from days as d
        inner join seen as s on d.label = s.label and d.valid_on >= s.arrival_day
        group by all
    ) as d
    group by all
)

select a.event_day, d.value as device, c.value as country
from (select distinct event_day from kept) as a
asof left join (from latest where label = 'device') as d on a.event_day - 2 >= d.valid_on
asof left join (from latest where label = 'country') as c on a.event_day - 2 >= c.valid_on;

---------- who is whose customer: a visitor is the customer of the first login on it

create temp table links as
with seen as (
    select distinct identity from kept
    union
    select distinct 'a:' || anonymous_id from kept where anonymous_id is not null
),

logins as (
    select 'a:' || anonymous_id as identity, min({'available_at': available_at, 'event_at': event_at, 'event_id': event_id, 'user_id': user_id})['user_id'] as user_id
    from kept
    where user_id is not null and anonymous_id is not null
    group by anonymous_id
)

select s.identity, customer_of(coalesce('u:' || l.user_id, s.identity)) as customer_id
from seen as s
left join logins as l on s.identity = l.identity;

---------- facts

create table clean_events as
with fitted as (
    select
        k.*,
        coalesce(f.first_event_id, s.first_event_id) as first_event_id,
        case when i.row_id is not null then coalesce(s.session_id, session_of(f.visitor, f.first_event_id)) end as session_id,
        p.low as price_low,
        p.high as price_high,
        p.median as price_median,
        q.low as quantity_low,
        q.high as quantity_high,
        q.median as quantity_median,
        r.device as frequent_device,
        r.country as frequent_country,
        l.customer_id
    from kept as k
    left join links as l on k.identity = l.identity
    left join visits as i on k.row_id = i.row_id
    left join told_sessions as s on i.visitor = s.visitor and i.chain = s.chain
    left join found_sessions as f on k.row_id = f.row_id
    left join price_fits as p on k.product_id is not distinct from p.product_id and k.category is not distinct from p.category and k.event_day = p.event_day
    left join quantity_fits as q on k.event_type = q.event_type and k.category is not distinct from q.category and k.event_day = q.event_day
    left join frequent as r on k.event_day = r.event_day
),

treated as (
    select
        *,
        coalesce((price_reported < price_low or price_reported > price_high) and price_reported > 0, false) as price_is_outlier,
        coalesce((quantity < quantity_low or quantity > quantity_high) and quantity > 0, false) as quantity_is_outlier,
        cast(round(case
            when price_reported > 0 and price_reported < price_low then price_low
            when price_reported > 0 and price_reported > price_high then price_high
            else cast(price_reported as double)
        end, 4) as decimal(18, 4)) as price_treated,
        cast(round(case
            when quantity > 0 and quantity < quantity_low then quantity_low
            when quantity > 0 and quantity > quantity_high then quantity_high
            else cast(quantity as double)
        end, 3) as decimal(18, 3)) as quantity_treated,
        price_reported is null and product_id is not null as price_was_missing,
        quantity is null and product_id is not null
        and event_type in ('add_to_cart', 'remove_from_cart', 'purchase', 'refund') as quantity_was_missing,
        device is null and origin <> 'database' as device_was_missing,
        country is null and origin <> 'database' as country_was_missing
    from fitted
),

filled as (
    select
        t.* exclude (price, quantity, device, country),
        t.price as price_in_currency,
        t.quantity as quantity_raw,
        case when t.price_was_missing then cast(round(t.price_median, 4) as decimal(18, 4)) else t.price_treated end as price,
        case
            when t.quantity_was_missing and t.event_type = 'refund' then 1
            when t.quantity_was_missing then cast(round(coalesce(t.quantity_median, 1), 3) as decimal(18, 3))
            else t.quantity_treated
        end as quantity,
        case when t.device_was_missing then t.frequent_device else t.device end as device,
        case when t.country_was_missing then t.frequent_country else t.country end as country,
        5 * (
            (t.price_treated >= c.q05)::integer +
            (t.price_treated >= c.q10)::integer +
            (t.price_treated >= c.q15)::integer +
            (t.price_treated >= c.q20)::integer +
            (t.price_treated >= c.q25)::integer +
            (t.price_treated >= c.q30)::integer +
            (t.price_treated >= c.q35)::integer +
            (t.price_treated >= c.q40)::integer +
            (t.price_treated >= c.q45)::integer +
            (t.price_treated >= c.q50)::integer +
            (t.price_treated >= c.q55)::integer +
            (t.price_treated >= c.q60)::integer +
            (t.price_treated >= c.q65)::integer +
            (t.price_treated >= c.q70)::integer +
            (t.price_treated >= c.q75)::integer +
            (t.price_treated >= c.q80)::integer +
            (t.price_treated >= c.q85)::integer +
            (t.price_treated >= c.q90)::integer +
            (t.price_treated >= c.q95)::integer
        ) as price_percentile
    from treated as t
    left join category_price_days as c on t.category = c.category and t.event_day = c.event_day
)

select
    event_id,
    customer_id,
    identity,
    user_id,
    anonymous_id,
    session_id,
    event_id = first_event_id as is_entry,
    source,
    origin,
    event_type,
    event_at,
    event_day,
    available_at,
    arrival_day,
    product_id,
    category,
    category is null and product_id is not null as category_was_missing,
    null::double as category_confidence,
    brand,
    case when event_type = 'purchase' then coalesce(order_id, identity || '@' || cast(event_at as varchar)) end as order_key,
    order_id,
    line_id,
    price,
    price_reported as price_raw,
    price_is_outlier,
    price_was_missing,
    price_percentile,
    quantity,
    quantity_raw,
    quantity_is_outlier,
    quantity_was_missing,
    case
        when price is null then null
        when price = price_reported and (quantity_raw is null or quantity_raw = quantity) and given_reported is not null then given_reported
        else greatest(cast(round(price * coalesce(quantity, 1), 4) as decimal(18, 4)) - coalesce(discount_reported, 0), 0)
    end as amount,
    case
        when price_reported is null then null
        when given_reported is not null then given_reported
        else greatest(cast(round(price_reported * coalesce(quantity_raw, 1), 4) as decimal(18, 4)) - coalesce(discount_reported, 0), 0)
    end as gross_amount,
    discount_reported as discount,
    list_price,
    currency,
    price_in_currency,
    device,
    device_was_missing,
    country,
    country_was_missing,
    query,
    page,
    referrer,
    campaign,
    client_class,
    properties
from filled;

drop table kept;

-- What happened, and beside it what features are made of.
create view fct_events as
select
    * exclude (arrival_day, price, price_raw, quantity, quantity_raw, amount, gross_amount),
    price_raw as price,
    price as price_treated,
    quantity_raw as quantity,
    quantity as quantity_treated,
    gross_amount as amount,
    amount as amount_treated,
    -- The shop's day: its time zone is UTC.
    event_day as event_date
from clean_events;

set variable as_of = (select max(available_at) + interval 1 microsecond from clean_events);
set variable today = cast(getvariable('as_of') as date);

create table catalogue as
from product_versions where known_at <= getvariable('as_of') and known_until > getvariable('as_of');

create temp table order_lines as
select
    * exclude (order_key),
    coalesce(order_key, order_id) as order_key,
    event_type = 'purchase' as is_sale
from clean_events
where event_type in ('purchase', 'pending_order', 'cancelled_order');

-- What the database says of the orders whose lines it gave, in USD.
create temp table order_headers as
select
    l.order_key,
    l.amount,
    h.* replace (
        cast(round(h.discount * r.rate, 4) as decimal(18, 4)) as discount,
        cast(round(h.tax * r.rate, 4) as decimal(18, 4)) as tax,
        cast(round(h.shipping * r.rate, 4) as decimal(18, 4)) as shipping,
        cast(round(h.total * r.rate, 4) as decimal(18, 4)) as total
    ),
    r.rate,
    greatest(least(coalesce(cast(round(h.discount * r.rate, 4) as decimal(18, 4)), 0) - l.discount, l.amount), 0) as order_discount
from (
    select
        order_key,
        min(case when origin = 'database' then order_id end) as order_id,
        min(event_day) as ordered_on,
        min(currency) as currency,
        coalesce(sum(gross_amount), 0) as amount,
        coalesce(sum(case when gross_amount is not null then discount end), 0) as discount
    from order_lines
    group by order_key
) as l
inner join orders as h on l.order_id = h.order_id
left join rates as r on coalesce(h.currency, l.currency, 'USD') = r.currency and l.ordered_on = r.rate_date;

-- A refund goes to the lines of its line id, else of its product, else to all of the order.
create temp table refund_shares as
with targets as (
    select
        r.event_id as refund,
        r.gross_amount as whole,
        l.event_id,
        l.order_key,
        coalesce(l.gross_amount, 0) as amount,
        case
            when r.line_id = l.line_id then 'line ' || r.line_id
            when r.product_id = l.product_id then 'product ' || r.product_id
            else ''
        end as named_by,
        case when r.line_id = l.line_id then 1 when r.product_id = l.product_id then 2 else 3 end as level
    from clean_events as r
    inner join order_lines as l on r.order_id = l.order_id
    where r.event_type = 'refund' and r.gross_amount > 0
    qualify level = min(level) over (partition by r.event_id)
),

weighted_events as (
    select
        event_id,
        order_key,
        named_by,
        sum(whole) * 10000 as whole,
        case when sum(any_value(amount)) over (partition by order_key, named_by) > 0 then any_value(amount) * 10000 else 1 end as weight
    from targets
    group by event_id, order_key, named_by
),

running as (
    select
        *,
        sum(weight) over (partition by order_key, named_by order by event_id rows unbounded preceding) as reached,
        sum(weight) over (partition by order_key, named_by) as total
    from weighted_events
)

select
    event_id,
    sum(
        cast(whole as hugeint) * cast(reached as hugeint) // cast(total as hugeint)
        - cast(whole as hugeint) * cast(reached - weight as hugeint) // cast(total as hugeint)
    ) / 10000 as refunds
from running
group by event_id;

create table fct_order_items as
with shared as (
    select
        l.*,
        s.refunds as shared_refunds,
        coalesce(h.status = 'refunded' and l.is_sale and h.order_id not in (
            select order_id from clean_events where event_type = 'refund' and order_id is not null
        ), false) as is_refund_assumed,
        case
            when h.order_discount > 0 and l.gross_amount is not null then cast(
                cast(h.order_discount * 10000 as hugeint)
                * cast(10000 * sum(l.gross_amount) over (partition by l.order_key order by l.event_id rows unbounded preceding) as hugeint)
                // cast(h.amount * 10000 as hugeint)
                - cast(h.order_discount * 10000 as hugeint)
                * cast(10000 * (sum(l.gross_amount) over (partition by l.order_key order by l.event_id rows unbounded preceding) - l.gross_amount) as hugeint)
                // cast(h.amount * 10000 as hugeint) as decimal(18, 0)
            ) * 0.0001
            else 0
        end as order_discount
    from order_lines as l
    left join order_headers as h on l.order_key = h.order_key
    left join refund_shares as s on l.event_id = s.event_id
)

select
    event_id as order_item_id,
    order_key,
    line_id,
    customer_id,
    event_at as ordered_at,
    event_day as ordered_on,
    is_sale,
    product_id,
    category,
    brand,
    quantity_raw as quantity,
    price_raw as price,
    list_price,
    gross_amount + coalesce(discount, 0) as gross,
    case when gross_amount is null then 0 else coalesce(discount, 0) + order_discount end as discount,
    order_discount,
    case when is_sale then gross_amount - order_discount else 0 end as revenue,
    cast(case
        when not is_sale then 0
        when is_refund_assumed then coalesce(gross_amount - order_discount, 0)
        else coalesce(shared_refunds, 0)
    end as decimal(38, 4)) as refunds,
    is_refund_assumed,
    currency,
    price_in_currency,
    session_id,
    source
from shared;

create table fct_orders as
with lines as (
    select
        order_key,
        min(order_id) as order_id,
        min(identity) as identity,
        min(customer_id) as customer_id,
        min(session_id) as session_id,
        min(source) as source,
        min(origin) as origin,
        min(event_at) as ordered_at,
        bool_and(is_sale) as is_sale,
        min(currency) as currency,
        count(*) as lines,
        count(distinct product_id) as products,
        coalesce(sum(coalesce(quantity_raw, 1)) filter (where is_sale), 0) as units
    from order_lines
    group by order_key
),

items as (
    select
        order_key,
        sum(gross) as gross,
        sum(discount) as discount,
        sum(revenue) as revenue,
        sum(refunds) as refunds,
        bool_or(is_refund_assumed) as is_refund_assumed,
        cast(coalesce(sum((list_price - price) * coalesce(quantity, 1)) filter (where is_sale and list_price > price), 0) as decimal(38, 4)) as list_price_difference
    from fct_order_items
    group by order_key
),

refunds as (
    select order_id, sum(coalesce(quantity_raw, 1)) as refunded_units
    from clean_events
    where event_type = 'refund' and order_id is not null
    group by order_id
),

added as (
    select
        l.*,
        i.* exclude (order_key),
        case
            when l.is_sale then i.revenue + coalesce(h.shipping, 0) + coalesce(case when not h.is_tax_included then h.tax end, 0)
            else 0
        end as total,
        h.paid_at,
        h.shipped_at,
        h.status,
        h.raw_status,
        h.discount_code,
        h.shipping,
        h.tax,
        case when h.tax is not null then h.is_tax_included end as is_tax_included,
        h.total as source_total,
        h.rate,
        case when not l.is_sale then 0 when i.is_refund_assumed then l.units else coalesce(r.refunded_units, 0) end as refunded_units
    from lines as l
    inner join items as i on l.order_key = i.order_key
    left join refunds as r on l.order_id = r.order_id
    left join order_headers as h on l.order_key = h.order_key
)

select
    * exclude (rate),
    cast(ordered_at as date) as ordered_on,
    coalesce(revenue, 0) - refunds as net_revenue,
    is_sale and coalesce(abs(source_total - total) > lines * greatest(rate, 1) / 100, false) as total_differs
from added;

create temp table sessions as
select
    session_id,
    max(identity) as identity,
    arg_max(customer_id, identity) as customer_id,
    min(source) as source,
    min(event_at) as started_at,
    max(event_at) as ended_at,
    max(event_day) as last_day,
    count(*) as events,
    count(distinct product_id) as products,
    count(distinct category) as categories,
    count(case when event_type = 'view_item' then 1 end) as views,
    count(case when event_type = 'search' then 1 end) as searches,
    count(case when event_type = 'add_to_cart' then 1 end) as cart_adds,
    count(case when event_type = 'begin_checkout' then 1 end) as checkouts,
    count(distinct order_key) as orders,
    case
        when count(case when event_type = 'purchase' then 1 end) = 0 then 0
        else sum(case when event_type = 'purchase' then gross_amount end)
    end as revenue,
    max(case when is_entry then device end) as device,
    max(case when is_entry then country end) as country,
    max(case when is_entry then campaign end) as campaign,
    max(case when is_entry then client_class end) as client_class,
    max(case when is_entry then page end) as entry_page,
    max(case when is_entry then referrer end) as entry_referrer
from clean_events
where session_id is not null
group by session_id;

-- Each customer's part of a session.
create temp table user_sessions as
select
    customer_id,
    session_id,
    min(event_at) as started_at,
    max(event_at) as ended_at,
    min(case when event_day >= getvariable('today') - 90 then event_at end) as started_at_90d,
    max(event_day) as last_day,
    count(case when event_type = 'add_to_cart' then 1 end) as cart_adds,
    count(case when event_type = 'purchase' then 1 end) as purchases,
    sum(case event_type when 'add_to_cart' then amount when 'remove_from_cart' then -amount end) as cart_value
from clean_events
group by customer_id, session_id;

-- Each way to the shop there was: tags of the page, then the campaign field, then the referrer's site.
create temp table ways as
with addresses as (
    select distinct entry_page as page, entry_referrer as referrer, campaign from sessions
),

tags as (
    select
        *,
        said_tag(page, 'utm_source') as utm_source,
        said_tag(page, 'utm_medium') as utm_medium,
        said_tag(page, 'utm_campaign') as utm_campaign,
        case
            when regexp_matches(page, '(?i)[?&](amp;)?(gclid|gbraid|wbraid)=[^&#]') then 'google'
            when regexp_matches(page, '(?i)[?&](amp;)?msclkid=[^&#]') then 'bing'
        end as clicked,
        case when regexp_matches(page, '(?i)[?&](amp;)?fbclid=[^&#]') then 'facebook' end as shared,
        host_of(page) as ours,
        host_of(referrer) as theirs
    from addresses
),

places as (
    select
        * replace (lower(utm_source) as utm_source, lower(utm_medium) as utm_medium),
        coalesce(
            case lower(utm_source) when 'fb' then 'facebook' when 'ig' then 'instagram' else lower(utm_source) end,
            clicked,
            case when not coalesce('.' || ours like '%.' || theirs or '.' || theirs like '%.' || ours, false) then theirs end,
            shared
        ) as place
    from tags
),

sites as (
    select p.place, c.site, c.channel
    from (select distinct place from places where place is not null) as p
    inner join read_csv('seeds/referrer_channels.csv') as c on contains('.' || p.place || '.', '.' || c.site || '.')
    qualify row_number() over (partition by p.place order by length(c.site) desc, c.site) = 1
),

named as (
    select
        p.*,
        s.channel as kind,
        coalesce(p.utm_source, p.clicked, s.site, p.place) as entry_source,
        coalesce(p.utm_campaign, p.campaign) as entry_campaign,
        coalesce(
            p.utm_medium,
            if(p.clicked is null, null, 'cpc'),
            if(lower(p.campaign) in (
                'organic', 'cpc', 'ppc', 'cpm', 'paid', 'paidsearch', 'paid_search', 'paidsocial', 'paid_social', 'display', 'email',
                'newsletter', 'affiliate', 'affiliates', 'social', 'referral'
            ), lower(p.campaign), null)
        ) as medium
    from places as p
    left join sites as s on p.place = s.place
)

select
    page,
    referrer,
    campaign,
    entry_source,
    entry_campaign,
    coalesce(
        medium,
        if(
            utm_source is null and entry_campaign is null and place is not null,
            case kind when 'search' then 'organic' when 'social' then 'social' else 'referral' end, null
        )
    ) as entry_medium,
    case
        when is_paid(medium) and kind in ('search', 'social') then 'paid ' || kind
        when medium in ('display', 'banner', 'expandable', 'interstitial', 'cpm') then 'display'
        when is_paid(medium) then 'paid other'
        when medium in ('email', 'e-mail', 'e_mail', 'e mail', 'newsletter') then 'email'
        when entry_source in ('email', 'e-mail', 'e_mail', 'e mail', 'newsletter') then 'email'
        when medium in ('affiliate', 'affiliates') then 'affiliates'
        when kind = 'assistant' then 'ai assistant'
        when medium is null and entry_campaign is not null then 'campaign'
        when entry_medium in ('social', 'social-network', 'social-media', 'social network', 'social media', 'sm') then 'organic social'
        when entry_medium = 'organic' then if(kind = 'social', 'organic social', 'organic search')
        when entry_medium in ('referral', 'app', 'link') then 'referral'
        when kind in ('search', 'social') then 'organic ' || kind
        when coalesce(entry_medium, entry_source) is not null then 'campaign'
        else 'direct'
    end as entry_channel,
    coalesce(kind = 'assistant', false) as is_of_assistant
from named;

create table fct_sessions as
select
    s.* exclude (last_day, campaign, client_class),
    w.* exclude (page, referrer, campaign, is_of_assistant),
    coalesce(s.client_class, if(w.is_of_assistant, 'assistant_referred', 'human')) as visitor_class,
    cast(s.started_at as date) as started_on,
    seconds(s.started_at, s.ended_at) as length_seconds,
    s.events = 1 as is_bounce
from sessions as s
inner join ways as w
    on
        s.entry_page is not distinct from w.page
        and s.entry_referrer is not distinct from w.referrer
        and s.campaign is not distinct from w.campaign;

---------- dimensions; a gap is filled with what was usual two days before

-- Each number once, when it was first seen of its customer or product, as a histogram of what had arrived by then.
create temp table profile_fits as
with observed as (
    unpivot (
        select user_id, available_at, position, source, raw_rowid,
            cast(birth_year as decimal(18, 4)) as birth_year,
            cast(household_size as decimal(18, 4)) as household_size,
            income
        from customers
    ) on birth_year, household_size, income into name measure value value
),

firsts as (
    select measure, 'all' as category, value, available_at
    from observed
    qualify row_number() over (partition by measure, user_id order by available_at, position, source, raw_rowid) = 1
    union all
    select 'weight', category, cast(weight_grams as decimal(18, 4)), known_at
    from product_versions
    where weight_grams is not null and category is not null
    qualify row_number() over (partition by product_id order by known_at) = 1
),

buckets as (
    select measure, category, bucket(value) as bucket, count(*) as n, sum(value) as total, sum(cast(value as decimal(19, 4)) * cast(value as decimal(19, 4))) as square
    from firsts
    where cast(available_at as date) <= getvariable('today') - 2
    group by all
),

standing as (
    select
        *,
        sum(n) over (partition by measure, category order by bucket rows between unbounded preceding and current row) * 100
        / sum(n) over (partition by measure, category) as reached
    from buckets
)

select
    measure,
    category,
    sum(n) as n,
    sum(total) / sum(n) as mean,
    std(sum(n), sum(total), sum(square)) as std,
    min(case when reached >= 25 then mean_of(total, n) end) as q25,
    min(case when reached >= 50 then mean_of(total, n) end) as q50,
    min(case when reached >= 75 then mean_of(total, n) end) as q75
from standing
group by measure, category;

create table dim_products as
with rule as (
    select factor, min_count, min_ratio, min_distance from read_csv('seeds/outlier_rules.csv') where column_name = 'weight'
),

limits as (
    select
        f.category,
        f.q50,
        case when f.n >= r.min_count and f.q25 > 0
            then least(exp(ln(f.q25) - r.factor * (ln(f.q75) - ln(f.q25))), f.q50 / r.min_ratio, f.q50 - r.min_distance) end as low,
        case when f.n >= r.min_count and f.q25 > 0
            then greatest(exp(ln(f.q75) + r.factor * (ln(f.q75) - ln(f.q25))), f.q50 * r.min_ratio, f.q50 + r.min_distance) end as high
    from profile_fits as f
    cross join rule as r
    where f.measure = 'weight'
),

named as (
    select product_id, category
    from clean_events
    where product_id is not null and category is not null
    group by product_id, category
    qualify row_number() over (partition by product_id order by count(*) desc, max(event_at) desc, category) = 1
),

seen as (
    select e.product_id, min(e.event_at) as first_seen_at, max(e.event_at) as last_seen_at, any_value(n.category) as category
    from clean_events as e
    left join named as n on e.product_id = n.product_id
    where e.product_id is not null
    group by e.product_id
),

joined as (
    select
        coalesce(v.product_id, s.product_id) as product_id,
        v.title,
        v.brand,
        coalesce(v.category, s.category) as category,
        coalesce(v.category_is_corrected, false) as category_is_corrected,
        v.price,
        v.price_raw,
        v.currency,
        v.weight_grams as weight_grams_raw,
        v.created_at,
        v.updated_at,
        s.first_seen_at,
        s.last_seen_at,
        v.product_id is not null as is_in_catalogue
    from catalogue as v
    full join seen as s on v.product_id = s.product_id
)

select
    j.*,
    coalesce((j.weight_grams_raw < l.low or j.weight_grams_raw > l.high) and j.weight_grams_raw > 0, false) as weight_is_outlier,
    j.weight_grams_raw is null as weight_was_missing,
    cast(round(
        case when weight_is_outlier then l.q50 else coalesce(cast(j.weight_grams_raw as double), l.q50) end, 3
    ) as decimal(18, 3)) as weight_grams
from joined as j
left join limits as l on j.category = l.category;

create table dim_customers as
with profiles as (
    from customers
    qualify row_number() over (
        partition by user_id order by updated_at desc nulls last, available_at desc, position desc, source desc, raw_rowid desc
    ) = 1
),

firsts as (
    select 'gender' as label, gender as value, available_at from customers where gender is not null
    qualify row_number() over (partition by user_id order by available_at, position, source, raw_rowid) = 1
    union all
    select 'country', country, available_at from customers where country is not null
    qualify row_number() over (partition by user_id order by available_at, position, source, raw_rowid) = 1
),

modes as (
    select label, value
    from firsts
    where cast(available_at as date) <= getvariable('today') - 2
    group by label, value
    qualify row_number() over (partition by label order by count(*) desc, value) = 1
),

usual as (
    select
        (select q50 from profile_fits where measure = 'birth_year') as birth_year,
        (select q50 from profile_fits where measure = 'household_size') as household_size,
        (select value from modes where label = 'gender') as gender,
        (select value from modes where label = 'country') as country,
        case when f.n >= r.min_count then least(f.mean - r.factor * f.std, f.q50 / r.min_ratio, f.q50 - r.min_distance) end as income_low,
        case when f.n >= r.min_count then greatest(f.mean + r.factor * f.std, f.q50 * r.min_ratio, f.q50 + r.min_distance) end as income_high
    from (select 1) as one
    left join profile_fits as f on f.measure = 'income'
    left join read_csv('seeds/outlier_rules.csv') as r on r.column_name = 'income'
),

identified as (
    select customer_id, count(*) as identities, min(case when identity like 'u:%' then substr(identity, 3) end) as user_id
    from links
    group by customer_id
),

seen as (
    select customer_id, min(started_at) as first_seen_at, max(ended_at) as last_seen_at from user_sessions group by customer_id
)

select
    coalesce(i.customer_id, customer_of('u:' || p.user_id)) as customer_id,
    coalesce(p.user_id, i.user_id) as user_id,
    coalesce(p.user_id, i.user_id) is null as is_anonymous,
    p.user_id is not null as has_profile,
    coalesce(i.identities, 0) as identities,
    s.first_seen_at,
    s.last_seen_at,
    p.created_at,
    p.updated_at,
    case when p.user_id is not null then coalesce(p.birth_year, cast(round(u.birth_year) as integer)) end as birth_year,
    p.birth_year is null as birth_year_was_missing,
    case when p.user_id is not null then coalesce(p.gender, u.gender) end as gender,
    p.gender is null as gender_was_missing,
    null::double as gender_confidence,
    case when p.user_id is not null then coalesce(p.country, u.country) end as country,
    p.country is null as country_was_missing,
    null::double as country_confidence,
    case when p.user_id is not null then coalesce(p.household_size, cast(round(u.household_size) as integer)) end as household_size,
    p.household_size is null as household_size_was_missing,
    p.income,
    p.income as income_raw,
    p.income is null as income_was_missing,
    coalesce(p.income < u.income_low or p.income > u.income_high, false) as income_is_outlier,
    p.acquisition_channel,
    p.marketing_consent
from identified as i
full join profiles as p on i.customer_id = customer_of('u:' || p.user_id)
left join seen as s on i.customer_id = s.customer_id
cross join usual as u;

---------- rollups: what features are made of, at the grains that several of them share

-- Money that nobody knows is -1 here, so that no money and unknown money differ.
create temp macro money_sum(x) as case when max(x) < 0 then -1 else sum(case when x >= 0 then x end) end;

create temp macro money_of(x) as case when x is null then 0 when x >= 0 then x end;

-- What is counted (m_, by window) or added up beside (s_), one column each.
create view measured as
select
    *,
    cast(event_type = 'view_item' as integer) as m_views,
    cast(event_type = 'view_item_list' as integer) as m_list_views,
    cast(event_type = 'search' as integer) as m_searches,
    cast(event_type = 'add_to_cart' as integer) as m_cart_adds,
    cast(event_type = 'remove_from_cart' as integer) as m_cart_removes,
    cast(event_type = 'begin_checkout' as integer) as m_checkouts,
    cast(event_type = 'add_to_wishlist' as integer) as m_wishlist_adds,
    case when event_type = 'purchase' then quantity end as m_units,
    case when event_type = 'purchase' then coalesce(amount, -1) end as m_revenue,
    case when event_type = 'purchase' then coalesce(gross_amount, -1) end as m_gross_revenue,
    case when event_type = 'refund' then coalesce(amount, -1) end as m_refunds,
    case when event_type = 'refund' then quantity end as s_refunded_units,
    event_type in ('view_item', 'add_to_cart', 'purchase') and price is not null and product_id is not null as is_priced
from clean_events;

create temp table user_days as
select
    customer_id,
    event_day,
    coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')), 0) as '\0',
    money_sum(columns('^m_(revenue|gross_revenue|refunds)$')) as '\0',
    count(*) as s_events,
    sum(s_refunded_units) as s_refunded_units,
    count(case when is_priced then 1 end) as s_priced_events,
    sum(case when is_priced then price end) as s_price_total,
    sum(case when is_priced then cast(price as decimal(19, 4)) * cast(price as decimal(19, 4)) end) as s_price_square_total,
    count(case when is_priced then price_percentile end) as s_ranked_events,
    sum(case when is_priced then price_percentile end) as s_price_percentile_total,
    sum(case when event_type = 'purchase' then round(greatest(list_price, price) * quantity, 4) end) filter (where list_price is not null) as s_listed_amount,
    sum(case when event_type = 'purchase' and list_price > price then round((list_price - price) * quantity, 4) end) as s_discount_amount,
    count(case when extract(hour from event_at) < 6 then 1 end) as s_night_events,
    count(case when extract(hour from event_at) between 6 and 11 then 1 end) as s_morning_events,
    count(case when extract(hour from event_at) between 12 and 17 then 1 end) as s_afternoon_events,
    count(case when extract(hour from event_at) >= 18 then 1 end) as s_evening_events,
    count(case when extract(isodow from event_at) >= 6 then 1 end) as s_weekend_events,
    count(case when device = 'desktop' then 1 end) as s_desktop_events,
    count(case when device = 'mobile' then 1 end) as s_mobile_events,
    count(case when device = 'tablet' then 1 end) as s_tablet_events,
    count(device) as s_device_events,
    min(event_at) as first_at,
    max(event_at) as last_at,
    max(case when event_type = 'view_item' then event_at end) as last_view_at,
    max(case when event_type = 'add_to_cart' then event_at end) as last_cart_add_at
from measured
group by customer_id, event_day;

create temp table item_days as
select
    product_id,
    category,
    brand,
    event_day,
    -- The shop's own rates are those of closed days.
    arrival_day < getvariable('today') as is_closed,
    coalesce(sum(columns('^m_(views|list_views|cart_adds|cart_removes|wishlist_adds|units)$')), 0) as '\0',
    money_sum(columns('^m_(revenue|gross_revenue|refunds)$')) as '\0',
    count(*) as events,
    coalesce(sum(s_refunded_units), 0) as refunded_units,
    count(case when is_priced then 1 end) as priced_events,
    coalesce(sum(case when is_priced then price end), 0) as price_total,
    min(event_at) as first_at,
    max(event_at) as last_at,
    max(case when event_type = 'purchase' then event_at end) as last_order_at
from measured
where product_id is not null
group by all;

-- How much each kind of event adds to an affinity, and how far it has decayed at each age.
create temp table decays as
select age, cast(round(power(0.5, age / 1.0) * 1000000000) as bigint) as decay_1d, cast(round(power(0.5, age / 7.0) * 1000000000) as bigint) as decay_7d, cast(round(power(0.5, age / 30.0) * 1000000000) as bigint) as decay_30d
from range((select getvariable('today') - min(event_day) from clean_events) + 1) as ages (age);

create temp table user_item_affinities as
select
    e.customer_id,
    e.product_id,
    e.category,
    e.brand,
    coalesce(sum(columns('^m_(views|cart_adds|cart_removes|units)$')) filter (where event_day >= getvariable('today') - 7), 0) as '\1_7d',
    money_sum(case when event_day >= getvariable('today') - 7 then m_revenue end) as revenue_7d,
    coalesce(sum(columns('^m_(views|cart_adds|cart_removes|units)$')) filter (where event_day >= getvariable('today') - 30), 0) as '\1_30d',
    money_sum(case when event_day >= getvariable('today') - 30 then m_revenue end) as revenue_30d,
    coalesce(sum(columns('^m_(views|cart_adds|cart_removes|units)$')) filter (where event_day >= getvariable('today') - 90), 0) as '\1_90d',
    money_sum(case when event_day >= getvariable('today') - 90 then m_revenue end) as revenue_90d,
    coalesce(sum(columns('^m_(views|cart_adds|cart_removes|units)$')) filter (where event_day >= getvariable('today') - 14), 0) as '\1_14d',
    money_sum(case when event_day >= getvariable('today') - 14 then m_revenue end) as revenue_14d,
    coalesce(sum(columns('^m_(views|cart_adds|cart_removes|units)$')) filter (where event_day >= getvariable('today') - 365), 0) as '\1_365d',
    money_sum(case when event_day >= getvariable('today') - 365 then m_revenue end) as revenue_365d,
    coalesce(sum(columns('^m_(views|cart_adds|cart_removes|units)$')), 0) as '\1_lifetime',
    money_sum(m_revenue) as revenue_lifetime,
    count(*) filter (where event_day >= getvariable('today') - 90) as events_90d,
    count(*) as events_lifetime,
    sum(case event_type when 'view_item' then w.views when 'add_to_cart' then w.cart_adds when 'purchase' then w.purchases else 0 end * d.decay_1d) as affinity_1d,
    sum(case event_type when 'view_item' then w.views when 'add_to_cart' then w.cart_adds when 'purchase' then w.purchases else 0 end * d.decay_7d) as affinity_7d,
    sum(case event_type when 'view_item' then w.views when 'add_to_cart' then w.cart_adds when 'purchase' then w.purchases else 0 end * d.decay_30d) as affinity_30d,
    count(case when is_priced then 1 end) as priced_events,
    coalesce(sum(case when is_priced then price end), 0) as price_total,
    -- One bit a day.
    coalesce(bit_or(case when d.age <= 90 then cast(1 as hugeint) << cast(d.age as integer) end), 0) as days_90d,
    max(event_day) as last_day,
    min(case when event_type = 'purchase' and quantity > 0 then event_day end) as first_bought_on,
    max(case when event_type = 'purchase' and quantity > 0 then event_day end) as last_bought_on,
    min(event_at) as first_at,
    max(event_at) as last_at,
    max(case when event_type = 'view_item' then event_at end) as last_view_at,
    max(case when event_type = 'add_to_cart' then event_at end) as last_cart_add_at,
    max(case when event_type = 'remove_from_cart' then event_at end) as last_cart_remove_at,
    max(case when event_type = 'purchase' then event_at end) as last_bought_at,
    max({'at': event_at, 'price': price}) filter (where event_type = 'view_item' and price is not null) as last_view
from measured as e
inner join decays as d on getvariable('today') - e.event_day = d.age
cross join (
    select
        coalesce(max(case when measure = 'views' then weight end), 0) as views,
        coalesce(max(case when measure = 'cart_adds' then weight end), 0) as cart_adds,
        coalesce(max(case when measure = 'purchases' then weight end), 0) as purchases
    from read_csv('seeds/event_weights.csv')
) as w
where e.product_id is not null
group by all;

create temp table user_items as
select
    customer_id,
    product_id,
    sum(columns('^(views|cart_adds|cart_removes|units|events|affinity)_(1d|7d|14d|30d|90d|365d|lifetime)$')) as '\0',
    money_of(money_sum(columns('^revenue_(7d|14d|30d|90d|365d|lifetime)$'))) as '\0',
    max(last_day) as last_day,
    min(first_bought_on) as first_bought_on,
    max(last_bought_on) as last_bought_on,
    min(first_at) as first_at,
    max(last_view_at) as last_view_at,
    max(last_cart_add_at) as last_cart_add_at,
    max(last_cart_remove_at) as last_cart_remove_at,
    max(last_bought_at) as last_bought_at,
    max(last_view)['price'] as price_at_last_view
from (select * exclude (days_90d) from user_item_affinities)
group by customer_id, product_id;

create temp table user_categories as
select
    customer_id,
    category,
    sum(columns('^(views|cart_adds|cart_removes|units|events|affinity)_(1d|7d|14d|30d|90d|365d|lifetime)$')) as '\0',
    money_of(money_sum(columns('^revenue_(7d|14d|30d|90d|365d|lifetime)$'))) as '\0',
    bit_count(bit_or(days)) as active_days_90d,
    count(distinct product_id) as distinct_products_lifetime,
    sum(priced_events) as priced_events,
    sum(price_total) as price_total,
    max(last_day) as last_day,
    max(last_at) as last_at,
    max(last_view_at) as last_view_at,
    max(last_cart_add_at) as last_cart_add_at
from (select * exclude (days_90d), days_90d as days from user_item_affinities)
where category is not null
group by customer_id, category;


create temp table user_brands as
select
    customer_id,
    brand,
    sum(columns('^(views|cart_adds|cart_removes|units|events|affinity)_(1d|7d|14d|30d|90d|365d|lifetime)$')) as '\0',
    money_of(money_sum(columns('^revenue_(7d|14d|30d|90d|365d|lifetime)$'))) as '\0',
    bit_count(bit_or(days)) as active_days_90d,
    count(distinct product_id) as distinct_products_lifetime,
    sum(priced_events) as priced_events,
    sum(price_total) as price_total,
    max(last_day) as last_day,
    max(last_at) as last_at,
    max(last_view_at) as last_view_at,
    max(last_cart_add_at) as last_cart_add_at
from (select * exclude (days_90d), days_90d as days from user_item_affinities)
where brand is not null
group by customer_id, brand;


-- Which orders held what.
create temp table bought as
select customer_id, product_id, category, brand, order_key, min(event_at) as ordered_at, max(event_day) as last_day
from clean_events
where order_key is not null and product_id is not null
group by all;

create temp table last_day as
select *
from measured
where event_at >= getvariable('as_of') - interval 24 hour;

---------- features of users

create table user_features as
with recent as (
    select
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_at >= getvariable('as_of') - interval 1 hour), 0) as '\1_1h',
        money_of(money_sum(case when event_at >= getvariable('as_of') - interval 1 hour then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_1h',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_at >= getvariable('as_of') - interval 24 hour), 0) as '\1_24h',
        money_of(money_sum(case when event_at >= getvariable('as_of') - interval 24 hour then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_24h',
        count(distinct order_key) filter (where event_at >= getvariable('as_of') - interval 1 hour) as orders_1h,
        count(distinct session_id) filter (where event_at >= getvariable('as_of') - interval 1 hour) as sessions_1h,
        count(distinct event_day) filter (where event_at >= getvariable('as_of') - interval 1 hour) as active_days_1h,
        count(distinct product_id) filter (where event_at >= getvariable('as_of') - interval 1 hour) as distinct_products_1h,
        count(distinct case when product_id is not null then category end) filter (where event_at >= getvariable('as_of') - interval 1 hour) as distinct_categories_1h,
        count(distinct case when product_id is not null then brand end) filter (where event_at >= getvariable('as_of') - interval 1 hour) as distinct_brands_1h,
        count(distinct order_key) filter (where event_at >= getvariable('as_of') - interval 24 hour) as orders_24h,
        count(distinct session_id) filter (where event_at >= getvariable('as_of') - interval 24 hour) as sessions_24h,
        count(distinct event_day) filter (where event_at >= getvariable('as_of') - interval 24 hour) as active_days_24h,
        count(distinct product_id) filter (where event_at >= getvariable('as_of') - interval 24 hour) as distinct_products_24h,
        count(distinct case when product_id is not null then category end) filter (where event_at >= getvariable('as_of') - interval 24 hour) as distinct_categories_24h,
        count(distinct case when product_id is not null then brand end) filter (where event_at >= getvariable('as_of') - interval 24 hour) as distinct_brands_24h,
        customer_id
    from last_day
    group by customer_id
),

by_day as (
    select
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 7), 0) as '\1_7d',
        money_of(money_sum(case when event_day >= getvariable('today') - 7 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_7d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 30), 0) as '\1_30d',
        money_of(money_sum(case when event_day >= getvariable('today') - 30 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_30d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 90), 0) as '\1_90d',
        money_of(money_sum(case when event_day >= getvariable('today') - 90 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_90d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 14), 0) as '\1_14d',
        money_of(money_sum(case when event_day >= getvariable('today') - 14 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_14d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 365), 0) as '\1_365d',
        money_of(money_sum(case when event_day >= getvariable('today') - 365 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_365d',
        sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) as '\1_lifetime',
        money_of(money_sum(columns('^m_(revenue|gross_revenue|refunds)$'))) as '\1_lifetime',
        count(*) filter (where event_day >= getvariable('today') - 7) as active_days_7d,
        count(*) filter (where event_day >= getvariable('today') - 30) as active_days_30d,
        count(*) filter (where event_day >= getvariable('today') - 90) as active_days_90d,
        count(*) filter (where event_day >= getvariable('today') - 14) as active_days_14d,
        count(*) filter (where event_day >= getvariable('today') - 365) as active_days_365d,
        count(*) as active_days_lifetime,
        min(first_at) as first_event_at,
        max(last_at) as last_event_at,
        max(last_view_at) as last_view_at,
        max(last_cart_add_at) as last_cart_add_at,
        customer_id
    from user_days
    group by customer_id
),

totals as (
    select
        customer_id,
        coalesce(sum(columns('^s_(.*)$')) filter (where event_day >= getvariable('today') - 90), 0) as '\1_90d',
        coalesce(sum(columns('^s_(.*)$')), 0) as '\1_lifetime'
    from user_days
    group by customer_id
),

by_product as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as distinct_products_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as distinct_products_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as distinct_products_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as distinct_products_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as distinct_products_365d,
        count(*) as distinct_products_lifetime,
        customer_id
    from user_items
    group by customer_id
),

by_brand as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as distinct_brands_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as distinct_brands_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as distinct_brands_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as distinct_brands_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as distinct_brands_365d,
        count(*) as distinct_brands_lifetime,
        customer_id
    from user_brands
    group by customer_id
),

by_category as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as distinct_categories_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as distinct_categories_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as distinct_categories_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as distinct_categories_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as distinct_categories_365d,
        count(*) as distinct_categories_lifetime,
        -- Shannon entropy, in nats.
        round(sum(
            case when events_90d > 0 then -(cast(events_90d as double) / all_90d) * ln(cast(events_90d as double) / all_90d) end
        ), 9) as category_entropy_90d,
        round(sum(
            case when events_lifetime > 0 then -(cast(events_lifetime as double) / all_lifetime) * ln(cast(events_lifetime as double) / all_lifetime) end
        ), 9) as category_entropy_lifetime,
        customer_id
    from (
        select
            *,
            sum(events_90d) over (partition by customer_id) as all_90d,
            sum(events_lifetime) over (partition by customer_id) as all_lifetime
        from user_categories
    ) as shares
    group by customer_id
),

by_session as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as sessions_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as sessions_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as sessions_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as sessions_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as sessions_365d,
        count(*) as sessions_lifetime,
        sum(seconds(started_at_90d, ended_at)) / count(started_at_90d) as session_seconds_mean_90d,
        sum(seconds(started_at, ended_at)) / count(*) as session_seconds_mean_lifetime,
        count(*) filter (where is_abandoned and last_day >= getvariable('today') - 30) as abandoned_carts_30d,
        case
            when count(*) filter (where is_abandoned and last_day >= getvariable('today') - 30) = 0 then 0
            else sum(case when cart_value < 0 then 0 else cart_value end) filter (where is_abandoned and last_day >= getvariable('today') - 30)
        end as abandoned_cart_value_30d,
        count(*) filter (where is_abandoned and last_day >= getvariable('today') - 90) as abandoned_carts_90d,
        case
            when count(*) filter (where is_abandoned and last_day >= getvariable('today') - 90) = 0 then 0
            else sum(case when cart_value < 0 then 0 else cart_value end) filter (where is_abandoned and last_day >= getvariable('today') - 90)
        end as abandoned_cart_value_90d,
        count(*) filter (where is_abandoned) as abandoned_carts_lifetime,
        case
            when count(*) filter (where is_abandoned) = 0 then 0
            else sum(case when cart_value < 0 then 0 else cart_value end) filter (where is_abandoned)
        end as abandoned_cart_value_lifetime,
        customer_id
    from (
        select
            *,
            cart_adds > 0 and purchases = 0 and ended_at < getvariable('as_of') - interval 30 minute as is_abandoned
        from user_sessions
        where session_id is not null
    ) as flagged
    group by customer_id
),

user_orders as (
    select
        *,
        seconds(lag(ordered_at) over (partition by customer_id order by ordered_at, order_key), ordered_at) as gap
    from (
        select customer_id, order_key, min(event_at) as ordered_at, max(event_day) as last_day, sum(amount) as revenue
        from clean_events
        where order_key is not null
        group by customer_id, order_key
    ) as orders_of_users
),

by_order as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as orders_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as orders_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as orders_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as orders_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as orders_365d,
        count(*) as orders_lifetime,
        max(ordered_at) as last_order_at,
        share(sum(revenue), count(revenue)) as order_value_mean,
        max(revenue) as order_value_max,
        share(sum(gap), count(gap) * 86400) as order_gap_days_mean,
        exact_std(
            count(gap), cast(sum(gap) as decimal(19, 0)),
            cast(sum(cast(gap as decimal(19, 0)) * cast(gap as decimal(19, 0))) as decimal(38, 0))
        ) / 86400 as order_gap_days_std,
        customer_id
    from user_orders
    group by customer_id
),

shop as (
    select
        coalesce(share(sum(m_cart_adds), sum(m_views)), 0) as cart_rate_lifetime,
        coalesce(share(sum(m_units), sum(m_cart_adds)), 0) as order_rate_lifetime,
        coalesce(share(sum(m_cart_adds) filter (is_near), sum(m_views) filter (is_near)), 0) as cart_rate_90d,
        coalesce(share(sum(m_units) filter (is_near), sum(m_cart_adds) filter (is_near)), 0) as order_rate_90d
    from (select *, event_day >= getvariable('today') - 90 as is_near from measured)
    where arrival_day < getvariable('today')
),

bounds as (
    select measure, score, at_least, coalesce(below, 'inf'::double) as below from read_csv('seeds/rfm_bounds.csv')
),

rfm as (
    select o.customer_id, r.score as rfm_recency_score, f.score as rfm_frequency_score, m.score as rfm_monetary_score
    from by_order as o
    inner join by_day as d on o.customer_id = d.customer_id
    inner join bounds as r
        on r.measure = 'recency_days'
        and hours(o.last_order_at, getvariable('as_of')) / 24 >= r.at_least and hours(o.last_order_at, getvariable('as_of')) / 24 < r.below
    left join bounds as f on f.measure = 'orders' and o.orders_365d > 0 and o.orders_365d >= f.at_least and o.orders_365d < f.below
    left join bounds as m
        on m.measure = 'revenue' and o.orders_365d > 0
        and cast(d.revenue_365d as double) >= m.at_least and cast(d.revenue_365d as double) < m.below
)


select
    d.* exclude (first_event_at, last_event_at, last_view_at, last_cart_add_at),
    getvariable('as_of') as as_of,
    case when r.customer_id is null then 0 else columns(r.* exclude (customer_id)) end,
    case when p.customer_id is null then 0 else columns(p.* exclude (customer_id)) end,
    case when b.customer_id is null then 0 else columns(b.* exclude (customer_id)) end,
    case when c.customer_id is null then 0 else columns(c.* exclude (customer_id, category_entropy_90d, category_entropy_lifetime)) end,
    v.* exclude (customer_id, session_seconds_mean_90d, session_seconds_mean_lifetime),
    case when o.customer_id is null then 0 else columns(o.* exclude (
        customer_id, last_order_at, order_value_mean, order_value_max, order_gap_days_mean, order_gap_days_std
    )) end,
    hours(d.last_view_at, getvariable('as_of')) as hours_since_view,
    hours(d.last_cart_add_at, getvariable('as_of')) as hours_since_cart_add,
    hours(o.last_order_at, getvariable('as_of')) as hours_since_order,
    hours(d.last_event_at, getvariable('as_of')) as hours_since_session,
    hours(d.first_event_at, getvariable('as_of')) / 24 as tenure_days,
    o.order_value_mean,
    o.order_value_max,
    o.order_gap_days_mean,
    o.order_gap_days_std,
    o.order_gap_days_mean - hours(o.last_order_at, getvariable('as_of')) / 24 as days_to_expected_order,
    share(t.discount_amount_90d, t.listed_amount_90d) as discount_share_90d,
    -- What comes back may have been bought before the window.
    case when d.units_90d > 0 then least(share(t.refunded_units_90d, d.units_90d), 1) end as return_rate_90d,
    rate(d.cart_adds_90d, d.views_90d, least(h.cart_rate_90d, 1)) as view_to_cart_rate_90d,
    rate(d.units_90d, d.cart_adds_90d, least(h.order_rate_90d, 1)) as cart_to_unit_rate_90d,
    share(t.price_total_90d, t.priced_events_90d) as price_mean_90d,
    exact_std(t.priced_events_90d, cast(t.price_total_90d as decimal(18, 4)), cast(t.price_square_total_90d as decimal(28, 8))) as price_std_90d,
    share(t.price_percentile_total_90d, t.ranked_events_90d) as price_percentile_mean_90d,
    c.category_entropy_90d,
    share(t.night_events_90d, t.events_90d) as night_share_90d,
    share(t.morning_events_90d, t.events_90d) as morning_share_90d,
    share(t.afternoon_events_90d, t.events_90d) as afternoon_share_90d,
    share(t.evening_events_90d, t.events_90d) as evening_share_90d,
    share(t.weekend_events_90d, t.events_90d) as weekend_share_90d,
    share(t.desktop_events_90d, t.device_events_90d) as desktop_share_90d,
    share(t.mobile_events_90d, t.device_events_90d) as mobile_share_90d,
    share(t.tablet_events_90d, t.device_events_90d) as tablet_share_90d,
    v.session_seconds_mean_90d,
    v.session_seconds_mean_90d is null as session_seconds_mean_90d_was_missing,
    share(t.discount_amount_lifetime, t.listed_amount_lifetime) as discount_share_lifetime,
    -- What comes back may have been bought before the window.
    case when d.units_lifetime > 0 then least(share(t.refunded_units_lifetime, d.units_lifetime), 1) end as return_rate_lifetime,
    rate(d.cart_adds_lifetime, d.views_lifetime, least(h.cart_rate_lifetime, 1)) as view_to_cart_rate_lifetime,
    rate(d.units_lifetime, d.cart_adds_lifetime, least(h.order_rate_lifetime, 1)) as cart_to_unit_rate_lifetime,
    share(t.price_total_lifetime, t.priced_events_lifetime) as price_mean_lifetime,
    exact_std(t.priced_events_lifetime, cast(t.price_total_lifetime as decimal(18, 4)), cast(t.price_square_total_lifetime as decimal(28, 8))) as price_std_lifetime,
    share(t.price_percentile_total_lifetime, t.ranked_events_lifetime) as price_percentile_mean_lifetime,
    c.category_entropy_lifetime,
    share(t.night_events_lifetime, t.events_lifetime) as night_share_lifetime,
    share(t.morning_events_lifetime, t.events_lifetime) as morning_share_lifetime,
    share(t.afternoon_events_lifetime, t.events_lifetime) as afternoon_share_lifetime,
    share(t.evening_events_lifetime, t.events_lifetime) as evening_share_lifetime,
    share(t.weekend_events_lifetime, t.events_lifetime) as weekend_share_lifetime,
    share(t.desktop_events_lifetime, t.device_events_lifetime) as desktop_share_lifetime,
    share(t.mobile_events_lifetime, t.device_events_lifetime) as mobile_share_lifetime,
    share(t.tablet_events_lifetime, t.device_events_lifetime) as tablet_share_lifetime,
    v.session_seconds_mean_lifetime,
    v.session_seconds_mean_lifetime is null as session_seconds_mean_lifetime_was_missing,
    f.* exclude (customer_id),
    g.segment as rfm_segment
from by_day as d
inner join totals as t on d.customer_id = t.customer_id
inner join by_session as v on d.customer_id = v.customer_id
cross join shop as h
left join recent as r on d.customer_id = r.customer_id
left join by_product as p on d.customer_id = p.customer_id
left join by_brand as b on d.customer_id = b.customer_id
left join by_category as c on d.customer_id = c.customer_id
left join by_order as o on d.customer_id = o.customer_id
left join rfm as f on d.customer_id = f.customer_id
left join read_csv('seeds/rfm_segments.csv') as g
    on f.rfm_recency_score = g.recency_score and f.rfm_frequency_score = g.frequency_score;

---------- features of items and categories

-- What is on offer: as the catalogue has it, or as events alone tell.
create temp table offers as
with days as (
    select product_id, event_day, mean_of(sum(price_total), sum(priced_events)) as price
    from item_days
    group by product_id, event_day
),

named as (
    select product_id, category
    from clean_events
    where product_id is not null and category is not null and event_at < getvariable('as_of')
    group by product_id, category
    qualify row_number() over (partition by product_id order by count(*) desc, max(event_at) desc, category) = 1
),

seen as (
    select d.product_id, any_value(n.category) as category, arg_max(d.price, d.event_day) as price
    from days as d
    left join named as n on d.product_id = n.product_id
    group by d.product_id
)

select
    coalesce(v.product_id, s.product_id) as product_id,
    coalesce(v.category, s.category) as category,
    v.brand,
    coalesce(v.price, s.price) as price_now,
    v.created_at,
    v.first_known_at,
    v.product_id is not null as is_in_catalogue
from catalogue as v
full join seen as s on v.product_id = s.product_id;

create table item_features as
with recent as (
    select
        coalesce(sum(columns('^m_(views|list_views|cart_adds|cart_removes|wishlist_adds|units)$')) filter (where event_at >= getvariable('as_of') - interval 1 hour), 0) as '\1_1h',
        money_of(money_sum(case when event_at >= getvariable('as_of') - interval 1 hour then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_1h',
        count(distinct order_key) filter (where event_at >= getvariable('as_of') - interval 1 hour) as orders_1h,
        count(distinct customer_id) filter (where event_at >= getvariable('as_of') - interval 1 hour) as users_1h,
        coalesce(sum(columns('^m_(views|list_views|cart_adds|cart_removes|wishlist_adds|units)$')) filter (where event_at >= getvariable('as_of') - interval 24 hour), 0) as '\1_24h',
        money_of(money_sum(case when event_at >= getvariable('as_of') - interval 24 hour then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_24h',
        count(distinct order_key) filter (where event_at >= getvariable('as_of') - interval 24 hour) as orders_24h,
        count(distinct customer_id) filter (where event_at >= getvariable('as_of') - interval 24 hour) as users_24h,
        product_id
    from last_day
    where product_id is not null
    group by product_id
),

by_day as (
    select
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 7), 0) as '\1_7d',
        money_of(money_sum(case when event_day >= getvariable('today') - 7 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_7d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 30), 0) as '\1_30d',
        money_of(money_sum(case when event_day >= getvariable('today') - 30 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_30d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 90), 0) as '\1_90d',
        money_of(money_sum(case when event_day >= getvariable('today') - 90 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_90d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 14), 0) as '\1_14d',
        money_of(money_sum(case when event_day >= getvariable('today') - 14 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_14d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 365), 0) as '\1_365d',
        money_of(money_sum(case when event_day >= getvariable('today') - 365 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_365d',
        sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) as '\1_lifetime',
        money_of(money_sum(columns('^m_(revenue|gross_revenue|refunds)$'))) as '\1_lifetime',
        sum(refunded_units) as refunded_units_lifetime,
        share(
            sum(price_total) filter (where event_day >= getvariable('today') - 30),
            sum(priced_events) filter (where event_day >= getvariable('today') - 30)
        ) as price_mean_30d,
        coalesce(cast(sum(m_views) filter (where event_day >= getvariable('today') - 7 and event_day < getvariable('today')) as double), 0) / 7 as views_sma_7d,
        coalesce(cast(sum(m_units) filter (where event_day >= getvariable('today') - 7 and event_day < getvariable('today')) as double), 0) / 7 as units_sma_7d,
        coalesce(cast(sum(m_views) filter (where event_day >= getvariable('today') - 30 and event_day < getvariable('today')) as double), 0) / 30 as views_sma_30d,
        coalesce(cast(sum(m_units) filter (where event_day >= getvariable('today') - 30 and event_day < getvariable('today')) as double), 0) / 30 as units_sma_30d,
        coalesce(sum(m_views * power(0.5, (getvariable('today') - event_day) / 1.0)) filter (where event_day < getvariable('today')), 0)
        * (1 - power(0.5, 1 / 1.0)) / power(0.5, 1 / 1.0) as views_ema_1d,
        coalesce(sum(m_views * power(0.5, (getvariable('today') - event_day) / 7.0)) filter (where event_day < getvariable('today')), 0)
        * (1 - power(0.5, 1 / 7.0)) / power(0.5, 1 / 7.0) as views_ema_7d,
        coalesce(sum(m_views * power(0.5, (getvariable('today') - event_day) / 30.0)) filter (where event_day < getvariable('today')), 0)
        * (1 - power(0.5, 1 / 30.0)) / power(0.5, 1 / 30.0) as views_ema_30d,
        min(first_at) as first_seen_at,
        max(last_at) as last_seen_at,
        max(last_order_at) as last_order_at,
        product_id
    from item_days
    group by product_id
),

daily as (
    select
        product_id,
        event_day,
        sum(m_views) as views,
        sum(m_units) as units,
        round(share(sum(price_total), sum(priced_events)), 4) as price
    from item_days
    where event_day >= getvariable('today') - 30
    group by product_id, event_day
),

placed as (
    select
        *,
        row_number() over (partition by product_id, event_day < getvariable('today') order by views desc) as views_place,
        row_number() over (partition by product_id, event_day < getvariable('today') order by units desc) as units_place,
        row_number() over (partition by product_id order by price nulls last) as price_place,
        count(price) over (partition by product_id) // 10 as ends,
        count(price) over (partition by product_id) as priced_days
    from daily
),

trimmed as (
    select
        product_id,
        coalesce(sum(views) filter (where event_day < getvariable('today') and views_place between 4 and 27), 0)::double / 24 as views_trimmed_mean_30d,
        coalesce(sum(units) filter (where event_day < getvariable('today') and units_place between 4 and 27), 0)::double / 24 as units_trimmed_mean_30d,
        avg(price) filter (where price_place > ends and price_place <= priced_days - ends) as price_trimmed_mean_30d,
        sum(price * power(0.5, (getvariable('today') - event_day) / 7.0))
        / sum(power(0.5, (getvariable('today') - event_day) / 7.0)) filter (where price is not null) as price_ema_7d
    from placed
    group by product_id
),

by_order as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as orders_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as orders_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as orders_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as orders_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as orders_365d,
        count(*) as orders_lifetime,
        product_id
    from (select product_id, order_key, max(last_day) as last_day from bought group by product_id, order_key) as orders_of_items
    group by product_id
),

by_user as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as users_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as users_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as users_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as users_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as users_365d,
        count(*) as users_lifetime,
        share(count(case when first_bought_on < last_bought_on then 1 end), count(first_bought_on)) as repeat_buy_rate,
        product_id
    from user_items
    group by product_id
),

items as (
    select
        case when d.product_id is null then 0 else columns(d.* exclude (product_id, price_mean_30d, first_seen_at, last_seen_at, last_order_at)) end,
        case when o.product_id is null then 0 else columns(o.* exclude (product_id)) end,
        d.price_mean_30d,
        d.last_seen_at,
        d.last_order_at,
        f.* exclude (created_at, first_known_at, is_in_catalogue),
        least(f.created_at, f.first_known_at, d.first_seen_at) as born_at
    from offers as f
    left join by_day as d on f.product_id = d.product_id
    left join by_order as o on f.product_id = o.product_id
),

ranked as (
    select
        *,
        least(coalesce(share(sum(cart_adds_30d) over peers, sum(views_30d) over peers), 0), 1) as peer_view_to_cart_rate_30d,
        least(coalesce(share(sum(orders_30d) over peers, sum(cart_adds_30d) over peers), 0), 1) as peer_cart_to_order_rate_30d,
        least(coalesce(share(sum(orders_30d) over peers, sum(views_30d) over peers), 0), 1) as peer_view_to_order_rate_30d,
        least(coalesce(share(sum(cart_adds_lifetime) over peers, sum(views_lifetime) over peers), 0), 1) as peer_view_to_cart_rate_lifetime,
        least(coalesce(share(sum(orders_lifetime) over peers, sum(cart_adds_lifetime) over peers), 0), 1) as peer_cart_to_order_rate_lifetime,
        least(coalesce(share(sum(orders_lifetime) over peers, sum(views_lifetime) over peers), 0), 1) as peer_view_to_order_rate_lifetime,
        rank() over (order by views_7d desc) as popularity_rank_7d,
        rank() over (order by views_30d desc) as popularity_rank_30d,
        case when revenue_30d is not null then rank() over (order by revenue_30d desc nulls last) end as revenue_rank_30d,
        case
            when price_now is not null then percent_rank() over (partition by category, price_now is null order by price_now)
        end as price_percentile_in_category
    from items
    window peers as (partition by category)
)

select
    getvariable('as_of') as as_of,
    i.* exclude (
        refunded_units_lifetime, last_seen_at, last_order_at, born_at,
        peer_view_to_cart_rate_30d, peer_cart_to_order_rate_30d, peer_view_to_order_rate_30d,
        peer_view_to_cart_rate_lifetime, peer_cart_to_order_rate_lifetime, peer_view_to_order_rate_lifetime
    ),
    case when r.product_id is null then 0 else columns(r.* exclude (product_id)) end,
    case when u.product_id is null then 0 else columns(u.* exclude (product_id, repeat_buy_rate)) end,
    u.repeat_buy_rate,
    hours(i.last_seen_at, getvariable('as_of')) as hours_since_event,
    hours(i.last_order_at, getvariable('as_of')) as hours_since_order,
    greatest(hours(i.born_at, getvariable('as_of')) / 24, 0) as age_days,
    rate(i.cart_adds_30d, i.views_30d, i.peer_view_to_cart_rate_30d) as view_to_cart_rate_30d,
    rate(i.orders_30d, i.cart_adds_30d, i.peer_cart_to_order_rate_30d) as cart_to_order_rate_30d,
    rate(i.orders_30d, i.views_30d, i.peer_view_to_order_rate_30d) as view_to_order_rate_30d,
    rate(i.cart_adds_lifetime, i.views_lifetime, i.peer_view_to_cart_rate_lifetime) as view_to_cart_rate_lifetime,
    rate(i.orders_lifetime, i.cart_adds_lifetime, i.peer_cart_to_order_rate_lifetime) as cart_to_order_rate_lifetime,
    rate(i.orders_lifetime, i.views_lifetime, i.peer_view_to_order_rate_lifetime) as view_to_order_rate_lifetime,
    case when i.units_lifetime > 0 then share(least(i.refunded_units_lifetime, i.units_lifetime), i.units_lifetime) end as return_rate_lifetime,
    (i.views_sma_7d + 1 / 30.0) / (i.views_sma_30d + 1 / 30.0) as views_trend_7d_30d,
    (i.units_sma_7d + 1 / 30.0) / (i.units_sma_30d + 1 / 30.0) as units_trend_7d_30d,
    share(i.price_now, i.price_mean_30d) as price_to_mean_30d,
    coalesce(t.views_trimmed_mean_30d, 0) as views_trimmed_mean_30d,
    coalesce(t.units_trimmed_mean_30d, 0) as units_trimmed_mean_30d,
    t.price_trimmed_mean_30d,
    t.price_ema_7d,
    least(greatest(getvariable('today') - i.born_at::date, 0), 30) as days_averaged_30d
from ranked as i
left join trimmed as t on i.product_id = t.product_id
left join recent as r on i.product_id = r.product_id
left join by_user as u on i.product_id = u.product_id;

create table category_features as
with recent as (
    select
        coalesce(sum(columns('^m_(views|list_views|cart_adds|cart_removes|wishlist_adds|units)$')) filter (where event_at >= getvariable('as_of') - interval 1 hour), 0) as '\1_1h',
        money_of(money_sum(case when event_at >= getvariable('as_of') - interval 1 hour then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_1h',
        count(distinct order_key) filter (where event_at >= getvariable('as_of') - interval 1 hour) as orders_1h,
        count(distinct customer_id) filter (where event_at >= getvariable('as_of') - interval 1 hour) as users_1h,
        coalesce(sum(columns('^m_(views|list_views|cart_adds|cart_removes|wishlist_adds|units)$')) filter (where event_at >= getvariable('as_of') - interval 24 hour), 0) as '\1_24h',
        money_of(money_sum(case when event_at >= getvariable('as_of') - interval 24 hour then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_24h',
        count(distinct order_key) filter (where event_at >= getvariable('as_of') - interval 24 hour) as orders_24h,
        count(distinct customer_id) filter (where event_at >= getvariable('as_of') - interval 24 hour) as users_24h,
        category
    from last_day
    where product_id is not null and category is not null
    group by category
),

by_day as (
    select
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 7), 0) as '\1_7d',
        money_of(money_sum(case when event_day >= getvariable('today') - 7 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_7d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 30), 0) as '\1_30d',
        money_of(money_sum(case when event_day >= getvariable('today') - 30 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_30d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 90), 0) as '\1_90d',
        money_of(money_sum(case when event_day >= getvariable('today') - 90 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_90d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 14), 0) as '\1_14d',
        money_of(money_sum(case when event_day >= getvariable('today') - 14 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_14d',
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) filter (where event_day >= getvariable('today') - 365), 0) as '\1_365d',
        money_of(money_sum(case when event_day >= getvariable('today') - 365 then columns('^m_(revenue|gross_revenue|refunds)$') end)) as '\1_365d',
        sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')) as '\1_lifetime',
        money_of(money_sum(columns('^m_(revenue|gross_revenue|refunds)$'))) as '\1_lifetime',
        sum(refunded_units) as refunded_units_lifetime,
        coalesce(cast(sum(m_views) filter (where event_day >= getvariable('today') - 7 and event_day < getvariable('today')) as double), 0) / 7 as views_sma_7d,
        coalesce(cast(sum(m_units) filter (where event_day >= getvariable('today') - 7 and event_day < getvariable('today')) as double), 0) / 7 as units_sma_7d,
        coalesce(cast(sum(m_views) filter (where event_day >= getvariable('today') - 30 and event_day < getvariable('today')) as double), 0) / 30 as views_sma_30d,
        coalesce(cast(sum(m_units) filter (where event_day >= getvariable('today') - 30 and event_day < getvariable('today')) as double), 0) / 30 as units_sma_30d,
        count(distinct product_id) filter (where event_day >= getvariable('today') - 30) as items_with_events_30d,
        max(last_at) as last_seen_at,
        max(last_order_at) as last_order_at,
        category
    from item_days
    where category is not null
    group by category
),

by_order as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as orders_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as orders_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as orders_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as orders_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as orders_365d,
        count(*) as orders_lifetime,
        category
    from (select category, order_key, max(last_day) as last_day from bought where category is not null group by category, order_key) as orders_of_categories
    group by category
),

by_user as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as users_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as users_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as users_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as users_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as users_365d,
        count(*) as users_lifetime,
        category
    from user_categories
    group by category
),

offered as (
    select
        category,
        count(*) filter (where is_in_catalogue) as products_in_catalogue,
        count(price_now) as products_priced,
        round(quantile_cont(cast(price_now * 10000 as double), 0.25)) / 10000 as price_q25,
        round(quantile_cont(cast(price_now * 10000 as double), 0.5)) / 10000 as price_median,
        round(quantile_cont(cast(price_now * 10000 as double), 0.75)) / 10000 as price_q75
    from offers
    where category is not null
    group by category
),

categories as (
    select
        coalesce(d.category, f.category) as category,
        case when d.category is null then 0 else columns(d.* exclude (category, last_seen_at, last_order_at)) end,
        case when o.category is null then 0 else columns(o.* exclude (category)) end,
        d.last_seen_at,
        d.last_order_at,
        coalesce(f.products_in_catalogue, 0) as products_in_catalogue,
        coalesce(f.products_priced, 0) as products_priced,
        f.price_q25,
        f.price_median,
        f.price_q75
    from by_day as d
    full join offered as f on d.category = f.category
    left join by_order as o on d.category = o.category
),

compared as (
    select
        *,
        least(coalesce(share(sum(cart_adds_30d) over peers, sum(views_30d) over peers), 0), 1) as peer_view_to_cart_rate_30d,
        least(coalesce(share(sum(orders_30d) over peers, sum(cart_adds_30d) over peers), 0), 1) as peer_cart_to_order_rate_30d,
        least(coalesce(share(sum(orders_30d) over peers, sum(views_30d) over peers), 0), 1) as peer_view_to_order_rate_30d,
        least(coalesce(share(sum(cart_adds_lifetime) over peers, sum(views_lifetime) over peers), 0), 1) as peer_view_to_cart_rate_lifetime,
        least(coalesce(share(sum(orders_lifetime) over peers, sum(cart_adds_lifetime) over peers), 0), 1) as peer_cart_to_order_rate_lifetime,
        least(coalesce(share(sum(orders_lifetime) over peers, sum(views_lifetime) over peers), 0), 1) as peer_view_to_order_rate_lifetime,
        share(views_30d, sum(views_30d) over peers) as share_of_views_30d,
        share(revenue_30d, sum(revenue_30d) over peers) as share_of_revenue_30d
    from categories
    window peers as ()
)

select
    getvariable('as_of') as as_of,
    c.* exclude (
        refunded_units_lifetime, last_seen_at, last_order_at,
        peer_view_to_cart_rate_30d, peer_cart_to_order_rate_30d, peer_view_to_order_rate_30d,
        peer_view_to_cart_rate_lifetime, peer_cart_to_order_rate_lifetime, peer_view_to_order_rate_lifetime
    ),
    case when r.category is null then 0 else columns(r.* exclude (category)) end,
    case when u.category is null then 0 else columns(u.* exclude (category)) end,
    hours(c.last_seen_at, getvariable('as_of')) as hours_since_event,
    hours(c.last_order_at, getvariable('as_of')) as hours_since_order,
    rate(c.cart_adds_30d, c.views_30d, c.peer_view_to_cart_rate_30d) as view_to_cart_rate_30d,
    rate(c.orders_30d, c.cart_adds_30d, c.peer_cart_to_order_rate_30d) as cart_to_order_rate_30d,
    rate(c.orders_30d, c.views_30d, c.peer_view_to_order_rate_30d) as view_to_order_rate_30d,
    rate(c.cart_adds_lifetime, c.views_lifetime, c.peer_view_to_cart_rate_lifetime) as view_to_cart_rate_lifetime,
    rate(c.orders_lifetime, c.cart_adds_lifetime, c.peer_cart_to_order_rate_lifetime) as cart_to_order_rate_lifetime,
    rate(c.orders_lifetime, c.views_lifetime, c.peer_view_to_order_rate_lifetime) as view_to_order_rate_lifetime,
    case when c.units_lifetime > 0 then share(least(c.refunded_units_lifetime, c.units_lifetime), c.units_lifetime) end as return_rate_lifetime,
    (c.views_sma_7d + 1 / 30.0) / (c.views_sma_30d + 1 / 30.0) as views_trend_7d_30d,
    (c.units_sma_7d + 1 / 30.0) / (c.units_sma_30d + 1 / 30.0) as units_trend_7d_30d,
from compared as c
left join recent as r on c.category = r.category
left join by_user as u on c.category = u.category;

---------- features of users and categories, brands, items

create table user_category_features as
with by_order as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as orders_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as orders_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as orders_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as orders_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as orders_365d,
        count(*) as orders_lifetime,
        max(ordered_at) as last_order_at,
        customer_id,
        category
    from (
        select customer_id, category, order_key, min(ordered_at) as ordered_at, max(last_day) as last_day
        from bought
        where category is not null
        group by customer_id, category, order_key
    ) as orders_of_users
    group by customer_id, category
),

shop as (
    select
        *,
        sum(events_90d) over () as all_events_90d,
        sum(events_lifetime) over () as all_events_lifetime
    from (
        select
            category,
            coalesce(sum(events) filter (where event_day >= getvariable('today') - 90), 0) as events_90d,
            sum(events) as events_lifetime,
            share(sum(price_total), sum(priced_events)) as price_mean
        from item_days
        where is_closed and category is not null
        group by category
    ) as days
),

compared as (
    select
        *,
        sum(events_90d) over of_customer as all_events_90d,
        sum(events_lifetime) over of_customer as all_events_lifetime,
        sum(revenue_90d) over of_customer as all_revenue_90d,
        sum(revenue_lifetime) over of_customer as all_revenue_lifetime,
        sum(affinity_30d) over of_customer as all_affinity_30d,
        rank() over (partition by customer_id order by affinity_30d desc) as preference_rank
    from user_categories
    window of_customer as (partition by customer_id)
),

lifted as (
    select
        c.*,
        case
            when c.events_90d >= 5 and s.events_90d > 0
                then c.events_90d / c.all_events_90d / (s.events_90d / s.all_events_90d)
        end as lift_90d,
        case
            when c.events_lifetime >= 5 and s.events_lifetime > 0
                then c.events_lifetime / c.all_events_lifetime / (s.events_lifetime / s.all_events_lifetime)
        end as lift_lifetime,
        share(c.price_total, c.priced_events) as price_mean_lifetime,
        s.price_mean as shop_price_mean
    from compared as c
    left join shop as s on c.category = s.category
)

select
    l.customer_id,
    l.category,
    getvariable('as_of') as as_of,
    columns('^(views|cart_adds|units|revenue)_(7d|14d|30d|90d|365d|lifetime)$'),
    case when o.customer_id is null then 0 else columns(o.* exclude (customer_id, category, last_order_at)) end,
    cast(l.affinity_1d as double) / 1000000000 as category_affinity_1d,
    cast(l.affinity_7d as double) / 1000000000 as category_affinity_7d,
    cast(l.affinity_30d as double) / 1000000000 as category_affinity_30d,
    share(l.affinity_30d, l.all_affinity_30d) as affinity_share_30d,
    l.preference_rank,
    share(events_90d, all_events_90d) as share_of_events_90d,
    share(revenue_90d, all_revenue_90d) as share_of_spend_90d,
    lift_90d,
    ln(lift_90d) as pmi_90d,
    share(events_lifetime, all_events_lifetime) as share_of_events_lifetime,
    share(revenue_lifetime, all_revenue_lifetime) as share_of_spend_lifetime,
    lift_lifetime,
    ln(lift_lifetime) as pmi_lifetime,
    hours(l.last_at, getvariable('as_of')) as hours_since_event,
    hours(l.last_view_at, getvariable('as_of')) as hours_since_view,
    hours(l.last_cart_add_at, getvariable('as_of')) as hours_since_cart_add,
    hours(o.last_order_at, getvariable('as_of')) as hours_since_order,
    l.active_days_90d,
    l.distinct_products_lifetime,
    l.price_mean_lifetime,
    share(l.price_mean_lifetime, l.shop_price_mean) as price_ratio_lifetime
from lifted as l
left join by_order as o on l.customer_id = o.customer_id and l.category = o.category;

create table user_brand_features as
with by_order as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as orders_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as orders_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as orders_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as orders_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as orders_365d,
        count(*) as orders_lifetime,
        max(ordered_at) as last_order_at,
        customer_id,
        brand
    from (
        select customer_id, brand, order_key, min(ordered_at) as ordered_at, max(last_day) as last_day
        from bought
        where brand is not null
        group by customer_id, brand, order_key
    ) as orders_of_users
    group by customer_id, brand
),

shop as (
    select
        *,
        sum(events_90d) over () as all_events_90d,
        sum(events_lifetime) over () as all_events_lifetime
    from (
        select
            brand,
            coalesce(sum(events) filter (where event_day >= getvariable('today') - 90), 0) as events_90d,
            sum(events) as events_lifetime,
            share(sum(price_total), sum(priced_events)) as price_mean
        from item_days
        where is_closed and brand is not null
        group by brand
    ) as days
),

compared as (
    select
        *,
        sum(events_90d) over of_customer as all_events_90d,
        sum(events_lifetime) over of_customer as all_events_lifetime,
        sum(revenue_90d) over of_customer as all_revenue_90d,
        sum(revenue_lifetime) over of_customer as all_revenue_lifetime,
        sum(affinity_30d) over of_customer as all_affinity_30d,
        rank() over (partition by customer_id order by affinity_30d desc) as preference_rank
    from user_brands
    window of_customer as (partition by customer_id)
),

lifted as (
    select
        c.*,
        case
            when c.events_90d >= 5 and s.events_90d > 0
                then c.events_90d / c.all_events_90d / (s.events_90d / s.all_events_90d)
        end as lift_90d,
        case
            when c.events_lifetime >= 5 and s.events_lifetime > 0
                then c.events_lifetime / c.all_events_lifetime / (s.events_lifetime / s.all_events_lifetime)
        end as lift_lifetime,
        share(c.price_total, c.priced_events) as price_mean_lifetime,
        s.price_mean as shop_price_mean
    from compared as c
    left join shop as s on c.brand = s.brand
)

select
    l.customer_id,
    l.brand,
    getvariable('as_of') as as_of,
    columns('^(views|cart_adds|units|revenue)_(7d|14d|30d|90d|365d|lifetime)$'),
    case when o.customer_id is null then 0 else columns(o.* exclude (customer_id, brand, last_order_at)) end,
    cast(l.affinity_1d as double) / 1000000000 as brand_affinity_1d,
    cast(l.affinity_7d as double) / 1000000000 as brand_affinity_7d,
    cast(l.affinity_30d as double) / 1000000000 as brand_affinity_30d,
    share(l.affinity_30d, l.all_affinity_30d) as affinity_share_30d,
    l.preference_rank,
    share(events_90d, all_events_90d) as share_of_events_90d,
    share(revenue_90d, all_revenue_90d) as share_of_spend_90d,
    lift_90d,
    ln(lift_90d) as pmi_90d,
    share(events_lifetime, all_events_lifetime) as share_of_events_lifetime,
    share(revenue_lifetime, all_revenue_lifetime) as share_of_spend_lifetime,
    lift_lifetime,
    ln(lift_lifetime) as pmi_lifetime,
    hours(l.last_at, getvariable('as_of')) as hours_since_event,
    hours(l.last_view_at, getvariable('as_of')) as hours_since_view,
    hours(l.last_cart_add_at, getvariable('as_of')) as hours_since_cart_add,
    hours(o.last_order_at, getvariable('as_of')) as hours_since_order,
    l.active_days_90d,
    l.distinct_products_lifetime,
    l.price_mean_lifetime,
    share(l.price_mean_lifetime, l.shop_price_mean) as price_ratio_lifetime
from lifted as l
left join by_order as o on l.customer_id = o.customer_id and l.brand = o.brand;

create table user_item_features as
with recent as (
    select
        coalesce(sum(columns('^m_(views|cart_adds|cart_removes|units)$')) filter (where event_at >= getvariable('as_of') - interval 1 hour), 0) as '\1_1h',
        money_of(money_sum(case when event_at >= getvariable('as_of') - interval 1 hour then columns('^m_(revenue)$') end)) as '\1_1h',
        count(distinct order_key) filter (where event_at >= getvariable('as_of') - interval 1 hour) as orders_1h,
        coalesce(sum(columns('^m_(views|cart_adds|cart_removes|units)$')) filter (where event_at >= getvariable('as_of') - interval 24 hour), 0) as '\1_24h',
        money_of(money_sum(case when event_at >= getvariable('as_of') - interval 24 hour then columns('^m_(revenue)$') end)) as '\1_24h',
        count(distinct order_key) filter (where event_at >= getvariable('as_of') - interval 24 hour) as orders_24h,
        customer_id,
        product_id
    from last_day
    where product_id is not null
    group by customer_id, product_id
),

by_order as (
    select
        count(*) filter (where last_day >= getvariable('today') - 7) as orders_7d,
        count(*) filter (where last_day >= getvariable('today') - 30) as orders_30d,
        count(*) filter (where last_day >= getvariable('today') - 90) as orders_90d,
        count(*) filter (where last_day >= getvariable('today') - 14) as orders_14d,
        count(*) filter (where last_day >= getvariable('today') - 365) as orders_365d,
        count(*) as orders_lifetime,
        max(ordered_at) as last_order_at,
        case when count(*) > 1 then hours(min(ordered_at), max(ordered_at)) / 24 / (count(*) - 1) end as reorder_gap_days_mean,
        customer_id,
        product_id
    from (
        select customer_id, product_id, order_key, min(ordered_at) as ordered_at, max(last_day) as last_day
        from bought
        group by customer_id, product_id, order_key
    ) as orders_of_users
    group by customer_id, product_id
),

-- How many orders the customer made after the moment of each.
counted_orders as (
    select
        customer_id,
        ordered_at,
        sum(count(*)) over (partition by customer_id)
        - sum(count(*)) over (partition by customer_id order by ordered_at) as orders_since
    from (
        select customer_id, order_key, min(event_at) as ordered_at
        from clean_events
        where order_key is not null
        group by customer_id, order_key
    ) as orders_of_users
    group by customer_id, ordered_at
),

reordered as (
    select b.*, c.orders_since
    from by_order as b
    asof left join counted_orders as c on b.customer_id = c.customer_id and b.last_order_at >= c.ordered_at
)

select
    p.customer_id,
    p.product_id,
    getvariable('as_of') as as_of,
    p.* exclude (
        customer_id, product_id, events_90d, events_lifetime, affinity_1d, affinity_7d, affinity_30d, last_day, first_bought_on,
        last_bought_on, first_at, last_view_at, last_cart_add_at, last_cart_remove_at, last_bought_at, price_at_last_view
    ),
    case when r.customer_id is null then 0 else columns(r.* exclude (customer_id, product_id)) end,
    case when o.customer_id is null then 0 else columns(o.* exclude (customer_id, product_id, last_order_at, reorder_gap_days_mean, orders_since)) end,
    hours(p.last_view_at, getvariable('as_of')) as hours_since_view,
    hours(p.last_cart_add_at, getvariable('as_of')) as hours_since_cart_add,
    hours(o.last_order_at, getvariable('as_of')) as hours_since_order,
    hours(p.first_at, getvariable('as_of')) / 24 as days_since_first_event,
    p.last_cart_add_at is not null
    and (p.last_cart_remove_at is null or p.last_cart_add_at > p.last_cart_remove_at)
    and (p.last_bought_at is null or p.last_cart_add_at > p.last_bought_at) as in_cart_now,
    o.orders_since as orders_since_last,
    o.reorder_gap_days_mean,
    share(hours(o.last_order_at, getvariable('as_of')) / 24, o.reorder_gap_days_mean) as due_ratio,
    cast(p.affinity_1d as double) / 1000000000 as item_affinity_1d,
    cast(p.affinity_7d as double) / 1000000000 as item_affinity_7d,
    cast(p.affinity_30d as double) / 1000000000 as item_affinity_30d,
    v.category,
    v.brand,
    v.price as price_now,
    p.price_at_last_view,
    share(v.price, p.price_at_last_view) - 1 as price_change_since_view
from user_items as p
left join recent as r on p.customer_id = r.customer_id and p.product_id = r.product_id
left join reordered as o on p.customer_id = o.customer_id and p.product_id = o.product_id
left join catalogue as v
    on p.product_id = v.product_id;

---------- features of sessions: those of the last month

create table session_features as
with visible as (
    select *
    from measured
    where session_id in (select session_id from sessions where last_day >= getvariable('today') - 30)
),

placed as (
    select
        *,
        row_number() over in_order as place,
        cast((epoch_us(lead(event_at) over in_order) - epoch_us(event_at)) * 0.000001 as decimal(18, 6)) as dwell,
        coalesce(sum(m_cart_adds) over (in_order rows between unbounded preceding and 1 preceding), 0) as adds_before
    from visible
    window in_order as (partition by session_id order by event_at, event_id)
),

summed as (
    select
        session_id,
        arg_max(customer_id, identity) as customer_id,
        coalesce(sum(columns('^m_(views|list_views|searches|cart_adds|cart_removes|checkouts|wishlist_adds|units)$')), 0) as '\1',
        money_of(money_sum(columns('^m_(revenue|refunds)$'))) as '\1',
        max(case when place = 1 then page end) as entry_page,
        max(case when place = 1 then referrer end) as entry_referrer,
        max(case when place = 1 then campaign end) as campaign,
        max(case when place = 1 then client_class end) as client_class,
        max(case when place = 1 then device end) as device,
        max(case when place = 1 then country end) as country,
        min(event_at) as started_at,
        max(event_at) as last_event_at,
        count(*) as events,
        count(distinct order_key) as orders,
        count(distinct product_id) as distinct_products,
        count(distinct category) as distinct_categories,
        count(distinct brand) as distinct_brands,
        cast(sum(case when event_type = 'view_item' then dwell end) as double)
        / count(case when event_type = 'view_item' then dwell end) as dwell_seconds_mean,
        cast(max(case when event_type = 'view_item' then dwell end) as double) as dwell_seconds_max,
        count(case when adds_before = 0 and event_type <> 'add_to_cart' then 1 end) as events_before_first_cart_add,
        count(case when adds_before > 0 then 1 end) as events_after_first_cart_add,
        count(case when adds_before = 0 and event_type = 'view_item' then 1 end) as views_before_first_cart_add,
        count(case when adds_before > 0 and event_type = 'view_item' then 1 end) as views_after_first_cart_add,
        min(case when event_type = 'add_to_cart' then event_at end) as first_cart_add_at,
        case
            when count(case when event_type in ('add_to_cart', 'remove_from_cart') then 1 end) = 0 then 0
            when sum(case event_type when 'add_to_cart' then amount when 'remove_from_cart' then -amount end) < 0 then 0
            else sum(case event_type when 'add_to_cart' then amount when 'remove_from_cart' then -amount end)
        end as cart_value,
        greatest(coalesce(sum(
            case event_type when 'add_to_cart' then coalesce(quantity, 1) when 'remove_from_cart' then -coalesce(quantity, 1) end
        ), 0), 0) as cart_units
    from placed
    group by session_id
),

products as (
    select session_id, arg_max(product_id, place, 5) as last_products
    from (select session_id, product_id, max(place) as place from placed where product_id is not null group by all) as newest
    group by session_id
),

categories as (
    select session_id, arg_max(category, place, 5) as last_categories
    from (select session_id, category, max(place) as place from placed where category is not null group by all) as newest
    group by session_id
)

select
    getvariable('as_of') as as_of,
    s.* exclude (first_cart_add_at, campaign, client_class),
    w.entry_campaign,
    w.entry_channel,
    coalesce(s.client_class, if(w.is_of_assistant, 'assistant_referred', 'human')) as visitor_class,
    seconds(s.started_at, s.last_event_at) as length_seconds,
    cast((epoch_us(getvariable('as_of')) - epoch_us(s.last_event_at)) * 0.000001 as double) as seconds_since_last_event,
    s.last_event_at < getvariable('as_of') - interval 30 minute as is_over,
    s.orders > 0 as has_order,
    s.events = 1 as is_bounced,
    share(s.views, s.distinct_products) as views_per_product,
    coalesce(p.last_products, []) as last_products,
    coalesce(g.last_categories, []) as last_categories,
    seconds(s.started_at, s.first_cart_add_at) as seconds_to_first_cart_add,
    case
        when extract(hour from s.started_at) < 6 then 'night'
        when extract(hour from s.started_at) < 12 then 'morning'
        when extract(hour from s.started_at) < 18 then 'afternoon'
        else 'evening'
    end as day_part,
    extract(isodow from s.started_at) >= 6 as is_weekend
from summed as s
left join products as p on s.session_id = p.session_id
left join categories as g on s.session_id = g.session_id
inner join ways as w
    on
        s.entry_page is not distinct from w.page
        and s.entry_referrer is not distinct from w.referrer
        and s.campaign is not distinct from w.campaign;

---------- features of pairs of items that co-occur within 24 hours or in one order, by the end of the day before

-- Of each identity's day and of each order, what could be seen first, up to 50 products.
create temp table daily_touches as
with firsts as (
    select
        identity,
        case event_type when 'view_item' then 'viewed' when 'add_to_cart' then 'carted' else 'bought' end as kind,
        product_id,
        event_day,
        event_at as touched_at,
        greatest(available_at, event_at + interval 1 microsecond) as visible_at
    from clean_events
    where product_id is not null and event_type in ('view_item', 'add_to_cart', 'purchase')
    qualify row_number() over (partition by identity, event_type, product_id, event_day order by visible_at, event_at) = 1
)

select *, row_number() over (partition by identity, kind, event_day order by visible_at, touched_at, product_id) as place
from firsts
qualify place <= 50;

create temp table baskets as
with firsts as (
    select identity, order_key, product_id, event_day, greatest(available_at, event_at + interval 1 microsecond) as visible_at
    from clean_events
    where product_id is not null and order_key is not null
    qualify row_number() over (partition by identity, order_key, product_id order by visible_at, event_at) = 1
)

select *, row_number() over (partition by identity, order_key order by visible_at, product_id) as place
from firsts
qualify place <= 50;

create temp table pair_days as
with closed as (
    select * from daily_touches where visible_at < getvariable('today')
),

-- Each touch on all days that 24 hours reach: days are joined on equality.
others as (
    select identity, kind, product_id, event_day + cast(d as integer) as event_day, touched_at
    from closed
    cross join range(-1, 2) as days (d)
),

near as (
    select distinct m.identity, m.kind, o.kind as other_kind, m.product_id, o.product_id as other_product_id, m.event_day
    from closed as m
    inner join others as o
        on m.identity = o.identity
        and m.event_day = o.event_day
        and m.product_id <> o.product_id
        and o.touched_at between case when m.kind = o.kind then m.touched_at - interval 24 hour else m.touched_at end and m.touched_at + interval 24 hour
        and ((m.kind = o.kind and m.kind <> 'bought') or (m.kind = 'carted' and o.kind = 'bought'))
),

together as (
    select product_id, other_product_id, event_day, kind || other_kind as counted from near
    union all
    select a.product_id, b.product_id, a.event_day, 'ordered'
    from baskets as a
    inner join baskets as b on a.identity = b.identity and a.order_key = b.order_key and a.product_id <> b.product_id
    where greatest(a.visible_at, b.visible_at) < getvariable('today')
)

select
    product_id,
    other_product_id,
    event_day,
    count(case when counted = 'viewedviewed' then 1 end) as co_views,
    count(case when counted = 'cartedcarted' then 1 end) as co_carts,
    count(case when counted = 'ordered' then 1 end) as co_orders,
    count(case when counted = 'cartedbought' then 1 end) as carts_to_orders
from together
group by product_id, other_product_id, event_day;

-- The 50 best of each product; only these are counted.
create temp table best_pairs as
with scored as (
    select
        product_id,
        other_product_id,
        cast(sum(
            (co_views + 3 * co_carts + 10 * co_orders + 5 * carts_to_orders)
            * cast(round(power(0.5, (getvariable('today') - event_day) / 30.0) * 1000000) as bigint)
        ) as double) / 1000000 as pair_score,
        sum(co_views + 3 * co_carts + 10 * co_orders + 5 * carts_to_orders) as undecayed_score
    from pair_days
    group by product_id, other_product_id
)

select
    product_id,
    other_product_id,
    pair_score,
    -- Where all is so long ago that nothing is left of the score, what there was decides.
    row_number() over (partition by product_id order by pair_score desc, undecayed_score desc, other_product_id) as pair_rank
from scored
qualify pair_rank <= 50;

create table item_pair_features as
with counted as (
    select product_id, event_day, kind, place from daily_touches
    where kind <> 'bought' and visible_at < getvariable('today')
    union all
    select product_id, event_day, 'ordered', place from baskets
    where visible_at < getvariable('today')
),

alone as (
    select
        product_id,
        count(*) filter (where kind = 'viewed' and event_day >= getvariable('today') - 90) as view_days_90d,
        count(*) filter (where kind = 'viewed') as view_days_lifetime,
        count(*) filter (where kind = 'carted' and event_day >= getvariable('today') - 90) as cart_days_90d,
        count(*) filter (where kind = 'carted') as cart_days_lifetime,
        count(*) filter (where kind = 'ordered' and event_day >= getvariable('today') - 90) as orders_90d,
        count(*) filter (where kind = 'ordered') as orders_lifetime
    from counted
    group by product_id
),

shop as (
    select
        count(*) filter (where kind = 'viewed') as first_views,
        count(*) filter (where kind = 'carted') as first_carts,
        count(*) filter (where kind = 'ordered') as first_orders
    from counted
    where place = 1
),

forth as (
    select
        product_id,
        other_product_id,
        coalesce(sum(co_views) filter (where event_day >= getvariable('today') - 30), 0) as co_views_30d,
        coalesce(sum(co_views) filter (where event_day >= getvariable('today') - 90), 0) as co_views_90d,
        sum(co_views) as co_views_lifetime,
        cast(sum(co_views * cast(round(power(0.5, (getvariable('today') - event_day) / 7.0) * 1000000) as bigint)) as double) / 1000000 as co_views_decayed_7d,
        cast(sum(co_views * cast(round(power(0.5, (getvariable('today') - event_day) / 30.0) * 1000000) as bigint)) as double) / 1000000 as co_views_decayed_30d,
        coalesce(sum(co_carts) filter (where event_day >= getvariable('today') - 30), 0) as co_carts_30d,
        coalesce(sum(co_carts) filter (where event_day >= getvariable('today') - 90), 0) as co_carts_90d,
        sum(co_carts) as co_carts_lifetime,
        cast(sum(co_carts * cast(round(power(0.5, (getvariable('today') - event_day) / 7.0) * 1000000) as bigint)) as double) / 1000000 as co_carts_decayed_7d,
        cast(sum(co_carts * cast(round(power(0.5, (getvariable('today') - event_day) / 30.0) * 1000000) as bigint)) as double) / 1000000 as co_carts_decayed_30d,
        coalesce(sum(co_orders) filter (where event_day >= getvariable('today') - 30), 0) as co_orders_30d,
        coalesce(sum(co_orders) filter (where event_day >= getvariable('today') - 90), 0) as co_orders_90d,
        sum(co_orders) as co_orders_lifetime,
        cast(sum(co_orders * cast(round(power(0.5, (getvariable('today') - event_day) / 7.0) * 1000000) as bigint)) as double) / 1000000 as co_orders_decayed_7d,
        cast(sum(co_orders * cast(round(power(0.5, (getvariable('today') - event_day) / 30.0) * 1000000) as bigint)) as double) / 1000000 as co_orders_decayed_30d,
        coalesce(sum(carts_to_orders) filter (where event_day >= getvariable('today') - 30), 0) as carts_to_orders_30d,
        coalesce(sum(carts_to_orders) filter (where event_day >= getvariable('today') - 90), 0) as carts_to_orders_90d,
        sum(carts_to_orders) as carts_to_orders_lifetime,
        cast(sum(carts_to_orders * cast(round(power(0.5, (getvariable('today') - event_day) / 7.0) * 1000000) as bigint)) as double) / 1000000 as carts_to_orders_decayed_7d,
        cast(sum(carts_to_orders * cast(round(power(0.5, (getvariable('today') - event_day) / 30.0) * 1000000) as bigint)) as double) / 1000000 as carts_to_orders_decayed_30d
    from pair_days
    inner join best_pairs using (product_id, other_product_id)
    group by product_id, other_product_id
),

-- The other product's own touches that had this one near.
back as (
    select
        b.product_id,
        b.other_product_id,
        sum(d.co_views) as back_co_views,
        sum(d.co_carts) as back_co_carts,
        sum(d.co_orders) as back_co_orders
    from pair_days as d
    inner join best_pairs as b on d.product_id = b.other_product_id and d.other_product_id = b.product_id
    group by b.product_id, b.other_product_id
),

measured as (
    select
        k.*,
        p.* exclude (product_id, other_product_id),
        share(p.co_views_90d, a.view_days_90d) as view_confidence_90d,
        share(p.co_views_lifetime, a.view_days_lifetime) as view_confidence_lifetime,
        share(b.view_days_lifetime, s.first_views) as view_base,
        share(p.co_carts_90d, a.cart_days_90d) as cart_confidence_90d,
        share(p.co_carts_lifetime, a.cart_days_lifetime) as cart_confidence_lifetime,
        share(b.cart_days_lifetime, s.first_carts) as cart_base,
        share(p.co_orders_90d, a.orders_90d) as order_confidence_90d,
        share(p.co_orders_lifetime, a.orders_lifetime) as order_confidence_lifetime,
        share(b.orders_lifetime, s.first_orders) as order_base,
        share(p.carts_to_orders_90d, a.cart_days_90d) as cart_to_order_confidence_90d,
        share(p.carts_to_orders_lifetime, a.cart_days_lifetime) as cart_to_order_confidence_lifetime,
        share(b.orders_lifetime, s.first_orders) as cart_to_order_base,
        share(r.back_co_views, b.view_days_lifetime) as back_co_views,
        share(r.back_co_carts, b.cart_days_lifetime) as back_co_carts,
        share(r.back_co_orders, b.orders_lifetime) as back_co_orders,
        c.category = o.category as is_same_category
    from best_pairs as k
    inner join forth as p on k.product_id = p.product_id and k.other_product_id = p.other_product_id
    cross join shop as s
    left join back as r on p.product_id = r.product_id and p.other_product_id = r.other_product_id
    left join alone as a on p.product_id = a.product_id
    left join alone as b on p.other_product_id = b.product_id
    left join catalogue as c on p.product_id = c.product_id
    left join catalogue as o on p.other_product_id = o.product_id
)

select
    getvariable('as_of') as as_of,
    * exclude (view_base, cart_base, order_base, cart_to_order_base, back_co_views, back_co_carts, back_co_orders),
    case when co_views_lifetime >= 3 then share(view_confidence_lifetime, view_base) end as lift_co_views,
    ln(lift_co_views) as pmi_co_views,
    case when co_carts_lifetime >= 3 then share(cart_confidence_lifetime, cart_base) end as lift_co_carts,
    ln(lift_co_carts) as pmi_co_carts,
    case when co_orders_lifetime >= 3 then share(order_confidence_lifetime, order_base) end as lift_co_orders,
    ln(lift_co_orders) as pmi_co_orders,
    case when carts_to_orders_lifetime >= 3 then share(cart_to_order_confidence_lifetime, cart_to_order_base) end as lift_carts_to_orders,
    ln(lift_carts_to_orders) as pmi_carts_to_orders,
    case when co_views_lifetime >= 3 then sqrt(view_confidence_lifetime * back_co_views) end as cosine_co_views,
    case when co_carts_lifetime >= 3 then sqrt(cart_confidence_lifetime * back_co_carts) end as cosine_co_carts,
    case when co_orders_lifetime >= 3 then sqrt(order_confidence_lifetime * back_co_orders) end as cosine_co_orders,
from measured;
