"""Names in the simulated shop, and their codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR


@dataclass(frozen=True)
class Market:
    code: str
    country: str
    currency: str
    zone: str
    share: float


MARKETS: Final = (
    Market("DE", "Germany", "EUR", "Europe/Berlin", 0.30),
    Market("FR", "France", "EUR", "Europe/Paris", 0.12),
    Market("ES", "Spain", "EUR", "Europe/Madrid", 0.08),
    Market("GB", "United Kingdom", "GBP", "Europe/London", 0.18),
    Market("SE", "Sweden", "SEK", "Europe/Stockholm", 0.10),
    Market("US", "United States", "USD", "America/New_York", 0.14),
    Market("US", "United States", "USD", "America/Los_Angeles", 0.08),
)
CURRENCIES: Final = ("EUR", "USD", "GBP", "SEK")
#: Units of each currency for one euro; the shop's price list uses them all year.
RATES: Final = (1.0, 1.04, 0.84, 11.3)
#: The currency of each market.
MARKET_CURRENCY: Final = np.array([CURRENCIES.index(market.currency) for market in MARKETS])
#: Invalid currency codes, for which there are no exchange rates.
UNKNOWN_CURRENCIES: Final = ("XXX", "ZZZ", "POINTS")

CATEGORIES: Final = (
    "electronics", "computers", "smartphones", "kitchenware", "furniture", "gardening", "toys and games", "books",
    "clothing", "footwear", "cosmetics", "sporting goods", "groceries", "pet supplies", "stationery",
    "musical instruments",
)  # fmt: skip


def misspellings(category: str) -> tuple[str, ...]:
    """Misspellings of a category: a letter missing, doubled, swapped or wrong, and unusual case and spacing."""
    at = len(category) // 2
    return (
        category[: at - 1] + category[at:],
        category[:at] + category[at] + category[at:],
        category[:-2] + category[-1] + category[-2],
        category[:at] + ("x" if category[at] != "x" else "z") + category[at + 1 :],
        category.upper() + "  ",
        " " + category[:at] + category[at + 1 :].title(),
    )


#: All spellings of categories: the correct ones first, then the misspellings of each.
SPELLINGS: Final = CATEGORIES + tuple(text for category in CATEGORIES for text in misspellings(category))
MISSPELLINGS: Final = len(misspellings(CATEGORIES[0]))

#: The canonical event types, by code, each with the name in the shop's tracker.
TYPES: Final = {
    "page_view": "page", "login": "login", "search": "search", "view_item_list": "list", "select_item": "click",
    "view_item": "view", "add_to_wishlist": "wish", "add_to_cart": "cart_add", "remove_from_cart": "cart_remove",
    "view_cart": "cart", "begin_checkout": "checkout", "add_payment_info": "payment", "purchase": "buy",
}  # fmt: skip
(PAGE, LOGIN, SEARCH, LIST, SELECT, VIEW, WISH, ADD, REMOVE, CART, CHECKOUT, PAYMENT, PURCHASE) = range(len(TYPES))
STORE_WORDS: Final = {SEARCH: "find", VIEW: "look", ADD: "basket"}

WEB, APP, STORE = range(3)
#: Share of the rows by channel, and (measured) rows per visit.
CHANNEL_ROWS: Final = (0.65, 0.30, 0.05)
VISIT_ROWS: Final = (9.2, 11.95, 4.55)
#: Share of all rows that are neither from bots nor copies, as measured.
CLEAN_SHARE: Final = 0.985

#: Kinds of planted errors, by code. The names are those of the truth files.
KINDS: Final = (
    "clean", "exact_duplicate", "near_duplicate", "redelivered_event", "repeated_purchase", "order_twin", "late_event",
    "naive_local_time", "wrong_unit", "misspelt_category", "price_outlier", "missing_value", "orphan_user",
    "orphan_product", "disordered_times", "bot", "denied_consent", "malformed_row", "future_event", "unknown_currency",
    "bad_quantity", "bad_price", "orphan_order", "quantity_outlier", "agent", "assistant_referral", "seasonal_outlier",
)  # fmt: skip
#: The kinds that are second deliveries of a row.
COPIES: Final = ("exact_duplicate", "near_duplicate", "redelivered_event", "repeated_purchase")
KIND: Final = {name: code for code, name in enumerate(KINDS)}

DETAILS: Final = (
    "", "price, at random", "price, not at random", "quantity, at random", "cut short", "plain text", "an array",
    "a bad time", "declared", "fast", "stealthy", "missing hour", "doubled hour", "ordinary hour", "times 100",
    "divided by 100", "times 10", "same bytes", "other id, page and agent", "same id, a few ms off",
    "regular", "broad", "night", "residential", "a box at another hour",
)  # fmt: skip
DETAIL: Final = {name: code for code, name in enumerate(DETAILS)}

#: The code of a missing quantity.
NO_QUANTITY: Final = -(2**31)
#: With wholesale hours (UTC, from Monday to Friday), resellers buy boxes of so many pieces then.
WHOLESALE_HOURS: Final = (6, 10)
BOX: Final = 24
#: Ids of people and products from here on are in no table of the shop.
GHOST_USER: Final = 9_000_000
GHOST_PRODUCT: Final = 900_000

_WINDOWS, _MAC = "Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7"
_PIXEL, _IPHONE, _IPAD = (
    "Linux; Android 14; Pixel 8",
    "iPhone; CPU iPhone OS 17_4 like Mac OS X",
    "iPad; CPU OS 17_4 like Mac OS X",
)


def _chrome(system: str, version: int) -> str:
    return f"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{version}.0.0.0 Safari/537.36"


def _safari(system: str, version: int) -> str:
    browser = f"Version/17.{version} Mobile/15E148 Safari/604.1"
    return f"Mozilla/5.0 ({system}) AppleWebKit/605.1.15 (KHTML, like Gecko) {browser}"


#: (device, user agent) of people's browsers.
AGENTS: Final = (
    *(("desktop", _chrome(_WINDOWS, version)) for version in range(124, 134)),
    *(("desktop", _chrome(_MAC, version)) for version in range(128, 134)),
    *(("mobile", _chrome(_PIXEL, version)) for version in range(124, 134)),
    *(("mobile", _safari(_IPHONE, version)) for version in range(1, 7)),
    *(("tablet", _safari(_IPAD, version)) for version in range(1, 5)),
)
BOT_AGENTS: Final = (
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
    "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)",
    "Baiduspider+(+http://www.baidu.com/search/spider.htm)",
    "python-requests/2.32.3",
)
#: AI assistants that look for a person, by the names that their makers document.
ASSISTANT_AGENTS: Final = (
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko); compatible; ChatGPT-User/1.0; +https://openai.com/bot",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; Claude-User/1.0; +Claude-User@anthropic.com)",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; Perplexity-User/1.0; +https://perplexity.ai/perplexity-user)",
    "Mozilla/5.0 (compatible; AmazonBuyForMe; +https://www.amazon.com/)",
)
#: (referrer, campaign) of a visit; None for direct visits.
CAMPAIGNS: Final = (
    None,
    ("https://www.google.com/", None),
    ("https://www.google.com/", "brand_search"),
    ("https://www.instagram.com/", "spring_looks"),
    ("https://mail.example/", "newsletter"),
    ("https://deals.example/", "promo_week"),
)
#: The same of visits of people whom an AI assistant has sent.
ASSISTANTS: Final = (
    ("https://chatgpt.com/", None),
    ("https://www.perplexity.ai/", None),
    ("https://gemini.google.com/", None),
)
QUERY_WORDS: Final = ("best", "cheap", "new", "small", "blue", "gift", "used", "sale")
BRANDS: Final = (
    "Aurora", "Birch", "Cobalt", "Delta", "Ember", "Fjord", "Granite", "Harbor", "Iris", "Juniper", "Kestrel", "Lumen",
)  # fmt: skip


def queries() -> list[str]:
    """All search texts: each word with each category, ordered by category."""
    return [f"{word} {category}" for category in CATEGORIES for word in QUERY_WORDS]
