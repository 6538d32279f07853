{#
  Imputation by k nearest neighbours. Rows are compared in the columns that both have: the distance is the root mean square difference of
  their scaled values (as in scikit-learn's KNNImputer, "nan-Euclidean"), or the root of one minus their cosine. A gap gets the mean of the
  k nearest rows that have a value, weighted by one over the squared distance.

  In large groups the nearest rows are looked for in the cells of the nearest centres alone (an inverted file index, as in FAISS), so a few
  may be missed; a group of `cell_size()` rows or fewer is searched whole.
#}

{# The reference rows up to which a group is searched whole. #}
{% macro cell_size() %}1000{% endmacro %}

{# The cells into which the reference rows of a group are divided. #}
{% macro cells_of(rows) %}case when {{ rows }} <= {{ cell_size() }} then 1 else 3 * sqrt({{ rows }}) end{% endmacro %}

{# The cells that are searched. #}
{% macro searched_cells() %}12{% endmacro %}

{# The rows of the sample that centres are means of, for each centre. #}
{% macro rows_per_centre() %}8{% endmacro %}

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
{%- set mean_of_known = 'coalesce(cast(sum(cast(# as decimal(19, 6))) as double) / nullif(sum(cast(@ as bigint)), 0), 0)' -%}
{%- set with_cells = ' from points as p inner join cells as c on p.number = c.number where ' %}
scales as {{ kept_once() }} (

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

rows_of_both as (

    select
        key,
        group_key,
        number as place,
        {{ cells_of('count(*) over (partition by group_key)') }} as cells,
        false as is_asked,
        {{ columns | join(', ') }}
    from numbered
    where number <= {{ var('knn_reference_rows') }}
    union all
    select
        key,
        group_key,
        null as place,
        null as cells,
        true as is_asked,
        {{ columns | join(', ') }}
    from asked
    where key in (select g.key from gaps as g)

),

points as {{ kept_once() }} (

    -- A row that is asked about, and a reference row as well, is one point. `place` and `cells` are null of points that are no reference.
    select
        r.key,
        r.group_key,
        r.place,
        r.cells,
        r.is_asked,
        row_number() over (order by r.group_key, r.key, r.place) as number,
        {{ vector(_scaled(columns, 'coalesce(#, 0)')) | indent(8) }} as x,
        {{ vector(_scaled(columns, 'coalesce(# * #, 0)')) | indent(8) }} as x_square,
        {{ vector(_scaled(columns, 'case when # is null then 0 else 1 end')) | indent(8) }} as known
    from (
        select
            key,
            group_key,
            max(place) as place,
            max(cells) as cells,
            bool_or(is_asked) as is_asked,
            {{ columns | join(', ') }}
        from rows_of_both
        group by key, group_key, {{ columns | join(', ') }}
    ) as r
    cross join scales as s

),

first_cells as (

    select
        l.group_key,
        l.number,
        {{ element(smallest(_distance_to_centre('l', 'r'), 'r.place', 1), 1) }}.chosen as cell
    from {{ pairs(
        'select group_key, number, x, known from points where place <= ' ~ rows_per_centre() ~ ' * cells',
        'select group_key, place, x, x_square from points where place <= cells',
        ['group_key']
    ) | indent(4) }}
    group by l.group_key, l.number

),

centres as {{ kept_once() }} (

    -- One step of k-means over a sample: the means of the rows nearest to the first rows. Exact sums, as above.
    select
        group_key,
        cell,
        x,
        {{ vector(_elements(columns, '# * #')) | indent(8) }} as x_square
    from (
        select
            c.group_key,
            c.cell,
            {{ vector(_elements(columns, mean_of_known)) | indent(12) }} as x
        from first_cells as c
        inner join points as r on c.number = r.number
        group by c.group_key, c.cell
    ) as r

),

cells as {{ kept_once() }} (

    select
        l.number,
        {{ smallest(_distance_to_centre('l', 'r'), 'r.cell', searched_cells()) }} as nearest
    from {{ pairs(
        'select group_key, number, x, known from points',
        'select group_key, cell, x, x_square from centres',
        ['group_key']
    ) | indent(4) }}
    group by l.number

),

nearest as {{ kept_once() }} (

    select
        l.number,
        {{ smallest(_distance('l', 'r'), 'r.place', nearest_rows()) }} as found
    from {{ pairs(
        'select ' ~ unfold('c.nearest') ~ '.chosen as cell, p.*' ~ with_cells ~ 'p.is_asked',
        'select ' ~ element('c.nearest', 1) ~ '.chosen as cell, p.*' ~ with_cells ~ 'p.place is not null',
        ['group_key', 'cell']
    ) | indent(4) }}
    where l.key <> r.key
    group by l.number

),

known_values as {{ kept_once() }} (

    select p.group_key, p.place, g.position, {{ element('p.x', 'g.position') }} as scaled_value
    from points as p
    inner join (select distinct position from gaps) as g on {{ element('p.known', 'g.position') }} = 1
    where p.place is not null

),

candidates as (

    -- The innermost lists are unfolded before the values are joined to them, or a join of all with all comes first.
    select
        n.number,
        n.position,
        n.k,
        n.found.rank_by as squared_distance,
        v.scaled_value,
        row_number() over (partition by n.number, n.position order by n.found.rank_by, n.found.chosen) as place
    from (
        select p.group_key, p.number, g.position, g.k, {{ unfold('f.found') }} as found
        from gaps as g
        inner join points as p on g.key = p.key and g.group_key = p.group_key and p.is_asked
        inner join nearest as f on p.number = f.number
    ) as n
    inner join known_values as v on n.group_key = v.group_key and n.found.chosen = v.place and n.position = v.position
    where n.found.rank_by < {{ nothing_in_common() }}

),

means as (

    -- In whole numbers, which add up to the same in any order. Within a tenth of a spread, rows are equally near: or one that happens to
    -- be the same in a few columns would decide alone.
    select
        number,
        position,
        sum(weight * cast(round(scaled_value * 1000000) as decimal(19, 0))) / sum(weight) / 1000000.0 as scaled_value,
        cast(count(*) as bigint) as neighbours
    from (
        select *, cast(greatest(round(1000000000 / greatest(cast(squared_distance as double), 0.01)), 1) as decimal(19, 0)) as weight
        from candidates
        where place <= k
    ) as weighted
    group by number, position

),

imputed as (

    select
        p.key,
        p.group_key,
        m.position,
        round(
            {{ element('s.centres', 'm.position') }} + {{ element('s.spreads', 'm.position') }} * cast(m.scaled_value as double), 6
        ) as value,
        m.neighbours
    from means as m
    inner join points as p on m.number = p.number
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

{# SQL of each element of the vector x of the row r, in a template in which # stands for it, and @ for that of `known`. #}
{% macro _elements(columns, template) -%}
{%- set found = [] -%}
{%- for column in columns -%}
    {%- do found.append(template | replace('#', element('r.x', loop.index)) | replace('@', element('r.known', loop.index))) -%}
{%- endfor -%}
{{ return(found) }}
{%- endmacro %}

{# SQL by which the centres, which have no gaps, are ranked for a row: the squared distance less what is the same for all of them, or the
   opposite of the cosine. #}
{% macro _distance_to_centre(row, centre) -%}
{%- set product = dot(row ~ '.x', centre ~ '.x') -%}
{%- set of_centre = dot(row ~ '.known', centre ~ '.x_square') -%}
{%- if var('knn_metric') == 'cosine' -%}
case when {{ of_centre }} > 0 then -{{ product }} / sqrt({{ of_centre }}) else 0 end
{%- else -%}
{{ of_centre }} - 2 * {{ product }}
{%- endif -%}
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
