"""The device type of a user agent: `mobile`, `tablet` or `desktop`; null for bots, televisions and unknown devices.

A row with a user agent and no device gets its device when it is loaded, so the models work on any engine. DuckDB calls the function with whole
vectors. Each distinct text is parsed once per process, with ua-parser.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

import duckdb
from duckdb.func import ARROW, SPECIAL

#: The name of the function in SQL.
FUNCTION: Final = "__device_of"
#: Longer texts, in characters, are not parsed: they are not user agents, and would take long.
LONGEST: Final = 1_000
#: The size of the cache.
_REMEMBERED: Final = 100_000

_DESKTOPS: Final = frozenset(
    {"Windows", "Mac OS X", "Linux", "Ubuntu", "Fedora", "Debian", "Chrome OS", "FreeBSD", "OpenBSD", "NetBSD"}
)
_PHONES: Final = frozenset({"Windows Phone", "BlackBerry OS", "Firefox OS", "KaiOS", "Symbian OS", "Bada"})
#: Devices that look like a phone or a computer but are not.
_OTHERS: Final = re.compile(
    r"bot\b|crawl|spider|slurp|headless|phantomjs|lighthouse|\btv\b|smart-?tv|appletv|googletv|hbbtv|crkey|roku|\bAFT[A-Z]|bravia|"
    r"playstation|xbox|nintendo|\bwatch|oculus|quest [0-9]",
    re.IGNORECASE,
)
_TABLETS: Final = re.compile(
    r"ipad|tablet(?! pc)|kindle|playbook|silk/(?!.*mobile)|\bKF[A-Z]{2,}\b|nexus (7|9|10)\b", re.IGNORECASE
)


@lru_cache(_REMEMBERED)
def device_of(user_agent: str) -> str | None:
    """The device of a user agent. Never raises, whatever the text is."""
    if len(user_agent) > LONGEST or _OTHERS.search(user_agent):
        return None
    try:
        import ua_parser  # needed by few mappings

        system, device = ua_parser.parse_os(user_agent), ua_parser.parse_device(user_agent)
    except Exception:  # a text that the parser fails on has no device
        return None
    family = "" if system is None else system.family
    model = "" if device is None else device.family
    if model == "Spider":
        return None
    if _TABLETS.search(user_agent) or _TABLETS.search(model):
        return "tablet"
    if family == "Android":
        return "mobile" if "mobile" in user_agent.lower() or model == "Generic Smartphone" else "tablet"
    if family == "iOS" or family in _PHONES or "Phone" in model:
        return "mobile"
    return "desktop" if family in _DESKTOPS else None


def _devices(user_agents: Any) -> Any:
    """The same for a vector; each distinct text is parsed once."""
    texts = user_agents.dictionary_encode()
    return _taken(texts)


def _taken(texts: Any) -> Any:
    import pyarrow as pa

    if isinstance(texts, pa.ChunkedArray):
        return pa.chunked_array([_taken(chunk) for chunk in texts.chunks], pa.string())
    found = pa.array([device_of(text) for text in texts.dictionary.to_pylist()], pa.string())
    return found.take(texts.indices)


def register(con: duckdb.DuckDBPyConnection) -> None:
    """Register `FUNCTION` for a connection and all others to the same database."""
    with suppress(duckdb.CatalogException, duckdb.NotImplementedException):  # already registered
        con.create_function(FUNCTION, _devices, ["VARCHAR"], "VARCHAR", type=ARROW, null_handling=SPECIAL)


def filled(device: str, user_agent: str) -> str:
    """SQL of a row's device or, if it has none, of the device of its user agent."""
    return f"case when nullif(trim({device}), '') is not null or {user_agent} is null then {device} else {FUNCTION}({user_agent}) end"
