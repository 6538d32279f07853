{#
  How a visit came, from the page, the referrer and the campaign of its first event (docs/decisions/0014-a-session-is-a-visitors.md).
  The tags in the page's address come first, then the campaign field, then the referrer's site. Names of channels are those of Google
  Analytics 4, in lower case; `ai assistant` is one more.

  The click ids of Google Ads and Microsoft Ads mean that the click was paid. Facebook's fbclid is on every link out of Facebook, paid
  or not, so it names the site only.
#}

{# Words for media by kind, in lower case. `campaign`: words of the campaign field that name a medium, for sources without a field for it;
   `nothing`: words for no value. #}
{% macro media(kind) -%}
{%- set words = {
    'display': ['display', 'banner', 'expandable', 'interstitial', 'cpm'],
    'email': ['email', 'e-mail', 'e_mail', 'e mail', 'newsletter'],
    'affiliates': ['affiliate', 'affiliates'],
    'social': ['social', 'social-network', 'social-media', 'social network', 'social media', 'sm'],
    'referral': ['referral', 'app', 'link'],
    'campaign': [
        'organic', 'cpc', 'ppc', 'cpm', 'paid', 'paidsearch', 'paid_search', 'paidsocial', 'paid_social', 'display', 'email', 'newsletter',
        'affiliate', 'affiliates', 'social', 'referral'
    ],
    'nothing': ['direct', '(direct)', 'none', '(none)', '(not set)', '(not provided)', 'null', 'undefined']
}[kind] -%}
('{{ words | join("', '") }}')
{%- endmacro %}

{# SQL: a tag of a page's address in lower case; null where it is a word for no value. #}
{% macro tag_of(page, name) -%}
case when lower({{ url_parameter(page, name) }}) not in {{ media('nothing') }} then lower({{ url_parameter(page, name) }}) end
{%- endmacro %}

{# SQL: the host of an address, without port and www.; null where there is no valid host. #}
{% macro site_of(url) -%}
{%- set host = "regexp_replace(" ~ url_host(url) ~ ", '^www[.]|:[0-9]*$', '', 'g')" -%}
case when {{ matches(host, '^[\\p{L}\\p{N}_-][\\p{L}\\p{N}._-]*$') }} then {{ host }} end
{%- endmacro %}

{# CTEs: `entries`, the rows of `sessions`, which have `page`, `referrer`, `campaign` and `client_class`, with `entry_source`,
   `entry_medium`, `entry_campaign`, `entry_channel` and `visitor_class`. #}
{% macro entries_of(sessions) -%}
{%- set is_paid = matches('entry_medium', '^(.*cp.*|ppc|retargeting|paid.*)$') -%}
tagged as (

    select
        *,
        {{ tag_of('page', 'utm_source') }} as tag_source,
        {{ tag_of('page', 'utm_medium') }} as tag_medium,
        case
            when lower({{ url_parameter('page', 'utm_campaign') }}) not in {{ media('nothing') }}
                then {{ url_parameter('page', 'utm_campaign') }}
        end as tag_campaign,
        case
            when {{ has_url_parameter('page', ['gclid', 'gbraid', 'wbraid']) }} then 'google'
            when {{ has_url_parameter('page', ['msclkid']) }} then 'bing'
        end as paid_site,
        case when {{ has_url_parameter('page', ['fbclid']) }} then 'facebook' end as linking_site,
        {{ site_of('page') }} as own_site,
        {{ site_of('referrer') }} as referrer_site
    from {{ sessions }}

),

with_leading_site as (

    select
        t.*,
        coalesce(
            case t.tag_source when 'fb' then 'facebook' when 'ig' then 'instagram' else t.tag_source end,
            t.paid_site,
            -- A link from another page of the shop is not how the visit came.
            case
                when t.referrer_site = t.own_site then null
                when right(t.referrer_site, length(t.own_site) + 1) = '.' || t.own_site then null
                when right(t.own_site, length(t.referrer_site) + 1) = '.' || t.referrer_site then null
                else t.referrer_site
            end,
            t.linking_site
        ) as leading_site
    from tagged as t

),

-- A site matches whole labels of a host name: `t.co` does not match `shot.com`.
sites as (

    select leading_site, site, kind
    from (
        select
            l.leading_site,
            c.site,
            c.channel as kind,
            row_number() over (partition by l.leading_site order by length(c.site) desc, c.site) as closest
        from (select distinct leading_site from with_leading_site where leading_site is not null) as l
        inner join {{ seed('referrer_channels') }} as c
            on position('.' || c.site || '.' in '.' || l.leading_site || '.') > 0
    ) as matches
    where closest = 1

),

mediums as (

    select
        l.*,
        s.site,
        s.kind,
        coalesce(
            l.tag_medium,
            case when l.paid_site is not null then 'cpc' end,
            case when lower(l.campaign) in {{ media('campaign') }} then lower(l.campaign) end
        ) as named_medium,
        coalesce(l.tag_campaign, l.campaign) as entry_campaign
    from with_leading_site as l
    left join sites as s on l.leading_site = s.leading_site

),

described as (

    select
        *,
        coalesce(tag_source, paid_site, site, leading_site) as entry_source,
        coalesce(
            named_medium,
            -- A tag or a campaign without a medium: the site does not say which medium it was.
            case
                when tag_source is null and entry_campaign is null and leading_site is not null
                    then case kind when 'search' then 'organic' when 'social' then 'social' else 'referral' end
            end
        ) as entry_medium
    from mediums

),

entries as (

    select
        *,
        case
            when {{ is_paid }} and kind = 'search' then 'paid search'
            when {{ is_paid }} and kind = 'social' then 'paid social'
            when entry_medium in {{ media('display') }} then 'display'
            when {{ is_paid }} then 'paid other'
            when entry_medium in {{ media('email') }} or entry_source in {{ media('email') }} then 'email'
            when entry_medium in {{ media('affiliates') }} then 'affiliates'
            when kind = 'assistant' then 'ai assistant'
            when named_medium is null and entry_campaign is not null then 'campaign'
            when entry_medium in {{ media('social') }} then 'organic social'
            when entry_medium = 'organic' then case when kind = 'social' then 'organic social' else 'organic search' end
            when entry_medium in {{ media('referral') }} then 'referral'
            when kind = 'search' then 'organic search'
            when kind = 'social' then 'organic social'
            when entry_medium is not null or entry_source is not null then 'campaign'
            else 'direct'
        end as entry_channel,
        -- Crawlers are seen only where bot_user_agent is a warning.
        case
            when client_class in ('agent', 'crawler') then client_class
            when kind = 'assistant' then 'assistant_referred'
            else 'human'
        end as visitor_class
    from described

)
{%- endmacro %}
