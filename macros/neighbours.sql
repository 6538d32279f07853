{#
  Imputation by k nearest neighbours. Rows are compared in the columns that both have: the distance is the root mean square difference of
  their scaled values (as in scikit-learn's KNNImputer, "nan-Euclidean"), or the root of one minus their cosine. A gap gets the mean of the
  k nearest rows that have a value, weighted by one over the distance.

  In large groups the nearest rows are looked for in the cells of the nearest centres alone (an inverted file index, as in FAISS), so a few
  may be missed; a group of `cell_size()` rows or fewer is searched whole.
#}

{# The reference rows up to which a group is searched whole. #}
{% macro cell_size() %}1000{% endmacro %}

{# The cells that are searched. #}
{% macro searched_cells() %}8{% endmacro %}

{# The nearest rows that are looked at for each gap: of these, the k nearest that have a value count. #}
{% macro nearest_rows() %}32{% endmacro %}

{#
  CTEs, the last of which is `imputed` (key, group_key, position, value, neighbours): what a gap is filled with, and by how many rows. They
  read CTEs of the caller:

  - asked: key (text), group_key (text, not null) and `columns` (numbers), the rows with gaps;
  - reference: the same, the rows that may fill them;
  - gaps: key, group_key, position (of the column in `columns`, from 1), k.

  A row never fills its own gap. The reference rows of a group are at most knn_reference_rows, chosen by the hash of their keys.
#}
{% macro imputed_by_neighbours(columns) -%}
{%- set scaling = var('knn_scaling') -%}
scales as (

    {# Exact sums and quantiles: the same in whichever order the rows are read. #}
    select
        {%- for column in columns %}
        {%- if scaling == 'standard' %}
        case when n_{{ loop.index }} > 0 then cast(total_{{ loop.index }} as double) / n_{{ loop.index }} end as centre_{{ loop.index }},
        coalesce(nullif({{ std_of('n_' ~ loop.index, 'total_' ~ loop.index, 'square_' ~ loop.index) }}, 0), 1) as spread_{{ loop.index }}
        {%- elif scaling == 'robust' %}
        {{ quantile(column, 0.5) }} as centre_{{ loop.index }},
        coalesce(nullif({{ quantile(column, 0.75) }} - {{ quantile(column, 0.25) }}, 0), 1) as spread_{{ loop.index }}
        {%- else %}
        cast(0 as double) as centre_{{ loop.index }},
        cast(1 as double) as spread_{{ loop.index }}
        {%- endif %}
        {{- "," if not loop.last }}
        {%- endfor %}
    {% if scaling == 'standard' %}
    from (
        select
            {%- for column in columns %}
            count({{ column }}) as n_{{ loop.index }},
            sum(cast({{ column }} as decimal(18, 4))) as total_{{ loop.index }},
            sum(
                cast(cast({{ column }} as decimal(18, 4)) as decimal(19, 4)) * cast(cast({{ column }} as decimal(18, 4)) as decimal(19, 4))
            ) as square_{{ loop.index }}{{ "," if not loop.last }}
            {%- endfor %}
        from reference
    ) as sums
    {% elif scaling == 'robust' %}
    from reference
    {% endif %}

),

numbered as (

    select
        *,
        row_number() over (partition by group_key order by {{ id_hash(['key']) }}, key) as number
    from reference

),

chosen as (

    select *, count(*) over (partition by group_key) as group_size
    from numbered
    where number <= {{ var('knn_reference_rows') }}

),

{% for relation in ['chosen', 'asked'] -%}
{{ relation }}_vectors as (

    select
        r.key,
        r.group_key,
        {{ "r.number, r.group_size," if relation == 'chosen' }}
        {{ vector(_scaled(columns, 'coalesce(#, 0)')) | indent(8) }} as x,
        {{ vector(_scaled(columns, 'coalesce(# * #, 0)')) | indent(8) }} as x_square,
        {{ vector(_scaled(columns, 'case when # is null then 0 else 1 end')) | indent(8) }} as known
    from {{ relation }} as r
    cross join scales as s
    {{ "where r.key in (select g.key from gaps as g)" if relation == 'asked' }}

),

{% endfor -%}
centres as (

    select * from chosen_vectors
    where number <= case when group_size <= {{ cell_size() }} then 1 else 2 * sqrt(group_size) end

),

cells as (

    select
        r.number,
        r.group_key,
        {{ element(smallest(_distance('r', 'c'), 'c.number', 1), 1) }}.chosen as cell
    from chosen_vectors as r
    inner join centres as c on r.group_key = c.group_key
    group by r.group_key, r.number

),

searched as (

    select
        n.key,
        n.group_key,
        {{ unfold('n.nearest') }}.chosen as cell
    from (
        select a.key, a.group_key, {{ smallest(_distance('a', 'c'), 'c.number', searched_cells()) }} as nearest
        from asked_vectors as a
        inner join centres as c on a.group_key = c.group_key
        group by a.key, a.group_key
    ) as n

),

nearest as (

    select
        a.key,
        a.group_key,
        {{ unfold(smallest(_distance('a', 'r'), 'r.number', nearest_rows())) }} as found
    from asked_vectors as a
    inner join searched as p on a.key = p.key and a.group_key = p.group_key
    inner join cells as l on p.group_key = l.group_key and p.cell = l.cell
    inner join chosen_vectors as r on l.group_key = r.group_key and l.number = r.number
    where a.key <> r.key
    group by a.key, a.group_key

),

candidates as (

    select
        g.key,
        g.group_key,
        g.position,
        g.k,
        n.found.rank_by as squared_distance,
        {{ element('r.x', 'g.position') }} as scaled_value,
        row_number() over (partition by g.key, g.group_key, g.position order by n.found.rank_by, n.found.chosen) as place
    from gaps as g
    inner join nearest as n on g.key = n.key and g.group_key = n.group_key
    inner join chosen_vectors as r on n.group_key = r.group_key and n.found.chosen = r.number
    where {{ element('r.known', 'g.position') }} = 1 and n.found.rank_by < {{ nothing_in_common() }}

),

means as (

    -- In whole numbers, which add up to the same in any order. Within a hundredth of a spread, rows are equally near: single precision
    -- tells no more.
    select
        key,
        group_key,
        position,
        sum(weight * cast(round(scaled_value * 1000000) as decimal(19, 0))) / sum(weight) / 1000000.0 as scaled_value,
        cast(count(*) as bigint) as neighbours
    from (
        select *, cast(round(1000000 / greatest(sqrt(greatest(cast(squared_distance as double), 0)), 0.01)) as decimal(19, 0)) as weight
        from candidates
        where place <= k
    ) as weighted
    group by key, group_key, position

),

imputed as (

    select
        m.key,
        m.group_key,
        m.position,
        round(
            {{ element('s.centres', 'm.position') }} + {{ element('s.spreads', 'm.position') }} * cast(m.scaled_value as double), 6
        ) as value,
        m.neighbours
    from means as m
    cross join (
        select
            [{% for column in columns %}centre_{{ loop.index }}{{ ", " if not loop.last }}{% endfor %}] as centres,
            [{% for column in columns %}spread_{{ loop.index }}{{ ", " if not loop.last }}{% endfor %}] as spreads
        from scales
    ) as s

)
{%- endmacro %}

{# The distance of rows that have no column in common. #}
{% macro nothing_in_common() %}1e30{% endmacro %}

{# SQL of each column, scaled and held within a thousand million spreads, in a template in which # stands for it. #}
{% macro _scaled(columns, template) -%}
{%- set found = [] -%}
{%- for column in columns -%}
    {%- set scaled = '(cast(r.' ~ column ~ ' as double) - s.centre_' ~ loop.index ~ ') / s.spread_' ~ loop.index -%}
    {%- set scaled = 'case when r.' ~ column ~ ' is not null then greatest(least(' ~ scaled ~ ', 1e9), -1e9) end' -%}
    {%- do found.append(template | replace('#', scaled)) -%}
{%- endfor -%}
{{ return(found) }}
{%- endmacro %}

{# SQL of the squared distance of two rows with the vectors x, x_square and known; infinite where they have no column in common. #}
{% macro _distance(left, right) -%}
{%- set shared = dot(left ~ '.known', right ~ '.known') -%}
{%- set product = dot(left ~ '.x', right ~ '.x') -%}
{%- set of_left = dot(left ~ '.x_square', right ~ '.known') -%}
{%- set of_right = dot(left ~ '.known', right ~ '.x_square') -%}
{%- if var('knn_metric') == 'cosine' -%}
case
    when {{ of_left }} > 0 and {{ of_right }} > 0 then 1 - {{ product }} / sqrt({{ of_left }} * {{ of_right }})
    else {{ nothing_in_common() }}
end
{%- else -%}
case
    when {{ shared }} > 0 then greatest({{ of_left }} + {{ of_right }} - 2 * {{ product }}, 0) / {{ shared }}
    else {{ nothing_in_common() }}
end
{%- endif -%}
{%- endmacro %}
