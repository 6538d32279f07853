{# CTE body: the words of seeds/consent_words.csv, one row: `granted`, `denied` and all `words`, as lists. #}
{% macro consent_words() -%}
select
    {% for meaning in ['granted', 'denied'] %}
    {{ collect("case when meaning = '" ~ meaning ~ "' then word end") }} as {{ meaning }},
    {% endfor %}
    {{ collect('word') }} as words
from {{ seed('consent_words') }}
{%- endmacro %}

{# SQL: what a text says of consent, as a list: a word, or the members of JSON that the var consent_keys names; null for nothing. #}
{% macro consent_texts(text) -%}
case when {{ text }} is not null then {{ texts_of_json(text, var('consent_keys')) }} end
{%- endmacro %}

{# SQL: granted, denied or unknown; `w` has the consent_words. Where several things are said, one denial is a denial; and a word that nobody
   knows is no consent. #}
{% macro consent_meaning(texts, w) -%}
case
    when {{ texts }} is null then null
    when {{ list_meets(texts, w ~ '.denied') }} then 'denied'
    when {{ list_size(texts) }} = 0 or not {{ list_covers(w ~ '.words', texts) }} then 'unknown'
    when {{ list_meets(texts, w ~ '.granted') }} then 'granted'
end
{%- endmacro %}

{# A relation of the identities of customers who have withdrawn their consent, whatever the moment asked for: nothing is worked out of them
   any more, nor of the visitors that they were before they logged in. #}
{% macro withdrawn_identities() -%}
(
    select h.identity
    from {{ ref('int_identity__links') }} as h
    inner join {{ ref('int_reference__known_users') }} as u on h.customer_id = {{ uuid_v5("'u:' || u.user_id") }}
    where u.consent_meaning = 'denied'
)
{%- endmacro %}

{# SQL: whether `column`, a customer or (`key`) a session, is of nobody who has withdrawn consent. #}
{% macro is_consenting(column, key='customer_id') -%}
{{ column }} not in (
    select k.{{ key }}
    from {{ ref('int_tiles__identity_session' if key == 'session_id' else 'int_identity__links') }} as k
    where k.identity in {{ withdrawn_identities() | indent(4) }}
)
{%- endmacro %}

{# A relation of the customers who gave or withdrew consent since the last build; `m` has the moments_of_builds. #}
{% macro customers_of_changed_consent(m) -%}
(
    select {{ uuid_v5("'u:' || u.user_id") }} as customer_id
    from {{ ref('int_changes__consent') }} as u
    inner join {{ m }} as m on u.changed_in > m.last_snapshot
)
{%- endmacro %}
