{#
  Naive Bayes over counts that add up: the most probable label of something, by its tokens (the words of a title, a brand, a price band). A
  token's probability under a label is (n + p) / (N + 1): n of the label's N tokens of this feature are this one, and p is the token's share
  among all labels. What was never counted says nothing.
#}

{#
  CTEs, the last of which is `predicted` (key, fit_day, label, confidence): the most probable label, of equals the first in alphabetical
  order, and its probability. They read CTEs or tables of the caller:

  - evidence: arrival_day, feature, token, label, n. Counts that add up over days. The feature 'label' (with any token) counts the labels.
  - asked: key, fit_day, feature, token. Each token once. The counts up to the end of fit_day are used.
#}
{% macro predicted_by_naive_bayes(evidence) -%}
asked_days as (

    select distinct fit_day from asked

),

asked_tokens as (

    select distinct fit_day, feature, token from asked

),

-- Up to each day on which it grew, and until the next one.
label_steps as (

    select
        feature,
        label,
        arrival_day,
        lead(arrival_day) over (partition by feature, label order by arrival_day) as next_day,
        sum(n) over (partition by feature, label order by arrival_day rows between unbounded preceding and current row) as n
    from (
        select
            feature,
            label,
            arrival_day,
            sum(n) as n
        from {{ evidence }}
        where (select count(*) from asked_days) > 0
        group by feature, label, arrival_day
    ) as days

),

label_totals as (

    select
        d.fit_day,
        s.feature,
        s.label,
        s.n
    from asked_days as d
    inner join label_steps as s on d.fit_day >= s.arrival_day and d.fit_day < coalesce(s.next_day, date '9999-12-31')
    where s.n > 0

),

feature_totals as (

    select
        fit_day,
        feature,
        sum(n) as n
    from label_totals
    group by fit_day, feature

),

token_steps as (

    select
        feature,
        token,
        label,
        arrival_day,
        lead(arrival_day) over (partition by feature, token, label order by arrival_day) as next_day,
        sum(n) over (
            partition by feature, token, label order by arrival_day rows between unbounded preceding and current row
        ) as n
    from (
        select
            feature,
            token,
            label,
            arrival_day,
            sum(n) as n
        from {{ evidence }}
        where (feature, token) in (select (t.feature, t.token) from asked_tokens as t)
        group by feature, token, label, arrival_day
    ) as days

),

token_counts as (

    select
        t.fit_day,
        t.feature,
        t.token,
        s.label,
        s.n
    from asked_tokens as t
    inner join token_steps as s
        on
            t.feature = s.feature and t.token = s.token
            and t.fit_day >= s.arrival_day and t.fit_day < coalesce(s.next_day, date '9999-12-31')
    where s.n > 0

),

token_shares as (

    select
        c.fit_day,
        c.feature,
        c.token,
        cast(sum(c.n) as double) / max(f.n) as share
    from token_counts as c
    inner join feature_totals as f on c.fit_day = f.fit_day and c.feature = f.feature
    group by c.fit_day, c.feature, c.token

),

-- Logarithms in millionths, whole numbers: they add up to the same in any order.
token_gains as (

    select
        c.fit_day,
        c.feature,
        c.token,
        c.label,
        {{ log_micros('(c.n + s.share) / s.share') }} as gain
    from token_counts as c
    inner join token_shares as s on c.fit_day = s.fit_day and c.feature = s.feature and c.token = s.token

),

-- How many tokens of each feature something has that were counted at all.
known_tokens as (

    select
        a.key,
        a.fit_day,
        a.feature,
        count(*) as tokens
    from asked as a
    inner join token_shares as s on a.fit_day = s.fit_day and a.feature = s.feature and a.token = s.token
    group by a.key, a.fit_day, a.feature

),

scores as (

    select
        key,
        fit_day,
        label,
        sum(score) as score
    from (
        select
            k.key,
            k.fit_day,
            l.label,
            {{ log_micros('l.n') }} as score
        from (select distinct key, fit_day from known_tokens) as k
        inner join label_totals as l on k.fit_day = l.fit_day and l.feature = 'label'
        union all
        select
            k.key,
            k.fit_day,
            l.label,
            -k.tokens * {{ log_micros('coalesce(f.n, 0) + 1') }} as score
        from known_tokens as k
        inner join label_totals as l on k.fit_day = l.fit_day and l.feature = 'label'
        left join label_totals as f on k.fit_day = f.fit_day and k.feature = f.feature and l.label = f.label
        union all
        select
            a.key,
            a.fit_day,
            g.label,
            g.gain as score
        from asked as a
        inner join token_gains as g on a.fit_day = g.fit_day and a.feature = g.feature and a.token = g.token
        inner join label_totals as l on g.fit_day = l.fit_day and g.label = l.label and l.feature = 'label'
    ) as parts
    group by key, fit_day, label

),

ranked as (

    select
        key,
        fit_day,
        label,
        score,
        row_number() over (partition by key, fit_day order by score desc, label) as place,
        max(score) over (partition by key, fit_day) as best
    from scores

),

predicted as (

    select
        key,
        fit_day,
        min(case when place = 1 then label end) as label,
        -- One over the sum of all probabilities, in units of the best one's.
        round(
            1 / cast(sum(cast(exp(cast(greatest(score - best, -40000000) as double) / 1000000) as decimal(18, 9))) as double), 4
        ) as confidence
    from ranked
    group by key, fit_day

)
{%- endmacro %}

{# CTE body: what is known of products beside their category, as tokens, and since which day: the words of their titles, their brands, and
   their prices by powers of two. `condition`: of which versions v of the catalogue. #}
{% macro product_tokens(condition) -%}
select
    product_id,
    feature,
    token,
    min(cast(known_at as date)) as known_on
from (
    {% for feature, token in [
        ('word', unfold(words('v.title'))),
        ('brand', 'lower(v.brand)'),
        ('price', 'case when v.price > 0 then cast(cast(floor(ln(v.price) / ln(2)) as integer) as varchar) end'),
    ] %}
    select
        v.product_id,
        '{{ feature }}' as feature,
        {{ token }} as token,
        v.known_at
    from {{ ref('int_reference__product_versions') }} as v
    where {{ condition }}
    {{ "union all" if not loop.last }}
    {% endfor %}
) as tokens
where token <> ''
group by product_id, feature, token
{%- endmacro %}
