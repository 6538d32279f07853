"""The class of the client that a user agent names: `crawler`, `agent`, or null for a person's browser or app and for what says nothing.

`crawler`: search engines, collectors of training data, monitors, headless browsers, HTTP libraries. `agent`: an AI assistant that fetches a page for
a person who asks, or buys for them. Only what names itself is found: many agents have an ordinary browser's user agent.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Final

from orchestration.mapping.personal import known_of

#: Longer texts, in characters, are not parsed: they are not user agents, and would take long.
LONGEST: Final = 1_000
#: The size of each cache.
REMEMBERED: Final = 100_000

CRAWLER: Final = "crawler"
AGENT: Final = "agent"

#: Fetchers that a person's question or order starts, by the names that their makers document; `-User/` is what most of them end in.
_AGENTS: Final = re.compile(
    r"ChatGPT-User|ChatGPT[ -]Agent|\bOperator/|Claude-User|Claude-Code|Perplexity-?User|MistralAI-User|DuckAssistBot|Amzn-User|AmazonBuyForMe|"
    r"Nova-?Act\b|Amazon-Bedrock-AgentCore-Browser|Google-Agent|GoogleAgent-|Gemini-Deep-Research|Google-(?:Gemini)?Notebook|meta-externalfetcher|"
    r"Manus-User|kagi-fetcher|TwinAgent|Anchor Browser|\b[a-z][a-z0-9]*-User/[0-9]",
    re.IGNORECASE,
)
#: Words by which machines call themselves that are in no list. Cubot is a maker of phones.
_WORDS: Final = re.compile(r"(crawler|spider|scraper|headless|(^|[^u]|[^c]u)bot)([^a-z]|$)", re.IGNORECASE)
#: Names in the public list that people's phones, browsers and apps have, too: versions of Android, views inside apps, HTTP libraries of shops' own apps.
_OF_PEOPLE: Final = frozenset(
    {
        r"AP3A\.240617\.008", r"Bluesky\/", "CapitalOneShopping", r"Code\/1\.", "Fluid", "Goodreads", r"Grammarly\/", "HttpUrlConnection", r"Instapaper\/",
        r"mail\.ru", "MetaIAB Facebook", r"Notion\/", "okhttp", r"PayPal\/", "Sogou", "Sonic", r"Trae\/", r"Tumblr\/", r"Valve\/Steam", "Viber", "WhatsApp",
        r"^Silk\/",
    }
)  # fmt: skip
#: So many patterns of the list are one regular expression, as in the list's own package.
_TOGETHER: Final = 25


@cache
def _listed() -> list[re.Pattern[str]]:
    """The public list of crawlers (crawler-user-agents, MIT)."""
    from crawleruseragents import CRAWLER_USER_AGENTS_DATA  # needed by few mappings

    patterns = [entry["pattern"] for entry in CRAWLER_USER_AGENTS_DATA if entry["pattern"] not in _OF_PEOPLE]
    return [re.compile("|".join(patterns[n : n + _TOGETHER])) for n in range(0, len(patterns), _TOGETHER)]


@lru_cache(REMEMBERED)
def client_class_of(user_agent: str) -> str | None:
    """The class of the client. Never raises, whatever the text is."""
    if (known := known_of(user_agent)) is not None:
        return next((each for each in known if each in (CRAWLER, AGENT)), None)
    if len(user_agent) > LONGEST:
        return None
    if _AGENTS.search(user_agent):
        return AGENT
    if _WORDS.search(user_agent) or any(names.search(user_agent) for names in _listed()):
        return CRAWLER
    return CRAWLER if _is_spider(user_agent) else None


def _is_spider(user_agent: str) -> bool:
    """Whether ua-parser knows it as a spider."""
    try:
        import ua_parser

        device = ua_parser.parse_device(user_agent)
    except Exception:  # a text that the parser fails on is none that it knows
        return False
    return device is not None and device.family == "Spider" and "cubot" not in user_agent.lower()
