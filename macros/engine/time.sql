{#
  Time as text, to a UTC timestamp; null where the text is no time.

  Accepted: ISO 8601 with an offset or `Z`, ISO 8601 without one (read in `zone`), and epoch seconds,
  milliseconds or microseconds (told apart by the number of digits). A local time that occurs twice (clocks
  go back) is the first of the two; one that never occurs (clocks go forward) is moved on by the length of the gap.

  The duckdb__ macros here are plain Jinja: the Python loader renders the same file.
#}

{% macro parse_time(value, zone) %}{{ return(adapter.dispatch('parse_time', 'finegrain')(value, zone)) }}{% endmacro %}

{% macro duckdb__parse_time(value, zone) -%}
case
    when regexp_full_match({{ value }}, '[0-9]{9,17}([.][0-9]+)?')
        then case
            when length(split_part({{ value }}, '.', 1)) >= 15
                then make_timestamp(try_cast(split_part({{ value }}, '.', 1) as bigint))
            when length(split_part({{ value }}, '.', 1)) >= 12
                then make_timestamp(cast(cast(try_cast({{ value }} as decimal(18, 3)) as decimal(38, 3)) * 1000 as bigint))
            else make_timestamp(cast(cast(try_cast({{ value }} as decimal(18, 6)) as decimal(38, 6)) * 1000000 as bigint))
        end
    when regexp_matches({{ value }}, '[0-9]{2}:[0-9]{2}.*([+-][0-9]{2}(:?[0-9]{2})?|Z|z)$')
        then try_cast(try_cast(regexp_replace({{ value }}, '([+-][0-9]{2})([0-9]{2})$', '\1:\2') as timestamptz) at time zone 'UTC' as timestamp)
    else {{ duckdb__local_to_utc('try_cast(' ~ value ~ ' as timestamp)', zone) }}
end
{%- endmacro %}

{# A naive local timestamp in `zone` as UTC. #}
{% macro duckdb__local_to_utc(local, zone) -%}
case
    when {{ zone }} = 'UTC' then {{ local }}
    when timezone({{ zone }}, timezone({{ zone }}, {{ local }}) - interval 1 hour) = {{ local }}
        then (timezone({{ zone }}, {{ local }}) - interval 1 hour) at time zone 'UTC'
    else timezone({{ zone }}, {{ local }}) at time zone 'UTC'
end
{%- endmacro %}

{% macro local_time_is_odd(value, zone) %}{{ return(adapter.dispatch('local_time_is_odd', 'finegrain')(value, zone)) }}{% endmacro %}

{# True where `value` is a naive local time that occurs twice, or never, in `zone`. #}
{% macro duckdb__local_time_is_odd(value, zone) -%}
case
    -- A case, for an `and` would reckon with zones on every row that has nothing to do with them.
    when {{ zone }} = 'UTC'
        or regexp_full_match({{ value }}, '[0-9]{9,17}([.][0-9]+)?')
        or regexp_matches({{ value }}, '[0-9]{2}:[0-9]{2}.*([+-][0-9]{2}(:?[0-9]{2})?|Z|z)$')
        then false
    else coalesce(
        timezone({{ zone }}, timezone({{ zone }}, try_cast({{ value }} as timestamp)) - interval 1 hour) = try_cast({{ value }} as timestamp)
        or timezone({{ zone }}, timezone({{ zone }}, try_cast({{ value }} as timestamp))) <> try_cast({{ value }} as timestamp),
        false
    )
end
{%- endmacro %}
