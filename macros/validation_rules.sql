{#
  The validation rules, each an id and a predicate that is true of a row that breaks it. Its severity and its
  sentence stand in seeds/validation_rules.csv, so that a shop can make an error a warning without touching SQL; but those that all
  else rests on stay errors (a test in seeds/_seeds.yml).
#}
{% macro validation_rules() %}
{{ return([
    ('malformed', 'raw_error is not null or has_bad_number'),
    ('deleted_at_source', 'is_deleted'),
    ('unusable_id', 'has_unusable_id'),
    ('missing_identity', 'raw_error is null and identity is null and not (needs_order and order_known_at is null)'),
    ('missing_event_at', 'raw_error is null and event_at is null and not (needs_order and order_known_at is null)'),
    ('unknown_event_type', 'raw_error is null and event_type is null'),
    ('event_in_future', 'event_at > raw_available_at + ' ~ minutes(var('future_tolerance_minutes'))),
    ('unknown_user', "expects like '%customers%' and user_id is not null and user_first_known_at is null"),
    ('unknown_product', "expects like '%products%' and product_id is not null and product_first_known_at is null"),
    ('order_missing', 'needs_order and order_known_at is null'),
    ('order_times_disordered', 'is_disordered'),
    ('price_out_of_range', is_absurd_price('price') ~ ' or ' ~ is_absurd_amount('price', 'rate', 'quantity')
        ~ ' or given_amount < 0 or ' ~ is_absurd_amount('given_amount', 'rate', '1')),
    ('discount_out_of_range', 'discount < 0 or (given_amount is null and discount > ' ~ times('price', 'coalesce(quantity, 1)') ~ ')'
        ~ ' or ' ~ is_absurd_amount('discount', 'rate', '1')),
    ('quantity_out_of_range', 'quantity <= 0 or quantity > ' ~ limit('max_quantity')),
    ('unknown_currency', 'event_at is not null and price is not null and rate is null'),
    ('consent_denied', "consent_meaning = 'denied'"),
    ('unknown_consent', "consent_meaning = 'unknown'"),
    ('bot_user_agent', "client_class = 'crawler'"),
    ('agent_visit', "client_class = 'agent'"),
    ('bot_rate', 'is_too_many'),
    ('bot_behaviour', 'seems_automated'),
    ('odd_local_time', 'is_odd_local_time'),
    ('missing_product', "product_id is null"
        ~ " and event_type in ('view_item', 'add_to_cart', 'remove_from_cart', 'purchase', 'add_to_wishlist')"),
    ('unknown_order_status', 'has_unknown_status'),
    ('unreadable_order_money', 'has_bad_order_money'),
    ('zero_price', "price = 0 and event_type = 'purchase'"),
    ('assumed_currency', 'is_currency_assumed'),
    ('stale_exchange_rate', days_between('rate_quoted_on', 'event_day') ~ ' > ' ~ var('fx_stale_days')),
]) }}
{% endmacro %}

{# True of a row that breaks any of the rules. #}
{% macro any_rule(rules) -%}
coalesce(
    {%- for rule, predicate in rules %}
    ({{ predicate }}){{ " or" if not loop.last }}
    {%- endfor %}, false
)
{%- endmacro %}
