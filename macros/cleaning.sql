{# The groups that a value may be compared with, from narrow to wide: [rule's name, column of the event, alias of the join]. #}
{% macro outlier_groups() %}
{{ return({
    'price': [
        ['product_id', 'product_id', 'pp'], ['category', 'product_category', 'pc'],
        ['event_type', 'event_type', 'pe'], ['hour_of_week', 'hour_of_week', 'ph'], ['all', "'all'", 'pa'],
    ],
    'quantity': [
        ['product_id', 'product_id', 'qp'], ['event_type', 'event_type', 'qe'],
        ['category', 'product_category', 'qc'], ['hour_of_week', 'hour_of_week', 'qh'], ['all', "'all'", 'qa'],
    ],
}) }}
{% endmacro %}

{# The groups of which there are fits only if a rule names them: a shop has many products, so their quantities cost as much to fit as their
   prices. #}
{% macro optional_groups() %}
{{ return({'price': ['event_type', 'hour_of_week'], 'quantity': ['product_id', 'hour_of_week']}) }}
{% endmacro %}

{# The groups that may fill a gap, narrow to wide, by the group that the rule names. A median by product never comes from a kind of
   event. #}
{% macro filling_groups() %}
{{ return({
    'product_id': ['product_id', 'category', 'all'],
    'event_type': ['event_type', 'category', 'all'],
    'category': ['category', 'all'],
    'all': ['all'],
}) }}
{% endmacro %}

{# SQL: whether a rule names this group of this column, so that its fits are needed. #}
{% macro is_named_by_rules(record, column, group_by) -%}
(
    select count(*)
    from (
        select column_name, group_by from {{ seed('outlier_rules') }}
        union all
        select column_name, group_by from {{ seed('imputation_rules') }} where record = '{{ record }}' and action = 'impute'
    ) as named
    where column_name = '{{ column }}' and group_by = '{{ group_by }}'
) > 0
{%- endmacro %}

{# SQL: whether the gaps of this column are filled by this method. #}
{% macro is_imputed_by(record, column, method) -%}
(
    select count(*)
    from {{ seed('imputation_rules') }}
    where record = '{{ record }}' and column_name = '{{ column }}' and method = '{{ method }}' and action = 'impute'
) > 0
{%- endmacro %}

{# SQL: seeds/imputation_rules.csv for one kind of record, as one row: of each column, whether its gaps are filled (of_…), with the most
   frequent value instead of the median (by_mode_…) or by a model (by_model_…), and within which group (…_by). #}
{% macro imputation_of(record, columns) -%}
select
    {%- for column in columns %}
    coalesce(max(case when column_name = '{{ column }}' then action end) = 'impute', false) as of_{{ column }},
    coalesce(max(case when column_name = '{{ column }}' then method end) = 'mode', false) as by_mode_{{ column }},
    coalesce(max(case when column_name = '{{ column }}' and action = 'impute' then method end) = 'model', false) as by_model_{{ column }},
    max(case when column_name = '{{ column }}' then group_by end) as {{ column }}_by,
    {%- endfor %}
    count(*) as rules
from {{ seed('imputation_rules') }}
where record = '{{ record }}'
{%- endmacro %}

{# The bounds of what is believable, from an outlier rule (columns method, scale, factor, min_count, min_ratio, min_distance) and a fit
   (columns n, q25, q50, q75, mean, std, log_mean, log_std): quartile fences or standard deviations, raw or on logarithms; but never
   nearer to the median than min_ratio times and min_distance, since where nearly all values are one, the method alone would take
   any other for an outlier. Null where the rule is unknown or the fit too small. #}
{% macro outlier_bound(rule, fit, side) -%}
{%- set sign = '-' if side == 'low' else '+' -%}
{%- set quartile = 'q25' if side == 'low' else 'q75' -%}
{%- set further = 'least' if side == 'low' else 'greatest' -%}
{%- set ordinary -%}
cast({{ fit }}.q50 as double) {{ '/' if side == 'low' else '*' }} {{ rule }}.min_ratio,
            cast({{ fit }}.q50 as double) {{ sign }} {{ rule }}.min_distance
{%- endset -%}
case
    when {{ fit }}.n < {{ rule }}.min_count then null
    when {{ rule }}.method = 'iqr' and {{ rule }}.scale = 'raw'
        then {{ further }}(
            {{ fit }}.{{ quartile }} {{ sign }} {{ rule }}.factor * ({{ fit }}.q75 - {{ fit }}.q25),
            {{ ordinary }}
        )
    when {{ rule }}.method = 'iqr' and {{ rule }}.scale = 'log' and {{ fit }}.q25 > 0
        then {{ further }}(
            exp(ln({{ fit }}.{{ quartile }}) {{ sign }} {{ rule }}.factor * (ln({{ fit }}.q75) - ln({{ fit }}.q25))),
            {{ ordinary }}
        )
    when {{ rule }}.method = 'zscore' and {{ rule }}.scale = 'raw'
        then {{ further }}({{ fit }}.mean {{ sign }} {{ rule }}.factor * {{ fit }}.std, {{ ordinary }})
    when {{ rule }}.method = 'zscore' and {{ rule }}.scale = 'log' and {{ fit }}.log_mean is not null
        then {{ further }}(
            exp({{ fit }}.log_mean {{ sign }} {{ rule }}.factor * coalesce({{ fit }}.log_std, 0)),
            {{ ordinary }}
        )
end
{%- endmacro %}

{# CTE body: the bounds by group that outlier rules draw for an attribute of customers or products, from the newest fits (CTE `fits`). #}
{% macro bounds_of_attribute(measure) -%}
select
    f.group_by,
    f.group_key,
    {{ outlier_bound('r', 'f', 'low') }} as low,
    {{ outlier_bound('r', 'f', 'high') }} as high,
    r.scale,
    r.action
from fits as f
inner join {{ seed('outlier_rules') }} as r on f.measure = r.column_name and f.group_by = r.group_by
where f.measure = '{{ measure }}'
{%- endmacro %}

{# SQL: whether a value is beyond its bounds and not left as it is. Others learn nothing from such a value. #}
{% macro is_treated(value, chain) -%}
coalesce(
            {{ is_outlier(value, narrowest(chain, 'low'), narrowest(chain, 'high'), narrowest(chain, 'scale')) }}
            and {{ narrowest(chain, 'action') }} in ('cap', 'remove'),
            false
        )
{%- endmacro %}

{# A column of the fit that applies: of a chain of groups from narrow to wide, [name, column, alias of its joined fit], the
   first one that has bounds, which is to say a rule and history enough. #}
{% macro narrowest(chain, column) -%}
case
    {%- for name, key, alias in chain %}
    when {{ alias }}.low is not null or {{ alias }}.high is not null then {{ alias }}.{{ column }}
    {%- endfor %}
end
{%- endmacro %}

{# The number to impute: the median, or the most frequent value, of the group that the rule names or, where it has none yet, of the next
   wider one. `rule` is a row of imputation_of(). #}
{% macro imputed_from(chain, rule, measure) -%}
{%- set aliases = {} -%}
{%- for name, key, alias in chain %}{% do aliases.update({name: alias}) %}{% endfor -%}
case {{ rule }}.{{ measure }}_by
    {%- for name, wider in filling_groups().items() %}
    when '{{ name }}' then case
        when {{ rule }}.by_mode_{{ measure }} then coalesce(
            {%- for group in wider %}{{ aliases[group] }}.most_frequent, {% endfor %}null)
        else coalesce({% for group in wider %}{{ aliases[group] }}.q50, {% endfor %}null)
    end
    {%- endfor %}
end
{%- endmacro %}

{# SQL: whether a value is beyond its bounds. Zero has no logarithm, so a rule on the log scale says nothing of it: a gift is
   no outlier. #}
{% macro is_outlier(value, low, high, scale) -%}
coalesce(({{ value }} < {{ low }} or {{ value }} > {{ high }}) and ({{ value }} > 0 or {{ scale }} <> 'log'), false)
{%- endmacro %}

{# A value after an outlier rule: capped, removed, or left as it is and flagged. #}
{% macro treated(value, low, high, scale, action) -%}
case
    when not {{ is_outlier(value, low, high, scale) }} then {{ value }}
    when {{ action }} = 'cap' then case when {{ value }} < {{ low }} then {{ low }} else {{ high }} end
    when {{ action }} = 'remove' then null
    else {{ value }}
end
{%- endmacro %}
