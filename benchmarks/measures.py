"""The counts, sums and windows of the features for the data frame engines, from dbt_project.yml and seeds/."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

#: Windows of days, windows of preferences, and windows of hours.
DAYS: dict[str, int | None] = {"7d": 7, "14d": 14, "30d": 30, "90d": 90, "365d": 365, "lifetime": None}
HOURS = {"1h": 1, "24h": 24}
LONG: dict[str, int | None] = {"90d": 90, "lifetime": None}
#: Half-lives in days.
HALF_LIVES = (1, 7, 30)
#: Pseudo-observations behind each rate.
SMOOTHING = 20
#: The weight of each kind of event in an affinity.
WEIGHTS = {"view_item": 1, "add_to_cart": 3, "purchase": 10}
#: Measures that count events of a type, and measures that sum a column of them.
COUNTS = {
    "views": "view_item",
    "list_views": "view_item_list",
    "searches": "search",
    "cart_adds": "add_to_cart",
    "cart_removes": "remove_from_cart",
    "checkouts": "begin_checkout",
    "wishlist_adds": "add_to_wishlist",
}
SUMS = {
    "units": ("purchase", "quantity"),
    "revenue": ("purchase", "amount"),
    "gross_revenue": ("purchase", "gross_amount"),
    "refunds": ("refund", "amount"),
}
#: For money, also sum KNOWN for each event with a known amount and 1 for each without. If there are events and none has a known
#: amount, money is null.
MONEY = ("revenue", "gross_revenue", "refunds")
KNOWN = 2**30
OF_USER = [*COUNTS, *SUMS, *(f"known_{name}" for name in MONEY)]
OF_ITEM = [name for name in OF_USER if name not in ("searches", "checkouts")]
OF_SESSION = [name for name in OF_USER if name not in ("gross_revenue", "known_gross_revenue")]
OF_USER_ITEM = ["views", "cart_adds", "cart_removes", "units", "revenue", "known_revenue"]
OF_AFFINITY = ["views", "cart_adds", "units", "revenue", "known_revenue"]

#: Tag values that mean none.
NO_TAG = ("", "direct", "(direct)", "none", "(none)", "(not set)", "(not provided)", "null", "undefined")


def campaign_tag(page: str | None) -> str | None:
    """The decoded utm_campaign of a URL; None if there is none, or if it means none."""
    found = re.search("[?&](?:amp;)?utm_campaign=([^&#]*)", page or "", re.IGNORECASE)
    try:
        value = re.sub("[\\x00-\\x1f\\x7f]", "", unquote_plus(found[1], errors="strict")).strip(" ") if found else ""
    except UnicodeDecodeError:
        return None
    return None if value.lower() in NO_TAG else value
