{#
  Time as text, to a UTC timestamp; null where the text is no time. docs/reference/times.md has the table of accepted
  forms: ISO 8601 and epoch seconds, milliseconds or microseconds (by the number of digits). A zone in the text wins over
  `zone`. Of what DuckDB's own cast would read besides, nothing is a time ('12/1/10 8:26', 'infinity', 'epoch'), nor is a year outside
  of the vars `earliest_year` and `latest_year`. No text raises an error.

  The duckdb__ macros here are plain Jinja: the Python loader renders the same file.
#}

{% macro parse_time(value, zone) %}{{ return(adapter.dispatch('parse_time', 'finegrain')(value, zone)) }}{% endmacro %}

{% macro duckdb__parse_time(value, zone) -%}
{%- set first, end = var('earliest_year') | int, var('latest_year') | int + 1 -%}
{%- set moment = duckdb__let('__read', duckdb__read_time(value, zone), duckdb__local_to_utc("__read['local']", "__read['zone']")) -%}
case
    -- What most are comes first, by a cast of the whole. The years' own ends are left to the long way, for in UTC they may lie in the next.
    when {{ value }} between '{{ first }}-01-02' and '{{ end - 1 }}-12-31'
        and ({{ zone }} = 'UTC' or ends_with({{ value }}, 'Z')) and regexp_full_match({{ value }}, '{{ duckdb__time_pattern('Z') }}')
        then try_cast({{ value }} as timestamp)
    when
        {{ value }} between '{{ first }}-01-02' and '{{ end - 1 }}-12-31'
        and regexp_full_match({{ value }}, '{{ duckdb__time_pattern('offset') }}')
        then make_timestamp(epoch_us(try_cast({{ value }} as timestamptz)))
    when regexp_full_match({{ value }}, '{{ duckdb__time_pattern('epoch') }}')
        then {{ duckdb__let('__since_1970', duckdb__let('__text', value, duckdb__epoch('__text')), "case
            when __since_1970 between epoch_us(timestamp '" ~ first ~ "-01-01') and epoch_us(timestamp '" ~ end ~ "-01-01') - 1
                then make_timestamp(__since_1970)
        end") }}
    else {{ duckdb__let('__moment', moment, "case
        when __moment >= timestamp '" ~ first ~ "-01-01' and __moment < timestamp '" ~ end ~ "-01-01' then __moment
    end") }}
end
{%- endmacro %}

{% macro local_time_is_odd(value, zone) %}{{ return(adapter.dispatch('local_time_is_odd', 'finegrain')(value, zone)) }}{% endmacro %}

{# True where `value` is a local time that occurs twice, or never, in its zone. #}
{% macro duckdb__local_time_is_odd(value, zone) -%}
{%- set odd -%}
case
        when __offset['before'] = __offset['after'] then false
        else {{ duckdb__is_valid('before') }} = {{ duckdb__is_valid('after') }}
    end
{%- endset -%}
{%- set read -%}
case
    -- First what costs little: most times are not local, or of a zone whose clocks do not change.
    when ({{ zone }} = 'UTC' or ends_with(__text, 'Z')) and not contains(__text, '/') then false
    else {{ duckdb__let('__read', duckdb__read_time('__text', zone), "case
        when __read['zone'] <> 'UTC' then " ~ duckdb__with_offsets("__read['local']", "__read['zone']", odd) ~ "
    end") }}
end
{%- endset -%}
coalesce({{ duckdb__let('__text', value, read) }}, false)
{%- endmacro %}

{# True only of times, and of nearly all that are common: one quick look, for where others are read with parse_time. #}
{% macro duckdb__is_plain_time(value) -%}
(
    {{ value }} between '{{ var('earliest_year') | int }}-01-02' and '{{ var('latest_year') | int }}-12-31'
    and regexp_full_match({{ value }}, '{{ duckdb__time_pattern('plain') }}')
)
{%- endmacro %}

{# SQL: the expression `then`, in which `name` is `value`, evaluated once. #}
{% macro duckdb__let(name, value, then) -%}
list_transform([{{ value }}], lambda {{ name }}: {{ then }})[1]
{%- endmacro %}

{# Regular expressions: of the common forms that are cast as they are, and of all that a time may consist of, in groups. #}
{% macro duckdb__time_pattern(of) -%}
{%- set day, hour, sixty = '[0-9]{4}-[0-9]{2}-[0-9]{2}', '(?:[01][0-9]|2[0-3])', '[0-5][0-9]' -%}
{%- set clock = '[T ]' ~ hour ~ ':' ~ sixty ~ ':' ~ sixty ~ '(?:[.][0-9]{1,9})?' -%}
{%- set offset = '[+-](?:0[0-9]|1[0-3])' -%}
{%- if of == 'Z' -%} {{ day ~ clock }}Z?
{%- elif of == 'offset' -%} {{ day ~ clock ~ offset }}(?::{{ sixty }})?
{%- elif of == 'plain' -%} {# Days that every year has. #}
{#- -#} [0-9]{4}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)
{#- -#} {{ clock }}(?:Z|{{ offset }}(?::{{ sixty }})?)?
{%- elif of == 'epoch' -%} [0-9]{9,17}(?:[.][0-9]+)?
{%- else -%}
^({{ day }})(?:[Tt ]({{ hour }}:{{ sixty }})(?::({{ sixty }})(?:[.,]([0-9]{1,9}))?)?
{#- -#} (?: *((?i:Z|UTC|GMT)|({{ offset }})(?::?({{ sixty }}))?|([+-]14)(?::?00)?| ([A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+)))?)?$
{%- endif -%}
{%- endmacro %}

{# SQL of {local: the time as it is written, zone: where that is local}, null for no time. A time with an offset is given in UTC. #}
{% macro duckdb__read_time(value, zone) -%}
{%- set parts -%}
regexp_extract(
        regexp_replace({{ value }}, '^([0-9]{4})([0-9]{2})([0-9]{2})[Tt]([0-9]{2})([0-9]{2})([0-9]{2})', '\1-\2-\3T\4:\5:\6'),
        '{{ duckdb__time_pattern('parts') }}',
        ['day', 'minute', 'second', 'fraction', 'zone', 'hours', 'minutes', 'fourteen', 'place'])
{%- endset -%}
{%- set read -%}
case
        when __parts['day'] <> ''
            -- The cast knows the same names of zones as timezone(), which raises for others.
            and (__parts['place'] = '' or try_cast('2000-01-01 00:00:00 ' || __parts['place'] as timestamptz) is not null)
            then {
                'local': make_timestamp(epoch_us(try_cast(
                    __parts['day'] || ' ' || coalesce(nullif(__parts['minute'], ''), '00:00')
                    || ':' || coalesce(nullif(__parts['second'], ''), '00')
                    || '.' || __parts['fraction'] || '0' || coalesce(nullif(__parts['hours'] || __parts['fourteen'], ''), '+00')
                    || ':' || coalesce(nullif(__parts['minutes'], ''), '00') as timestamptz
                ))),
                'zone': case when __parts['place'] <> '' then __parts['place'] when __parts['zone'] <> '' then 'UTC' else {{ zone }} end
            }
    end
{%- endset -%}
{{ duckdb__let('__parts', parts, read) }}
{%- endmacro %}

{# SQL of the microseconds since 1970 of an epoch time: seconds have up to 11 digits before the point, milliseconds up to 14. #}
{% macro duckdb__epoch(value) -%}
case
    when not contains({{ value }}, '.') then try_cast({{ value }} as bigint)
        * case when length({{ value }}) < 12 then 1000000 when length({{ value }}) < 15 then 1000 else 1 end
    else {{ duckdb__let('__digits', "strpos(" ~ value ~ ", '.') - 1", "try_cast(left(
        replace(" ~ value ~ ", '.', '') || '000000', __digits + case when __digits < 12 then 6 when __digits < 15 then 3 else 0 end
    ) as bigint)") }}
end
{%- endmacro %}

{#
  A local timestamp in `zone` as UTC, by the zone's own rules: with its offset of a day before, else with that of a day after. So a
  time that occurs twice (clocks go back) is the first of the two, and one that never occurs (clocks go forward) is moved on by the gap.
#}
{% macro duckdb__local_to_utc(local, zone) -%}
{%- set moment -%}
make_timestamp(epoch_us(__offset['local']) - case
        when __offset['before'] = __offset['after'] then __offset['before']
        when not {{ duckdb__is_valid('before') }} and {{ duckdb__is_valid('after') }} then __offset['after']
        else __offset['before']
    end)
{%- endset -%}
case
    when {{ zone }} = 'UTC' then {{ local }}
    else {{ duckdb__with_offsets(local, zone, moment) }}
end
{%- endmacro %}

{# SQL: the expression `then`, in which `__offset` is {local, zone, before, after}: the zone's offset, in microseconds, a day before
   and after. #}
{% macro duckdb__with_offsets(local, zone, then) -%}
{{ duckdb__let('__offset', "{
    'local': " ~ local ~ ", 'zone': " ~ zone ~ ",
    'before': " ~ duckdb__offset(zone, "epoch_us(" ~ local ~ ") - 86400000000") ~ ",
    'after': " ~ duckdb__offset(zone, "epoch_us(" ~ local ~ ") + 86400000000") ~ "
}", then) }}
{%- endmacro %}

{# SQL of a zone's offset from UTC, in microseconds, at a moment given in microseconds since 1970. #}
{% macro duckdb__offset(zone, moment) -%}
epoch_us(timezone({{ zone }}, make_timestamptz({{ moment }}))) - ({{ moment }})
{%- endmacro %}

{# SQL: whether the local time of `__offset` is what clocks show with the offset `which`. #}
{% macro duckdb__is_valid(which) -%}
({{ duckdb__offset("__offset['zone']", "epoch_us(__offset['local']) - __offset['" ~ which ~ "']") }} = __offset['{{ which }}'])
{%- endmacro %}

{# SQL: a UTC timestamp as the clocks of a zone, given by its name, show it. Each moment has one such time. #}
{% macro utc_to_local(moment, zone) %}{{ return(adapter.dispatch('utc_to_local', 'finegrain')(moment, zone)) }}{% endmacro %}
{% macro duckdb__utc_to_local(moment, zone) -%}
timezone('{{ zone }}', timezone('UTC', {{ moment }}))
{%- endmacro %}
