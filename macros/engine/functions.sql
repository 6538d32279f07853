{# Small things that engines spell differently, one macro each. #}

{% macro id_hash(expressions) %}{{ return(adapter.dispatch('id_hash', 'finegrain')(expressions)) }}{% endmacro %}
{# md5, as 32 hex digits, over text fields. A null is spelled, so that it is neither dropped nor taken for ''. #}
{% macro default__id_hash(expressions) -%}
md5(
    {%- for expression in expressions %}
    coalesce(replace(cast({{ expression }} as varchar), '|', '||'), '|null') {{ "|| '|,' ||" if not loop.last }}
    {%- endfor %}
)
{%- endmacro %}

{% macro number_of_hash(hash) %}{{ return(adapter.dispatch('number_of_hash', 'finegrain')(hash)) }}{% endmacro %}
{# The first 15 hex digits of a hash as a number; BIGINT. #}
{% macro duckdb__number_of_hash(hash) %}cast('0x' || left({{ hash }}, 15) as bigint){% endmacro %}

{% macro uuid_v5(name) %}{{ return(adapter.dispatch('uuid_v5', 'finegrain')(name)) }}{% endmacro %}
{# RFC 9562 version 5 UUID, as text, of `name` in finegrain's own namespace (the v5 UUID of 'finegrain' in the URL namespace). #}
{% macro duckdb__uuid_v5(name) -%}
{%- set digest = "sha1(unhex('4eb3ae3446e552a1b4bed109cfb28e73') || encode(" ~ name ~ "))" -%}
(
    substr({{ digest }}, 1, 8) || '-' || substr({{ digest }}, 9, 4)
    || '-5' || substr({{ digest }}, 14, 3)
    || '-' || substr('89ab', 1 + (strpos('0123456789abcdef', substr({{ digest }}, 17, 1)) - 1) % 4, 1) || substr({{ digest }}, 18, 3)
    || '-' || substr({{ digest }}, 21, 12)
)
{%- endmacro %}

{% macro whole_seconds(from_time, to_time) %}{{ return(adapter.dispatch('whole_seconds', 'finegrain')(from_time, to_time)) }}{% endmacro %}
{# Seconds from one moment to another, rounded down to the second of each microsecond difference; BIGINT. #}
{% macro duckdb__whole_seconds(from_time, to_time) -%}
(epoch_us({{ to_time }}) - epoch_us({{ from_time }})) // 1000000
{%- endmacro %}

{% macro seconds_between(from_time, to_time) -%}
{{ return(adapter.dispatch('seconds_between', 'finegrain')(from_time, to_time)) }}{% endmacro %}
{# Seconds with their fraction, exact to the microsecond and so fit to be summed; DECIMAL(18, 6). #}
{% macro duckdb__seconds_between(from_time, to_time) -%}
cast((epoch_us({{ to_time }}) - epoch_us({{ from_time }})) * 0.000001 as decimal(18, 6))
{%- endmacro %}

{% macro milliseconds_between(from_time, to_time) -%}
{{ return(adapter.dispatch('milliseconds_between', 'finegrain')(from_time, to_time)) }}{% endmacro %}
{# Whole milliseconds from one moment to another; BIGINT. #}
{% macro duckdb__milliseconds_between(from_time, to_time) -%}
((epoch_us({{ to_time }}) - epoch_us({{ from_time }})) // 1000)
{%- endmacro %}

{% macro hours_between(from_time, to_time) %}{{ return(adapter.dispatch('hours_between', 'finegrain')(from_time, to_time)) }}{% endmacro %}
{# Hours from one moment to another, with their fraction; DOUBLE. #}
{% macro duckdb__hours_between(from_time, to_time) -%}
((epoch_us({{ to_time }}) - epoch_us({{ from_time }})) / 3600000000.0)
{%- endmacro %}

{% macro days_between(from_day, to_day) %}{{ return(adapter.dispatch('days_between', 'finegrain')(from_day, to_day)) }}{% endmacro %}
{# Whole days from one day to another. #}
{% macro duckdb__days_between(from_day, to_day) -%}
date_diff('day', {{ from_day }}, {{ to_day }})
{%- endmacro %}

{% macro add_days(day, days) %}{{ return(adapter.dispatch('add_days', 'finegrain')(day, days)) }}{% endmacro %}
{# The day so many days later; DATE. #}
{% macro duckdb__add_days(day, days) -%}
cast({{ day }} + cast({{ days }} as integer) as date)
{%- endmacro %}

{% macro minutes(count) %}{{ return(adapter.dispatch('minutes', 'finegrain')(count)) }}{% endmacro %}
{# An interval of so many minutes. #}
{% macro default__minutes(count) %}interval {{ count }} minute{% endmacro %}

{% macro list_of_true(flags) %}{{ return(adapter.dispatch('list_of_true', 'finegrain')(flags)) }}{% endmacro %}
{# A list of the names whose predicate is true; `flags` is a list of (name, predicate). #}
{% macro duckdb__list_of_true(flags) -%}
list_filter([
    {%- for name, predicate in flags %}
    case when {{ predicate }} then '{{ name }}' end{{ "," if not loop.last }}
    {%- endfor %}
], lambda x: x is not null)
{%- endmacro %}

{% macro list_within(values, allowed) %}{{ return(adapter.dispatch('list_within', 'finegrain')(values, allowed)) }}{% endmacro %}
{# The members of list `values` that are also in list `allowed`, in their order. #}
{% macro duckdb__list_within(values, allowed) -%}
list_filter({{ values }}, lambda x: list_contains({{ allowed }}, x))
{%- endmacro %}

{% macro list_size(values) %}{{ return(adapter.dispatch('list_size', 'finegrain')(values)) }}{% endmacro %}
{# How many values a list has; null for no list. #}
{% macro duckdb__list_size(values) %}len({{ values }}){% endmacro %}

{% macro empty_list() %}{{ return(adapter.dispatch('empty_list', 'finegrain')()) }}{% endmacro %}
{# A list without values. #}
{% macro duckdb__empty_list() %}cast([] as varchar[]){% endmacro %}

{% macro median_of(value) %}{{ return(adapter.dispatch('median_of', 'finegrain')(value)) }}{% endmacro %}
{# The median of a group or, before an `over`, of a window; nulls do not count. #}
{% macro duckdb__median_of(value) %}median({{ value }}){% endmacro %}

{% macro no_numbers() %}{{ return(adapter.dispatch('no_numbers', 'finegrain')()) }}{% endmacro %}
{# No list of numbers: a null of that type. #}
{% macro duckdb__no_numbers() %}cast(null as bigint[]){% endmacro %}

{% macro has_value(values, value) %}{{ return(adapter.dispatch('has_value', 'finegrain')(values, value)) }}{% endmacro %}
{# Whether a list has this text. #}
{% macro duckdb__has_value(values, value) %}list_contains({{ values }}, '{{ value }}'){% endmacro %}

{% macro collect(expression) %}{{ return(adapter.dispatch('collect', 'finegrain')(expression)) }}{% endmacro %}
{# The values of a group as a list. #}
{% macro duckdb__collect(expression) %}list({{ expression }} order by {{ expression }}){% endmacro %}

{% macro in_one_text(text, by) %}{{ return(adapter.dispatch('in_one_text', 'finegrain')(text, by)) }}{% endmacro %}
{# The texts of a group, in order, as one. #}
{% macro duckdb__in_one_text(text, by) %}string_agg({{ text }}, '|' order by {{ by }}){% endmacro %}

{% macro list_of_known(expressions) %}{{ return(adapter.dispatch('list_of_known', 'finegrain')(expressions)) }}{% endmacro %}
{# A list, in the order given, of those expressions that are not null. #}
{% macro duckdb__list_of_known(expressions) -%}
list_filter([
    {%- for expression in expressions %}
    {{ expression }}{{ "," if not loop.last }}
    {%- endfor %}
], lambda x: x is not null)
{%- endmacro %}

{% macro last_by(value, at) %}{{ return(adapter.dispatch('last_by', 'finegrain')(value, at)) }}{% endmacro %}
{# Of a group, the value of the last moment that has one; of several at that moment the greatest, so that order never shows. #}
{% macro duckdb__last_by(value, at) -%}
arg_max({{ value }}, {'at': {{ at }}, 'value': {{ value }}})
{%- endmacro %}

{% macro last_known(value) %}{{ return(adapter.dispatch('last_known', 'finegrain')(value)) }}{% endmacro %}
{# Before an `over`: of the window's values that are not null, the last one; `first_known`: the first one. #}
{% macro duckdb__last_known(value) %}last_value({{ value }} ignore nulls){% endmacro %}

{% macro first_known(value) %}{{ return(adapter.dispatch('first_known', 'finegrain')(value)) }}{% endmacro %}
{# Before an `over`: of the window's values that are not null, the first one. #}
{% macro duckdb__first_known(value) %}first_value({{ value }} ignore nulls){% endmacro %}

{% macro unfold(values) %}{{ return(adapter.dispatch('unfold', 'finegrain')(values)) }}{% endmacro %}
{# In a select list: a row for each value of a list. #}
{% macro duckdb__unfold(values) %}unnest({{ values }}){% endmacro %}

{# How often `divisor` goes into `dividend`, both whole numbers not below zero, without the rest. #}
{% macro whole_quotient(dividend, divisor) %}{{ return(adapter.dispatch('whole_quotient', 'finegrain')(dividend, divisor)) }}{% endmacro %}
{% macro duckdb__whole_quotient(dividend, divisor) -%}
(cast({{ dividend }} as hugeint) // cast({{ divisor }} as hugeint))
{%- endmacro %}

{% macro log_bucket(value) %}{{ return(adapter.dispatch('log_bucket', 'finegrain')(value)) }}{% endmacro %}
{# The histogram bucket of a value: about 2 % wide, symmetric around zero, zero in bucket 0. #}
{% macro duckdb__log_bucket(value) -%}
cast(case
    when {{ value }} = 0 then 0
    else sign({{ value }}) * (100000 + floor(ln(abs(cast({{ value }} as double))) / ln(1.02)))
end as integer)
{%- endmacro %}

{% macro is_finite(value) %}{{ return(adapter.dispatch('is_finite', 'finegrain')(value)) }}{% endmacro %}
{# False of NaN and of the infinities. #}
{% macro duckdb__is_finite(value) %}isfinite({{ value }}){% endmacro %}

{% macro matches(text, pattern) %}{{ return(adapter.dispatch('matches', 'finegrain')(text, pattern)) }}{% endmacro %}
{# Whether a regular expression is found anywhere in a text. #}
{% macro duckdb__matches(text, pattern) %}regexp_matches({{ text }}, '{{ pattern }}'){% endmacro %}

{% macro url_host(url) %}{{ return(adapter.dispatch('url_host', 'finegrain')(url)) }}{% endmacro %}
{# The host of an address in lower case, with its port if one is said; the scheme may be missing. #}
{% macro duckdb__url_host(url) %}regexp_extract(lower({{ url }}), '^(?:(?:[a-z][a-z0-9+.-]*:)?//)?([^/?#]*)', 1){% endmacro %}

{% macro url_parameter(url, name) %}{{ return(adapter.dispatch('url_parameter', 'finegrain')(url, name)) }}{% endmacro %}
{# The value of a parameter of an address, decoded, without control characters; null where there is none, or none that can be decoded. The
   name's case does not matter. #}
{% macro duckdb__url_parameter(url, name) -%}
nullif(trim(regexp_replace(
    try(url_decode(replace(regexp_extract({{ url }}, '(?i)[?&](?:amp;)?{{ name }}=([^&#]*)', 1), '+', ' '))), '[\x00-\x1f\x7f]', '', 'g'
)), '')
{%- endmacro %}

{% macro has_url_parameter(url, names) %}{{ return(adapter.dispatch('has_url_parameter', 'finegrain')(url, names)) }}{% endmacro %}
{# Whether an address has a parameter of one of these names, with a value. #}
{% macro duckdb__has_url_parameter(url, names) -%}
regexp_matches({{ url }}, '(?i)[?&](?:amp;)?({{ names | join("|") }})=[^&#]')
{%- endmacro %}

{% macro edit_distance(left, right) %}{{ return(adapter.dispatch('edit_distance', 'finegrain')(left, right)) }}{% endmacro %}
{# How many letters are added, left out, replaced or swapped between two texts. #}
{% macro duckdb__edit_distance(left, right) %}damerau_levenshtein({{ left }}, {{ right }}){% endmacro %}

{% macro parameter(parameters, key, kind) %}{{ return(adapter.dispatch('parameter', 'finegrain')(parameters, key, kind)) }}{% endmacro %}
{# The value of one GA4 event parameter; `kind` is string, int or number. #}
{% macro duckdb__parameter(parameters, key, kind) -%}
{%- set found = "list_filter(" ~ parameters ~ ", lambda p: p.key = '" ~ key ~ "')[1].value" -%}
{%- if kind == 'string' -%} ({{ found }}).string_value
{%- elif kind == 'int' -%} ({{ found }}).int_value
{%- else -%} coalesce(({{ found }}).double_value, ({{ found }}).float_value, ({{ found }}).int_value)
{%- endif -%}
{%- endmacro %}

{% macro texts_of_json(column, keys) %}{{ return(adapter.dispatch('texts_of_json', 'finegrain')(column, keys)) }}{% endmacro %}
{# A list of lower-case texts: of a JSON object the values of those of its `keys` that it has, of any other text itself. #}
{% macro duckdb__texts_of_json(column, keys) -%}
case
    when starts_with({{ column }}, '{') and json_valid({{ column }})
        then list_filter([
            {%- for key in keys %}
            lower(trim(json_extract_string({{ column }}, '$.{{ key }}'))){{ "," if not loop.last }}
            {%- endfor %}
        ], lambda x: x is not null)
    else [lower({{ column }})]
end
{%- endmacro %}

{% macro list_meets(values, others) %}{{ return(adapter.dispatch('list_meets', 'finegrain')(values, others)) }}{% endmacro %}
{# True where the two lists have a member in common. #}
{% macro duckdb__list_meets(values, others) %}list_has_any({{ values }}, {{ others }}){% endmacro %}

{% macro list_covers(values, others) %}{{ return(adapter.dispatch('list_covers', 'finegrain')(values, others)) }}{% endmacro %}
{# True where list `values` has every member of `others`. #}
{% macro duckdb__list_covers(values, others) %}list_has_all({{ values }}, {{ others }}){% endmacro %}

{% macro unfold_items(items) %}{{ return(adapter.dispatch('unfold_items', 'finegrain')(items)) }}{% endmacro %}
{# Lateral rows (item, item_index from 1) of a list; one row with nulls for an empty or null list. #}
{% macro duckdb__unfold_items(items) -%}
left join lateral (
    select
        unnest({{ items }}) as item,
        unnest(range(1, len({{ items }}) + 1)) as item_index
) as unfolded on true
{%- endmacro %}

{% macro json_object(pairs) %}{{ return(adapter.dispatch('json_object', 'finegrain')(pairs)) }}{% endmacro %}
{# A JSON object of these names and values. #}
{% macro duckdb__json_object(pairs) -%}
cast(json_object({% for name, value in pairs %}'{{ name }}', {{ value }}{{ ", " if not loop.last }}{% endfor %}) as varchar)
{%- endmacro %}

{% macro day_range(first, end) %}{{ return(adapter.dispatch('day_range', 'finegrain')(first, end)) }}{% endmacro %}
{# The list of dates from `first` up to, but without, `end`. #}
{% macro duckdb__day_range(first, end) -%}
cast(range(cast({{ first }} as timestamp), cast({{ end }} as timestamp), interval 1 day) as date[])
{%- endmacro %}

{% macro all_but(relation, columns) %}{{ return(adapter.dispatch('all_but', 'finegrain')(relation, columns)) }}{% endmacro %}
{# All columns except these. #}
{% macro duckdb__all_but(relation, columns) %}{{ relation }}.* exclude ({{ columns | join(', ') }}){% endmacro %}

{% macro asof_left_join(left, right, on_equal, left_time, right_time) -%}
{{ return(adapter.dispatch('asof_left_join', 'finegrain')(left, right, on_equal, left_time, right_time)) }}
{%- endmacro %}
{# `left` with, of the rows of `right` that agree on `on_equal`, the last one not later than it. Both are "relation as alias". #}
{% macro duckdb__asof_left_join(left, right, on_equal, left_time, right_time) -%}
{{ left }}
    asof left join {{ right }}
        on {% for pair in on_equal %}{{ pair[0] }} = {{ pair[1] }} and {% endfor %}{{ left_time }} >= {{ right_time }}
{%- endmacro %}

{% macro inlined() %}{{ return(adapter.dispatch('inlined', 'finegrain')()) }}{% endmacro %}
{# After the `as` of a CTE that several others read: work it out for each of them, of the columns that it needs. DuckDB would keep it
   whole, with every column, and spill it. #}
{% macro duckdb__inlined() %}not materialized{% endmacro %}
{% macro default__inlined() %}{% endmacro %}

{% macro kept_once() %}{{ return(adapter.dispatch('kept_once', 'finegrain')()) }}{% endmacro %}
{# After the `as` of a small CTE: work it out once, before what reads it. DuckDB would join all of them in one go, in a bad order. #}
{% macro duckdb__kept_once() %}materialized{% endmacro %}
{% macro default__kept_once() %}{% endmacro %}

{% macro vector(values) %}{{ return(adapter.dispatch('vector', 'finegrain')(values)) }}{% endmacro %}
{# Numbers as one value of single precision, of which dot() takes the scalar product. #}
{% macro duckdb__vector(values) -%}
cast([{{ values | join(', ') }}] as float[{{ values | length }}])
{%- endmacro %}

{% macro dot(left, right) %}{{ return(adapter.dispatch('dot', 'finegrain')(left, right)) }}{% endmacro %}
{# The scalar product of two vectors. #}
{% macro duckdb__dot(left, right) %}array_inner_product({{ left }}, {{ right }}){% endmacro %}

{% macro element(values, position) %}{{ return(adapter.dispatch('element', 'finegrain')(values, position)) }}{% endmacro %}
{# An element of a list or vector, from 1. #}
{% macro duckdb__element(values, position) %}{{ values }}[{{ position }}]{% endmacro %}

{% macro smallest(order, value, count) %}{{ return(adapter.dispatch('smallest', 'finegrain')(order, value, count)) }}{% endmacro %}
{# Aggregate: the smallest pairs of (`order`, `value`), in order, as a list of structs with these two fields. #}
{% macro duckdb__smallest(order, value, count) -%}
min(struct_pack(rank_by := {{ order }}, chosen := {{ value }}), {{ count }})
{%- endmacro %}

{% macro pairs(left, right, keys) %}{{ return(adapter.dispatch('pairs', 'finegrain')(left, right, keys)) }}{% endmacro %}
{# In a from clause: each pair of a row of the query `left` and one of the query `right` with equal `keys`, as structs l and r; `left` has a
   column `number`. For rows with vectors: a join of DuckDB copies them for every pair, these lists are copied for every thousandth row. #}
{% macro duckdb__pairs(left, right, keys) -%}
(
    select l, unnest(r_rows) as r
    from (
        select unnest(l_rows) as l, r_rows
        from (
            select {{ keys | join(', ') }}, list(l) as l_rows from ({{ left }}) as l group by {{ keys | join(', ') }}, number // 5000
        ) as of_left
        inner join (
            select {{ keys | join(', ') }}, list(r) as r_rows from ({{ right }}) as r group by {{ keys | join(', ') }}
        ) as of_right using ({{ keys | join(', ') }})
    ) as rows_of_left
) as found_pairs
{%- endmacro %}

{% macro quantile(value, share) %}{{ return(adapter.dispatch('quantile', 'finegrain')(value, share)) }}{% endmacro %}
{# Aggregate: an interpolated quantile, as a double. #}
{% macro duckdb__quantile(value, share) %}quantile_cont(cast({{ value }} as double), {{ share }}){% endmacro %}

{% macro words(text) %}{{ return(adapter.dispatch('words', 'finegrain')(text)) }}{% endmacro %}
{# The distinct words of a text, in lower case: runs of two letters or digits and more, of any script; a list. #}
{% macro duckdb__words(text) -%}
list_distinct(regexp_extract_all(lower({{ text }}), '[\p{L}\p{N}]{2,}'))
{%- endmacro %}
